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
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// unpacked applies layers and returns the tree without the places to mount on.
func unpacked(t *testing.T, layers ...[]byte) map[string]string {
	t.Helper()
	dir, err := unpackLayers(t.Context(), t, roomy, layers...)
	if err != nil {
		t.Fatal(err)
	}
	all := tree(t, dir)
	dirs, files := mountPoints()
	for _, d := range dirs {
		delete(all, d+"/")
	}
	for _, f := range files {
		delete(all, f)
	}
	return all
}

func TestLayers(t *testing.T) {
	lower := archive(t, dir("a/"), file("a/keep", "1"), file("a/gone", "2"), dir("a/sub/"), file("a/sub/x", "3"), symlink("l", "a"))
	tests := []struct {
		name  string
		upper []entry
		want  map[string]string
	}{
		{"adds and replaces", []entry{file("a/keep", "new"), file("b/c", "4")}, map[string]string{
			"a/": "", "a/keep": "new", "a/gone": "2", "a/sub/": "", "a/sub/x": "3", "l": "-> a", "b/": "", "b/c": "4",
		}},
		{"whiteout of a file", []entry{file("a/.wh.gone", "")}, map[string]string{
			"a/": "", "a/keep": "1", "a/sub/": "", "a/sub/x": "3", "l": "-> a",
		}},
		{"whiteout of a directory", []entry{file("a/.wh.sub", "")}, map[string]string{
			"a/": "", "a/keep": "1", "a/gone": "2", "l": "-> a",
		}},
		{"whiteout of what is not there", []entry{file("a/.wh.nothing", ""), file(".wh.nor-this", "")}, map[string]string{
			"a/": "", "a/keep": "1", "a/gone": "2", "a/sub/": "", "a/sub/x": "3", "l": "-> a",
		}},
		{"whiteout and new file, in both orders", []entry{file("a/.wh.keep", ""), file("a/keep", "new"), file("a/gone", "new"), file("a/.wh.gone", "")}, map[string]string{
			"a/": "", "a/keep": "new", "a/gone": "new", "a/sub/": "", "a/sub/x": "3", "l": "-> a",
		}},
		{"opaque first", []entry{dir("a/"), file("a/.wh..wh..opq", ""), file("a/new", "5")}, map[string]string{
			"a/": "", "a/new": "5", "l": "-> a",
		}},
		{"opaque last", []entry{dir("a/"), dir("a/sub/"), file("a/sub/new", "5"), file("a/.wh..wh..opq", "")}, map[string]string{
			"a/": "", "a/sub/": "", "a/sub/new": "5", "l": "-> a",
		}},
		{"opaque root", []entry{file(".wh..wh..opq", ""), file("z", "6")}, map[string]string{"z": "6"}},
		{"other files of aufs", []entry{file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")}, map[string]string{
			"a/": "", "a/keep": "1", "a/gone": "2", "a/sub/": "", "a/sub/x": "3", "l": "-> a", ".wh..wh.plnk/": "", ".wh..wh.plnk/1.2": "x",
		}},
		{"through a link", []entry{file("l/new", "7")}, map[string]string{
			"a/": "", "a/keep": "1", "a/gone": "2", "a/sub/": "", "a/sub/x": "3", "a/new": "7", "l": "-> a",
		}},
		{"a link becomes a directory, a directory a file", []entry{dir("l/"), file("l/y", "8"), file("a", "9")}, map[string]string{
			"l/": "", "l/y": "8", "a": "9",
		}},
		{"hard links", []entry{hardlink("h", "a/keep"), hardlink("a/h2", "/a/keep"), hardlink("hl", "l")}, map[string]string{
			"a/": "", "a/keep": "1", "a/gone": "2", "a/sub/": "", "a/sub/x": "3", "l": "-> a", "h": "1", "a/h2": "1", "hl": "-> a",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, unpacked(t, lower, archive(t, tt.upper...))); diff != "" {
				t.Errorf("unpacked tree (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHostileLayers unpacks what tries to get out. Beside the directory lies a
// file that must stay as it is, and nothing else.
func TestHostileLayers(t *testing.T) {
	tests := []struct {
		name    string
		refused bool // or harmless
		layers  [][]entry
	}{
		{"dot dot", true, [][]entry{{file("../secret", "evil")}}},
		{"dot dot inside", true, [][]entry{{file("a/../../secret", "evil")}}},
		{"whiteout of dot dot", true, [][]entry{{file("a/.wh...", "")}}},
		{"whiteout of dot", true, [][]entry{{file("a/.wh..", "")}}},
		{"whiteout above", true, [][]entry{{file("../.wh.secret", "")}}},
		{"absolute name", false, [][]entry{{file("OUTSIDE/secret", "evil")}}},
		{"file through a link up", false, [][]entry{{symlink("l", ".."), file("l/secret", "evil")}}},
		{"file through an absolute link", false, [][]entry{{symlink("l", "OUTSIDE"), file("l/secret", "evil")}}},
		{"file through links in two layers", false, [][]entry{{symlink("l", "m"), symlink("m", "../..")}, {file("l/secret", "evil")}}},
		{"file onto a link", false, [][]entry{{symlink("l", "OUTSIDE/secret"), file("l", "evil")}}},
		{"directory through a link", false, [][]entry{{symlink("l", "OUTSIDE"), dir("l/secret/")}}},
		{"hard link out", true, [][]entry{{hardlink("h", "../secret")}}},
		{"hard link through a link up", true, [][]entry{{symlink("l", ".."), hardlink("h", "l/secret"), file("h", "evil")}}},
		{"hard link through an absolute link", true, [][]entry{{symlink("l", "OUTSIDE"), hardlink("h", "l/secret")}}},
		{"hard link to a link out, then written", false, [][]entry{{symlink("l", "OUTSIDE/secret"), hardlink("h", "l"), file("h", "evil")}}},
		{"whiteout through a link", false, [][]entry{{symlink("l", "OUTSIDE")}, {file("l/.wh.secret", "")}}},
		{"opaque through a link", false, [][]entry{{symlink("l", "OUTSIDE")}, {file("l/.wh..wh..opq", "")}}},
		{"opaque in a link's place", false, [][]entry{{symlink("l", "..")}, {file("l/.wh..wh..opq", "")}}},
		{"mount points are links", false, [][]entry{{symlink("etc", "OUTSIDE"), symlink("tmp", ".."), symlink("hearth", "OUTSIDE"), symlink("var", "/")}}},
		{"files of mount points are links", false, [][]entry{{symlink("etc/hosts", "OUTSIDE/secret"), symlink("etc/resolv.conf", "../../secret")}}},
		{"endless links", true, [][]entry{{symlink("a", "b"), symlink("b", "a"), file("a/x", "evil")}}},
		{"hard link to a directory", true, [][]entry{{dir("d/"), hardlink("h", "d")}}},
		{"hard link to itself", false, [][]entry{{file("h", "x"), hardlink("h", "h")}}},
		{"file below a file", true, [][]entry{{file("f", "x"), file("f/g", "y")}}},
		{"long name", true, [][]entry{{file(strings.Repeat("n", 300), "x")}}},
		{"empty name of whiteout", true, [][]entry{{file("a/.wh.", "")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outside := t.TempDir()
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(outside, "rootfs")
			u, err := newUnpacker(root, roomy)
			if err != nil {
				t.Fatal(err)
			}
			defer u.root.Close()
			for _, entries := range tt.layers {
				for i, e := range entries {
					entries[i].Name = strings.Replace(e.Name, "OUTSIDE", outside, 1)
					entries[i].Linkname = strings.Replace(e.Linkname, "OUTSIDE", outside, 1)
				}
				if err = u.layer(t.Context(), bytes.NewReader(archive(t, entries...))); err != nil {
					break
				}
			}
			if tt.refused {
				wantError(t, err, hearth.CodeInvalid, "entry")
			} else if err = errors.Join(err, u.finish()); err != nil {
				t.Errorf("refused: %v", err)
			}
			all := tree(t, outside)
			for p := range all {
				if strings.HasPrefix(p, "rootfs/") {
					delete(all, p)
				}
			}
			if diff := cmp.Diff(map[string]string{"secret": "secret"}, all); diff != "" {
				t.Errorf("beside the root file system (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMountPoints asks for real directories and files, whatever was there.
func TestMountPoints(t *testing.T) {
	dir, err := unpackLayers(t.Context(), t, roomy, archive(t,
		symlink("var", "/usr"), symlink("etc", "usr/etc"), file("tmp", "a file"), symlink("etc/hosts", "x"), dir("etc/hostname/"), file("etc/resolv.conf", "kept")))
	if err != nil {
		t.Fatal(err)
	}
	dirs, files := mountPoints()
	for _, p := range dirs {
		if info, err := os.Lstat(filepath.Join(dir, p)); err != nil || !info.IsDir() || info.Mode().Perm() != 0o755 {
			t.Errorf("%s is no directory with mode 0755: %v %v", p, info, err)
		}
	}
	for _, p := range files {
		if info, err := os.Lstat(filepath.Join(dir, p)); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o644 {
			t.Errorf("%s is no file with mode 0644: %v %v", p, info, err)
		}
	}
}

// TestModes unpacks under a strict umask what only its owner may read, what
// runs as its owner, and what is no file at all.
func TestModes(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	special := func(name string, kind byte, mode int64) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: mode, Devmajor: 1, Devminor: 3, Uid: 33, Gid: 33}}
	}
	dir, err := unpackLayers(t.Context(), t, roomy, archive(t,
		special("private/", tar.TypeDir, 0o7700), special("private/f", tar.TypeReg, 0o600), special("su", tar.TypeReg, 0o6750),
		special("open", tar.TypeReg, 0o666), special("deep/er/f", tar.TypeReg, 0),
		special("char", tar.TypeChar, 0o666), special("block", tar.TypeBlock, 0o666), special("fifo", tar.TypeFifo, 0o666)))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "private": fs.ModeDir | 0o755, "private/f": 0o644, "su": 0o755, "open": 0o644,
		"deep": fs.ModeDir | 0o755, "deep/er": fs.ModeDir | 0o755, "deep/er/f": 0o644, "function": fs.ModeDir | 0o755,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want {
			t.Errorf("%s has the mode %v, want %v", name, info.Mode(), want)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != uint32(os.Geteuid()) {
			t.Errorf("%s belongs to %d, not to who unpacks", name, st.Uid)
		}
	}
	for _, name := range []string{"char", "block", "fifo"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was unpacked: %v", name, err)
		}
	}
}

func TestLimits(t *testing.T) {
	big := archive(t, file("a", strings.Repeat("x", 600)), file("b", strings.Repeat("x", 600)))
	_, err := unpackLayers(t.Context(), t, limits{bytes: 1000, entries: 10}, big)
	wantError(t, err, hearth.CodeInvalid, "more than Hearth allows")
	_, err = unpackLayers(t.Context(), t, limits{bytes: 2000, entries: 1}, big)
	wantError(t, err, hearth.CodeInvalid, "more than Hearth allows")
	// They hold for all layers together.
	one := archive(t, file("a", strings.Repeat("x", 600)))
	_, err = unpackLayers(t.Context(), t, limits{bytes: 1000, entries: 10}, one, one)
	wantError(t, err, hearth.CodeInvalid, "more than Hearth allows")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = unpackLayers(ctx, t, roomy, one); !errors.Is(err, context.Canceled) {
		t.Errorf("unpacking goes on after its context has ended: %v", err)
	}
}
