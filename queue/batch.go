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
		due, err := dueAt(r, now)
		if err != nil {
			return nil, err
		}
		entries[i] = entry(r.ID, function, target, r.Kind, now, due, cfg.AsyncOrDefault().MaxAge, r.AsyncPayload)
		calls[i] = entries[i].AsyncCall
	}
	if len(entries) == 0 {
		return calls, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTimeout)
	defer cancel()
	err = q.cfg.Store.AcceptAll(ctx, entries)
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case ctx.Err() != nil: // they may be stored all the same
		q.reloadLocked(q.laneLocked(entries[0].Lane()))
	case err == nil:
		for _, c := range calls {
			q.addLocked(c)
		}
	}
	if err != nil {
		return nil, err
	}
	return calls, nil
}
