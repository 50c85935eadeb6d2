package hearth

import (
	"net/url"
	"strconv"
	"strings"
	"time"
)

// SpanKind tells on which side of a call a span is; the words are OpenTelemetry's.
type SpanKind string

// The kinds of spans.
const (
	SpanServer   SpanKind = "server"   // a call that somebody waits for
	SpanInternal SpanKind = "internal" // a part of a call
	SpanProducer SpanKind = "producer" // a call was stored to run later
	SpanConsumer SpanKind = "consumer" // an attempt of one
	SpanClient   SpanKind = "client"   // the delivery of a webhook
)

// Span is a part of a trace.
type Span struct {
	ID       SpanID   `json:"id" doc:"Id of the span, 16 hex digits"`
	ParentID SpanID   `json:"parent_id,omitzero" doc:"Span that it is a part of, or that led to it; that may be somebody else's"`
	Name     string   `json:"name" doc:"Function, or route, queue, start, init and run as its parts" example:"hello"`
	Kind     SpanKind `json:"kind" doc:"server, consumer for an attempt, producer for what was stored, client for a webhook, internal for parts" enum:"server,internal,producer,consumer,client"`
	// Start has microseconds if it was kept. Duration is 0 for what has no end.
	Start    time.Time     `json:"start" doc:"When it began"`
	Duration time.Duration `json:"duration_ns" doc:"How long it took, in nanoseconds"`
	Function string        `json:"function,omitempty" doc:"Function that it is about; missing for webhooks"`
	Version  int           `json:"version,omitempty" doc:"Its version"`
	// Invocation is the id of the call.
	Invocation string `json:"invocation,omitempty" doc:"Id of the call"`
	// Failed tells that it did; ErrorCode and ErrorMessage why, unless the function said
	// so itself by its status.
	Failed       bool   `json:"failed,omitempty" doc:"Whether it failed"`
	ErrorCode    Code   `json:"error_code,omitempty" doc:"Code of the error that it ended with"`
	ErrorMessage string `json:"error_message,omitempty" doc:"What went wrong"`
	// Attributes are named as OpenTelemetry's semantic conventions have it, those
	// beginning with hearth. are Hearth's own. Values are texts, whole numbers and
	// booleans.
	Attributes map[string]any `json:"attributes,omitempty" doc:"By the names of OpenTelemetry's semantic conventions"`
	// Links are spans in other traces that led to it. They are not kept.
	Links []Trace `json:"-"`
}

// TraceView is what is known of a trace.
type TraceView struct {
	TraceID TraceID `json:"trace_id" doc:"Id of the trace, 32 hex digits" example:"4bf92f3577b34da6a3ce929d0e0e4736"`
	Spans   []Span  `json:"spans" doc:"Calls with their parts, by when they began"`
	// Truncated tells that there are more.
	Truncated bool `json:"truncated,omitempty" doc:"Whether there are more spans"`
}

// Spans returns the span of the call and those of its parts. The call must have ended.
func (i *Invocation) Spans() []Span {
	if i.TraceID == (TraceID{}) {
		return nil
	}
	t := i.Timings
	whole := Span{
		ID: i.SpanID, ParentID: i.ParentID, Name: i.Function, Kind: SpanServer, Start: i.StartedAt, Duration: t.Route + t.Queue + t.Start + t.Init + t.Run,
		Function: i.Function, Version: i.Version, Invocation: i.ID, Attributes: i.attributes(), Links: i.Links,
	}
	if i.Attempt > 0 || i.Kind == KindQueue {
		whole.Kind = SpanConsumer
	}
	spans := append(make([]Span, 0, 6), whole)
	at := i.StartedAt
	for n, part := range [...]struct {
		name string
		took time.Duration
	}{{"route", t.Route}, {"queue", t.Queue}, {"start", t.Start}, {"init", t.Init}, {"run", t.Run}} {
		if part.took <= 0 {
			continue
		}
		of := i.part(partRoute + uint64(n))
		spans = append(spans, Span{
			ID: of.SpanID, ParentID: of.ParentID, Name: part.name, Kind: SpanInternal, Start: at, Duration: part.took,
			Function: i.Function, Version: i.Version, Invocation: i.ID,
		})
		at = at.Add(part.took)
	}
	// What a caller did wrong is no failure of the call, as the conventions have it.
	if i.Status >= 500 || i.ErrorCode != "" && i.Status == 0 {
		spans[0].fail(i.ErrorCode, i.ErrorMessage)
		if t.Run > 0 {
			spans[len(spans)-1].fail(i.ErrorCode, i.ErrorMessage)
		}
	}
	return spans
}

func (s *Span) fail(code Code, message string) {
	s.Failed, s.ErrorCode, s.ErrorMessage = true, code, message
}

// attributes are those of the call as a whole.
func (i *Invocation) attributes() map[string]any {
	a := map[string]any{"faas.name": i.Function, "faas.invocation_id": i.ID, "faas.coldstart": i.Cold}
	text := func(key, value string) {
		if value != "" {
			a[key] = value
		}
	}
	if i.Version > 0 {
		a["faas.version"] = strconv.Itoa(i.Version)
	}
	switch {
	case i.Kind == KindHTTP || i.Kind == KindWebsocket:
		a["faas.trigger"] = "http"
	case i.Scheduled:
		a["faas.trigger"] = "timer"
	case i.Kind == KindQueue || i.Attempt > 0:
		a["faas.trigger"] = "pubsub"
	default:
		a["faas.trigger"] = "other"
	}
	if i.Method != "" {
		if a["http.request.method"] = i.Method; !knownMethod(i.Method) { // as the conventions have it, so that there are few
			a["http.request.method"], a["http.request.method_original"] = "_OTHER", i.Method
		}
		a["url.path"] = i.Path
		a["http.response.status_code"] = i.Status
	}
	if i.Attempt > 0 {
		a["hearth.attempt"] = i.Attempt
	}
	if i.Cached {
		a["hearth.cached"] = true
	}
	text("http.route", i.HTTPRoute)
	text("faas.instance", i.Instance)
	text("error.type", string(i.ErrorCode))
	text("hearth.alias", i.Alias)
	text("hearth.isolation", i.Isolation)
	text("hearth.cold_reason", string(i.ColdReason))
	return a
}

func knownMethod(m string) bool {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY":
		return true
	}
	return false
}

// Accepted returns the span of the acceptance of c, which took as long as given.
func (c *AsyncCall) Accepted(took time.Duration) Span {
	s := Span{
		ID: c.SpanID, ParentID: c.ParentID, Name: "enqueue " + c.label(), Kind: SpanProducer, Start: c.AcceptedAt, Duration: took,
		Function: c.Function, Invocation: c.ID,
		Attributes: map[string]any{
			"messaging.system": "hearth", "messaging.operation.type": "send", "messaging.message.id": c.ID, "messaging.destination.name": c.label(),
		},
	}
	if c.Kind == KindWebhook {
		s.Function = ""
	}
	return s
}

// Delivered returns the span of an attempt to deliver the webhook c; f tells why it
// failed, nil if it did not.
func (c *AsyncCall) Delivered(attempt int, begin, end time.Time, f *AsyncFailure) Span {
	of := c.Attempted(attempt)
	s := Span{
		ID: of.SpanID, ParentID: of.ParentID, Name: c.label(), Kind: SpanClient, Start: begin, Duration: max(0, end.Sub(begin)), Invocation: c.ID,
		Attributes: map[string]any{"http.request.method": "POST", "server.address": strings.TrimPrefix(c.label(), "webhook "), "hearth.attempt": attempt},
	}
	if f != nil {
		s.Attributes["error.type"] = string(f.Code)
		s.fail(f.Code, f.Message)
	}
	return s
}

// Spans returns the span of the acceptance of c and, if it is a webhook, those of its
// deliveries, as far as they are kept. Attempts of other calls have records of their own.
func (c *AsyncCall) Spans() []Span {
	if c.TraceID == (TraceID{}) {
		return nil
	}
	spans := []Span{c.Accepted(0)}
	if c.Kind != KindWebhook {
		return spans
	}
	for _, f := range c.Failures {
		if f.Number > 0 {
			spans = append(spans, c.Delivered(f.Number, f.StartedAt, f.EndedAt, &f))
		}
	}
	if c.State == AsyncSucceeded { // it began when it was due, or a little later
		spans = append(spans, c.Delivered(c.LastAttempt(), c.DueAt, c.FinishedAt, nil))
	}
	return spans
}

// label is what is called, for people: of a URL only the host, as the rest may be secret.
func (c *AsyncCall) label() string {
	if c.Kind != KindWebhook {
		return c.Target
	}
	u, err := url.Parse(c.Target)
	if err != nil {
		return "webhook"
	}
	return "webhook " + u.Host
}
