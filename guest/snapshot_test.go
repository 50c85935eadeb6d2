package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hearthrun/hearth"
)

func TestPrepareSnapshotAndResume(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		code         hearth.Code // of PrepareSnapshot
	}{
		{"granted", `{"snapshot":true}`, ""},
		{"refused", `{"snapshot":false,"reason":"it has threads"}`, hearth.CodeUnsupported},
		{"nonsense", `[]`, hearth.CodeFunction},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			near, far := socketpair(t)
			asked := make(chan []gotFrame, 1)
			go func() {
				g := &script{tb: t, nc: far}
				var got []gotFrame
				for i, answer := range []string{`{"protocol":1,"runtime":"x","pid":1}`, `{"snapshot":true}`, c.answer} {
					f, err := g.next()
					if err != nil {
						t.Errorf("frame %d: %v", i, err)
						break
					}
					got = append(got, f)
					g.send(typeReady, 0, answer)
				}
				asked <- got
			}()
			conn, _, err := Connect(ctx, near, Options{Secret: "s"})
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			defer conn.Close()
			ready, err := conn.Init(ctx, Init{})
			if err != nil || !ready.Snapshot {
				t.Fatalf("Init: %+v, %v", ready, err)
			}
			err = conn.PrepareSnapshot(ctx)
			if c.code == "" && err != nil {
				t.Fatal(err)
			}
			if c.code != "" {
				wantError(t, err, c.code, "")
			}
			if c.code == hearth.CodeUnsupported && !strings.Contains(err.Error(), "it has threads") {
				t.Errorf("the error %q does not tell why", err)
			}
			if got := <-asked; len(got) != 3 || got[2].typ != typeSnapshot || got[2].stream != 0 || got[2].payload != `{}` {
				t.Errorf("the host sent %+v", got)
			}
		})
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seeds := map[string]bool{}
	for range 2 {
		near, far := socketpair(t)
		heads := make(chan string, 1)
		go func() {
			g := &script{tb: t, nc: far}
			f, _ := g.next()
			if f.typ != typeRestored || f.stream != 0 {
				t.Errorf("a restored guest was greeted with %+v", f)
			}
			g.send(typeReady, 0, `{}`)
			heads <- f.payload
		}()
		conn, err := Resume(ctx, near, Options{Secret: "s"})
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		far.Close()
		var head struct{ Secret, Seed string }
		if err := json.Unmarshal([]byte(<-heads), &head); err != nil || head.Secret != "s" || len(head.Seed) != 2*seedSize {
			t.Errorf("RESTORED says %+v, %v", head, err)
		}
		seeds[head.Seed] = true
	}
	if len(seeds) != 2 {
		t.Error("two guests got the same seed")
	}

	near, far := socketpair(t)
	far.Close() // it could not go on
	_, err := Resume(ctx, near, Options{})
	wantError(t, err, hearth.CodeFunction, "Runtime.ExitError")
}

// chance is a function that used chance before it was saved.
const chance = `
import os, random, secrets, socket, ssl, tempfile, time, uuid
try:
    import numpy
    numpy.random.rand()
except ImportError:
    numpy = None
random.random(); uuid.uuid1(); uuid.uuid4(); ssl.RAND_bytes(8); next(tempfile._get_candidate_names())
loaded = str(uuid.uuid4())
monotonic = time.monotonic()

def handler(event, context):
    fresh = {
        "random": random.random(), "urandom": os.urandom(8).hex(), "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(8), "ssl": ssl.RAND_bytes(8).hex(), "tempfile": next(tempfile._get_candidate_names()),
        "system": random.SystemRandom().random(), "hostname": socket.gethostname(),
    }
    if numpy:
        fresh["numpy"] = numpy.random.rand()
    return {"fresh": fresh, "loaded": loaded, "time": time.time(), "monotonic": time.monotonic() - monotonic,
            "deadline": context.get_remaining_time_in_millis()}
`

// answer is what the function above returns.
type answer struct {
	Fresh           map[string]any
	Loaded          string
	Time, Monotonic float64
	Deadline        int
}

// TestRestoredGuests saves a real guest in a real gVisor sandbox and checks that
// those restored from it share nothing that must be one's own.
func TestRestoredGuests(t *testing.T) {
	g := newGVisor(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const secret = "open sesame"

	nc := g.start(t, "first", "run")
	first, _, err := Connect(ctx, nc, Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ready, err := first.Init(ctx, Init{Function: "f", Version: 1, Handler: "main.handler", Code: g.code})
	if err != nil || !ready.Snapshot {
		t.Fatalf("Init: %+v, %v", ready, err)
	}
	if err := first.PrepareSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	g.must(t, "checkpoint", "--image-path", g.image, "first")

	const instances = 3
	var answers []answer
	for i := range instances {
		name := fmt.Sprintf("sandbox-%d", i)
		conn, err := Resume(ctx, g.start(t, name, "restore", "--image-path", g.image), Options{Secret: secret})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer conn.Close()
		r := &recorder{}
		if err := conn.Invoke(ctx, &Call{ID: name, Kind: hearth.KindEvent, Deadline: time.Now().Add(time.Minute)}, r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var a answer
		if err := json.Unmarshal(r.body, &a); err != nil {
			t.Fatalf("%s answered %q", name, r.body)
		}
		if off := time.Since(time.UnixMilli(int64(a.Time * 1000))).Abs(); off > time.Second {
			t.Errorf("the clock of %s is off by %v", name, off)
		}
		if a.Monotonic < 0 || a.Deadline < 30_000 || a.Deadline > 60_000 {
			t.Errorf("%s measures time as %+v", name, a)
		}
		if a.Fresh["hostname"] != name {
			t.Errorf("%s calls itself %v", name, a.Fresh["hostname"])
		}
		answers = append(answers, a)
	}
	for i, a := range answers[1:] {
		if a.Loaded != answers[0].Loaded {
			t.Error("the function was loaded again")
		}
		for _, other := range answers[:i+1] {
			for what, v := range a.Fresh {
				if v == other.Fresh[what] {
					t.Errorf("%s is %v in two sandboxes", what, v)
				}
			}
		}
	}
}

// gvisor starts guests for Python in sandboxes of gVisor, with the host's files
// to read.
type gvisor struct {
	runsc, python    string
	dir, code, image string
}

func newGVisor(t *testing.T) *gvisor {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gVisor sandboxes need root")
	}
	g := &gvisor{dir: t.TempDir()}
	t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(g.dir, "state", "null-netns"), syscall.MNT_DETACH) })
	g.runsc, _ = filepath.Abs("../bin/tools/runsc")
	if _, err := os.Stat(g.runsc); err != nil {
		if g.runsc, err = exec.LookPath("runsc"); err != nil {
			t.Skip("runsc is not installed; scripts/runsc.sh builds it")
		}
	}
	out, err := exec.CommandContext(t.Context(), "python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Skip("python3 is not installed")
	}
	g.python = strings.TrimSpace(string(out))
	g.code, g.image = filepath.Join(g.dir, "code"), filepath.Join(g.dir, "image")
	for _, dir := range []string{g.code, g.image} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(g.code, "main.py"), []byte(chance), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(g.dir, "shims"), Shims()); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gvisor) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, g.runsc, append([]string{
		"--root=" + filepath.Join(g.dir, "state"), "--platform=systrap", "--ignore-cgroups", "--network=none", "--overlay2=none",
	}, args...)...)
}

func (g *gvisor) must(t *testing.T, args ...string) {
	t.Helper()
	if out, err := g.command(t.Context(), args...).CombinedOutput(); err != nil {
		t.Fatalf("runsc %s: %v\n%s", args[0], err, out)
	}
}

// start runs a sandbox whose standard input is the stream that is returned. It
// is destroyed at the end of the test.
func (g *gvisor) start(t *testing.T, id string, args ...string) net.Conn {
	t.Helper()
	bundle := filepath.Join(g.dir, "bundle-"+id)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(specs.Spec{
		Version:  "1.0.2",
		Hostname: id,
		Root:     &specs.Root{Path: "/", Readonly: true},
		Process: &specs.Process{
			Cwd:  "/",
			Args: Command("python", g.python, filepath.Join(g.dir, "shims")),
			Env:  []string{"PATH=/usr/bin:/bin", "HEARTH_FD=0", "HEARTH_SECRET=open sesame"},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	near, far := socketpair(t)
	stdin, err := far.(*net.UnixConn).File()
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := g.command(context.WithoutCancel(t.Context()), append(args, "--bundle", bundle, id)...)
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &output, &output
	err = cmd.Start()
	stdin.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if out, err := g.command(ctx, "delete", "--force", id).CombinedOutput(); err != nil {
			t.Logf("runsc delete: %v\n%s", err, out)
		}
		_ = cmd.Wait() // killed
		if t.Failed() && output.Len() > 0 {
			t.Logf("%s: %s", id, output.Bytes())
		}
	})
	return near
}
