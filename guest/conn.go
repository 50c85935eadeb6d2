package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// Options of a connection.
type Options struct {
	// Secret is what the guest got in HEARTH_SECRET.
	Secret string
	// OnLog receives output of the function: stream is 1 for stdout and 2 for
	// stderr, invocation the Call.ID it belongs to or "". It is called in order
	// from one goroutine and must neither block nor keep text. nil discards.
	OnLog func(invocation string, stream int, text []byte)
}

// Conn is the host's end of the stream to one guest. Its methods may be
// called from many goroutines.
type Conn struct {
	nc      net.Conn
	onLog   func(string, int, []byte)
	control chan controlFrame // READY and INIT_ERROR for Connect and Init
	done    chan struct{}     // closed when the reader has ended

	wmu  sync.Mutex // serialises frames; held while writing
	wbuf []byte     // guarded by wmu

	spare    atomic.Pointer[exchange]    // for the next call
	lastHead atomic.Pointer[decodedHead] // the newest RESPONSE head; most repeat

	mu      sync.Mutex
	calls   map[uint32]*call // guarded by mu; every call whose stream has not ended
	next    uint32           // guarded by mu; the next stream id
	err     error            // guarded by mu; why the connection ended
	settled chan struct{}    // guarded by mu; closed when calls becomes empty, nil if nobody waits
}

type controlFrame struct {
	typ     frameType
	payload []byte
}

// Hello is what the guest tells of itself.
type Hello struct {
	Protocol int    `json:"protocol"`
	Runtime  string `json:"runtime"` // "python3.11.7"
	PID      int    `json:"pid"`     // inside the sandbox
}

// Init tells a guest which function it is to serve.
type Init struct {
	Function string            `json:"function"`
	Version  int               `json:"version"`
	Handler  string            `json:"handler"`
	Code     string            `json:"code"` // directory inside the sandbox
	MemoryMB int64             `json:"memory_mb"`
	Env      map[string]string `json:"env"`
}

// Connect says hello on nc and waits until the guest's runtime is ready. It
// takes ownership of nc, also on error. Errors: CodeFunction if the guest ended
// or broke the protocol, CodeTimeout and CodeCanceled after ctx.
func Connect(ctx context.Context, nc net.Conn, opts Options) (*Conn, Hello, error) {
	c := &Conn{
		nc:      nc,
		onLog:   opts.OnLog,
		control: make(chan controlFrame, 1),
		done:    make(chan struct{}),
		calls:   map[uint32]*call{},
		next:    1,
	}
	go c.read()
	var hello Hello
	err := c.ask(ctx, typeHello, map[string]any{"protocol": protocolVersion, "secret": opts.Secret}, &hello)
	if err == nil && hello.Protocol != protocolVersion {
		err = hearth.Errorf(hearth.CodeUnavailable, "the guest speaks protocol %d, this server %d", hello.Protocol, protocolVersion).
			WithHint("rebuild the base images of this driver")
	}
	if err != nil {
		c.Close()
		return nil, Hello{}, err
	}
	return c, hello, nil
}

// Init loads the function. It may be called once. Errors: CodeFunction with
// Function set if the user's code failed to load; CodeTimeout and CodeCanceled
// after ctx. After an error the connection is of no more use.
func (c *Conn) Init(ctx context.Context, in Init) error {
	if in.Env == nil {
		in.Env = map[string]string{} // an object for the guest, never null
	}
	return c.ask(ctx, typeInit, in, &struct{}{})
}

// ask sends a control frame and decodes the READY that answers it.
func (c *Conn) ask(ctx context.Context, t frameType, question, answer any) error {
	payload, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if len(payload) > maxPayload {
		return hearth.Errorf(hearth.CodeInvalid, "the function's configuration has %d bytes, the limit is %d", len(payload), maxPayload)
	}
	// A guest that does not read must not hold the caller beyond ctx.
	stop := context.AfterFunc(ctx, func() { c.nc.SetWriteDeadline(time.Unix(1, 0)) })
	err = c.write(func(b []byte) []byte { return appendFrame(b, t, 0, payload) })
	if !stop() || err != nil {
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		return err
	}
	select {
	case f := <-c.control:
		return decodeControl(f, answer)
	case <-c.done:
		select { // it may have answered and ended at once
		case f := <-c.control:
			return decodeControl(f, answer)
		default:
			return c.Err()
		}
	case <-ctx.Done():
		return contextError(ctx)
	}
}

func decodeControl(f controlFrame, answer any) error {
	if f.typ == typeInitError {
		var fe hearth.FunctionError
		if err := json.Unmarshal(f.payload, &fe); err != nil {
			return brokenError(protocolErrorf("malformed INIT_ERROR: %v", err))
		}
		return functionError(&fe, "the function failed to load: ")
	}
	if err := json.Unmarshal(f.payload, answer); err != nil {
		return brokenError(protocolErrorf("malformed READY: %v", err))
	}
	return nil
}

// Shutdown asks the guest to finish its calls and exit within grace.
func (c *Conn) Shutdown(grace time.Duration) error {
	payload := fmt.Appendf(nil, `{"grace_ms":%d}`, grace.Milliseconds())
	return c.write(func(b []byte) []byte { return appendFrame(b, typeShutdown, 0, payload) })
}

// Done is closed when the stream has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the stream ended, nil while it lives. Errors: CodeFunction.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the stream; calls in flight fail. It waits for the reader.
func (c *Conn) Close() error {
	c.fail(brokenError(net.ErrClosed))
	<-c.done
	return nil
}

// Settled tells whether no call is under way, also none that was given up by
// its caller.
func (c *Conn) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls) == 0
}

// Settle waits until Settled. When ctx ends before, it breaks the stream and
// returns an error.
func (c *Conn) Settle(ctx context.Context) error {
	c.mu.Lock()
	if c.err != nil || len(c.calls) == 0 {
		err := c.err
		c.mu.Unlock()
		return err
	}
	if c.settled == nil {
		c.settled = make(chan struct{})
	}
	settled := c.settled
	c.mu.Unlock()
	select {
	case <-settled:
		return c.Err()
	case <-ctx.Done():
		c.Close()
		return contextError(ctx)
	}
}

// fail records why the stream ended and closes it. Only the first reason counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.nc.Close()
}

// write sends the frames that build appends, in one piece.
func (c *Conn) write(build func([]byte) []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.wbuf = build(c.wbuf[:0])
	_, err := c.nc.Write(c.wbuf)
	if cap(c.wbuf) > 2*chunkSize {
		c.wbuf = nil
	}
	if err != nil {
		c.fail(brokenError(err))
		return c.Err()
	}
	return nil
}

// read is the reader goroutine: it hands frames to their calls until the
// stream ends.
func (c *Conn) read() {
	err := c.readFrames()
	c.fail(brokenError(err))
	c.mu.Lock()
	for id, call := range c.calls {
		call.finish(c.err)
		delete(c.calls, id)
	}
	c.settleLocked()
	c.mu.Unlock()
	close(c.done)
}

func (c *Conn) settleLocked() {
	if len(c.calls) == 0 && c.settled != nil {
		close(c.settled)
		c.settled = nil
	}
}

func (c *Conn) readFrames() error {
	r := bufio.NewReaderSize(c.nc, 8<<10)
	var head [headerSize]byte
	var scratch []byte
	var pending *call // got frames it was not woken for, to wake it once for many
	for {
		if pending != nil && r.Buffered() < headerSize {
			pending.wake()
			pending = nil
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		h, err := parseHeader(head[:])
		if err != nil {
			return err
		}
		if pending != nil && (pending.stream != h.stream || r.Buffered() < int(h.length)) {
			pending.wake()
			pending = nil
		}
		switch h.typ {
		case typeData, typeEnd, typeResponse, typeError, typeWindow:
			if pending, err = c.deliver(h, r, &scratch); err != nil {
				return err
			}
			continue
		}
		if cap(scratch) < int(h.length) {
			scratch = make([]byte, h.length)
		}
		payload := scratch[:h.length]
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		switch h.typ {
		case typeLog:
			if err := c.log(h.stream, payload); err != nil {
				return err
			}
		case typeReady, typeInitError:
			select {
			case c.control <- controlFrame{h.typ, append([]byte(nil), payload...)}:
			default:
				return protocolErrorf("an answer nobody asked for")
			}
		}
		if cap(scratch) > chunkSize {
			scratch = nil
		}
	}
}

// deliver reads a call's frame from r and appends it to the call's queue. It
// returns the call if its caller was not woken for the frame.
func (c *Conn) deliver(h header, r *bufio.Reader, scratch *[]byte) (*call, error) {
	c.mu.Lock()
	call := c.calls[h.stream]
	if call == nil {
		known := h.stream%2 == 1 && h.stream < c.next
		c.mu.Unlock()
		if !known || h.typ != typeWindow { // a WINDOW may cross the call's end
			return nil, protocolErrorf("frame type %#x on stream %d, which is not open", uint8(h.typ), h.stream)
		}
		_, err := r.Discard(int(h.length))
		return nil, err
	}
	c.mu.Unlock()
	// The payload must be complete before the call's lock is taken: a guest that
	// stops in the middle of a frame must not hold up the caller.
	var payload []byte
	var err error
	if r.Buffered() >= int(h.length) {
		if payload, err = r.Peek(int(h.length)); err == nil {
			defer r.Discard(len(payload))
		}
	} else {
		*scratch = grow((*scratch)[:0], int(h.length))
		payload = *scratch
		_, err = io.ReadFull(r, payload)
	}
	if err != nil {
		return nil, err
	}
	last := h.typ == typeEnd || h.typ == typeError
	if last {
		// First this, so that a caller that has seen the end finds it settled.
		c.mu.Lock()
		delete(c.calls, h.stream)
		c.settleLocked()
		c.mu.Unlock()
	}
	if err := call.receive(h, payload); err != nil {
		call.finish(brokenError(err))
		return nil, err
	}
	if last {
		call.wake()
		return nil, nil
	}
	return call, nil
}

func (c *Conn) log(stream uint32, payload []byte) error {
	id := ""
	if stream != 0 {
		c.mu.Lock()
		call := c.calls[stream]
		known := stream%2 == 1 && stream < c.next
		c.mu.Unlock()
		if call != nil {
			id = call.id
		} else if !known {
			return protocolErrorf("LOG of stream %d, which never was", stream)
		}
	}
	fd := int(payload[0])
	if fd != 1 && fd != 2 {
		return protocolErrorf("LOG of descriptor %d", fd)
	}
	if c.onLog != nil && len(payload) > 1 {
		c.onLog(id, fd, payload[1:])
	}
	return nil
}

// open registers a call and gives it a stream id.
func (c *Conn) open(call *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.next > 1<<32-3 {
		return hearth.Errorf(hearth.CodeUnavailable, "this instance has used up its stream ids")
	}
	call.stream = c.next
	c.next += 2
	c.calls[call.stream] = call
	return nil
}

// drop forgets a call that was never sent.
func (c *Conn) drop(call *call) {
	c.mu.Lock()
	delete(c.calls, call.stream)
	c.settleLocked()
	c.mu.Unlock()
}

// grant lets the guest send n more bytes.
func (c *Conn) grant(stream uint32, n int) error {
	return c.write(func(b []byte) []byte {
		b = appendHeader(b, typeWindow, stream, 4)
		return binary.BigEndian.AppendUint32(b, uint32(n))
	})
}

// brokenError tells callers that the stream ended under them.
func brokenError(err error) error {
	var he *hearth.Error
	if errors.As(err, &he) {
		return err
	}
	var pe *protocolError
	if errors.As(err, &pe) {
		return &hearth.Error{
			Code:     hearth.CodeFunction,
			Message:  "the function broke the guest protocol",
			Hint:     "its code must not write to descriptors it did not open",
			Function: &hearth.FunctionError{Type: "Runtime.ProtocolError", Message: pe.what},
			Err:      err,
		}
	}
	return &hearth.Error{
		Code:     hearth.CodeFunction,
		Message:  "the function's process ended",
		Function: &hearth.FunctionError{Type: "Runtime.ExitError", Message: "the process ended before it answered"},
		Err:      err,
	}
}

func functionError(fe *hearth.FunctionError, prefix string) error {
	msg := fe.Message
	if fe.Type != "" {
		msg = fe.Type + ": " + msg
	}
	return &hearth.Error{Code: hearth.CodeFunction, Message: prefix + msg, Function: fe}
}

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "the deadline passed", Err: context.Cause(ctx)}
	}
	return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: context.Cause(ctx)}
}
