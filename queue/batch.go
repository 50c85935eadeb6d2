package queue

import (
	"context"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// AcceptAll stores calls of one target, whose Target and DeduplicationKey do not count,
// and returns them once all have reached the disk. If there is an error, none was stored.
// Errors: those of Accept.
func (q *Queue) AcceptAll(ctx context.Context, target string, list []hearth.AsyncRequest) ([]hearth.AsyncCall, error) {
	cfg, err := q.runner.AsyncConfig(target)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	function, _, _ := strings.Cut(target, "@")
	entries := make([]hearth.AsyncEntry, len(list))
	calls := make([]hearth.AsyncCall, len(list))
	for i, r := range list {
		due := now
		if r.NotBefore.After(now) {
			due = r.NotBefore
		}
		if due.Sub(now) > MaxDelay {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the calls are to begin in %s", hearth.Duration(due.Sub(now).Round(time.Second))).
				WithHint("the longest delay is %s", hearth.Duration(MaxDelay))
		}
		entries[i] = entry(r.ID, function, target, r.Kind, now, due, cfg.AsyncOrDefault().MaxAge, r.AsyncPayload)
		calls[i] = entries[i].AsyncCall
	}
	// Without an end: calls that are stored have to be known of here.
	if err := q.cfg.Store.AcceptAll(context.WithoutCancel(ctx), entries); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range calls {
		q.addLocked(c)
	}
	return calls, nil
}
