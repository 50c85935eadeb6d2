// Package native is the built-in driver: sandboxes made of Linux namespaces,
// control groups, seccomp and Landlock, with a read-only view of the host's
// interpreters as their root file system. It needs no daemon and no image.
//
// The driver composes a plan (plan.go, rootfs.go), clones a tiny
// helper into new namespaces (spawn.go), and sends it the plan. The helper
// (directory init) becomes pid 1 of the sandbox. docs/isolation-native.md
// explains what protects against what.
package native

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/seccomp"
)

// Config configures the driver.
type Config struct {
	// Dir is the driver's own directory below the data directory.
	Dir string
	// Owner is the random id of the data directory: letters, digits and '-'.
	// Everything on the host is named after it.
	Owner  string
	Logger *slog.Logger
}

// Driver makes sandboxes on this host. It implements driver.Driver.
type Driver struct {
	// Constant after New.
	dir        string
	log        *slog.Logger
	cgroups    cgroup.Groups
	helper     *os.File
	helperPath string
	filter     []byte // the seccomp program
	landlock   int    // version of the kernel's Landlock, 0 without
	root       bool   // may give each sandbox a user of its own
	system     []view // what every sandbox sees
	etc        []view // … below /etc
	users      userRange
	shims      string // directory of the guests' files

	found   found
	network egress.Host // what the sandboxes' network stacks share
	forks   *forkServers

	mu        sync.Mutex
	sandboxes map[string]*sandbox // guarded by mu
	next      uint32              // guarded by mu: where to look for a free user
	taken     map[uint32]bool     // guarded by mu: offsets of users in use
	tries     int                 // guarded by mu: sandboxes made by Probe
}

var _ driver.Driver = (*Driver)(nil)

// New prepares the driver: its directories, helper and control groups. It does
// not check whether the host allows sandboxes; Probe does. The caller calls
// Close. Errors: CodeInvalid, CodeUnavailable.
func New(cfg Config) (*Driver, error) {
	if !driver.ValidID(cfg.Owner) || !filepath.IsAbs(cfg.Dir) {
		return nil, hearth.Errorf(hearth.CodeInvalid, "native driver: owner %q or directory %q is not valid", cfg.Owner, cfg.Dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{
		dir: cfg.Dir, log: cfg.Logger, landlock: landlockVersion(),
		users: newUserRange(cfg.Owner), system: hostViews(), etc: etcViews(),
		sandboxes: map[string]*sandbox{}, taken: map[uint32]bool{},
	}
	d.root = os.Geteuid() == 0 && d.users.mapped()
	unavailable := func(err error) error {
		return hearth.Errorf(hearth.CodeUnavailable, "native driver: %w", err).
			WithHint("make %s writable for the user that runs hearth", cfg.Dir)
	}
	for _, sub := range []string{"", rootDir, runDir, slotDir} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o711); err != nil {
			return nil, unavailable(err)
		}
	}
	var err error
	if d.filter, err = seccomp.Filter(); err != nil {
		return nil, hearth.Errorf(hearth.CodeInternal, "native driver: %w", err)
	}
	if err := d.writeEtc(); err != nil {
		return nil, unavailable(err)
	}
	if d.shims, err = d.writeShims(); err != nil {
		return nil, unavailable(err)
	}
	if d.helper, d.helperPath, err = openHelper(d.dir); err != nil {
		return nil, unavailable(err)
	}
	d.cgroups = cgroup.Find("hearth-" + cfg.Owner)
	d.forks = &forkServers{driver: d, servers: map[string]*forkServer{}}
	return d, nil
}

// Close ends the fork servers and releases the helper and the shared control
// groups.
func (d *Driver) Close() error {
	d.forks.close()
	d.cgroups.Close()
	return d.helper.Close()
}

const (
	rootDir = "root" // empty; the root file system of each sandbox is mounted on it, out of sight of the host
	runDir  = "run"  // one state file for each sandbox
	etcDir  = "etc"  // the sandboxes' /etc
	slotDir = "slot" // for each sandbox with slots, what is in them
)

// userRange is the range of the host's user and group ids that belong to the
// sandboxes of one owner. Each live sandbox has one of its own, so that none
// can signal, trace or use up the limits of another.
type userRange struct{ base uint32 }

// The ranges lie above those of systemd-nspawn, container engines and
// /etc/subuid, and below 2^31, where some tools stop.
const (
	firstUser  = 0x70000000
	usersEach  = 0x10000
	userRanges = 0x0fff
)

func newUserRange(owner string) userRange {
	h := fnv.New32a()
	_, _ = h.Write([]byte(owner))
	return userRange{firstUser + h.Sum32()%userRanges*usersEach}
}

// mapped tells whether this process may hand out the range: root of a user
// namespace, as in a container without privileges, may have fewer users.
func (r userRange) mapped() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			continue
		}
		if inside <= uint64(r.base) && uint64(r.base)+usersEach <= inside+count {
			return true
		}
	}
	return false
}

// reserve registers a new sandbox under its id and gives it a user.
func (d *Driver) reserve(s *sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.sandboxes[s.id]; ok {
		return hearth.Errorf(hearth.CodeConflict, "a sandbox %q exists already", s.id)
	}
	for _, p := range []string{d.statePath(s.id), d.slotPath(s.id)} {
		if _, err := os.Lstat(p); err == nil {
			return errLeft(s.id)
		}
	}
	if len(d.taken) >= usersEach/2 {
		return hearth.Errorf(hearth.CodeExhausted, "%d sandboxes are the most this driver can run", usersEach/2)
	}
	for d.taken[d.next%usersEach] {
		d.next++
	}
	s.user = d.next % usersEach
	d.next++
	d.taken[s.user] = true
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
		delete(d.taken, s.user)
	}
}

// List returns the sandboxes of this process, without those that Create still
// works on, and those that an earlier one left behind: known by a state file, a
// control group or slots.
func (d *Driver) List(context.Context) ([]driver.Sandbox, error) {
	ids := map[string]bool{}
	for _, id := range d.cgroups.List() {
		ids[id] = true
	}
	for _, sub := range []string{runDir, slotDir} {
		entries, err := os.ReadDir(filepath.Join(d.dir, sub))
		if err != nil {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "native driver: list sandboxes: %w", err)
		}
		for _, e := range entries {
			if driver.ValidID(e.Name()) {
				ids[e.Name()] = true
			}
		}
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
		list = append(list, d.orphan(id))
	}
	return list, nil
}
