package build_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
)

// scripted returns the files of a source that depends on a Python package
// beside it, during whose build code runs.
func scripted(code string) map[string]string {
	return map[string]string{
		"requirements.txt":   "./pkg\n",
		"pkg/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n",
		"pkg/backend.py": `
import os, socket, subprocess, sys, time, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    files = {"pkg/__init__.py": ""}
    run(files)
    files["pkg-1.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: pkg\nVersion: 1\n"
    files["pkg-1.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files["pkg-1.dist-info/RECORD"] = ""
    with zipfile.ZipFile(os.path.join(directory, "pkg-1-py3-none-any.whl"), "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return "pkg-1-py3-none-any.whl"

def run(files):
` + indent(code),
	}
}

func indent(code string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n    ") + "\n"
}

// offline is a configuration whose only index is one that nobody serves.
func offline() build.Config {
	return build.Config{Env: map[string]string{"PIP_NO_INDEX": "1"}}
}

func TestMissingDependency(t *testing.T) {
	h := newHost(t)
	p, w := wheel(t, "alpha", "1.0", map[string]string{"alpha.py": ""})
	g := newRegistry(t, map[string][]byte{p: w})
	cfg := g.config()
	cfg.Dir = filepath.Join(openDir(t), "builds")
	b := newBuilder(t, cfg)
	h.fail(t, b, "python", write(t, map[string]string{"requirements.txt": "alpha\nno-such-thing==3\n"}),
		hearth.CodeInvalid, "pip failed", "No matching distribution found for no-such-thing==3")
	h.fail(t, b, "python", write(t, map[string]string{"requirements.txt": "alpha==9\n"}),
		hearth.CodeInvalid, "alpha==9", "from versions: 1.0")
	h.fail(t, b, "nodejs", write(t, map[string]string{"package.json": `{"dependencies":{"no-such-thing":"^3"}}`}),
		hearth.CodeInvalid, "npm failed", "no-such-thing", "404")
	for _, dir := range []string{"keys", "trees"} {
		if left, err := os.ReadDir(filepath.Join(cfg.Dir, dir)); err != nil || len(left) > 0 {
			t.Errorf("failed builds are remembered: %v %v", left, err)
		}
	}
}

func TestLockDisagrees(t *testing.T) {
	h := newHost(t)
	pad, lock := npmPackage(t, "padding", "1.2.3", nil, map[string]string{"index.js": ""})
	p, w := wheel(t, "alpha", "1.0", map[string]string{"alpha.py": ""})
	pad[p] = w
	tool, _ := npmPackage(t, "tool", "1.0.0", nil, nil)
	maps.Copy(pad, tool)
	g := newRegistry(t, pad)
	b := newBuilder(t, g.config())
	h.fail(t, b, "nodejs", write(t, map[string]string{
		"package.json":      `{"name":"f","dependencies":{"padding":"^1.0.0","tool":"^1.0.0"}}`,
		"package-lock.json": lockOf(t, map[string]string{"padding": "^1.0.0"}, map[string]any{"padding": lock}),
	}), hearth.CodeInvalid, "npm failed", "in sync", "npm install")

	other := maps.Clone(lock)
	other["integrity"] = "sha512-" + strings.Repeat("A", 86) + "=="
	h.fail(t, b, "nodejs", write(t, map[string]string{
		"package.json":      `{"name":"f","dependencies":{"padding":"^1.0.0"}}`,
		"package-lock.json": lockOf(t, map[string]string{"padding": "^1.0.0"}, map[string]any{"padding": other}),
	}), hearth.CodeInvalid, "npm failed", "EINTEGRITY")

	h.fail(t, b, "python", write(t, map[string]string{"requirements.txt": "alpha==1.0 --hash=sha256:" + hexSum([]byte("other")) + "\n"}),
		hearth.CodeInvalid, "pip failed", "DO NOT MATCH THE HASHES")
	h.must(t, b, "python", write(t, map[string]string{"requirements.txt": "alpha==1.0 --hash=sha256:" + hexSum(w) + "\n"}))
}

// TestScriptSeesNothingOfTheHost runs a script that looks for what it must not
// find.
func TestScriptSeesNothingOfTheHost(t *testing.T) {
	h := newHost(t)
	t.Setenv("HOST_SECRET", "topsecret-environment")
	dir := openDir(t)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("topsecret-file"), 0o644); err != nil {
		t.Fatal(err)
	}
	var touched atomic.Int64
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			touched.Add(1)
			_ = c.Close()
		}
	}()
	var targets []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && !ip.IsLinkLocalUnicast() {
			targets = append(targets, ip.String())
		}
	}
	code := fmt.Sprintf(`
found = []
for p in [%q, "/etc/shadow", "/etc/pip.conf", "/root/.bashrc", "/root/.config", "/home", "/var/lib", "/proc/1/environ", "/run/docker.sock", "/var/run/docker.sock"]:
    try:
        found.append((p, os.listdir(p) if os.path.isdir(p) else open(p, "rb").read()))
    except OSError:
        pass
for a in %s:
    try:
        socket.create_connection((a, %d), 2).close()
        found.append(a)
    except OSError:
        pass
for p in ["/function/source/x", "/function/x", "/usr/x", "/hearth/guest/x", "/etc/x"]:
    try:
        open(p, "w").close()
        found.append("wrote " + p)
    except OSError:
        pass
files["pkg/found.txt"] = repr([f for f in found if f[0] != "/proc/1/environ"]) + repr(dict(os.environ)) + repr(found)
files["pkg/uid.txt"] = str(os.getuid())
`, secret, "["+quoteAll(targets)+"]", l.Addr().(*net.TCPAddr).Port)
	r := h.must(t, newBuilder(t, offline()), "python", write(t, scripted(code)))
	found, err := os.ReadFile(filepath.Join(r.out, ".hearth/python/pkg/found.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(found), "[]") {
		t.Errorf("the script has found %s", found)
	}
	if strings.Contains(string(found), "topsecret") {
		t.Errorf("the script has seen a secret: %s", found)
	}
	if touched.Load() > 0 {
		t.Error("the script has reached a service of the host")
	}
	if uid, _ := os.ReadFile(filepath.Join(r.out, ".hearth/python/pkg/uid.txt")); string(uid) != "1000" {
		t.Errorf("the script ran as user %s", uid)
	}
}

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, ", ")
}

func TestLimits(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		name, code string
		change     func(*build.Config)
		want       hearth.Code
		texts      []string
	}{
		{
			"never ends", `print("waiting", flush=True)` + "\ntime.sleep(3600)",
			func(c *build.Config) { c.Timeout = 4 * time.Second }, hearth.CodeTimeout,
			[]string{"limit of 4s"},
		},
		{
			"never ends and ignores signals", "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: time.sleep(60)",
			func(c *build.Config) { c.Timeout = 4 * time.Second }, hearth.CodeTimeout,
			[]string{"limit of 4s"},
		},
		{
			"writes too much", `
with open("/tmp/big", "wb") as f:
    for i in range(64):
        f.write(b"x" * (1 << 20))`,
			func(c *build.Config) { c.Disk = 32 << 20 }, hearth.CodeInvalid,
			[]string{"wrote more than the limit of 32"},
		},
		{
			"takes too much memory", "x = bytearray(512 << 20)\nfiles['pkg/x'] = str(len(x))",
			func(c *build.Config) { c.Memory = 256 << 20 }, hearth.CodeInvalid,
			[]string{"more memory than the limit of 256"},
		},
		{
			"installs too much", `files["pkg/big.txt"] = "x" * (3 << 20)`,
			func(c *build.Config) { c.Limits.Unpacked = 2 << 20 }, hearth.CodeInvalid,
			[]string{"3.", "limit of 2", "pkg (3."},
		},
		{
			"installs too many files", `
for i in range(600): files["pkg/%d.txt" % i] = ""`,
			func(c *build.Config) { c.Limits.Files = 500 }, hearth.CodeInvalid,
			[]string{"limit of 500", "60"},
		},
		{
			"kills the builder", `
import signal
for p in os.listdir("/proc"):
    if p.isdigit() and int(p) != os.getpid():
        try: os.kill(int(p), signal.SIGKILL)
        except OSError: pass
time.sleep(60)`, func(c *build.Config) { c.Timeout = 20 * time.Second }, hearth.CodeInvalid, []string{"without a result"},
		},
		{
			"fails", `sys.stderr.write("I will not be built\n"); raise SystemExit(7)`,
			func(*build.Config) {}, hearth.CodeInvalid,
			[]string{"pip failed"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "takes too much memory" && !h.info.MemoryLimit {
				t.Skip("this host does not enforce the memory limit")
			}
			cfg := offline()
			c.change(&cfg)
			b := newBuilder(t, cfg)
			start := time.Now()
			r := h.fail(t, b, "python", write(t, scripted(c.code)), c.want, c.texts...)
			t.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), r.err)
			list, err := h.driver.List(t.Context())
			if err != nil || len(list) > 0 {
				t.Errorf("sandboxes remain: %v %v", list, err)
			}
		})
	}
}

func TestUnreachableRegistry(t *testing.T) {
	h := newHost(t)
	g := newRegistry(t, nil)
	cfg := g.config()
	cfg.Allow = []string{"192.0.2.1:443"} // not the registry
	cfg.Env["PIP_RETRIES"] = "1"          // without any, pip does not say what was wrong
	b := newBuilder(t, cfg)
	h.fail(t, b, "python", write(t, map[string]string{"requirements.txt": "alpha\n"}), hearth.CodeUnavailable, "pip could not reach a registry", "--build-allow")
	h.fail(t, b, "nodejs", write(t, map[string]string{"package.json": `{"dependencies":{"a":"1"}}`}), hearth.CodeUnavailable, "npm could not reach a registry")
	if n := g.requests(); n > 0 {
		t.Errorf("the registry was reached %d times although it is not allowed", n)
	}
}

func TestCancel(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	source := write(t, scripted(`print("waiting", flush=True); time.sleep(3600)`))
	// The log is a stream: what it says stops the build. pip passes on what a
	// build prints only with its result, but not what it says itself.
	r := h.build(ctx, t, b, "python", source, func(r *build.Request) {
		r.Log = writerFunc(func(p []byte) (int, error) {
			if strings.Contains(string(p), "Processing ./pkg") {
				cancel()
			}
			return len(p), nil
		})
	})
	if hearth.ErrorCode(r.err) != hearth.CodeCanceled {
		t.Errorf("Build: %v", r.err)
	}
	if list, err := h.driver.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("sandboxes remain: %v %v", list, err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestSingleFlight builds the same dependencies several times at once. The one
// that began goes away; the others still get the result and the whole log.
func TestSingleFlight(t *testing.T) {
	h := newHost(t)
	gate := make(chan struct{})
	p, w := wheel(t, "alpha", "1.0", map[string]string{"alpha.py": "x = 1\n"})
	g := newRegistry(t, map[string][]byte{p: w})
	b := newBuilder(t, g.config())
	defer func() {
		select {
		case <-gate:
		default:
			close(gate)
		}
	}()
	g.block(gate)
	files := map[string]string{"requirements.txt": "alpha==1.0\n", "main.py": ""}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := make(chan error, 1)
	source := write(t, files)
	go func() { first <- h.build(ctx, t, b, "python", source).err }()
	<-g.asked // it is under way
	var wg sync.WaitGroup
	results := make([]built, 3)
	joined := make(chan struct{}, len(results))
	for i := range results {
		files["main.py"] = fmt.Sprint("x = ", i)
		source := write(t, files)
		wg.Go(func() {
			var text lockedBuffer
			results[i] = h.build(t.Context(), t, b, "python", source, func(r *build.Request) {
				r.Log = writerFunc(func(p []byte) (int, error) {
					if strings.Contains(string(p), "are being installed already") {
						joined <- struct{}{}
					}
					return text.Write(p)
				})
			})
			results[i].log = text.String()
		})
	}
	for range results {
		<-joined
	}
	cancel()
	if err := <-first; hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Errorf("the first build: %v", err)
	}
	close(gate)
	wg.Wait()
	for _, r := range results {
		if r.err != nil || r.Cached || r.Dependencies.Digest != results[0].Dependencies.Digest || !strings.Contains(r.log, "Successfully installed alpha-1.0") {
			t.Errorf("a waiting build: %v %+v\n%s", r.err, r.Result, r.log)
		}
	}
	if n := g.count("/" + p); n != 1 {
		t.Errorf("the package was fetched %d times", n)
	}
}

// TestBuilderCloses stops a build by closing the builder.
func TestBuilderCloses(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	var once sync.Once
	closed := make(chan error, 1)
	r := h.build(t.Context(), t, b, "python", write(t, scripted(`time.sleep(3600)`)), func(r *build.Request) {
		r.Log = writerFunc(func(p []byte) (int, error) {
			once.Do(func() { go func() { closed <- b.Close() }() })
			return len(p), nil
		})
	})
	if hearth.ErrorCode(r.err) != hearth.CodeCanceled {
		t.Errorf("Build: %v", r.err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if r := h.build(t.Context(), t, b, "python", write(t, scripted(``))); hearth.ErrorCode(r.err) != hearth.CodeUnavailable {
		t.Errorf("Build after Close: %v", r.err)
	}
}

// brokenDriver makes no sandboxes.
type brokenDriver struct{ driver.Driver }

func (brokenDriver) Create(context.Context, driver.Spec) (driver.Sandbox, error) {
	return nil, hearth.Errorf(hearth.CodeUnavailable, "no room").WithHint("make some")
}

func TestDriverFails(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	r := h.build(t.Context(), t, b, "python", write(t, scripted("")), func(r *build.Request) { r.Driver = brokenDriver{} })
	var e *hearth.Error
	if !errors.As(r.err, &e) || e.Code != hearth.CodeUnavailable || e.Hint != "make some" || !strings.Contains(r.err.Error(), "no room") {
		t.Errorf("Build: %v", r.err)
	}
}
