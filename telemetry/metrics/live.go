package metrics

import (
	"time"

	"github.com/hearthrun/hearth"
)

// Live sums up what calls did in a span of time until now, from readings that somebody
// takes again and again: so it knows of a call as soon as it has ended, and nothing needs
// to be stored for it. Its methods may not be called at the same time.
type Live struct {
	span     time.Duration
	readings []*Reading // of one process, oldest first; all but the first are within the span
	last     map[string]float64
	recent   map[string][]float64
}

const (
	// liveReadings is how many readings are kept at most: by that part of the span,
	// numbers are of more than it.
	liveReadings = 12
	// Recent is how many rates Live.Recent returns at most.
	Recent = 60
	// newProcess is by how much two starts of the same process may differ that the
	// kernel tells, which reckons them by a clock that is set now and then.
	newProcess = 3 * time.Second
	// youngest is how old a process must be for rates since its start: its clock may
	// not be ours.
	youngest = time.Second
)

// NewLive returns a Live that tells of a span of time.
func NewLive(span time.Duration) *Live { return &Live{span: span, recent: map[string][]float64{}} }

// Add adds a reading, which is newer than all before. The first may be one of the past.
func (l *Live) Add(r *Reading) {
	r = &Reading{Time: r.Time, Started: r.Started, counts: r.counts}
	if n := len(l.readings); n > 0 {
		if newer(l.readings[n-1], r) {
			*l = *NewLive(l.span)
		} else {
			r.share(l.readings[n-1])
		}
	}
	if age := r.Time.Sub(r.Started); len(l.readings) == 0 && !r.Started.IsZero() && age >= youngest && age <= l.span {
		l.readings = append(l.readings, &Reading{Time: r.Started, Started: r.Started}) // all was 0
	}
	l.note(r)
	// The newest is always there, those before it are some time apart.
	if n := len(l.readings); n > 2 && l.readings[n-1].Time.Sub(l.readings[n-2].Time) < l.span/liveReadings {
		l.readings[n-1] = r
	} else {
		l.readings = append(l.readings, r)
	}
	for len(l.readings) > 2 && r.Time.Sub(l.readings[1].Time) >= l.span {
		l.readings = l.readings[1:]
	}
}

// newer tells whether r is of a process that began after the other reading.
func newer(before, r *Reading) bool {
	if before.Started.IsZero() {
		return before.Time.Before(r.Started)
	}
	return r.Started.Sub(before.Started).Abs() > newProcess
}

// note notes the rates since the last reading.
func (l *Live) note(r *Reading) {
	now := r.calls()
	if n := len(l.readings); n > 0 && l.last != nil {
		seconds := r.Time.Sub(l.readings[n-1].Time).Seconds()
		for name := range l.recent {
			if _, ok := now[name]; !ok {
				delete(l.recent, name)
			}
		}
		for name, calls := range now {
			list := append(l.recent[name], max(0, calls-l.last[name])/max(seconds, 0.001))
			l.recent[name] = list[max(0, len(list)-Recent):]
		}
	}
	l.last = now
}

// Stats returns what calls did in the span, by function; "" has all. It is nil as long as
// there are not two readings: From of each says when the first was. Errors:
// CodeUnavailable if the readings do not fit each other.
func (l *Live) Stats() (map[string]hearth.Stats, error) {
	n := len(l.readings)
	if n < 2 {
		return nil, nil
	}
	return l.readings[n-1].since(l.readings[0])
}

// Recent returns the rates of calls of a function, or of all if it is empty, between the
// last readings, oldest first.
func (l *Live) Recent(function string) []float64 { return l.recent[function] }
