package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// Call is one invocation as the guest sees it.
type Call struct {
	// ID is the invocation's id.
	ID string
	// Deadline is told to the handler; Invoke's context enforces it. A call that
	// its caller has left may go on until then (see Options.Grace).
	Deadline time.Time
	Kind     hearth.Kind
	// Trace is the span of the function, none if it is zero.
	Trace hearth.Trace
	// Event is the payload 2.0 event as JSON for KindHTTP, else empty.
	Event []byte
	// Body is the request's body, or the event of other kinds, as far as it is
	// already in memory; Rest is what follows, nil if nothing. Both may still be
	// read for a moment after Invoke has returned, unless Rest is nil and Body
	// has at most 64 KiB.
	Body []byte
	Rest io.Reader

	maxMessage int64 // of a WebSocket, else 0
}

// Head is the beginning of a response. It is shared: do not change it.
type Head struct {
	// Status is 0 for all but KindHTTP.
	Status int `json:"status"`
	// Headers are name and value pairs, names in lower case.
	Headers [][2]string `json:"headers"`
}

// Sink receives a response. Its methods are called from Invoke's goroutine.
type Sink interface {
	// Head is called once, before Data.
	Head(*Head) error
	// Data is called for each piece of the body; p is valid only until it
	// returns. last is true if it is known that nothing follows; an empty body
	// makes one call with an empty p.
	Data(p []byte, last bool) error
	// Flush is called when what came so far is all there is for now.
	Flush() error
}

// call is the state of a Call under way.
type call struct {
	id       string
	deadline time.Time
	leave    time.Duration // the call may go on that long once its caller has left, if not 0
	stream   uint32
	socket   bool // it is a WebSocket, which may be idle for long

	notify chan struct{} // constant; wakes the caller; capacity 1
	more   chan struct{} // wakes the upload, nil if there is none; capacity 1

	overdue *time.Timer // guarded by Conn.mu; runs once the caller has left

	mu       sync.Mutex
	frames   []queuedFrame // guarded by mu; not yet taken by the caller
	buf      []byte        // guarded by mu; payloads of frames
	err      error         // guarded by mu; why the connection failed
	ended    bool          // guarded by mu; END or ERROR came, or the connection failed
	started  bool          // guarded by mu; RESPONSE came
	received int           // guarded by mu; DATA bytes not granted again yet
	credit   int           // guarded by mu; DATA bytes the guest is ready for
	dropped  bool          // guarded by mu; the caller is gone
}

type queuedFrame struct {
	typ        frameType
	start, end int
}

// maxCredit bounds the window a guest may give, in bytes.
const maxCredit = 1 << 30

// receive queues one frame. It is called from the reader only. The queue is
// bounded: it holds one RESPONSE, DATA of one window as one piece however small
// its frames were, and one END or ERROR.
func (c *call) receive(h header, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch h.typ {
	case typeWindow:
		inc := binary.BigEndian.Uint32(payload)
		if int64(c.credit)+int64(inc) > maxCredit {
			return protocolErrorf("the window grew over %d bytes", maxCredit)
		}
		c.credit += int(inc)
		select {
		case c.more <- struct{}{}:
		default:
		}
		return nil
	case typeResponse:
		if c.started {
			return protocolErrorf("a second RESPONSE on stream %d", h.stream)
		}
		c.started = true
	case typeData:
		if !c.started {
			return protocolErrorf("DATA before RESPONSE on stream %d", h.stream)
		}
		c.received += len(payload)
		if c.received > windowSize {
			return protocolErrorf("stream %d exceeded its window", h.stream)
		}
		if len(payload) == 0 {
			return nil
		}
	case typeEnd:
		if !c.started {
			return protocolErrorf("END before RESPONSE on stream %d", h.stream)
		}
		c.ended = true
	case typeError:
		c.ended = true
	}
	if c.dropped {
		return nil
	}
	start := len(c.buf)
	c.buf = append(room(c.buf, len(payload)), payload...)
	if n := len(c.frames); n > 0 && h.typ == typeData && c.frames[n-1].typ == typeData {
		c.frames[n-1].end = len(c.buf)
		return nil
	}
	c.frames = append(c.frames, queuedFrame{h.typ, start, len(c.buf)})
	return nil
}

// finish ends the call because the connection did.
func (c *call) finish(err error) {
	c.mu.Lock()
	if !c.ended {
		c.ended, c.err = true, err
	}
	c.mu.Unlock()
	c.wake()
}

func (c *call) wake() {
	select {
	case c.notify <- struct{}{}:
	default:
	}
}

// batch is what the caller took off a call's queue at once.
type batch struct {
	frames []queuedFrame
	buf    []byte
	ended  bool
	err    error
}

// take swaps the call's queue with the empty one of b.
func (c *call) take(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames, b.frames = b.frames[:0], c.frames
	c.buf, b.buf = b.buf[:0], c.buf
	b.ended, b.err = c.ended, c.err
}

// exchange is what Invoke needs for one call. A connection keeps a spare one,
// as most have one call at a time.
type exchange struct {
	call  *call
	batch batch
}

func (c *Conn) newExchange() *exchange {
	if x := c.spare.Swap(nil); x != nil {
		return x
	}
	return &exchange{call: &call{notify: make(chan struct{}, 1)}}
}

// recycle keeps x for another call. This one must have ended: then the reader
// only wakes it once more at most, which the next one survives.
func (c *Conn) recycle(x *exchange) {
	call := x.call
	call.mu.Lock()
	call.frames, call.buf, call.err = call.frames[:0], release(call.buf), nil
	call.ended, call.started, call.dropped = false, false, false
	call.received, call.credit = 0, 0
	call.mu.Unlock()
	x.batch = batch{frames: x.batch.frames[:0], buf: release(x.batch.buf)}
	c.spare.Store(x)
}

// Invoke runs one call and passes its response to sink. It returns when the
// response is complete, or when ctx ends: then the guest is asked to cancel,
// and the call may stay under way for a while (see Abandoned). An error after
// sink.Head was called means that the response is broken off. Errors:
// CodeFunction if the handler failed or its process ended, CodeTimeout and
// CodeCanceled after ctx, CodeUnavailable after Close, CodeInvalid for an event
// that is too large; an error of Rest or sink is returned as it is. See ErrUnread
// for calls that may be repeated: Rest and sink were not used for them.
func (c *Conn) Invoke(ctx context.Context, in *Call, sink Sink) error {
	size := len(in.Event) + len(in.ID) + 2*len(in.Trace.Tracestate) + 224
	if size > maxPayload {
		return eventTooLarge(len(in.Event))
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	inline := len(in.Body) <= chunkSize && in.Rest == nil
	x := c.newExchange()
	x.call.id, x.call.deadline = in.ID, in.Deadline
	if !inline {
		x.call.more = make(chan struct{}, 1)
		x.call.credit = windowSize
	}
	if inline {
		size += len(in.Body) + 2*headerSize
	}
	var openErr error
	err := c.send(ctx, size, func(b []byte) []byte {
		// Here, so that stream ids are sent in the order they are given out.
		if openErr = c.open(x.call); openErr != nil {
			return b
		}
		at := len(b)
		b = appendHeader(b, typeInvoke, x.call.stream, 0)
		b = appendInvoke(b, in)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-headerSize))
		if inline && len(in.Body) > 0 {
			b = appendFrame(b, typeData, x.call.stream, in.Body)
			b = appendHeader(b, typeEnd, x.call.stream, 0)
		}
		return b
	})
	if err == nil {
		err = openErr
	}
	if err != nil {
		return c.unread(err)
	}
	var failed <-chan error
	if !inline {
		uploadCtx, stop := context.WithCancel(ctx)
		// It does not wait: Rest may block until its owner, the HTTP server,
		// closes it.
		defer stop()
		failed = c.startUpload(uploadCtx, x.call, in.Body, in.Rest)
	}
	err = c.receive(ctx, x, failed, sink)
	if x.batch.ended && inline {
		c.recycle(x)
	}
	return err
}

func eventTooLarge(size int) error {
	return hearth.Errorf(hearth.CodeInvalid, "the request's headers make an event of %d bytes, the limit is %d", size, maxPayload).
		WithHint("send fewer or shorter headers and query parameters")
}

func appendInvoke(b []byte, in *Call) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, in.ID...)
	b = append(b, `","deadline_ms":`...)
	b = strconv.AppendInt(b, in.Deadline.UnixMilli(), 10)
	b = append(b, `,"kind":"`...)
	b = append(b, in.Kind...)
	b = append(b, '"')
	if len(in.Body) > 0 || in.Rest != nil || in.maxMessage > 0 {
		b = append(b, `,"body":true`...)
	}
	if in.maxMessage > 0 {
		b = append(b, `,"max_message":`...)
		b = strconv.AppendInt(b, in.maxMessage, 10)
	}
	if in.Trace.TraceID != (hearth.TraceID{}) {
		b = in.Trace.AppendTraceparent(append(b, `,"traceparent":"`...))
		b = append(b, '"')
		if in.Trace.Tracestate != "" { // printable ASCII, in which Go quotes as JSON does
			b = strconv.AppendQuote(append(b, `,"tracestate":`...), in.Trace.Tracestate)
		}
	}
	if len(in.Event) > 0 {
		b = append(b, `,"event":`...)
		b = append(b, in.Event...)
	}
	return append(b, '}')
}

// receive passes frames to sink until the call has ended.
func (c *Conn) receive(ctx context.Context, x *exchange, failed <-chan error, sink Sink) error {
	granted, begun := 0, false
	for {
		select {
		case <-x.call.notify:
		case <-ctx.Done():
			err := contextError(ctx)
			c.abandon(x.call, reason(err))
			return err
		case err := <-failed:
			c.abandon(x.call, "client")
			return err
		}
		x.call.take(&x.batch)
		// If it failed before anything of its response was passed on, a plain error
		// is better than a response that breaks off, perhaps before its first byte.
		// What a WebSocket sends is closed with a code of its own.
		if n := len(x.batch.frames); !begun && !x.call.socket && n > 0 && x.batch.frames[n-1].typ == typeError {
			f := x.batch.frames[n-1]
			return c.decodeError(x.batch.buf[f.start:f.end])
		}
		if !begun && x.batch.err != nil {
			return x.batch.err
		}
		begun = begun || len(x.batch.frames) > 0
		for i, f := range x.batch.frames {
			payload := x.batch.buf[f.start:f.end]
			switch f.typ {
			case typeResponse:
				head, err := c.decodeHead(payload)
				if err != nil {
					return c.violation("malformed RESPONSE: %v", err)
				}
				if err := sink.Head(head); err != nil {
					c.abandon(x.call, "client")
					return err
				}
			case typeData:
				last := i+1 < len(x.batch.frames) && x.batch.frames[i+1].typ == typeEnd
				if err := sink.Data(payload, last); err != nil {
					c.abandon(x.call, "client")
					return err
				}
				granted += len(payload)
				if granted >= windowSize/2 && !x.batch.ended {
					x.call.mu.Lock()
					x.call.received -= granted
					x.call.mu.Unlock()
					if err := c.grant(x.call.stream, granted); err != nil {
						return err
					}
					granted = 0
				}
			case typeEnd:
				if i == 0 || x.batch.frames[i-1].typ != typeData {
					return sink.Data(nil, true)
				}
				return nil
			case typeError:
				return c.decodeError(payload)
			}
		}
		if x.batch.err != nil {
			return x.batch.err
		}
		if len(x.batch.frames) > 0 {
			if err := sink.Flush(); err != nil {
				c.abandon(x.call, "client")
				return err
			}
		}
		if x.call.socket {
			release(x.batch.buf)
			x.batch = batch{}
		}
	}
}

// abandon asks the guest to cancel a call whose caller leaves. The call keeps
// its stream until the guest ends it, which it must do in time.
func (c *Conn) abandon(call *call, reason string) {
	call.mu.Lock()
	call.dropped = true
	call.frames, call.buf = nil, nil
	call.mu.Unlock()
	c.mu.Lock()
	open := c.calls[call.stream] == call
	if open {
		c.abandoned++
		rest := max(time.Until(call.deadline), 0)
		if call.leave > 0 {
			rest = min(rest, call.leave)
		}
		call.overdue = time.AfterFunc(rest+c.opts.Grace, func() { c.stopOverdue(call) })
	}
	c.mu.Unlock()
	if !open {
		return
	}
	c.post(func(b []byte) []byte { //nolint:errcheck // without a stream there is nothing to cancel
		return appendFrame(b, typeCancel, call.stream, []byte(`{"reason":"`+reason+`"}`))
	})
}

// stopOverdue ends the connection unless the call has ended in time after all.
func (c *Conn) stopOverdue(call *call) {
	c.mu.Lock()
	open := c.calls[call.stream] == call
	c.mu.Unlock()
	if open {
		c.fail(overdueError())
	}
}

func reason(err error) string {
	if hearth.ErrorCode(err) == hearth.CodeTimeout {
		return "deadline"
	}
	return "client"
}

// decodedHead pairs a RESPONSE payload with what it means.
type decodedHead struct {
	raw  string
	head Head
}

func (c *Conn) decodeHead(payload []byte) (*Head, error) {
	if d := c.lastHead.Load(); d != nil && d.raw == string(payload) {
		return &d.head, nil
	}
	d := &decodedHead{raw: string(payload)}
	if err := decodeObject(payload, &d.head); err != nil {
		return nil, err
	}
	for _, kv := range d.head.Headers {
		// Whoever filters headers relies on it.
		if strings.ContainsFunc(kv[0], func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
			return nil, fmt.Errorf("the header name %q is not in lower case", clip(kv[0], 80))
		}
	}
	if len(payload) <= maxSpare/2 {
		c.lastHead.Store(d)
	}
	return &d.head, nil
}

func (c *Conn) decodeError(payload []byte) error {
	var e struct {
		Kind string `json:"kind"`
		hearth.FunctionError
	}
	if err := decodeObject(payload, &e); err != nil {
		return c.violation("malformed ERROR: %v", err)
	}
	return c.functionError(&e.FunctionError, "")
}
