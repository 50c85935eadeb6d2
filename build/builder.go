package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// DefaultAllow returns the registries that installers reach whatever their
// addresses are: PyPI's and npm's.
func DefaultAllow() []string {
	return []string{"pypi.org:443", "files.pythonhosted.org:443", "registry.npmjs.org:443"}
}

// Config configures a Builder. Zero fields have the defaults named.
type Config struct {
	// Dir is the cache's own directory, absolute. Results are hard links into it
	// where Request.Out lies on the same file system, else copies. Required.
	Dir string
	// Allow are registries, "host:port", that installers may reach besides
	// public addresses, as a private network's are not. Default DefaultAllow().
	Allow []string
	// Env are variables for installers: PIP_INDEX_URL, npm_config_registry and
	// alike. Scripts of packages can read them too. Nothing of the host's
	// environment or of its pip and npm configuration gets in.
	Env map[string]string
	// Certificates is a file of certificate authorities, in PEM, that installers
	// trust. Default: $SSL_CERT_FILE, or else the bundle of the host's system.
	Certificates string
	// Timeout ends a build. Default 10 minutes.
	Timeout time.Duration
	// Memory limits a build in bytes, what it writes included. Default 2 GiB.
	Memory int64
	// Disk limits what a build writes, in bytes. Default 2 GiB.
	Disk int64
	// CPU limits a build, in cores. Default what the host has, at most 4.
	CPU float64
	// Limits bound what may be installed; Compressed does not apply. Default:
	// Unpacked 512 MiB, Files 100,000, others as Limits.WithDefaults has them.
	Limits Limits
	// CacheSize is how many bytes of dependencies are kept beyond those in use.
	// Default 5 GiB.
	CacheSize int64
	// Logger gets warnings. Default: discarded.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Allow == nil {
		c.Allow = DefaultAllow()
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Minute
	}
	if c.Memory <= 0 {
		c.Memory = 2 << 30
	}
	if c.Disk <= 0 {
		c.Disk = 2 << 30
	}
	if c.CPU <= 0 {
		c.CPU = float64(min(runtime.NumCPU(), 4))
	}
	if c.Limits.Unpacked <= 0 {
		c.Limits.Unpacked = 512 << 20
	}
	if c.Limits.Files <= 0 {
		c.Limits.Files = 100_000
	}
	c.Limits = c.Limits.WithDefaults()
	c.Limits.Compressed = 2*c.Limits.Unpacked + 1<<20*int64(1+c.Limits.Files/200)
	if c.CacheSize <= 0 {
		c.CacheSize = 5 << 30
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Builder installs the dependencies of functions in sandboxes and remembers
// what was installed. Its methods may be called from many goroutines; one
// Builder uses a directory at a time.
type Builder struct {
	cfg      Config // constant after NewBuilder
	certs    []byte // constant; nil if the host has none
	programs []byte // constant; hash of the builders inside of sandboxes
	cache    *cache

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex
	flights map[string]*flight // guarded by mu; by key
	closed  bool               // guarded by mu
	running sync.WaitGroup     // flights
}

// Request is one build.
type Request struct {
	// Driver makes the sandbox in which the installer runs, and Isolation is its
	// name.
	Driver    driver.Driver
	Isolation string
	// Runtime is the one of Driver that will run the function.
	Runtime driver.Runtime
	// Source is a directory with the unpacked source, as Extract leaves it. It
	// must not change any more: the result may share its files.
	Source string
	// Out is an existing empty directory that gets the source and its
	// dependencies. After an error it may hold anything; the caller removes it.
	Out string
	// Log receives what the installer prints, whole lines as they come, cut off
	// after 4 MiB; nil discards. It is called by Build itself only. An error of
	// it ends the logging, not the build.
	Log io.Writer
	// Fresh installs anew what was installed before.
	Fresh bool
}

// Result is what Build has made.
type Result struct {
	// Summary is that of Out: source and dependencies.
	Summary
	// Manifest is the file that named the dependencies, "" if there were none to
	// install; Out is a copy of the source then.
	Manifest string
	// Cached is true if nothing had to be installed.
	Cached bool
	// Dependencies tells what was installed, by itself.
	Dependencies Summary
}

// NewBuilder opens the cache and removes what an interrupted build left there.
// The caller calls Close. Errors: CodeInvalid for a bad configuration,
// CodeUnavailable when the directory cannot be used.
func NewBuilder(cfg Config) (*Builder, error) {
	cfg = cfg.withDefaults()
	if !filepath.IsAbs(cfg.Dir) {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the directory of builds %q is not an absolute path", cfg.Dir)
	}
	for _, a := range cfg.Allow {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the registry %q is not valid", a).
				WithHint("write host:port, for example pypi.example.com:443")
		}
	}
	certs, err := readCertificates(cfg.Certificates)
	if err != nil {
		return nil, err
	}
	programs, err := hashBuilders()
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInternal, "read the builders: %w", err)
	}
	c, err := openCache(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	b := &Builder{cfg: cfg, certs: certs, programs: programs, cache: c, flights: map[string]*flight{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Close stops the builds that run and waits until nothing of them is left.
func (b *Builder) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.running.Wait()
	return nil
}

// Build writes the source and what it depends on to r.Out. Dependencies come
// from the cache if the same ones were installed for the same runtime before,
// else they are installed in a sandbox; of several builds with the same
// dependencies at the same time one installs, and all see its log. When ctx
// ends, an installation that nobody else waits for is stopped, and nothing of
// it remains.
//
// Errors: CodeInvalid with the installer's own last words when it failed, or
// when the result is too large; CodeTimeout after Config.Timeout;
// CodeUnavailable when a registry cannot be reached or the host fails;
// CodeUnsupported when the driver lacks what a build needs; those of
// driver.Driver.Create.
func (b *Builder) Build(ctx context.Context, r Request) (Result, error) {
	if r.Log == nil {
		r.Log = io.Discard
	}
	in, err := scan(r.Source, r.Runtime.Language)
	if err != nil {
		return Result{}, err
	}
	if in.manifest == "" {
		sum, err := assemble(ctx, r.Source, nil, r.Out)
		return Result{Summary: sum, Cached: true}, err
	}
	key, err := b.key(ctx, r, in)
	if err != nil {
		return Result{}, err
	}
	fresh := r.Fresh
	for try := 0; ; try++ {
		dep, cached, err := b.dependencies(ctx, key, r, in, fresh)
		if err != nil {
			return Result{}, err
		}
		res := Result{Manifest: in.manifest, Cached: cached, Dependencies: dep.Summary}
		res.Summary, err = assemble(ctx, r.Source, dep, r.Out)
		dep.release()
		if errors.Is(err, errDamaged) && try == 0 {
			// Somebody has changed the cache: what is left of it is of no use.
			b.cfg.Logger.Warn("build: installed dependencies were damaged; they are installed again", "digest", dep.Digest)
			b.cache.drop(dep.Digest)
			if err := empty(r.Out); err != nil {
				return Result{}, hostError(err)
			}
			fresh = true
			continue
		}
		if errors.Is(err, errDamaged) {
			err = hostError(err)
		}
		return res, err
	}
}

// dependencies returns a hold on what r depends on.
func (b *Builder) dependencies(ctx context.Context, key string, r Request, in inputs, fresh bool) (dep *held, cached bool, err error) {
	if !fresh {
		if dep, err := b.cache.find(key); dep != nil || err != nil {
			return dep, dep != nil, err
		}
	}
	f, mine, err := b.join(key, r, in, fresh)
	if err != nil {
		return nil, false, err
	}
	if !mine {
		_, _ = io.WriteString(r.Log, "hearth: the same dependencies are being installed already\n")
	}
	defer b.leave(key, f)
	logged := true
	for from := 0; ; {
		part, more := f.log.wait(ctx, from)
		if logged && len(part) > 0 {
			_, err := r.Log.Write(part)
			logged = err == nil
		}
		from += len(part)
		if !more {
			break
		}
	}
	if ctx.Err() != nil {
		return nil, false, stopped(ctx.Err())
	}
	<-f.done
	if f.err != nil {
		return nil, false, f.err
	}
	if dep, err := b.cache.hold(f.digest); dep != nil || err != nil {
		return dep, f.cached, err
	}
	return nil, false, hearth.Errorf(hearth.CodeUnavailable, "the installed dependencies were removed meanwhile").WithHint("deploy again")
}

// flight is one installation and everybody who waits for it.
type flight struct {
	ctx    context.Context
	cancel context.CancelFunc
	log    *logBuffer
	users  int // guarded by Builder.mu
	done   chan struct{}

	// Constant once done is closed.
	digest string
	cached bool
	err    error
}

// join returns the flight of a key, which is mine if it has begun now.
func (b *Builder) join(key string, r Request, in inputs, fresh bool) (f *flight, mine bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, false, hearth.Errorf(hearth.CodeUnavailable, "the server is stopping")
	}
	if f := b.flights[key]; f != nil && f.ctx.Err() == nil {
		f.users++
		return f, false, nil
	}
	f = &flight{users: 1, log: newLogBuffer(), done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(b.ctx)
	b.flights[key] = f
	b.running.Go(func() {
		defer f.cancel()
		defer close(f.done)
		defer f.log.end()
		defer func() { // before done, so that the next one finds the cache
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.flights[key] == f {
				delete(b.flights, key)
			}
		}()
		if !fresh { // it may have been installed between the look and now
			dep, err := b.cache.find(key)
			if err != nil {
				f.err = err
				return
			}
			if dep != nil {
				f.digest, f.cached = dep.Digest, true
				dep.release()
				return
			}
		}
		f.digest, f.err = b.install(f.ctx, key, r, in, f.log)
	})
	return f, true, nil
}

// leave ends a flight that nobody waits for any more, and waits for its end:
// so nothing of it remains when the last caller's Build returns.
func (b *Builder) leave(key string, f *flight) {
	b.mu.Lock()
	f.users--
	last := f.users == 0
	if last && b.flights[key] == f {
		delete(b.flights, key)
	}
	b.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

// key names what an installation depends on.
func (b *Builder) key(ctx context.Context, r Request, in inputs) (string, error) {
	h := sha256.New()
	rt := r.Runtime
	fmt.Fprintf(h, "%x %q %q %q %q %q %s/%s\n", b.programs, r.Isolation, rt.Name, rt.Language, rt.Version, rt.Source, runtime.GOOS, runtime.GOARCH)
	if info, err := os.Stat(rt.Source); err == nil { // an interpreter of the host may be replaced
		fmt.Fprintf(h, "interpreter %d %d\n", info.Size(), info.ModTime().UnixNano())
	}
	for _, k := range slices.Sorted(maps.Keys(b.cfg.Env)) {
		fmt.Fprintf(h, "env %q %q\n", k, b.cfg.Env[k])
	}
	for _, name := range in.names() {
		fmt.Fprintf(h, "file %q %x\n", name, sha256.Sum256(in.files[name]))
	}
	if in.local {
		nodes, err := readTree(ctx, r.Source)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "source %s\n", summarize(nodes).Digest)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Prune removes dependencies that were least recently used until those that are
// not in use by a build take no more than size bytes, and returns how many
// installations it removed. Versions that were built from them stay as they
// are, and the disk space that they share with them. A negative size means
// Config.CacheSize. Builds prune by themselves.
func (b *Builder) Prune(ctx context.Context, size int64) (int, error) {
	if size < 0 {
		size = b.cfg.CacheSize
	}
	return b.cache.prune(ctx, size)
}

func stopped(err error) error {
	code := hearth.CodeCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = hearth.CodeTimeout
	}
	return &hearth.Error{Code: code, Message: "the build was stopped", Hint: "deploy again", Err: err}
}

// hashBuilders identifies the programs that run inside of sandboxes.
func hashBuilders() ([]byte, error) {
	h := sha256.New()
	for _, pattern := range []string{"python/hearth_build.*", "nodejs/hearth_build*"} {
		names, err := fs.Glob(guest.Shims(), pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := fs.ReadFile(guest.Shims(), name)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
		}
	}
	return h.Sum(nil), nil
}

// bundles are where systems keep all certificate authorities in one file.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

// readCertificates returns what file or else the host has, nil if it has none.
func readCertificates(file string) ([]byte, error) {
	given := file
	if file == "" {
		file = os.Getenv("SSL_CERT_FILE")
	}
	for _, p := range append([]string{file}, bundles...) {
		if p == "" {
			continue
		}
		b, err := os.ReadFile(p)
		switch {
		case err == nil && strings.Contains(string(b), "-----BEGIN "):
			return b, nil
		case given == "":
		case err == nil:
			return nil, hearth.Errorf(hearth.CodeInvalid, "%s has no certificate in PEM", p).WithHint("give a file with -----BEGIN CERTIFICATE-----")
		default:
			return nil, hearth.Errorf(hearth.CodeInvalid, "read certificates for builds: %w", err)
		}
	}
	return nil, nil
}
