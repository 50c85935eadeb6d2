package build_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/native"
)

// host is a driver with the runtimes that builds are tested with.
type host struct {
	driver driver.Driver
	info   driver.Info
}

// newHost makes a driver, which must have no sandbox at the end of the test.
func newHost(t *testing.T) *host {
	t.Helper()
	// Not t.TempDir: an ordinary user's sandbox must be able to enter it.
	dir := openDir(t)
	d, err := native.New(native.Config{Dir: filepath.Join(dir, "native"), Owner: "build-" + filepath.Base(dir)[len("hearth-build-"):]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		list, err := d.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, s := range list {
			t.Errorf("sandbox %s is left over", s.ID())
			_ = s.Destroy(context.Background())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	info, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.Works || !info.Internet {
		t.Skipf("the driver native cannot make a sandbox with internet here: %v %v", info.Missing, info.Limitations)
	}
	return &host{driver: d, info: info}
}

func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hearth-build-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// runtime returns the newest runtime of a language that has an installer.
func (h *host) runtime(t *testing.T, language string) driver.Runtime {
	t.Helper()
	for _, rt := range h.info.Runtimes {
		if rt.Language == language {
			return rt
		}
	}
	t.Skipf("this host has no runtime for %s", language)
	return driver.Runtime{}
}

func newBuilder(t *testing.T, cfg build.Config) *build.Builder {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(openDir(t), "builds")
	}
	b, err := build.NewBuilder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(filepath.Join(cfg.Dir, "temp")); err != nil || len(left) > 0 {
			t.Errorf("temporary directories are left over: %v %v", left, err)
		}
	})
	return b
}

// write makes a source directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(openDir(t), "source")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := build.WriteFiles(t.Context(), files, dir, build.Limits{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// built is the outcome of a build.
type built struct {
	build.Result
	out, log string
	err      error
}

// buildSource builds a source directory.
func (h *host) build(ctx context.Context, t *testing.T, b *build.Builder, language, source string, change ...func(*build.Request)) built {
	t.Helper()
	var log lockedBuffer
	r := build.Request{
		Driver: h.driver, Isolation: "native", Runtime: h.runtime(t, language),
		Source: source, Out: filepath.Join(openDir(t), "out"), Log: &log,
	}
	if err := os.Mkdir(r.Out, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&r)
	}
	res, err := b.Build(ctx, r)
	return built{Result: res, out: r.Out, log: log.String(), err: err}
}

// must is build for what must succeed.
func (h *host) must(t *testing.T, b *build.Builder, language, source string, change ...func(*build.Request)) built {
	t.Helper()
	r := h.build(t.Context(), t, b, language, source, change...)
	if r.err != nil {
		t.Fatalf("Build: %v (hint: %s)\n%s", r.err, hearth.AsError(r.err).Hint, r.log)
	}
	return r
}

// fail is build for what must fail with a code and texts in the message or hint.
func (h *host) fail(t *testing.T, b *build.Builder, language, source string, code hearth.Code, texts ...string) built {
	t.Helper()
	r := h.build(t.Context(), t, b, language, source)
	e := hearth.AsError(r.err)
	if r.err == nil || e.Code != code || e.Hint == "" {
		t.Fatalf("Build: %v (code %v, hint %q), want %s\n%s", r.err, hearth.ErrorCode(r.err), hearth.AsError(r.err).Hint, code, r.log)
	}
	for _, text := range texts {
		if !strings.Contains(e.Message+"\n"+e.Hint, text) {
			t.Errorf("the error is %q with the hint %q, want %q in it\n%s", e.Message, e.Hint, text, r.log)
		}
	}
	return r
}

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

// registry is an index of Python packages and of npm packages, on an address
// of this host that sandboxes reach only because it is allowed.
type registry struct {
	*httptest.Server
	addr  string
	files map[string][]byte // by path; constant once the registry serves

	asked chan struct{} // closed at the first request

	mu   sync.Mutex
	hits map[string]int  // guarded by mu
	gate <-chan struct{} // guarded by mu; packages are sent when it is closed
}

func newRegistry(t *testing.T, files map[string][]byte) *registry {
	t.Helper()
	g := &registry{files: files, asked: make(chan struct{}), hits: map[string]int{}}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip, _, err := net.ParseCIDR(a.String())
		if err != nil || ip.To4() == nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0")) //nolint:noctx // it is bound at once
		if err != nil {
			continue
		}
		g.addr = l.Addr().String()
		g.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: g, ReadHeaderTimeout: time.Minute}}
		g.Start()
		t.Cleanup(g.Close)
		return g
	}
	t.Skip("this host has no address but loopback, where sandboxes could reach a registry")
	return nil
}

// ServeHTTP implements http.Handler.
func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	if len(g.hits) == 0 {
		close(g.asked)
	}
	g.hits[r.URL.Path]++
	gate := g.gate
	g.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	p := strings.Trim(r.URL.Path, "/")
	if b, ok := g.files[p]; ok {
		_, _ = w.Write(bytes.ReplaceAll(b, []byte("REGISTRY"), []byte("http://"+g.addr)))
		return
	}
	if name, ok := strings.CutPrefix(p, "simple/"); ok {
		var links strings.Builder
		for f, b := range g.files {
			if strings.HasPrefix(f, "pypi/"+name+"-") {
				fmt.Fprintf(&links, "<a href=\"/%s#sha256=%x\">%s</a>\n", f, sha256.Sum256(b), filepath.Base(f))
			}
		}
		if links.Len() > 0 {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, "<!DOCTYPE html><html><body>%s</body></html>", links.String())
			return
		}
	}
	http.NotFound(w, r)
}

// block holds answers back until gate is closed.
func (g *registry) block(gate <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gate = gate
}

// count returns how often a path was asked for.
func (g *registry) count(path string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hits[path]
}

// requests returns how often something was asked for.
func (g *registry) requests() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, k := range g.hits {
		n += k
	}
	return n
}

// config returns a configuration with which builds use the registry.
func (g *registry) config() build.Config {
	host, _, _ := net.SplitHostPort(g.addr)
	return build.Config{
		Allow: []string{g.addr},
		Env: map[string]string{
			"PIP_INDEX_URL": g.URL + "/simple", "PIP_TRUSTED_HOST": host, "PIP_RETRIES": "0",
			"npm_config_registry": g.URL + "/npm/", "npm_config_fetch_retries": "0",
		},
	}
}

// wheel makes a Python package.
func wheel(t *testing.T, name, version string, files map[string]string, requires ...string) (path string, content []byte) {
	t.Helper()
	info := name + "-" + version + ".dist-info/"
	meta := "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\n"
	for _, r := range requires {
		meta += "Requires-Dist: " + r + "\n"
	}
	all := map[string]string{
		info + "METADATA": meta,
		info + "WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
	}
	for p, c := range files {
		all[p] = c
	}
	var record strings.Builder
	for p, c := range all {
		sum := sha256.Sum256([]byte(c))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", p, base64.RawURLEncoding.EncodeToString(sum[:]), len(c))
	}
	all[info+"RECORD"] = record.String() + info + "RECORD,,\n"
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for p, c := range all {
		f, err := w.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return "pypi/" + name + "-" + version + "-py3-none-any.whl", buf.Bytes()
}

// npmPackage makes a package of npm: its tarball, its entry of the registry,
// and its entry of a lock file.
func npmPackage(t *testing.T, name, version string, manifest map[string]any, files map[string]string) (g map[string][]byte, lock map[string]any) {
	t.Helper()
	m := map[string]any{"name": name, "version": version}
	for k, v := range manifest {
		m[k] = v
	}
	all := map[string]string{"package/package.json": marshal(t, m)}
	for p, c := range files {
		all["package/"+p] = c
	}
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	tw := tar.NewWriter(gz)
	for p, c := range all {
		if err := tw.WriteHeader(&tar.Header{Name: p, Mode: 0o644, Size: int64(len(c)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(buf.Bytes())
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	file := "npm/" + name + "/-/" + name + "-" + version + ".tgz"
	full := map[string]any{"dist": map[string]any{"tarball": "REGISTRY/" + file, "integrity": integrity}}
	for k, v := range m {
		full[k] = v
	}
	lock = map[string]any{"version": version, "resolved": "https://registry.npmjs.org/" + strings.TrimPrefix(file, "npm/"), "integrity": integrity}
	if m["bin"] != nil {
		lock["bin"] = m["bin"] // npm ci links what the lock file names
	}
	if m["scripts"] != nil {
		lock["hasInstallScript"] = true
		full["hasInstallScript"] = true
	}
	return map[string][]byte{
		file: buf.Bytes(),
		"npm/" + name: []byte(marshal(t, map[string]any{
			"name": name, "dist-tags": map[string]string{"latest": version}, "versions": map[string]any{version: full},
		})),
	}, lock
}

// lockOf makes a package-lock.json.
func lockOf(t *testing.T, dependencies map[string]string, packages map[string]any) string {
	t.Helper()
	all := map[string]any{"": map[string]any{"name": "f", "dependencies": dependencies}}
	for name, p := range packages {
		all["node_modules/"+name] = p
	}
	return marshal(t, map[string]any{"name": "f", "lockfileVersion": 3, "requires": true, "packages": all})
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func exists(t *testing.T, elem ...string) bool {
	t.Helper()
	_, err := os.Lstat(filepath.Join(elem...))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err == nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
