// Package traces exports calls as spans to an OpenTelemetry collector, by OTLP.
//
// Spans are made of the records of calls that have ended, by a goroutine of their own:
// the calls themselves pay for a copy of the record only, and only if their trace is
// sampled. The rest is the OpenTelemetry SDK's.
package traces

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/hearthrun/hearth"
)

const (
	// buffer is how many calls and spans may wait until they become the SDK's, and
	// bufferBytes how large they may be together.
	buffer      = 8192
	bufferBytes = 16 << 20
	// itemSize is about what one takes without its texts, linkSize a link of it, in bytes.
	itemSize, linkSize = 1024, 64
	// maxText bounds texts of spans that callers and functions choose, in bytes, and
	// maxErr what a collector says is wrong.
	maxText, maxErr = 2 << 10, 500
	// warnEvery is between two lines of the log that say that spans are lost.
	warnEvery = time.Minute
)

// Options of an Exporter. URL and Logger are required.
type Options struct {
	// URL is the collector's, such as http://127.0.0.1:4318; /v1/traces is added. The
	// SDK's environment variables for OTLP, such as OTEL_EXPORTER_OTLP_HEADERS, and
	// those for the resource count, too.
	URL string
	// Version is Hearth's own.
	Version string
	Logger  *slog.Logger
}

// Exporter sends spans to a collector. Its methods may be called from many goroutines;
// those that take something never block.
type Exporter struct {
	// Constant after construction.
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	items    chan item
	stop     chan struct{}
	done     chan struct{}
	giveUp   context.CancelFunc

	once    sync.Once
	waiting atomic.Int64 // bytes of items
	dropped atomic.Int64
}

// item is a call, or a span.
type item struct {
	trace hearth.Trace
	call  *hearth.Invocation
	span  hearth.Span // without a call
	size  int64
}

// New returns an Exporter, which must be closed. It does not need the collector to be
// there. Errors: CodeInvalid for a URL that cannot be one.
func New(o Options) (*Exporter, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		shown := "what is no URL" // it may have a password all the same
		if err == nil {
			shown = strconv.Quote(u.Redacted())
		}
		return nil, hearth.Errorf(hearth.CodeInvalid, "traces cannot be exported to %s", shown).
			WithHint("give the URL of a collector that speaks OTLP over HTTP, such as http://127.0.0.1:4318; credentials belong into OTEL_EXPORTER_OTLP_HEADERS")
	}
	if !strings.HasSuffix(u.Path, "/v1/traces") {
		u = u.JoinPath("v1", "traces")
	}
	ctx := context.Background() // nothing waits yet
	res, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "hearth"), attribute.String("service.version", o.Version)), resource.WithFromEnv())
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the resource of traces: %w", err).WithHint("look at OTEL_RESOURCE_ATTRIBUTES")
	}
	otlp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithProxy(noRedirect))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "traces cannot be exported to %s: %w", u.Redacted(), err)
	}
	e := &Exporter{items: make(chan item, buffer), stop: make(chan struct{}), done: make(chan struct{})}
	l := &outlet{SpanExporter: otlp, dropped: &e.dropped, log: o.Logger}
	l.end, e.giveUp = context.WithCancel(ctx)
	e.provider = sdk.NewTracerProvider(
		// What it has no room for waits in items, so that it is counted if it is too much.
		sdk.WithBatcher(l, sdk.WithBlocking()),
		sdk.WithIDGenerator(given{}), sdk.WithSampler(sdk.AlwaysSample()), sdk.WithResource(res),
	)
	e.tracer = e.provider.Tracer("github.com/hearthrun/hearth", trace.WithInstrumentationVersion(o.Version))
	go e.run()
	return e, nil
}

// errRedirect is why a batch was not sent on.
var errRedirect = errors.New("the collector answered with a redirect, which is not followed: give the URL where it is")

// noRedirect chooses the proxy of a request, and refuses those that follow a redirect: a
// header with a key must not go anywhere else. A client of our own would do, too, but
// without the certificates that the SDK's environment variables name.
func noRedirect(r *http.Request) (*url.URL, error) {
	if r.Response != nil {
		return nil, errRedirect
	}
	return http.ProxyFromEnvironment(r)
}

// Count takes a call that has ended, if its trace is sampled.
func (e *Exporter) Count(v *hearth.Invocation) {
	if !v.Sampled {
		return
	}
	call := *v
	// They are parts of a request's first line, which would be kept as a whole.
	call.Method, call.Path, call.ErrorMessage = own(v.Method), own(v.Path), own(v.ErrorMessage)
	size := len(call.Method) + len(call.Path) + len(call.ErrorMessage)
	for _, l := range v.Links {
		size += linkSize + len(l.Tracestate)
	}
	if !e.put(item{trace: v.Trace, call: &call, size: int64(size)}) {
		e.dropped.Add(spansOf(v.Timings))
	}
}

// Span takes a span of the trace t, if that is sampled.
func (e *Exporter) Span(t hearth.Trace, s hearth.Span) {
	if !t.Sampled {
		return
	}
	s.ErrorMessage = own(s.ErrorMessage)
	if !e.put(item{trace: t, span: s, size: int64(len(s.ErrorMessage))}) {
		e.dropped.Add(1)
	}
}

// own returns a copy of a text, bounded.
func own(s string) string { return strings.Clone(s[:min(len(s), maxText)]) }

// put makes an item wait, unless there is no room.
func (e *Exporter) put(i item) bool {
	i.size += itemSize + int64(len(i.trace.Tracestate))
	if e.waiting.Add(i.size) <= bufferBytes {
		select {
		case e.items <- i:
			return true
		default:
		}
	}
	e.waiting.Add(-i.size)
	return false
}

// spansOf is how many spans a call has.
func spansOf(t hearth.Timings) int64 {
	n := int64(1)
	for _, part := range [...]time.Duration{t.Route, t.Queue, t.Start, t.Init, t.Run} {
		if part > 0 {
			n++
		}
	}
	return n
}

// Dropped returns how many spans were lost because the collector was too slow or could
// not be reached.
func (e *Exporter) Dropped() int64 { return e.dropped.Load() }

// Close sends what there is, until ctx ends, and ends the Exporter. A second Close does
// nothing.
func (e *Exporter) Close(ctx context.Context) error {
	var err error
	e.once.Do(func() {
		stop := context.AfterFunc(ctx, e.giveUp)
		defer stop()
		close(e.stop)
		<-e.done
		// Once it was given up nothing takes long any more.
		err = e.provider.Shutdown(context.WithoutCancel(ctx))
		e.giveUp()
	})
	return err
}

func (e *Exporter) run() {
	defer close(e.done)
	for {
		select {
		case i := <-e.items:
			e.export(i)
			continue
		case <-e.stop:
		}
		for {
			select {
			case i := <-e.items:
				e.export(i)
				continue
			default:
			}
			return
		}
	}
}

func (e *Exporter) export(i item) {
	defer e.waiting.Add(-i.size)
	if i.call == nil {
		e.record(i.trace, &i.span)
		return
	}
	spans := i.call.Spans()
	for n := range spans {
		e.record(i.trace, &spans[n])
	}
}

var kinds = map[hearth.SpanKind]trace.SpanKind{
	hearth.SpanServer: trace.SpanKindServer, hearth.SpanInternal: trace.SpanKindInternal, hearth.SpanProducer: trace.SpanKindProducer,
	hearth.SpanConsumer: trace.SpanKindConsumer, hearth.SpanClient: trace.SpanKindClient,
}

// record makes a span, which has ended, the SDK's.
func (e *Exporter) record(t hearth.Trace, s *hearth.Span) {
	ctx := context.WithValue(context.Background(), given{}, ids{trace.TraceID(t.TraceID), trace.SpanID(s.ID)})
	if s.ParentID != (hearth.SpanID{}) {
		ctx = trace.ContextWithSpanContext(ctx, contextOf(t, s.ParentID, s.Kind == hearth.SpanServer || s.Kind == hearth.SpanConsumer))
	}
	var attributes []attribute.KeyValue
	for key, value := range s.Attributes {
		switch v := value.(type) {
		case string:
			attributes = append(attributes, attribute.String(key, text(v)))
		case int:
			attributes = append(attributes, attribute.Int(key, v))
		case bool:
			attributes = append(attributes, attribute.Bool(key, v))
		}
	}
	var links []trace.Link
	for _, l := range s.Links {
		links = append(links, trace.Link{SpanContext: contextOf(l, l.SpanID, true)})
	}
	_, span := e.tracer.Start(ctx, text(s.Name), trace.WithTimestamp(s.Start), trace.WithSpanKind(kinds[s.Kind]),
		trace.WithAttributes(attributes...), trace.WithLinks(links...))
	if s.Failed {
		span.SetStatus(codes.Error, text(s.ErrorMessage))
	}
	span.End(trace.WithTimestamp(s.Start.Add(s.Duration)))
}

// text bounds a text and makes it valid: one that is not would be the end of all spans
// that are sent with it.
func text(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD") }

// contextOf returns the context of a span of a trace.
func contextOf(t hearth.Trace, id hearth.SpanID, remote bool) trace.SpanContext {
	state, _ := trace.ParseTraceState(t.Tracestate) //nolint:errcheck // then there is none
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(t.TraceID), SpanID: trace.SpanID(id), TraceFlags: trace.FlagsSampled, TraceState: state, Remote: remote,
	})
}

// given is the generator of ids that were given before, by a context.
type given struct{}

type ids struct {
	trace trace.TraceID
	span  trace.SpanID
}

// NewIDs implements sdk.IDGenerator.
func (given) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	v := ctx.Value(given{}).(ids)
	return v.trace, v.span
}

// NewSpanID implements sdk.IDGenerator.
func (given) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return ctx.Value(given{}).(ids).span
}

// outlet counts what could not be exported. Errors end here: the SDK would write them
// to standard error.
type outlet struct {
	sdk.SpanExporter
	end     context.Context // when it is given up
	dropped *atomic.Int64
	log     *slog.Logger
	warned  time.Time
}

// ExportSpans implements sdk.SpanExporter; it is called by one goroutine. Its context
// bounds how often it tries.
func (l *outlet) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.end, cancel)()
	err := l.SpanExporter.ExportSpans(ctx, spans)
	// It tries again itself if the collector says so, but not if that is not there.
	for pause := time.Second; unreachable(err) && ctx.Err() == nil; pause = min(2*pause, 10*time.Second) {
		select {
		case <-time.After(pause):
			err = l.SpanExporter.ExportSpans(ctx, spans)
		case <-ctx.Done():
		}
	}
	if err == nil {
		return nil
	}
	n := lost(err, len(spans))
	l.dropped.Add(int64(n))
	if now := time.Now(); now.Sub(l.warned) >= warnEvery {
		l.warned = now
		msg := err.Error()
		if len(msg) > maxErr {
			msg = strings.ToValidUTF8(msg[:maxErr], "") + "…"
		}
		what := "spans are lost: the collector does not take them"
		if n == 0 {
			what = "the collector of traces has a warning"
		}
		l.log.Warn(what, "spans", n, "err", msg)
	}
	return nil
}

func unreachable(err error) bool {
	var e *url.Error
	return errors.As(err, &e) && !errors.Is(err, errRedirect)
}

// partial is the error of a batch that was taken in part, or as a whole with a warning.
// Its type is not exported.
var partial = regexp.MustCompile(`OTLP partial success: (?s:.*) \((\d+) spans rejected\)$`)

// lost returns how many spans of a batch were, by its error.
func lost(err error, batch int) int {
	if m := partial.FindStringSubmatch(err.Error()); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return min(n, batch)
		}
	}
	return batch
}
