package native

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// Probe implements driver.Driver. It starts a sandbox, and each interpreter it
// has not seen before in one.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	info := driver.Info{
		Name:     "native",
		Summary:  "Linux namespaces, seccomp, Landlock and control groups; Linux " + release,
		Runtimes: []driver.Runtime{},
	}
	limit := func(what, remedy string) {
		info.Limitations = append(info.Limitations, driver.Problem{What: what, Remedy: remedy})
	}
	err := d.tryCommand(ctx, d.system, []string{"/bin/sh", "-c", ":"}, hearth.EgressInternet)
	info.Internet = err == nil
	if hearth.ErrorCode(err) == hearth.CodeUnsupported {
		limit("functions cannot connect to the internet: "+err.Error(), hearth.AsError(err).Hint)
		err = d.tryCommand(ctx, d.system, []string{"/bin/sh", "-c", ":"}, hearth.EgressNone)
	}
	if ctx.Err() != nil {
		return driver.Info{}, ctx.Err()
	}
	if err != nil && !kernelAtLeast(release, 5, 12) {
		info.Missing = append(info.Missing, driver.Problem{What: "Linux " + release + " is too old", Remedy: "use Linux 5.12 or newer"})
	}
	if err != nil {
		info.Missing = append(info.Missing, driver.Problem{What: err.Error(), Remedy: hearth.AsError(err).Hint})
		return info, nil
	}
	info.Works = true

	var remedy string
	info.MemoryLimit, info.CPULimit, info.PIDLimit, remedy = d.cgroups.Enforces()
	info.Enforced = []string{
		"a root file system of its own: the host's /usr read-only, a private /tmp of bounded size, nothing else of the host",
		"no process, network device, IPC object or host name of the host is visible (pid, net, ipc, uts, mount, user and cgroup namespaces)",
		"no capabilities, no_new_privs, no set-user-ID programs, no devices but null, zero, full, random and urandom",
		"system calls filtered by an allow-list (seccomp)",
	}
	if d.root {
		info.Enforced = append(info.Enforced, "each sandbox runs as a user that nobody else on the host is")
	} else {
		limit("sandboxes run as the user that runs hearth, in user namespaces of their own", "run hearth as root to give each sandbox a user of its own")
	}
	if d.landlock > 0 {
		info.Enforced = append(info.Enforced, fmt.Sprintf("file access restricted once more by Landlock (version %d)", d.landlock))
	} else {
		limit("the kernel has no Landlock: one layer of protection less", "use Linux 5.13 or newer with landlock in the kernel's lsm= list")
	}
	if info.MemoryLimit {
		info.Enforced = append(info.Enforced, "memory limit without swap (control group)")
	} else {
		limit("the memory limit is not enforced", remedy)
	}
	if info.CPULimit {
		info.Enforced = append(info.Enforced, "CPU limit (control group)")
	} else {
		limit("the CPU limit is not enforced", remedy)
	}
	if info.PIDLimit {
		info.Enforced = append(info.Enforced, "limit of processes and threads (control group and RLIMIT_NPROC)")
	} else if kernelAtLeast(release, 5, 14) {
		info.PIDLimit = true // counted in the user namespace of the sandbox
		info.Enforced = append(info.Enforced, "limit of processes and threads (RLIMIT_NPROC)")
	} else {
		limit("the limit of processes is not enforced", remedy)
	}
	if info.Internet {
		info.Enforced = append(info.Enforced, "egress policy: public addresses only, dialled by a network stack in user space; or none")
	}
	d.found.mu.Lock()
	defer d.found.mu.Unlock()
	d.findLocked(ctx)
	for _, it := range d.found.good {
		info.Runtimes = append(info.Runtimes, it.Runtime)
	}
	for _, it := range d.found.broken {
		limit(fmt.Sprintf("%s at %s does not start in a sandbox: %s", it.Name, it.Exe, it.Broken),
			"install "+it.Language+" from your distribution, or make "+it.Exe+" and its libraries readable for everyone")
	}
	return info, ctx.Err()
}

// found are the interpreters, looked for once.
type found struct {
	mu           sync.Mutex
	done         bool
	good, broken []interpreter
}

func (d *Driver) findLocked(ctx context.Context) {
	if !d.found.done {
		d.found.good, d.found.broken = d.discover(ctx)
		d.found.done = ctx.Err() == nil
	}
}

// interpreterFor finds a runtime by its full name.
func (d *Driver) interpreterFor(ctx context.Context, name string) (interpreter, bool) {
	d.found.mu.Lock()
	defer d.found.mu.Unlock()
	d.findLocked(ctx)
	for _, it := range d.found.good {
		if it.Name == name {
			return it, true
		}
	}
	return interpreter{}, false
}

// tryCommand runs a command in a sandbox of its own to see whether it works.
func (d *Driver) tryCommand(ctx context.Context, views []view, argv []string, policy hearth.Egress) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out lockedBuffer
	d.mu.Lock()
	d.tries++
	id := fmt.Sprintf("probe-%d", d.tries)
	d.mu.Unlock()
	spec := driver.Spec{ID: id, Egress: policy, Stderr: &out, Limits: driver.Limits{}.WithDefaults()}
	s, err := d.create(ctx, spec, views, argv, "")
	if err != nil {
		return err
	}
	exit, err := s.Wait(ctx)
	if derr := s.Destroy(ctx); err == nil {
		err = derr
	}
	if err == nil && (exit.Code != 0 || exit.Signal != 0) {
		text, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		err = hearth.Errorf(hearth.CodeUnavailable, "%s: exit status %d, signal %d: %s", argv[0], exit.Code, exit.Signal, text)
	}
	return err
}

func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	_, err := fmt.Sscanf(release, "%d.%d", &a, &b)
	return err == nil && (a > major || a == major && b >= minor)
}

// lockedBuffer keeps the beginning of what is written to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := 4096 - b.b.Len(); room > 0 {
		b.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
