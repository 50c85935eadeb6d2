// Package oci makes sandboxes with an OCI runtime and no daemon, in two
// dialects: runc, whose sandboxes share the host's kernel as those of package
// native do, and gVisor's runsc, which puts a kernel of its own between guest
// and host.
//
// For each sandbox the driver composes a root file system (root.go) and a
// config.json (config.go), makes a control group and starts the runtime
// (create.go), which ends once it has started the sandbox: nothing but the
// sandbox itself stays behind. Its first process (directory init) tells the
// driver what happens inside. docs/isolation-oci.md
// explains what protects against what.
package oci

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/seccomp"
	"github.com/hearthrun/hearth/images"
)

// Dialect is a kind of OCI runtime, and the name of its driver.
type Dialect string

// The dialects.
const (
	Runc   Dialect = "runc"
	GVisor Dialect = "gvisor"
)

// Config configures the driver.
type Config struct {
	Dialect Dialect
	// Dir is the driver's own directory below the data directory.
	Dir string
	// Owner is the random id of the data directory: letters, digits and '-'.
	// Everything on the host is named after it.
	Owner string
	// Images has the root file systems of the runtimes.
	Images *images.Store
	// Binary is the OCI runtime. Default: runc or runsc, beside this program or
	// on the PATH.
	Binary string
	Logger *slog.Logger
}

// Driver makes sandboxes on this host. It implements driver.Driver.
type Driver struct {
	// Constant after New.
	dialect Dialect
	dir     string
	binary  string // empty if there is none
	images  *images.Store
	find    func(ctx context.Context, runtime string) (image, error) // storedImage, but in tests
	log     *slog.Logger
	cgroups cgroup.Groups
	users   uint32 // the first of the host's users that belong to the sandboxes
	network egress.Host
	mounts  *mounter
	filter  []byte // the seccomp program of runc's sandboxes

	layers layers

	mu        sync.Mutex
	sandboxes map[string]*sandbox // guarded by mu
	next      uint32              // guarded by mu: where to look for a free user
	taken     map[uint32]bool     // guarded by mu: numbers of users in use
	tries     int                 // guarded by mu: sandboxes made by Probe
}

var _ driver.Driver = (*Driver)(nil)

// Directories below Config.Dir.
const (
	runDir   = "run"   // one directory for each sandbox: its bundle
	stateDir = "state" // the runtime's own
	layerDir = "layer" // what is laid over images
	emptyDir = "empty" // an image with nothing in it
)

// New prepares the driver. It does not check whether the runtime is there and
// works; Probe does. The caller calls Close. Errors: CodeInvalid,
// CodeUnavailable.
func New(cfg Config) (*Driver, error) {
	if !driver.ValidID(cfg.Owner) || !filepath.IsAbs(cfg.Dir) || cfg.Dialect != Runc && cfg.Dialect != GVisor {
		return nil, hearth.Errorf(hearth.CodeInvalid, "oci driver: dialect %q, owner %q or directory %q is not valid", cfg.Dialect, cfg.Owner, cfg.Dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{
		dialect: cfg.Dialect, dir: cfg.Dir, images: cfg.Images, log: cfg.Logger,
		binary: cfg.Binary, users: firstUser(cfg.Owner), mounts: &mounter{},
		sandboxes: map[string]*sandbox{}, taken: map[uint32]bool{},
	}
	var err error
	if d.filter, err = seccomp.Filter(); err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "%s driver: %w", cfg.Dialect, err)
	}
	d.find = d.storedImage
	if d.binary == "" {
		d.binary = findBinary(d.program())
	}
	for _, sub := range []string{runDir, stateDir, layerDir, emptyDir} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o700); err != nil {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "%s driver: %w", cfg.Dialect, err).
				WithHint("make %s writable for the user that runs hearth", cfg.Dir)
		}
	}
	d.layers.dir, d.layers.helper = filepath.Join(d.dir, layerDir), sha256.Sum256(helperBinary)
	d.layers.sync = syncFS
	if err := d.layers.clean(); err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "%s driver: remove unfinished layers: %w", cfg.Dialect, err).
			WithHint("make %s writable for the user that runs hearth", cfg.Dir)
	}
	d.cgroups = cgroup.None{}
	if os.Geteuid() == 0 {
		d.cgroups = cgroup.Find("hearth-" + cfg.Owner + "." + string(cfg.Dialect))
	}
	return d, nil
}

// Close releases what the sandboxes share.
func (d *Driver) Close() error {
	d.mounts.close()
	d.cgroups.Close()
	return nil
}

// program is the name of the dialect's runtime.
func (d *Driver) program() string {
	if d.dialect == GVisor {
		return "runsc"
	}
	return "runc"
}

// findBinary looks for a program beside this one and on the PATH, also where
// the PATH of an ordinary user does not lead.
func findBinary(name string) string {
	var places []string
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(self), name))
	}
	if p, err := exec.LookPath(name); err == nil {
		if p, err = filepath.Abs(p); err == nil {
			places = append(places, p)
		}
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"} {
		places = append(places, filepath.Join(dir, name))
	}
	for _, p := range places {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// The users of sandboxes lie above those of /etc/subuid, and below those that
// packages docker and native give out by the same hash, so that no two drivers
// have one in common. Each sandbox of runc has two: one is the
// root of its namespace, which nothing runs as once the sandbox is assembled.
const (
	lowestUser = 0x50000000
	usersEach  = 0x10000
	userRanges = 0x0fff
	usersOne   = 2
)

// firstUser is the first of the owner's range.
func firstUser(owner string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(owner))
	return lowestUser + h.Sum32()%userRanges*usersEach
}

// reserve registers a new sandbox under its id and gives it users.
func (d *Driver) reserve(s *sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.sandboxes[s.id]; ok {
		return hearth.Errorf(hearth.CodeConflict, "a sandbox %q exists already", s.id)
	}
	if _, err := os.Lstat(d.bundle(s.id)); err == nil {
		return errLeft(s.id)
	}
	const most = usersEach / usersOne
	if len(d.taken) >= most/2 {
		return hearth.Errorf(hearth.CodeExhausted, "%d sandboxes are the most this driver can run", most/2)
	}
	for d.taken[d.next%most] {
		d.next++
	}
	s.slot = d.next % most
	d.next++
	d.taken[s.slot] = true
	s.creating = true
	d.sandboxes[s.id] = s
	return nil
}

// errLeft says that an earlier process left a sandbox of this id.
func errLeft(id string) error {
	return hearth.Errorf(hearth.CodeConflict, "a sandbox %q of an earlier run exists", id).
		WithHint("destroy what List returns first")
}

// release undoes reserve.
func (d *Driver) release(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandboxes[s.id] == s {
		delete(d.sandboxes, s.id)
		delete(d.taken, s.slot)
	}
}

func (d *Driver) bundle(id string) string { return filepath.Join(d.dir, runDir, id) }

func (d *Driver) slotPath(id string) string { return filepath.Join(d.bundle(id), "slots") }

// List returns the sandboxes of this process, without those that Create still
// works on, and those that an earlier one left behind: known by a bundle or a
// control group.
func (d *Driver) List(context.Context) ([]driver.Sandbox, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, runDir))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "%s driver: list sandboxes: %w", d.dialect, err)
	}
	ids := map[string]bool{}
	for _, id := range d.cgroups.List() {
		ids[id] = true
	}
	for _, e := range entries {
		ids[e.Name()] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []driver.Sandbox
	for id, s := range d.sandboxes {
		delete(ids, id)
		if !s.creating {
			list = append(list, s)
		}
	}
	for id := range ids {
		if driver.ValidID(id) {
			list = append(list, d.orphan(id))
		}
	}
	return list, nil
}

// freeState removes what the runtime keeps about a sandbox whose processes are
// gone: a directory with the sandbox's name, or files that begin with it.
func (d *Driver) freeState(id string) error {
	dir := filepath.Join(d.dir, stateDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if d.dialect == GVisor {
			// ID_sandbox:ID.state, .lock and runsc-ID.sock
			name = strings.TrimPrefix(name, "runsc-")
			name, _, _ = strings.Cut(name, "_sandbox:")
			name = strings.TrimSuffix(name, ".sock")
		}
		if name != id {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the runtime's state: %w", err)
		}
	}
	return nil
}
