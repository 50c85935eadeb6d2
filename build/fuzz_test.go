package build_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

func FuzzZip(f *testing.F) {
	for _, e := range hostile() {
		f.Add(makeZip(f, e...))
	}
	f.Fuzz(func(t *testing.T, data []byte) { fuzzExtract(t, data, build.Zip) })
}

func FuzzTar(f *testing.F) {
	for _, e := range hostile() {
		b := makeTar(f, e...)
		f.Add(b, false)
		f.Add(gz(f, b), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, gzipped bool) {
		format := build.Tar
		if gzipped {
			format = build.TarGz
		}
		fuzzExtract(t, data, format)
	})
}

// leaves asks the kernel whether the path leads out of the directory.
func leaves(dir int, path string) bool {
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH})
	if err == nil {
		_ = unix.Close(fd)
	}
	return errors.Is(err, unix.EXDEV)
}

func hostile() [][]entry {
	return [][]entry{
		append(chain(20, "."), entry{name: "x", link: "l00/../etc/passwd", mode: fs.ModeSymlink}),
		{{name: "main.py", body: "print(1)"}, {name: "d/", mode: fs.ModeDir | 0o755}, {name: "d/x", body: "y", mode: 0o755}},
		{{name: "../evil", body: "x"}},
		{{name: "l", link: "..", mode: fs.ModeSymlink}, {name: "l/x", body: "x"}},
		{{name: "d/f"}, {name: "d/up", link: "..", mode: fs.ModeSymlink}, {name: "l", link: "d/up/../x", mode: fs.ModeSymlink}},
		{{name: "a", body: "1"}, {name: "b", link: "a", typ: tar.TypeLink}},
	}
}

// fuzzExtract checks what must hold for any input: nothing is written outside,
// limits hold, every error has a code of the user's or the host's, and what was
// accepted has links that stay inside.
func fuzzExtract(t *testing.T, data []byte, format build.Format) {
	l := build.Limits{Compressed: 1 << 20, Unpacked: 64 << 10, Files: 50, PathLength: 100, Depth: 5}
	dir := inside(t)
	s, err := build.Extract(t.Context(), bytes.NewReader(data), format, dir, l)
	checkNothingBeside(t, dir)
	if code := hearth.ErrorCode(err); err != nil && code != hearth.CodeInvalid {
		t.Fatalf("%s: %v", code, err)
	}
	accepted := err == nil
	top, rerr := os.Open(dir)
	if rerr != nil {
		t.Fatal(rerr)
	}
	defer top.Close()
	var size int64
	var files int
	werr := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case info.Mode().IsRegular():
			files++
			size += info.Size()
		case info.Mode()&fs.ModeSymlink != 0:
			files++
			rel, _ := filepath.Rel(dir, p)
			if accepted && leaves(int(top.Fd()), rel) {
				t.Fatalf("the link %s leads outside", rel)
			}
		case !info.IsDir():
			t.Fatalf("%s is a %v", p, info.Mode())
		}
		return nil
	})
	if werr != nil {
		t.Fatal(werr)
	}
	if size > l.Unpacked+64<<10 || files > l.Files {
		t.Fatalf("%d bytes in %d files are over the limits", size, files)
	}
	if err == nil && (s.Bytes != size || s.Files != files) {
		t.Fatalf("summary %+v, but there are %d bytes in %d files", s, size, files)
	}
}
