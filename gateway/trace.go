package gateway

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/jsonwalk"
)

// This file reads W3C Trace Context, of requests and of CloudEvents.

const (
	// maxTracestate bounds in bytes what is passed on of a tracestate. The standard asks
	// for as much. maxMember is the longest of its members where it is longer.
	maxTracestate, maxMember = 512, 128
	// claimRate is how many traces a second of each function are sampled because a request
	// that anybody can send says so.
	claimRate = 100
)

// NewTrace begins a trace.
func (g *Gateway) NewTrace() hearth.Trace {
	return hearth.NewTrace(g.sampled())
}

// sampled chooses whether a trace is, by the ratio.
func (g *Gateway) sampled() bool {
	ratio := g.cfg.TraceRatio
	return ratio >= 1 || ratio > 0 && rand.Float64() < ratio
}

// public returns the span t of a call of a function that anybody could make. If too many
// of them claim that their traces are sampled, the ratio decides.
func (g *Gateway) public(function string, t hearth.Trace) hearth.Trace {
	if t.Sampled && t.ParentID != (hearth.SpanID{}) && g.cfg.TraceRatio < 1 && !g.claims.take(function, time.Now()) {
		t.Sampled = g.sampled()
	}
	return t
}

// claims counts traces of each function that are sampled because their callers said so.
// The zero value is ready to use.
type claims struct {
	mu    sync.Mutex
	n     map[string]int // since
	since time.Time
}

// take tells whether there may be one more of the function.
func (c *claims) take(function string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.since) >= time.Second {
		c.n, c.since = map[string]int{}, now
	}
	c.n[function]++
	return c.n[function] <= claimRate
}

// TraceOf returns the span of a call with the headers: in the trace that they name, or
// in a new one if they name none, or not as they should.
func (g *Gateway) TraceOf(h map[string][]string) hearth.Trace {
	if lines := h["Traceparent"]; len(lines) == 1 {
		return g.traceFrom(lines[0], strings.Join(h["Tracestate"], ","))
	}
	return g.NewTrace()
}

func (g *Gateway) traceFrom(parent, state string) hearth.Trace {
	parent, state = knownFlags(parent), shorten(state)
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent, "tracestate": state})
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return g.NewTrace()
	}
	return hearth.Trace{
		TraceID: hearth.TraceID(sc.TraceID()), SpanID: hearth.SpanID(sc.SpanID()), Sampled: sc.IsSampled(), Tracestate: sc.TraceState().String(),
	}.Child()
}

// knownFlags returns a traceparent without the flags that its version does not know: they
// are to be ignored, and OpenTelemetry would refuse it.
func knownFlags(parent string) string {
	const flags = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-")
	if len(parent) != flags+2 || parent[:3] != "00-" || strings.Trim(parent[flags:], "0123456789abcdef") != "" {
		return parent
	}
	n, _ := strconv.ParseUint(parent[flags:], 16, 8) //nolint:errcheck // it has hex digits only
	switch {
	case n <= 1:
		return parent
	case n&1 != 0:
		return parent[:flags] + "01"
	}
	return parent[:flags] + "00"
}

// shorten makes a tracestate as short as is passed on, by whole members: the long ones go
// first, then the last ones, as the standard says.
func shorten(state string) string {
	if len(state) <= maxTracestate {
		return state
	}
	var b strings.Builder
	for member := range strings.SplitSeq(state, ",") {
		member = strings.Trim(member, " \t")
		if member == "" || len(member) > maxMember {
			continue
		}
		if b.Len()+1+len(member) > maxTracestate {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(member)
	}
	return b.String()
}

// traceOfEvent does as TraceOf for a request with a CloudEvent in the JSON format, which
// names a trace itself where the headers do not: the extension for distributed tracing.
func (g *Gateway) traceOfEvent(h map[string][]string, event []byte) hearth.Trace {
	if h["Traceparent"] != nil {
		return g.TraceOf(h)
	}
	var parent, state string
	for name, value := range jsonwalk.Members(event) {
		switch name {
		case "traceparent":
			_ = json.Unmarshal(value, &parent) // what is no text is no traceparent
		case "tracestate":
			_ = json.Unmarshal(value, &state)
		}
	}
	return g.traceFrom(parent, state)
}
