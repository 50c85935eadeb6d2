package docker

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
)

// How long the engine may take to answer. Its answers come within half a second
// on a machine that is not overloaded.
const (
	callTimeout   = 20 * time.Second
	createTimeout = time.Minute
	helperTimeout = time.Minute // for a container that has started to say so
	loadTimeout   = 15 * time.Minute
)

// isAbsent tells whether the engine could not be reached at all.
func isAbsent(err error) bool { return client.IsErrConnectionFailed(err) }

// isDenied tells whether the engine may not be reached by this user.
func isDenied(err error) bool {
	return errors.Is(err, os.ErrPermission) || isAbsent(err) && strings.Contains(err.Error(), "permission denied")
}

// explain makes an error of one of the engine's, or of not reaching it.
func (d *Driver) explain(what string, err error) error {
	e := func(c hearth.Code) *hearth.Error { return hearth.Errorf(c, "docker: %s: %w", what, err) }
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return e(hearth.CodeUnavailable).WithHint("Docker is slow or hangs: look at its log")
	case isDenied(err):
		return hearth.Errorf(hearth.CodeUnavailable, "docker: no permission to use %s", d.host).
			WithHint("run hearth as root or add its user to the group docker: usermod -aG docker USER; the group is as powerful as root")
	case isAbsent(err):
		return hearth.Errorf(hearth.CodeUnavailable, "docker: Docker is not running at %s", d.host).
			WithHint("systemctl start docker; or install Docker Engine; or, if it listens elsewhere, start the server with --docker-host or DOCKER_HOST")
	case cerrdefs.IsInvalidArgument(err):
		return e(hearth.CodeInvalid)
	case cerrdefs.IsConflict(err):
		return e(hearth.CodeConflict)
	}
	return e(hearth.CodeUnavailable).WithHint("Docker's log says more: journalctl -u docker")
}

// facts are what the engine says of itself.
type facts struct {
	version        string // "20.10.24"
	cgroups        string // "1" or "2"
	memory         bool
	cpu            bool
	pids           bool
	seccomp        bool
	selinux        bool
	apparmor       bool
	rootless       bool
	remapped       bool // users of containers are not those of the host
	runtimes       []string
	defaultRuntime string
}

// ask returns the engine's facts, asked for once and again by Probe.
func (d *Driver) ask(ctx context.Context, again bool) (*facts, error) {
	if d.unusable != nil {
		return nil, d.unusable
	}
	d.mu.Lock()
	f := d.facts
	d.mu.Unlock()
	if f != nil && !again {
		return f, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := d.client.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, d.explain("ask what it can do", err)
	}
	i := r.Info
	has := func(option string) bool {
		return slices.ContainsFunc(i.SecurityOptions, func(o string) bool {
			return slices.Contains(strings.Split(o, ","), "name="+option)
		})
	}
	f = &facts{
		version: i.ServerVersion, cgroups: i.CgroupVersion, memory: i.MemoryLimit, cpu: i.CPUCfsQuota, pids: i.PidsLimit,
		seccomp: has("seccomp"), selinux: has("selinux"), apparmor: has("apparmor"), rootless: has("rootless"),
		remapped: has("userns"), defaultRuntime: i.DefaultRuntime,
	}
	for name := range i.Runtimes {
		f.runtimes = append(f.runtimes, name)
	}
	slices.Sort(f.runtimes)
	d.mu.Lock()
	d.facts = f
	d.mu.Unlock()
	return f, nil
}

// runtimeName is the engine's runtime that sandboxes get.
func (d *Driver) runtimeName(f *facts) string {
	if d.runtime != "" {
		return d.runtime
	}
	return f.defaultRuntime
}

// enters tells whether the driver can enter the containers' namespaces: they
// must be the kernel's own, and this process root.
func (d *Driver) enters(f *facts) bool {
	name := d.runtimeName(f)
	return d.root && !f.rootless && (name == "runc" || name == "crun" || name == "io.containerd.runc.v2")
}
