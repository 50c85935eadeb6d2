package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/hearthrun/hearth"
)

func fifo(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeFifo, Mode: 0o644}}
}

// goodLayout writes a layout whose index leads to an image and returns its
// directory and the paths of the index, the manifest and the configuration.
func goodLayout(t *testing.T) (dir string, documents map[string]string) {
	t.Helper()
	dir = t.TempDir()
	img := baseImage(t, nil)
	if _, err := layout.Write(dir, multi(t, img)); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return dir, map[string]string{"index": "index.json", "manifest": "blobs/sha256/" + d.Hex, "configuration": "blobs/sha256/" + c.Hex}
}

// hang makes a build that does not end an error instead.
func hang(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestHostileLayouts puts into the place of each document of a layout, in a
// directory and in an archive, what must not be opened or read as a whole.
func TestHostileLayouts(t *testing.T) {
	outside := write(t, "outside", []byte(`{"manifests": []}`))
	for _, document := range []string{"index", "manifest", "configuration"} {
		for what, tt := range map[string]struct {
			put   func(name string) error
			entry func(name string) entry
			says  string
		}{
			"link":  {func(n string) error { return os.Symlink(outside, n) }, func(n string) entry { return symlink(n, outside) }, "regular file"},
			"zeros": {func(n string) error { return os.Symlink("/dev/zero", n) }, func(n string) entry { return symlink(n, "/dev/zero") }, "regular file"},
			"pipe":  {func(n string) error { return syscall.Mkfifo(n, 0o644) }, fifo, "regular file"},
			"large": {
				func(n string) error { return os.WriteFile(n, make([]byte, maxDocument+1), 0o644) },
				func(n string) entry { return file(n, strings.Repeat(" ", maxDocument+1)) }, "4 MiB",
			},
		} {
			t.Run(document+" "+what, func(t *testing.T) {
				dir, documents := goodLayout(t)
				place := documents[document]
				var entries []entry
				for p, content := range tree(t, dir) {
					switch {
					case p == place:
						entries = append(entries, tt.entry(p))
					case !strings.HasSuffix(p, "/"):
						entries = append(entries, file(p, content))
					}
				}
				p := filepath.Join(dir, place)
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
				if err := tt.put(p); err != nil {
					t.Fatal(err)
				}
				for form, base := range map[string]string{"directory": dir, "archive": write(t, "oci.tar", archive(t, entries...))} {
					_, err := open(t, t.TempDir()).Build(hang(t), BuildOptions{Language: "python", Base: base})
					t.Log(form)
					wantError(t, err, hearth.CodeInvalid, tt.says)
				}
			})
		}
	}
}

// TestLayoutOnly: what does not belong to a layout is not taken from an archive.
func TestLayoutOnly(t *testing.T) {
	dir, _ := goodLayout(t)
	all := tree(t, dir)
	entries := []entry{symlink("blobs/other", "/"), file("extra", "x"), file("../escape", "x"), file("blobs/sha256/short", "x")}
	want := 0
	for _, p := range sortedKeys(all) {
		if !strings.HasSuffix(p, "/") {
			entries = append(entries, file("./"+p, all[p]))
			want++
		}
	}
	to := filepath.Join(t.TempDir(), "layout")
	if err := unpackLayout(t.Context(), write(t, "oci.tar", archive(t, entries...)), to); err != nil {
		t.Fatal(err)
	}
	got := 0
	for p, content := range tree(t, filepath.Dir(to)) {
		if strings.HasSuffix(p, "/") {
			continue
		}
		if got++; all[strings.TrimPrefix(p, "layout/")] != content {
			t.Errorf("%s was unpacked", p)
		}
	}
	if got != want {
		t.Errorf("%d files were unpacked, want %d", got, want)
	}
}

func TestHostileSaves(t *testing.T) {
	manifest := file("manifest.json", `[{"Config":"config.json","Layers":[]}]`)
	config := fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[]}}`, runtime.GOARCH)
	for name, tt := range map[string]struct {
		entries []entry
		says    string
	}{
		"large configuration":  {[]entry{manifest, file("config.json", config+strings.Repeat(" ", maxDocument))}, "config.json has more than 4 MiB"},
		"linked configuration": {[]entry{manifest, symlink("config.json", "large"), file("large", config+strings.Repeat(" ", maxDocument))}, "regular file"},
		"large manifest":       {[]entry{file("manifest.json", manifest.body+strings.Repeat(" ", maxDocument))}, "manifest.json has more than 4 MiB"},
		"linked manifest":      {[]entry{symlink("manifest.json", "other"), file("other", manifest.body), file("config.json", config)}, "regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, t.TempDir()).Build(hang(t), BuildOptions{Language: "python", Base: write(t, "save.tar", archive(t, tt.entries...))})
			wantError(t, err, hearth.CodeInvalid, tt.says)
		})
	}
}

// TestCanceledBase ends a build while it reads the base.
func TestCanceledBase(t *testing.T) {
	saved := filepath.Join(t.TempDir(), "save.tar")
	if err := tarball.WriteToFile(saved, name.MustParseReference("base:1").(name.Tag), baseImage(t, nil)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := openTar(ctx, saved)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	b := make([]byte, 1<<20)
	for range 3 { // what is buffered may still come
		_, err = r.Read(b)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("reading after the end of its context: %v", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = open(t, t.TempDir()).Build(hang(t), BuildOptions{Language: "python", Base: pipe})
	wantError(t, err, hearth.CodeInvalid, "neither a file nor a directory")
}
