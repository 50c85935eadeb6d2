package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// fileTree writes files into a new directory: name to content, with "-> " before
// a link's target and a slash at the end of an empty directory's name. What
// begins with #! is executable.
func fileTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if strings.HasPrefix(content, "#!") {
			err = os.WriteFile(path, []byte(content), 0o555)
		} else {
			err = os.WriteFile(path, []byte(content), 0o444)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWriteArchive(t *testing.T) {
	long := strings.Repeat("déep/", 60) + "file"
	files := map[string]string{
		"main.py": "print()", "b/tool": "#!/bin/sh\n", "b/a": "-> ../main.py", "b/dir": "-> .", "empty/": "",
		"large": strings.Repeat("0123456789", 100_000), long: "x", ".hearth/python/dep/__init__.py": "",
	}
	dir := fileTree(t, files)
	var b bytes.Buffer
	if err := WriteArchive(&b, dir); err != nil {
		t.Fatal(err)
	}
	first := bytes.Clone(b.Bytes())
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.ModTime.Year() != 1980 {
			t.Errorf("%s: %+v", h.Name, h)
		}
		want, mode := files[h.Name], int64(0o444)
		switch {
		case h.Typeflag == tar.TypeDir:
			content, want, mode = nil, "", 0o755
		case h.Typeflag == tar.TypeSymlink:
			content, mode = []byte("-> "+h.Linkname), h.Mode
		case h.Name == "b/tool":
			mode = 0o555
		}
		if string(content) != want || h.Mode != mode {
			t.Errorf("%s: mode %o, %.80q", h.Name, h.Mode, content)
		}
	}
	if got := strings.Join(names, " "); len(names) != len(files)+64 || !strings.HasPrefix(got, ".hearth/ .hearth/python/ .hearth/python/dep/ .hearth/python/dep/__init__.py b/ b/a b/dir b/tool déep/") {
		t.Errorf("%d entries: %.300s", len(names), got)
	}

	other := fileTree(t, files) // made at another time, maybe in another order
	if err := os.Chtimes(filepath.Join(other, "main.py"), time.Now(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if err := WriteArchive(&b, other); err != nil || !bytes.Equal(b.Bytes(), first) {
		t.Errorf("the same files make another archive, or %v", err)
	}

	if err := WriteArchive(io.Discard, filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is missing: %v", err)
	}
	broken := errors.New("broken")
	pr, pw := io.Pipe()
	pr.CloseWithError(broken)
	if err := WriteArchive(pw, dir); !errors.Is(err, broken) {
		t.Errorf("a writer that fails: %v", err)
	}
	if err := syscall.Mkfifo(filepath.Join(other, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteArchive(io.Discard, other); err == nil || !strings.Contains(err.Error(), "fifo") {
		t.Errorf("a pipe: %v", err)
	}
}

// initArchive runs InitArchive against play.
func initArchive(ctx context.Context, t *testing.T, host, far net.Conn, archive io.Reader, opts Options, play func(g *script)) (Ready, error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		g := &script{t, far}
		g.expect(typeHello)
		g.send(typeReady, 0, `{"protocol":1}`)
		play(g)
	}()
	c, _, err := Connect(ctx, host, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close(); <-done }()
	return c.InitArchive(ctx, Init{Function: "f", Handler: "main.handler", Code: "/tmp/function"}, archive)
}

// archive reads DATA of stream 0 to END.
func (g *script) archive() []byte {
	g.tb.Helper()
	var b bytes.Buffer
	for {
		f, err := g.next()
		if err != nil || f.stream != 0 || f.typ != typeData && f.typ != typeEnd {
			g.tb.Errorf("in an archive: frame %#x of stream %d, %v", f.typ, f.stream, err)
			return nil
		}
		if f.typ == typeEnd {
			return b.Bytes()
		}
		b.WriteString(f.payload)
	}
}

func TestInitArchive(t *testing.T) {
	eachStream(t, func(t *testing.T, host, far net.Conn) {
		want := pattern(5 << 20) // more than a window
		got := make(chan []byte, 1)
		logged := 0
		opts := Options{OnLog: func(_ string, _ int, text []byte) { logged += len(text) }}
		ready, err := initArchive(t.Context(), t, host, far, bytes.NewReader(want), opts, func(g *script) {
			var m map[string]any
			json.Unmarshal([]byte(g.expect(typeInit).payload), &m)
			if m["archive"] != true || m["code"] != "/tmp/function" || m["handler"] != "main.handler" || fmt.Sprint(m["env"]) != "map[]" {
				t.Errorf("INIT %v", m)
			}
			for range 100 { // more than a socket holds, while the host writes
				g.send(typeLog, 0, "\x01"+strings.Repeat("x", 60_000))
			}
			got <- g.archive()
			g.send(typeReady, 0, `{"concurrent":true}`)
		})
		if err != nil || !ready.Concurrent {
			t.Fatalf("%+v, %v", ready, err)
		}
		if b := <-got; !bytes.Equal(b, want) || logged != 6_000_000 {
			t.Errorf("%d bytes came, or others; %d were logged", len(b), logged)
		}
	})
}

func TestInitArchiveFails(t *testing.T) {
	broken := errors.New("broken")
	reads := func(g *script) {
		for {
			if _, err := g.next(); err != nil {
				return
			}
		}
	}
	for name, tt := range map[string]struct {
		archive io.Reader
		play    func(g *script)
		check   func(t *testing.T, err error)
	}{
		"answer before the end": {endless{}, func(g *script) {
			g.expect(typeInit)
			g.expect(typeData)
			g.send(typeInitError, 0, `{"type":"Runtime.InvalidArchive","message":"no room"}`)
			reads(g)
		}, func(t *testing.T, err error) { wantError(t, err, hearth.CodeFunction, "Runtime.InvalidArchive") }},
		"end of the guest": {endless{}, func(g *script) {
			g.expect(typeInit)
			g.expect(typeData)
		}, func(t *testing.T, err error) { wantError(t, err, hearth.CodeFunction, "Runtime.ExitError") }},
		"archive": {io.MultiReader(strings.NewReader("x"), failing{broken}), reads, func(t *testing.T, err error) {
			if !errors.Is(err, broken) {
				t.Errorf("%v", err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			host, far := socketpair(t)
			_, err := initArchive(t.Context(), t, host, far, tt.archive, Options{}, tt.play)
			tt.check(t, err)
		})
	}
}

// TestInitArchiveDeadline: neither a guest that does not read nor an archive
// that does not come holds InitArchive up.
func TestInitArchiveDeadline(t *testing.T) {
	for _, blocks := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			host, far := net.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var archive io.Reader = endless{}
			if blocks {
				pr, pw := io.Pipe()
				defer pw.Close()
				archive = pr
			}
			begin := time.Now()
			_, err := initArchive(ctx, t, host, far, archive, Options{}, func(g *script) {
				g.expect(typeInit)
				<-ctx.Done()
			})
			wantError(t, err, hearth.CodeTimeout, "")
			if d := time.Since(begin); d != time.Minute {
				t.Errorf("after %s", d)
			}
		})
	}
}

// TestStreamedFunction runs a function that came as an archive in the real guest
// of each language.
func TestStreamedFunction(t *testing.T) {
	for language, files := range map[string]map[string]string{
		"python": {
			"app/main.py": `
import os, subprocess
import dep
from app.deep.helper import word
def handler(event, context):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [here, os.getcwd(), word, dep.word, open("data/text").read(),
            subprocess.check_output(["bin/alias"], text=True), os.access("bin/plain", os.X_OK)]
`,
			"app/deep/helper.py":             "word = 'helper'",
			".hearth/python/dep/__init__.py": "from .inner import word",
			".hearth/python/dep/inner.py":    "word = 'dependency'",
		},
		"nodejs": {
			"app/main.mjs": `
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { word as dependency } from 'dep';
import { word } from './deep/helper.mjs';
export const handler = () => {
  let executable = true;
  try { fs.accessSync('bin/plain', fs.constants.X_OK); } catch { executable = false; }
  return [path.dirname(path.dirname(fileURLToPath(import.meta.url))), process.cwd(), word, dependency,
    fs.readFileSync('data/text', 'utf8'), execFileSync('bin/alias', { encoding: 'utf8' }), executable];
};
`,
			"app/deep/helper.mjs":           "export const word = 'helper';",
			"node_modules/dep/index.js":     "exports.word = require('./lib/inner').word;",
			"node_modules/dep/lib/inner.js": "exports.word = 'dependency';",
		},
	} {
		t.Run(language, func(t *testing.T) {
			interpreter, err := exec.LookPath(map[string]string{"python": "python3", "nodejs": "node"}[language])
			if err != nil {
				t.Skip(err)
			}
			for name, content := range map[string]string{
				"bin/tool": "#!/bin/sh\necho tool", "bin/alias": "-> tool", "bin/plain": "no program",
				"text/text": "linked", "data": "-> text", "large": strings.Repeat("x", 3<<20),
			} {
				files[name] = content
			}
			shims := t.TempDir()
			if err := os.CopyFS(shims, Shims()); err != nil {
				t.Fatal(err)
			}
			_, nc := startGuest(t, Command(language, interpreter, shims))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c, _, err := Connect(ctx, nc, Options{Secret: "secret"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			code := filepath.Join(t.TempDir(), "to", "be", "made")
			var archive bytes.Buffer
			if err := WriteArchive(&archive, fileTree(t, files)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.InitArchive(ctx, Init{Function: "f", Version: 1, Handler: "app/main.handler", Code: code}, &archive); err != nil {
				t.Fatal(err)
			}
			var r recorder
			call := &Call{ID: "a", Deadline: time.Now().Add(time.Minute), Kind: hearth.KindEvent}
			if err := c.Invoke(ctx, call, &r); err != nil {
				t.Fatal(err)
			}
			var got []any
			if err := json.Unmarshal(r.body, &got); err != nil {
				t.Fatal(err)
			}
			if want := []any{code, code, "helper", "dependency", "linked", "tool\n", false}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("it answered %q, want %q", got, want)
			}
		})
	}
}
