package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/images"
)

const (
	noInternet       = "functions cannot connect to the internet: hearth cannot enter the containers' network"
	noInternetRemedy = "run hearth as root beside a Docker Engine that is not rootless, with the OCI runtime runc or crun; or use egress: none"
)

// Probe implements driver.Driver. It asks the engine and runs a container of
// one of the images.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: "docker", Summary: "containers of Docker Engine", Runtimes: []driver.Runtime{}}
	missing := func(err error) (driver.Info, error) {
		if ctx.Err() != nil {
			return driver.Info{}, ctx.Err()
		}
		info.Missing = append(info.Missing, driver.Problem{What: err.Error(), Remedy: hearth.AsError(err).Hint})
		return info, nil
	}
	if d.unusable != nil {
		return missing(d.unusable)
	}
	if !strings.HasPrefix(d.host, "unix://") {
		return missing(hearth.Errorf(hearth.CodeUnsupported, "docker: an engine at %s cannot be used: sandboxes are reached through sockets on this host", d.host).
			WithHint("start the server on the engine's machine, with --docker-host or DOCKER_HOST as unix:///var/run/docker.sock"))
	}
	f, err := d.ask(ctx, true)
	if err != nil {
		return missing(err)
	}
	name := d.runtimeName(f)
	info.Summary = fmt.Sprintf("Docker Engine %s with %s; control groups version %s", f.version, name, f.cgroups)
	if !slices.Contains(f.runtimes, name) {
		return missing(hearth.Errorf(hearth.CodeUnavailable, "docker: the engine has no OCI runtime %q, only %s", name, strings.Join(f.runtimes, ", ")).
			WithHint("add it to \"runtimes\" in /etc/docker/daemon.json and restart Docker"))
	}
	if f.remapped {
		return missing(hearth.Errorf(hearth.CodeUnsupported, "docker: the engine maps the users of containers (userns-remap)").
			WithHint("use an engine without userns-remap: hearth gives each sandbox a user of its own"))
	}
	all, err := d.images.List(ctx)
	if err != nil {
		return missing(err)
	}
	all = slices.DeleteFunc(all, func(i images.Image) bool { return !i.Current() }) // Create refuses them
	if len(all) == 0 {
		return missing(hearth.Errorf(hearth.CodeNotFound, "docker: there is no base image").WithHint("hearth images build"))
	}
	for _, img := range all {
		if img.Interpreter != "" && !slices.ContainsFunc(info.Runtimes, func(r driver.Runtime) bool { return r.Name == img.Runtime }) {
			info.Runtimes = append(info.Runtimes, driver.Runtime{Name: img.Runtime, Language: img.Language, Version: img.Version, Source: img.Ref})
		}
	}
	slices.SortStableFunc(info.Runtimes, func(a, b driver.Runtime) int { return strings.Compare(a.Language, b.Language) })
	// The smallest is loaded soonest, if it must be.
	img := slices.MinFunc(all, func(a, b images.Image) int { return int(a.Size>>20 - b.Size>>20) })

	limit := func(what, remedy string) {
		info.Limitations = append(info.Limitations, driver.Problem{What: what, Remedy: remedy})
	}
	grouped, why := false, driver.Problem{What: noInternet, Remedy: noInternetRemedy}
	if d.enters(f) {
		var terr error
		if grouped, terr = d.try(ctx, img, hearth.EgressInternet); terr == nil {
			info.Internet = true
		} else if hearth.ErrorCode(terr) != hearth.CodeUnsupported {
			return missing(terr)
		} else {
			why = driver.Problem{What: terr.Error(), Remedy: hearth.AsError(terr).Hint}
		}
	}
	if !info.Internet {
		limit(why.What, why.Remedy)
		var terr error
		if grouped, terr = d.try(ctx, img, hearth.EgressNone); terr != nil {
			return missing(terr)
		}
	}
	info.Works = true
	d.describe(&info, f, grouped, limit)
	return info, ctx.Err()
}

// describe says what protects the host and what does not.
func (d *Driver) describe(info *driver.Info, f *facts, grouped bool, limit func(what, remedy string)) {
	info.Enforced = []string{
		"a container of its own: pid, network, IPC, UTS, mount and cgroup namespaces, a read-only root file system from an image",
		"no capabilities, no_new_privs, no network device but loopback and, for the internet, one that ends in hearth",
		"each sandbox runs as a user that nobody else on the host is",
	}
	if name := d.runtimeName(f); !d.enters(f) {
		info.Enforced = append(info.Enforced, "the OCI runtime "+name)
	}
	info.Enforced = append(info.Enforced, "system calls filtered by an allow-list (seccomp)")
	if f.seccomp {
		info.Enforced = append(info.Enforced, "system calls filtered once more by Docker's own profile")
	}
	if f.apparmor {
		info.Enforced = append(info.Enforced, "Docker's AppArmor profile")
	}
	if f.selinux {
		limit("SELinux does not confine sandboxes: Docker would have to relabel every directory that is mounted", "")
	}
	if !d.enters(f) {
		limit("/tmp, /var/tmp and /dev/shm have half, a quarter and a quarter of the disk limit each, instead of sharing it",
			"run hearth as root, with an engine that is not rootless and the OCI runtime runc or crun")
	}
	const cgroupRemedy = "Docker's runtime must put containers into control groups: docker info tells, under WARNING, what is missing"
	for _, l := range []struct {
		what string
		is   bool
		to   *bool
	}{
		{"memory limit without swap", f.memory, &info.MemoryLimit},
		{"CPU limit", f.cpu, &info.CPULimit},
		{"limit of processes and threads", f.pids, &info.PIDLimit},
	} {
		*l.to = l.is && grouped
		if *l.to {
			info.Enforced = append(info.Enforced, l.what+" (control group)")
		} else {
			limit("the "+l.what+" is not enforced", cgroupRemedy)
		}
	}
	if info.Internet {
		info.Enforced = append(info.Enforced, "egress policy: public addresses only, dialled by a network stack in user space; or none")
	}
}

// try runs the helper as the guest of a sandbox, which ends at once, and tells
// whether the sandbox had a control group.
func (d *Driver) try(ctx context.Context, img images.Image, policy hearth.Egress) (grouped bool, err error) {
	d.mu.Lock()
	d.tries++
	id := fmt.Sprintf("probe-%d", d.tries)
	d.mu.Unlock()
	created, err := d.create(ctx, driver.Spec{
		ID: id, Command: []string{helperPath}, Egress: policy, Limits: driver.Limits{}.WithDefaults(),
	}, img, nil)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	exit, err := created.Wait(ctx)
	if derr := created.Destroy(ctx); err == nil {
		err = derr
	}
	if err == nil && (exit.Code != 0 || exit.Signal != 0) {
		err = hearth.Errorf(hearth.CodeUnavailable, "docker: a sandbox ended with status %d, signal %d", exit.Code, exit.Signal)
	}
	s, _ := created.(*sandbox)
	return s.grouped, err
}
