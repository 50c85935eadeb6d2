package queue

import (
	"context"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// Accept stores a call and returns it once it has reached the disk. first is false
// if it is one that was accepted before under the same deduplication key.
// Errors: CodeInvalid, with hearth.ErrKeyReused for another request with the same key,
// CodeNotFound if the target names nothing, CodeExhausted if there is no room.
func (q *Queue) Accept(ctx context.Context, r hearth.AsyncRequest) (call hearth.AsyncCall, first bool, err error) {
	calls, err := q.AcceptAll(ctx, []hearth.AsyncRequest{r})
	if err != nil {
		return call, false, err
	}
	return calls[0], calls[0].ID == r.ID, nil
}

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
		if key := r.DeduplicationKey; key != "" {
			if err := checkKey(key); err != nil {
				return nil, err
			}
			if keys[key] {
				return nil, hearth.Errorf(hearth.CodeInvalid, "two of the messages have the deduplication key %q", key).
					WithHint("send one of them, or give each its own")
			}
			keys[key] = true
		}
		due, err := dueAt(r, now)
		if err != nil {
			return nil, err
		}
		entries[i] = entry(r.ID, function, target, r.Kind, now, due, cfg.AsyncOrDefault().MaxAge, r.AsyncPayload)
		if r.Public {
			entries[i].Payer = function + publicPayer
		}
		if entries[i].Trace = r.Trace; r.Trace.TraceID == (hearth.TraceID{}) {
			entries[i].Trace = q.runner.NewTrace()
		}
		entries[i].DeduplicationKey, entries[i].KeyScope, entries[i].Fingerprint, entries[i].Public = r.DeduplicationKey, r.KeyScope, r.Fingerprint, r.Public
	}
	calls, err := q.cfg.Store.Accept(ctx, entries)
	if err != nil {
		return nil, err
	}
	took := time.Since(now)
	q.mu.Lock()
	defer q.mu.Unlock()
	var added []hearth.AsyncCall
	for i, c := range calls {
		if c.ID == entries[i].ID {
			q.accepted(c, took)
			added = append(added, c)
		}
	}
	q.addLocked(added...)
	return calls, nil
}

// publicPayer is what is added to the name of a function where anybody's calls of it take
// room, and all that comes of them: they must not take that of its own.
const publicPayer = "/public"

// configOf returns the configuration of what a request names. Errors: CodeNotFound.
func (q *Queue) configOf(r hearth.AsyncRequest) (hearth.Config, error) {
	if (hearth.QueueOf(r.Target) != "") != (r.Kind == hearth.KindQueue) {
		return hearth.Config{}, hearth.Errorf(hearth.CodeNotFound, "there is no function %q", r.Target).
			WithHint("hearth send puts messages into queues")
	}
	return q.runner.AsyncConfig(r.Target)
}

// checkKey checks a deduplication key. Errors: CodeInvalid.
func checkKey(key string) error {
	switch {
	case len(key) > maxKey:
		return hearth.Errorf(hearth.CodeInvalid, "the deduplication key has %d bytes", len(key)).
			WithHint("use at most %d bytes, for example a UUID", maxKey)
	case strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return hearth.Errorf(hearth.CodeInvalid, "the deduplication key %q has control characters", key).WithHint("use for example a UUID")
	case strings.HasPrefix(key, hearth.SchedulePrefix):
		return hearth.Errorf(hearth.CodeInvalid, "the deduplication key begins with %q, as those of schedules do", hearth.SchedulePrefix).
			WithHint("choose another one")
	}
	return nil
}

// dueAt is when a call that is accepted now may begin. Errors: CodeInvalid.
func dueAt(r hearth.AsyncRequest, now time.Time) (time.Time, error) {
	if !r.NotBefore.After(now) {
		return now, nil
	}
	if wait := r.NotBefore.Sub(now); wait > hearth.MaxDelay {
		return now, hearth.Errorf(hearth.CodeInvalid, "the call is to begin in %s", hearth.Duration(wait.Round(time.Second))).
			WithHint("the longest delay is %s", hearth.Duration(hearth.MaxDelay))
	}
	return r.NotBefore, nil
}
