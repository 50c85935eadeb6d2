package guest

import (
	"context"
	"encoding/binary"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

// MessageKind tells what a message of a WebSocket is.
type MessageKind uint8

const (
	// MessageText is UTF-8.
	MessageText MessageKind = 1
	// MessageBinary is any bytes.
	MessageBinary MessageKind = 2
	// messageClose is the last one in its direction: a code and a reason.
	messageClose MessageKind = 8
)

const (
	// messageHead is what comes before the payload of a message: its kind and its
	// length.
	messageHead = 5
	// maxClose bounds the payload of messageClose, as in RFC 6455.
	maxClose = 125
)

// statusAccepted is that of a RESPONSE that accepts a WebSocket.
const statusAccepted = 101

// SocketCall is a WebSocket as the guest sees it.
type SocketCall struct {
	// ID, Deadline, Trace and Event are as in Call.
	ID       string
	Deadline time.Time
	Trace    hearth.Trace
	Event    []byte
	// MaxMessage bounds messages in both directions, in bytes.
	MaxMessage int64
	// Leave is how long the handler may go on once it was canceled.
	Leave time.Duration
}

// SocketSink receives what a handler does with a WebSocket. Its methods are called
// from InvokeSocket's goroutine.
type SocketSink interface {
	// Sink receives the response of a handler that refuses the connection.
	Sink
	// Accept is called instead of Head if it accepts. From then on s may be used.
	Accept(h *Head, s *Socket) error
	// Message is called for each piece of a message; p is valid only until it
	// returns. first and last tell whether it is the first or the last piece.
	Message(kind MessageKind, p []byte, first, last bool) error
	// Close is called when the handler closes the connection. Nothing follows, and
	// it is called at most once.
	Close(code uint16, reason string) error
}

// Socket sends a guest what its client sends. Its methods may not be called at
// the same time.
type Socket struct {
	up upload
}

// Send passes on a message, waiting until the guest has room for it. It returns
// an error if ctx ends first, or if the call has ended: then the rest of the
// message is not sent, and nothing may follow.
func (s *Socket) Send(ctx context.Context, kind MessageKind, payload []byte) error {
	head := appendMessageHead(make([]byte, 0, messageHead+min(len(payload), chunkSize-messageHead)), kind, len(payload))
	n := cap(head) - len(head) // so that a small one is one frame
	if !s.up.data(ctx, append(head, payload[:n]...)) || !s.up.data(ctx, payload[n:]) {
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "the call has ended", Err: context.Cause(ctx)}
	}
	return nil
}

// Close tells the guest that the connection is closed. Nothing may be sent after
// it. reason is cut where it is longer than 123 bytes.
func (s *Socket) Close(ctx context.Context, code uint16, reason string) {
	if len(reason) > maxClose-2 {
		reason = reason[:maxClose-2]
	}
	b := appendMessageHead(nil, messageClose, 2+len(reason))
	b = append(binary.BigEndian.AppendUint16(b, code), reason...)
	if s.up.data(ctx, b) {
		s.up.conn.send(ctx, headerSize, func(b []byte) []byte { //nolint:errcheck // the reader reports the end of the connection
			return appendHeader(b, typeEnd, s.up.call.stream, 0)
		})
	}
}

func appendMessageHead(b []byte, kind MessageKind, length int) []byte {
	return binary.BigEndian.AppendUint32(append(b, byte(kind)), uint32(length))
}

// InvokeSocket is Invoke for a WebSocket: it returns when the handler has ended.
// Its error is nil if the handler has returned; the sink knows whether it accepted
// the connection. Errors: as Invoke.
func (c *Conn) InvokeSocket(ctx context.Context, in *SocketCall, sink SocketSink) error {
	m, err := c.beginSocket(ctx, in, sink)
	if err != nil {
		return err
	}
	return c.receive(ctx, &exchange{call: m.socket.up.call}, nil, m)
}

// beginSocket sends INVOKE. It is apart from InvokeSocket because that waits for as
// long as the connection is open, and its stack with it.
func (c *Conn) beginSocket(ctx context.Context, in *SocketCall, sink SocketSink) (*messages, error) {
	size := len(in.Event) + len(in.ID) + 2*len(in.Trace.Tracestate) + 256
	if size > maxPayload {
		return nil, eventTooLarge(len(in.Event))
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	call := &call{
		id: in.ID, deadline: in.Deadline, leave: in.Leave, socket: true, credit: windowSize,
		notify: make(chan struct{}, 1), more: make(chan struct{}, 1),
	}
	invoke := &Call{ID: in.ID, Deadline: in.Deadline, Kind: hearth.KindWebsocket, Trace: in.Trace, Event: in.Event, maxMessage: in.MaxMessage}
	var openErr error
	err := c.send(ctx, size, func(b []byte) []byte {
		if openErr = c.open(call); openErr != nil {
			return b
		}
		at := len(b)
		b = appendInvoke(appendHeader(b, typeInvoke, call.stream, 0), invoke)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-headerSize))
		return b
	})
	if err == nil {
		err = openErr
	}
	if err != nil {
		return nil, c.unread(err)
	}
	in.Event = nil // the connection may last for hours
	return &messages{SocketSink: sink, conn: c, socket: &Socket{upload{c, call}}, max: in.MaxMessage}, nil
}

// messages is the Sink of a WebSocket: it takes the messages out of the body of
// the response.
type messages struct {
	SocketSink
	conn   *Conn
	socket *Socket
	max    int64

	accepted, closed bool
	head             [messageHead]byte
	have             int // bytes of head
	left             int // bytes of the payload that are still to come
	first            bool
	close            []byte // the payload of messageClose
}

// Head implements Sink.
func (m *messages) Head(h *Head) error {
	if h.Status != statusAccepted {
		return m.SocketSink.Head(h)
	}
	m.accepted = true
	return m.Accept(h, m.socket)
}

// Data implements Sink.
func (m *messages) Data(p []byte, last bool) error {
	if !m.accepted {
		return m.SocketSink.Data(p, last)
	}
	for len(p) > 0 {
		if m.closed {
			return m.conn.violation("a message after the close of a WebSocket")
		}
		n, err := m.step(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	if last && m.have > 0 {
		return &hearth.Error{
			Code:    hearth.CodeFunction,
			Message: "the handler ended in the middle of a WebSocket message",
			Hint:    "let it wait for the tasks that send",
			Function: &hearth.FunctionError{
				Type: "Runtime.InvalidResponse", Message: "the handler ended in the middle of a WebSocket message",
			},
		}
	}
	return nil
}

// step takes a head or a piece of a payload off p and returns its length.
func (m *messages) step(p []byte) (n int, err error) {
	if m.have < messageHead {
		n = copy(m.head[m.have:], p)
		if m.have += n; m.have < messageHead {
			return n, nil
		}
		length := binary.BigEndian.Uint32(m.head[1:])
		switch kind := MessageKind(m.head[0]); {
		case kind != MessageText && kind != MessageBinary && kind != messageClose:
			return n, m.conn.violation("a WebSocket message of kind %d", kind)
		case kind == messageClose && (length < 2 || length > maxClose):
			return n, m.conn.violation("the close of a WebSocket has %d bytes", length)
		case int64(length) > m.max && kind != messageClose:
			return n, m.conn.violation("a WebSocket message of %d bytes is over the limit of %d", length, m.max)
		}
		m.left, m.first = int(length), true
		if m.left > 0 {
			return n, nil
		}
	}
	piece := p[n:min(len(p), n+m.left)]
	m.left -= len(piece)
	kind, first := MessageKind(m.head[0]), m.first
	m.first = false
	if m.left == 0 {
		m.have = 0
	}
	if kind != messageClose {
		return n + len(piece), m.Message(kind, piece, first, m.left == 0)
	}
	m.close = append(m.close, piece...)
	if m.left > 0 {
		return n + len(piece), nil
	}
	m.closed = true
	code, reason := binary.BigEndian.Uint16(m.close), string(m.close[2:])
	m.close = nil
	if !ValidCloseCode(code) || !utf8.ValidString(reason) {
		return n, m.conn.violation("a WebSocket cannot be closed with code %d and reason %q", code, clip(reason, 80))
	}
	return n + len(piece), m.SocketSink.Close(code, reason)
}

// Flush implements Sink.
func (m *messages) Flush() error {
	if m.accepted {
		return nil
	}
	return m.SocketSink.Flush()
}

// ValidCloseCode tells whether an endpoint may close a WebSocket with the code.
func ValidCloseCode(code uint16) bool {
	return 1000 <= code && code <= 1003 || 1007 <= code && code <= 1014 || 3000 <= code && code <= 4999
}
