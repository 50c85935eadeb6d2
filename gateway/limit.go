package gateway

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hearthrun/hearth"
)

// This file bounds how often functions are called over HTTP. Each alias has a
// bucket, and each version that is called by its number another one: who tries a
// preview takes nothing away from the callers of live.

// newLimiter returns what bounds the rate of calls, nil if nothing does.
func newLimiter(l hearth.Limits) *rate.Limiter {
	if l.Rate == 0 {
		return nil
	}
	burst := l.Burst
	if burst == 0 {
		burst = max(1, int(l.Rate))
	}
	return rate.NewLimiter(rate.Limit(l.Rate), burst)
}

// sameLimit tells whether both allow the same.
func sameLimit(a, b *rate.Limiter) bool {
	return a != nil && b != nil && a.Limit() == b.Limit() && a.Burst() == b.Burst()
}

// allow counts a call; a nil limit allows all. Errors: CodeExhausted when too many
// come.
func allow(limit *rate.Limiter, now time.Time) error {
	if limit == nil {
		return nil
	}
	r := limit.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	e := hearth.Errorf(hearth.CodeExhausted, "the function is called more often than its limit of %s allows", hearth.Rate(limit.Limit())).
		WithHint("call it less often; its owner can raise limits.rate in hearth.yaml")
	e.RetryAfter = wait
	return e
}

// limiters are those of the versions of a function that were called by number.
type limiters struct {
	mu   sync.Mutex
	kept map[int]*rate.Limiter // guarded by mu
}

// maxLimiters is from how many on those are looked for that can be forgotten.
const maxLimiters = 64

// of returns what bounds the calls of v by its number, nil if nothing does.
func (l *limiters) of(v *hearth.Version, now time.Time) *rate.Limiter {
	if v.Config.Limits.Rate == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit := l.kept[v.Number]; limit != nil {
		return limit
	}
	if len(l.kept) >= maxLimiters {
		for number, limit := range l.kept {
			if limit.TokensAt(now) >= float64(limit.Burst()) {
				delete(l.kept, number) // a new one would be as full
			}
		}
	}
	if l.kept == nil {
		l.kept = map[int]*rate.Limiter{}
	}
	limit := newLimiter(v.Config.Limits)
	l.kept[v.Number] = limit
	return limit
}
