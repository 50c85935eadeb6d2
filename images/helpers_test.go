package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// entry is one of a tar; a body makes it a regular file.
type entry struct {
	tar.Header
	body string
}

func dir(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func file(name, body string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1_700_000_000, 0)}, body: body}
}

func program(name, body string) entry {
	e := file(name, "\x7fELF"+body)
	e.Mode = 0o755
	return e
}

func symlink(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}}
}

func hardlink(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}}
}

// archive makes a tar.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pythonFiles are the least that passes for Python 3.11; more are added.
func pythonFiles(more ...entry) []entry {
	return append([]entry{
		dir("usr/"), dir("usr/bin/"), symlink("bin", "usr/bin"),
		program("usr/bin/python3.11", "python"), symlink("usr/bin/python3", "python3.11"),
		file("var/lib/dpkg/status", "Package: libc6\nVersion: 2.36-9\n\nPackage: python3.11\nStatus: install ok installed\nVersion: 3.11.2-6+deb12u6\n"),
	}, more...)
}

// nodeFiles are the least that passes for Node.js 20.
func nodeFiles() []entry {
	return []entry{
		program("usr/local/bin/node", "node"),
		file("usr/local/include/node/node_version.h", "#define NODE_MAJOR_VERSION 20\n#define NODE_MINOR_VERSION 11\n#define NODE_PATCH_VERSION 1\n"),
	}
}

// write makes a file in a new directory and returns its path.
func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// build builds an image or fails.
func build(t testing.TB, s *Store, language, base string) Image {
	t.Helper()
	img, err := s.Build(t.Context(), BuildOptions{Language: language, Base: base})
	if err != nil {
		t.Fatalf("build of %s: %v", language, err)
	}
	return img
}

// rootFS unpacks an image and holds it until the test ends.
func rootFS(t testing.TB, s *Store, img Image) RootFS {
	t.Helper()
	r, err := s.RootFS(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	return r
}

// wantError checks the code of an error and what it and its hint say.
func wantError(t testing.TB, err error, code hearth.Code, says ...string) {
	t.Helper()
	if hearth.ErrorCode(err) != code {
		t.Errorf("error %v has the code %q, want %q", err, hearth.ErrorCode(err), code)
		return
	}
	var e *hearth.Error
	if !errors.As(err, &e) {
		t.Errorf("%v is no hearth.Error", err)
		return
	}
	text := err.Error() + "\n" + e.Hint
	for _, s := range says {
		if !strings.Contains(text, s) {
			t.Errorf("error and hint do not say %q:\n%s", s, text)
		}
	}
}

// unpackLayers applies layers to a new directory and returns it; the error is
// that of the first layer that failed.
func unpackLayers(ctx context.Context, t testing.TB, l limits, layers ...[]byte) (string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	u, err := newUnpacker(dir, l)
	if err != nil {
		t.Fatal(err)
	}
	defer u.root.Close()
	for _, b := range layers {
		if err := u.layer(ctx, bytes.NewReader(b)); err != nil {
			return dir, err
		}
	}
	return dir, u.finish()
}

// tree lists what is below dir: "path" of files with their content, "path/"
// of directories, "path -> target" of links.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		switch {
		case e.IsDir():
			all[name+"/"] = ""
		case e.Type()&fs.ModeSymlink != 0:
			all[name], err = os.Readlink(p)
			all[name] = "-> " + all[name]
		default:
			var b []byte
			b, err = os.ReadFile(p)
			all[name] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// roomy limits are those that no test reaches by accident.
var roomy = limits{bytes: 1 << 20, entries: 1000}
