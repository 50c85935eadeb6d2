package telemetry

import (
	"maps"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// Traffic counts the calls of the versions that releases by steps compare. Its
// methods may be called from many goroutines.
type Traffic struct {
	mu      sync.Mutex // serialises changes of watched
	watched atomic.Pointer[map[string]*comparison]
}

// comparison is what is counted for the step of a release.
type comparison struct {
	release    int64
	step       int
	since      time.Time // of the release: calls that began before are none of its
	old, fresh tally
}

// tally is what is counted of one version.
type tally struct {
	version int
	errors  atomic.Int64
	buckets histogram
	// left are the calls whose callers left before there was an answer.
	left histogram
}

// histogram counts durations.
type histogram [buckets]atomic.Uint32

const (
	// subBits is how many binary digits of a duration tell buckets apart: they are
	// exact to one in 2^subBits.
	subBits = 4
	buckets = 64 << subBits
	// slack is by how much longer than nearly all calls of the old version one must
	// have run that its caller gave up, so that it failed; in seconds.
	slack = 0.01
	// patience is how long it is while the old version has answered none, in seconds.
	patience = 10
)

// Watch counts the calls of both versions of a release that runs from zero, for its
// step, and no more those of another release of the function.
func (t *Traffic) Watch(r hearth.Release) {
	c := &comparison{release: r.ID, step: r.Step, since: r.StartedAt}
	c.old.version, c.fresh.version = r.From, r.To
	t.change(r.Function, c)
}

// Unwatch counts calls of the function no more.
func (t *Traffic) Unwatch(function string) { t.change(function, nil) }

func (t *Traffic) change(function string, c *comparison) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := map[string]*comparison{}
	if old := t.watched.Load(); old != nil {
		maps.Copy(next, *old)
	}
	if next[function] = c; c == nil {
		delete(next, function)
	}
	if len(next) == 0 {
		t.watched.Store(nil)
		return
	}
	t.watched.Store(&next)
}

// count takes the record of a call. Only those through the alias that is being
// released say how a version does for its callers, whatever whoever tries a preview
// does with it. Those that Hearth refused or whose callers were wrong say nothing.
func (t *Traffic) count(v *hearth.Invocation) {
	watched := t.watched.Load()
	if watched == nil || v.Alias != hearth.Live || v.Cached {
		return
	}
	c := (*watched)[v.Function]
	if c == nil || v.StartedAt.Before(c.since) {
		return // of a function that had the name before, perhaps
	}
	var y *tally
	switch v.Version {
	case c.fresh.version:
		y = &c.fresh
	case c.old.version:
		y = &c.old
	default:
		return
	}
	switch v.ErrorCode {
	case hearth.CodeExhausted, hearth.CodeInvalid:
		return
	case hearth.CodeCanceled:
		if v.BytesOut == 0 && v.Timings.Run > 0 && v.Status == hearth.CodeCanceled.HTTPStatus() {
			y.left[durationBucket(v.Timings.Run)].Add(1)
		}
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

// Traffic returns what was counted of both versions of a release since its step is
// watched; ok is false if it is not. Durations are how long the function ran, exact
// to 7 %.
//
// A caller that left before the answer began says nothing of a version, as long as
// the call had not run longer than 99 % of the old version's, and 10 ms, or than 10 s
// while that has answered none. Then it is a call that failed: a version that hangs
// must not go unnoticed because nobody waits for it.
func (t *Traffic) Traffic(r hearth.Release) (fresh, old hearth.Traffic, ok bool) {
	watched := t.watched.Load()
	if watched == nil {
		return fresh, old, false
	}
	c := (*watched)[r.Function]
	if c == nil || c.release != r.ID || c.step != r.Step {
		return fresh, old, false
	}
	limit := float64(patience)
	answered := c.old.buckets.counts()
	if b := percentile(&answered, 99); b >= 0 {
		limit = bound(b) + slack
	}
	return c.fresh.sum(limit), c.old.sum(limit), true
}

// sum returns what y has, with callers that left after more than limit seconds.
func (y *tally) sum(limit float64) hearth.Traffic {
	out := hearth.Traffic{Errors: y.errors.Load(), Percentiles: map[int]float64{}}
	counts, left := y.buckets.counts(), y.left.counts()
	for i, n := range left {
		out.Left += n
		if bound(i) > limit {
			counts[i] += n
			out.Errors += n
		}
	}
	for _, n := range counts {
		out.Calls += n
	}
	for _, p := range []int{50, 90, 95, 99} {
		if b := percentile(&counts, p); b >= 0 {
			out.Percentiles[p] = bound(b)
		}
	}
	return out
}

func (h *histogram) counts() (out [buckets]int64) {
	for i := range h {
		out[i] = int64(h[i].Load())
	}
	return out
}

// percentile returns the bucket of a percentile, -1 if there are no calls.
func percentile(counts *[buckets]int64, p int) int {
	var calls, seen int64
	for _, n := range counts {
		calls += n
	}
	rank := (calls*int64(p) + 99) / 100
	for i, n := range counts {
		if seen += n; n > 0 && seen >= rank {
			return i
		}
	}
	return -1
}
