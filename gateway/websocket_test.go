package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

func (f *fakePool) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error {
	return f.Do(ctx, v, fn)
}

func (o *origin) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error {
	return o.Do(ctx, v, fn)
}

// echoPool has a guest for each connection that accepts it and sends back what it
// gets, or is deaf.
type echoPool struct {
	fakePool
	deaf bool
}

func (p *echoPool) Hold(ctx context.Context, _ *hearth.Version, fn func(context.Context, Instance) error) error {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { echoGuest(far, p.deaf) })
	defer wg.Wait()
	conn, _, err := guest.Connect(ctx, near, guest.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(ctx, Instance{Conn: conn})
}

func echoGuest(nc net.Conn, deaf bool) {
	defer nc.Close()
	frame := func(typ byte, stream uint32, payload []byte) {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
		b = binary.BigEndian.AppendUint32(append(b, typ), stream)
		nc.Write(append(b, payload...)) //nolint:errcheck // the host may have closed
	}
	var head [9]byte
	for {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(nc, payload); err != nil {
			return
		}
		switch stream := binary.BigEndian.Uint32(head[5:]); head[4] {
		case 0x01: // HELLO
			frame(0x11, 0, []byte(`{"protocol":1,"runtime":"fake","pid":1}`))
		case 0x03: // INVOKE
			frame(0x13, stream, []byte(`{"status":101,"headers":[]}`))
		case 0x04: // DATA
			if payload[0] != 8 && !deaf {
				frame(0x04, stream, payload)
			}
		case 0x05: // END
			frame(0x05, stream, nil)
		case 0x06: // CANCEL
			frame(0x14, stream, []byte(`{"kind":"canceled","type":"Runtime.Canceled","message":"","stack":[]}`))
		}
	}
}

// echo is a gateway with a function of echoPool.
func echo(t *testing.T, cfg Config) (g *Gateway, url string, records *safeRecords) {
	t.Helper()
	v := versionWith("f")
	v.Websocket = true
	records = &safeRecords{}
	if cfg.Pool == nil {
		cfg.Pool = &echoPool{}
	}
	cfg.Catalog, cfg.Recorder, cfg.Logs, cfg.Logger = &fakeCatalog{v}, records, nowhere{}, slog.New(slog.DiscardHandler)
	g = New(cfg)
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(g)
	t.Cleanup(func() {
		g.CloseSockets()
		g.WaitSockets()
		s.Close()
	})
	return g, s.URL + "/fn/f/", records
}

func dial(t *testing.T, url string, o *websocket.DialOptions) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() }) //nolint:errcheck // it may be closed
	return c
}

// closeCode reads to the end of a connection; -1 means that it was not closed.
func closeCode(t *testing.T, c *websocket.Conn) websocket.StatusCode {
	t.Helper()
	for {
		if _, _, err := c.Read(t.Context()); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// TestSignOfLife: a client that answers pings stays connected, and one that does
// not is given up.
func TestSignOfLife(t *testing.T) {
	g, url, records := echo(t, Config{Ping: 50 * time.Millisecond})
	pings := make(chan struct{}, 100)
	alive := dial(t, url, &websocket.DialOptions{OnPingReceived: func(context.Context, []byte) bool {
		pings <- struct{}{}
		return true
	}})
	got := make(chan string, 1)
	go func() {
		_, p, err := alive.Read(t.Context())
		got <- string(p)
		if err != nil {
			t.Error(err)
		}
	}()
	nc, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/fn/f/"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET /fn/f/dead HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n") //nolint:errcheck // the read tells
	if _, err := io.Copy(io.Discard, nc); err != nil {                                                                                                                                        // until it is given up
		t.Error(err)
	}
	for range 5 {
		<-pings
	}
	if err := alive.Write(t.Context(), websocket.MessageText, []byte("here")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "here" {
		t.Errorf("got %q", s)
	}
	g.CloseSockets()
	if code := closeCode(t, alive); code != websocket.StatusGoingAway {
		t.Errorf("closed with %d", code)
	}
	g.WaitSockets()
	records.mu.Lock()
	defer records.mu.Unlock()
	for _, r := range records.list {
		if want := map[string]hearth.Code{"/fn/f/dead": hearth.CodeCanceled}[r.Path]; r.ErrorCode != want || r.Status != 101 {
			t.Errorf("the record of %s: %+v", r.Path, r)
		}
	}
	if len(records.list) != 2 {
		t.Errorf("%d records", len(records.list))
	}
}

// TestSocketsStay: the caller of a WebSocket gets the cookie by which it stays with a
// version of a split, and stays.
func TestSocketsStay(t *testing.T) {
	g, url, _ := echo(t, Config{})
	versions := map[int]*hearth.Version{}
	for n := range 2 {
		versions[n+1] = numbered("f", n+1, nil)
		versions[n+1].Websocket = true
	}
	alias := live(hearth.Weights{1: 50, 2: 50})
	alias.Sticky = hearth.StickyCookie
	g.cfg.Catalog = &deployments{list: []hearth.Deployment{{Function: "f", Generation: 1, Aliases: []hearth.Alias{alias}, Versions: versions}}}
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect := func(cookie *http.Cookie) (version string, set *http.Cookie) {
		t.Helper()
		o := &websocket.DialOptions{HTTPHeader: http.Header{}}
		if cookie != nil {
			o.HTTPHeader.Set("Cookie", cookie.String())
		}
		c, resp, err := websocket.Dial(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow() //nolint:errcheck // it may be closed
		if cookies := resp.Cookies(); len(cookies) > 0 {
			set = cookies[0]
		}
		return resp.Header.Get("Hearth-Version"), set
	}
	for range 5 {
		version, cookie := connect(nil)
		if cookie == nil || cookie.Name != "hearth_f_live" {
			t.Fatalf("the cookie is %v", cookie)
		}
		for range 5 {
			if again, set := connect(cookie); again != version || set != nil {
				t.Fatalf("with the cookie of version %s it was version %s, and the cookie %v", version, again, set)
			}
		}
	}
}

// TestMessagesAreBounded: what is kept of messages that are not complete is
// bounded for all connections together, and given back.
func TestMessagesAreBounded(t *testing.T) {
	g, url, _ := echo(t, Config{MaxMessages: 800 << 10}) // a quarter for the function
	c := dial(t, url, nil)
	c.SetReadLimit(-1)
	say := func(size int) error {
		w, err := c.Writer(t.Context(), websocket.MessageBinary)
		if err != nil {
			return err
		}
		piece := bytes.Repeat([]byte("x"), 10<<10)
		for ; size > 0; size -= len(piece) {
			if _, err := w.Write(piece); err != nil { // each is a frame
				return err
			}
		}
		return w.Close()
	}
	for range 5 {
		if err := say(200 << 10); err != nil {
			t.Fatal(err)
		}
		if _, p, err := c.Read(t.Context()); err != nil || len(p) != 200<<10 {
			t.Fatal(len(p), err)
		}
	}
	if err := say(300 << 10); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err) // it may notice that the connection is closed
	}
	if code := closeCode(t, c); code != websocket.StatusTryAgainLater {
		t.Errorf("closed with %d", code)
	}
	g.CloseSockets()
	g.WaitSockets()
	if n := g.sockets.underway(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// underway is how many bytes of messages are counted.
func (a *sockets) underway() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gathered
}

// One function cannot have the room of all.
func TestRoomOfMessages(t *testing.T) {
	var a sockets
	if !a.take("f", 25, 100) || a.take("f", 1, 100) {
		t.Error("f may not have a quarter, or may have more")
	}
	for _, other := range []string{"g", "h", "i"} {
		if !a.take(other, 25, 100) {
			t.Errorf("%s has no room besides f", other)
		}
	}
	if a.take("j", 1, 100) {
		t.Error("all have more than there is")
	}
	a.give("f", 25)
	if !a.take("j", 25, 100) || len(a.gatheredOf) != 4 {
		t.Errorf("%v", a.gatheredOf)
	}
}

// rawSocket opens a WebSocket of which nothing is read but what the test reads.
func rawSocket(t *testing.T, url string) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/fn/f/"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	io.WriteString(nc, "GET /fn/f/raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n") //nolint:errcheck // the read tells
	resp, err := http.ReadResponse(bufio.NewReaderSize(&oneByOne{nc}, 16), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	return nc.(*net.TCPConn)
}

// oneByOne reads no more than it is asked for.
type oneByOne struct{ io.Reader }

func (o *oneByOne) Read(p []byte) (int, error) { return o.Reader.Read(p[:1]) }

// maskedFrame is a frame of a client with a binary message of a length, up to its payload.
func maskedFrame(length int) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, uint64(length)), 0, 0, 0, 0)
}

// A client that goes away while its message waits for the function leaves nothing behind.
func TestGoneWhileMessageWaits(t *testing.T) {
	g, url, records := echo(t, Config{Ping: time.Second, Pool: &echoPool{deaf: true}})
	nc := rawSocket(t, url)
	nc.Write(maskedFrame(1 << 20)) //nolint:errcheck // with its head more than the window
	nc.Write(make([]byte, 1<<20))  //nolint:errcheck // as above
	waitFor(t, "the message to wait", func() bool {
		g.sockets.mu.Lock()
		defer g.sockets.mu.Unlock()
		for s := range g.sockets.open {
			return s.waits.Load()
		}
		return false
	})
	nc.SetLinger(0) //nolint:errcheck // it is reset, as when its machine is gone
	nc.Close()
	waitFor(t, "the record", func() bool {
		records.mu.Lock()
		defer records.mu.Unlock()
		return len(records.list) == 1
	})
	if n := g.sockets.underway(); n != 0 || records.list[0].ErrorCode != hearth.CodeCanceled {
		t.Errorf("%d bytes are still counted; the record is %+v", n, records.list[0])
	}
}

// A client whose message comes slowly is alive.
func TestSlowMessage(t *testing.T) {
	_, url, _ := echo(t, Config{Ping: 500 * time.Millisecond})
	nc := rawSocket(t, url)
	const size = 70_000
	if _, err := nc.Write(maskedFrame(size)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	begun, sent := time.Now(), 0
	for ; time.Since(begun) < 2*time.Second; sent++ { // as long as four pings
		if _, err := nc.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if _, err := nc.Write(make([]byte, size-sent)); err != nil {
		t.Fatal(err)
	}
	var head [2]byte
	for head[0]&0x0f != 2 { // pings are empty
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			t.Fatal(err)
		}
	}
}
