package client_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// tree writes files; a text that starts with "->" makes a symbolic link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if len(text) > 2 && text[:2] == "->" {
			err = os.Symlink(text[2:], path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// unpack lists an archive: names with content, or "->" and target.
func unpack(t *testing.T, b []byte) map[string]string {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(text)
		if h.Typeflag == tar.TypeSymlink {
			out[h.Name] = "->" + h.Linkname
		}
	}
}

func TestPackKeepsAndLeavesOut(t *testing.T) {
	dir := tree(t, map[string]string{
		"hearth.yaml": "name: x", "main.py": "code", "lib/a.py": "a", "lib/link.py": "->a.py", "top": "->lib/a.py",
		".git/config": "x", "lib/__pycache__/a.pyc": "x", ".venv/bin/python": "->/usr/bin/python3",
		"node_modules/p/index.js": "p", "a.log": "x", "keep.log": "k", "lib/b.log": "x", "build/out": "x", "lib/build/in": "in",
		"docs/a/b/c.md": "x", "docs/a/b/c.txt": "t", "data/x/deep/tmp": "x", "!odd": "x", "#odd": "x",
		".hearthignore": "# comment\n*.log\n!keep.log\n/build/\ndocs/**/*.md\ndata/**\n\\!odd\n\\#odd\n",
	})
	var b bytes.Buffer
	n, err := client.Pack(dir, &b, client.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, b.Bytes())
	delete(got, ".hearthignore")
	want := map[string]string{
		"hearth.yaml": "name: x", "main.py": "code", "lib/a.py": "a", "lib/link.py": "->a.py", "top": "->lib/a.py",
		"node_modules/p/index.js": "p", "keep.log": "k", "lib/build/in": "in", "docs/a/b/c.txt": "t",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packed (-want +got):\n%s", diff)
	}
	if n != len(want)+1 {
		t.Errorf("%d files counted, want %d", n, len(want)+1)
	}
}

func TestPackIsDeterministic(t *testing.T) {
	pack := func(mtime time.Time, mode os.FileMode) []byte {
		dir := tree(t, map[string]string{"b/c": "1", "b.txt": "2", "a": "3"})
		for _, f := range []string{"a", "b.txt", "b/c"} {
			if err := errors.Join(os.Chtimes(filepath.Join(dir, f), mtime, mtime), os.Chmod(filepath.Join(dir, f), mode)); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if _, err := client.Pack(dir, &b, client.PackOptions{}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := pack(time.Unix(1, 0), 0o600)
	if !bytes.Equal(one, pack(time.Unix(1e9, 5), 0o664)) {
		t.Error("times or permissions change the archive")
	}
	if bytes.Equal(one, pack(time.Unix(1, 0), 0o755)) {
		t.Error("the executable bit is lost")
	}
}

func TestPackRefuses(t *testing.T) {
	pack := func(dir string, o client.PackOptions) error {
		_, err := client.Pack(dir, io.Discard, o)
		return err
	}
	for name, target := range map[string]string{
		"absolute": "->/etc/passwd", "above": "->../x", "far above": "->../../../../etc/passwd",
	} {
		err := pack(tree(t, map[string]string{"main.py": "", "link": target}), client.PackOptions{})
		wantError(t, err, hearth.CodeInvalid, "link", "outside of the function's directory")
		_ = name
	}
	wantError(t, pack(tree(t, map[string]string{"up": "->.", "x": "->up/../../y"}), client.PackOptions{}), hearth.CodeInvalid, "symbolic link x")
	wantError(t, pack(tree(t, map[string]string{"x": "->nowhere"}), client.PackOptions{}), hearth.CodeInvalid, "does not exist")
	wantError(t, pack(tree(t, map[string]string{"x": "->x"}), client.PackOptions{}), hearth.CodeInvalid, "symbolic link x", "in a circle")
	chain := map[string]string{"z": "the end"}
	for c := 'a'; c < 'z'; c++ {
		chain[string(c)] = "->" + string(c+1)
	}
	wantError(t, pack(tree(t, chain), client.PackOptions{}), hearth.CodeInvalid, "symbolic link a", "too many other links")
	wantError(t, pack(t.TempDir(), client.PackOptions{}), hearth.CodeInvalid, "no files", "hearth init")
	wantError(t, pack("/nowhere/at/all", client.PackOptions{}), hearth.CodeInvalid, "no such file")
	wantError(t, pack(tree(t, map[string]string{"x": "", ".hearthignore": "ok\n[\n"}), client.PackOptions{}), hearth.CodeInvalid, ".hearthignore:2")

	big := tree(t, map[string]string{"big/a": "0123456789", "big/b": "0123456789", "small": "1"})
	wantError(t, pack(big, client.PackOptions{MaxBytes: 20}), hearth.CodeInvalid, "more than 20B", "big (20 B), small (1 B)", ".hearthignore")
	wantError(t, pack(big, client.PackOptions{MaxFiles: 2}), hearth.CodeInvalid, "3 files, more than 2", "big (2)")

	fifo := tree(t, map[string]string{"x": ""})
	if err := syscall.Mkfifo(filepath.Join(fifo, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, pack(fifo, client.PackOptions{}), hearth.CodeInvalid, "pipe is not a file")
}
