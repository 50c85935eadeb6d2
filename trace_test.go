package hearth_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func TestTraceText(t *testing.T) {
	of := hearth.NewTrace(true).Child()
	b, err := json.Marshal(of)
	if err != nil {
		t.Fatal(err)
	}
	var back hearth.Trace
	if err := json.Unmarshal(b, &back); err != nil || back.TraceID != of.TraceID || back.SpanID != of.SpanID || back.ParentID != of.ParentID {
		t.Errorf("%s became %+v: %v", b, back, err)
	}
	if b, _ := json.Marshal(hearth.Trace{}); string(b) != "{}" {
		t.Errorf("none is %s", b)
	}
	for _, bad := range []string{"", "00", "zz000000000000000000000000000000", "0000000000000000000000000000000000"} {
		var id hearth.TraceID
		if err := id.UnmarshalText([]byte(bad)); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if want := "00-" + of.TraceID.String() + "-" + of.SpanID.String() + "-01"; of.Traceparent() != want {
		t.Errorf("%s, want %s", of.Traceparent(), want)
	}
}

// TestUnknownMethod: methods are whatever callers choose, attributes are few.
func TestUnknownMethod(t *testing.T) {
	for method, want := range map[string]string{"GET": "GET", "get": "_OTHER", "BREW": "_OTHER"} {
		i := hearth.Invocation{Trace: hearth.NewTrace(true), Method: method}
		a := i.Spans()[0].Attributes
		if original, ok := a["http.request.method_original"]; a["http.request.method"] != want || ok != (want == "_OTHER") || ok && original != method {
			t.Errorf("%s: %v", method, a)
		}
	}
}

func TestTrigger(t *testing.T) {
	c := hearth.AsyncCall{DeduplicationKey: hearth.ScheduleKey("f", "daily", "2026-01-01T00:00:00Z")}
	other := hearth.AsyncCall{DeduplicationKey: "mine"}
	for want, i := range map[string]hearth.Invocation{
		"timer": {Kind: hearth.KindEvent, Attempt: 1, Scheduled: c.Scheduled()}, "pubsub": {Kind: hearth.KindEvent, Attempt: 1, Scheduled: other.Scheduled()},
		"http": {Kind: hearth.KindHTTP}, "other": {Kind: hearth.KindEvent},
	} {
		i.Trace = hearth.NewTrace(true)
		if got := i.Spans()[0].Attributes["faas.trigger"]; got != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// TestSpanIDs: the parts of a call always have the same ids, and no two of a trace do.
func TestSpanIDs(t *testing.T) {
	seen := map[hearth.SpanID]string{}
	add := func(what string, of hearth.Trace) {
		if was := seen[of.SpanID]; was != "" || of.SpanID == (hearth.SpanID{}) {
			t.Fatalf("%s has the id of %s", what, was)
		}
		seen[of.SpanID] = what
	}
	for range 1000 {
		of := hearth.NewTrace(false)
		add("a call", of)
		for attempt := 1; attempt < 5; attempt++ {
			a := of.Attempted(attempt)
			if a != of.Attempted(attempt) || a.TraceID != of.TraceID || a.ParentID != of.SpanID {
				t.Fatalf("an attempt is %+v", a)
			}
			add("an attempt", a)
			i := hearth.Invocation{Trace: a, StartedAt: time.Unix(1, 0), Timings: hearth.Timings{Route: 1, Queue: 2, Start: 3, Init: 4, Run: 5}}
			spans := i.Spans()
			if len(spans) != 6 || spans[5].ID != a.Running().SpanID || spans[0].Duration != 15 {
				t.Fatalf("its spans are %+v", spans)
			}
			for _, s := range spans[1:] {
				add("a part", hearth.Trace{SpanID: s.ID})
			}
		}
	}
}
