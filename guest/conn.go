package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	// Grace is how long a call that its caller has left may go on after its
	// deadline, or after it was left if that is later. Then the connection breaks
	// the stream, as nothing else stops a handler that does not stop itself.
	// 0 means 500 ms.
	Grace time.Duration
	// OnSettled is called when the guest has ended a call that its caller had
	// left; not for calls that end with the connection (see Done). It is called
	// from one goroutine, the one that reads, so it must neither block nor Close
	// the connection. nil is allowed.
	OnSettled func()
}

// defaultGrace is Options.Grace if that is 0.
const defaultGrace = 500 * time.Millisecond

// Conn is the host's end of the stream to one guest. Its methods may be
// called from many goroutines.
type Conn struct {
	nc      net.Conn
	opts    Options
	control chan controlFrame // READY and INIT_ERROR for Connect and Init
	done    chan struct{}     // closed when the reader has ended

	w *writer

	mask func(string) string // Init.Mask; set before anything of the function runs

	spare    atomic.Pointer[exchange]    // for the next call
	lastHead atomic.Pointer[decodedHead] // the newest RESPONSE head; most repeat

	mu        sync.Mutex
	calls     map[uint32]*call // guarded by mu; every call whose stream has not ended
	abandoned int              // guarded by mu; how many of calls were left by their callers
	next      uint32           // guarded by mu; the next stream id
	err       error            // guarded by mu; why the connection ended
	asked     frameType        // guarded by mu; what READY is to answer, else 0
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
	// Files are written into FilesDir, a directory inside the sandbox that the guest
	// makes, before the function is loaded. Their names have no slash.
	Files    map[string][]byte `json:"files,omitempty"`
	FilesDir string            `json:"files_dir,omitempty"`
	// Mask changes what the guest tells of errors, for example to hide secrets. nil
	// changes nothing. It may be called from many goroutines.
	Mask func(string) string `json:"-"`
}

// Connect says hello on nc and waits until the guest's runtime is ready. It
// takes ownership of nc, also on error. Errors: CodeFunction if the guest ended
// or broke the protocol, CodeTimeout and CodeCanceled after ctx.
func Connect(ctx context.Context, nc net.Conn, opts Options) (*Conn, Hello, error) {
	c := newConn(nc, opts)
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

func newConn(nc net.Conn, opts Options) *Conn {
	if opts.Grace == 0 {
		opts.Grace = defaultGrace
	}
	c := &Conn{
		nc:      nc,
		opts:    opts,
		control: make(chan controlFrame, 1),
		done:    make(chan struct{}),
		calls:   map[uint32]*call{},
		next:    1,
	}
	c.w = newWriter(nc, func(err error) { c.fail(brokenError(err)) })
	go c.read()
	return c
}

// Ready tells how a function that was loaded wants to be called.
type Ready struct {
	// RequestStream is true if the handler reads request bodies as they arrive.
	RequestStream bool `json:"request_stream"`
	// Websocket is true if the handler takes WebSockets.
	Websocket bool `json:"websocket"`
	// Snapshot is true if the guest can be asked by PrepareSnapshot.
	Snapshot bool `json:"snapshot"`
	// Concurrent is true if several calls make progress at the same time. The
	// guest runs others one after the other.
	Concurrent bool `json:"concurrent"`
}

// Init loads the function. It may be called once. Errors: CodeFunction with
// Function set if the user's code failed to load; CodeTimeout and CodeCanceled
// after ctx. After an error the connection is of no more use.
func (c *Conn) Init(ctx context.Context, in Init) (Ready, error) {
	if in.Env == nil {
		in.Env = map[string]string{} // an object for the guest, never null
	}
	c.mask = in.Mask
	var ready Ready
	err := c.ask(ctx, typeInit, in, &ready)
	return ready, err
}

// InitArchive is Init for a guest that does not have the function's files:
// archive, a tar stream such as WriteArchive makes, is sent along, and unpacked
// into in.Code, which must be in a place where the guest may write. Errors: as
// Init, and those of archive as they are. archive may still be read for a moment
// after InitArchive has returned.
func (c *Conn) InitArchive(ctx context.Context, in Init, archive io.Reader) (Ready, error) {
	if in.Env == nil {
		in.Env = map[string]string{}
	}
	c.mask = in.Mask
	head := struct {
		Init
		Archive bool `json:"archive"`
	}{in, true}
	if err := c.question(ctx, typeInit, head); err != nil {
		return Ready{}, err
	}
	uploadCtx, stop := context.WithCancel(ctx)
	defer stop()
	stream0 := &call{credit: math.MaxInt} // it has no window
	failed := c.startUpload(uploadCtx, stream0, nil, archive)
	var ready Ready
	err := c.answerTo(ctx, failed, &ready)
	return ready, err
}

// ask sends a control frame and decodes the READY that answers it.
func (c *Conn) ask(ctx context.Context, t frameType, question, answer any) error {
	if err := c.question(ctx, t, question); err != nil {
		return err
	}
	return c.answerTo(ctx, nil, answer)
}

func (c *Conn) question(ctx context.Context, t frameType, question any) error {
	payload, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if len(payload) > maxPayload {
		return hearth.Errorf(hearth.CodeInvalid, "the function's configuration has %d bytes, the limit is %d", len(payload), maxPayload)
	}
	c.mu.Lock()
	c.asked = t
	err = c.err
	c.mu.Unlock()
	if err != nil {
		return c.unread(err)
	}
	return c.unread(c.send(ctx, len(payload), func(b []byte) []byte { return appendFrame(b, t, 0, payload) }))
}

// answerTo decodes the READY that answers the question before, unless what
// belongs to the question has failed.
func (c *Conn) answerTo(ctx context.Context, failed <-chan error, answer any) error {
	select {
	case f := <-c.control:
		return c.decodeControl(f, answer)
	case err := <-failed:
		return err
	case <-c.done:
		select { // it may have answered and ended at once
		case f := <-c.control:
			return c.decodeControl(f, answer)
		default:
		}
		if err := c.Err(); !errors.Is(err, syscall.ECONNRESET) {
			return err
		}
		// What the kernel says of a stream that was closed with something unread in
		// it, and the question is all there was.
		return c.unread(c.Err())
	case <-ctx.Done():
		return contextError(ctx)
	}
}

func (c *Conn) decodeControl(f controlFrame, answer any) error {
	var fe hearth.FunctionError
	if f.typ == typeInitError {
		answer = &fe
	}
	if err := decodeObject(f.payload, answer); err != nil {
		return c.violation("malformed READY or INIT_ERROR: %v", err)
	}
	if f.typ == typeInitError {
		return c.functionError(&fe, "the function failed to load: ")
	}
	return nil
}

// decodeObject decodes the head of a frame.
func decodeObject(payload []byte, v any) error {
	if trimmed := bytes.TrimLeft(payload, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return errors.New("not a JSON object")
	}
	return json.Unmarshal(payload, v)
}

// violation ends the stream because of a frame that only its receiver could
// judge. It returns the error for that call.
func (c *Conn) violation(format string, args ...any) error {
	err := brokenError(protocolErrorf(format, args...))
	c.fail(err)
	return err
}

// Shutdown asks the guest to finish its calls and exit within grace. It does
// not wait for either.
func (c *Conn) Shutdown(grace time.Duration) error {
	payload := fmt.Appendf(nil, `{"grace_ms":%d}`, grace.Milliseconds())
	return c.post(func(b []byte) []byte { return appendFrame(b, typeShutdown, 0, payload) })
}

// Done is closed when the stream has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the stream ended, nil while it lives. Errors: CodeFunction
// if the guest ended it, CodeUnavailable after Close.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the stream; calls in flight fail with CodeUnavailable. It waits
// for the goroutines of the connection, and may be called again.
func (c *Conn) Close() error {
	c.fail(&hearth.Error{Code: hearth.CodeUnavailable, Message: "the instance was stopped", Err: net.ErrClosed})
	<-c.done
	c.w.wait()
	return nil
}

// Abandoned returns how many calls were left by their callers and have not
// ended yet: a guest may still be busy with them (see Options.Grace).
func (c *Conn) Abandoned() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.abandoned
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

// post and send are those of writer; their errors tell why the stream ended.
func (c *Conn) post(build func([]byte) []byte) error { return c.writeError(c.w.post(build)) }

func (c *Conn) send(ctx context.Context, size int, build func([]byte) []byte) error {
	return c.writeError(c.w.send(ctx, size, build))
}

func (c *Conn) writeError(err error) error {
	if err == nil {
		return nil
	}
	var he *hearth.Error
	if errors.As(err, &he) {
		return err
	}
	return c.Err()
}

// read is the reader goroutine: it hands frames to their calls until the
// stream ends.
func (c *Conn) read() {
	err := c.readFrames()
	c.fail(brokenError(err))
	c.mu.Lock()
	for _, call := range c.calls {
		call.finish(c.err)
		c.removeLocked(call)
	}
	c.mu.Unlock()
	close(c.done)
}

// removeLocked forgets a call that has ended. It tells whether its caller had
// left it.
func (c *Conn) removeLocked(call *call) (abandoned bool) {
	delete(c.calls, call.stream)
	if call.overdue != nil {
		call.overdue.Stop()
		call.overdue = nil
		c.abandoned--
		abandoned = true
	}
	return abandoned
}

func (c *Conn) readFrames() error {
	r := bufio.NewReaderSize(c.nc, 8<<10)
	var pending *call // got frames it was not woken for, to wake it once for many
	for {
		if pending != nil && r.Buffered() < headerSize {
			pending.wake()
			pending = nil
		}
		head, err := r.Peek(headerSize)
		if err != nil {
			return err
		}
		h, err := parseHeader(head)
		if err != nil {
			return err
		}
		r.Discard(headerSize) //nolint:errcheck // it was peeked
		// A guest that stops in the middle of a frame holds up its call only.
		if pending != nil && pending.stream != h.stream {
			pending.wake()
			pending = nil
		}
		if err := c.receiveFrame(h, r, &pending); err != nil {
			return err
		}
	}
}

// receiveFrame reads the payload of h and hands it to whom it is for. pending
// becomes the call that is still to be woken for it.
func (c *Conn) receiveFrame(h header, r *bufio.Reader, pending **call) error {
	var payload []byte
	var err error
	switch n := int(h.length); {
	case n <= r.Size():
		if payload, err = r.Peek(n); err != nil {
			return err
		}
		defer r.Discard(n) //nolint:errcheck // it was peeked
	default:
		payload = slices.Grow(room(nil, n), n)[:n]
		defer release(payload)
		_, err = io.ReadFull(r, payload)
	}
	if err != nil {
		return err
	}
	switch h.typ {
	case typeLog:
		return c.log(h.stream, payload)
	case typeReady, typeInitError:
		return c.answer(h.typ, payload)
	default:
		*pending, err = c.deliver(h, payload)
		return err
	}
}

// deliver appends a call's frame to the call's queue. It returns the call if
// its caller was not woken for the frame.
func (c *Conn) deliver(h header, payload []byte) (*call, error) {
	c.mu.Lock()
	call := c.calls[h.stream]
	if call == nil {
		known := c.knownLocked(h.stream)
		c.mu.Unlock()
		if !known || h.typ != typeWindow { // a WINDOW may cross the call's end
			return nil, protocolErrorf("frame type %#x on stream %d, which is not open", uint8(h.typ), h.stream)
		}
		return nil, nil
	}
	last := h.typ == typeEnd || h.typ == typeError
	if !last {
		c.mu.Unlock()
		return call, call.receive(h, payload)
	}
	// Both under the lock, so that a caller that has seen the end does not
	// abandon the call any more.
	err := call.receive(h, payload)
	abandoned := false
	if err == nil {
		abandoned = c.removeLocked(call)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	call.wake()
	if abandoned && c.opts.OnSettled != nil {
		c.opts.OnSettled()
	}
	return nil, nil
}

// knownLocked tells whether stream is or was that of a call.
func (c *Conn) knownLocked(stream uint32) bool { return stream%2 == 1 && stream < c.next }

// answer passes on what ask waits for.
func (c *Conn) answer(t frameType, payload []byte) error {
	c.mu.Lock()
	asked := c.asked
	c.asked = 0
	c.mu.Unlock()
	if asked == 0 || t == typeInitError && asked != typeInit {
		return protocolErrorf("frame type %#x, which nobody asked for", uint8(t))
	}
	select {
	case c.control <- controlFrame{t, bytes.Clone(payload)}:
		return nil
	default: // ask was left by its caller, and called again
		return protocolErrorf("two answers at a time")
	}
}

func (c *Conn) log(stream uint32, payload []byte) error {
	id := ""
	if stream != 0 {
		c.mu.Lock()
		call := c.calls[stream]
		known := c.knownLocked(stream)
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
	if c.opts.OnLog != nil && len(payload) > 1 {
		c.opts.OnLog(id, fd, payload[1:])
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

// grant lets the guest send n more bytes.
func (c *Conn) grant(stream uint32, n int) error {
	return c.post(func(b []byte) []byte {
		b = appendHeader(b, typeWindow, stream, 4)
		return binary.BigEndian.AppendUint32(b, uint32(n))
	})
}

// ErrUnread is among the causes of an error of Init, InitArchive and Invoke if
// the guest is known to have ended before it had read what it was asked: then the
// function has seen nothing of it, and another instance can be asked instead.
var ErrUnread = errors.New("the guest had ended before")

// unread adds ErrUnread to an error of sending a question, if that is because
// the stream has ended.
func (c *Conn) unread(err error) error {
	if err == nil || c.Err() == nil {
		return err
	}
	e := *hearth.AsError(err)
	e.Err = errors.Join(ErrUnread, e.Err)
	return &e
}

// overdueError tells callers that the stream was ended under them because
// another call went on for too long.
func overdueError() error {
	const why = "the instance was stopped because a call on it did not end after its deadline"
	return &hearth.Error{
		Code:     hearth.CodeFunction,
		Message:  why,
		Hint:     "let the handler stop when its call is canceled, or give the function a longer timeout",
		Function: &hearth.FunctionError{Type: "Runtime.ExitError", Message: why},
	}
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

// Bounds of what is kept of an error, in bytes: it goes into records and logs.
const (
	maxErrorType    = 256
	maxErrorMessage = 8 << 10
	maxErrorStack   = 64 << 10
)

func (c *Conn) functionError(fe *hearth.FunctionError, prefix string) error {
	if c.mask != nil {
		fe.Type, fe.Message = c.mask(fe.Type), c.mask(fe.Message)
		for i, s := range fe.Stack {
			fe.Stack[i] = c.mask(s)
		}
	}
	fe.Type, fe.Message = clip(fe.Type, maxErrorType), clip(fe.Message, maxErrorMessage)
	room := maxErrorStack
	for i, s := range fe.Stack {
		if room -= len(s) + 16; room < 0 {
			fe.Stack = append(fe.Stack[:i:i], "…")
			break
		}
	}
	msg := fe.Message
	if fe.Type != "" {
		msg = fe.Type + ": " + msg
	}
	return &hearth.Error{Code: hearth.CodeFunction, Message: prefix + msg, Function: fe}
}

// clip shortens s to n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

func contextError(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "the deadline passed", Err: context.Cause(ctx)}
	}
	return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: context.Cause(ctx)}
}
