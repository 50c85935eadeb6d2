package gateway

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// TestTraceOf reads headers as W3C Trace Context says; the end-to-end tests have what
// functions see of it.
func TestTraceOf(t *testing.T) {
	g := New(Config{TraceRatio: 1})
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const valid = "00-" + id + "-" + parent + "-01"
	for _, c := range []struct {
		name           string
		parents, state []string
		want           string // of the tracestate
		joins, sampled bool
	}{
		{name: "none", sampled: true},
		{name: "valid", parents: []string{valid}, joins: true, sampled: true},
		{name: "not sampled", parents: []string{"00-" + id + "-" + parent + "-00"}, joins: true},
		{name: "state", parents: []string{valid}, state: []string{"a=1", "b=2"}, want: "a=1,b=2", joins: true, sampled: true},
		{name: "bad state", parents: []string{valid}, state: []string{"a"}, joins: true, sampled: true},
		{name: "long state", parents: []string{valid}, state: []string{"a=" + strings.Repeat("1", 200), "b=" + strings.Repeat("1", 200), "c=" + strings.Repeat("1", 200)}, joins: true, sampled: true},
		{
			name: "state of many", parents: []string{valid}, state: []string{"z=" + strings.Repeat("1", 127), " a=1,,", strings.Repeat("b="+strings.Repeat("2", 120)+",", 1) + "c=" + strings.Repeat("3", 120) + ",d=" + strings.Repeat("4", 120) + ",e=" + strings.Repeat("5", 120) + ",f=6"},
			want: "a=1,b=" + strings.Repeat("2", 120) + ",c=" + strings.Repeat("3", 120) + ",d=" + strings.Repeat("4", 120) + ",e=" + strings.Repeat("5", 120) + ",f=6", joins: true, sampled: true,
		},
		{name: "unknown flags", parents: []string{"00-" + id + "-" + parent + "-ff"}, joins: true, sampled: true},
		{name: "unknown flags, not sampled", parents: []string{"00-" + id + "-" + parent + "-0a"}, joins: true},
		{name: "flags in capitals", parents: []string{"00-" + id + "-" + parent + "-FF"}, sampled: true},
		{name: "no flags", parents: []string{"00-" + id + "-" + parent + "-0x"}, sampled: true},
		{name: "a later version", parents: []string{"01-" + id + "-" + parent + "-01-more"}, joins: true, sampled: true},
		{name: "twice", parents: []string{valid, valid}, state: []string{"a=1"}, sampled: true},
		{name: "capitals", parents: []string{strings.ToUpper(valid)}, sampled: true},
		{name: "no trace", parents: []string{"00-" + strings.Repeat("0", 32) + "-" + parent + "-01"}, sampled: true},
		{name: "no parent", parents: []string{"00-" + id + "-0000000000000000-01"}, sampled: true},
		{name: "a version that cannot be", parents: []string{"ff-" + id + "-" + parent + "-01"}, sampled: true},
		{name: "more than there is", parents: []string{valid + "-more"}, sampled: true},
		{name: "huge", parents: []string{strings.Repeat("0", 1<<20)}, sampled: true},
	} {
		got := g.TraceOf(map[string][]string{"Traceparent": c.parents, "Tracestate": c.state})
		if joins := got.TraceID.String() == id && got.ParentID.String() == parent; joins != c.joins || got.Sampled != c.sampled || got.Tracestate != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
		if got.SpanID == (hearth.SpanID{}) || !c.joins && got.ParentID != (hearth.SpanID{}) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if New(Config{}).NewTrace().Sampled {
		t.Error("without a ratio a trace is sampled")
	}

	event := []byte(`{"traceparent":"` + valid + `","tracestate":"a=1","data":{"traceparent":"x"}}`)
	if got := g.traceOfEvent(nil, event); got.TraceID.String() != id || got.Tracestate != "a=1" {
		t.Errorf("of an event: %+v", got)
	}
	if got := g.traceOfEvent(map[string][]string{"Traceparent": {"00-" + parent + parent + "-" + parent + "-01"}}, event); got.TraceID.String() != parent+parent {
		t.Errorf("of an event with a header: %+v", got)
	}
	if got := g.traceOfEvent(nil, []byte(`{"traceparent":7}`)); got.TraceID.String() == id || got.TraceID == (hearth.TraceID{}) {
		t.Errorf("of an event without: %+v", got)
	}
}

// TestClaimedTraces: callers do not decide without bound that their traces are sampled, and
// those of one function not for another.
func TestClaimedTraces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{})
		of := hearth.NewTrace(true).Child()
		for range 3 {
			n := 0
			for range 1000 {
				if got := g.public("flooded", of); got.Sampled {
					n++
				} else if got.TraceID != of.TraceID || got.ParentID != of.ParentID {
					t.Fatalf("it became %+v", got)
				}
			}
			if n != claimRate || !g.public("quiet", of).Sampled {
				t.Errorf("%d were sampled", n)
			}
			time.Sleep(time.Second)
		}
		g = New(Config{TraceRatio: 1})
		for range 1000 {
			if !g.public("f", of).Sampled {
				t.Fatal("where all are sampled one was not")
			}
		}
	})
}

// BenchmarkTraceOf is what a call pays for its trace.
func BenchmarkTraceOf(b *testing.B) {
	g := New(Config{TraceRatio: 1})
	for name, h := range map[string]map[string][]string{"new": {}, "joined": {"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				of := g.TraceOf(h)
				_ = of.Running()
			}
		})
	}
}
