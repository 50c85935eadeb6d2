package gateway

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/jsonwalk"
)

// This file reads W3C Trace Context, of requests and of CloudEvents.

// maxTracestate bounds in bytes what is passed on of a tracestate: a longer one is left
// out. The standard asks for as much.
const maxTracestate = 512

// NewTrace begins a trace.
func (g *Gateway) NewTrace() hearth.Trace {
	ratio := g.cfg.TraceRatio
	return hearth.NewTrace(ratio >= 1 || ratio > 0 && rand.Float64() < ratio)
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
	if len(state) > maxTracestate {
		state = ""
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": parent, "tracestate": state})
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return g.NewTrace()
	}
	return hearth.Trace{
		TraceID: hearth.TraceID(sc.TraceID()), SpanID: hearth.SpanID(sc.SpanID()), Sampled: sc.IsSampled(), Tracestate: sc.TraceState().String(),
	}.Child()
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
