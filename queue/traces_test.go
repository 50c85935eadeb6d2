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
	})
}
