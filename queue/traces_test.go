package queue_test

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/queue"
)

// exported keeps spans.
type exported struct {
	mu    sync.Mutex
	spans []hearth.Span
}

func (e *exported) Span(_ hearth.Trace, s hearth.Span) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spans = append(e.spans, s)
}

// TestTraceOfBatch: a batch of messages of one trace belongs to it, and one of several has
// its own, which is linked to theirs; what it leads to belongs to the batch.
func TestTraceOfBatch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var batches []hearth.AsyncEntry
		var told []hearth.AsyncEntry
		f := &functions{configs: map[string]hearth.Config{"told": config(hearth.Async{})}}
		f.run = func(_ context.Context, e hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if e.Kind == hearth.KindQueue {
				batches = append(batches, e)
			} else {
				told = append(told, e)
			}
			return hearth.AsyncResult{Status: 200}, true, nil
		}
		out := &exported{}
		b := newBed(t, dir, f, func(c *queue.Config) { c.Traces = out })
		defer b.close()
		b.takes(hearth.QueueTrigger{BatchSize: 2, BatchWindow: hearth.Duration(time.Second)}, hearth.Async{OnSuccess: []hearth.Destination{"function:told"}})
		one, other := hearth.NewTrace(true), hearth.NewTrace(true)
		other.Sampled = false
		for _, traces := range [][]hearth.Trace{{one.Child(), one.Child()}, {one.Child(), other}} {
			batches, told = nil, nil
			sent, err := b.Send(t.Context(), "orders", []hearth.Message{{Body: "1", Trace: traces[0]}, {Body: "2", Trace: traces[1]}})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range sent {
				b.ended(m.ID)
			}
			synctest.Wait()
			if len(batches) != 1 || len(told) != 2 {
				t.Fatalf("%d batches, %d told", len(batches), len(told))
			}
			batch := batches[0]
			var links []hearth.SpanID
			for _, l := range batch.Links {
				links = append(links, l.SpanID)
			}
			if traces[0].TraceID == traces[1].TraceID {
				if batch.Attempt.TraceID != one.TraceID || batch.Attempt.ParentID != traces[0].SpanID || !slices.Equal(links, []hearth.SpanID{traces[1].SpanID}) {
					t.Errorf("a batch of one trace is %+v with links to %v", batch.Attempt, links)
				}
			} else if of := batch.Attempt.TraceID; of == one.TraceID || of == other.TraceID || batch.Attempt.ParentID != (hearth.SpanID{}) ||
				!slices.Equal(links, []hearth.SpanID{traces[0].SpanID, traces[1].SpanID}) {
				t.Errorf("a batch of two traces is %+v with links to %v", batch.Attempt, links)
			}
			for _, e := range told {
				var event struct{ Traceparent string }
				if err := json.Unmarshal(e.Body, &event); err != nil || event.Traceparent != e.Trace.Traceparent() {
					t.Errorf("a destination has %q, not %q: %v", event.Traceparent, e.Trace.Traceparent(), err)
				}
				if e.TraceID != batch.Attempt.TraceID || e.ParentID != batch.Attempt.Running().SpanID || e.Attempt.ParentID != e.SpanID {
					t.Errorf("a destination is %+v, its attempt %+v", e.Trace, e.Attempt)
				}
			}
		}
		// Acceptances of what is sampled, by the caller or, as here always, by NewTrace.
		var names []string
		for _, s := range out.spans {
			if s.ID == other.SpanID {
				t.Error("what is not sampled was exported")
			}
			names = append(names, s.Name)
		}
		slices.Sort(names)
		if want := []string{"enqueue queue:orders", "enqueue queue:orders", "enqueue queue:orders", "enqueue told", "enqueue told", "enqueue told", "enqueue told"}; !slices.Equal(names, want) {
			t.Errorf("exported were %q", names)
		}
		// A batch of several traces is sampled if one of its messages is, whatever the ratio says.
		f.unsampled = true
		for _, sampled := range []bool{true, false} {
			batches = nil
			a, z := hearth.NewTrace(false), hearth.NewTrace(sampled)
			sent, err := b.Send(t.Context(), "orders", []hearth.Message{{Body: "1", Trace: a}, {Body: "2", Trace: z}})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range sent {
				b.ended(m.ID)
			}
			synctest.Wait()
			if len(batches) != 1 || batches[0].Attempt.Sampled != sampled {
				t.Errorf("sampled %v: %+v", sampled, batches)
			}
		}
	})
}

// TestNumbers: attempts have numbers of their own, and so have their spans and records,
// however often a call is redriven and whatever is kept of its failures.
func TestNumbers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var numbers []int
		seen := map[hearth.SpanID]bool{}
		f := &functions{configs: map[string]hearth.Config{"hello": config(hearth.Async{MaxAttempts: 6})}}
		f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			numbers = append(numbers, e.Number(attempt))
			seen[e.Attempt.SpanID] = true
			return failing(ctx, e, attempt)
		}
		b := newBed(t, dir, f)
		defer b.close()
		id := b.accept("hello", "1").ID
		for redriven := range 4 {
			c := b.ended(id)
			last := c.Failures[len(c.Failures)-1]
			if want := 6 * (redriven + 1); c.State != hearth.AsyncFailed || c.Attempts != 6 || c.LastAttempt() != want || last.Attempt != 6 || last.Number != want {
				t.Errorf("%+v", c)
			}
			if n, err := b.Redrive(context.Background(), "hello", nil); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		b.ended(id)
		if len(numbers) != 30 || len(seen) != 30 || !slices.IsSorted(numbers) || numbers[0] != 1 || numbers[29] != 30 {
			t.Errorf("%v, %d spans", numbers, len(seen))
		}
	})
}

// TestDestinationOfNoInstance: what no instance had has no span, so nothing is below one.
func TestDestinationOfNoInstance(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var told hearth.AsyncEntry
		f := &functions{configs: map[string]hearth.Config{"hello": config(hearth.Async{MaxAttempts: 1, OnFailure: []hearth.Destination{"function:told"}}), "told": config(hearth.Async{})}}
		f.run = func(_ context.Context, e hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			if e.Function == "hello" {
				return hearth.AsyncResult{}, false, hearth.Errorf(hearth.CodeInvalid, "it cannot be made")
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			told = e
			return hearth.AsyncResult{Status: 200}, true, nil
		}
		b := newBed(t, dir, f)
		defer b.close()
		call := b.ended(b.accept("hello", "1").ID)
		synctest.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if told.TraceID != call.TraceID || told.ParentID != call.SpanID {
			t.Errorf("told is %+v, of %+v", told.Trace, call.Trace)
		}
	})
}
