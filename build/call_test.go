package build_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// call calls the function in dir once, in a sandbox, and returns what it says.
func (h *host) call(t *testing.T, language, dir, handler string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := h.driver.Create(ctx, driver.Spec{
		ID: "call", Runtime: h.runtime(t, language).Name, Mounts: []driver.Mount{{Source: dir, Target: "/function"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Destroy(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	nc, err := s.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := guest.Connect(ctx, nc, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Init(ctx, guest.Init{Function: "f", Version: 1, Handler: handler, Code: "/function", MemoryMB: 128}); err != nil {
		t.Fatalf("the function does not load: %v %+v", err, hearth.AsError(err).Function)
	}
	var out sink
	if err := c.Invoke(ctx, &guest.Call{ID: "1", Deadline: time.Now().Add(time.Minute), Kind: hearth.KindEvent, Body: []byte("{}")}, &out); err != nil {
		t.Fatalf("the function fails: %v %+v", err, hearth.AsError(err).Function)
	}
	return out.String()
}

// sink keeps a response's body.
type sink struct{ bytes.Buffer }

func (*sink) Head(*guest.Head) error { return nil }

func (s *sink) Data(p []byte, _ bool) error {
	_, err := s.Write(p)
	return err
}

func (*sink) Flush() error { return nil }

// TestFunctionsUseDependencies calls what was built.
func TestFunctionsUseDependencies(t *testing.T) {
	h := newHost(t)
	files := map[string][]byte{}
	for name, content := range map[string]map[string]string{
		"alpha": {"alpha/__init__.py": "def where(): return __file__, __cached__, where.__code__.co_filename\n"},
		"beta":  {"beta.pth": "beta-src\nimport sys; sys.beta = 'ran'\n", "beta-src/beta.py": "x = 'beta'\n"},
		"json":  {"json.py": "raise ImportError('not the one of the standard library')\n"},
		"main":  {"main.py": "raise ImportError('not the function')\n"},
	} {
		p, w := wheel(t, name, "1.0", content)
		files[p] = w
	}
	g := newRegistry(t, files)
	b := newBuilder(t, g.config())
	source := map[string]string{
		"requirements.txt": "alpha\njson\nmain\n",
		"main.py":          "import alpha, sys, json\ndef handler(e, c): return [*alpha.where(), [m for m in ('site', 'zoneinfo') if m in sys.modules]]\n",
	}
	r := h.must(t, b, "python", write(t, source))
	tag := map[bool]string{true: "", false: ""}
	_ = tag
	got := h.call(t, "python", r.out, "main.handler")
	if want := `["/function/.hearth/python/alpha/__init__.py", "/function/.hearth/python/alpha/__pycache__/__init__.`; len(got) < len(want) || got[:len(want)] != want {
		t.Errorf("the function says %s", got)
	}
	if want := `"/function/.hearth/python/alpha/__init__.py", []]`; len(got) < len(want) || got[len(got)-len(want):] != want {
		t.Errorf("the function says %s, want %s at its end", got, want)
	}
	source["requirements.txt"] = "beta\n"
	source["main.py"] = "import beta, sys\ndef handler(e, c): return [beta.x, sys.beta]\n"
	r = h.must(t, b, "python", write(t, source))
	if got := h.call(t, "python", r.out, "main.handler"); got != `["beta", "ran"]` {
		t.Errorf("with a .pth file the function says %s", got)
	}
}

// TestNodeJSFunctionsUseDependencies calls what was built, as each kind of module.
func TestNodeJSFunctionsUseDependencies(t *testing.T) {
	h := newHost(t)
	pad, lock := npmPackage(t, "padding", "1.2.3",
		map[string]any{"main": "index.js", "bin": map[string]string{"pad": "index.js"}, "scripts": map[string]string{"postinstall": "node -e \"require('fs').writeFileSync('made.js', 'module.exports = 7')\""}},
		map[string]string{"index.js": "#!/usr/bin/env node\nmodule.exports = require('./made.js')\n"})
	g := newRegistry(t, pad)
	b := newBuilder(t, g.config())
	source := map[string]string{
		"package.json":      `{"name":"f","dependencies":{"padding":"^1.0.0"}}`,
		"package-lock.json": lockOf(t, map[string]string{"padding": "^1.0.0"}, map[string]any{"padding": lock}),
	}
	for name, code := range map[string]string{
		"main.cjs": "exports.handler = async () => require('padding')\n",
		"main.mjs": "import padding from 'padding'\nexport const handler = async () => padding\n",
	} {
		files := map[string]string{name: code}
		for k, v := range source {
			files[k] = v
		}
		r := h.must(t, b, "nodejs", write(t, files))
		if got := h.call(t, "nodejs", r.out, "main.handler"); got != "7" {
			t.Errorf("%s says %s", name, got)
		}
		if !exists(t, r.out, "node_modules/.bin/pad") {
			t.Error("node_modules/.bin is missing")
		}
	}
}
