package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/driver"
)

var v2Controllers = []string{"memory", "cpu", "pids"}

// cgroups2 are control groups of version 2.
type cgroups2 struct {
	shared  string   // directory that holds the sandboxes
	enabled []string // controllers of the sandboxes
}

// newCgroups2 finds a place for the sandboxes' groups. A group whose processes
// we share may not have controllers in its children. So a delegated group of
// our own (a service with Delegate=yes) is split: the server moves into a child
// of it; root without such a group uses the top of the hierarchy; anybody else
// has no groups.
func newCgroups2(own, owner string) cgroups {
	if delegated(own) {
		if c := split(own, owner); c != nil && (len(c.enabled) > 0 || os.Geteuid() != 0) {
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
		if c := place(top, owner); c != nil {
			return c
		}
	}
	return noCgroups{}
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

// split moves the server out of its group into a child, so that the group can
// have children with limits.
func split(own, owner string) *cgroups2 {
	pids := readPIDs(own)
	if len(pids) == 1 && pids[0] == os.Getpid() {
		leaf := filepath.Join(own, "hearth-server")
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil
		}
		if err := writeCgroup(leaf, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return nil
		}
	}
	if filepath.Base(own) == "hearth-server" { // a second driver in one process
		own = filepath.Dir(own)
	}
	return place(own, owner)
}

// place makes the directory for the sandboxes below parent; nil if that fails.
func place(parent, owner string) *cgroups2 {
	c := &cgroups2{shared: filepath.Join(parent, "hearth-"+owner)}
	if err := os.Mkdir(c.shared, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil
	}
	for _, name := range v2Controllers {
		_ = writeCgroup(parent, "cgroup.subtree_control", "+"+name)
		if writeCgroup(c.shared, "cgroup.subtree_control", "+"+name) == nil {
			c.enabled = append(c.enabled, name)
		}
	}
	return c
}

func (c *cgroups2) enforces() (memory, cpu, pids bool, remedy string) {
	has := func(name string) bool { return slices.Contains(c.enabled, name) }
	return has("memory"), has("cpu"), has("pids"),
		"enable the controller in cgroup.subtree_control of " + filepath.Dir(c.shared)
}

func (c *cgroups2) open(id string) group {
	return &group2{dir: filepath.Join(c.shared, id)}
}

func (c *cgroups2) create(id string, l driver.Limits) (group, error) {
	g := &group2{dir: filepath.Join(c.shared, id)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	set := func(controller, file, value string) error {
		if !slices.Contains(c.enabled, controller) {
			return nil
		}
		err := writeCgroup(g.dir, file, value)
		if errors.Is(err, os.ErrNotExist) && file != "memory.max" && controller == "memory" {
			return nil // the kernel is built without swap accounting, or older
		}
		return err
	}
	err := errors.Join(
		set("memory", "memory.max", strconv.FormatInt(l.Memory, 10)),
		set("memory", "memory.swap.max", "0"),
		set("memory", "memory.oom.group", "1"),
		set("cpu", "cpu.max", fmt.Sprintf("%d %d", max(int(l.CPU*cpuPeriod), 1000), cpuPeriod)),
		set("pids", "pids.max", strconv.Itoa(l.PIDs+helperTasks)))
	if err != nil {
		_ = unix.Rmdir(g.dir)
		return nil, err
	}
	return g, nil
}

func (c *cgroups2) list() []string {
	var ids []string
	entries, _ := os.ReadDir(c.shared)
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

func (c *cgroups2) close() { _ = unix.Rmdir(c.shared) }

type group2 struct{ dir string }

// spawn has the kernel put the new process into the group as it makes it.
func (g *group2) spawn(attr *syscall.SysProcAttr, start func() error) error {
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	attr.UseCgroupFD, attr.CgroupFD = true, fd
	return start()
}

func (g *group2) procs() []int { return readPIDs(g.dir) }

func (g *group2) kill() {
	if writeCgroup(g.dir, "cgroup.kill", "1") != nil { // before Linux 5.14
		killListed(g.procs)
	}
}

func (g *group2) freeze(ctx context.Context, on bool) error {
	want := "0"
	if on {
		want = "1"
	}
	if err := writeCgroup(g.dir, "cgroup.freeze", want); err != nil {
		return err
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if strconv.FormatInt(readKey(g.dir, "cgroup.events", "frozen"), 10) == want {
			return nil
		}
		select {
		case <-ctx.Done():
			_ = writeCgroup(g.dir, "cgroup.freeze", "0")
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (g *group2) oomKilled() bool { return readKey(g.dir, "memory.events", "oom_kill") > 0 }

func (g *group2) stats() (memory, peak int64, cpu time.Duration, pids int) {
	pids = int(readInt(g.dir, "pids.current"))
	if pids == 0 {
		pids = len(strings.Fields(readCgroup(g.dir, "cgroup.threads")))
	}
	return readInt(g.dir, "memory.current"), readInt(g.dir, "memory.peak"),
		time.Duration(readKey(g.dir, "cpu.stat", "usage_usec")) * time.Microsecond, pids
}

func (g *group2) remove(ctx context.Context) error { return removeGroup(ctx, g.dir) }
