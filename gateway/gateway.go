// Package gateway is the data plane: it matches a request to a function,
// calls it through the pool, and streams the answer back.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// Instance is an instance lent to one call, and what the call waited for it.
type Instance struct {
	Conn *guest.Conn
	// ID is that of the sandbox.
	ID   string
	Cold bool
	// ColdReason tells why it is cold; empty when warm.
	ColdReason hearth.ColdReason
	Timings    hearth.Timings // without Run
}

// Pool lends instances.
type Pool interface {
	// Do lends an instance of v to fn.
	Do(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error
	// Hold is Do for a call that lasts for as long as its client stays connected.
	Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error
	// SetLive tells which versions answer calls now; the instances of those that
	// did and do no more end after their calls.
	SetLive(versions []hearth.Version)
	// Admit lets a version that was retired have instances again.
	Admit(incarnation string)
	// Retire ends the instances of a version after their calls.
	Retire(incarnation string)
}

// Catalog tells what is deployed.
type Catalog interface {
	// Deployments returns every function with its aliases and their versions.
	Deployments(ctx context.Context) ([]hearth.Deployment, error)
	// Version returns one version. Errors: CodeNotFound.
	Version(ctx context.Context, function string, number int) (hearth.Version, error)
}

// Recorder takes the records of calls; it must not block.
type Recorder interface {
	Record(hearth.Invocation)
	// Refused takes that of a call for which there was no room; false means that it
	// was one of too many to keep.
	Refused(hearth.Invocation) bool
}

// Logs takes what Hearth has to tell a function's owner; it must not block.
type Logs interface {
	Append(hearth.LogLine)
}

// Config of a Gateway. All interfaces and Logger are required.
type Config struct {
	Pool     Pool
	Catalog  Catalog
	Recorder Recorder
	Logs     Logs
	Logger   *slog.Logger
	// Queue stores calls that are to run later; nil refuses them.
	Queue Queue
	// Keeper keeps responses for idempotency keys; nil refuses such calls.
	Keeper Keeper
	// Schedules are told of the functions' schedules; nil is for none.
	Schedules Schedules
	// MaxRequest and MaxResponse bound bodies in bytes where a function's own limits
	// do not; defaults 32 MiB and 1 GiB.
	MaxRequest, MaxResponse int64
	// MaxRequestStream bounds the bodies that functions read as they arrive, which
	// take no room; default 1 GiB.
	MaxRequestStream int64
	// SpoolDir is where long request bodies are kept while they arrive; default
	// is the system's directory for temporary files. MaxSpool bounds all of them
	// together in bytes; default 1 GiB.
	SpoolDir string
	MaxSpool int64
	// MaxCache bounds in bytes what is kept of the responses of functions that
	// have a cache, MaxCached the body of one; defaults 64 MiB and 1 MiB. One
	// function can use a quarter of MaxCache.
	MaxCache, MaxCached int64
	// Managed tells that a host belongs to management, whatever routes say; default
	// is that none does.
	Managed func(host string) bool
	// TraceRatio is how many of the traces that begin here are to be exported, from 0 to
	// 1, default none; others are as whoever began them says.
	TraceRatio float64
	// Ping is how long the client of a WebSocket may be silent before it is asked
	// for a sign of life, and has as long to give one; default 30 s.
	Ping time.Duration
	// MaxMessages bounds in bytes what is kept of messages of WebSockets that their
	// functions have not taken, beyond 64 KiB of each; default 256 MiB. One function can
	// use a quarter of it.
	MaxMessages int64
}

// Gateway answers calls. Its methods may be called from many goroutines.
type Gateway struct {
	cfg      Config
	spool    spool
	cache    *cache
	previews previews
	sockets  sockets
	claims   claims
	keyed    sync.Map      // *keyedCall that runs, by the key of a KeptResponse
	waiters  atomic.Int32  // for the end of those in keyed
	large    chan struct{} // a token for each large body that is being stored
	reload   sync.Mutex
	table    atomic.Pointer[table]
}

var _ hearth.Invoker = (*Gateway)(nil)

// New returns a gateway without functions; Reload reads them.
func New(cfg Config) *Gateway {
	if cfg.MaxRequest == 0 {
		cfg.MaxRequest = 32 << 20
	}
	if cfg.MaxRequestStream == 0 {
		cfg.MaxRequestStream = 1 << 30
	}
	if cfg.MaxResponse == 0 {
		cfg.MaxResponse = 1 << 30
	}
	if cfg.MaxSpool == 0 {
		cfg.MaxSpool = 1 << 30
	}
	if cfg.MaxCache == 0 {
		cfg.MaxCache = 64 << 20
	}
	if cfg.MaxCached == 0 {
		cfg.MaxCached = 1 << 20
	}
	if cfg.Ping == 0 {
		cfg.Ping = 30 * time.Second
	}
	if cfg.MaxMessages == 0 {
		cfg.MaxMessages = 256 << 20
	}
	g := &Gateway{cfg: cfg, cache: newCache(cfg.MaxCache, cfg.MaxCached), spool: spool{dir: cfg.SpoolDir, limit: cfg.MaxSpool}, large: make(chan struct{}, maxLargeBodies)}
	g.table.Store(emptyTable())
	return g
}

// Reload reads the catalog. Calls under way end on the version they began
// with; the pool learns which versions are live. A function of which something is
// wrong keeps no other from being served: its calls are answered with what it is.
func (g *Gateway) Reload(ctx context.Context) error {
	g.reload.Lock()
	defer g.reload.Unlock()
	deployed, err := g.cfg.Catalog.Deployments(ctx)
	if err != nil {
		return err
	}
	old := g.table.Load()
	next := newTable(deployed, old)
	g.table.Store(next)
	var versions []hearth.Version
	for i := range deployed {
		f := next.functions[deployed[i].Function]
		if f.err != nil {
			g.cfg.Logger.ErrorContext(ctx, "a function cannot be served", "function", deployed[i].Function, "err", f.err)
		}
		for _, a := range f.all() {
			for _, p := range a.portions {
				versions = append(versions, *p.version)
			}
		}
	}
	g.cfg.Pool.SetLive(versions)
	if g.cfg.Schedules != nil {
		g.cfg.Schedules.SetSchedules(next.schedules())
	}
	if g.cfg.Queue != nil {
		g.cfg.Queue.Reloaded()
	}
	for incarnation := range old.incarnations {
		if _, ok := next.incarnations[incarnation]; !ok {
			g.cache.retire(incarnation)
		}
	}
	g.endPreviews(ctx, next)
	g.sockets.close(func(function string) bool { return next.functions[function] == nil }, "the function was deleted")
	return nil
}

// CheckRoutes tells whether an alias of a function could have these routes
// beside those of all others. Errors: CodeConflict naming the owner of another.
func (g *Gateway) CheckRoutes(function, alias string, routes []hearth.Route) error {
	return g.table.Load().check(function, alias, routes)
}

// Queues returns the functions that take the messages of queues, by the queues' names.
// The map must not be changed.
func (g *Gateway) Queues() map[string]string { return g.table.Load().queues }

// OwnsHost tells whether a request's host is that of a route: then all of its
// paths belong to functions.
func (g *Gateway) OwnsHost(host string) bool { return g.ownsHost(g.table.Load(), host) }

// Incarnations returns those of all versions of a function that may have
// instances. Errors: CodeNotFound.
func (g *Gateway) Incarnations(function string) ([]string, error) {
	f := g.table.Load().functions[function]
	if f == nil {
		return nil, noFunction(function)
	}
	list := g.previews.of(function)
	for _, a := range f.all() {
		for _, p := range a.portions {
			list = append(list, p.version.Incarnation)
		}
	}
	return list, nil
}

// invoke runs one call with the function's deadline. It fills rec.
func (g *Gateway) invoke(ctx context.Context, v *hearth.Version, call *guest.Call, rec *hearth.Invocation, sink guest.Sink) error {
	// What the call waited for until now belongs to the queue too.
	before := rec.Timings.Queue
	asked, lent := time.Now(), false
	route := asked.Sub(rec.StartedAt) - before
	err := g.cfg.Pool.Do(ctx, v, func(ctx context.Context, inst Instance) error {
		lent = true
		rec.Instance = inst.ID
		rec.Cold, rec.ColdReason, rec.Timings = inst.Cold, inst.ColdReason, inst.Timings
		rec.Timings.Queue += before
		rec.Timings.Route = route
		begin := time.Now()
		err := inst.Conn.Invoke(ctx, call, sink)
		rec.Timings.Run = time.Since(begin)
		return err
	})
	if !lent {
		rec.Timings.Queue += time.Since(asked)
		rec.Timings.Route = route
	}
	if hearth.ErrorCode(err) == hearth.CodeTimeout && rec.Timings.Run > 0 {
		e := *hearth.AsError(err)
		e.Message = "the function did not answer within its timeout of " + v.Config.Timeout.String()
		e.Hint = "raise timeout in hearth.yaml, or make it faster; its log shows how far it came"
		err = &e
	}
	return err
}

// newRecord begins the record of a call through an alias; nil for a version that was
// named.
func (g *Gateway) newRecord(a *alias, v *hearth.Version, kind hearth.Kind, trace hearth.Trace, now time.Time) hearth.Invocation {
	rec := hearth.Invocation{
		ID:        newInvocationID(),
		Function:  v.Function,
		Version:   v.Number,
		Kind:      kind,
		Isolation: v.Config.Isolation,
		StartedAt: now,
		Trace:     trace,
	}
	if a != nil {
		rec.Alias = a.alias
	}
	return rec
}

// newInvocationID returns a version 7 UUID: unique, and sorted by time.
func newInvocationID() string { return uuid.Must(uuid.NewV7()).String() }

// finish completes the record and tells the function's owner of an error.
func (g *Gateway) finish(rec *hearth.Invocation, err error) {
	if err != nil {
		e := hearth.AsError(err)
		rec.ErrorCode, rec.ErrorMessage = e.Code, e.Message
		if rec.Status == 0 {
			rec.Status = e.Code.HTTPStatus()
		}
		switch e.Code {
		case hearth.CodeInternal, hearth.CodeUnavailable:
			g.cfg.Logger.Error("call failed", "function", rec.Function, "invocation", rec.ID, "err", err)
		}
		if e.Code == hearth.CodeExhausted && e.RetryAfter > 0 { // the pool's
			if g.cfg.Recorder.Refused(*rec) {
				g.logError(rec, e)
			}
			return
		}
		g.logError(rec, e)
	}
	g.cfg.Recorder.Record(*rec)
}

// continued begins each line of an error but the first. What a function raised is text of
// its choice: without a mark, a line break in it could begin what looks like another line
// of Hearth's.
const continued = "  | "

func (g *Gateway) logError(rec *hearth.Invocation, e *hearth.Error) {
	lines := strings.Split(string(e.Code)+": "+strings.TrimRight(e.Message, "\r\n"), "\n")
	if e.Function != nil {
		for _, s := range e.Function.Stack {
			lines = append(lines, strings.Split(strings.TrimRight(s, "\n"), "\n")...)
		}
	}
	now := time.Now()
	for i, text := range lines {
		if text = strings.TrimSuffix(text, "\r"); i > 0 {
			text = continued + text
		}
		g.cfg.Logs.Append(hearth.LogLine{
			Time: now, Function: rec.Function, Version: rec.Version,
			Instance: rec.Instance, Invocation: rec.ID, Stream: "hearth", Level: hearth.LevelError, Text: text,
		})
	}
}

// deadline bounds a call that arrived now.
func deadline(ctx context.Context, v *hearth.Version, now time.Time) (context.Context, context.CancelFunc, time.Time) {
	end := now.Add(time.Duration(v.Config.Timeout))
	ctx, cancel := context.WithDeadline(ctx, end)
	return ctx, cancel, end
}

// InvokeEvent implements hearth.Invoker.
func (g *Gateway) InvokeEvent(ctx context.Context, r hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
	now := time.Now()
	a, v, err := g.resolve(ctx, g.table.Load(), r.Target)
	if err != nil {
		return hearth.Invocation{}, err
	}
	if a != nil {
		v = a.any()
	}
	ctx, cancel, end := deadline(ctx, v, now)
	defer cancel()
	rec := g.newRecord(a, v, hearth.KindEvent, g.TraceOf(r.Header), now)
	call := &guest.Call{ID: rec.ID, Deadline: end, Kind: hearth.KindEvent, Trace: rec.Running()}
	if r.Event != nil {
		body, err := io.ReadAll(io.LimitReader(r.Event, g.maxRequest(v)+1))
		if err == nil && int64(len(body)) > g.maxRequest(v) {
			err = tooLarge(g.maxRequest(v))
		}
		if err != nil {
			return rec, err
		}
		call.Body, rec.BytesIn = body, int64(len(body))
	}
	if d, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		// A caller that does not read must not hold the instance for longer.
		d.SetWriteDeadline(end)               //nolint:errcheck // a connection without deadlines is a test's
		defer d.SetWriteDeadline(time.Time{}) //nolint:errcheck // it was set before
	}
	sink := &eventSink{w: w, rec: &rec, started: started, begin: time.Now(), limit: g.maxResponse(v)}
	err = blame(g.invoke(ctx, v, call, &rec, sink), end)
	if err == nil {
		rec.Status = 200
	}
	g.finish(&rec, err)
	return rec, err
}

// eventSink streams a handler's value to a writer.
type eventSink struct {
	w       io.Writer
	rec     *hearth.Invocation
	started func(hearth.Invocation)
	begin   time.Time
	limit   int64
	begun   bool
}

func (s *eventSink) Head(*guest.Head) error { return nil }

func (s *eventSink) Data(p []byte, _ bool) error {
	s.rec.BytesOut += int64(len(p))
	if s.rec.BytesOut > s.limit {
		return responseTooLarge(s.limit)
	}
	if !s.begun {
		s.begun = true
		rec := *s.rec
		t := rec.Timings
		rec.Status = 200
		rec.Timings.Run = time.Since(s.begin) - t.Queue - t.Start - t.Init
		s.started(rec)
	}
	_, err := s.w.Write(p)
	return clientError(err)
}

func (s *eventSink) Flush() error {
	if f, ok := s.w.(interface{ FlushError() error }); ok && s.begun {
		return clientError(f.FlushError())
	}
	return nil
}

// clientError marks an error of writing to the caller.
func clientError(err error) error {
	if err == nil {
		return nil
	}
	return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: err}
}

// maxRequest and maxResponse bound the bodies of a version in bytes.
func (g *Gateway) maxRequest(v *hearth.Version) int64 {
	limit := g.cfg.MaxRequest
	if v.RequestStream {
		limit = g.cfg.MaxRequestStream
	}
	return cmp.Or(int64(v.Config.Limits.Request), limit)
}

func (g *Gateway) maxResponse(v *hearth.Version) int64 {
	return cmp.Or(int64(v.Config.Limits.Response), g.cfg.MaxResponse)
}

func tooLarge(limit int64) error {
	return &hearth.Error{
		Code: hearth.CodeInvalid, Message: "the request's body is over the limit of " + hearth.Bytes(limit).String(),
		Hint: "send less, or a link to the data", Err: errTooLarge,
	}
}

// errTooLarge is the cause of an error that is answered with 413.
var errTooLarge = errors.New("the body is too large")

// statusOf returns the HTTP status of an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, hearth.ErrKeyReused):
		return http.StatusUnprocessableEntity
	}
	return hearth.AsError(err).Code.HTTPStatus()
}

func responseTooLarge(limit int64) error {
	e := hearth.Errorf(hearth.CodeFunction, "the function's response is over the limit of %s", hearth.Bytes(limit))
	e.Function = &hearth.FunctionError{Type: "Runtime.ResponseTooLarge", Message: e.Message}
	return e
}

// cannotServe says that a function cannot be served, and why.
func cannotServe(name string, why error) error {
	return &hearth.Error{
		Code: hearth.CodeUnavailable, Message: "function " + name + " cannot be served: " + why.Error(),
		Hint: "deploy it again, or delete it; the server's log says more", Err: why,
	}
}

func noFunction(name string) error {
	return hearth.Errorf(hearth.CodeNotFound, "there is no function %s", strconv.Quote(name)).
		WithHint("hearth list shows the functions")
}

// isFunctionError tells whether err is the user's code's.
func isFunctionError(err error) bool {
	var e *hearth.Error
	return errors.As(err, &e) && e.Code == hearth.CodeFunction
}
