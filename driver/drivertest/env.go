package drivertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// env is what a case works with: a driver of its own and means to make
// sandboxes, which are destroyed and whose traces are looked for at the end.
type env struct {
	cfg    Config
	info   driver.Info
	binary string // directory of the test guest on the host
	dir    string // data directory of the installation
	owner  string
	driver driver.Driver

	mu  sync.Mutex
	ids []string // of all sandboxes that were asked for
}

func newEnv(t *testing.T, cfg Config, info driver.Info, binary string) *env {
	t.Helper()
	e := &env{cfg: cfg, info: info, binary: binary, dir: t.TempDir(), owner: "owner-" + randomName()}
	before := takeSnapshot(e)
	t.Cleanup(func() { compareSnapshots(t, e, before) })
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	return e
}

// open makes the driver of the installation.
func (e *env) open(t *testing.T) {
	t.Helper()
	e.driver = e.cfg.New(t, e.dir, e.owner)
}

// close destroys every sandbox and closes the driver.
func (e *env) close(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*e.cfg.Start)
	defer cancel()
	list, err := e.driver.List(ctx)
	if err != nil {
		t.Errorf("List: %v", err)
	}
	for _, s := range list {
		t.Errorf("sandbox %s was left over by the case", s.ID())
		if err := s.Destroy(ctx); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	if err := e.driver.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// skipUnless skips the case if the driver said of itself that it cannot do what
// it tests.
func (e *env) skipUnless(t *testing.T, can bool, what string) {
	t.Helper()
	if !can {
		t.Skipf("the driver %s says that it has no %s on this host: %v", e.info.Name, what, e.info.Limitations)
	}
}

// spec returns the description of a sandbox that runs the test guest.
func (e *env) spec() driver.Spec {
	id := "t-" + randomName()
	e.mu.Lock()
	e.ids = append(e.ids, id)
	e.mu.Unlock()
	return driver.Spec{
		ID: id, Runtime: e.cfg.Runtime, Command: []string{"/testguest/testguest"},
		Mounts: []driver.Mount{{Source: e.binary, Target: "/testguest"}},
	}
}

// create makes a sandbox and connects to its guest. Both end with the case.
func (e *env) create(t *testing.T, change ...func(*driver.Spec)) *guest {
	t.Helper()
	spec := e.spec()
	for _, f := range change {
		f(&spec)
	}
	return e.dial(t, e.start(t, spec))
}

// start creates a sandbox that the end of the case destroys.
func (e *env) start(t *testing.T, spec driver.Spec) driver.Sandbox {
	t.Helper()
	s, err := e.driver.Create(e.context(t), spec)
	if err != nil {
		t.Fatalf("Create: %v (hint: %s)", err, hearth.AsError(err).Hint)
	}
	if s.ID() != spec.ID {
		t.Errorf("ID is %q, want %q", s.ID(), spec.ID)
	}
	t.Cleanup(func() { destroy(t, s) })
	return s
}

func (e *env) dial(t *testing.T, s driver.Sandbox) *guest {
	t.Helper()
	c, err := s.Dial(e.context(t))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return &guest{Sandbox: s, conn: c, enc: json.NewEncoder(c), dec: json.NewDecoder(c), patience: e.cfg.Start}
}

// context returns one that ends with the case or when a sandbox has taken too
// long to start.
func (e *env) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), e.cfg.Start)
	t.Cleanup(cancel)
	return ctx
}

// destroy destroys s and fails the case if that fails or takes long.
func destroy(t *testing.T, s driver.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Destroy(ctx); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}

// guest is the host's side of a conversation with a test guest.
type guest struct {
	driver.Sandbox
	conn     net.Conn
	enc      *json.Encoder
	dec      *json.Decoder
	patience time.Duration
}

// request and answer are those of the test guest.
type request struct {
	Op      string
	Path    string        `json:",omitempty"`
	Text    string        `json:",omitempty"`
	N       int64         `json:",omitempty"`
	Timeout time.Duration `json:",omitempty"`
}

type answer struct {
	Err   string
	Errno int
	Text  string
	List  []string
	Map   map[string]string
	N     int64
}

// try sends a request and returns the answer, which may be an error of the
// guest's. The error is one of the stream.
func (g *guest) try(r request) (answer, error) {
	_ = g.conn.SetDeadline(time.Now().Add(g.patience + r.Timeout))
	if err := g.enc.Encode(r); err != nil {
		return answer{}, err
	}
	var a answer
	err := g.dec.Decode(&a)
	return a, err
}

// ask is try for an answer that must come, be it an error of the guest's.
func (g *guest) ask(t *testing.T, r request) answer {
	t.Helper()
	a, err := g.try(r)
	if err != nil {
		t.Fatalf("guest: %s: %v", r.Op, err)
	}
	return a
}

// do is ask for what must succeed.
func (g *guest) do(t *testing.T, r request) answer {
	t.Helper()
	a := g.ask(t, r)
	if a.Err != "" {
		t.Fatalf("guest: %s %s: %s", r.Op, r.Path, a.Err)
	}
	return a
}

// say sends a request to which no answer is expected.
func (g *guest) say(t *testing.T, r request) {
	t.Helper()
	_ = g.conn.SetDeadline(time.Now().Add(g.patience))
	if err := g.enc.Encode(r); err != nil {
		t.Fatalf("guest: %s: %v", r.Op, err)
	}
}

// echo checks that the guest still answers.
func (g *guest) echo(t *testing.T) {
	t.Helper()
	text := randomName()
	if a := g.do(t, request{Op: "echo", Text: text}); a.Text != text {
		t.Fatalf("guest: echo of %q is %q", text, a.Text)
	}
}

// wait returns the Exit, which must come.
func (g *guest) wait(t *testing.T) driver.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), g.patience)
	defer cancel()
	x, err := g.Wait(ctx)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	return x
}

// ended checks that the stream is at its end.
func (g *guest) ended(t *testing.T) {
	t.Helper()
	_ = g.conn.SetDeadline(time.Now().Add(g.patience))
	if n, err := io.Copy(io.Discard, g.conn); n > 0 {
		t.Errorf("%d bytes came after the stream should have ended", n)
	} else if os.IsTimeout(err) {
		t.Errorf("the stream did not end")
	}
}

// wantCode fails the case unless err has the code and says something.
func wantCode(t *testing.T, what string, err error, codes ...hearth.Code) {
	t.Helper()
	for _, c := range codes {
		if hearth.ErrorCode(err) == c {
			if strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%s: the error has no message", what)
			}
			return
		}
	}
	t.Errorf("%s: error is %v (code %q), want code %q", what, err, hearth.ErrorCode(err), codes)
}

// eventually waits until ok returns "".
func eventually(t *testing.T, patience time.Duration, ok func() string) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		why := ok()
		if why == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("not within %v: %s", patience, why)
			return
		}
		pause(20 * time.Millisecond)
	}
}

// pause lets time pass between two looks at something.
func pause(d time.Duration) { <-time.After(d) }

func randomName() string { return fmt.Sprintf("%012x", rand.Uint64()>>16) }

// lockedBuffer is an io.Writer that may be read while it is written to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
