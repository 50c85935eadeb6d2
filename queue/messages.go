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
			Trace: m.Trace, DeduplicationKey: m.DeduplicationKey, Fingerprint: fingerprint(m.Body), AsyncPayload: hearth.AsyncPayload{Body: []byte(m.Body)},
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

// attemptBatch makes an attempt of messages in one call, if they still wait, and stores
// how it went for each.
func (q *Queue) attemptBatch(ctx context.Context, queue string, items []item, outcomes []outcome) {
	target := hearth.QueueTarget(queue)
	cfg, err := q.runner.AsyncConfig(target)
	policy, most := cfg.AsyncOrDefault(), cfg.AsyncOrDefault().MaxAttempts
	if err != nil { // nobody takes them now
		most = hearth.MaxAttempts
	}
	var batch []int // of entries
	entries := q.begin(ctx, items, outcomes)
	for i, e := range entries {
		if e.ID == "" {
			continue
		}
		late := overdue(e, most)
		switch {
		case late != nil:
			outcomes[i] = q.finish(e, policy, hearth.AsyncFailed, failure(e.Attempts, time.Now(), late), nil)
		case err != nil:
			outcomes[i] = outcome{again: again(e), busy: true}
		default:
			batch = append(batch, i)
		}
	}
	if len(batch) > 0 {
		messages := make([]hearth.AsyncEntry, len(batch))
		for i, at := range batch {
			messages[i] = entries[at]
		}
		for i, o := range q.pass(ctx, queue, messages, policy) {
			outcomes[batch[i]] = o
		}
	}
}

// pass passes messages to the function that takes them, and returns what becomes of
// each.
func (q *Queue) pass(ctx context.Context, queue string, messages []hearth.AsyncEntry, policy hearth.Async) []outcome {
	target, now := hearth.QueueTarget(queue), time.Now()
	call := entry(NewID(), target, target, hearth.KindQueue, now, now, policy.MaxAge, hearth.AsyncPayload{})
	ids := make([]string, len(messages))
	call.Attempt, call.Links = q.batchTrace(messages)
	for i, m := range messages {
		ids[i], messages[i].Attempt = m.ID, call.Attempt
		q.cfg.Store.Started(m.ID, m.Attempts+1)
	}
	result, lent, err := hearth.AsyncResult{}, true, error(nil)
	if call.Body, err = json.Marshal(hearth.NewQueueEvent(queue, messages)); err == nil {
		result, lent, err = q.runner.RunAsync(ctx, call, 1)
	}
	if !lent {
		for i := range messages {
			messages[i].Attempt = hearth.Trace{} // there is no record of it
		}
	}
	var failed map[string]bool
	if err == nil {
		failed, err = batchFailures(result, ids)
	}
	become := func(e hearth.AsyncEntry) outcome {
		if err == nil && !failed[e.ID] {
			e.Attempts++
			return q.finish(e, policy, hearth.AsyncSucceeded, nil, nil)
		}
		reason := err
		if reason == nil {
			reason = errReported
		}
		f := failure(e.Attempts+1, now, reason)
		f.Invocation = call.ID
		// What is wrong with a batch need not be wrong with each of its messages.
		return q.failed(e, policy, f, retryable(reason) || len(messages) > 1, 0)
	}
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errStopping):
		become = func(e hearth.AsyncEntry) outcome { return q.putBack(e, outcome{}) }
	case !lent && (passing(err) || hearth.ErrorCode(err) == hearth.CodeNotFound):
		wait := hearth.AsError(err).RetryAfter
		become = func(e hearth.AsyncEntry) outcome { return q.putBack(e, outcome{busy: true, wait: wait}) }
	}
	// At the same time, so that they share the cost of reaching the disk.
	outcomes := make([]outcome, len(messages))
	var wg sync.WaitGroup
	for i, e := range messages {
		wg.Go(func() { outcomes[i] = become(e) })
	}
	wg.Wait()
	return outcomes
}

// batchTrace returns the span of an attempt of messages: it belongs to what sent the first,
// or is in a trace of its own with links to all if they are of several. It is sampled if
// one of them is.
func (q *Queue) batchTrace(messages []hearth.AsyncEntry) (of hearth.Trace, links []hearth.Trace) {
	one, sampled := true, false
	for _, m := range messages {
		one, sampled = one && m.TraceID == messages[0].TraceID, sampled || m.Sampled
		links = append(links, m.Trace)
	}
	if one {
		of, links = messages[0].Child(), links[1:]
	} else {
		of = q.runner.NewTrace()
	}
	of.Sampled = of.Sampled || sampled
	return of, links
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
