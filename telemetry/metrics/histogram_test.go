package metrics

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// The buckets are those of Prometheus' own library.
func TestHistogramIsPrometheus(t *testing.T) {
	var h Histogram
	theirs := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "h", NativeHistogramBucketFactor: 1.1, NativeHistogramZeroThreshold: math.Exp2(firstOctave),
	})
	var sum time.Duration
	observe := func(d time.Duration) {
		h.Observe(d)
		theirs.Observe(d.Seconds())
		sum += d
	}
	for _, d := range []time.Duration{0, 1, time.Microsecond, 500 * time.Millisecond, 250 * time.Millisecond, time.Second, time.Second + 1, 2 * time.Second, 4 * time.Hour} {
		observe(d)
	}
	for range 10_000 {
		observe(time.Duration(math.Exp(rand.Float64()*25) * 100))
	}
	got := h.Snapshot()
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	var m dto.Metric
	if err := theirs.Write(&m); err != nil {
		t.Fatal(err)
	}
	want := m.GetHistogram()
	if got.Count != want.GetSampleCount() || got.ZeroCount != want.GetZeroCount() || got.Count != h.Count() || got.Schema != want.GetSchema() ||
		math.Abs(got.Sum-sum.Seconds()) > 1e-6 {
		t.Errorf("%v, want %v", got, want)
	}
	// Theirs joins spans with small gaps.
	counts := map[int32]int64{}
	index, n, k := int32(0), int64(0), 0
	for _, s := range want.GetPositiveSpan() {
		index += s.GetOffset()
		for range s.GetLength() {
			n += want.GetPositiveDelta()[k]
			if n > 0 {
				counts[index] = n
			}
			k, index = k+1, index+1
		}
	}
	it := got.PositiveBucketIterator()
	for it.Next() {
		b := it.At()
		if int64(b.Count) != counts[b.Index] {
			t.Errorf("bucket %d to %v: %d, want %d", b.Index, b.Upper, b.Count, counts[b.Index])
		}
		delete(counts, b.Index)
	}
	if len(counts) > 0 {
		t.Errorf("buckets are missing: %v", counts)
	}
}

func BenchmarkObserve(b *testing.B) {
	var h Histogram
	b.RunParallel(func(pb *testing.PB) {
		for d := time.Microsecond; pb.Next(); d += 17 * time.Microsecond {
			h.Observe(d)
		}
	})
}
