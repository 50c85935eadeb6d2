package images

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
)

// base is what an image is built on.
type base struct {
	config v1.ConfigFile
	layers []baseLayer
}

// baseLayer is one layer as it will be stored.
type baseLayer struct {
	open func() (io.ReadCloser, error)
	// desc is known for layers that are taken as they are; for others its
	// digest is that of what open yields, and its size is what is expected.
	desc   v1.Descriptor
	diffID v1.Hash // the zero value: that of what open yields
}

// openBase finds out what ref names: tar:FILE, a file, an OCI layout
// directory, docker-daemon:REF, or an image in a registry.
func openBase(ctx context.Context, ref string, scratch string) (*base, error) {
	if file, ok := strings.CutPrefix(ref, "tar:"); ok {
		return rootTar(ctx, file)
	}
	if image, ok := strings.CutPrefix(ref, "docker-daemon:"); ok {
		return fromDaemon(ctx, image, scratch)
	}
	info, err := os.Stat(ref)
	switch {
	case err == nil && info.IsDir():
		return fromLayout(ref)
	case err == nil && !info.Mode().IsRegular():
		return nil, hearth.Errorf(hearth.CodeInvalid, "the base %s is neither a file nor a directory", ref)
	case err == nil:
		return fromFile(ctx, ref, scratch)
	case filepath.IsAbs(ref) || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../"):
		return nil, baseError(err)
	}
	return fromRegistry(ctx, ref)
}

// baseName is what the record of an image says of its base: the path of a file
// is an absolute one there.
func baseName(ref string) string {
	file, tarred := strings.CutPrefix(ref, "tar:")
	if _, err := os.Stat(file); err != nil {
		return ref
	}
	if abs, err := filepath.Abs(file); err == nil && tarred {
		return "tar:" + abs
	} else if err == nil {
		return abs
	}
	return ref
}

// fromRegistry asks a registry; what it needs to log in there is taken from
// where docker login puts it.
func fromRegistry(ctx context.Context, ref string) (*base, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the base %q is neither a file nor the name of an image", ref).
			WithHint("for example --base docker.io/library/python:3.13-slim-bookworm or --base ./python.tar")
	}
	got, err := remote.Get(r, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("hearth"))
	if err != nil {
		return nil, registryError(ref, err)
	}
	var img v1.Image
	if got.MediaType.IsIndex() {
		idx, err := got.ImageIndex()
		if err != nil {
			return nil, baseError(err)
		}
		if img, err = pick(idx, 0, func(v1.Descriptor) error { return nil }); err != nil {
			return nil, err
		}
	} else if img, err = got.Image(); err != nil {
		return nil, baseError(err)
	}
	return asTheyAre(img)
}

func registryError(ref string, err error) error {
	if ctxErr := hostCauseContext(err); ctxErr != nil {
		return ctxErr
	}
	hint := "a base can be a file as well: hearth images build --base FILE; scripts/base-images.sh makes some without a registry"
	var t *transport.Error
	if errors.As(err, &t) {
		switch t.StatusCode {
		case http.StatusNotFound:
			return hearth.Errorf(hearth.CodeNotFound, "the registry has no image %s: %w", ref, err).
				WithHint("check its name and tag")
		case http.StatusUnauthorized, http.StatusForbidden:
			return hearth.Errorf(hearth.CodeDenied, "the registry does not give out %s: %w", ref, err).
				WithHint("check the name; if it is private: docker login")
		}
	}
	return hearth.Errorf(hearth.CodeUnavailable, "the base %s cannot be had: %w", ref, err).WithHint("%s", hint)
}

func hostCauseContext(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// asTheyAre takes an image whose layers are stored as they come.
func asTheyAre(img v1.Image) (*base, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, baseError(err)
	}
	if m.Config.Size > maxDocument {
		return nil, tooLargeDocument("its configuration")
	}
	b, layers, err := newBase(img)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(layers) {
		return nil, baseError(errors.New("manifest and configuration disagree on the number of layers"))
	}
	for i, l := range layers {
		b.layers = append(b.layers, baseLayer{open: l.Compressed, desc: m.Layers[i], diffID: b.config.RootFS.DiffIDs[i]})
	}
	return b, nil
}

func newBase(img v1.Image) (*base, []v1.Layer, error) {
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, nil, baseError(err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, nil, baseError(err)
	}
	if len(layers) != len(cfg.RootFS.DiffIDs) {
		return nil, nil, baseError(errors.New("manifest and configuration disagree on the number of layers"))
	}
	return &base{config: *cfg}, layers, nil
}

// pick returns the image of an index for this host. It calls check before it
// reads what a descriptor names.
func pick(idx v1.ImageIndex, depth int, check func(v1.Descriptor) error) (v1.Image, error) {
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, baseError(err)
	}
	for _, d := range m.Manifests {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		switch {
		case d.MediaType.IsImage():
			if err := check(d); err != nil {
				return nil, err
			}
			img, err := idx.Image(d.Digest)
			if err != nil {
				return nil, baseError(err)
			}
			return img, nil
		case d.MediaType.IsIndex() && depth < 3:
			if err := check(d); err != nil {
				return nil, err
			}
			sub, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return nil, baseError(err)
			}
			return pick(sub, depth+1, check)
		}
	}
	return nil, hearth.Errorf(hearth.CodeUnsupported, "the base has no image for linux/%s", runtime.GOARCH)
}

// fromFile looks into a tar: an archive of docker save, an OCI layout, or a
// root file system.
func fromFile(ctx context.Context, file, scratch string) (*base, error) {
	r, err := openTar(ctx, file)
	if err != nil {
		return nil, baseError(err)
	}
	defer r.Close()
	isLayout := false
	tr := tar.NewReader(r)
	for range 1000 { // archives of images have few entries
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, baseError(err)
		}
		switch strings.TrimPrefix(h.Name, "./") {
		case "manifest.json":
			return fromSave(ctx, file)
		case "oci-layout":
			isLayout = true
		}
	}
	if !isLayout {
		return rootTar(ctx, file)
	}
	dir := filepath.Join(scratch, "layout")
	if err := unpackLayout(ctx, file, dir); err != nil {
		return nil, err
	}
	return fromLayout(dir)
}

// fromSave takes an archive as docker save makes it. Its layers are stored
// uncompressed, whatever way they come.
func fromSave(ctx context.Context, file string) (*base, error) {
	if err := checkSave(ctx, file); err != nil {
		return nil, err
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return openTar(ctx, file) }, nil)
	if err != nil {
		return nil, baseError(err)
	}
	b, layers, err := newBase(img)
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		want := b.config.RootFS.DiffIDs[i]
		b.layers = append(b.layers, baseLayer{diffID: want, open: func() (io.ReadCloser, error) {
			r, err := l.Uncompressed()
			if err != nil {
				return nil, err
			}
			return newVerifier(r, want), nil
		}})
	}
	return b, nil
}

func fromDaemon(ctx context.Context, ref, scratch string) (*base, error) {
	unavailable := func(err error) error {
		return hearth.Errorf(hearth.CodeUnavailable, "Docker does not give out %s: %w", ref, err).
			WithHint("check that it runs and has the image: docker image inspect %s", ref)
	}
	c, err := client.New(client.FromEnv)
	if err != nil {
		return nil, unavailable(err)
	}
	defer c.Close()
	r, err := c.ImageSave(ctx, []string{ref})
	if err != nil {
		return nil, unavailable(err)
	}
	defer r.Close()
	file := filepath.Join(scratch, "save.tar")
	f, err := os.Create(file)
	if err != nil {
		return nil, hostError("the base cannot be stored", err)
	}
	src := &source{ctx: ctx, r: r}
	_, err = io.Copy(f, src)
	if err = errors.Join(err, f.Close()); src.err != nil {
		return nil, unavailable(src.err)
	} else if err != nil {
		return nil, hostError("the base cannot be stored", err)
	}
	return fromSave(ctx, file)
}

// rootTar takes the tar of a root file system, which may be compressed by gzip.
func rootTar(ctx context.Context, file string) (*base, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, baseError(err)
	}
	b := &base{config: v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH}}
	b.layers = []baseLayer{{
		open: func() (io.ReadCloser, error) { return openTar(ctx, file) },
		desc: v1.Descriptor{Size: info.Size()},
	}}
	return b, nil
}

type tarFile struct {
	io.Reader
	f *os.File
}

func (t tarFile) Close() error { return t.f.Close() }

// openTar opens a tar that may be compressed. Reading it ends with ctx.
func openTar(ctx context.Context, file string) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	b := bufio.NewReaderSize(&source{ctx: ctx, r: f}, 1<<20)
	if head, _ := b.Peek(2); string(head) != "\x1f\x8b" {
		return tarFile{b, f}, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return tarFile{z, f}, nil
}

// baseError is for a base that cannot be read.
func baseError(err error) error {
	var (
		e      *hearth.Error
		answer *transport.Error
		broken net.Error
	)
	switch {
	case errors.As(err, &e) || hostCauseContext(err) != nil:
		return err
	case errors.Is(err, fs.ErrNotExist):
		return hearth.Errorf(hearth.CodeNotFound, "the base does not exist: %w", err)
	case errors.As(err, &answer), errors.As(err, &broken):
		return hearth.Errorf(hearth.CodeUnavailable, "the registry does not give out a part of the base: %w", err).
			WithHint("try again; the parts that have come are kept")
	case hostCause(err) != nil:
		return hearth.Errorf(hearth.CodeUnavailable, "the base cannot be read: %w", err)
	}
	return hearth.Errorf(hearth.CodeInvalid, "the base cannot be read: %w", err).
		WithHint("name a tar of a root file system, an archive of docker save, or an OCI layout")
}
