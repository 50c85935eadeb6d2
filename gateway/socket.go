package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

const (
	// readSize is the buffer of a connection: small messages are read with one
	// call of the system, and idle connections have nothing else.
	readSize = 512
	// stalled is how long a client may take nothing of what is sent to it.
	stalled = time.Minute
	// closeWait is how long a client may take to answer a close.
	closeWait = 2 * time.Second
)

// socket is one WebSocket: what the client sends goes to the call of a function,
// and what its handler sends to the client. Two goroutines belong to it: that of
// the call, which writes messages, and that of read.
type socket struct {
	g       *Gateway
	version *hearth.Version
	limits  hearth.Websocket
	x       *exchange       // the handshake and the record
	ctx     context.Context // of the call
	cancel  context.CancelCauseFunc
	// accepts ends the handshake's hold on the call; false if it has ended the call.
	accepts  func() bool
	answered chan struct{} // closed when the handshake is
	broken   bool          // its answer broke off
	// accepting takes what the HTTP server's goroutine is to do.
	accepting chan func()

	// Set by open, then constant.
	nc     net.Conn // nil before
	r      *bufio.Reader
	in     *guest.Socket
	opened time.Time
	tick   *time.Timer
	ended  chan struct{} // closed when read has ended

	heard   atomic.Int64 // when something of the client arrived, in ns since 1970
	passed  atomic.Int64 // when a message passed, either way
	bytesIn atomic.Int64
	waits   atomic.Bool // read waits for the function

	writing sync.Mutex // held while a frame is written

	mu     sync.Mutex
	closed bool        // guarded by mu; a close frame was sent, or is about to be
	code   uint16      // guarded by mu; of it
	reason string      // guarded by mu
	pinged int64       // guarded by mu; when the client was asked for a sign of life
	grace  *time.Timer // guarded by mu; cancels the call some time after the close
}

// open makes nc the connection.
func (s *socket) open(nc net.Conn, r *bufio.Reader, in *guest.Socket) {
	now := time.Now()
	s.heard.Store(now.UnixNano())
	s.passed.Store(now.UnixNano())
	s.r, s.in, s.opened, s.ended = r, in, now, make(chan struct{})
	setUserTimeout(nc)
	s.mu.Lock()
	s.nc = nc
	closed, code, reason := s.closed, s.code, s.reason
	s.tick = time.AfterFunc(s.nextLook(now), s.look)
	s.mu.Unlock()
	if closed { // the server began to shut down meanwhile
		s.sendClose(code, reason)
	}
	go s.read()
}

// Message implements guest.SocketSink.
func (s *socket) Message(kind guest.MessageKind, p []byte, first, last bool) error {
	s.x.rec.BytesOut += int64(len(p))
	s.passed.Store(time.Now().UnixNano())
	op := ws.OpContinuation
	if first {
		op = ws.OpBinary
		if kind == guest.MessageText {
			op = ws.OpText
		}
	}
	if s.isClosed() {
		return nil // nobody reads it; the handler learns so
	}
	if err := s.write(op, last, p); err != nil && !s.isClosed() {
		return gone(err)
	}
	return nil
}

// Close implements guest.SocketSink.
func (s *socket) Close(code uint16, reason string) error {
	s.shut(code, reason)
	return nil
}

func gone(err error) error {
	return &hearth.Error{Code: hearth.CodeCanceled, Message: "the client went away without closing the WebSocket", Err: err}
}

func (s *socket) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// frames lends buffers for small frames.
var frames = sync.Pool{New: func() any { return new([4 << 10]byte) }}

// write writes one frame.
func (s *socket) write(op ws.OpCode, fin bool, p []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.writeLocked(op, fin, p)
}

func (s *socket) writeLocked(op ws.OpCode, fin bool, p []byte) error {
	s.mu.Lock()
	if !s.closed { // else the deadline is that of the close
		s.nc.SetWriteDeadline(time.Now().Add(stalled)) //nolint:errcheck // Write tells
	}
	s.mu.Unlock()
	b := frames.Get().(*[4 << 10]byte)
	defer frames.Put(b)
	out := b[:2]
	out[0], out[1] = byte(op), 0
	if fin {
		out[0] |= 0x80
	}
	switch n := len(p); {
	case n <= 125:
		out[1] = byte(n)
	case n <= 0xffff:
		out[1] = 126
		out = binary.BigEndian.AppendUint16(out, uint16(n))
	default:
		out[1] = 127
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	n := min(len(p), len(b)-len(out))
	if _, err := s.nc.Write(append(out, p[:n]...)); err != nil || n == len(p) {
		return err
	}
	_, err := s.nc.Write(p[n:])
	return err
}

// shut closes the connection: it tells the client, whose answer read waits for
// before it tells the function. The first reason counts.
func (s *socket) shut(code uint16, reason string) {
	if s.mark(code, reason) {
		s.sendClose(code, reason)
	}
}

// mark sets why the connection is closed; false if that is set already or, as it is
// not open yet, open does the rest.
func (s *socket) mark(code uint16, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed, s.code, s.reason = true, code, reason
	return s.nc != nil
}

// sendClose sends a close frame, gives the client some time to answer, and the
// handler some to end.
func (s *socket) sendClose(code uint16, reason string) {
	s.mu.Lock()
	s.grace = time.AfterFunc(closeGrace, func() {
		s.cancel(hearth.Errorf(hearth.CodeTimeout, "the handler did not end within %s after its WebSocket was closed", closeGrace).
			WithHint("let it end when there is nothing more to receive"))
	})
	s.mu.Unlock()
	wait := time.Now().Add(closeWait)
	s.nc.SetWriteDeadline(wait) //nolint:errcheck // also of what is being written: the client may be stuck
	s.nc.SetReadDeadline(wait)  //nolint:errcheck // read notices
	var p []byte
	if code != uint16(ws.StatusNoStatusRcvd) {
		p = append(binary.BigEndian.AppendUint16(nil, code), reason...)
	}
	if err := s.write(ws.OpClose, true, p); err != nil {
		s.nc.Close() //nolint:errcheck // read notices
	}
}

// end closes the connection after the call, whose error is err.
func (s *socket) end(err error) {
	code, reason := uint16(ws.StatusNormalClosure), ""
	if err != nil {
		code = uint16(ws.StatusInternalServerError)
		if isFunctionError(err) {
			reason = "the function failed"
		}
	}
	s.shut(code, reason)
	s.cancel(nil) // read must not wait for the function any more
	<-s.ended
	s.tick.Stop()
	s.mu.Lock()
	if s.grace != nil {
		s.grace.Stop()
	}
	s.mu.Unlock()
	s.x.rec.BytesIn = s.bytesIn.Load()
}

// look does what time brings: it asks a silent client for a sign of life, and
// closes what has been idle or open for long enough.
func (s *socket) look() {
	now := time.Now()
	idle := now.UnixNano() - s.passed.Load()
	s.mu.Lock()
	pinged := s.pinged
	s.mu.Unlock()
	waits := s.waits.Load() // first: heard is set when it has waited
	heard := s.heard.Load()
	silent := now.UnixNano() - max(heard, pinged)
	switch {
	case s.isClosed():
		return
	case now.Sub(s.opened) >= time.Duration(s.limits.MaxDuration):
		s.shut(goingAway, "it was open for "+s.limits.MaxDuration.String())
		return
	case idle >= int64(s.limits.IdleTimeout):
		s.shut(goingAway, "no message passed for "+s.limits.IdleTimeout.String())
		return
	case pinged > heard && silent >= int64(s.g.cfg.Ping) && !waits:
		s.nc.Close() //nolint:errcheck // the client is gone; read notices
		return
	case (pinged <= heard || waits) && silent >= int64(s.g.cfg.Ping)/2:
		if s.writing.TryLock() { // else the client has enough to read
			err := s.writeLocked(ws.OpPing, true, nil)
			s.writing.Unlock()
			pinged = now.UnixNano()
			if err != nil {
				s.lose(err)
				return
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinged = pinged
	s.tick.Reset(s.nextLook(now))
}

// lose gives up a client that is gone, although read waits for the function.
func (s *socket) lose(err error) {
	if s.mark(uint16(ws.StatusAbnormalClosure), "") {
		s.cancel(gone(err))
	}
	s.nc.Close() //nolint:errcheck // read notices
}

// nextLook is when look has something to do again.
func (s *socket) nextLook(now time.Time) time.Duration {
	return max(time.Millisecond, min(s.g.cfg.Ping,
		s.opened.Add(time.Duration(s.limits.MaxDuration)).Sub(now),
		time.Duration(s.passed.Load()+int64(s.limits.IdleTimeout)-now.UnixNano())))
}
