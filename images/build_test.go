package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// TestReproducible builds twice from the same base, under another name, at
// another time, in another store and from a compressed tar: one digest.
func TestReproducible(t *testing.T) {
	content := archive(t, pythonFiles()...)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	a, b := open(t, t.TempDir()), open(t, t.TempDir())
	first := build(t, a, "python", write(t, "base.tar", content))
	for name, other := range map[string]Image{
		"in the same store": build(t, a, "python", write(t, "base.tar", content)),
		"in another store":  build(t, b, "python", "tar:"+write(t, "x.tar", content)),
		"compressed":        build(t, open(t, t.TempDir()), "python", write(t, "base.tgz", zipped.Bytes())),
	} {
		if other.Digest != first.Digest || other.Config != first.Config || other.Ref != first.Ref || other.Guest != first.Guest {
			t.Errorf("%s: %+v, want what is in %+v", name, other, first)
		}
	}
	if all, err := a.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("built twice, the image is listed as %v, %v", all, err)
	}
	if other := build(t, b, "python", write(t, "base.tar", archive(t, pythonFiles(file("etc/new", ""))...))); other.Digest == first.Digest {
		t.Error("another base gave the same digest")
	}
	if got := tree(t, rootFS(t, a, first).Dir); len(got) == 0 || got["usr/bin/python3.11"] != "\x7fELFpython" {
		t.Errorf("unpacked: %v", got)
	}
}

// TestImage looks at everything an image tells and has.
func TestImage(t *testing.T) {
	tests := []struct {
		language string
		base     []entry
		want     Image
		shim     string
	}{
		{"python", pythonFiles(), Image{Runtime: "python3.11", Version: "3.11.2", Interpreter: "/usr/bin/python3.11"}, "python/hearth_guest.py"},
		{"nodejs", nodeFiles(), Image{Runtime: "nodejs20", Version: "20.11.1", Interpreter: "/usr/local/bin/node"}, "nodejs/hearth_guest.cjs"},
		{"provided", []entry{file("lib/libc.so.6", "c")}, Image{Runtime: "provided"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.language, func(t *testing.T) {
			s := open(t, t.TempDir())
			base := write(t, "base.tar", archive(t, tt.base...))
			before := time.Now()
			img := build(t, s, tt.language, base)
			if img.Runtime != tt.want.Runtime || img.Version != tt.want.Version || img.Interpreter != tt.want.Interpreter || img.Language != tt.language {
				t.Errorf("built %+v, want %+v", img, tt.want)
			}
			if img.Base != base || img.Size < 1024 || img.Created.Before(before.Add(-time.Second)) || !img.Current() ||
				img.Ref != "hearth/"+img.Runtime+":"+strings.TrimPrefix(img.Digest, "sha256:")[:12] {
				t.Errorf("built %+v", img)
			}
			for _, e := range []string{"HOME=/tmp", "LANG=C.UTF-8", "PATH=" + defaultPath} {
				if !slices.Contains(img.Env, e) {
					t.Errorf("its environment %q lacks %s", img.Env, e)
				}
			}
			found, err := s.Find(t.Context(), img.Runtime)
			if err != nil || found.Digest != img.Digest || found.Config != img.Config || !found.Created.Equal(img.Created) {
				t.Errorf("Find returns %+v, %v; want %+v", found, err, img)
			}

			dir := rootFS(t, s, img).Dir
			all := tree(t, dir)
			if !strings.Contains(all["etc/passwd"], "sandbox:x:1000:1000:sandbox:/tmp:") {
				t.Errorf("/etc/passwd is %q", all["etc/passwd"])
			}
			if tt.shim != "" {
				want, err := fs.ReadFile(guest.Shims(), tt.shim)
				if err != nil {
					t.Fatal(err)
				}
				if got := all["hearth/guest/"+tt.shim]; got != string(want) {
					t.Errorf("the guest inside, of %d bytes, is not the program's, of %d", len(got), len(want))
				}
			}
			for _, p := range []string{"function/", "hearth/guest/", "tmp/", "proc/"} {
				if _, ok := all[p]; !ok {
					t.Errorf("%s is missing", p)
				}
			}
			image, err := s.image(img.Digest)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if c := cfg.Config; c.User != "1000:1000" || c.WorkingDir != "/tmp" || c.Labels["run.hearth.language"] != tt.language ||
				c.Labels["run.hearth.runtime"] != img.Runtime || c.Labels["run.hearth.guest"] != img.Guest {
				t.Errorf("configuration: %+v", c)
			}
			name := path.Base(strings.Replace(tt.want.Interpreter, "3.11", "3", 1))
			if command := guest.Command(tt.language, name, "/hearth/guest"); !slices.Equal(cfg.Config.Entrypoint, command) {
				t.Errorf("the entry point is %q, drivers run %q", cfg.Config.Entrypoint, command)
			}
		})
	}
}

func TestBuildErrors(t *testing.T) {
	good := archive(t, pythonFiles(file("big", strings.Repeat("x", 1<<20)))...)
	old := []entry{program("usr/bin/python3.8", ""), symlink("usr/bin/python3", "python3.8")}
	tests := []struct {
		name     string
		language string
		base     string
		code     hearth.Code
		says     string
	}{
		{"unknown language", "ruby", "", hearth.CodeNotFound, "python, nodejs, provided"},
		{"no such file", "python", "./nowhere.tar", hearth.CodeNotFound, "does not exist"},
		{"no such file, tar:", "python", "tar:nowhere.tar", hearth.CodeNotFound, "does not exist"},
		{"no name of an image", "python", "Not A Name", hearth.CodeInvalid, "--base"},
		{"a directory", "python", t.TempDir(), hearth.CodeInvalid, "OCI"},
		{"no tar", "python", write(t, "x", bytes.Repeat([]byte("no tar "), 1000)), hearth.CodeInvalid, "base"},
		{"truncated tar", "python", write(t, "x.tar", good[:len(good)/2]), hearth.CodeInvalid, ""},
		{"truncated gzip", "python", write(t, "x.tgz", []byte("\x1f\x8b\x08")), hearth.CodeInvalid, ""},
		{"no interpreter", "nodejs", write(t, "x.tar", good), hearth.CodeInvalid, "no Node.js on its PATH"},
		{"a script for an interpreter", "nodejs", write(t, "x.tar", archive(t, entry{Header: program("bin/node", "").Header, body: "#!/bin/sh"})), hearth.CodeInvalid, "no Node.js on its PATH"},
		{"an interpreter outside", "python", write(t, "x.tar", archive(t, symlink("usr/bin/python3", "../../../../../../../../"+os.Args[0]))), hearth.CodeInvalid, "no Python 3 on its PATH"},
		{"too old", "python", write(t, "x.tar", archive(t, old...)), hearth.CodeUnsupported, "3.9"},
		{"no version", "nodejs", write(t, "x.tar", archive(t, program("bin/node", ""))), hearth.CodeInvalid, "NODE_VERSION"},
		{"hostile", "python", write(t, "x.tar", archive(t, pythonFiles(file("../x", ""))...)), hearth.CodeInvalid, "leads outside"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			_, err := s.Build(t.Context(), BuildOptions{Language: tt.language, Base: tt.base})
			wantError(t, err, tt.code, tt.says)
			if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("after the error there are images: %v %v", all, err)
			}
			for _, sub := range []string{"tmp", "rootfs", "images"} {
				if left, err := os.ReadDir(filepath.Join(s.dir, sub)); err != nil || len(left) != 0 {
					t.Errorf("after the error %s has %v, %v", sub, left, err)
				}
			}
		})
	}

	_, err := open(t, t.TempDir()).Build(t.Context(), BuildOptions{
		Language: "python", Base: write(t, "x.tar", good), BuildArgs: map[string]string{"COLOUR": "red"},
	})
	wantError(t, err, hearth.CodeInvalid, "COLOUR")
}

func TestProgress(t *testing.T) {
	s := open(t, t.TempDir())
	base := write(t, "base.tar", archive(t, pythonFiles(file("big", strings.Repeat("x", 1<<20)))...))
	var events []Event
	if _, err := s.Build(t.Context(), BuildOptions{Language: "python", Base: base, Progress: func(e Event) { events = append(events, e) }}); err != nil {
		t.Fatal(err)
	}
	var phases []Phase
	for _, e := range events {
		if !slices.Contains(phases, e.Phase) {
			phases = append(phases, e.Phase)
		}
	}
	if want := []Phase{PhaseFetch, PhaseUnpack, PhaseDone}; !slices.Equal(phases, want) {
		t.Errorf("phases %q, want %q", phases, want)
	}
	if !slices.ContainsFunc(events, func(e Event) bool { return e.Phase == PhaseFetch && e.Bytes == e.Total && e.Total > 1<<20 }) {
		t.Errorf("no event tells that the layer was fetched: %+v", events)
	}
}

func TestCanceled(t *testing.T) {
	s := open(t, t.TempDir())
	base := write(t, "base.tar", archive(t, pythonFiles()...))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.Build(ctx, BuildOptions{Language: "python", Base: base, Progress: func(e Event) {
		if e.Phase == PhaseUnpack {
			cancel()
		}
	}})
	if !errors.Is(err, ctx.Err()) || err == nil {
		t.Errorf("a canceled build ends with %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("a canceled build leaves %v, %v", left, err)
	}
	// Nothing keeps the next from working.
	build(t, s, "python", base)
}
