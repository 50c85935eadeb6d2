package build_test

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/build"
)

func TestBuildPython(t *testing.T) {
	h := newHost(t)
	files := map[string][]byte{}
	p, w := wheel(t, "alpha", "1.0", map[string]string{"alpha/__init__.py": "import beta\nx = beta.x\n"}, "beta>=2")
	files[p] = w
	p, w = wheel(t, "beta", "2.1", map[string]string{"beta.py": "x = 42\n"})
	files[p] = w
	g := newRegistry(t, files)
	b := newBuilder(t, g.config())
	source := write(t, map[string]string{"main.py": "import alpha\ndef handler(e, c): return alpha.x\n", "requirements.txt": "alpha==1.0\n"})
	r := h.must(t, b, "python", source)
	if r.Cached || r.Manifest != "requirements.txt" {
		t.Errorf("result is %+v", r.Result)
	}
	for _, f := range []string{"main.py", "requirements.txt", ".hearth/python/alpha/__init__.py", ".hearth/python/beta.py"} {
		if !exists(t, r.out, f) {
			t.Errorf("%s is missing", f)
		}
	}
	if pyc, _ := filepath.Glob(r.out + "/.hearth/python/alpha/__pycache__/*.pyc"); len(pyc) != 1 {
		t.Errorf("alpha is not compiled: %v", pyc)
	}
	if !strings.Contains(r.log, "Successfully installed alpha-1.0 beta-2.1") {
		t.Errorf("the log lacks what pip said:\n%s", r.log)
	}
	asked := g.requests()
	start := time.Now()
	again := h.must(t, b, "python", source)
	if d := time.Since(start); !again.Cached || again.Digest != r.Digest || g.requests() != asked || d > time.Second {
		t.Errorf("the second build took %v and %d requests: %+v, first %+v", d, g.requests()-asked, again.Result, r.Result)
	}
}

func TestBuildNodeJS(t *testing.T) {
	h := newHost(t)
	pad, padLock := npmPackage(t, "padding", "1.2.3", map[string]any{"main": "index.js"}, map[string]string{"index.js": "module.exports = (s) => ' ' + s\n"})
	dev, _ := npmPackage(t, "tool", "1.0.0", nil, nil)
	maps.Copy(pad, dev)
	g := newRegistry(t, pad)
	b := newBuilder(t, g.config())
	source := write(t, map[string]string{
		"main.js":      "exports.handler = async () => require('padding')('x')\n",
		"package.json": `{"name":"f","dependencies":{"padding":"^1.0.0"},"scripts":{"postinstall":"exit 3"}}`,
		"package-lock.json": lockOf(t, map[string]string{"padding": "^1.0.0"},
			map[string]any{"padding": padLock}),
	})
	r := h.must(t, b, "nodejs", source)
	if !exists(t, r.out, "node_modules/padding/index.js") || r.Cached || r.Manifest != "package.json" {
		t.Errorf("result is %+v\n%s", r.Result, r.log)
	}
	if again := h.must(t, b, "nodejs", source); !again.Cached || again.Digest != r.Digest {
		t.Errorf("the second build: %+v, first %+v", again.Result, r.Result)
	}
	before, err := os.ReadFile(filepath.Join(r.out, "package.json"))
	if err != nil || !strings.Contains(string(before), "postinstall") {
		t.Errorf("package.json of the artifact is not the source's: %s %v", before, err)
	}
}

// TestBuildFromRegistries installs real packages, one of them with compiled code.
func TestBuildFromRegistries(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, build.Config{})
	for _, c := range []struct {
		name, language, registry, want string
		files                          map[string]string
	}{
		{
			"a native wheel with hashes", "python", "pypi.org:443", ".hearth/python/markupsafe/_speedups.*.so",
			map[string]string{"requirements.txt": "markupsafe==3.0.2\nidna==3.10\n"},
		},
		{
			"a package of npm", "nodejs", "registry.npmjs.org:443", "node_modules/left-pad/index.js",
			map[string]string{"package.json": `{"dependencies":{"left-pad":"1.3.0"}}`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", c.registry)
			if err != nil {
				t.Skipf("the registry cannot be reached: %v", err)
			}
			_ = conn.Close()
			source := write(t, c.files)
			start := time.Now()
			r := h.must(t, b, c.language, source)
			t.Logf("built in %v, %d files\n%s", time.Since(start), r.Files, r.log)
			if found, _ := filepath.Glob(filepath.Join(r.out, c.want)); len(found) != 1 {
				t.Errorf("%s is missing", c.want)
			}
			start = time.Now()
			again := h.must(t, b, c.language, source)
			if d := time.Since(start); !again.Cached || d > time.Second {
				t.Errorf("the second build took %v, cached: %v", d, again.Cached)
			}
		})
	}
}
