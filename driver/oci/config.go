package oci

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

// Users inside each sandbox.
const (
	guestUser = 1000
	rootUser  = 0
)

// plan is what a config.json is made of.
type plan struct {
	spec      driver.Spec
	root      string // directory of the root file system
	argv      []string
	env       []string
	users     uint32 // first of the sandbox's users on the host
	network   string // network namespace to join; empty for a new one
	group     string // control group
	openFiles uint64 // the most files a process may have open
	noCores   uint64 // limit of core dumps that makes none
}

// config returns the configuration of a sandbox.
func (p plan) config(dialect Dialect) *specs.Spec {
	if dialect == GVisor {
		return p.gvisor()
	}
	return p.runc()
}

// common is what both dialects are told.
func (p plan) common() *specs.Spec {
	period := uint64(cgroup.Period)
	quota := cgroup.Quota(p.spec.Limits.CPU)
	memory := p.spec.Limits.Memory
	oom := 500 // the host's own programs outlive sandboxes
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Env: slices.Clone(p.env), Cwd: "/", NoNewPrivileges: true,
			Rlimits: p.rlimits(cgroup.HelperTasks), OOMScoreAdj: &oom,
		},
		Root:     &specs.Root{Path: p.root, Readonly: true},
		Hostname: "sandbox",
		Mounts:   []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}},
		Linux: &specs.Linux{
			CgroupsPath: p.group,
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &memory, Swap: &memory},
				CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: p.network},
			},
		},
	}
}

// runc returns the configuration of a sandbox that shares the host's kernel.
func (p plan) runc() *specs.Spec {
	c := p.common()
	c.Process.User = specs.User{UID: guestUser, GID: guestUser}
	c.Process.Args = append([]string{helperPath, "direct"}, p.argv...)
	c.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: []string{}, Effective: []string{}, Inheritable: []string{}, Permitted: []string{}, Ambient: []string{},
	}
	// Read-only, or the guest could ask to be spared when memory is short.
	c.Mounts[0].Options = append(c.Mounts[0].Options, "ro")
	c.Linux.Namespaces = append(c.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	c.Linux.UIDMappings = []specs.LinuxIDMapping{
		{ContainerID: rootUser, HostID: p.users, Size: 1}, {ContainerID: guestUser, HostID: p.users + 1, Size: 1},
	}
	c.Linux.GIDMappings = slices.Clone(c.Linux.UIDMappings)
	pids := pidsLimit(p.spec.Limits)
	c.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	c.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	c.Mounts = append(c.Mounts,
		specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "ro"}})
	for _, s := range scratchDirs {
		c.Mounts = append(c.Mounts, specs.Mount{
			Destination: s.target, Type: "bind", Source: scratchPath(p.spec.ID) + "/" + s.dir, Options: []string{"bind", "nosuid", "nodev"},
		})
	}
	c.Mounts = append(c.Mounts, p.mounts()...)
	c.Linux.MaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/config.gz", "/proc/diskstats", "/proc/interrupts",
		"/proc/kallsyms", "/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/latency_stats", "/proc/locks",
		"/proc/modules", "/proc/partitions", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	c.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	return c
}

// gvisor returns the configuration of a sandbox with a kernel of its own. Its
// first process begins as root of that kernel and becomes user 1000 before it
// starts the guest.
func (p plan) gvisor() *specs.Spec {
	c := p.common()
	c.Process.User = specs.User{UID: rootUser, GID: rootUser}
	var targets []string
	for _, m := range p.spec.Mounts {
		targets = append(targets, m.Target)
	}
	slices.Sort(targets) // a slot that was filled is a mount in a restored sandbox, whose arguments must be the same
	c.Process.Args = []string{helperPath, "packed", strconv.FormatInt(p.spec.Limits.Disk, 10), strconv.Itoa(len(targets))}
	c.Process.Args = append(append(c.Process.Args, targets...), p.argv...)
	c.Process.Rlimits = p.rlimits(4) // of init's threads, those that are the guest's user
	caps := []string{"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN"}
	c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: []string{}, Ambient: []string{}}
	c.Mounts = append(c.Mounts, p.mounts()...)
	return c
}

// mounts are those that the caller asked for.
func (p plan) mounts() []specs.Mount {
	var list []specs.Mount
	for _, m := range p.spec.Mounts {
		options := []string{"rbind", "ro", "nosuid", "nodev"}
		// A user namespace may not take off what the host has put on.
		var fs unix.Statfs_t
		if unix.Statfs(m.Source, &fs) == nil && fs.Flags&unix.ST_NOEXEC != 0 {
			options = append(options, "noexec")
		}
		list = append(list, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: options})
	}
	return list
}

// rlimits are a second line behind the control groups; in gVisor, whose guests'
// processes are not the host's, RLIMIT_NPROC is the limit. helpers are tasks of
// init that count.
func (p plan) rlimits(helpers int) []specs.POSIXRlimit {
	limit := func(name string, soft, hard uint64) specs.POSIXRlimit {
		return specs.POSIXRlimit{Type: name, Soft: soft, Hard: hard}
	}
	tasks := uint64(p.spec.Limits.PIDs + helpers)
	return []specs.POSIXRlimit{
		limit("RLIMIT_CORE", p.noCores, p.noCores),
		limit("RLIMIT_MEMLOCK", 64<<10, 64<<10),
		limit("RLIMIT_MSGQUEUE", 0, 0),
		limit("RLIMIT_NOFILE", min(p.openFiles, 4096), p.openFiles),
		limit("RLIMIT_NPROC", tasks, tasks),
	}
}

// pidsLimit is what the control group of a sandbox of runc allows: also enough
// for the runtime, which is in the group until it becomes the first process.
func pidsLimit(l driver.Limits) int64 { return int64(max(l.PIDs+cgroup.HelperTasks, 32)) }

// groupLimits are the limits of the group that a sandbox is started in. A
// sandbox of gVisor gets its limit of CPU once the guest runs: before, all is the
// start of a kernel and of Hearth's own program, which use every core.
func groupLimits(dialect Dialect, l driver.Limits) driver.Limits {
	if dialect == GVisor {
		// The host's tasks are those of gVisor's kernel and, for each process of
		// the guest, one that executes its code: a bound for a kernel gone wild.
		l.PIDs = 4*l.PIDs + 512
		l.CPU = math.Inf(1) // none of its own: a parent's may be lower than the machine
	} else {
		l.PIDs = int(pidsLimit(l)) - cgroup.HelperTasks
	}
	return l
}

// hostLimits are those of the host that a configuration depends on.
func hostLimits() (openFiles, noCores uint64) {
	openFiles = 65536
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err == nil {
		openFiles = min(openFiles, now.Max)
	}
	// A core_pattern that names a program runs it as the host's root whatever
	// the limit is, except for a limit of 1.
	if b, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err == nil && strings.HasPrefix(string(b), "|") {
		noCores = 1
	}
	return openFiles, noCores
}

// namespacePath is how the runtime finds a file of this process.
func namespacePath(f *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// policy is the spec's egress, spelled out.
func policy(spec driver.Spec) hearth.Egress {
	if spec.Egress == "" {
		return hearth.EgressNone
	}
	return spec.Egress
}
