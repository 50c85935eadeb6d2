package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// chance is a function that used chance before it was saved.
const chance = `
import os, random, secrets, ssl, sys, tempfile, time, uuid
random.random(); uuid.uuid1(); ssl.RAND_bytes(8); next(tempfile._get_candidate_names())
loaded = str(uuid.uuid4())
with open("/tmp/kept", "w") as f:
    f.write(loaded)

def handler(event, context):
    if event:
        import socket
        try:
            with socket.create_connection((event["host"], event["port"]), 10) as c:
                return c.recv(100).decode() or "refused"
        except OSError:
            return "refused"
    os.write(1, b"raw output\n")
    with open("/tmp/kept") as f:
        kept = f.read()
    with open("/tmp/own", "x"):
        pass
    return {"loaded": loaded, "kept": kept, "time": time.time(), "fresh": [
        str(random.random()), os.urandom(8).hex(), str(uuid.uuid1()), str(uuid.uuid4()), secrets.token_hex(8),
        ssl.RAND_bytes(8).hex(), next(tempfile._get_candidate_names())]}
`

// saving is a driver for gVisor with a runtime for Python made of the host's files.
type saving struct {
	*Driver
	spec driver.Spec
	late *driver.Mount // fills a slot of the saved sandbox
}

const secret = "open sesame"

func newSaving(t *testing.T) *saving {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gVisor needs root")
	}
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		t.Skip("/usr/bin/python3 is not installed")
	}
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import ssl").CombinedOutput(); err != nil {
		t.Skipf("%s has no ssl module: %s", python, out)
	}
	dir := t.TempDir()
	d := newDriver(t, GVisor, dir, "saving")
	if d.binary == "" {
		t.Skip("runsc is not installed; scripts/runsc.sh builds it")
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("host/"+name, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("host", filepath.Join(root, "usr")); err != nil {
		t.Fatal(err)
	}
	d.find = func(context.Context, string) (image, error) {
		return image{dir: root, release: func() {}}, nil
	}
	t.Cleanup(func() { _ = d.Close() })
	code, shims := filepath.Join(dir, "code"), filepath.Join(dir, "shims")
	if err := os.Mkdir(code, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(code, "main.py"), []byte(chance), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(shims, guest.Shims()); err != nil {
		t.Fatal(err)
	}
	return &saving{Driver: d, spec: driver.Spec{
		Runtime: driver.Provided,
		Command: guest.Command("python", strings.Replace(python, "/usr/", "/host/", 1), "/shims"),
		Env:     map[string]string{"HEARTH_SECRET": secret},
		Mounts:  []driver.Mount{{Source: "/usr", Target: "/host"}, {Source: code, Target: "/function"}, {Source: shims, Target: "/shims"}},
	}}
}

func (s *saving) destroyAtEnd(t *testing.T, sb driver.Sandbox) {
	t.Cleanup(func() {
		if err := sb.Destroy(context.Background()); err != nil {
			t.Errorf("destroy %s: %v", sb.ID(), err)
		}
	})
}

// save makes a sandbox with its function loaded and saves it. cold is how long
// that took without the saving.
func (s *saving) save(t *testing.T) (dir string, cold time.Duration) {
	t.Helper()
	for try := 1; ; try++ {
		dir, cold, err := s.saveAs(t, fmt.Sprint("saved-", try))
		switch {
		case err == nil:
			return dir, cold
		case try == 3 || !strings.HasSuffix(err.Error(), "failed: EOF"):
			t.Fatal(err)
		}
		// gVisor's kernel dies now and then while it is saved (google/gvisor#12189).
		// Who uses the driver makes another sandbox then.
		t.Log(err)
	}
}

func (s *saving) saveAs(t *testing.T, id string) (dir string, cold time.Duration, err error) {
	t.Helper()
	ctx := t.Context()
	spec := s.spec
	spec.ID = id
	begun := time.Now()
	sb, err := s.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	s.destroyAtEnd(t, sb)
	nc, err := sb.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.late != nil {
		if err := sb.(driver.Mounter).Mount(ctx, *s.late); err != nil {
			t.Fatal(err)
		}
	}
	conn, _, err := guest.Connect(ctx, nc, guest.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Init(ctx, guest.Init{Function: "f", Version: 1, Handler: "main.handler", Code: "/function"}); err != nil {
		t.Fatal(err)
	}
	cold = time.Since(begun)
	if err := conn.PrepareSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := sb.(driver.Snapshotter).Snapshot(ctx, dir); err != nil {
		return "", 0, err
	}
	select {
	case <-conn.Done():
	case <-time.After(10 * time.Second):
		t.Error("the saved sandbox goes on")
	}
	return dir, cold, nil
}

// restored is a sandbox made from a snapshot.
type restored struct {
	driver.Sandbox
	conn *guest.Conn
	took time.Duration

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (r *restored) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func (s *saving) restore(t *testing.T, id, dir string) *restored {
	t.Helper()
	ctx := t.Context()
	r := &restored{}
	spec := s.spec
	spec.ID, spec.Stdout = id, r
	begun := time.Now()
	var err error
	if r.Sandbox, err = s.Restore(ctx, spec, dir); err != nil {
		t.Fatal(err)
	}
	s.destroyAtEnd(t, r)
	nc, err := r.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.conn, err = guest.Resume(ctx, nc, guest.Options{Secret: secret}); err != nil {
		t.Fatal(err)
	}
	r.took = time.Since(begun)
	t.Cleanup(func() { r.conn.Close() })
	return r
}

// body collects the body of a response.
type body struct{ bytes.Buffer }

func (b *body) Head(*guest.Head) error      { return nil }
func (b *body) Data(p []byte, _ bool) error { b.Write(p); return nil }
func (b *body) Flush() error                { return nil }

// TestSnapshot checks that sandboxes restored from one snapshot, at the same
// time, go on where it was taken and share nothing that must be one's own.
func TestSnapshot(t *testing.T) {
	s := newSaving(t)
	dir, cold := s.save(t)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	type answer struct {
		Loaded, Kept string
		Time         float64
		Fresh        []string
	}
	var answers []answer
	var all []*restored
	for i := range 3 {
		all = append(all, s.restore(t, fmt.Sprintf("restored-%d", i), dir))
	}
	for i, r := range all {
		t.Logf("cold start with the load of the function %v, restored in %v", cold, r.took)
		var b body
		err := r.conn.Invoke(t.Context(), &guest.Call{ID: r.ID(), Kind: hearth.KindEvent, Deadline: time.Now().Add(time.Minute)}, &b)
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := json.Unmarshal(b.Bytes(), &a); err != nil {
			t.Fatalf("the call was answered with %q", &b.Buffer)
		}
		if off := time.Since(time.UnixMilli(int64(a.Time * 1000))).Abs(); off > time.Second {
			t.Errorf("the clock is off by %v", off)
		}
		if a.Loaded == "" || a.Kept != a.Loaded {
			t.Errorf("the function loaded %q and its file says %q", a.Loaded, a.Kept)
		}
		if st, err := r.Stats(t.Context()); err != nil || st.PIDs < 1 {
			t.Errorf("Stats: %+v, %v", st, err)
		}
		answers = append(answers, a)
		if i == 2 {
			continue // destroyed while it runs
		}
		if err := r.conn.Shutdown(time.Second); err != nil {
			t.Error(err)
		}
		if exit, err := r.Wait(t.Context()); err != nil || exit.Code != 0 || exit.Signal != 0 {
			t.Errorf("Wait: %+v, %v", exit, err)
		}
		r.mu.Lock()
		if got := r.out.String(); got != "raw output\n" {
			t.Errorf("the output is %q", got)
		}
		r.mu.Unlock()
	}
	for i, a := range answers {
		for _, b := range answers[:i] {
			if a.Loaded != b.Loaded {
				t.Error("the function was loaded again")
			}
			for k := range a.Fresh {
				if a.Fresh[k] == b.Fresh[k] {
					t.Errorf("value %d is %s in two sandboxes", k, a.Fresh[k])
				}
			}
		}
	}
}

// TestSnapshotSlot checks that a sandbox whose function came late is restored
// with that function as an ordinary mount.
func TestSnapshotSlot(t *testing.T) {
	s := newSaving(t)
	mounts := s.spec.Mounts
	s.late = &mounts[1]
	s.spec.Mounts, s.spec.Slots = []driver.Mount{mounts[0], mounts[2]}, []string{s.late.Target}
	dir, _ := s.save(t)
	s.spec.Mounts, s.spec.Slots = mounts, nil
	code := filepath.Join(s.late.Source, "late.py")
	if err := os.WriteFile(code, []byte("value = 1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		r := s.restore(t, fmt.Sprintf("restored-%d", i), dir)
		var b body
		err := r.conn.Invoke(t.Context(), &guest.Call{ID: "x", Kind: hearth.KindEvent, Deadline: time.Now().Add(time.Minute)}, &b)
		if err != nil || !strings.Contains(b.String(), "fresh") {
			t.Errorf("%s: %q, %v", r.ID(), b.String(), err)
		}
	}
}

// TestUnusableSnapshot checks that nothing is left of a sandbox that could not
// be restored, and that its name can be used.
func TestUnusableSnapshot(t *testing.T) {
	s := newSaving(t)
	dir, _ := s.save(t)
	spoil := func(t *testing.T, how func(path string) error) string {
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := how(filepath.Join(copied, "checkpoint.img")); err != nil {
			t.Fatal(err)
		}
		return copied
	}
	for name, how := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 1000) },
		"garbage":   func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("rot"), 10_000), 0o600) },
		"gone":      os.Remove,
		"of another image": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), imageFile), []byte("/another"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := s.spec
			spec.ID = "unusable"
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			sb, err := s.Restore(ctx, spec, spoil(t, how))
			if err == nil {
				s.destroyAtEnd(t, sb)
			}
			if hearth.ErrorCode(err) != hearth.CodeUnavailable {
				t.Fatalf("Restore: %v, want %s", err, hearth.CodeUnavailable)
			}
			if ctx.Err() != nil {
				t.Fatal("it took too long to notice")
			}
			if _, err := os.Stat(s.bundle(spec.ID)); !os.IsNotExist(err) {
				t.Errorf("the bundle is left: %v", err)
			}
			if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), spec.ID) {
				t.Errorf("a mount is left (%v)", err)
			}
			again, err := s.Create(t.Context(), spec)
			if err != nil {
				t.Fatalf("Create after it: %v", err)
			}
			if err := again.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Only what can be restored is offered to be saved.
func TestSnapshotOffer(t *testing.T) {
	for dialect, want := range map[Dialect]bool{Runc: false, GVisor: true} {
		d := newDriver(t, dialect, t.TempDir(), "offer")
		if _, got := d.offer(d.newSandbox("x")).(driver.Snapshotter); got != want {
			t.Errorf("%s offers to save a sandbox: %v, want %v", dialect, got, want)
		}
		_, err := d.Restore(t.Context(), driver.Spec{ID: "x"}, t.TempDir())
		if code := hearth.ErrorCode(err); (code == hearth.CodeUnsupported) == want {
			t.Errorf("%s: Restore: %v", dialect, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSnapshotNetwork checks that restored sandboxes have a way to the internet
// if the saved one had, each its own, and that it is no wider.
func TestSnapshotNetwork(t *testing.T) {
	s := newSaving(t)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	address := ""
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil && !ip.IsLoopback() {
			address = ip.String()
		}
	}
	if address == "" {
		t.Skip("this host has no address but the loopback's")
	}
	serve := func() string { // greets whoever connects
		l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte("hello"))
				c.Close()
			}
		}()
		return l.Addr().String()
	}
	open, closed := serve(), serve()
	s.spec.Egress, s.spec.Allow = hearth.EgressInternet, []string{open}
	if info, err := s.Probe(t.Context()); err != nil || !info.Internet {
		t.Skipf("this host gives sandboxes no network: %+v, %v", info.Limitations, err)
	}
	dir, _ := s.save(t)
	for i := range 2 {
		r := s.restore(t, fmt.Sprintf("networked-%d", i), dir)
		for _, c := range []struct{ to, want string }{{open, `"hello"`}, {closed, `"refused"`}} {
			host, port, _ := net.SplitHostPort(c.to)
			event := fmt.Appendf(nil, `{"host":%q,"port":%s}`, host, port)
			var b body
			err := r.conn.Invoke(t.Context(), &guest.Call{
				ID: "x", Kind: hearth.KindEvent, Deadline: time.Now().Add(time.Minute), Body: event,
			}, &b)
			if err != nil || b.String() != c.want {
				t.Errorf("%s: a connection to %s: %q, %v; want %s", r.ID(), c.to, b.String(), err, c.want)
			}
		}
	}
}
