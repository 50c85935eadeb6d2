package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

const (
	// closeGrace is how long a handler may go on once its WebSocket is closed,
	// before its call is canceled.
	closeGrace = 10 * time.Second
	// goingAway says that the server or the function is no more, or that a
	// connection has had its time.
	goingAway = uint16(ws.StatusGoingAway)
)

// upgrades tells whether a request asks for a WebSocket.
func upgrades(r *http.Request) bool {
	return listed(r.Header["Upgrade"], "websocket") && listed(r.Header["Connection"], "upgrade")
}

// checkHandshake tells what is wrong with a request for a WebSocket.
func checkHandshake(r *http.Request) error {
	bad := func(why string) error {
		return hearth.Errorf(hearth.CodeInvalid, "the request for a WebSocket is not valid: %s", why).
			WithHint("use a client that speaks RFC 6455, version 13")
	}
	switch {
	case r.Method != http.MethodGet:
		return bad("its method is not GET")
	case !r.ProtoAtLeast(1, 1) || r.ProtoMajor > 1:
		return bad("it is not HTTP/1.1")
	case r.ContentLength != 0:
		return bad("it has a body")
	case r.Header.Get("Sec-Websocket-Version") != "13":
		return bad("its Sec-WebSocket-Version is not 13")
	case len(r.Header.Get("Sec-Websocket-Key")) != 24:
		return bad("its Sec-WebSocket-Key is not of 16 bytes in base64")
	}
	return nil
}

// sockets are the WebSockets that are open.
type sockets struct {
	mu      sync.Mutex
	open    map[*socket]struct{} // guarded by mu
	closing bool                 // guarded by mu; the server shuts down
	wg      sync.WaitGroup
	// gathered is how many bytes of messages are in memory that their functions have not
	// taken; gatheredOf of those of a function. Guarded by mu.
	gathered   int64
	gatheredOf map[string]int64
}

// take counts bytes of a message for a function; false means that they are too many of
// at most most, of which one function can use a quarter.
func (a *sockets) take(function string, n, most int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gathered+n > most || a.gatheredOf[function]+n > most/4 {
		return false
	}
	if a.gatheredOf == nil {
		a.gatheredOf = map[string]int64{}
	}
	a.gathered += n
	a.gatheredOf[function] += n
	return true
}

// give gives back what take counted.
func (a *sockets) give(function string, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gathered -= n
	if a.gatheredOf[function] -= n; a.gatheredOf[function] == 0 {
		delete(a.gatheredOf, function)
	}
}

// add takes s in; false means that the server shuts down.
func (a *sockets) add(s *socket) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return false
	}
	if a.open == nil {
		a.open = map[*socket]struct{}{}
	}
	a.open[s] = struct{}{}
	a.wg.Add(1)
	return true
}

func (a *sockets) remove(s *socket) {
	a.mu.Lock()
	delete(a.open, s)
	a.mu.Unlock()
	a.wg.Done()
}

// close closes those that match. It does not wait for them.
func (a *sockets) close(match func(function string) bool, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.open {
		if match(s.version.Function) {
			a.wg.Go(func() { s.shut(goingAway, reason) })
		}
	}
}

// CloseSockets closes all WebSockets, as the server shuts down, so that their
// clients connect anew elsewhere; no more are accepted. It does not wait.
func (g *Gateway) CloseSockets() {
	g.sockets.mu.Lock()
	g.sockets.closing = true
	g.sockets.mu.Unlock()
	g.sockets.close(func(string) bool { return true }, "the server is shutting down")
}

// WaitSockets returns when no WebSocket is left: after CloseSockets, and when
// their calls have ended.
func (g *Gateway) WaitSockets() { g.sockets.wg.Wait() }

// serveSocket answers a request for a WebSocket. It returns when the handler has
// accepted or refused it; the connection goes on without the HTTP server, which
// would keep its buffers for it.
func (g *Gateway) serveSocket(w http.ResponseWriter, r *http.Request, t *target, now time.Time) {
	if err := checkHandshake(r); err != nil {
		w.Header().Set("Sec-Websocket-Version", "13")
		writeError(w, r, nil, err)
		return
	}
	if t.cors != nil && r.Header["Origin"] != nil && !t.cors.OriginAllowed(r) {
		writeError(w, r, nil, hearth.Errorf(hearth.CodeDenied, "pages of %s may not connect to this function", clip(r.Header.Get("Origin"))).
			WithHint("its owner can allow the origin in cors of hearth.yaml"))
		return
	}
	if err := allow(t.limit, now); err != nil {
		writeError(w, r, nil, err)
		return
	}
	end := now.Add(time.Duration(t.version.Config.Timeout))
	s := &socket{
		g: g, version: t.version, limits: t.version.Config.Websocket.WithDefaults(),
		x: &exchange{w: w, r: r, end: end, limit: g.maxResponse(t.version), cors: t.cors != nil, begin: now}, answered: make(chan struct{}), accepting: make(chan func()),
	}
	s.x.rec = g.newRecord(t.alias, t.version, hearth.KindWebsocket, g.public(t.version.Function, g.TraceOf(r.Header)), now)
	s.x.rec.Method, s.x.rec.Path, s.x.rec.HTTPRoute = r.Method, r.URL.Path, t.httpRoute()
	if !g.sockets.add(s) {
		writeError(w, r, nil, hearth.Errorf(hearth.CodeUnavailable, "the server is shutting down").WithHint("try again in a moment"))
		return
	}
	call := &guest.SocketCall{
		ID: s.x.rec.ID, Deadline: now.Add(time.Duration(s.limits.MaxDuration)), Trace: s.x.rec.Running(),
		Event:      appendEvent(nil, r, t, s.x.rec.ID, s.x.rec.Running(), now),
		MaxMessage: int64(s.limits.MaxMessage), Leave: time.Duration(t.version.Config.Timeout),
	}
	go s.serve(r.Context(), call)
	for {
		select {
		case accept := <-s.accepting:
			accept()
			continue
		case <-s.answered:
		}
		break
	}
	if s.broken {
		panic(http.ErrAbortHandler)
	}
}

// serve runs the call of the connection.
func (s *socket) serve(handshake context.Context, call *guest.SocketCall) {
	defer s.g.sockets.remove(s)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(handshake))
	s.ctx, s.cancel = ctx, cancel
	defer cancel(nil)
	err := s.hold(handshake, call)
	x := s.x
	if s.nc == nil {
		err = blame(err, x.end)
		s.broken = err != nil && x.wrote
		if x.bounded {
			http.NewResponseController(x.w).SetWriteDeadline(time.Time{}) //nolint:errcheck // it was set before
		}
		if err != nil && !s.broken {
			x.rec.Status = hearth.AsError(err).Code.HTTPStatus()
			writeError(x.w, x.r, &x.rec, err)
		}
	} else {
		s.end(err)
	}
	s.g.finish(&x.rec, err)
	if s.nc == nil {
		close(s.answered)
	}
}

// hold has the function take the connection, and returns when it has done with
// it. The handshake ends with the function's timeout, or when its context does;
// once it is accepted only ctx ends the call.
func (s *socket) hold(handshake context.Context, call *guest.SocketCall) error {
	handshake, stop := context.WithDeadline(handshake, s.x.end)
	defer stop()
	rec, asked, lent := &s.x.rec, time.Now(), false
	route := asked.Sub(rec.StartedAt)
	err := s.g.cfg.Pool.Hold(handshake, s.version, func(handshake context.Context, inst Instance) error {
		lent = true
		rec.Instance = inst.ID
		rec.Cold, rec.ColdReason, rec.Timings = inst.Cold, inst.ColdReason, inst.Timings
		rec.Timings.Route = route
		s.accepts = context.AfterFunc(handshake, func() { s.cancel(context.Cause(handshake)) })
		defer s.accepts()
		begin := time.Now()
		err := inst.Conn.InvokeSocket(s.ctx, call, s)
		rec.Timings.Run = time.Since(begin)
		return err
	})
	if !lent {
		rec.Timings.Queue += time.Since(asked)
		rec.Timings.Route = route
	}
	var why *hearth.Error
	switch code := hearth.ErrorCode(err); {
	case code == hearth.CodeTimeout && lent && s.nc == nil:
		e := *hearth.AsError(err)
		e.Message = "the function did not accept the WebSocket within its timeout of " + s.version.Config.Timeout.String()
		e.Hint = "raise timeout in hearth.yaml, or accept it sooner; its log shows how far it came"
		return &e
	case code == hearth.CodeCanceled && errors.As(context.Cause(s.ctx), &why):
		return why
	}
	return err
}

// Head implements guest.SocketSink: the handler refuses the connection.
func (s *socket) Head(h *guest.Head) error { return s.x.Head(h) }

// Data implements guest.SocketSink.
func (s *socket) Data(p []byte, last bool) error { return s.x.Data(p, last) }

// Flush implements guest.SocketSink.
func (s *socket) Flush() error { return s.x.Flush() }

// Accept implements guest.SocketSink. From here on the connection is ours. It
// borrows the goroutine of the HTTP server, whose stack is large already; that of
// the call stays small for as long as the connection is open.
func (s *socket) Accept(h *guest.Head, in *guest.Socket) (err error) {
	done := make(chan struct{})
	s.accepting <- func() {
		defer close(done)
		err = s.accept(h, in)
	}
	<-done
	if err == nil {
		close(s.answered)
	}
	return err
}

func (s *socket) accept(h *guest.Head, in *guest.Socket) error {
	x := s.x
	header, protocol, err := acceptHeader(h, x.r)
	if err != nil {
		return err
	}
	if !s.accepts() { // the handshake has ended
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away"}
	}
	x.rec.Status = http.StatusSwitchingProtocols
	x.rec.Timings.Run = x.run()
	setHeaders(header, &x.rec)
	for _, cookie := range x.w.Header()["Set-Cookie"] { // by which the caller stays
		header.Add("Set-Cookie", cookie)
	}
	u := ws.HTTPUpgrader{Header: header, Timeout: stalled, Protocol: func(p string) bool { return p == protocol }}
	nc, rw, _, err := u.Upgrade(x.r, x.w)
	if err != nil {
		if nc != nil {
			nc.Close() //nolint:errcheck // it is given up
		}
		x.wrote = true
		return clientError(err)
	}
	var from io.Reader = nc
	if n := rw.Reader.Buffered(); n > 0 { // the client could not wait
		early, _ := rw.Reader.Peek(n) //nolint:errcheck // they are there
		from = io.MultiReader(bytes.NewReader(bytes.Clone(early)), nc)
	}
	// What an idle connection does not need it must not keep.
	x.w, x.r, x.head = nil, nil, nil
	s.open(nc, bufio.NewReaderSize(listening{from, &s.heard}, readSize), in)
	return nil
}

// acceptHeader returns the headers of the response to a handshake, and the
// subprotocol that the handler has chosen, "" if none.
func acceptHeader(h *guest.Head, r *http.Request) (header http.Header, protocol string, err error) {
	if err := checkHeaders(h); err != nil {
		return nil, "", err
	}
	header = http.Header{}
	for _, kv := range h.Headers {
		switch {
		case kv[0] == "sec-websocket-protocol":
			protocol = kv[1]
		case dropResponseHeader(kv), strings.HasPrefix(kv[0], "sec-websocket-"), kv[0] == "content-type",
			kv[0] == "server-timing" && claimsTimings(kv[1]):
		default:
			header.Add(kv[0], kv[1])
		}
	}
	if protocol != "" && !slices.ContainsFunc(r.Header["Sec-Websocket-Protocol"], func(line string) bool {
		return listed([]string{line}, protocol)
	}) {
		return nil, "", invalidResponse("it accepts a WebSocket with a subprotocol that the client does not offer")
	}
	return header, protocol, nil
}
