package telemetry

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// Traffic counts the calls of the versions that are being compared. Its methods
// may be called from many goroutines.
type Traffic struct {
	mu      sync.Mutex // serialises changes of watched
	watched atomic.Pointer[map[watchKey]*tally]
}

type watchKey struct {
	function string
	version  int
}

// tally is what is counted of one version.
type tally struct {
	errors  atomic.Int64
	buckets [64 << subBits]atomic.Uint32
}

// subBits is how many binary digits of a duration tell buckets apart: they are
// exact to one in 2^subBits.
const subBits = 4

// Watch counts the calls of these versions of a function from zero, and those of
// its others no more.
func (t *Traffic) Watch(function string, versions ...int) {
	t.change(function, versions)
}

// Unwatch counts calls of the function no more.
func (t *Traffic) Unwatch(function string) { t.change(function, nil) }

func (t *Traffic) change(function string, versions []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := map[watchKey]*tally{}
	if old := t.watched.Load(); old != nil {
		for k, v := range *old {
			if k.function != function {
				next[k] = v
			}
		}
	}
	for _, v := range versions {
		next[watchKey{function, v}] = &tally{}
	}
	if len(next) == 0 {
		t.watched.Store(nil)
		return
	}
	t.watched.Store(&next)
}

// count takes the record of a call. Those that Hearth refused or whose callers
// gave up or were wrong say nothing about the version.
func (t *Traffic) count(v *hearth.Invocation) {
	watched := t.watched.Load()
	if watched == nil {
		return
	}
	y := (*watched)[watchKey{v.Function, v.Version}]
	if y == nil || v.Cached {
		return
	}
	switch v.ErrorCode {
	case hearth.CodeExhausted, hearth.CodeCanceled, hearth.CodeInvalid:
		return
	}
	if v.ErrorCode != "" || v.Status >= 500 {
		y.errors.Add(1)
	}
	y.buckets[durationBucket(v.Timings.Run)].Add(1)
}

// durationBucket returns the bucket of a duration.
func durationBucket(d time.Duration) int {
	n := uint64(max(1, d))
	exponent := bits.Len64(n) - 1
	sub := (n << (63 - exponent)) << 1 >> (64 - subBits)
	return exponent<<subBits | int(sub)
}

// bound returns the greatest duration of a bucket, in seconds.
func bound(b int) float64 {
	exponent, sub := b>>subBits, b&(1<<subBits-1)
	return math.Ldexp(1+float64(sub+1)/(1<<subBits), exponent) / 1e9
}

// Traffic returns what was counted of a version since it was watched; false if it
// is not. Durations are how long the function ran, exact to 7 %.
func (t *Traffic) Traffic(function string, version int) (hearth.Traffic, bool) {
	watched := t.watched.Load()
	if watched == nil {
		return hearth.Traffic{}, false
	}
	y := (*watched)[watchKey{function, version}]
	if y == nil {
		return hearth.Traffic{}, false
	}
	out := hearth.Traffic{Errors: y.errors.Load(), Percentiles: map[int]float64{}}
	var counts [len(y.buckets)]int64
	for i := range y.buckets {
		counts[i] = int64(y.buckets[i].Load())
		out.Calls += counts[i]
	}
	for _, p := range []int{50, 90, 95, 99} {
		rank, seen := (out.Calls*int64(p)+99)/100, int64(0)
		for i, n := range counts {
			if seen += n; n > 0 && seen >= rank {
				out.Percentiles[p] = bound(i)
				break
			}
		}
	}
	return out, true
}
