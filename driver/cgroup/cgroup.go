// Package cgroup puts sandboxes into control groups of their own, in version 1,
// hybrid and version 2 hierarchies, as root or in a group that was delegated.
package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
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

// HelperTasks is how many threads of a driver's own fit into a group besides
// Limits.PIDs.
const HelperTasks = 8

// Groups makes the control groups of this owner's sandboxes.
type Groups interface {
	// Create makes the group of a sandbox and sets its limits. After an error
	// nothing remains of it; one that existed before stays as it is.
	Create(id string, l driver.Limits) (Group, error)
	// Open returns the group of a sandbox of an earlier process.
	Open(id string) Group
	// List returns the ids of all existing groups.
	List() []string
	// Enforces tells which limits work, and what to do about the others.
	Enforces() (memory, cpu, pids bool, remedy string)
	// Path is what the configuration of an OCI runtime calls the group of a
	// sandbox.
	Path(id string) string
	// Close removes what is shared, if it is empty.
	Close()
}

// Group is the control group of one sandbox.
type Group interface {
	// Spawn calls start so that the process it starts is born in the group.
	Spawn(attr *syscall.SysProcAttr, start func() error) error
	// Enter returns how a process that somebody else makes gets into the group:
	// files into which it writes 0 itself, having one thread; or, if born is true,
	// one directory into which its parent clones it. The caller closes them.
	Enter() (files []*os.File, born bool, err error)
	// Kill kills every process in the group, also frozen ones.
	Kill()
	Freeze(ctx context.Context, on bool) error
	// Resize changes the limits of memory and CPU, where they are enforced; the
	// others stay. On an error both are what they were. Errors: CodeUnavailable.
	Resize(l driver.Limits) error
	// OOMKilled tells whether the kernel killed a process for the memory limit.
	OOMKilled() bool
	// Usage is what the group uses, but for the network.
	Usage() driver.Usage
	// PIDs is how many processes and threads there are.
	PIDs() int
	// CPU is the time used alone, 0 where unknown.
	CPU() time.Duration
	Procs() []int
	// Remove frees the group once its processes are gone.
	Remove(ctx context.Context) error
}

// Find picks the hierarchy of this host: v2, v1, or none at all. Everything is
// put into a directory called name, which no other program may use.
func Find(name string) Groups {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return None{}
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return None{}
	}
	own := map[string]string{} // controller, "" for v2 → path of this process
	for line := range strings.Lines(string(self)) {
		if p := strings.SplitN(strings.TrimSpace(line), ":", 3); len(p) == 3 {
			for c := range strings.SplitSeq(p[1], ",") {
				own[c] = p[2]
			}
		}
	}
	v1, v2, mount := map[string]string{}, "", ""
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(mounts)); s.Scan(); {
		head, tail, ok := strings.Cut(s.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 {
			continue
		}
		switch t[0] {
		case "cgroup2":
			v2, mount = ownGroup(h[4], h[3], own[""]), h[4]
			all = append(all, v2)
		case "cgroup":
			for c := range strings.SplitSeq(t[2], ",") {
				if path, ok := own[c]; ok {
					all = append(all, ownGroup(h[4], h[3], path))
				}
				if slices.Contains(v1Controllers, c) && v1[c] == "" {
					v1[c] = ownGroup(h[4], h[3], own[c])
				}
			}
		}
	}
	if v1["memory"] == "" && v2 != "" {
		return newV2(v2, mount, name)
	}
	if len(v1) > 0 {
		return newV1(v1, all, name)
	}
	return None{}
}

// ownGroup is the directory of the group at path in the hierarchy of which
// root is mounted at mount.
func ownGroup(mount, root, path string) string {
	rel, err := filepath.Rel(root, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return mount
	}
	return filepath.Join(mount, rel)
}

func write(dir, file, value string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(value), 0)
}

func read(dir, file string) string {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b))
}

func readInt(dir, file string) int64 {
	n, _ := strconv.ParseInt(read(dir, file), 10, 64)
	return n
}

// readKey reads the number behind a key in a file of "key number" lines.
func readKey(dir, file, key string) int64 {
	for line := range strings.Lines(read(dir, file)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

func readPIDs(dir string) []int {
	var pids []int
	for f := range strings.FieldsSeq(read(dir, "cgroup.procs")) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 {
			pids = append(pids, n)
		}
	}
	return pids
}

// killListed kills the processes that list returns, but never this one: groups
// of version 1 list it while one of its threads starts a process in them. A
// number may have gone to a stranger between reading it and opening it: so it
// counts only if it is still listed once its process is held by a descriptor.
func killListed(list func() []int) {
	for range 16 {
		pids := slices.DeleteFunc(list(), func(pid int) bool { return pid == os.Getpid() })
		if len(pids) == 0 {
			return
		}
		held := map[int]int{}
		for _, pid := range pids {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				held[pid] = fd
			}
		}
		still := list()
		for pid, fd := range held {
			if slices.Contains(still, pid) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			_ = unix.Close(fd)
		}
	}
}

// resize sets both limits, or none.
func resize(l driver.Limits, memory int64, setMemory func(int64) error, setCPU func(float64) error) error {
	if err := setMemory(l.Memory); err != nil {
		return err
	}
	if err := setCPU(l.CPU); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "set the limit of CPU: %w", errors.Join(err, setMemory(memory)))
	}
	return nil
}

// errInUse is for a limit of memory that cannot be lowered.
func errInUse(used, limit int64) error {
	return hearth.Errorf(hearth.CodeUnavailable, "%d KiB of memory are in use, more than the new limit of %d KiB", used>>10, limit>>10).
		WithHint("choose a higher limit")
}

// removeGroup removes an empty group. Processes leave their group a moment
// after they were reaped, so it tries until ctx ends.
func removeGroup(ctx context.Context, dir string) error {
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		select {
		case <-ctx.Done():
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		case <-time.After(wait):
		}
	}
}

// None is a host, or a user, without control groups.
type None struct{}

func (None) Create(string, driver.Limits) (Group, error) { return noGroup{}, nil }
func (None) Open(string) Group                           { return noGroup{} }
func (None) List() []string                              { return nil }
func (None) Path(string) string                          { return "" }
func (None) Close()                                      {}
func (None) Enforces() (memory, cpu, pids bool, remedy string) {
	return false, false, false, "run hearth as root, or in a delegated group: systemd-run --user --scope -p Delegate=yes hearth serve"
}

type noGroup struct{}

func (noGroup) Spawn(_ *syscall.SysProcAttr, start func() error) error { return start() }
func (noGroup) Enter() ([]*os.File, bool, error)                       { return nil, false, nil }
func (noGroup) Kill()                                                  {}
func (noGroup) Freeze(context.Context, bool) error                     { return errors.ErrUnsupported }
func (noGroup) Resize(driver.Limits) error                             { return nil }
func (noGroup) OOMKilled() bool                                        { return false }
func (noGroup) Usage() driver.Usage                                    { return driver.Usage{} }
func (noGroup) PIDs() int                                              { return 0 }
func (noGroup) CPU() time.Duration                                     { return 0 }
func (noGroup) Procs() []int                                           { return nil }
func (noGroup) Remove(context.Context) error                           { return nil }

// PSS is the proportional set size of a process in bytes, 0 where unknown.
func PSS(pid int) int64 {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}
