package hearth

import (
	"strconv"
	"time"
)

// ServerTiming returns t as the value of a Server-Timing header, in
// milliseconds: "queue;dur=0.012, start;dur=31.4, init;dur=8.25, run;dur=1.9".
// Run is left out while it is 0, that is, not known yet.
func (t Timings) ServerTiming() string {
	b := make([]byte, 0, 96)
	b = appendTiming(b, "queue", t.Queue)
	b = appendTiming(append(b, ", "...), "start", t.Start)
	b = appendTiming(append(b, ", "...), "init", t.Init)
	if t.Run != 0 {
		b = appendTiming(append(b, ", "...), "run", t.Run)
	}
	return string(b)
}

func appendTiming(b []byte, name string, d time.Duration) []byte {
	b = append(append(b, name...), ";dur="...)
	// Whole microseconds, without an exponent.
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', -1, 64)
}

// ParseMoment reads a time as RFC 3339 has it, or a duration before now: 15m. Errors:
// CodeInvalid.
func ParseMoment(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, Errorf(CodeInvalid, "%q is no time", clip(s)).
		WithHint("give a time such as 2026-01-31T08:00:00Z, or how long ago: 15m or 24h")
}
