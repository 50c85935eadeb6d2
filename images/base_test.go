package images

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/hearthrun/hearth"
)

// baseImage is a base of two layers, the second of which removes a file of the
// first, with a configuration as bases have it.
func baseImage(t *testing.T, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, b := range [][]byte{
		archive(t, program("usr/local/bin/python3.12", "py"), symlink("usr/local/bin/python3", "python3.12"), file("etc/gone", "x")),
		archive(t, file("etc/.wh.gone", ""), file("etc/second", "2")),
	} {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{
		Env:  []string{"PATH=/usr/local/bin:/usr/bin", "PYTHON_VERSION=3.12.4", "LANG=other"},
		User: "daemon", Cmd: []string{"python3"}, Volumes: map[string]struct{}{"/data": {}},
		Labels: map[string]string{"org.example": "kept"},
	}
	if change != nil {
		change(cfg)
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

// hub is a registry on loopback.
type hub struct {
	*httptest.Server
	host string
	// intercept may answer a request itself; then it returns true.
	intercept func(http.ResponseWriter, *http.Request) bool
}

func newHub(t *testing.T) *hub {
	t.Helper()
	// What docker login left on this machine is not asked.
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	h := &hub{}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.intercept == nil || !h.intercept(w, r) {
			real.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	u, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	h.host = u.Host
	return h
}

// push uploads an image or an index and returns its name.
func (h *hub) push(t *testing.T, repository string, what any) string {
	t.Helper()
	ref := h.host + "/" + repository + ":1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(tag, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// multi is an index of an image for this host and, before it, one for another.
func multi(t *testing.T, img v1.Image) v1.ImageIndex {
	t.Helper()
	other := baseImage(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" })
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
}

// TestBases builds on the same image in every form a base can have.
func TestBases(t *testing.T) {
	img := baseImage(t, nil)
	h := newHub(t)
	saved := filepath.Join(t.TempDir(), "save.tar")
	if err := tarball.WriteToFile(saved, name.MustParseReference("base:1").(name.Tag), img); err != nil {
		t.Fatal(err)
	}
	ociDir := t.TempDir()
	if _, err := layout.Write(ociDir, multi(t, img)); err != nil {
		t.Fatal(err)
	}
	digests := map[string][]string{}
	for form, base := range map[string]string{
		"registry":       h.push(t, "single", img),
		"registry index": h.push(t, "multi", multi(t, img)),
		"docker save":    saved,
		"OCI layout":     ociDir,
		"OCI archive":    write(t, "oci.tar", archiveOf(t, ociDir)),
	} {
		t.Run(form, func(t *testing.T) {
			s := open(t, t.TempDir())
			built := build(t, s, "python", base)
			if built.Runtime != "python3.12" || built.Version != "3.12.4" || built.Interpreter != "/usr/local/bin/python3.12" || built.Base != base {
				t.Errorf("built %+v", built)
			}
			all := tree(t, rootFS(t, s, built).Dir)
			if _, there := all["etc/gone"]; there || all["etc/second"] != "2" {
				t.Errorf("unpacked %v", all)
			}
			image, err := s.image(built.Digest)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			env := envMap(cfg.Config.Env)
			if c := cfg.Config; env["PATH"] != "/usr/local/bin:/usr/bin" || env["LANG"] != "C.UTF-8" || c.User != "1000:1000" ||
				len(c.Cmd) != 0 || len(c.Volumes) != 0 || c.Labels["org.example"] != "kept" {
				t.Errorf("configuration %+v", c)
			}
			digests[built.Digest] = append(digests[built.Digest], form)
		})
	}
	// Archives of docker save are stored uncompressed, all others as they are.
	if len(digests) != 2 {
		t.Errorf("the same base gave these digests: %v", digests)
	}
}

// archiveOf is the tar of a directory.
func archiveOf(t *testing.T, root string) []byte {
	t.Helper()
	var entries []entry
	all := tree(t, root)
	for _, p := range sortedKeys(all) {
		if strings.HasSuffix(p, "/") {
			entries = append(entries, dir("./"+p))
		} else {
			entries = append(entries, file("./"+p, all[p]))
		}
	}
	return archive(t, entries...)
}

// TestReuse builds again on a base whose layers are there: they are not fetched.
func TestReuse(t *testing.T) {
	h := newHub(t)
	ref := h.push(t, "base", baseImage(t, nil))
	s := open(t, t.TempDir())
	first := build(t, s, "python", ref)
	img, err := s.image(first.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	h.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		for _, l := range m.Layers {
			if strings.HasSuffix(r.URL.Path, l.Digest.String()) {
				t.Errorf("a layer was fetched again: %s", r.URL.Path)
			}
		}
		return false
	}
	var reused int
	again, err := s.Build(t.Context(), BuildOptions{Language: "python", Base: ref, Progress: func(e Event) {
		if e.Phase == PhaseReuse {
			reused++
		}
	}})
	if err != nil || again.Digest != first.Digest || reused != 2 {
		t.Errorf("built again: %+v, %v, with %d layers reused; want %s with 2", again, err, reused, first.Digest)
	}
	// A damaged one is fetched again.
	h.intercept = nil
	if err := os.WriteFile(s.blobPath(m.Layers[0].Digest), []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again := build(t, s, "python", ref); again.Digest != first.Digest || !s.hasBlob(m.Layers[0].Digest, m.Layers[0].Size) {
		t.Errorf("a damaged layer was not replaced")
	}
}

func TestRegistryErrors(t *testing.T) {
	h := newHub(t)
	good := baseImage(t, nil)
	ref := h.push(t, "base", good)
	onlyOther := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: baseImage(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" }), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
	})
	layers, err := good.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := partial.Descriptor(layers[0])
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	blob := func(change func([]byte) []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, digest.Digest.String()) {
				return false
			}
			rc, err := layers[0].Compressed()
			if err != nil {
				t.Error(err)
				return false
			}
			defer rc.Close()
			b, err := io.ReadAll(rc)
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(change(b)) // the client may have gone
			return true
		}
	}
	tests := []struct {
		name      string
		ref       string
		intercept func(http.ResponseWriter, *http.Request) bool
		code      hearth.Code
		says      string
	}{
		{"no such image", h.host + "/nothing:1", nil, hearth.CodeNotFound, "has no image"},
		{"private", ref, status(http.StatusUnauthorized), hearth.CodeDenied, "docker login"},
		{"failing", ref, status(http.StatusTeapot), hearth.CodeUnavailable, "cannot be had"},
		{"another architecture", h.push(t, "index", onlyOther), nil, hearth.CodeUnsupported, "linux/" + runtime.GOARCH},
		{"another architecture, no index", h.push(t, "other", baseImage(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" })), nil, hearth.CodeUnsupported, "s390x"},
		{"ONBUILD", h.push(t, "onbuild", baseImage(t, func(c *v1.ConfigFile) { c.Config.OnBuild = []string{"RUN true"} })), nil, hearth.CodeUnsupported, "ONBUILD"},
		{"corrupt layer", ref, blob(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), hearth.CodeInvalid, ""},
		{"truncated layer", ref, blob(func(b []byte) []byte { return b[:len(b)/2] }), hearth.CodeInvalid, ""},
		{"withheld layer", ref, func(w http.ResponseWriter, r *http.Request) bool {
			if withheld := strings.HasSuffix(r.URL.Path, digest.Digest.String()); !withheld {
				return false
			}
			w.WriteHeader(http.StatusTeapot)
			return true
		}, hearth.CodeUnavailable, "try again"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h.intercept = tt.intercept
			s := open(t, t.TempDir())
			_, err := s.Build(t.Context(), BuildOptions{Language: "python", Base: tt.ref})
			wantError(t, err, tt.code, tt.says)
			for _, sub := range []string{"images", "rootfs", "tmp"} {
				if left, err := os.ReadDir(filepath.Join(s.dir, sub)); err != nil || len(left) != 0 {
					t.Errorf("after the error %s has %v, %v", sub, left, err)
				}
			}
		})
	}
	h.Close()
	_, err = open(t, t.TempDir()).Build(t.Context(), BuildOptions{Language: "python", Base: ref})
	wantError(t, err, hearth.CodeUnavailable, "scripts/base-images.sh")
}
