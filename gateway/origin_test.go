package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// origin is a pool whose instances are goroutines that speak the guest protocol
// and answer as a test tells them to.
type origin struct {
	fakePool
	// answer makes the response to a call; the first is number 1.
	answer func(call int, event event) reply

	mu     sync.Mutex
	events []event
}

// event is what a function gets to see of a request.
type event struct {
	RawPath        string
	RawQueryString string
	Headers        map[string]string
	Context        struct {
		HTTP struct{ Method string }
	} `json:"requestContext"`
}

// reply is what a function answers.
type reply struct {
	status int      // 200 if 0
	header []string // "Name: value"
	// body defaults to the number of the call.
	body string
	// then are further pieces; each waits for its moment.
	then []piece
	// breaks is true if the process ends in place of the response's end.
	breaks bool
}

type piece struct {
	after <-chan struct{}
	data  string
}

// calls is how often the function was called.
func (o *origin) calls() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.events)
}

// Do implements Pool: each call gets an instance of its own.
func (o *origin) Do(ctx context.Context, _ *hearth.Version, fn func(context.Context, Instance) error) error {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { o.serve(far) })
	defer wg.Wait()
	conn, _, err := guest.Connect(ctx, near, guest.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(ctx, Instance{Conn: conn, ID: "i-1"})
}

func (o *origin) serve(nc net.Conn) {
	defer nc.Close()
	gone := make(chan struct{})
	defer func() { <-gone }()
	var wmu sync.Mutex
	frame := func(b []byte, typ byte, stream uint32, payload string) []byte {
		b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
		b = binary.BigEndian.AppendUint32(append(b, typ), stream)
		return append(b, payload...)
	}
	send := func(b []byte) {
		wmu.Lock()
		defer wmu.Unlock()
		nc.Write(b) //nolint:errcheck // the host may have closed
	}
	work := func(stream uint32, payload []byte) {
		var in struct{ Event event }
		if err := json.Unmarshal(payload, &in); err != nil {
			panic(err)
		}
		o.mu.Lock()
		o.events = append(o.events, in.Event)
		n := len(o.events)
		o.mu.Unlock()
		r := o.answer(n, in.Event)
		if r.status == 0 {
			r.status = http.StatusOK
		}
		if r.body == "" {
			r.body = strconv.Itoa(n)
		}
		headers := [][2]string{}
		for _, line := range r.header {
			name, value, _ := strings.Cut(line, ": ")
			headers = append(headers, [2]string{strings.ToLower(name), value})
		}
		head, err := json.Marshal(map[string]any{"status": r.status, "headers": headers})
		if err != nil {
			panic(err)
		}
		b := frame(frame(nil, 0x13, stream, string(head)), 0x04, stream, r.body)
		for _, p := range r.then {
			send(b)
			if p.after != nil {
				select {
				case <-p.after:
				case <-gone:
					return
				}
			}
			b = frame(nil, 0x04, stream, p.data)
		}
		if r.breaks {
			send(b)
			nc.Close()
			return
		}
		send(frame(b, 0x05, stream, ""))
	}
	var head [9]byte
	for {
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			break
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(nc, payload); err != nil {
			break
		}
		switch stream := binary.BigEndian.Uint32(head[5:]); head[4] {
		case 0x01: // HELLO
			send(frame(nil, 0x11, 0, `{"protocol":1,"runtime":"fake","pid":1}`))
		case 0x03: // INVOKE
			go work(stream, payload)
		}
	}
	close(gone)
}

// site is a gateway behind a real HTTP server, without a network, so that it can
// live in a synctest bubble.
type site struct {
	*testing.T
	*origin
	gateway *Gateway
	catalog *fakeCatalog
	records *safeRecords
	client  *http.Client
	server  *http.Server
}

// safeRecords collects records from many goroutines.
type safeRecords struct {
	mu   sync.Mutex
	list kept
}

func (s *safeRecords) Record(r hearth.Invocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list.Record(r)
}

func (s *safeRecords) Refused(r hearth.Invocation) bool {
	s.Record(r)
	return true
}

func (s *safeRecords) last() hearth.Invocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list[len(s.list)-1]
}

// pipes is a net.Listener whose connections are pipes.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func newSite(t *testing.T, cfg Config, answer func(int, event) reply, versions ...hearth.Version) *site {
	t.Helper()
	s := &site{T: t, origin: &origin{answer: answer}, records: &safeRecords{}}
	catalog := fakeCatalog(versions)
	s.catalog = &catalog
	cfg.Pool, cfg.Catalog, cfg.Recorder, cfg.Logs = s.origin, s.catalog, s.records, nowhere{}
	cfg.Logger = discard
	s.gateway = New(cfg)
	if err := s.gateway.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s.server = &http.Server{Handler: s.gateway, ReadHeaderTimeout: time.Hour}
	var wg sync.WaitGroup
	wg.Go(func() { s.server.Serve(l) }) //nolint:errcheck // it is closed below
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			l.conns <- far
			return near, nil
		},
	}
	s.client = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.server.Close()
		wg.Wait()
	})
	return s
}

// answer is a response read to its end.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

// start is where it came from: warm or cached.
func (a answer) start() string { return a.header.Get("Hearth-Start") }

// do sends a request with header lines "Name: value".
func (s *site) do(ctx context.Context, method, path string, header ...string) answer {
	s.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = "http://site.example" + path
	}
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{err: err}
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	w, err := s.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer w.Body.Close()
	body, err := io.ReadAll(w.Body)
	return answer{w.StatusCode, w.Header, string(body), err}
}

func (s *site) get(path string, header ...string) answer {
	s.Helper()
	return s.do(s.Context(), "GET", path, header...)
}

// want checks where an answer came from and what it says.
func (s *site) want(a answer, start, body string) {
	s.Helper()
	if a.err != nil || a.start() != start || a.body != body {
		s.Errorf("got %s %q (%d, %v), want %s %q", a.start(), a.body, a.status, a.err, start, body)
	}
}
