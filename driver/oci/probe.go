package oci

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const rootRemedy = "run hearth as root; the native driver works for ordinary users"

// remedy says how to get the dialect's runtime.
func (d *Driver) remedy() string {
	if d.dialect == GVisor {
		return "install a current release: https://gvisor.dev/docs/user_guide/install/ " +
			"(https://storage.googleapis.com/gvisor/releases/release/latest/x86_64/runsc), " +
			"or CGO_ENABLED=0 go install gvisor.dev/gvisor/runsc@go; put runsc on the PATH or beside hearth"
	}
	return "install runc with your package manager (apt-get install runc, dnf install runc), or put it on the PATH or beside hearth"
}

// Probe implements driver.Driver. It asks the runtime for its version and
// starts a sandbox.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: string(d.dialect), Runtimes: []driver.Runtime{}}
	info.Summary = "containers of runc, no daemon"
	if d.dialect == GVisor {
		info.Summary = "containers of gVisor, whose kernel stands between guest and host; no daemon"
	}
	missing := func(what, remedy string) (driver.Info, error) {
		info.Missing = append(info.Missing, driver.Problem{What: what, Remedy: remedy})
		return info, ctx.Err()
	}
	if d.binary == "" {
		return missing(d.program()+" is not installed", d.remedy())
	}
	if os.Geteuid() != 0 {
		return missing(string(d.dialect)+" needs root", rootRemedy)
	}
	version, err := d.version(ctx)
	if err != nil {
		return missing(fmt.Sprintf("%s does not run: %v", d.binary, err), d.remedy())
	}
	info.Summary += "; " + version
	if old := tooOld(d.dialect, version); old != "" {
		return missing(fmt.Sprintf("%s at %s is too old: %s", version, d.binary, old), d.remedy())
	}

	err = d.try(ctx, hearth.EgressInternet)
	info.Internet = err == nil
	if hearth.ErrorCode(err) == hearth.CodeUnsupported {
		info.Limitations = append(info.Limitations, driver.Problem{
			What: "functions cannot connect to the internet: " + err.Error(), Remedy: hearth.AsError(err).Hint,
		})
		err = d.try(ctx, hearth.EgressNone)
	}
	if ctx.Err() != nil {
		return driver.Info{}, ctx.Err()
	}
	if err != nil {
		return missing(err.Error(), hearth.AsError(err).Hint)
	}
	info.Works = true
	d.describe(&info)
	return info, d.list(ctx, &info)
}

// describe says what protects the host.
func (d *Driver) describe(info *driver.Info) {
	limit := func(what, remedy string) {
		info.Limitations = append(info.Limitations, driver.Problem{What: what, Remedy: remedy})
	}
	enforce := func(what string) { info.Enforced = append(info.Enforced, what) }
	enforce("a root file system of its own, read-only, from an image; all that can be written to is one tmpfs of bounded size")
	if d.dialect == GVisor {
		enforce("the guest's system calls are answered by gVisor's kernel, a program in namespaces of its own with an almost empty root that may itself make few calls of the host's (platform systrap)")
		enforce("the guest runs as an ordinary user of that kernel, without capabilities, with no_new_privs, and cannot make namespaces (seccomp)")
	} else {
		enforce("no process, network device, IPC object or host name of the host is visible (pid, net, ipc, uts, mount, user and cgroup namespaces)")
		enforce("no capabilities, no_new_privs, no devices but null, zero, full, random, urandom and tty")
		enforce("system calls filtered by an allow-list (seccomp)")
		enforce("each sandbox runs as users that nobody else on the host is")
	}
	var remedy string
	info.MemoryLimit, info.CPULimit, info.PIDLimit, remedy = d.cgroups.Enforces()
	if info.MemoryLimit {
		enforce("memory limit without swap (control group)" + d.including())
	} else {
		limit("the memory limit is not enforced", remedy)
	}
	if info.CPULimit {
		enforce("CPU limit (control group)" + d.including())
	} else {
		limit("the CPU limit is not enforced", remedy)
	}
	switch {
	case d.dialect == GVisor:
		info.PIDLimit = true
		enforce("limit of processes and threads (gVisor's kernel)")
	case info.PIDLimit:
		enforce("limit of processes and threads (control group and RLIMIT_NPROC)")
	default:
		limit("the limit of processes is not enforced", remedy)
	}
	if info.Internet {
		enforce("egress policy: public addresses only, dialled by a network stack in user space; or none")
	}
}

func (d *Driver) including() string {
	if d.dialect == GVisor {
		return ", gVisor's own processes included"
	}
	return ""
}

// list adds the runtimes that there are images with the guest of this program of.
func (d *Driver) list(ctx context.Context, info *driver.Info) error {
	if d.images != nil {
		all, err := d.images.List(ctx)
		if err != nil {
			info.Limitations = append(info.Limitations, driver.Problem{What: err.Error(), Remedy: hearth.AsError(err).Hint})
		}
		seen := map[string]bool{driver.Provided: true}
		for _, img := range all {
			if img.Current() && !seen[img.Runtime] { // Create refuses others
				seen[img.Runtime] = true
				info.Runtimes = append(info.Runtimes, driver.Runtime{Name: img.Runtime, Language: img.Language, Version: img.Version, Source: img.Ref})
			}
		}
	}
	if len(info.Runtimes) == 0 {
		info.Limitations = append(info.Limitations, driver.Problem{What: "there is no image of a runtime yet", Remedy: "hearth images build"})
	}
	return ctx.Err()
}

// version asks the runtime: the first line of what it prints.
func (d *Driver) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, d.binary, "--version").CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, line)
	}
	return line, nil
}

var releaseRE = regexp.MustCompile(`release-(\d{8})`)

// tooOld says why a version cannot be used; empty if it can, as far as one can
// tell by its name.
func tooOld(dialect Dialect, version string) string {
	if dialect == GVisor {
		if m := releaseRE.FindStringSubmatch(version); m != nil && m[1] < "20230403" {
			return "it lacks the systrap platform, which came in April 2023"
		}
		return ""
	}
	var major, minor int
	if _, err := fmt.Sscanf(version, "runc version %d.%d", &major, &minor); err == nil && (major < 1 || major == 1 && minor < 1) {
		return "1.1 or newer is needed"
	}
	return ""
}

// try runs a program in a sandbox without an image to see whether it works.
func (d *Driver) try(ctx context.Context, policy hearth.Egress) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var out lockedBuffer
	d.mu.Lock()
	d.tries++
	id := fmt.Sprintf("probe-%d", d.tries)
	d.mu.Unlock()
	spec := driver.Spec{ID: id, Egress: policy, Stderr: &out, Limits: driver.Limits{}.WithDefaults()}
	nothing := image{dir: filepath.Join(d.dir, emptyDir), release: func() {}}
	s, err := d.create(ctx, spec, nothing, []string{helperPath, "probe"}, "", begin{verb: []string{"run"}})
	if err != nil {
		return err
	}
	exit, err := s.Wait(ctx)
	if derr := s.Destroy(ctx); err == nil {
		err = derr
	}
	if err == nil && (exit.Code != 0 || exit.Signal != 0) {
		err = hearth.Errorf(hearth.CodeUnavailable, "a program in a sandbox of %s: exit status %d, signal %d: %s",
			d.program(), exit.Code, exit.Signal, strings.TrimSpace(out.String()))
	}
	return err
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
