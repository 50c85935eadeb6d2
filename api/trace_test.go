package api_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// TestTraceIsBounded: of a trace with more calls than are shown, the one that was asked
// for is among those that are.
func TestTraceIsBounded(t *testing.T) {
	h := newHost(t)
	first := hearth.NewTrace(true)
	var records []hearth.Invocation
	for i := range 700 {
		records = append(records, hearth.Invocation{
			ID: fmt.Sprintf("%06d", i), Function: "f", Version: 1, Kind: hearth.KindEvent, Status: 200, StartedAt: time.UnixMicro(int64(i)),
			Trace: first.Child(), Timings: hearth.Timings{Run: time.Millisecond},
		})
	}
	records = append(records, hearth.Invocation{ID: "alone", Function: "f", Version: 1, Kind: hearth.KindEvent, StartedAt: time.Unix(1, 0)})
	if err := h.store.AppendInvocations(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"000000", "000300", "000699"} {
		var v hearth.TraceView
		if err := json.Unmarshal(h.do("GET", "/v1/invocations/"+id+"/trace", nil).Body.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		found := false
		for i, s := range v.Spans {
			found = found || s.Invocation == id && s.Name == "f"
			if i > 0 && s.Start.Before(v.Spans[i-1].Start) {
				t.Errorf("%s: span %d is not in its place", id, i)
			}
		}
		if !found || len(v.Spans) != 500 || !v.Truncated || v.TraceID != first.TraceID {
			t.Errorf("%s: found %v, %d spans, truncated %v", id, found, len(v.Spans), v.Truncated)
		}
	}
	for _, id := range []string{"alone", "nosuch"} {
		if a := h.do("GET", "/v1/invocations/"+id+"/trace", nil); a.Code != 404 {
			t.Errorf("%s: %d", id, a.Code)
		}
	}
}

// TestTraceOf: a trace is found by the ids of its calls, of their attempts and by its own,
// and no span is there twice.
func TestTraceOf(t *testing.T) {
	h := newHost(t)
	first := hearth.NewTrace(true)
	var records []hearth.Invocation
	for n := 1; n <= 2; n++ {
		records = append(records, hearth.Invocation{
			ID: hearth.AttemptID("x", n), Attempt: n, Function: "f", Version: 1, Kind: hearth.KindEvent, Status: 200, StartedAt: time.Unix(int64(n), 0),
			Trace: first.Attempted(n), Timings: hearth.Timings{Run: time.Millisecond},
		})
	}
	if err := h.store.AppendInvocations(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"x", "x.2", first.TraceID.String()} {
		var v hearth.TraceView
		if err := json.Unmarshal(h.do("GET", "/v1/invocations/"+id+"/trace", nil).Body.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		seen := map[hearth.SpanID]bool{}
		for _, s := range v.Spans {
			seen[s.ID] = true
		}
		if len(v.Spans) != 4 || len(seen) != 4 || v.TraceID != first.TraceID {
			t.Errorf("%s: %+v", id, v)
		}
	}
	if a := h.do("GET", "/v1/invocations/"+hearth.NewTrace(true).TraceID.String()+"/trace", nil); a.Code != 404 {
		t.Error(a.Code)
	}
}
