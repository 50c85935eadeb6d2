package guesttest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// packer writes a tar archive.
type packer struct {
	t *testing.T
	b bytes.Buffer
	w *tar.Writer
}

func newPacker(t *testing.T) *packer {
	p := &packer{t: t}
	p.w = tar.NewWriter(&p.b)
	return p
}

func (p *packer) add(h *tar.Header, content string) {
	p.t.Helper()
	h.Size = int64(len(content))
	if err := p.w.WriteHeader(h); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.w.Write([]byte(content)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *packer) file(name, content string) {
	p.t.Helper()
	p.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444}, content)
}

func (p *packer) link(name, target string) {
	p.t.Helper()
	p.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, "")
}

func (p *packer) end() []byte {
	p.t.Helper()
	if err := p.w.Close(); err != nil {
		p.t.Fatal(err)
	}
	return p.b.Bytes()
}

// unpack starts a guest that gets archive in pieces of a size and unpacks it into
// dir. It returns the answer to INIT.
func (s *suite) unpack(t *testing.T, archive []byte, piece int, dir, handler string) (*peer, frame) {
	t.Helper()
	p := s.start(t)
	p.hello()
	p.buffer(initialize, 0, bytes.Replace(initHead(dir, handler), []byte(`"archive":false`), []byte(`"archive":true`), 1))
	for part := range slices.Chunk(archive, piece) {
		p.buffer(data, 0, part)
	}
	p.buffer(end, 0, nil)
	p.flush()
	return p, p.initialized()
}

func (s *suite) archive(t *testing.T) {
	if s.Start != nil {
		t.Skip("the guest's files are its own")
	}
	long := strings.Repeat("long/", 40) + "näme.bin"
	content := strings.Repeat("content", 100_000)
	pack := newPacker(t)
	if err := pack.w.AddFS(os.DirFS(s.code)); err != nil {
		t.Fatal(err)
	}
	pack.file(long, content)
	pack.file("empty", "")
	pack.link("link", "empty")
	pack.add(&tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("gnu/", 40) + "file", Mode: 0o600, Format: tar.FormatGNU}, "gnu")
	pack.add(&tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: long}, "")
	pack.file("twice", "old")
	pack.link("twice.link", "old")
	pack.file("twice", "new")
	pack.link("twice.link", "twice")
	archive := pack.end()
	for _, piece := range []int{64 << 10, 1000} {
		dir := filepath.Join(t.TempDir(), "code")
		p, f := s.unpack(t, archive, piece, dir, "conformance.text")
		if f.typ != ready {
			t.Fatalf("INIT was answered with %s", f)
		}
		if r := p.wait(p.invoke("http", map[string]any{}, nil)); r.body() != "héllo" {
			t.Errorf("the call was answered with %v", r)
		}
		for name, want := range map[string]string{
			long: content, "hard": content, strings.Repeat("gnu/", 40) + "file": "gnu", "twice": "new", "twice.link": "new", "empty": "",
		} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("the file %s has %d bytes: %v", name, len(got), err)
			}
		}
		if to, err := os.Readlink(filepath.Join(dir, "link")); to != "empty" {
			t.Errorf("the link points to %q: %v", to, err)
		}
		p.stop()
	}

	outside, link, plain := newPacker(t), newPacker(t), newPacker(t)
	outside.file("../outside", "x")
	link.link("l", "../..")
	plain.file("readme", "x")
	const invalid = "Runtime.InvalidArchive"
	for name, bad := range map[string]struct {
		archive []byte
		typ     string
	}{
		"cut off":    {archive[:len(archive)/2], invalid},
		"garbage":    {bytes.Repeat([]byte("garbage "), 1000), invalid},
		"path":       {outside.end(), invalid},
		"link":       {link.end(), invalid},
		"no handler": {plain.end(), "Runtime.ImportModuleError"},
	} {
		dir := filepath.Join(t.TempDir(), "code")
		p, f := s.unpack(t, bad.archive, 4096, dir, "conformance.text")
		s.checkInitError(t, f, bad.typ, "")
		if _, err := os.Lstat(filepath.Join(filepath.Dir(dir), "outside")); err == nil {
			t.Errorf("%s: a file was written outside of the code", name)
		}
		p.close(0)
	}
}

func (s *suite) checkInitError(t *testing.T, f frame, typ, message string) {
	t.Helper()
	var e failure
	if f.typ != initError || json.Unmarshal(f.payload, &e) != nil || e.Type != typ || !strings.Contains(e.Message, message) {
		t.Errorf("INIT was answered with %s, want an error %s that tells of %q", f, typ, message)
	}
}

// streamed checks that a function that comes as an archive has all that it has
// in a directory.
func (s *suite) streamed(t *testing.T) {
	if s.Start != nil {
		t.Skip("the guest's files are its own")
	}
	pack := newPacker(t)
	for name, content := range map[string]map[string]string{
		"python": {
			"app/main.py": `
import os, subprocess
import dep
from app.deep.helper import word

def handler(event, context):
    return {"cwd": os.getcwd(), "helper": word, "dependency": dep.word, "linked": open("data/text").read(),
            "tool": subprocess.check_output(["bin/alias"]).decode(), "executable": os.access("bin/plain", os.X_OK)}
`,
			"app/deep/helper.py":             "word = 'helper'",
			".hearth/python/dep/__init__.py": "from .inner import word",
			".hearth/python/dep/inner.py":    "word = 'dependency'",
		},
		"nodejs": {
			"app/main.mjs": `
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import dep from 'dep';
import { word } from './deep/helper.mjs';

export const handler = () => ({
  cwd: process.cwd(), helper: word, dependency: dep.word, linked: fs.readFileSync('data/text', 'utf8'),
  tool: execFileSync('bin/alias', { encoding: 'utf8' }), executable: (fs.statSync('bin/plain').mode & 0o111) !== 0,
});
`,
			"app/deep/helper.mjs":           "export const word = 'helper';",
			"node_modules/dep/index.js":     "exports.word = require('./lib/inner').word;",
			"node_modules/dep/lib/inner.js": "exports.word = 'dependency';",
		},
	}[s.Language] {
		pack.file(name, content)
	}
	pack.add(&tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, "")
	pack.link("bin/alias", "tool")
	pack.file("bin/plain", "no program")
	pack.add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/tool", Mode: 0o555}, "#!/bin/sh\necho tool")
	pack.link("data", "text")
	pack.file("text/text", "linked")
	archive := pack.end()
	dir := filepath.Join(t.TempDir(), "to", "be", "made")
	p, f := s.unpack(t, archive, 64<<10, dir, "app/main.handler")
	if f.typ != ready {
		t.Fatalf("INIT was answered with %s", f)
	}
	want := fmt.Sprintf(`{"cwd":%q,"helper":"helper","dependency":"dependency","linked":"linked","tool":"tool\n","executable":false}`, dir)
	if r := p.wait(p.invoke("event", nil, nil)); !jsonEqual(r.body(), want) {
		t.Errorf("the call was answered with %v, want %s", r, want)
	}
	p.stop()

	// No place to write to.
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, f = s.unpack(t, archive, 64<<10, filepath.Join(blocked, "code"), "app/main.handler")
	s.checkInitError(t, f, "Runtime.InvalidArchive", blocked)
	p.close(0)

	// Not enough of it.
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); errors.Is(err, unix.EPERM) {
		t.Skip("not as root: no small file system was tried")
	} else if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH) //nolint:errcheck // nothing to be done
	pack = newPacker(t)
	for i := range 4 {
		pack.file(fmt.Sprint("large", i), strings.Repeat("x", 40_000))
	}
	p, f = s.unpack(t, pack.end(), 64<<10, filepath.Join(small, "code"), "app/main.handler")
	s.checkInitError(t, f, "Runtime.InvalidArchive", "o space left on device")
	p.close(0)
}
