package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// TestTraces: what is kept of a trace is found by it, after a restart, too, and what has
// no trace is not.
func TestTraces(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	records := invocations(0, 5)
	one, other := hearth.NewTrace(true), hearth.NewTrace(true)
	records[3].Trace, records[1].Trace, records[2].Trace = one, one.Child(), other
	if err := s.AppendInvocations(ctx, records); err != nil {
		t.Fatal(err)
	}
	call := queued("hello", "{}")
	call.Trace = one.Child()
	call.Tracestate = `a="b"`
	q := s.Queue(store.QueueLimits{})
	accept(t, q, call)
	accept(t, q, queued("hello", "{}"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	q = s.Queue(store.QueueLimits{})
	records[1].Sampled, records[3].Sampled = false, false // which is not kept
	got, err := s.TraceInvocations(ctx, one.TraceID, 0)
	if d := cmp.Diff([]hearth.Invocation{records[1], records[3]}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if got, err = s.TraceInvocations(ctx, one.TraceID, 1); len(got) != 1 || err != nil {
		t.Error(got, err)
	}
	if got, err = s.TraceInvocations(ctx, hearth.TraceID{}, 0); len(got) != 0 || err != nil {
		t.Error(got, err)
	}
	calls, err := q.TraceCalls(ctx, one.TraceID, 0)
	if d := cmp.Diff([]hearth.AsyncCall{call.AsyncCall}, calls); d != "" || err != nil {
		t.Error(d, err)
	}
	if calls, err = q.TraceCalls(ctx, hearth.TraceID{}, 0); len(calls) != 0 || err != nil {
		t.Error(calls, err)
	}
}
