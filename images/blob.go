package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hearthrun/hearth"
)

func (s *Store) blobPath(h v1.Hash) string { return filepath.Join(s.dir, "blobs", "sha256", h.Hex) }

// addBlob stores what r yields. want is its digest if that is known: then
// anything else is an error. Nothing remains of one that fails.
func (s *Store) addBlob(ctx context.Context, r io.Reader, want v1.Hash) (_ v1.Hash, size int64, err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "blob-*")
	if err != nil {
		return v1.Hash{}, 0, hostError("the image cannot be stored", err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	sum := sha256.New()
	src := &source{ctx: ctx, r: io.LimitReader(r, s.limits.bytes+1)}
	if size, err = io.Copy(io.MultiWriter(f, sum), src); src.err != nil {
		return v1.Hash{}, 0, baseError(src.err)
	} else if err != nil {
		return v1.Hash{}, 0, hostError("the image cannot be stored", err)
	}
	if size > s.limits.bytes {
		return v1.Hash{}, 0, tooLarge()
	}
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	if want != (v1.Hash{}) && h != want {
		return v1.Hash{}, 0, hearth.Errorf(hearth.CodeInvalid, "a part of the base is damaged: its digest is %s, not %s", h, want)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return v1.Hash{}, 0, hostError("the image cannot be stored", err)
	}
	// One that exists may have been damaged: it is replaced.
	if err := os.Rename(f.Name(), s.blobPath(h)); err != nil {
		return v1.Hash{}, 0, hostError("the image cannot be stored", err)
	}
	return h, size, nil
}

func (s *Store) addJSON(ctx context.Context, v any) (v1.Hash, int64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Hash{}, 0, err
	}
	return s.addBlob(ctx, bytes.NewReader(b), v1.Hash{})
}

// hasBlob tells whether the blob is there and undamaged.
func (s *Store) hasBlob(h v1.Hash, size int64) bool {
	f, err := os.Open(s.blobPath(h))
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return err == nil && n == size && hex.EncodeToString(sum.Sum(nil)) == h.Hex
}

// image returns an image whose parts are all in the store.
func (s *Store) image(digest string) (v1.Image, error) {
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, err
	}
	b, err := s.readBlob(h)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, damagedBlob(h, err)
	}
	return partial.CompressedToImage(&storedImage{store: s, raw: b, manifest: m})
}

// readBlob reads a small blob.
func (s *Store) readBlob(h v1.Hash) ([]byte, error) {
	b, err := os.ReadFile(s.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damagedBlob(h, err)
	} else if err != nil {
		return nil, hostError("the image cannot be read", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != h.Hex {
		return nil, damagedBlob(h, errors.New("its content does not have this digest"))
	}
	return b, nil
}

func damagedBlob(h v1.Hash, err error) error {
	return hearth.Errorf(hearth.CodeUnavailable, "an image in the store is damaged: %s: %w", h, err).
		WithHint("build it again: hearth images build")
}

// storedImage is a partial.CompressedImageCore. What it calls compressed is
// what is stored: layers made here are not compressed, so that their digests
// do not depend on a compressor.
type storedImage struct {
	store    *Store
	raw      []byte
	manifest *v1.Manifest
}

func (i *storedImage) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i *storedImage) MediaType() (types.MediaType, error) { return i.manifest.MediaType, nil }
func (i *storedImage) RawConfigFile() ([]byte, error) {
	return i.store.readBlob(i.manifest.Config.Digest)
}

func (i *storedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range i.manifest.Layers {
		if d.Digest == h {
			return &storedLayer{i.store, d}, nil
		}
	}
	if h == i.manifest.Config.Digest {
		return &storedLayer{i.store, i.manifest.Config}, nil
	}
	return nil, damagedBlob(h, fs.ErrNotExist)
}

type storedLayer struct {
	store *Store
	desc  v1.Descriptor
}

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *storedLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *storedLayer) Descriptor() (*v1.Descriptor, error) { return &l.desc, nil }
func (l *storedLayer) Compressed() (io.ReadCloser, error)  { return l.store.openBlob(l.desc.Digest) }

// openBlob opens a blob; its reader fails at the end if the content is not
// that of the digest.
func (s *Store) openBlob(h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(s.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damagedBlob(h, err)
	} else if err != nil {
		return nil, hostError("the image cannot be read", err)
	}
	return newVerifier(f, h), nil
}

// verifier passes on a stream and fails at its end if the digest is wrong.
type verifier struct {
	io.ReadCloser
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	want v1.Hash
}

func newVerifier(r io.ReadCloser, want v1.Hash) *verifier {
	return &verifier{ReadCloser: r, sum: sha256.New(), want: want}
}

func (v *verifier) Read(b []byte) (int, error) {
	n, err := v.ReadCloser.Read(b)
	_, _ = v.sum.Write(b[:n]) // a hash does not fail
	if errors.Is(err, io.EOF) && hex.EncodeToString(v.sum.Sum(nil)) != v.want.Hex {
		return n, damagedBlob(v.want, errors.New("its content does not have this digest"))
	}
	return n, err
}

// openLayer opens a layer's uncompressed content.
func (s *Store) openLayer(d v1.Descriptor) (io.ReadCloser, error) {
	l, err := partial.CompressedToLayer(&storedLayer{s, d})
	if err != nil {
		return nil, err
	}
	return l.Uncompressed()
}
