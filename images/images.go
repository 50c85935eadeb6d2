// Package images keeps the base images of the runtimes: what sandboxes of the
// drivers that bring their own root file system see as /.
//
// An image is built from one of the Dockerfiles beside this file, by Build
// without any daemon or by docker build. It is a base (a registry image, an
// archive, a tar of a root file system) plus the guest's shims, a user and the
// places that drivers mount on. A Store keeps images by their digests; the same
// base gives the same digest everywhere. One image serves every driver: as a
// root file system (RootFS) and as what docker load reads (Archive).
//
// Bases are untrusted: nothing of them runs while an image is built, and
// nothing they contain can lead outside of the directory they are unpacked to.
package images

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
)

// Provided is the name of the runtime without an interpreter, and of its
// language.
const Provided = "provided"

// Image is one image of a Store.
type Image struct {
	Runtime  string `json:"runtime"`  // "python3.11", "nodejs20", "provided"
	Language string `json:"language"` // "python", "nodejs", "provided"
	// Version is the interpreter's, "3.11.2"; empty for provided.
	Version string `json:"version,omitempty"`
	// Interpreter is its real path inside; empty for provided.
	Interpreter string `json:"interpreter,omitempty"`
	// Digest names the image: "sha256:…" of its manifest.
	Digest string `json:"digest"`
	// Config is the digest of the configuration, which classic Docker Engines
	// show as the image's ID.
	Config string `json:"config"`
	// Ref is the name it gets in Docker: hearth/python3.11:<12 digits of Digest>.
	Ref string `json:"ref"`
	// Guest identifies the shims inside; see GuestHash. Empty for provided.
	Guest string `json:"guest,omitempty"`
	// Size is what its layers take in the store, in bytes. Images share layers.
	Size int64 `json:"size"`
	// Created is when it was last built; it is not part of the digest.
	Created time.Time `json:"created"`
	// Base is what it was built on: as it was named, but a file by its absolute
	// path.
	Base string `json:"base"`
	// Env are the variables its base sets for the interpreter, as NAME=value;
	// PATH is always among them.
	Env []string `json:"env,omitempty"`
}

// Current tells whether the shims inside are those of this program.
func (i Image) Current() bool { return i.Guest == GuestHash(i.Language) }

// Store is a directory of images. Several processes may use one at the same
// time; each sees at once what another builds.
//
// In the directory: images/ has one record an image, blobs/sha256/ the layers,
// configurations and manifests, rootfs/ what RootFS has unpacked, locks/ and
// tmp/.
type Store struct {
	dir    string
	limits limits
}

// limits bound what an image may unpack to.
type limits struct {
	bytes   int64
	entries int
}

// Open returns the store in dir, which it creates. The store holds nothing
// open, so there is nothing to close. Errors: CodeUnavailable.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, hostError("the directory of images cannot be used", err)
	}
	s := At(dir)
	return s, s.create()
}

// create makes the directories of the store. Those above it are closed to
// others: they may be the data directory of a server that is yet to start.
func (s *Store) create() error {
	err := os.MkdirAll(filepath.Dir(s.dir), 0o700)
	for _, sub := range []string{"images", "blobs/sha256", "rootfs", "locks", "tmp"} {
		if err == nil {
			err = os.MkdirAll(filepath.Join(s.dir, sub), 0o755)
		}
	}
	if err != nil {
		return hostError("the directory of images cannot be used", err)
	}
	return nil
}

// At returns the store in dir without creating it, which Build does: until then
// it has no images. What is asked of one that cannot be used fails.
func At(dir string) *Store {
	return &Store{dir: dir, limits: limits{bytes: 8 << 30, entries: 1 << 20}}
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// List returns all images, sorted by language, newest version first, and of
// the same runtime the last built first.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, hostError("the images cannot be listed", err)
	}
	var all []Image
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !validID(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(filepath.Join(s.dir, "images", e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		} else if err != nil {
			return nil, hostError("the images cannot be listed", err)
		}
		var i Image
		if err := json.Unmarshal(b, &i); err != nil || i.Digest != "sha256:"+id {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "the record of the image %s is damaged", id).
				WithHint("remove %s and build the image again", filepath.Join(s.dir, "images", e.Name()))
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Image) int {
		return cmp.Or(cmp.Compare(a.Language, b.Language), compareVersions(b.Version, a.Version),
			b.Created.Compare(a.Created), cmp.Compare(a.Digest, b.Digest))
	})
	return all, nil
}

// Find returns the image of a runtime that sandboxes use: of those with the
// guest of this program the last built. Errors: CodeNotFound if there is none,
// with a hint how to build it.
func (s *Store) Find(ctx context.Context, runtime string) (Image, error) {
	all, err := s.List(ctx)
	if err != nil {
		return Image{}, err
	}
	img, ok := used(all, runtime)
	if !ok {
		return Image{}, notFound(runtime)
	}
	if !img.Current() {
		return Image{}, hearth.Errorf(hearth.CodeNotFound, "the image of the runtime %s was built by another version of Hearth", runtime).
			WithHint("build it again: hearth images build %s --base %s", img.Language, img.Base)
	}
	return img, nil
}

// used returns the image of a runtime that is worth keeping: the last built
// with the guest of this program or, if none has that, the last built.
func used(all []Image, runtime string) (img Image, ok bool) {
	for _, i := range all {
		if i.Runtime != runtime {
			continue
		}
		if !ok || i.Current() && !img.Current() || i.Current() == img.Current() && i.Created.After(img.Created) {
			img, ok = i, true
		}
	}
	return img, ok
}

// notFound is for a runtime that no image in the store has.
func notFound(runtime string) error {
	err := hearth.Errorf(hearth.CodeNotFound, "there is no image of the runtime %s", runtime)
	language := strings.TrimRight(runtime, ".0123456789")
	version := strings.TrimPrefix(runtime, language)
	switch {
	case !slices.Contains(Languages(), language):
		return err.WithHint("images are built for %s; other languages run as %s", strings.Join(Languages(), ", "), Provided)
	case language == "python" && version != "":
		return err.WithHint("hearth images build python --base docker.io/library/python:%s-slim-bookworm", version)
	case language == "nodejs" && version != "":
		return err.WithHint("hearth images build nodejs --base docker.io/library/node:%s-bookworm-slim", version)
	}
	return err.WithHint("hearth images build %s", language)
}

// id is the hexadecimal part of the digest, which names the image in the
// store. It is empty for a digest that no image has.
func (i Image) id() string {
	id, ok := strings.CutPrefix(i.Digest, "sha256:")
	if !ok || !validID(id) {
		return ""
	}
	return id
}

func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 32 && id == strings.ToLower(id)
}

// recorded tells whether the store still has the image.
func (s *Store) recorded(img Image) error {
	if img.id() == "" {
		return notFound(img.Runtime)
	}
	_, err := os.Stat(filepath.Join(s.dir, "images", img.id()+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(img.Runtime)
	} else if err != nil {
		return hostError("the image cannot be read", err)
	}
	return nil
}

// record makes the image known.
func (s *Store) record(img Image) error {
	b, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return err
	}
	return s.writeFile(filepath.Join("images", img.id()+".json"), append(b, '\n'))
}

// writeFile puts a small file into the store, at once and durably.
func (s *Store) writeFile(name string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, filepath.Dir(name)), ".new-*")
	if err != nil {
		return hostError("the store of images cannot be written", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = hostError("the store of images cannot be written", err)
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(s.dir, name))
}

// hostError is a failure of the host's file system.
func hostError(doing string, err error) error {
	var e *hearth.Error
	switch {
	case errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hearth.Errorf(hearth.CodeUnavailable, "%s: the disk is full: %w", doing, err).
			WithHint("make room there; hearth images prune removes images that are not used any more")
	case errors.Is(err, fs.ErrPermission):
		return hearth.Errorf(hearth.CodeDenied, "%s: %w", doing, err).
			WithHint("run it as the user who owns the directory, or choose another with --data-dir")
	}
	return hearth.Errorf(hearth.CodeUnavailable, "%s: %w", doing, err)
}

func compareVersions(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }

func numbers(version string) []int {
	var n []int
	for p := range strings.SplitSeq(version, ".") {
		i, _ := strconv.Atoi(p)
		n = append(n, i)
	}
	return n
}

// runtimeName is how functions name the interpreter.
func runtimeName(language, version string) string {
	n := append(numbers(version), 0, 0)
	switch language {
	case "python":
		return fmt.Sprintf("python%d.%d", n[0], n[1])
	case "nodejs":
		return fmt.Sprintf("nodejs%d", n[0])
	}
	return language
}
