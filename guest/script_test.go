package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketpair returns two ends of a real unix stream.
func socketpair(tb testing.TB) (net.Conn, net.Conn) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			tb.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// script is a guest whose every frame the test decides.
type script struct {
	tb testing.TB
	nc net.Conn
}

type gotFrame struct {
	typ     frameType
	stream  uint32
	payload string
}

// next reads one frame from the host.
func (g *script) next() (gotFrame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(g.nc, h[:]); err != nil {
		return gotFrame{}, err
	}
	p := make([]byte, binary.BigEndian.Uint32(h[:]))
	_, err := io.ReadFull(g.nc, p)
	return gotFrame{frameType(h[4]), binary.BigEndian.Uint32(h[5:]), string(p)}, err
}

// expect reads one frame, which must be of type t.
func (g *script) expect(t frameType) gotFrame {
	g.tb.Helper()
	f, err := g.next()
	if err != nil || f.typ != t {
		g.tb.Errorf("the guest got frame %#x (%v), want %#x", f.typ, err, t)
	}
	return f
}

// body reads DATA of the stream to END, granting as the protocol says.
func (g *script) body(stream uint32) []byte {
	g.tb.Helper()
	var b bytes.Buffer
	granted := 0
	for {
		f, err := g.next()
		if err != nil || f.stream != stream || f.typ != typeData && f.typ != typeEnd {
			g.tb.Errorf("in a body: frame %#x of stream %d, %v", f.typ, f.stream, err)
			return b.Bytes()
		}
		if f.typ == typeEnd {
			return b.Bytes()
		}
		b.WriteString(f.payload)
		if b.Len()-granted > windowSize {
			g.tb.Errorf("the host exceeded the window: %d bytes", b.Len()-granted)
		}
		if b.Len()-granted >= windowSize/2 {
			g.window(stream, b.Len()-granted)
			granted = b.Len()
		}
	}
}

func (g *script) raw(b []byte) { g.nc.Write(b) } //nolint:errcheck // the host may have left

func (g *script) send(t frameType, stream uint32, payload string) {
	g.raw(appendFrame(nil, t, stream, []byte(payload)))
}

func (g *script) window(stream uint32, n int) {
	g.send(typeWindow, stream, string(binary.BigEndian.AppendUint32(nil, uint32(n))))
}

// respond answers a call in one write.
func (g *script) respond(stream uint32, body string) {
	b := appendFrame(nil, typeResponse, stream, []byte(`{"status":200,"headers":[["a","b"]]}`))
	if body != "" {
		b = appendFrame(b, typeData, stream, []byte(body))
	}
	g.raw(appendFrame(b, typeEnd, stream, nil))
}

// greet answers HELLO and INIT.
func (g *script) greet() {
	g.expect(typeHello)
	g.send(typeReady, 0, `{"protocol":1,"runtime":"test1","pid":2}`)
	g.expect(typeInit)
	g.send(typeReady, 0, `{"request_stream":false}`)
}

type logged struct {
	invocation string
	stream     int
	text       string
}

// logs collects what OnLog gets.
type logs struct {
	mu   sync.Mutex
	all  []logged
	more chan struct{}
}

func (l *logs) add(id string, stream int, text []byte) {
	l.mu.Lock()
	l.all = append(l.all, logged{id, stream, string(text)})
	l.mu.Unlock()
	l.more <- struct{}{}
}

// start connects to a guest that runs play after INIT.
func start(tb testing.TB, host, far net.Conn, opts Options, play func(g *script)) *Conn {
	tb.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer far.Close()
		g := &script{tb, far}
		g.greet()
		play(g)
		io.Copy(io.Discard, far) //nolint:errcheck // until the host leaves, or play closed it
	})
	c, hello, err := Connect(context.Background(), host, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close(); wg.Wait() })
	if hello.Runtime != "test1" || hello.PID != 2 {
		tb.Errorf("hello: %+v", hello)
	}
	if _, err := c.Init(context.Background(), Init{Function: "f"}); err != nil {
		tb.Fatal(err)
	}
	return c
}

// eachStream runs the test on a socket with a descriptor and on one without.
func eachStream(t *testing.T, test func(t *testing.T, host, far net.Conn)) {
	t.Run("socket", func(t *testing.T) {
		a, b := socketpair(t)
		test(t, a, b)
	})
	t.Run("pipe", func(t *testing.T) {
		a, b := net.Pipe()
		test(t, a, b)
	})
}

// recorder is a Sink that keeps everything.
type recorder struct {
	head    *Head
	body    []byte
	last    int
	flushes int
	headErr error
	onData  func() error
	onHead  func()
}

func (r *recorder) Head(h *Head) error {
	if r.head != nil {
		panic("a second Head")
	}
	r.head = h
	if r.onHead != nil {
		r.onHead()
	}
	return r.headErr
}

func (r *recorder) Data(p []byte, last bool) error {
	if r.head == nil || r.last > 0 {
		panic("Data out of order")
	}
	r.body = append(r.body, p...)
	if last {
		r.last++
	}
	if r.onData != nil {
		return r.onData()
	}
	return nil
}

func (r *recorder) Flush() error { r.flushes++; return nil }

func httpCall(id string) *Call {
	return &Call{ID: id, Deadline: time.UnixMilli(4102444800000), Kind: hearth.KindHTTP, Event: []byte(`{"x":1}`)}
}

// wantError checks the code and, if given, the function error's type.
func wantError(tb testing.TB, err error, code hearth.Code, typ string) *hearth.Error {
	tb.Helper()
	var he *hearth.Error
	if !errors.As(err, &he) || he.Code != code {
		tb.Fatalf("error %v, want code %s", err, code)
	}
	if typ != "" && (he.Function == nil || he.Function.Type != typ) {
		tb.Fatalf("function error %+v of %v, want type %s", he.Function, err, typ)
	}
	return he
}

func decodeInvoke(tb testing.TB, f gotFrame) (m map[string]any) {
	tb.Helper()
	if err := json.Unmarshal([]byte(f.payload), &m); err != nil {
		tb.Errorf("INVOKE %q: %v", f.payload, err)
	}
	return m
}

// pattern returns n bytes in which a chunk that is missing, doubled or out of
// place shows: its period is a prime.
func pattern(n int) []byte {
	period := make([]byte, min(n, 65521))
	rand.NewChaCha8([32]byte{}).Read(period) //nolint:errcheck // never fails
	b := make([]byte, 0, n+len(period))
	for len(b) < n {
		b = append(b, period...)
	}
	return b[:n]
}

// underWay returns how many calls have not ended.
func underWay(c *Conn) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls)
}
