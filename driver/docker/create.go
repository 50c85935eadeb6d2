package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http/httptrace"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/slots"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/images"
)

// Places inside the container.
const (
	helperPath = "/hearth/init"
	runPath    = "/hearth/run" // the sandbox's own directory, with the socket
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	spec.Limits = spec.Limits.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	img, err := d.images.Find(ctx, spec.Runtime)
	if err != nil {
		return nil, err
	}
	bin := ""
	if img.Interpreter != "" {
		bin = path.Dir(img.Interpreter)
	}
	if len(spec.Command) == 0 {
		spec.Command = guest.CommandFor(spec.Build, img.Language, img.Interpreter, driver.GuestDir)
	}
	if len(spec.Command) == 0 {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the runtime %s has no guest of its own", spec.Runtime).
			WithHint("set the command to the path of a program inside the sandbox")
	}
	return d.create(ctx, spec, img, driver.GuestEnvironment(img.Env, spec.Env, bin))
}

// create makes a sandbox of an image.
func (d *Driver) create(ctx context.Context, spec driver.Spec, img images.Image, env []string) (driver.Sandbox, error) {
	f, err := d.ask(ctx, false)
	if err != nil {
		return nil, canceled(ctx, err)
	}
	if spec.Egress == hearth.EgressInternet && !d.enters(f) {
		return nil, hearth.Errorf(hearth.CodeUnsupported, "docker: %s", noInternet).WithHint("%s", noInternetRemedy)
	}
	s := &sandbox{
		driver: d, id: spec.ID, dir: d.runPath(spec.ID), allow: spec.Allow, argv0: spec.Command[0], limits: spec.Limits,
		stdout: spec.Stdout, stderr: spec.Stderr, slots: slots.New(d.slotPath(spec.ID), spec.Slots),
		started: make(chan error, 2), done: make(chan struct{}), made: make(chan struct{}), settled: make(chan struct{}),
		output: output{ended: make(chan struct{})},
	}
	if err := d.reserve(s); err != nil {
		return nil, err
	}
	defer func() {
		d.mu.Lock()
		s.creating = false
		d.mu.Unlock()
	}()
	spec.Mounts = append(slices.Clone(spec.Mounts), s.slots.Mounts()...)
	if err := d.bring(ctx, s, spec, img, f, env); err != nil {
		if derr := s.Destroy(ctx); derr != nil {
			d.log.Error("docker: a sandbox that failed to start remains", "sandbox", s.id, "err", derr)
		}
		return nil, err
	}
	return s, nil
}

// canceled returns the reason of ctx's end if it has ended, else err.
func canceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// bring starts the reserved sandbox. After an error the caller destroys it.
func (d *Driver) bring(ctx context.Context, s *sandbox, spec driver.Spec, img images.Image, f *facts, env []string) error {
	l, err := d.furnish(s)
	if err != nil {
		close(s.settled)
		return hearth.Errorf(hearth.CodeUnavailable, "prepare sandbox %s: %w", s.id, err)
	}
	defer l.Close()
	config, host := d.container(s, spec, img, f)
	running := make(chan error, 1)
	go func() {
		defer close(s.settled)
		running <- d.run(ctx, s, img, config, host)
	}()
	connected := make(chan error, 1)
	go func() {
		var err error
		s.control, err = l.AcceptUnix()
		connected <- err
	}()
	var late <-chan time.Time // once the container has started
	for waiting := true; waiting; {
		select {
		case err := <-connected:
			if err != nil {
				return hearth.Errorf(hearth.CodeUnavailable, "wait for sandbox %s: %w", s.id, err)
			}
			waiting = false
		case err := <-running:
			if err == nil {
				running = nil // the helper comes
				late = time.After(d.helperTimeout)
				continue
			}
			l.Close()
			<-connected
			return d.explainStart(s, err)
		case <-ctx.Done():
			l.Close()
			<-connected
			return context.Cause(ctx)
		case <-late:
			l.Close()
			<-connected
			return hearth.Errorf(hearth.CodeUnavailable, "the container of sandbox %s does not say that it runs", s.id).
				WithHint("%s", connectRemedy)
		}
	}
	_ = l.Close()
	if err := os.Remove(filepath.Join(s.dir, socketName)); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "remove the socket of sandbox %s: %w", s.id, err)
	}
	return d.finish(ctx, s, spec, f, env)
}

// connectRemedy is for an OCI runtime that does not let sandboxes connect.
const connectRemedy = "the OCI runtime must let containers connect to unix sockets that are mounted into them; for runsc: runtimeArgs [\"--host-uds=open\"] in /etc/docker/daemon.json"

// run has the engine make and start the container. The engine finishes what it
// was asked for, whether anybody waits or not: so this waits for it, and Destroy
// for this.
func (d *Driver) run(ctx context.Context, s *sandbox, img images.Image, config *container.Config, host *container.HostConfig) error {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	// What is known of a request that failed: whether there was an engine to get
	// it, and whether that has answered.
	var sent, answered atomic.Bool
	create := func() error {
		sent.Store(false)
		answered.Store(false)
		traced := httptrace.WithClientTrace(call, &httptrace.ClientTrace{
			GotConn:              func(httptrace.GotConnInfo) { sent.Store(true) },
			GotFirstResponseByte: func() { answered.Store(true) },
		})
		r, err := d.client.ContainerCreate(traced, client.ContainerCreateOptions{Config: config, HostConfig: host, Name: d.name(s.id)})
		if err == nil {
			s.container = r.ID
			close(s.made)
		}
		return err
	}
	err := create()
	if cerrdefs.IsNotFound(err) {
		if err := d.load(ctx, img); err != nil {
			s.refused = true
			return err
		}
		call, cancel = context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
		defer cancel()
		err = create()
	}
	if err != nil {
		s.taken = cerrdefs.IsConflict(err)
		s.refused = s.taken || !sent.Load()
		if sent.Load() && !answered.Load() {
			s.unclear = time.Now()
		}
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, err = d.client.ContainerStart(call, s.container, client.ContainerStartOptions{})
	return err
}

// explainStart makes an error of the engine's while it made or started the
// container.
func (d *Driver) explainStart(s *sandbox, err error) error {
	var known *hearth.Error
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled):
		return err
	case s.taken:
		return errLeft(s.id)
	}
	return d.explain("start sandbox "+s.id, err)
}

// furnish makes what the sandbox needs in its directory and listens for its
// helper.
func (d *Driver) furnish(s *sandbox) (*net.UnixListener, error) {
	uid := strconv.FormatUint(uint64(d.users+s.user), 10)
	for name, content := range map[string]string{
		"passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nsandbox:x:" + uid + ":" + uid + ":sandbox:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":  "root:x:0:\nsandbox:x:" + uid + ":\nnogroup:x:65534:\n",
	} {
		file := filepath.Join(s.dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return nil, err
		}
		if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
			return nil, err
		}
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // its parent is closed
		return nil, err
	}
	if err := s.slots.Make(); err != nil {
		return nil, err
	}
	return listen(s.dir)
}

// container describes the sandbox to the engine.
func (d *Driver) container(s *sandbox, spec driver.Spec, img images.Image, f *facts) (*container.Config, *container.HostConfig) {
	user := strconv.FormatUint(uint64(d.users+s.user), 10)
	config := &container.Config{
		Hostname: "sandbox", User: user + ":" + user, Image: img.Ref, WorkingDir: "/",
		Entrypoint: []string{helperPath}, Cmd: []string{}, StopSignal: "SIGKILL",
		// For the helper only: the guest's variables come with the plan.
		Env:    []string{"GOMAXPROCS=1", "GOGC=off", "GOTRACEBACK=none"},
		Labels: map[string]string{},
		// An OCI runtime that uses the kernel's namespaces makes one with loopback by
		// itself. For a network of the kind none the engine would start a program of
		// its own in each container, which takes as long as all the rest.
		NetworkDisabled: d.enters(f),
	}
	maps.Copy(config.Labels, spec.Labels)
	config.Labels[labelOwner], config.Labels[labelSandbox] = d.owner, s.id

	l, no := spec.Limits, false
	host := &container.HostConfig{
		NetworkMode: "none", IpcMode: "none", CgroupnsMode: "private", ReadonlyRootfs: true, Init: &no,
		CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges:true"},
		LogConfig:     container.LogConfig{Type: "none"},
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		OomScoreAdj:   500, // the host's own programs outlive sandboxes
		Runtime:       d.runtime,
		Resources:     resources(l),
	}
	if f.selinux { // what it would take to label every mount is left to nobody
		host.SecurityOpt = append(host.SecurityOpt, "label=disable")
	}
	if !d.enters(f) {
		// Without one file system for all places, each gets its part.
		host.IpcMode, host.ShmSize = "private", l.Disk/4
		host.Tmpfs = map[string]string{
			"/tmp":     fmt.Sprintf("rw,nosuid,nodev,exec,mode=1777,size=%d", l.Disk/2),
			"/var/tmp": fmt.Sprintf("rw,nosuid,nodev,exec,mode=1777,size=%d", l.Disk/4),
		}
		for _, dir := range shared { // something empty takes its place
			host.Tmpfs[dir] = "rw,nosuid,nodev,noexec,mode=0555,size=4k"
		}
	}
	bind := func(source, target string) {
		host.Mounts = append(host.Mounts, mount.Mount{
			Type: mount.TypeBind, Source: source, Target: target, ReadOnly: true,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		})
	}
	etc := filepath.Join(d.dir, etcDir)
	bind(d.helper, helperPath)
	bind(s.dir, runPath)
	bind(filepath.Join(s.dir, "passwd"), "/etc/passwd")
	bind(filepath.Join(s.dir, "group"), "/etc/group")
	bind(filepath.Join(etc, "hosts"), "/etc/hosts")
	bind(filepath.Join(etc, "hostname"), "/etc/hostname")
	bind(filepath.Join(etc, "resolv."+string(cmp.Or(spec.Egress, hearth.EgressNone))), "/etc/resolv.conf")
	for _, m := range spec.Mounts {
		bind(m.Source, m.Target)
	}
	return config, host
}

// resources tells the engine the limits of a container.
func resources(l driver.Limits) container.Resources {
	pids := int64(l.PIDs + cgroup.HelperTasks)
	return container.Resources{
		Memory: l.Memory, MemorySwap: l.Memory, // no swap
		CPUPeriod: cgroup.Period, CPUQuota: cgroup.Quota(l.CPU), PidsLimit: &pids,
	}
}

type rlimit struct {
	number     int
	soft, hard uint64
}

// rlimits are a second line behind the control groups.
func rlimits(l driver.Limits) []rlimit {
	// A core_pattern that names a program runs it as the host's root whatever
	// the limit is, except for a limit of 1.
	core := uint64(0)
	if b, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err == nil && strings.HasPrefix(string(b), "|") {
		core = 1
	}
	tasks := uint64(l.PIDs + cgroup.HelperTasks)
	return []rlimit{
		{unix.RLIMIT_CORE, core, core},
		{unix.RLIMIT_NOFILE, 4096, 65536},
		{unix.RLIMIT_MEMLOCK, 64 << 10, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0, 0},
		{unix.RLIMIT_NPROC, tasks, tasks},
	}
}

// finish makes in the container, whose helper waits, what the engine cannot,
// and has the guest started.
func (d *Driver) finish(ctx context.Context, s *sandbox, spec driver.Spec, f *facts, env []string) error {
	pid, err := peer(s.control)
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "look at the container of sandbox %s: %w", s.id, err)
	}
	s.pid = pid
	<-s.made // it runs, so it was
	s.group, s.grouped = cgroup.Of(pid, s.container)
	if d.enters(f) {
		if err := ownNetwork(pid); err != nil {
			return hearth.Errorf(hearth.CodeUnavailable, "look at the network of sandbox %s: %w", s.id, err)
		}
		targets := []string{helperPath, runPath}
		for _, m := range spec.Mounts {
			targets = append(targets, m.Target)
		}
		if err := mountInside(pid, spec.Limits.Disk, targets); err != nil {
			return hearth.Errorf(hearth.CodeUnavailable, "finish the file systems of sandbox %s: %w", s.id, err).
				WithHint("Docker must run on the same host as hearth, with Linux 5.12 or newer")
		}
	}
	if spec.Egress == hearth.EgressInternet {
		if err := d.attach(pid, s); err != nil {
			return explainAttach(err)
		}
	}
	files, inside, err := s.descriptors()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the stream of sandbox %s: %w", s.id, err)
	}
	p := &plan{}
	p.step('f', inside...)
	// A batch task does not preempt whoever wakes it: see the native driver.
	p.step('S', strconv.Itoa(unix.SCHED_BATCH))
	for _, l := range rlimits(spec.Limits) {
		p.step('i', strconv.Itoa(l.number), strconv.FormatUint(l.soft, 10), strconv.FormatUint(l.hard, 10))
	}
	p.list('e', env)
	p.list('a', spec.Command)
	p.step('w', "/tmp")
	p.step('s', string(d.filter)) // on top of the engine's own
	p.step('x')
	return s.begin(ctx, p, files)
}
