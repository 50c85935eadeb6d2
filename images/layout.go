package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/hearthrun/hearth"
)

// Archives and layouts are hostile. The library that reads them takes whole
// documents into memory and opens what lies at their paths, so both are looked
// at before.
const (
	maxDocument       = 4 << 20 // of an index, a manifest or a configuration, in bytes
	maxArchive        = 8 << 30 // of what is taken from an archive, in bytes
	maxArchiveEntries = 10000
)

// layoutName matches what belongs to an OCI layout.
var layoutName = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

func tooLargeDocument(what string) error {
	return hearth.Errorf(hearth.CodeInvalid, "the base is hostile or damaged: %s has more than %d MiB", what, maxDocument>>20)
}

func notRegular(what string) error {
	return hearth.Errorf(hearth.CodeInvalid, "the base is hostile or damaged: %s is not a regular file", what)
}

// fromLayout takes an OCI layout in a directory.
func fromLayout(dir string) (*base, error) {
	l := layoutDir(dir)
	err := l.document("index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the directory %s is no OCI image layout: %w", dir, err).
			WithHint("name a tar of a root file system, an archive of docker save, or an OCI layout")
	} else if err != nil {
		return nil, err
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, baseError(err)
	}
	idx, err := p.ImageIndex()
	if err != nil {
		return nil, baseError(err)
	}
	img, err := pick(idx, 0, l.described)
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, baseError(err)
	}
	if err := l.described(m.Config); err != nil {
		return nil, err
	}
	return asTheyAre(img)
}

// layoutDir is the directory of an OCI layout.
type layoutDir string

// document returns an error unless name is a regular file, small enough to be
// read as a whole.
func (l layoutDir) document(name string) error {
	info, err := os.Lstat(filepath.Join(string(l), name))
	switch {
	case err != nil:
		return baseError(err)
	case !info.Mode().IsRegular():
		return notRegular(name)
	case info.Size() > maxDocument:
		return tooLargeDocument(name)
	}
	return nil
}

// described does the same for a document that a descriptor names.
func (l layoutDir) described(d v1.Descriptor) error {
	return l.document(path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex))
}

// unpackLayout takes the OCI layout out of a tar into a new directory: nothing
// but the regular files that belong to it.
func unpackLayout(ctx context.Context, file, dir string) error {
	r, err := openTar(ctx, file)
	if err != nil {
		return baseError(err)
	}
	defer r.Close()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return hostError("the base cannot be stored", err)
	}
	rest := int64(maxArchive)
	return eachEntry(r, func(name string, h *tar.Header, body io.Reader) error {
		if !layoutName.MatchString(name) {
			return nil
		}
		if h.Typeflag != tar.TypeReg {
			return notRegular(name)
		}
		if !strings.HasPrefix(name, "blobs/") && h.Size > maxDocument {
			return tooLargeDocument(name)
		}
		if rest -= h.Size; rest < 0 {
			return tooLarge()
		}
		return unpackBlob(ctx, filepath.Join(dir, filepath.FromSlash(name)), body)
	})
}

// unpackBlob writes one file of a layout.
func unpackBlob(ctx context.Context, name string, body io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return hostError("the base cannot be stored", err)
	}
	src := &source{ctx: ctx, r: body}
	_, err = io.Copy(f, src)
	if err = errors.Join(err, f.Close()); src.err != nil {
		return baseError(src.err)
	} else if err != nil {
		return hostError("the base cannot be stored", err)
	}
	return nil
}

// eachEntry calls f with the entries of an archive of an image, under their
// clean names.
func eachEntry(r io.Reader, f func(name string, h *tar.Header, body io.Reader) error) error {
	tr := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return baseError(err)
		}
		if entries == maxArchiveEntries {
			return tooLarge()
		}
		if err := f(path.Clean(h.Name), h, tr); err != nil {
			return err
		}
	}
}

// checkSave looks at an archive of docker save: at the manifest and at the
// configuration that it names, which are read as a whole.
func checkSave(ctx context.Context, file string) error {
	r, err := openTar(ctx, file)
	if err != nil {
		return baseError(err)
	}
	defer r.Close()
	var (
		manifest tarball.Manifest
		found    bool
		large    = map[string]error{} // what cannot be a document, and why
		seen     = map[string]bool{}
	)
	err = eachEntry(r, func(name string, h *tar.Header, body io.Reader) error {
		if seen[name] {
			return nil // the first one counts
		}
		seen[name] = true
		if h.Typeflag != tar.TypeReg {
			large[name] = notRegular(name)
		} else if h.Size > maxDocument {
			large[name] = tooLargeDocument(name)
		}
		if name != "manifest.json" {
			return nil
		}
		if large[name] != nil {
			return large[name]
		}
		found = true
		if err := json.NewDecoder(body).Decode(&manifest); err != nil {
			return baseError(fmt.Errorf("manifest.json: %w", err))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !found {
		return baseError(errors.New("it has no manifest.json"))
	}
	for _, m := range manifest {
		if err := large[path.Clean(m.Config)]; err != nil {
			return err
		}
	}
	return nil
}
