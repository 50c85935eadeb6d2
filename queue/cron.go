package queue

import (
	"strings"
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
func parseTimes(name string, s hearth.Schedule) (times, error) {
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, "schedules."+name+": "+format, args...).WithHint("%s", hint)
	}
	if s.Cron == "" {
		at, err := s.Time()
		return times{at: at, spec: "at " + at.Format(time.RFC3339Nano)}, err
	}
	// Without a zone the library would take that of the machine.
	spec := s.Cron
	zoned := strings.HasPrefix(spec, "TZ=") || strings.HasPrefix(spec, "CRON_TZ=")
	switch {
	case zoned && s.TimeZone != "":
		return times{}, bad("remove one of them", "cron and time_zone both name a time zone")
	case zoned:
		zone, rest, _ := strings.Cut(spec, " ")
		_, zone, _ = strings.Cut(zone, "=")
		spec = "CRON_TZ=" + zone + " " + strings.TrimSpace(rest)
	default:
		zone := s.TimeZone
		if zone == "" {
			zone = "UTC"
		}
		spec = "CRON_TZ=" + zone + " " + strings.TrimSpace(spec)
	}
	zone, _, _ := strings.Cut(strings.TrimPrefix(spec, "CRON_TZ="), " ")
	if _, err := time.LoadLocation(zone); err != nil || zone == "" || zone == "Local" || zone != strings.TrimSpace(s.TimeZone) && s.TimeZone != "" {
		return times{}, bad("write its name, for example Europe/Berlin or UTC", "there is no time zone %q", clip(zone))
	}
	if _, every, ok := strings.Cut(spec, " @every "); ok {
		// The library takes whatever is less than a second for one.
		if d, err := time.ParseDuration(strings.TrimSpace(every)); err == nil && (d < time.Second || d%time.Second != 0) {
			return times{}, bad("write whole seconds, for example: '@every 90s'", "cron %q: %s is no pause between calls", clip(s.Cron), d)
		}
	}
	c, err := cron.ParseStandard(spec)
	if err != nil {
		return times{}, bad("write minute, hour, day of month, month and day of week, for example: '0 3 * * *'", "cron %q is no cron expression: %w", clip(s.Cron), err)
	}
	t := times{cron: c, spec: spec}
	if t.after(time.Unix(0, 0)).IsZero() {
		return times{}, bad("check day and month", "cron %q never comes", clip(s.Cron))
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
