package images

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

//go:embed python/Dockerfile nodejs/Dockerfile provided/Dockerfile
var dockerfiles embed.FS

// Languages are what Build takes: those of the Dockerfiles.
func Languages() []string { return []string{"python", "nodejs", Provided} }

// buildContext holds the files that a Dockerfile's COPY takes, by their paths;
// a path that ends with a slash is an empty directory.
type buildContext map[string][]byte

// newContext returns what goes into every image of the language besides its
// base.
func newContext(language string) buildContext {
	c := buildContext{
		"rootfs/etc/passwd":      []byte("root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
		"rootfs/etc/group":       []byte("root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n"),
		"rootfs/etc/hosts":       []byte("127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
		"rootfs/etc/hostname":    []byte("sandbox\n"),
		"rootfs/etc/resolv.conf": {},
		"rootfs/function/":       nil,
		"rootfs/hearth/guest/":   nil,
	}
	for p, b := range shims(language) {
		c[path.Join("guest", p)] = b
	}
	return c
}

// shims are the files of the guest for a language.
func shims(language string) map[string][]byte {
	files := map[string][]byte{}
	all := guest.Shims()
	err := fs.WalkDir(all, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasPrefix(p, language+"/") {
			return err
		}
		files[p], err = fs.ReadFile(all, p)
		return err
	})
	if err != nil {
		panic(err) // it is in the program
	}
	return files
}

// GuestHash identifies this program's shims of a language; it is empty for
// one without.
func GuestHash(language string) string {
	files := shims(language)
	if len(files) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, p := range sortedKeys(files) {
		fmt.Fprintf(sum, "%s %d\n%s", p, len(files[p]), files[p])
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// WriteContext writes the Dockerfile of a language and all that it copies to
// dir, for docker build. The directory must not exist or be empty. Errors:
// CodeNotFound for an unknown language, CodeConflict for a directory in use.
func WriteContext(dir, language string) error {
	file, err := dockerfile(language)
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return hearth.Errorf(hearth.CodeConflict, "the directory %s is not empty", dir).
			WithHint("name a new one")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hearth.Errorf(hearth.CodeInvalid, "the directory %s cannot be used: %w", dir, err)
	}
	c := newContext(language)
	c["Dockerfile"] = file
	for name, b := range c {
		p := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644))
		}
		if err != nil {
			return hostError("the build context cannot be written", err)
		}
	}
	// COPY takes modes over, and the umask of the process may be a strict one.
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if e.IsDir() {
			mode = 0o755
		}
		return os.Chmod(p, mode)
	})
	if err != nil {
		return hostError("the build context cannot be written", err)
	}
	return nil
}

func dockerfile(language string) ([]byte, error) {
	b, err := dockerfiles.ReadFile(path.Join(language, "Dockerfile"))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeNotFound, "there is no base image for %q", language).
			WithHint("choose one of %s", strings.Join(Languages(), ", "))
	}
	return b, nil
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
