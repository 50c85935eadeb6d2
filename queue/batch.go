package queue

import (
	"context"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// AcceptAll stores calls of the same kind and target and returns them once all have
// reached the disk. One whose deduplication key is that of an earlier call is not
// stored: that one is returned, with its id. If there is an error, none was stored.
// Errors: those of Accept.
func (q *Queue) AcceptAll(ctx context.Context, list []hearth.AsyncRequest) ([]hearth.AsyncCall, error) {
	if len(list) == 0 {
		return nil, nil
	}
	cfg, err := q.configOf(list[0])
	if err != nil {
		return nil, err
	}
	now := time.Now()
	target := list[0].Target
	function, _, _ := strings.Cut(target, "@")
	entries := make([]hearth.AsyncEntry, len(list))
	keys := map[string]bool{}
	for i, r := range list {
		if err := checkKey(r.DeduplicationKey); err != nil {
			return nil, err
		}
		if r.DeduplicationKey != "" && keys[r.DeduplicationKey] {
			return nil, hearth.Errorf(hearth.CodeInvalid, "two of them have the deduplication key %q", r.DeduplicationKey)
		}
		keys[r.DeduplicationKey] = true
		due, err := dueAt(r, now)
		if err != nil {
			return nil, err
		}
		entries[i] = entry(r.ID, function, target, r.Kind, now, due, cfg.AsyncOrDefault().MaxAge, r.AsyncPayload)
		entries[i].DeduplicationKey, entries[i].Fingerprint = r.DeduplicationKey, r.Fingerprint
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTimeout)
	defer cancel()
	calls, err := q.cfg.Store.AcceptAll(ctx, entries)
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil { // they may be stored all the same
		q.reloadLocked(q.laneLocked(entries[0].Lane()))
	}
	if err != nil {
		return nil, err
	}
	var added []hearth.AsyncCall
	for i, c := range calls {
		if c.ID == entries[i].ID {
			added = append(added, c)
		}
	}
	q.addLocked(added...)
	return calls, nil
}
