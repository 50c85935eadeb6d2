package queue

import (
	"time"

	"github.com/robfig/cron/v3"

	"github.com/hearthrun/hearth"
)

// times are the times of a schedule.
type times struct {
	cron cron.Schedule // nil means at only
	at   time.Time
	// spec is the same as text.
	spec string
}

// parseTimes reads when a schedule is due. Errors: CodeInvalid.
func parseTimes(s hearth.Schedule) (times, error) {
	if s.Cron == "" {
		at, err := s.Time()
		return times{at: at, spec: "at " + at.Format(time.RFC3339Nano)}, err
	}
	c, err := s.Expression()
	if err != nil {
		return times{}, err
	}
	t := times{spec: "CRON_TZ=" + c.Zone.String() + " " + c.Text}
	if c.Every > 0 {
		t.cron = cron.Every(c.Every)
	} else {
		t.cron = &cron.SpecSchedule{Second: 1, Minute: c.Minute, Hour: c.Hour, Dom: c.Day, Month: c.Month, Dow: c.Weekday, Location: c.Zone}
	}
	return t, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// after returns the first time after t, zero if there is none.
func (s times) after(t time.Time) time.Time {
	if s.cron != nil {
		return s.cron.Next(t).UTC()
	}
	if s.at.After(t) {
		return s.at
	}
	return time.Time{}
}

// maxBack is up to how many years ago times are looked for.
const maxBack = 10

// between returns the latest times after done and until now, n at most, the oldest
// first, of the last maxBack years. It takes a time that does not grow with how long ago
// done was.
func (s times) between(done, now time.Time, n int) []time.Time {
	// Further back there is a day that a zone has left out, with which the library has
	// its difficulties.
	if oldest := now.AddDate(-maxBack, 0, 0); s.cron != nil && done.Before(oldest) {
		done = oldest
	}
	if s.cron == nil {
		if at := s.after(done); !at.IsZero() && !at.After(now) {
			return []time.Time{at}
		}
		return nil
	}
	if every, ok := s.cron.(cron.ConstantDelaySchedule); ok {
		// Its times depend on the one before.
		if skip := now.Sub(done)/every.Delay - time.Duration(n) - 1; skip > 0 {
			done = done.Add(skip * every.Delay)
		}
	}
	// From windows before now that double in size, the first with enough.
	for window := time.Hour; ; window *= 2 {
		from := now.Add(-window)
		all := !from.After(done)
		if _, every := s.cron.(cron.ConstantDelaySchedule); all || every {
			from, all = done, true
		}
		var list []time.Time
		for t := s.after(from); !t.IsZero() && !t.After(now); t = s.after(t) {
			if list = append(list, t); len(list) > n {
				list = list[1:]
			}
		}
		if all || len(list) == n {
			return list
		}
	}
}

// next returns the n times that come after now, if those until done have been dealt with.
func (s times) next(done, now time.Time, n int) []time.Time {
	t := now
	if done.After(now) {
		t = done
	} else if every, ok := s.cron.(cron.ConstantDelaySchedule); ok && !done.IsZero() {
		t = done.Add(now.Sub(done) / every.Delay * every.Delay)
	}
	list := []time.Time{}
	for t = s.after(t); !t.IsZero() && len(list) < n; t = s.after(t) {
		list = append(list, t)
	}
	return list
}
