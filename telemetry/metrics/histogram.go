package metrics

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
)

// Histogram is a native histogram of durations, as Prometheus has them, which takes
// memory for the octaves only that it has seen: some 500 bytes, where client_golang's
// takes 4 KiB. The zero value is ready. Its methods may be called from many goroutines.
type Histogram struct {
	zero    atomic.Uint64 // durations below the first bucket
	sum     atomic.Int64  // nanoseconds
	octaves [lastOctave - firstOctave + 1]atomic.Pointer[octave]
}

// octave has the buckets between a power of two, in seconds, and the next.
type octave [perOctave]atomic.Uint64

const (
	// schema is that of native histograms: buckets grow by 2^(1/8), which is 9 %.
	schema    = 3
	perOctave = 1 << schema
	// Buckets reach from 2^firstOctave to 2^(lastOctave+1) seconds, that is from 1 µs to
	// 9 hours. What is longer is in the last one.
	firstOctave = -20
	lastOctave  = 14
)

// bounds are the upper bounds of the buckets of an octave, from 0.5 to 1, but for the last.
var bounds = func() (b [perOctave]float64) {
	for i := range b {
		b[i] = math.Exp2(float64(i)/perOctave - 1)
	}
	return b
}()

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	h.sum.Add(int64(max(d, 0)))
	if d <= 0 {
		h.zero.Add(1)
		return
	}
	// d is fraction × 2^exponent with a fraction from 0.5 to less than 1.
	fraction, exponent := math.Frexp(d.Seconds())
	at, exact := slices.BinarySearch(bounds[:], fraction)
	at-- // bucket i has what is above bounds[i], and bounds[i+1] too
	if exact && at < 0 {
		exponent, at = exponent-1, perOctave-1
	}
	number := exponent - 1 - firstOctave
	if number < 0 {
		h.zero.Add(1)
		return
	}
	if number >= len(h.octaves) {
		number, at = len(h.octaves)-1, perOctave-1
	}
	o := h.octaves[number].Load()
	if o == nil {
		h.octaves[number].CompareAndSwap(nil, new(octave))
		o = h.octaves[number].Load()
	}
	o[at].Add(1)
}

// Count returns how many durations were observed.
func (h *Histogram) Count() uint64 {
	n := h.zero.Load()
	for i := range h.octaves {
		if o := h.octaves[i].Load(); o != nil {
			for at := range o {
				n += o[at].Load()
			}
		}
	}
	return n
}

// Snapshot returns what was observed, in seconds. Its count is that of its buckets.
func (h *Histogram) Snapshot() *histogram.Histogram {
	out := &histogram.Histogram{
		Schema: schema, ZeroThreshold: math.Exp2(firstOctave), ZeroCount: h.zero.Load(), Sum: float64(h.sum.Load()) / float64(time.Second),
	}
	out.Count = out.ZeroCount
	next, before := 0, int64(0) // index after the last bucket that is there, and its count
	for i := range h.octaves {
		o := h.octaves[i].Load()
		if o == nil {
			continue
		}
		for at := range o {
			n := o[at].Load()
			if n == 0 {
				continue
			}
			out.Count += n
			// Bucket 0 ends at 1 s.
			index := (firstOctave+i)*perOctave + at + 1
			if k := len(out.PositiveSpans); k > 0 && index == next {
				out.PositiveSpans[k-1].Length++
			} else {
				offset := int32(index)
				if k > 0 {
					offset = int32(index - next)
				}
				out.PositiveSpans = append(out.PositiveSpans, histogram.Span{Offset: offset, Length: 1})
			}
			out.PositiveBuckets = append(out.PositiveBuckets, int64(n)-before)
			next, before = index+1, int64(n)
		}
	}
	return out
}
