package guesttest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frame types.
const (
	hello      = 0x01
	initialize = 0x02
	invoke     = 0x03
	data       = 0x04
	end        = 0x05
	cancel     = 0x06
	ping       = 0x07
	shutdown   = 0x08
	window     = 0x09
	snapshot   = 0x0a
	restored   = 0x0b
	ready      = 0x11
	initError  = 0x12
	response   = 0x13
	failed     = 0x14
	logged     = 0x15
	pong       = 0x16
)

const (
	windowSize = 1 << 20
	// patience bounds every wait for the guest, generously: the machine may be
	// busy, and only a guest that hangs gets this far.
	patience = 30 * time.Second
)

type frame struct {
	typ     byte
	stream  uint32
	payload []byte
}

func (f frame) String() string { return fmt.Sprintf("%#x on %d: %.300q", f.typ, f.stream, f.payload) }

func appendFrame(b []byte, typ byte, stream uint32, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(append(b, typ), stream)
	return append(b, payload...)
}

// failure is the head of ERROR and INIT_ERROR.
type failure struct {
	Kind, Type, Message string
	Stack               []string
}

// result is how a call ended.
type result struct {
	begun bool // RESPONSE has come
	head  struct {
		Status  int
		Headers [][2]string
	}
	data  bytes.Buffer
	logs  [3]bytes.Buffer
	err   *failure
	ended bool
}

func (r *result) body() string   { return r.data.String() }
func (r *result) stdout() string { return r.logs[1].String() }
func (r *result) stderr() string { return r.logs[2].String() }

func (r result) String() string {
	if r.err != nil {
		return fmt.Sprintf("ERROR %+v", *r.err)
	}
	return fmt.Sprintf("status %d, headers %v, body %.300q", r.head.Status, r.head.Headers, r.data.String())
}

// peer is the host's end of the stream to one guest. It checks every frame
// that it reads.
type peer struct {
	t      testing.TB
	conn   *net.UnixConn
	in     *bufio.Reader
	out    []byte
	secret string
	raw    bytes.Buffer // what the guest wrote to descriptors 1 and 2

	next    uint32
	calls   map[uint32]*result
	sent    map[uint32]int // bytes of body sent
	credit  map[uint32]int // bytes the guest may get
	room    map[uint32]int // bytes the guest may send
	initLog string         // output outside of calls
	trace   [2]string      // traceparent and tracestate of calls
	hold    bool           // do not open windows

	outbox  chan []byte   // to writer
	written chan struct{} // closed when writer has ended
	half    bool          // outbox is closed
	exit    chan struct{} // closed when the guest has exited
	status  int           // its exit status then
}

// start starts the guest; it is killed at the end of the test.
func (s *suite) start(t testing.TB) *peer {
	t.Helper()
	p := &peer{
		t: t, secret: "open sesame", next: 1,
		calls: map[uint32]*result{}, sent: map[uint32]int{}, credit: map[uint32]int{}, room: map[uint32]int{},
		exit: make(chan struct{}), outbox: make(chan []byte, 4096), written: make(chan struct{}),
	}
	start := s.Start
	if start == nil {
		start = s.execute
	}
	conn, wait := start(t, s.files, p.secret, &p.raw)
	p.conn, p.in = conn, bufio.NewReaderSize(conn, 64<<10)
	go func() {
		p.status = wait()
		close(p.exit)
	}()
	go p.writer()
	t.Cleanup(func() {
		conn.Close()
		p.closeWrite()
		<-p.written
		<-p.exit
		if t.Failed() && p.raw.Len() > 0 {
			t.Logf("the guest wrote: %.2000s", p.raw.String())
		}
	})
	return p
}

// execute starts the guest by its command.
func (s *suite) execute(t testing.TB, _, secret string, output io.Writer) (*net.UnixConn, func() int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), s.Command[0], s.Command[1:]...) // whose end kills it
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HEARTH_FD=3", "HEARTH_SECRET=" + secret}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		conn.Close()
		t.Fatal(err)
	}
	return conn.(*net.UnixConn), func() int {
		_ = cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
}

func (p *peer) buffer(typ byte, stream uint32, payload []byte) {
	p.out = appendFrame(p.out, typ, stream, payload)
}

func (p *peer) flush() {
	p.t.Helper()
	if len(p.out) > 0 {
		p.outbox <- p.out
		p.out = nil
	}
}

// writer writes what flush hands over, so that the peer reads meanwhile, as a
// host must: guests need not read while they write.
func (p *peer) writer() {
	defer close(p.written)
	for b := range p.outbox {
		// Errors show as the end of the stream that is read.
		_ = p.conn.SetWriteDeadline(time.Now().Add(patience))
		_, _ = p.conn.Write(b)
	}
	_ = p.conn.CloseWrite()
}

// closeWrite ends the stream to the guest.
func (p *peer) closeWrite() {
	p.flush()
	if !p.half {
		p.half = true
		close(p.outbox)
	}
}

func (p *peer) send(typ byte, stream uint32, payload []byte) {
	p.t.Helper()
	p.buffer(typ, stream, payload)
	p.flush()
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func helloHead(secret string) []byte {
	return mustJSON(map[string]any{"protocol": 1, "secret": secret, "later": "ignored"})
}

func initHead(code, handler string) []byte {
	return mustJSON(map[string]any{
		"function": "fixture", "version": 7, "handler": handler, "code": code,
		"archive": false, "memory_mb": 128, "env": map[string]string{"GREETING": "hello"}, "later": 1,
	})
}

type hi struct {
	Protocol int
	Runtime  string
	PID      int
}

// hello makes the guest a stem cell.
func (p *peer) hello() hi {
	p.t.Helper()
	p.send(hello, 0, helloHead(p.secret))
	f := p.recv()
	var h hi
	if f.typ != ready || json.Unmarshal(f.payload, &h) != nil {
		p.t.Fatalf("HELLO was answered with %s", f)
	}
	return h
}

// init sends INIT and returns READY or INIT_ERROR.
func (p *peer) init(code, handler string) frame {
	p.t.Helper()
	p.send(initialize, 0, initHead(code, handler))
	return p.initialized()
}

// loaded is the payload of the READY that answers INIT.
type loaded struct {
	RequestStream bool `json:"request_stream"`
	Websocket     bool
	Snapshot      bool
	Concurrent    bool
}

func loadedOf(f frame) (l loaded) {
	if f.typ != ready || json.Unmarshal(f.payload, &l) != nil {
		return loaded{}
	}
	return l
}

func (p *peer) initialized() frame {
	p.t.Helper()
	for {
		if f := p.recv(); f.typ == ready || f.typ == initError {
			return f
		}
	}
}

// begin buffers an INVOKE; the body, if body is true, is up to the caller.
func (p *peer) begin(kind string, event any, body bool) uint32 {
	id := p.next
	p.next += 2
	p.calls[id], p.credit[id], p.room[id] = &result{}, windowSize, windowSize
	head := map[string]any{
		"id": fmt.Sprintf("call-%d", id), "deadline_ms": time.Now().Add(time.Minute).UnixMilli(),
		"kind": kind, "body": body, "later": []int{1},
	}
	if kind == "http" || kind == "websocket" {
		head["event"] = event
	}
	if kind == "websocket" {
		head["max_message"] = maxMessage
	}
	if p.trace[0] != "" {
		head["traceparent"] = p.trace[0]
	}
	if p.trace[1] != "" {
		head["tracestate"] = p.trace[1]
	}
	p.buffer(invoke, id, mustJSON(head))
	return id
}

func (p *peer) bufferInvoke(kind string, event any, body []byte) uint32 {
	id := p.begin(kind, event, body != nil)
	if body != nil {
		p.write(id, body)
		p.buffer(end, id, nil)
	}
	return id
}

// invoke begins a call with a body, unless that is nil.
func (p *peer) invoke(kind string, event any, body []byte) uint32 {
	p.t.Helper()
	id := p.bufferInvoke(kind, event, body)
	p.flush()
	return id
}

// write sends a part of a body, waiting for window.
func (p *peer) write(id uint32, body []byte) {
	p.t.Helper()
	for len(body) > 0 {
		for p.credit[id] == 0 {
			p.flush()
			p.recv()
		}
		n := min(len(body), p.credit[id], 64<<10)
		p.credit[id] -= n
		p.sent[id] += n
		p.buffer(data, id, body[:n])
		body = body[n:]
	}
}

// wait reads until the call has ended.
func (p *peer) wait(id uint32) result {
	p.t.Helper()
	for !p.calls[id].ended {
		p.recv()
	}
	return *p.calls[id]
}

// recv reads a frame and checks that it is allowed now. At the end of the
// stream it fails the test.
func (p *peer) recv() frame {
	p.t.Helper()
	f, err := p.read()
	if err != nil {
		select {
		case <-p.exit:
		case <-time.After(time.Second):
		}
		p.t.Fatalf("read from the guest: %v", err)
	}
	if err := p.check(f); err != nil {
		p.t.Fatalf("the guest broke the protocol: %v: %s", err, f)
	}
	return f
}

func (p *peer) read() (frame, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	var h [9]byte
	if _, err := io.ReadFull(p.in, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > 1<<20 {
		return frame{}, fmt.Errorf("a frame of %d bytes", n)
	}
	f := frame{typ: h[4], stream: binary.BigEndian.Uint32(h[5:]), payload: make([]byte, n)}
	_, err := io.ReadFull(p.in, f.payload)
	return f, err
}

// check applies a frame to the state of its call.
func (p *peer) check(f frame) error {
	r := p.calls[f.stream]
	if f.stream != 0 && (r == nil || r.ended) {
		return errors.New("its stream is unknown or has ended")
	}
	if r == nil {
		switch f.typ {
		case ready, initError:
			if !json.Valid(f.payload) {
				return errors.New("its head is no JSON")
			}
		case pong:
		case logged:
			if len(f.payload) < 2 || f.payload[0] < 1 || f.payload[0] > 2 {
				return errors.New("it has no stream number or no text")
			}
			p.initLog += fmt.Sprintf("%d:%s", f.payload[0], f.payload[1:])
		default:
			return errors.New("its type is not allowed on stream 0")
		}
		return nil
	}
	switch f.typ {
	case response:
		if r.begun {
			return errors.New("a second RESPONSE")
		}
		r.begun = true
		return json.Unmarshal(f.payload, &r.head)
	case data:
		p.room[f.stream] -= len(f.payload)
		if !r.begun || len(f.payload) > 64<<10 || p.room[f.stream] < 0 {
			return fmt.Errorf("DATA before RESPONSE, too long, or beyond the window by %d", -p.room[f.stream])
		}
		r.data.Write(f.payload)
		if !p.hold && p.room[f.stream] <= windowSize/2 {
			p.open(f.stream, windowSize-p.room[f.stream])
		}
	case end:
		if !r.begun || len(f.payload) > 0 {
			return errors.New("END before RESPONSE or with a payload")
		}
		r.ended = true
	case failed:
		r.ended = true
		r.err = &failure{}
		if err := json.Unmarshal(f.payload, r.err); err != nil {
			return err
		}
		if r.err.Kind != "handler" && r.err.Kind != "response" && r.err.Kind != "canceled" || r.err.Type == "" {
			return errors.New("ERROR without kind or type")
		}
	case logged:
		if len(f.payload) < 2 || len(f.payload) > 64<<10 || f.payload[0] < 1 || f.payload[0] > 2 {
			return errors.New("LOG without a stream number, without text, or too long")
		}
		r.logs[f.payload[0]].Write(f.payload[1:])
	case window:
		if len(f.payload) != 4 {
			return errors.New("WINDOW without a number")
		}
		p.credit[f.stream] += int(binary.BigEndian.Uint32(f.payload))
		if p.credit[f.stream] > windowSize {
			return errors.New("WINDOW for more than was sent")
		}
	default:
		return errors.New("its type is not allowed here")
	}
	return nil
}

// open lets the guest send n more bytes.
func (p *peer) open(id uint32, n int) {
	p.room[id] += n
	p.send(window, id, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// stop shuts the guest down and checks that it exits with status 0.
func (p *peer) stop() {
	p.t.Helper()
	p.send(shutdown, 0, []byte(`{"grace_ms":1000}`))
	p.ends(0)
}

// close ends the stream and checks the guest's exit status.
func (p *peer) close(status int) {
	p.t.Helper()
	p.closeWrite()
	p.ends(status)
}

// ends reads the rest of the stream and checks the guest's exit status.
func (p *peer) ends(status int) {
	p.t.Helper()
	for {
		f, err := p.read()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				p.t.Errorf("read from the guest: %v", err)
			}
			break
		}
		if err := p.check(f); err != nil {
			p.t.Errorf("the guest broke the protocol: %v: %s", err, f)
		}
	}
	select {
	case <-p.exit:
	case <-time.After(patience):
		p.t.Fatal("the guest has not exited")
	}
	if p.status != status {
		p.t.Errorf("the guest exited with status %d, want %d: %s", p.status, status, strings.TrimSpace(p.raw.String()))
	}
}
