package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// smallBody is the largest request body that is read before an instance is
// asked for, so that a slow sender does not hold one. It is also what the
// guest protocol sends in one piece.
const smallBody = 64 << 10

// smallWrite always fits into the buffers of net/http, which are sent after the
// instance was given back.
const smallWrite = 2048

// exchange is the state of one request; pooled.
type exchange struct {
	w     http.ResponseWriter
	r     *http.Request
	limit int64
	end   time.Time // the deadline
	rec   hearth.Invocation
	call  guest.Call
	head  *guest.Head
	begin time.Time
	fill  *fill // nil unless the response matters to the cache
	// conditions are those that the function does not get to see.
	conditions conditions
	wrote      bool
	stream     bool // the body's length was not known at the start
	bounded    bool // writes have a deadline
	cors       bool // the function's own headers about CORS do not count
	event      []byte
	body       []byte
}

// exchanges keeps buffers between requests. It holds no state of any request.
var exchanges = sync.Pool{New: func() any { return new(exchange) }}

func (x *exchange) recycle() {
	if cap(x.event) > smallBody || cap(x.body) > smallBody || len(x.call.Body) > smallBody || x.call.Rest != nil {
		return
	}
	*x = exchange{event: x.event[:0], body: x.body[:0]}
	exchanges.Put(x)
}

// ServeHTTP answers /fn/{name}/… and custom routes.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	t, err := g.match(r)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	if t.redirect != nil {
		t.redirect.ServeHTTP(w, r)
		return
	}
	if t.cors != nil {
		t.cors.HandlerFunc(w, r)
		if t.preflight {
			return
		}
	}
	if t.version == nil {
		var cookie string
		if t.version, r, cookie = t.alias.pick(r); cookie != "" {
			w.Header().Add("Set-Cookie", cookie)
		}
	}
	m, err := mannerOf(r, t.version)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	if m.later && m.event == hearth.NoEvent {
		g.async(w, r, &t, now)
		return
	}
	if t.version.Websocket && upgrades(r) {
		g.serveSocket(w, r, &t, now)
		return
	}
	if m.key != "" {
		g.once(w, r, &t, m, now)
		return
	}
	if _, broken := g.respond(w, r, &t, m, now); broken {
		// The status is out; only a broken connection can tell the client.
		panic(http.ErrAbortHandler)
	}
}

// manner is how a request asks to be treated.
type manner struct {
	event hearth.EventMode
	later bool   // it is stored and runs later
	key   string // under which it runs once, if it does not run later
}

// mannerOf reads the headers that say how to treat a request, and refuses those that
// would not be heeded. Those of calls that run later asyncRequest reads. Errors:
// CodeInvalid.
func mannerOf(r *http.Request, v *hearth.Version) (m manner, err error) {
	if h := r.Header[invocationType]; h != nil {
		if m.later, err = hearth.ParseInvocationType(h[0]); err != nil {
			return m, err
		}
	}
	if v.Config.CloudEvents && bringsEvents(r.Method) {
		if m.event, err = hearth.EventModeOf(r.Header); err != nil {
			return m, err
		}
	}
	if m.later = m.later || m.event == hearth.BatchedEvents; m.later {
		return m, nil
	}
	if err := hearth.CheckSyncHeaders(r.Header); err != nil {
		return m, err
	}
	m.key, err = idempotencyKey(r)
	return m, err
}

// bringsEvents tells whether a request with the method can carry events: others have no
// body that means something, and callers rely on GET and HEAD changing nothing.
func bringsEvents(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// respond answers a request as it asks to be treated. The record has no instance if none
// got the call; broken tells that the response broke off.
func (g *Gateway) respond(w http.ResponseWriter, r *http.Request, t *target, m manner, now time.Time) (rec hearth.Invocation, broken bool) {
	if m.event != hearth.NoEvent {
		return g.serveCloudEvents(w, r, t, m.later, now), false
	}
	return g.answer(w, r, t, now)
}

// answer answers a request to a function. broken tells that the response broke off.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, t *target, now time.Time) (rec hearth.Invocation, broken bool) {
	ctx, cancel, end := deadline(r.Context(), t.version, now)
	defer cancel()
	x := exchanges.Get().(*exchange)
	defer x.recycle()
	x.w, x.r, x.end, x.limit = w, r, end, g.maxResponse(t.version)
	x.rec = g.newRecord(t.alias, t.version, hearth.KindHTTP, g.public(t.version.Function, g.TraceOf(r.Header)), now)
	x.rec.Method, x.rec.Path, x.rec.HTTPRoute = r.Method, r.URL.Path, t.httpRoute()
	x.cors = t.cors != nil
	x.call.ID, x.call.Deadline, x.call.Kind, x.call.Trace = x.rec.ID, end, hearth.KindHTTP, x.rec.Running()

	var kept *entry
	if t.version.Config.Cache != nil {
		kept = g.cached(ctx, x, t, now)
	}
	var err error
	if kept != nil {
		err = x.replay(kept, time.Now())
	} else {
		err = g.call(ctx, x, t, now)
	}
	if x.bounded {
		http.NewResponseController(w).SetWriteDeadline(time.Time{}) //nolint:errcheck // it was set before
	}
	err = blame(err, x.end)
	broken = err != nil && x.wrote
	if err != nil && !broken {
		x.rec.Status = statusOf(err)
		writeError(w, r, &x.rec, err)
	}
	g.finish(&x.rec, err)
	return x.rec, broken
}

// call has the function answer x.
func (g *Gateway) call(ctx context.Context, x *exchange, t *target, now time.Time) error {
	if x.fill != nil {
		defer x.fill.end()
	}
	if err := allow(t.limit, now); err != nil {
		return err
	}
	counted, free, err := g.readBody(x, t.version, x.end)
	defer free()
	// What the body took to arrive is not the function's.
	x.begin = time.Now().Add(-x.rec.Timings.Queue)
	if err == nil {
		x.event = appendEvent(x.event[:0], x.r, t, x.rec.ID, x.call.Trace, now)
		x.call.Event = x.event
		err = g.invoke(ctx, t.version, &x.call, &x.rec, x)
	}
	if counted != nil {
		x.rec.BytesIn = counted.n.Load()
		if err != nil && t.version.RequestStream {
			// Unblocks the read of a body that nobody waits for any more.
			http.NewResponseController(x.w).SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // the connection is given up
		}
	}
	return err
}

// blame tells a caller that left from a deadline that passed: at the deadline
// reads and writes fail too.
func blame(err error, end time.Time) error {
	switch code := hearth.ErrorCode(err); {
	case code == hearth.CodeCanceled && !time.Now().Before(end):
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "the deadline passed while the caller was slow to send or to read", Err: err}
	case code == hearth.CodeTimeout && time.Now().Before(end):
		return clientError(err)
	}
	return err
}

// readBody takes the body before an instance is asked for, so that a slow sender
// does not hold one: a small one into x's buffer, a longer one into the spool.
// Only a function that reads bodies as they arrive gets it as a stream. The
// returned reader counts a body that is not small, nil otherwise; free is to be
// called after the call.
func (g *Gateway) readBody(x *exchange, v *hearth.Version, end time.Time) (counted *countingReader, free func(), err error) {
	free = func() {}
	n := x.r.ContentLength
	if n == 0 || x.r.Body == nil || x.r.Body == http.NoBody {
		return nil, free, nil
	}
	limit := g.maxRequest(v)
	if n > limit {
		return nil, free, tooLarge(limit)
	}
	rc := http.NewResponseController(x.w)
	// A little later, so that at the deadline the call is cancelled first.
	rc.SetReadDeadline(end.Add(100 * time.Millisecond)) //nolint:errcheck // a connection without deadlines is bounded by the server's
	if n > 0 && n <= smallBody {
		if cap(x.body) < int(n) {
			x.body = make([]byte, n)
		}
		x.body = x.body[:n]
		if _, err := io.ReadFull(x.r.Body, x.body); err != nil {
			return nil, free, bodyError(err)
		}
		x.call.Body, x.rec.BytesIn = x.body, n
		return nil, free, nil
	}
	counted = &countingReader{r: x.r.Body, limit: limit}
	if v.RequestStream {
		rc.EnableFullDuplex() //nolint:errcheck // HTTP/2 always is
		x.call.Rest = counted
		return counted, free, nil
	}
	body, err := g.spool.collect(counted)
	if err != nil {
		return counted, free, err
	}
	x.call.Body = body.head
	if body.rest != nil {
		x.call.Rest = body.rest
	}
	return counted, body.Close, nil
}

func bodyError(err error) error {
	e := &hearth.Error{Code: hearth.CodeInvalid, Message: "the request's body could not be read", Err: err}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		e.Code, e.Message = hearth.CodeTimeout, "the request's body did not arrive within the function's timeout"
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		e.Code, e.Message = hearth.CodeCanceled, "the caller went away before its body was complete"
	}
	return e
}

// Head implements guest.Sink.
func (x *exchange) Head(h *guest.Head) error {
	if err := validHead(h); err != nil {
		return err
	}
	x.head = h
	if x.fill != nil {
		x.fill.head(h)
	}
	return nil
}

// validHead tells whether a response can be sent. Errors: CodeFunction.
func validHead(h *guest.Head) error {
	if h.Status < 200 || h.Status > 599 {
		return invalidResponse("status " + strconv.Itoa(h.Status) + " is not between 200 and 599")
	}
	return checkHeaders(h)
}

func checkHeaders(h *guest.Head) error {
	for _, kv := range h.Headers {
		if !httpguts.ValidHeaderFieldName(kv[0]) {
			return invalidResponse("the header name " + strconv.Quote(kv[0]) + " is not valid")
		}
		if !httpguts.ValidHeaderFieldValue(kv[1]) {
			return invalidResponse("the value of header " + kv[0] + " is not valid")
		}
	}
	return nil
}

func invalidResponse(why string) error {
	return &hearth.Error{
		Code:     hearth.CodeFunction,
		Message:  "the function's response is not valid: " + why,
		Function: &hearth.FunctionError{Type: "Runtime.InvalidResponse", Message: why},
	}
}

// Data implements guest.Sink.
func (x *exchange) Data(p []byte, last bool) error {
	if x.fill != nil {
		x.fill.data(p, last)
	}
	x.rec.BytesOut += int64(len(p))
	if x.rec.BytesOut > x.limit {
		return responseTooLarge(x.limit)
	}
	if !x.wrote {
		length := -1
		if last {
			length = len(p)
		}
		x.writeHead(length)
	}
	if !x.bounded && (!last || len(p) > smallWrite) {
		x.boundWrites()
	}
	if len(p) > 0 && x.r.Method != http.MethodHead {
		if _, err := x.w.Write(p); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
			return clientError(err)
		}
	}
	if last && x.stream {
		x.rec.Timings.Run = x.run()
		x.w.Header().Set(http.TrailerPrefix+"Server-Timing", x.rec.Timings.ServerTiming())
	}
	return nil
}

// boundWrites gives writes the call's deadline: a client that does not read must
// not hold the instance for longer.
func (x *exchange) boundWrites() {
	x.bounded = true
	http.NewResponseController(x.w).SetWriteDeadline(x.end) //nolint:errcheck // a connection without deadlines is a test's
}

// Flush implements guest.Sink.
func (x *exchange) Flush() error {
	if !x.wrote {
		if x.head == nil {
			return nil
		}
		x.writeHead(-1)
	}
	return clientError(http.NewResponseController(x.w).Flush())
}

// run is how long the function has run so far.
func (x *exchange) run() time.Duration {
	t := x.rec.Timings
	return time.Since(x.begin) - t.Queue - t.Start - t.Init
}

func (x *exchange) writeHead(length int) {
	h := x.w.Header()
	for _, kv := range x.head.Headers {
		if dropResponseHeader(kv) || x.cors && corsHeader(kv[0]) || kv[0] == "server-timing" && claimsTimings(kv[1]) {
			continue
		}
		h.Add(kv[0], kv[1])
	}
	x.rec.Status = x.head.Status
	if x.conditions.notModified(x.rec.Status, h) {
		x.rec.Status = http.StatusNotModified
		removeContent(h)
	}
	x.rec.Timings.Run = x.run()
	setHeaders(h, &x.rec)
	if length >= 0 && x.rec.Status != http.StatusNoContent && x.rec.Status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(length)}
	}
	x.stream = length < 0
	x.wrote = true
	x.w.WriteHeader(x.rec.Status)
}

// stickyPrefix begins the cookies by which callers stay with a version.
const stickyPrefix = "hearth_"

// dropResponseHeader tells whether a function may not set the header, of a name and a
// value: it belongs to the connection, or to Hearth.
func dropResponseHeader(kv [2]string) bool {
	switch kv[0] {
	case "connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te",
		"trailer", "transfer-encoding", "upgrade", "content-length":
		return true
	case "set-cookie":
		// Browsers send a cookie without a name as its value, which may look like another.
		return strings.HasPrefix(strings.TrimLeft(kv[1], " \t="), stickyPrefix)
	}
	return strings.HasPrefix(kv[0], "hearth-")
}

// claimsTimings tells whether a function's Server-Timing header has one of the
// metrics by which Hearth tells how long a call took, which would be believed
// as much as Hearth's own.
func claimsTimings(value string) bool {
	for metric := range strings.SplitSeq(value, ",") {
		name, _, _ := strings.Cut(metric, ";")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "queue", "start", "init", "run":
			return true
		}
	}
	return false
}

// setHeaders writes what every answer of a function carries.
func setHeaders(h http.Header, rec *hearth.Invocation) {
	start := "warm"
	switch {
	case rec.Cold:
		start = "cold"
	case rec.Cached:
		start = "cached"
	}
	h["Hearth-Invocation-Id"] = []string{rec.ID}
	h["Hearth-Version"] = []string{strconv.Itoa(rec.Version)}
	h["Hearth-Start"] = []string{start}
	if rec.ColdReason != "" {
		h["Hearth-Cold-Reason"] = []string{string(rec.ColdReason)}
	}
	h["Server-Timing"] = append(h["Server-Timing"], rec.Timings.ServerTiming())
}

// problem is the body of an error, as of RFC 9457.
type problem struct {
	Type   string      `json:"type"`
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Detail string      `json:"detail"`
	Code   hearth.Code `json:"code"`
	Hint   string      `json:"hint,omitempty"`
	// ErrorType tells errors of the function apart: see docs/errors.md.
	ErrorType string `json:"error_type,omitempty"`
	// RetryAfter is the header Retry-After, in seconds.
	RetryAfter int64 `json:"retry_after_s,omitempty"`
	// Invocation is the id to look for in the function's log.
	Invocation string `json:"invocation,omitempty"`
}

// writeError answers with an error. What the function raised is for its owner:
// it is in its log, and its callers learn only that it failed.
func writeError(w http.ResponseWriter, r *http.Request, rec *hearth.Invocation, err error) {
	writeProblem(w, r, rec, err, 0)
}

// writeProblem does so with a status that is more exact than that of the error's
// code, unless it is 0.
func writeProblem(w http.ResponseWriter, r *http.Request, rec *hearth.Invocation, err error, status int) {
	e := hearth.AsError(err)
	if status == 0 {
		status = statusOf(err)
	}
	p := problem{
		Type: "about:blank", Status: status, Detail: e.Message,
		Code: e.Code, Hint: e.Hint, RetryAfter: e.RetrySeconds(),
	}
	p.Title = http.StatusText(p.Status)
	if p.Title == "" {
		p.Title = string(e.Code)
	}
	h := w.Header()
	if rec != nil {
		p.Invocation = rec.ID
		setHeaders(h, rec)
		if isFunctionError(err) {
			p.Detail, p.ErrorType = "the function failed", "Handler.Exception"
			if e.Function != nil && strings.HasPrefix(e.Function.Type, "Runtime.") {
				p.ErrorType = e.Function.Type
				p.Detail += " (" + e.Function.Type + ")"
			}
			p.Hint = "its owner finds the reason with: hearth logs " + rec.Function
		}
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Hearth-Error", string(e.Code))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	body, jsonErr := json.Marshal(p)
	if jsonErr != nil {
		body = []byte(`{}`)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		w.Write(body) //nolint:errcheck // the client is gone
	}
}
