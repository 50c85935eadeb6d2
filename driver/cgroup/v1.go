package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// v1Controllers are the controllers a sandbox is put into, where they exist.
var v1Controllers = []string{"memory", "cpu", "cpuacct", "pids", "freezer", "blkio"}

// v1 are control groups of version 1, each controller in a hierarchy of
// its own or shared with another.
type v1 struct {
	name   string
	own    map[string]string // controller → directory of the server's group
	shared map[string]string // controller → directory that holds the sandboxes
	// others are where OCI runtimes make groups besides, in the hierarchies of
	// all other controllers.
	others []string
	remedy string
}

func newV1(own map[string]string, all []string, name string) Groups {
	c := &v1{name: name, own: map[string]string{}, shared: map[string]string{}}
	for _, controller := range v1Controllers {
		dir, ok := own[controller]
		if !ok {
			continue
		}
		shared := filepath.Join(dir, name)
		if err := os.Mkdir(shared, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			c.remedy = "run hearth as root: groups of version 1 cannot be delegated safely"
			continue
		}
		c.own[controller], c.shared[controller] = dir, shared
	}
	if len(c.shared) == 0 {
		return None{}
	}
	for _, dir := range all {
		shared := filepath.Join(dir, name)
		if !slices.Contains(slices.Collect(maps.Values(c.shared)), shared) && !slices.Contains(c.others, shared) {
			c.others = append(c.others, shared)
		}
	}
	return c
}

func (c *v1) Enforces() (memory, cpu, pids bool, remedy string) {
	remedy = c.remedy
	if remedy == "" {
		remedy = "boot the host with this controller enabled"
	}
	return c.shared["memory"] != "", c.shared["cpu"] != "", c.shared["pids"] != "", remedy
}

// group names the directories of a sandbox, each once where controllers share
// a hierarchy.
func (c *v1) group(id string) *group1 {
	g := &group1{dir: map[string]string{}}
	for _, name := range v1Controllers {
		shared, ok := c.shared[name]
		if !ok {
			continue
		}
		dir := filepath.Join(shared, id)
		g.dir[name] = dir
		if !slices.Contains(g.dirs, dir) {
			g.dirs = append(g.dirs, dir)
			g.home = append(g.home, c.own[name])
		}
	}
	for _, shared := range c.others {
		g.others = append(g.others, filepath.Join(shared, id))
	}
	return g
}

func (c *v1) Open(id string) Group { return c.group(id) }

func (c *v1) Create(id string, l driver.Limits) (Group, error) {
	g := c.group(id)
	made := 0
	err := func() error {
		for _, dir := range g.dirs {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			made++
		}
		if err := g.setMemory(l.Memory); err != nil {
			return err
		}
		if err := g.setCPU(l.CPU); err != nil {
			return err
		}
		if dir := g.dir["pids"]; dir != "" {
			return write(dir, "pids.max", strconv.Itoa(l.PIDs+HelperTasks))
		}
		return nil
	}()
	if err != nil {
		for _, dir := range g.dirs[:made] {
			_ = unix.Rmdir(dir)
		}
		return nil, err
	}
	return g, nil
}

// Period is the kernel's default period of the CPU quota in µs.
const Period = 100_000

// Quota is how many µs of each Period a number of cores is; the kernel takes no
// less than 1000. Infinitely many are -1, no limit.
func Quota(cores float64) int64 {
	if math.IsInf(cores, 1) {
		return -1
	}
	return max(int64(cores*Period), 1000)
}

func (c *v1) List() []string {
	var ids []string
	for _, shared := range c.shared {
		entries, _ := os.ReadDir(shared)
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(ids, e.Name()) {
				ids = append(ids, e.Name())
			}
		}
	}
	return ids
}

// Path is relative: each controller may have the server in another group.
func (c *v1) Path(id string) string { return filepath.Join(c.name, id) }

func (c *v1) Close() {
	for _, dir := range slices.AppendSeq(slices.Clone(c.others), maps.Values(c.shared)) {
		_ = unix.Rmdir(dir)
	}
}

type group1 struct {
	dir    map[string]string // controller → directory
	dirs   []string          // each directory once
	home   []string          // for each of dirs, the group the server lives in
	others []string          // groups that a runtime may have made besides
}

// Spawn moves this thread alone into the group, starts the process from it, and
// moves back. A new process belongs to the groups of the thread that made it;
// moving the process itself would stop every fork on the host for milliseconds.
func (g *group1) Spawn(_ *syscall.SysProcAttr, start func() error) error {
	runtime.LockOSThread()
	var moved int
	defer func() {
		for i := range moved {
			if err := write(g.home[i], "tasks", "0"); err != nil {
				return // the thread ends with its goroutine, as it stays locked
			}
		}
		runtime.UnlockOSThread()
	}()
	for i, dir := range g.dirs {
		moved = i + 1
		if err := write(dir, "tasks", "0"); err != nil {
			return fmt.Errorf("enter the control group: %w", err)
		}
	}
	return start()
}

// Enter opens the lists of threads: for a thread that moves itself, the kernel
// need not stop others.
func (g *group1) Enter() (files []*os.File, born bool, err error) {
	for _, dir := range g.dirs {
		f, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, false, err
		}
		files = append(files, f)
	}
	return files, false, nil
}

func (g *group1) Procs() []int {
	for _, dir := range g.dirs {
		if pids := readPIDs(dir); len(pids) > 0 {
			return pids
		}
	}
	return nil
}

func (g *group1) Kill() {
	killListed(g.Procs)
	if dir := g.dir["freezer"]; dir != "" {
		_ = write(dir, "freezer.state", "THAWED") // frozen processes cannot die
	}
}

func (g *group1) Freeze(ctx context.Context, on bool) error {
	dir := g.dir["freezer"]
	if dir == "" {
		return errors.ErrUnsupported
	}
	want := "THAWED"
	if on {
		want = "FROZEN"
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if err := write(dir, "freezer.state", want); err != nil {
			return err
		}
		if read(dir, "freezer.state") == want {
			return nil
		}
		select {
		case <-ctx.Done():
			_ = write(dir, "freezer.state", "THAWED")
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (g *group1) Resize(l driver.Limits) error {
	return resize(l, readInt(g.dir["memory"], memoryLimit), g.setMemory, g.setCPU)
}

// The limits of memory, and of memory and swap together, which must never be
// the lower one. A kernel without swap accounting has the first only.
const (
	memoryLimit = "memory.limit_in_bytes"
	memswLimit  = "memory.memsw.limit_in_bytes"
)

// setMemory sets the limit of memory and allows no swap. The kernel reclaims
// what is beyond a lower limit, or refuses it.
func (g *group1) setMemory(limit int64) error {
	dir := g.dir["memory"]
	if dir == "" {
		return nil
	}
	files := []string{memoryLimit}
	if _, err := os.Stat(filepath.Join(dir, memswLimit)); err == nil {
		files = append(files, memswLimit)
	} else if err := write(dir, "memory.swappiness", "0"); err != nil {
		return err
	}
	if limit > readInt(dir, memoryLimit) {
		slices.Reverse(files)
	}
	for i, file := range files {
		before := read(dir, file)
		err := write(dir, file, strconv.FormatInt(limit, 10))
		if err == nil {
			continue
		}
		if i > 0 { // both had one value
			err = errors.Join(err, write(dir, files[0], before))
		}
		if errors.Is(err, unix.EBUSY) {
			return errInUse(readInt(dir, "memory.usage_in_bytes"), limit)
		}
		return hearth.Errorf(hearth.CodeUnavailable, "set the limit of memory: %w", err)
	}
	return nil
}

func (g *group1) setCPU(cores float64) error {
	if dir := g.dir["cpu"]; dir != "" {
		return write(dir, "cpu.cfs_quota_us", strconv.FormatInt(Quota(cores), 10))
	}
	return nil
}

func (g *group1) OOMKilled() bool {
	dir := g.dir["memory"]
	return dir != "" && readKey(dir, "memory.oom_control", "oom_kill") > 0
}

func (g *group1) Usage() driver.Usage {
	u := driver.Usage{CPU: g.CPU()}
	if dir := g.dir["memory"]; dir != "" {
		u.Memory, u.MemoryPeak = readInt(dir, "memory.usage_in_bytes"), readInt(dir, "memory.max_usage_in_bytes")
	}
	if dir := g.dir["blkio"]; dir != "" {
		for line := range strings.Lines(read(dir, "blkio.throttle.io_service_bytes_recursive")) {
			f := strings.Fields(line) // 8:0 Read 4096
			if len(f) != 3 {
				continue
			}
			n, _ := strconv.ParseInt(f[2], 10, 64) //nolint:errcheck // 0 is not known
			switch f[1] {
			case "Read":
				u.DiskRead += n
			case "Write":
				u.DiskWritten += n
			}
		}
	}
	return u
}

func (g *group1) PIDs() int {
	if dir := g.dir["pids"]; dir != "" {
		return int(readInt(dir, "pids.current"))
	}
	if len(g.dirs) > 0 {
		return len(strings.Fields(read(g.dirs[0], "tasks")))
	}
	return 0
}

func (g *group1) CPU() time.Duration {
	if dir := g.dir["cpuacct"]; dir != "" {
		return time.Duration(readInt(dir, "cpuacct.usage"))
	}
	return 0
}

func (g *group1) Remove(ctx context.Context) error {
	var errs []error
	for _, dir := range slices.Concat(g.others, g.dirs) {
		errs = append(errs, removeGroup(ctx, dir))
	}
	return errors.Join(errs...)
}
