package policy

import (
	"math"
	"time"
)

const (
	// settle is the time constant of the average load: long enough that a burst
	// which the queue rule has dealt with already does not count as sustained,
	// short enough that growth does not lag behind people's patience.
	settle = 2 * time.Second
	// PeakWindow is how far back a peak counts: instances that it needed may be
	// needed again. To forget it after a minute, as Knative does, makes more than
	// four times the cold starts and saves a third of the idle memory
	// (docs/keep-alive.md).
	PeakWindow  = 10 * time.Minute
	peakBuckets = 10
	peakBucket  = PeakWindow / peakBuckets
)

// Load follows how many calls a version has, in flight or queued: the
// exponential average of their number, weighted by time, and its peak. The zero
// value has no calls. It is not safe for use by several goroutines at once.
type Load struct {
	last    time.Time // of the last Set
	since   time.Time // when calls became 0; zero before the first call
	calls   int       // since last
	average float64   // at last
	// peaks are the highest averages: of the bucket that last is in, and of those
	// before it. A bucket is a peakBucket of the time since the first Set.
	peaks  [peakBuckets + 1]float32
	bucket time.Duration // how far last is into the current bucket
}

// Set tells that from now on there are this many calls. Time must not go
// backwards; if it does it stands still.
func (l *Load) Set(now time.Time, calls int) {
	l.advance(now)
	if calls == 0 && l.calls > 0 {
		l.since = now
	}
	l.calls = calls
}

// At returns the average and the peak as of now, and when the last call ended
// (zero if there never was one).
func (l *Load) At(now time.Time) (average, peak float64, idleSince time.Time) {
	at := *l
	at.advance(now)
	for _, p := range at.peaks {
		peak = max(peak, float64(p))
	}
	return at.average, max(peak, at.average), at.since
}

// advance moves last to now, bucket by bucket.
func (l *Load) advance(now time.Time) {
	if l.last.IsZero() {
		l.last = now
		return
	}
	passed := now.Sub(l.last)
	if passed <= 0 {
		return
	}
	l.last = now
	if passed > PeakWindow+peakBucket {
		// Nothing of before is left in the window.
		l.peaks = [peakBuckets + 1]float32{}
		l.decay(passed - PeakWindow)
		passed = PeakWindow
	}
	for {
		// Between two events the average only rises or only falls: its peak in a
		// bucket is at one end.
		l.peaks[0] = max(l.peaks[0], float32(l.average))
		step := min(passed, peakBucket-l.bucket)
		l.decay(step)
		l.bucket += step
		passed -= step
		l.peaks[0] = max(l.peaks[0], float32(l.average))
		if l.bucket < peakBucket {
			return
		}
		l.bucket = 0
		copy(l.peaks[1:], l.peaks[:peakBuckets])
		l.peaks[0] = 0
	}
}

// decay moves the average towards the number of calls.
func (l *Load) decay(d time.Duration) {
	l.average = float64(l.calls) + (l.average-float64(l.calls))*math.Exp(-float64(d)/float64(settle))
}

// Mean is an exponential average of durations. The zero value knows none.
type Mean struct{ nanos float64 }

// Add takes one more duration into account, with the weight that TCP gives to a
// measured round trip (RFC 6298).
func (m *Mean) Add(d time.Duration) {
	if m.nanos == 0 {
		m.nanos = float64(d)
		return
	}
	m.nanos += (float64(d) - m.nanos) / 8
}

// Value returns the average; 0 if there is none yet.
func (m *Mean) Value() time.Duration { return time.Duration(m.nanos) }
