package images

import (
	"bytes"
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hearthrun/hearth"
)

// buildLock is held by who adds or removes blobs.
const buildLock = "build"

// BuildOptions of Store.Build.
type BuildOptions struct {
	// Language selects the Dockerfile: one of Languages.
	Language string
	// Base is what to build on: the name of an image in a registry, the path of
	// a root file system's tar, of an archive of docker save or of an OCI
	// layout, tar:FILE, or docker-daemon:REF. Empty: the Dockerfile's own.
	Base string
	// BuildArgs are the Dockerfile's ARGs; BASE is Base.
	BuildArgs map[string]string
	// Progress is called now and then, from the goroutine of Build; may be nil.
	Progress func(Event)
}

// Phase is what Build is doing.
type Phase string

// The phases of a build.
const (
	PhaseFetch  Phase = "fetch"  // taking a layer of the base over
	PhaseReuse  Phase = "reuse"  // a layer of the base is in the store already
	PhaseUnpack Phase = "unpack" // unpacking a layer
	PhaseDone   Phase = "done"   // the image is in the store
)

// Event is progress of a build.
type Event struct {
	Phase  Phase
	Layer  int // from 1; of Layers
	Layers int
	Bytes  int64 // of the layer, done
	Total  int64 // of the layer; 0 if unknown
}

// Build builds the image of a language and keeps it, unpacked as well. It runs
// nothing of the base. The same base, Dockerfile and guest give the same
// digest. Builds in one store take turns. On any error no image is added.
// Errors: CodeNotFound for an unknown language or base, CodeInvalid for a base
// that is damaged or has no interpreter of the language, CodeUnsupported for
// one for another platform, CodeUnavailable for a registry that cannot be
// reached and for failures of the host, such as a full disk.
func (s *Store) Build(ctx context.Context, o BuildOptions) (_ Image, err error) {
	file, err := dockerfile(o.Language)
	if err != nil {
		return Image{}, err
	}
	args := maps.Clone(o.BuildArgs)
	if args == nil {
		args = map[string]string{}
	}
	if o.Base != "" {
		args["BASE"] = o.Base
	}
	r, err := parseDockerfile(file, args)
	if err != nil {
		return Image{}, err
	}
	if err := s.create(); err != nil {
		return Image{}, err
	}
	l, err := s.lock(ctx, buildLock, true)
	if err != nil {
		return Image{}, err
	}
	defer l.release()
	scratch := filepath.Join(s.dir, "tmp", "build")
	u, err := newUnpacker(scratch, s.limits)
	if err != nil {
		return Image{}, err
	}
	_ = u.root.Close()
	defer os.RemoveAll(scratch)

	from, err := openBase(ctx, r.base, scratch)
	if err != nil {
		return Image{}, err
	}
	if a := from.config.Architecture; a != runtime.GOARCH || from.config.OS != "linux" && from.config.OS != "" {
		return Image{}, hearth.Errorf(hearth.CodeUnsupported, "the base is for %s/%s, this host is linux/%s", from.config.OS, a, runtime.GOARCH)
	}
	if len(from.config.Config.OnBuild) > 0 {
		return Image{}, notHere("the base has ONBUILD")
	}
	b := &builder{store: s, ctx: ctx, progress: o.Progress, layers: len(from.layers)}
	if b.progress == nil {
		b.progress = func(Event) {}
	}
	return b.build(r, from, o.Language, filepath.Join(scratch, "rootfs"))
}

// builder is one build.
type builder struct {
	store    *Store
	ctx      context.Context // of the call of Build
	progress func(Event)
	layers   int
}

func (b *builder) build(r *recipe, from *base, language, dir string) (Image, error) {
	s := b.store
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	cfg := v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Variant: from.config.Variant,
		Created: v1.Time{Time: time.Unix(0, 0).UTC()}, History: from.config.History,
		Config: from.config.Config, RootFS: v1.RootFS{Type: "layers"},
	}
	// Docker would make a volume for each container, and run checks in it.
	cfg.Config.Volumes, cfg.Config.Healthcheck = nil, nil
	if cfg.Config.Labels == nil {
		cfg.Config.Labels = map[string]string{}
	}
	if envMap(cfg.Config.Env)["PATH"] == "" {
		cfg.Config.Env = setEnv(cfg.Config.Env, "PATH", defaultPath)
	}

	for i, l := range from.layers {
		if err := b.add(&m, &cfg, i+1, l); err != nil {
			return Image{}, err
		}
	}
	u, err := newUnpacker(dir, s.limits)
	if err != nil {
		return Image{}, err
	}
	defer u.root.Close()
	if err := b.unpack(u, m, cfg, 0); err != nil {
		return Image{}, err
	}
	env := envMap(cfg.Config.Env)
	f, err := inspect(u.root, language, env)
	if err != nil {
		return Image{}, err
	}
	img := Image{
		Language: language, Version: f.version, Interpreter: f.path, Runtime: runtimeName(language, f.version),
		Guest: GuestHash(language), Created: time.Now().UTC(), Base: baseName(r.base),
	}
	cfg.Config.Labels["run.hearth.runtime"] = img.Runtime
	cfg.Config.Labels["run.hearth.guest"] = img.Guest

	added, err := r.apply(&cfg.Config, newContext(language))
	if err != nil {
		return Image{}, err
	}
	for _, a := range added {
		h, size, err := s.addBlob(b.ctx, bytes.NewReader(a.layer), v1.Hash{})
		if err != nil {
			return Image{}, err
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: size})
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, h)
		if len(from.config.History) > 0 || len(from.layers) == 0 {
			cfg.History = append(cfg.History, v1.History{Created: cfg.Created, CreatedBy: a.line, Comment: "hearth"})
		}
	}
	if err := b.unpack(u, m, cfg, len(from.layers)); err != nil {
		return Image{}, err
	}
	if err := u.finish(); err != nil {
		return Image{}, err
	}
	img.Env = cfg.Config.Env
	if err := b.describe(&img, m, cfg); err != nil {
		return Image{}, err
	}

	if err := b.publish(u, img, dir); err != nil {
		return Image{}, err
	}
	if err := s.record(img); err != nil {
		return Image{}, err
	}
	b.progress(Event{Phase: PhaseDone, Layer: b.layers, Layers: b.layers})
	return img, nil
}

// publish puts the unpacked files in their place, unless the same are there:
// then sandboxes may be using them. Prune is kept out by the build's lock.
func (b *builder) publish(u *unpacker, img Image, dir string) error {
	final := filepath.Join(b.store.dir, "rootfs", img.id())
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	l, err := b.store.lock(b.ctx, img.id(), true)
	if err != nil {
		return err
	}
	defer l.release()
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	return publishDir(u.root, dir, final)
}

// describe stores configuration and manifest and fills in what follows of them.
func (b *builder) describe(img *Image, m v1.Manifest, cfg v1.ConfigFile) error {
	h, size, err := b.store.addJSON(b.ctx, cfg)
	if err != nil {
		return err
	}
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: size}
	img.Config = h.String()
	if h, _, err = b.store.addJSON(b.ctx, m); err != nil {
		return err
	}
	img.Digest = h.String()
	img.Ref = "hearth/" + img.Runtime + ":" + h.Hex[:12]
	for _, l := range m.Layers {
		img.Size += l.Size
	}
	return nil
}

// add takes a layer of the base over.
func (b *builder) add(m *v1.Manifest, cfg *v1.ConfigFile, n int, l baseLayer) error {
	e := Event{Phase: PhaseFetch, Layer: n, Layers: b.layers, Total: l.desc.Size}
	desc := l.desc
	if desc.Digest != (v1.Hash{}) && b.store.hasBlob(desc.Digest, desc.Size) {
		e.Phase, e.Bytes = PhaseReuse, desc.Size
		b.progress(e)
	} else {
		r, err := l.open()
		if err != nil {
			return baseError(err)
		}
		defer r.Close()
		h, size, err := b.store.addBlob(b.ctx, b.watch(r, e), desc.Digest)
		if err != nil {
			return err
		}
		if l.diffID == (v1.Hash{}) {
			l.diffID = h
		}
		if desc.Digest == (v1.Hash{}) {
			desc.MediaType = types.OCIUncompressedLayer
		}
		desc.Digest, desc.Size = h, size
	}
	m.Layers = append(m.Layers, v1.Descriptor{MediaType: ociType(desc.MediaType), Digest: desc.Digest, Size: desc.Size})
	cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
	return nil
}

// ociType is the name of a layer's type in a manifest of OCI's.
func ociType(t types.MediaType) types.MediaType {
	switch t {
	case types.DockerLayer:
		return types.OCILayer
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer
	}
	return t
}

// unpack applies the layers from the given one on.
func (b *builder) unpack(u *unpacker, m v1.Manifest, cfg v1.ConfigFile, first int) error {
	for i := first; i < len(m.Layers); i++ {
		b.progress(Event{Phase: PhaseUnpack, Layer: i + 1, Layers: max(b.layers, len(m.Layers)), Total: m.Layers[i].Size})
		r, err := b.store.openLayer(m.Layers[i])
		if err != nil {
			return damaged(err)
		}
		if err := u.verified(b.ctx, r, cfg.RootFS.DiffIDs[i]); err != nil {
			return err
		}
	}
	return nil
}

// watched reports what is read.
type watched struct {
	io.Reader
	event    Event
	last     time.Time
	progress func(Event)
}

func (b *builder) watch(r io.Reader, e Event) io.Reader {
	b.progress(e)
	return &watched{Reader: r, event: e, last: time.Now(), progress: b.progress}
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.event.Bytes += int64(n)
	if now := time.Now(); err != nil || now.Sub(w.last) > 100*time.Millisecond {
		w.last = now
		w.progress(w.event)
	}
	return n, err
}
