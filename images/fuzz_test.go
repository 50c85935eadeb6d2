package images

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hearthrun/hearth"
)

// FuzzLayers checks what must hold for any two layers: nothing beside the root
// file system changes, limits hold, errors have a code of the data's, and what
// is unpacked is nothing but directories, links, and files of harmless modes.
func FuzzLayers(f *testing.F) {
	for _, layers := range [][2][]entry{
		{pythonFiles(), {file("usr/bin/.wh.python3", ""), file("var/.wh..wh..opq", "")}},
		{{symlink("l", ".."), file("l/secret", "x")}, {file("../x", "x")}},
		{{symlink("a", "b"), symlink("b", "a/../c"), file("a/f", "x")}, {hardlink("h", "a/f"), hardlink("g", "l")}},
		{{file("etc", "x")}, {dir("etc/"), symlink("etc/hosts", "/"), symlink("tmp", "..")}},
	} {
		f.Add(archive(f, layers[0]...), archive(f, layers[1]...))
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		outside := t.TempDir()
		if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(outside, "rootfs")
		u, err := newUnpacker(dir, limits{bytes: 64 << 10, entries: 50})
		if err != nil {
			t.Fatal(err)
		}
		defer u.root.Close()
		for _, b := range [][]byte{lower, upper} {
			if err == nil {
				err = u.layer(t.Context(), bytes.NewReader(b))
			}
		}
		if err == nil {
			err = u.finish()
		}
		if err != nil && hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%s: %v", hearth.ErrorCode(err), err)
		}
		if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "secret" {
			t.Errorf("a file outside changed: %q %v", b, err)
		}
		if beside, err := os.ReadDir(outside); err != nil || len(beside) != 2 {
			t.Errorf("there is something outside: %v %v", beside, err)
		}
		var size int64
		err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			switch m := info.Mode(); m {
			case 0o644, 0o755:
				size += info.Size()
			case fs.ModeDir | 0o755, fs.ModeSymlink | 0o777:
			default:
				t.Errorf("%s has the mode %v", p, m)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if size > 64<<10 && !hardlinks(t, dir) {
			t.Errorf("unpacked to %d bytes", size)
		}
	})
}

// hardlinks tells whether a file has several names, which count once.
func hardlinks(t *testing.T, dir string) (yes bool) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		yes = yes || err == nil && info.Mode().IsRegular() && linked(info)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

func linked(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}
