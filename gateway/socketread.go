package gateway

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/hearthrun/hearth/guest"
)

// gatherSize is how much of a message is read at a time, and what each connection
// may have in memory without its being counted.
const gatherSize = 64 << 10

// listening notes when something arrives.
type listening struct {
	io.Reader
	heard *atomic.Int64 // in ns since 1970
}

// Read implements io.Reader.
func (l listening) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// frameError is what a client must not send, and the code its connection is closed
// with.
type frameError struct {
	code ws.StatusCode
	why  string
}

func (b *frameError) Error() string { return b.why }

// read passes what the client sends to the function until the connection is
// closed, and closes it then.
func (s *socket) read() {
	defer close(s.ended)
	defer s.nc.Close() //nolint:errcheck // nothing is left to send
	code, reason, err := s.receive()
	var bad *frameError
	switch {
	case err == nil: // the client closes, or has answered
		s.shut(code, reason)
	case errors.As(err, &bad):
		s.shut(uint16(bad.code), bad.why)
		// Else what it is still sending would reset the connection before it has read
		// why it is closed.
		s.nc.SetReadDeadline(time.Now().Add(closeWait)) //nolint:errcheck // Copy ends
		io.Copy(io.Discard, s.r)                        //nolint:errcheck // it is discarded
	case s.mark(uint16(ws.StatusAbnormalClosure), ""):
		s.cancel(gone(err))
		return
	}
	s.nc.Close() //nolint:errcheck // the function may take longer
	s.mu.Lock()
	code, reason = s.code, s.reason
	s.mu.Unlock()
	s.in.Close(s.ctx, code, reason)
}

// receive passes messages on until the client closes the connection, with the
// returned code, or cannot be read any more.
func (s *socket) receive() (code uint16, reason string, err error) {
	var m gathered
	defer func() { s.drop(&m) }()
	state := ws.StateServerSide
	for {
		h, err := ws.ReadHeader(s.r)
		if errors.Is(err, ws.ErrHeaderLengthMSB) || errors.Is(err, ws.ErrHeaderLengthUnexpected) {
			return 0, "", &frameError{ws.StatusProtocolError, "a frame has no valid length"}
		}
		if err != nil {
			return 0, "", err
		}
		if err := ws.CheckHeader(h, state); err != nil {
			return 0, "", &frameError{ws.StatusProtocolError, err.Error()}
		}
		if h.OpCode.IsControl() {
			closed, code, reason, err := s.control(h)
			if err != nil || closed {
				return code, reason, err
			}
			continue
		}
		if h.OpCode != ws.OpContinuation {
			m.kind = guest.MessageBinary
			if h.OpCode == ws.OpText {
				m.kind = guest.MessageText
			}
		}
		if err := s.gather(&m, h); err != nil {
			return 0, "", err
		}
		if state = state.Set(ws.StateFragmented); h.Fin {
			state = state.Clear(ws.StateFragmented)
			if err := s.pass(&m); err != nil {
				return 0, "", err
			}
		}
	}
}

// control takes a control frame.
func (s *socket) control(h ws.Header) (closed bool, code uint16, reason string, err error) {
	b := frames.Get().(*[4 << 10]byte)
	defer frames.Put(b)
	p := b[:h.Length]
	if _, err := io.ReadFull(s.r, p); err != nil {
		return false, 0, "", err
	}
	ws.Cipher(p, h.Mask, 0)
	switch h.OpCode {
	case ws.OpPing:
		if !s.isClosed() {
			err = s.write(ws.OpPong, true, p)
		}
		return false, 0, "", err
	case ws.OpPong:
		return false, 0, "", nil
	}
	if len(p) == 0 {
		return true, uint16(ws.StatusNoStatusRcvd), "", nil
	}
	if len(p) == 1 {
		return false, 0, "", &frameError{ws.StatusProtocolError, "a close has half a code"}
	}
	code, reason = binary.BigEndian.Uint16(p), string(p[2:])
	if !guest.ValidCloseCode(code) {
		return false, 0, "", &frameError{ws.StatusProtocolError, "a close has a code that is not to be sent"}
	}
	if !utf8.ValidString(reason) {
		return false, 0, "", &frameError{ws.StatusInvalidFramePayloadData, "the reason of a close is not UTF-8"}
	}
	return true, code, reason, nil
}

// gathered is a message that is being read.
type gathered struct {
	kind    guest.MessageKind
	buf     []byte
	lent    *[4 << 10]byte // of frames, what buf began with
	counted int64          // by sockets.take
}

// gather reads the payload of a frame.
func (s *socket) gather(m *gathered, h ws.Header) error {
	if h.Length > int64(s.limits.MaxMessage)-int64(len(m.buf)) {
		return &frameError{ws.StatusMessageTooBig, "a message has more than " + s.limits.MaxMessage.String()}
	}
	if m.buf == nil {
		m.lent = frames.Get().(*[4 << 10]byte)
		m.buf = m.lent[:0]
	}
	for pos := 0; pos < int(h.Length); {
		n := min(int(h.Length)-pos, gatherSize)
		if len(m.buf)+n > gatherSize {
			if !s.g.sockets.take(s.version.Function, int64(n), s.g.cfg.MaxMessages) {
				return &frameError{ws.StatusCode(1013), "too many long messages are under way; try again later"}
			}
			m.counted += int64(n)
		}
		start := len(m.buf)
		m.buf = slices.Grow(m.buf, n)[:start+n]
		if _, err := io.ReadFull(s.r, m.buf[start:]); err != nil {
			return err
		}
		ws.Cipher(m.buf[start:], h.Mask, pos)
		pos += n
	}
	return nil
}

// pass hands a complete message to the function.
func (s *socket) pass(m *gathered) error {
	defer s.drop(m)
	if m.kind == guest.MessageText && !utf8.Valid(m.buf) {
		return &frameError{ws.StatusInvalidFramePayloadData, "a text message is not UTF-8"}
	}
	if s.isClosed() {
		return nil // it crossed the close
	}
	s.passed.Store(time.Now().UnixNano())
	s.bytesIn.Add(int64(len(m.buf)))
	s.waits.Store(true)
	// An error means that the call has ended: then what is read is of no interest.
	s.in.Send(s.ctx, m.kind, m.buf) //nolint:errcheck // end closes the connection
	s.heard.Store(time.Now().UnixNano())
	s.waits.Store(false)
	return nil
}

// drop lets go of what was gathered.
func (s *socket) drop(m *gathered) {
	if m.counted > 0 {
		s.g.sockets.give(s.version.Function, m.counted)
	}
	if m.lent != nil {
		frames.Put(m.lent)
	}
	*m = gathered{}
}
