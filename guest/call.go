package guest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// Call is one invocation as the guest sees it.
type Call struct {
	// ID is the invocation's id.
	ID string
	// Deadline is told to the handler; Invoke's context enforces it.
	Deadline time.Time
	Kind     hearth.Kind
	// Event is the payload 2.0 event as JSON for KindHTTP, else empty.
	Event []byte
	// Body is the request's body, or the event of KindEvent, as far as it is
	// already in memory; Rest is what follows, nil if nothing. Both may still be
	// read for a moment after Invoke has returned, unless Rest is nil and Body
	// has at most 64 KiB.
	Body []byte
	Rest io.Reader
}

// Head is the beginning of a response. It is shared: do not change it.
type Head struct {
	// Status is 0 for KindEvent.
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
	id     string
	stream uint32

	notify chan struct{} // wakes the caller; capacity 1

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

// receive queues one frame. It is called from the reader only.
func (c *call) receive(h header, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch h.typ {
	case typeWindow:
		if len(payload) != 4 {
			return protocolErrorf("a WINDOW of %d bytes", len(payload))
		}
		inc := binary.BigEndian.Uint32(payload)
		if uint64(c.credit)+uint64(inc) > 1<<30 {
			return protocolErrorf("the window grew over 1 GiB")
		}
		c.credit += int(inc)
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
	case typeEnd:
		if !c.started {
			return protocolErrorf("END before RESPONSE on stream %d", h.stream)
		}
		if len(payload) != 0 {
			return protocolErrorf("an END with a payload")
		}
		c.ended = true
	case typeError:
		c.ended = true
	}
	if c.dropped {
		return nil
	}
	start := len(c.buf)
	c.buf = append(c.buf, payload...)
	c.frames = append(c.frames, queuedFrame{h.typ, start, len(c.buf)})
	return nil
}

func grow(b []byte, n int) []byte { return slices.Grow(b, n)[:len(b)+n] }

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
	credit int
}

// take swaps the call's queue with the empty one of b.
func (c *call) take(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames, b.frames = b.frames[:0], c.frames
	c.buf, b.buf = b.buf[:0], c.buf
	b.ended, b.err = c.ended, c.err
	b.credit, c.credit = c.credit, 0
}

// exchange is what Invoke needs for one call. A connection keeps a spare one,
// as most have one call at a time.
type exchange struct {
	call  *call
	batch batch
}

// maxSpare bounds the buffers an idle connection keeps, in bytes.
const maxSpare = 16 << 10

func (c *Conn) newExchange() *exchange {
	if x := c.spare.Swap(nil); x != nil {
		return x
	}
	return &exchange{call: &call{notify: make(chan struct{}, 1)}}
}

// recycle keeps x for another call. The call must have ended: then the reader
// only wakes it once more at most, which the next one survives.
func (c *Conn) recycle(x *exchange) {
	if cap(x.call.buf)+cap(x.batch.buf) > maxSpare {
		return
	}
	select {
	case <-x.call.notify:
	default:
	}
	*x.call = call{notify: x.call.notify, frames: x.call.frames[:0], buf: x.call.buf[:0]}
	x.batch = batch{frames: x.batch.frames[:0], buf: x.batch.buf[:0]}
	c.spare.Store(x)
}

// Invoke runs one call and passes its response to sink. It returns when the
// response is complete, or when ctx ends: then the guest is asked to cancel,
// and the call may stay under way for a while (see Settle). An error after
// sink.Head was called means that the response is broken off. Errors:
// CodeFunction if the handler failed or its process ended, CodeTimeout and
// CodeCanceled after ctx; an error of Rest or sink is returned as it is.
func (c *Conn) Invoke(ctx context.Context, in *Call, sink Sink) error {
	x := c.newExchange()
	x.call.id = in.ID
	if err := c.open(x.call); err != nil {
		return err
	}
	stream := x.call.stream
	inline := len(in.Body) <= chunkSize && in.Rest == nil
	size := len(in.Event) + len(in.ID) + 128
	if size > maxPayload {
		c.drop(x.call)
		return hearth.Errorf(hearth.CodeInvalid, "the request's headers make an event of %d bytes, the limit is %d", len(in.Event), maxPayload)
	}
	if inline {
		size += len(in.Body)
	}
	if d, ok := ctx.Deadline(); ok && size > chunkSize/2 {
		// So much may not fit into the socket; a guest that does not read must
		// not hold the caller beyond its deadline.
		c.nc.SetWriteDeadline(d)
		defer c.nc.SetWriteDeadline(time.Time{})
	}
	err := c.write(func(b []byte) []byte {
		at := len(b)
		b = appendHeader(b, typeInvoke, stream, 0)
		b = appendInvoke(b, in)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-headerSize))
		if inline && len(in.Body) > 0 {
			b = appendFrame(b, typeData, stream, in.Body)
			b = appendHeader(b, typeEnd, stream, 0)
		}
		return b
	})
	if err != nil {
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		return err
	}
	var up *upload
	if !inline {
		up = c.startUpload(ctx, stream, in)
		defer up.stop()
	}
	err = c.receive(ctx, x, up, sink)
	if x.batch.ended && up == nil {
		c.recycle(x)
	}
	return err
}

func appendInvoke(b []byte, in *Call) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, in.ID...)
	b = append(b, `","deadline_ms":`...)
	b = strconv.AppendInt(b, in.Deadline.UnixMilli(), 10)
	b = append(b, `,"kind":"`...)
	b = append(b, in.Kind...)
	b = append(b, '"')
	if len(in.Body) > 0 || in.Rest != nil {
		b = append(b, `,"body":true`...)
	}
	if len(in.Event) > 0 {
		b = append(b, `,"event":`...)
		b = append(b, in.Event...)
	}
	return append(b, '}')
}

// receive passes frames to sink until the call has ended.
func (c *Conn) receive(ctx context.Context, x *exchange, up *upload, sink Sink) error {
	granted := 0
	failed := up.failure()
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
		up.grant(x.batch.credit)
		for i, f := range x.batch.frames {
			payload := x.batch.buf[f.start:f.end]
			switch f.typ {
			case typeResponse:
				head, err := c.decodeHead(payload)
				if err != nil {
					c.fail(brokenError(err))
					return brokenError(err)
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
				return decodeError(payload)
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
	}
}

// abandon asks the guest to cancel a call whose caller leaves. The call keeps
// its stream until the guest ends it.
func (c *Conn) abandon(call *call, reason string) {
	call.mu.Lock()
	call.dropped = true
	ended := call.ended
	call.mu.Unlock()
	if ended {
		return
	}
	// In a goroutine: the guest may not be reading, and the caller has left.
	// It ends at the latest when the connection is closed.
	go c.write(func(b []byte) []byte {
		return appendFrame(b, typeCancel, call.stream, []byte(`{"reason":"`+reason+`"}`))
	})
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
	if err := json.Unmarshal(payload, &d.head); err != nil {
		return nil, protocolErrorf("malformed RESPONSE: %v", err)
	}
	c.lastHead.Store(d)
	return &d.head, nil
}

func decodeError(payload []byte) error {
	var e struct {
		Kind string `json:"kind"`
		hearth.FunctionError
	}
	if err := json.Unmarshal(payload, &e); err != nil {
		return brokenError(protocolErrorf("malformed ERROR: %v", err))
	}
	return functionError(&e.FunctionError, "")
}

// upload sends a body that is too large for one piece, or not yet complete.
type upload struct {
	c      *Conn
	cancel context.CancelFunc
	failed chan error
	more   chan struct{} // capacity 1; credit grew
	done   chan struct{}

	mu     sync.Mutex
	credit int // guarded by mu
}

func (c *Conn) startUpload(ctx context.Context, stream uint32, in *Call) *upload {
	ctx, cancel := context.WithCancel(ctx)
	u := &upload{
		c: c, cancel: cancel, credit: windowSize,
		failed: make(chan error, 1), more: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go func() {
		defer close(u.done)
		if err := u.send(ctx, stream, in); err != nil {
			u.failed <- err
		}
	}()
	return u
}

func (u *upload) send(ctx context.Context, stream uint32, in *Call) error {
	for p := in.Body; len(p) > 0; {
		n, err := u.acquire(ctx, min(len(p), chunkSize))
		if err != nil {
			return nil //nolint:nilerr // the caller sees the end of ctx itself
		}
		if err := u.data(stream, p[:n]); err != nil {
			return nil //nolint:nilerr // the reader reports the end of the connection
		}
		p = p[n:]
	}
	if in.Rest != nil {
		buf := make([]byte, chunkSize)
		for {
			n, err := in.Rest.Read(buf)
			for p := buf[:n]; len(p) > 0; {
				m, err := u.acquire(ctx, len(p))
				if err != nil {
					return nil //nolint:nilerr // as above
				}
				if err := u.data(stream, p[:m]); err != nil {
					return nil //nolint:nilerr // as above
				}
				p = p[m:]
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	u.c.write(func(b []byte) []byte { return appendHeader(b, typeEnd, stream, 0) })
	return nil
}

func (u *upload) data(stream uint32, p []byte) error {
	return u.c.write(func(b []byte) []byte { return appendFrame(b, typeData, stream, p) })
}

// acquire takes up to n bytes of credit, waiting for the first.
func (u *upload) acquire(ctx context.Context, n int) (int, error) {
	for {
		u.mu.Lock()
		got := min(n, u.credit)
		u.credit -= got
		u.mu.Unlock()
		if got > 0 {
			return got, nil
		}
		select {
		case <-u.more:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-u.c.done:
			return 0, u.c.Err()
		}
	}
}

// grant adds credit; u may be nil.
func (u *upload) grant(n int) {
	if u == nil || n == 0 {
		return
	}
	u.mu.Lock()
	u.credit += n
	u.mu.Unlock()
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// failure tells that the body could not be read; nil for a nil u.
func (u *upload) failure() <-chan error {
	if u == nil {
		return nil
	}
	return u.failed
}

// stop ends the upload. It does not wait: Rest may block until its owner,
// the HTTP server, closes it.
func (u *upload) stop() { u.cancel() }
