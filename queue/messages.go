package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// Send puts messages into a queue and returns them once all have reached the disk. In
// place of one whose deduplication key was used before it returns the earlier one. If
// there is an error, none was put there.
// Errors: CodeInvalid, with hearth.ErrKeyReused for another message with the same key,
// CodeNotFound if no function takes messages of the queue, CodeExhausted if there is no
// room.
func (q *Queue) Send(ctx context.Context, queue string, messages []hearth.Message) ([]hearth.SentMessage, error) {
	list := make([]hearth.AsyncRequest, len(messages))
	for i, m := range messages {
		if err := m.Validate(); err != nil {
			return nil, err
		}
		list[i] = hearth.AsyncRequest{
			ID: NewID(), Target: hearth.QueueTarget(queue), Kind: hearth.KindQueue, NotBefore: m.NotBefore,
			DeduplicationKey: m.DeduplicationKey, Fingerprint: fingerprint(m.Body), AsyncPayload: hearth.AsyncPayload{Body: []byte(m.Body)},
		}
	}
	calls, err := q.AcceptAll(ctx, list)
	if err != nil {
		return nil, err
	}
	sent := make([]hearth.SentMessage, len(calls))
	for i, c := range calls {
		sent[i] = hearth.SentMessage{ID: c.ID, Duplicate: c.ID != list[i].ID}
	}
	return sent, nil
}

// fingerprint tells messages apart that come with the same deduplication key.
func fingerprint(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

// attemptBatch passes messages to the function that takes them, and stores how that
// went for each.
func (q *Queue) attemptBatch(ctx context.Context, queue string, items []item, outcomes []outcome) {
	target := hearth.QueueTarget(queue)
	cfg, err := q.runner.AsyncConfig(target)
	policy, orphaned := cfg.AsyncOrDefault(), err != nil // nobody takes them now
	var together, alone []int
	entries := make([]hearth.AsyncEntry, len(items))
	for i, it := range items {
		e, o, begins := q.beginMessage(ctx, it.id, policy, orphaned)
		entries[i], outcomes[i] = e, o
		switch {
		case !begins:
		case e.Attempts > 0 && e.Attempts+1 >= policy.MaxAttempts:
			alone = append(alone, i)
		default:
			together = append(together, i)
		}
	}
	// The last attempt of a message is its own, so that it does not become a dead letter
	// for what is wrong with another.
	var batches [][]int
	if len(together) > 0 {
		batches = append(batches, together)
	}
	for _, i := range alone {
		batches = append(batches, []int{i})
	}
	for _, batch := range batches {
		part := make([]hearth.AsyncEntry, len(batch))
		for i, at := range batch {
			part[i] = entries[at]
		}
		for i, o := range q.pass(ctx, queue, part, policy) {
			outcomes[batch[i]] = o
		}
	}
}

// beginMessage reads a message. If begins is false there is to be no attempt, and o is
// what becomes of it.
func (q *Queue) beginMessage(ctx context.Context, id string, policy hearth.Async, orphaned bool) (e hearth.AsyncEntry, o outcome, begins bool) {
	e, o, begins = q.begin(ctx, id)
	if !begins {
		return e, o, false
	}
	most := policy.MaxAttempts
	if orphaned {
		most = hearth.MaxAttempts
	}
	if err := overdue(e, most); err != nil {
		return e, q.finish(e, policy, hearth.AsyncFailed, failure(e.Attempts, time.Now(), err), nil), false
	}
	if orphaned {
		return e, outcome{again: &e.AsyncCall, busy: true}, false
	}
	return e, outcome{}, true
}

// pass makes an attempt of messages in one call, and returns what becomes of each.
func (q *Queue) pass(ctx context.Context, queue string, messages []hearth.AsyncEntry, policy hearth.Async) []outcome {
	outcomes := make([]outcome, len(messages))
	// What each stores shares the cost of reaching the disk.
	each := func(do func(e hearth.AsyncEntry) outcome) []outcome {
		var wg sync.WaitGroup
		for i, e := range messages {
			wg.Go(func() { outcomes[i] = do(e) })
		}
		wg.Wait()
		return outcomes
	}
	event, err := json.Marshal(hearth.NewQueueEvent(queue, messages))
	if err != nil {
		panic(err) // texts and maps of texts
	}
	target, now := hearth.QueueTarget(queue), time.Now()
	batch := entry(NewID(), target, target, hearth.KindQueue, now, now, policy.MaxAge, hearth.AsyncPayload{Body: event})
	ids := make([]string, len(messages))
	for i, m := range messages {
		ids[i] = m.ID
		q.cfg.Store.Started(m.ID, m.Attempts+1)
	}
	result, lent, err := q.runner.RunAsync(ctx, batch, 1)
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errStopping):
		return each(func(e hearth.AsyncEntry) outcome { return q.putBack(e, outcome{}) })
	case err != nil && !lent && (passing(err) || hearth.ErrorCode(err) == hearth.CodeNotFound):
		wait := hearth.AsError(err).RetryAfter
		return each(func(e hearth.AsyncEntry) outcome { return q.putBack(e, outcome{busy: true, wait: wait}) })
	}
	var failed map[string]bool
	if err == nil {
		failed, err = batchFailures(result, ids)
	}
	reason := err
	if reason == nil {
		reason = errReported
	}
	return each(func(e hearth.AsyncEntry) outcome {
		attempt := e.Attempts + 1
		if err == nil && !failed[e.ID] {
			e.Attempts = attempt
			return q.finish(e, policy, hearth.AsyncSucceeded, nil, nil)
		}
		f := failure(attempt, now, reason)
		f.Invocation = batch.ID
		// What is wrong with a batch need not be wrong with each of its messages.
		return q.failed(e, policy, f, retryable(reason) || len(messages) > 1, 0)
	})
}

// errReported is why a message failed that the function did not handle.
var errReported = &hearth.Error{
	Code: hearth.CodeFunction, Message: "the function reported that it could not handle the message",
	Function: &hearth.FunctionError{Type: typeBatch, Message: "the function reported that it could not handle the message"},
}

// typeBatch is the type of the error of a message that is in batchItemFailures.
const typeBatch = "Response.BatchItemFailures"

// batchFailures returns the messages that failed of those with the ids. Errors: those
// of hearth.BatchFailures.
func batchFailures(r hearth.AsyncResult, ids []string) (map[string]bool, error) {
	if !r.Cut {
		return hearth.BatchFailures(r.Body, ids)
	}
	msg := "the answer to the batch is too long to be read"
	return nil, &hearth.Error{Code: hearth.CodeFunction, Message: msg, Function: &hearth.FunctionError{Type: typeBatch, Message: msg}}
}
