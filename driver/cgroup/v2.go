package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

var v2Controllers = []string{"memory", "cpu", "pids", "io"}

// v2 are control groups of version 2.
type v2 struct {
	mount   string   // where the hierarchy is mounted
	shared  string   // directory that holds the sandboxes
	enabled []string // controllers of the sandboxes
}

// newV2 finds a place for the sandboxes' groups. A group whose processes
// we share may not have controllers in its children. So a delegated group of
// our own (a service with Delegate=yes) is split: the server moves into a child
// of it; root without such a group uses the top of the hierarchy; anybody else
// has no groups.
func newV2(own, mount, name string) Groups {
	if filepath.Base(own) == serverLeaf { // where another driver's split has moved us
		own = filepath.Dir(own)
	}
	if delegated(own) {
		if c := split(own, mount, name); c != nil && (len(c.enabled) > 0 || os.Geteuid() != 0) {
			return c
		}
	}
	if os.Geteuid() == 0 {
		top := own
		for {
			up := filepath.Dir(top)
			if _, err := os.Stat(filepath.Join(up, "cgroup.procs")); err != nil {
				break
			}
			top = up
		}
		if c := place(top, mount, name); c != nil {
			return c
		}
	}
	return None{}
}

// delegated tells whether the group belongs to us alone, by the mark that
// systemd leaves or because it was given to this user.
func delegated(dir string) bool {
	for _, attr := range []string{"user.delegate", "trusted.delegate"} {
		b := make([]byte, 8)
		if n, err := unix.Getxattr(dir, attr, b); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return os.Geteuid() != 0 && unix.Access(dir, unix.W_OK) == nil &&
		unix.Access(filepath.Join(dir, "cgroup.subtree_control"), unix.W_OK) == nil
}

// InV2 makes the groups below the group parent of version 2, whatever Find would
// choose; ok is false if that fails.
func InV2(parent, name string) (groups Groups, ok bool) {
	c := place(parent, parent, name)
	return c, c != nil
}

// serverLeaf is the child of a delegated group that the server moves into. The
// mark of the delegation stays with the group.
const serverLeaf = "hearth-server"

// split moves the server out of its group into a child, so that the group can
// have children with limits.
func split(own, mount, name string) *v2 {
	pids := readPIDs(own)
	if len(pids) == 1 && pids[0] == os.Getpid() {
		leaf := filepath.Join(own, serverLeaf)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil
		}
		if err := write(leaf, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return nil
		}
	}
	return place(own, mount, name)
}

// place makes the directory for the sandboxes below parent; nil if that fails.
func place(parent, mount, name string) *v2 {
	c := &v2{mount: mount, shared: filepath.Join(parent, name)}
	if err := os.Mkdir(c.shared, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil
	}
	for _, controller := range v2Controllers {
		_ = write(parent, "cgroup.subtree_control", "+"+controller)
		if write(c.shared, "cgroup.subtree_control", "+"+controller) == nil {
			c.enabled = append(c.enabled, controller)
		}
	}
	return c
}

func (c *v2) Enforces() (memory, cpu, pids bool, remedy string) {
	has := func(name string) bool { return slices.Contains(c.enabled, name) }
	return has("memory"), has("cpu"), has("pids"),
		"enable the controller in cgroup.subtree_control of " + filepath.Dir(c.shared)
}

func (c *v2) Open(id string) Group {
	return &group2{dir: filepath.Join(c.shared, id)}
}

func (c *v2) Create(id string, l driver.Limits) (Group, error) {
	g := &group2{dir: filepath.Join(c.shared, id)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	set := func(controller, file, value string) error {
		if !slices.Contains(c.enabled, controller) {
			return nil
		}
		err := write(g.dir, file, value)
		if errors.Is(err, os.ErrNotExist) && file != "memory.max" && controller == "memory" {
			return nil // the kernel is built without swap accounting, or older
		}
		return err
	}
	err := errors.Join(
		set("memory", "memory.max", strconv.FormatInt(l.Memory, 10)),
		set("memory", "memory.swap.max", "0"),
		set("memory", "memory.oom.group", "1"),
		set("cpu", "cpu.max", cpuMax(l.CPU)),
		set("pids", "pids.max", strconv.Itoa(l.PIDs+HelperTasks)))
	if err != nil {
		_ = unix.Rmdir(g.dir)
		return nil, err
	}
	return g, nil
}

func cpuMax(cores float64) string {
	if q := Quota(cores); q > 0 {
		return fmt.Sprintf("%d %d", q, Period)
	}
	return fmt.Sprintf("max %d", Period)
}

func (c *v2) List() []string {
	var ids []string
	entries, _ := os.ReadDir(c.shared)
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// Path is absolute: runtimes would look for a relative one beside the server's
// own group.
func (c *v2) Path(id string) string {
	return "/" + strings.TrimPrefix(strings.TrimPrefix(filepath.Join(c.shared, id), c.mount), "/")
}

func (c *v2) Close() { _ = unix.Rmdir(c.shared) }

type group2 struct{ dir string }

// Spawn has the kernel put the new process into the group as it makes it.
func (g *group2) Spawn(attr *syscall.SysProcAttr, start func() error) error {
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	attr.UseCgroupFD, attr.CgroupFD = true, fd
	return start()
}

// Enter opens the group: moving a process into it would stop every fork on the
// host for milliseconds.
func (g *group2) Enter() (files []*os.File, born bool, err error) {
	f, err := os.Open(g.dir)
	if err != nil {
		return nil, false, err
	}
	return []*os.File{f}, true, nil
}

func (g *group2) Resize(l driver.Limits) error {
	before, err := strconv.ParseInt(read(g.dir, "memory.max"), 10, 64)
	if err != nil {
		before = math.MaxInt64 // no limit, or no controller
	}
	return resize(l, before, g.setMemory, g.setCPU)
}

// setMemory sets the limit of memory, where the controller is there. The kernel
// would kill what is in use beyond a lower limit: so first it is made to
// reclaim it, by the limit that slows down only.
func (g *group2) setMemory(limit int64) error {
	if _, err := os.Stat(filepath.Join(g.dir, "memory.max")); err != nil {
		return nil
	}
	value := strconv.FormatInt(limit, 10)
	if limit == math.MaxInt64 {
		value = "max"
	}
	if readInt(g.dir, "memory.current") > limit {
		if err := write(g.dir, "memory.high", value); err != nil {
			return hearth.Errorf(hearth.CodeUnavailable, "reclaim memory: %w", err)
		}
		defer func() { _ = write(g.dir, "memory.high", "max") }()
		if used := readInt(g.dir, "memory.current"); used > limit {
			return errInUse(used, limit)
		}
	}
	if err := write(g.dir, "memory.max", value); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "set the limit of memory: %w", err)
	}
	return nil
}

func (g *group2) setCPU(cores float64) error {
	f, err := os.OpenFile(filepath.Join(g.dir, "cpu.max"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the controller is not there
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(cpuMax(cores))
	return errors.Join(err, f.Close())
}

func (g *group2) Procs() []int { return readPIDs(g.dir) }

func (g *group2) Kill() {
	if write(g.dir, "cgroup.kill", "1") != nil { // before Linux 5.14
		killListed(g.Procs)
	}
}

func (g *group2) Freeze(ctx context.Context, on bool) error {
	want := "0"
	if on {
		want = "1"
	}
	if err := write(g.dir, "cgroup.freeze", want); err != nil {
		return err
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if strconv.FormatInt(readKey(g.dir, "cgroup.events", "frozen"), 10) == want {
			return nil
		}
		select {
		case <-ctx.Done():
			_ = write(g.dir, "cgroup.freeze", "0")
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (g *group2) OOMKilled() bool { return readKey(g.dir, "memory.events", "oom_kill") > 0 }

func (g *group2) Usage() driver.Usage {
	u := driver.Usage{CPU: g.CPU(), Memory: readInt(g.dir, "memory.current"), MemoryPeak: readInt(g.dir, "memory.peak")}
	// 8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0
	for _, field := range strings.Fields(read(g.dir, "io.stat")) {
		key, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseInt(value, 10, 64) //nolint:errcheck // 0 is not known
		switch key {
		case "rbytes":
			u.DiskRead += n
		case "wbytes":
			u.DiskWritten += n
		}
	}
	return u
}

func (g *group2) PIDs() int {
	if n := int(readInt(g.dir, "pids.current")); n > 0 {
		return n
	}
	return len(strings.Fields(read(g.dir, "cgroup.threads")))
}

func (g *group2) CPU() time.Duration {
	return time.Duration(readKey(g.dir, "cpu.stat", "usage_usec")) * time.Microsecond
}

func (g *group2) Remove(ctx context.Context) error { return removeGroup(ctx, g.dir) }
