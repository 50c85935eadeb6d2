package build_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

// TestCacheKey tells what builds share.
func TestCacheKey(t *testing.T) {
	h := newHost(t)
	files := map[string][]byte{}
	for _, name := range []string{"alpha", "beta"} {
		p, w := wheel(t, name, "1.0", map[string]string{name + ".py": "x = 1\n"})
		files[p] = w
	}
	g := newRegistry(t, files)
	cfg := g.config()
	cfg.Dir = filepath.Join(openDir(t), "builds")
	b := newBuilder(t, cfg)
	source := map[string]string{"requirements.txt": "-r deps/base.txt\n-c limits.txt\n", "deps/base.txt": "alpha\n", "limits.txt": "alpha==1.0\n", "main.py": "1\n"}
	first := h.must(t, b, "python", write(t, source))
	step := func(what string, cached bool, change func(*build.Request)) built {
		t.Helper()
		r := h.must(t, b, "python", write(t, source), change)
		if r.Cached != cached {
			t.Errorf("after a change of %s the build was cached: %v", what, r.Cached)
		}
		return r
	}
	none := func(*build.Request) {}
	source["main.py"] = "2\n"
	if r := step("the code", true, none); r.Digest == first.Digest || r.Dependencies.Digest != first.Dependencies.Digest {
		t.Error("the code is not part of the artifact, or of the dependencies")
	}
	source["limits.txt"] = "alpha==1.0 # the same\n"
	if r := step("a comment", false, none); r.Dependencies.Digest != first.Dependencies.Digest {
		t.Error("the same dependencies have another digest")
	}
	if trees, _ := os.ReadDir(filepath.Join(cfg.Dir, "trees")); len(trees) != 1 {
		t.Errorf("the same dependencies are there %d times", len(trees))
	}
	source["deps/base.txt"] = "alpha\nbeta\n"
	if r := step("an included file", false, none); !exists(t, r.out, ".hearth/python/beta.py") {
		t.Error("beta is missing")
	}
	step("nothing", true, none)
	step("the image", false, func(r *build.Request) { r.Runtime.Source = "hearth/python:other" })
	step("the isolation", false, func(r *build.Request) { r.Isolation = "other" })
	step("nothing, but fresh", false, func(r *build.Request) { r.Fresh = true })
}

// TestLocalDependency builds a package of the source itself, so all of it counts.
func TestLocalDependency(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	source := scripted(`files["pkg/data.txt"] = open("data.txt").read()`)
	for i, text := range []string{"one", "two"} {
		source["pkg/data.txt"] = text
		r := h.must(t, b, "python", write(t, source))
		got, err := os.ReadFile(filepath.Join(r.out, ".hearth/python/pkg/data.txt"))
		if err != nil || string(got) != text || r.Cached {
			t.Errorf("build %d has %q, cached: %v, %v", i, got, r.Cached, err)
		}
	}
	if r := h.must(t, b, "python", write(t, source)); !r.Cached {
		t.Error("the same source was built twice")
	}
}

// TestLocalNodeJSDependency links a package of the source.
func TestLocalNodeJSDependency(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, build.Config{Env: map[string]string{"npm_config_offline": "true"}})
	source := write(t, map[string]string{
		"package.json":     `{"dependencies":{"lib":"file:./lib"}}`,
		"lib/package.json": `{"name":"lib","version":"1.0.0","main":"lib.js"}`, "lib/lib.js": "module.exports = 'local'\n",
		"main.js": "exports.handler = async () => require('lib')\n",
	})
	r := h.must(t, b, "nodejs", source)
	if got := h.call(t, "nodejs", r.out, "main.handler"); got != `"local"` {
		t.Errorf("the function says %s", got)
	}
}

// TestSharedFiles checks that artifacts share the disk with what is cached, and
// stay when that is pruned.
func TestSharedFiles(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	source := scripted(`files["pkg/data.txt"] = "x" * 1000`)
	one := h.must(t, b, "python", write(t, source))
	two := h.must(t, b, "python", write(t, source))
	inode := func(r built) uint64 {
		info, err := os.Lstat(filepath.Join(r.out, ".hearth/python/pkg/data.txt"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	if inode(one) != inode(two) {
		t.Error("two artifacts have two copies")
	}
	if n, err := b.Prune(t.Context(), 0); n != 1 || err != nil {
		t.Errorf("Prune removed %d: %v", n, err)
	}
	inode(one)
	if r := h.must(t, b, "python", write(t, source)); r.Cached || r.Digest != one.Digest {
		t.Errorf("after Prune: %+v", r.Result)
	}
}

// TestPruneTakesTheOldest checks the order in which dependencies go.
func TestPruneTakesTheOldest(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	var sources []string
	for i := range 3 {
		sources = append(sources, write(t, scripted(fmt.Sprintf(`files["pkg/%d.txt"] = "x" * (1 << 20)`, i))))
		h.must(t, b, "python", sources[i])
	}
	h.must(t, b, "python", sources[0]) // used again
	if n, err := b.Prune(t.Context(), 5<<19); n != 1 || err != nil {
		t.Fatalf("Prune removed %d: %v", n, err)
	}
	for i, cached := range []bool{true, false, true} {
		if r := h.must(t, b, "python", sources[i]); r.Cached != cached {
			t.Errorf("source %d is cached: %v", i, r.Cached)
		}
	}
}

// TestDamagedCache repairs what somebody has changed.
func TestDamagedCache(t *testing.T) {
	h := newHost(t)
	cfg := offline()
	cfg.Dir = filepath.Join(openDir(t), "builds")
	b := newBuilder(t, cfg)
	source := write(t, scripted(`files["pkg/data.txt"] = "x" * 1000`))
	first := h.must(t, b, "python", source)
	for name, damage := range map[string]func(tree string) error{
		"missing file": func(tree string) error {
			return os.Remove(filepath.Join(tree, "files/.hearth/python/pkg/data.txt"))
		},
		"shorter file": func(tree string) error {
			p := filepath.Join(tree, "files/.hearth/python/pkg/data.txt")
			return errors.Join(os.Remove(p), os.WriteFile(p, []byte("y"), 0o444))
		},
		"other listing": func(tree string) error {
			p := filepath.Join(tree, "list")
			return errors.Join(os.Remove(p), os.WriteFile(p, []byte(`"x" file 0644 1 00`+"\n"), 0o444))
		},
		"no listing": func(tree string) error { return os.Remove(filepath.Join(tree, "list")) },
		"no tree":    os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			trees, err := filepath.Glob(filepath.Join(cfg.Dir, "trees/*"))
			if err != nil || len(trees) != 1 {
				t.Fatalf("trees are %v: %v", trees, err)
			}
			if err := damage(trees[0]); err != nil {
				t.Fatal(err)
			}
			if r := h.must(t, b, "python", source); r.Cached || r.Digest != first.Digest {
				t.Errorf("after the damage: %+v", r.Result)
			}
			if r := h.must(t, b, "python", source); !r.Cached || r.Digest != first.Digest {
				t.Errorf("after the repair: %+v", r.Result)
			}
		})
	}
}

// TestUnreadableCache keeps dependencies that the host fails to read.
func TestUnreadableCache(t *testing.T) {
	h := newHost(t)
	cfg := offline()
	cfg.Dir = filepath.Join(openDir(t), "builds")
	b := newBuilder(t, cfg)
	source := write(t, scripted(`files["pkg/data.txt"] = "x"`))
	first := h.must(t, b, "python", source)
	trees, err := filepath.Glob(filepath.Join(cfg.Dir, "trees/*"))
	if err != nil || len(trees) != 1 {
		t.Fatalf("trees are %v: %v", trees, err)
	}
	// In place of a disk that fails: it is there, but the kernel does not open it.
	list := filepath.Join(trees[0], "list")
	if err := errors.Join(os.Rename(list, list+".kept"), os.Symlink("list", list)); err != nil {
		t.Fatal(err)
	}
	h.fail(t, b, "python", source, hearth.CodeUnavailable, "cannot be read")
	if err := errors.Join(os.Remove(list), os.Rename(list+".kept", list)); err != nil {
		t.Fatal(err)
	}
	if r := h.must(t, b, "python", source); !r.Cached || r.Digest != first.Digest {
		t.Errorf("once it is readable again: %+v", r.Result)
	}
}

// TestRestart keeps what was installed and removes what was not finished.
func TestRestart(t *testing.T) {
	h := newHost(t)
	cfg := offline()
	cfg.Dir = filepath.Join(openDir(t), "builds")
	b := newBuilder(t, cfg)
	source := write(t, scripted("pass"))
	h.must(t, b, "python", source)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(cfg.Dir, "temp/7/tree/files/.hearth")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	b = newBuilder(t, cfg)
	if exists(t, half) {
		t.Error("what an interrupted build left is still there")
	}
	if r := h.must(t, b, "python", source); !r.Cached {
		t.Error("what was installed is forgotten")
	}
}

// TestUnusedRequirements builds when nothing is needed on this system.
func TestUnusedRequirements(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, offline())
	source := write(t, map[string]string{"requirements.txt": "alpha; sys_platform == 'win32'\n", "main.py": "x = 1\n"})
	for _, cached := range []bool{false, true} {
		if r := h.must(t, b, "python", source); r.Cached != cached || r.Files != 2 || exists(t, r.out, ".hearth") {
			t.Errorf("result is %+v", r.Result)
		}
	}
}

// TestNothingToInstall gives back the source as it is.
func TestNothingToInstall(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, build.Config{})
	dir := openDir(t) + "/source"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sum, err := build.Extract(t.Context(), strings.NewReader(string(makeTar(t,
		entry{name: "main.py", body: "x = 1\n"}, entry{name: "run", body: "#!", mode: 0o755},
		entry{name: "a/b/link", link: "../../main.py", mode: 0o777 | fs.ModeSymlink}, entry{name: "empty", mode: 0o755 | fs.ModeDir},
	))), build.Tar, dir, build.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	r := h.must(t, b, "python", dir)
	if r.Summary != sum || r.Manifest != "" || !r.Cached {
		t.Errorf("result is %+v, want %+v", r.Result, sum)
	}
	if to, err := os.Readlink(r.out + "/a/b/link"); err != nil || to != "../../main.py" {
		t.Errorf("the link leads to %q: %v", to, err)
	}
}

// TestEscapingLinks refuses links that leave the artifact only once source and
// dependencies are together.
func TestEscapingLinks(t *testing.T) {
	h := newHost(t)
	b := newBuilder(t, build.Config{Env: map[string]string{"npm_config_offline": "true"}})
	dir := openDir(t) + "/source"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// lib is a link to the top; node_modules/x, a link to ../lib/…, is made by
	// npm for a local dependency.
	if _, err := build.Extract(t.Context(), strings.NewReader(string(makeTar(t,
		entry{name: "package.json", body: `{"dependencies":{"x":"file:./deep/lib"}}`},
		entry{name: "deep/lib/package.json", body: `{"name":"x","version":"1.0.0"}`},
		entry{name: "main.js", body: ""},
	))), build.Tar, dir, build.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../etc", dir+"/deep/lib/out"); err != nil {
		t.Fatal(err)
	}
	if r := h.build(t.Context(), t, b, "nodejs", dir); hearth.ErrorCode(r.err) != hearth.CodeInvalid {
		t.Errorf("Build: %v", r.err)
	}
}
