package oci

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/slots"
	"github.com/hearthrun/hearth/guest"
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	return d.make(ctx, spec, begin{verb: []string{"run"}})
}

// begin is how the runtime makes the sandbox.
type begin struct {
	// verb is the runtime's command with options of its own.
	verb []string
	// running: the guest runs already when the command has ended. Otherwise the
	// first process tells when it does.
	running bool
	// image is the root file system that a snapshot needs; empty for any.
	image string
}

// make checks the spec, finds its image and makes the sandbox.
func (d *Driver) make(ctx context.Context, spec driver.Spec, how begin) (driver.Sandbox, error) {
	spec.Limits = spec.Limits.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	img, err := d.find(ctx, spec.Runtime)
	if err != nil {
		return nil, err
	}
	if how.image != "" && how.image != img.dir {
		img.release()
		return nil, hearth.Errorf(hearth.CodeUnavailable, "the snapshot for sandbox %s was taken on another image of %s", spec.ID, spec.Runtime)
	}
	argv, bin := spec.Command, ""
	if img.interpreter != "" {
		bin = path.Dir(img.interpreter)
		if len(argv) == 0 {
			argv = guest.CommandFor(spec.Build, img.language, img.interpreter, driver.GuestDir)
		}
	}
	if len(argv) == 0 {
		img.release()
		return nil, hearth.Errorf(hearth.CodeInvalid, "the runtime %s has no guest of its own", spec.Runtime).
			WithHint("set the command to the path of a program inside the sandbox")
	}
	return d.create(ctx, spec, img, argv, bin, how)
}

// create makes a sandbox of an image, which it releases when the sandbox is
// destroyed, and at once after an error.
func (d *Driver) create(ctx context.Context, spec driver.Spec, img image, argv []string, bin string, how begin) (driver.Sandbox, error) {
	s := d.newSandbox(spec.ID)
	s.argv0, s.limits, s.stdout, s.stderr, s.image, s.release = argv[0], spec.Limits, spec.Stdout, spec.Stderr, img.dir, img.release
	if err := d.usable(); err != nil {
		img.release()
		return nil, err
	}
	if err := d.reserve(s); err != nil {
		img.release()
		return nil, err
	}
	defer func() {
		d.mu.Lock()
		s.creating = false
		d.mu.Unlock()
	}()
	s.slots = slots.New(d.slotPath(s.id), spec.Slots)
	spec.Mounts = append(slices.Clone(spec.Mounts), s.slots.Mounts()...)
	openFiles, noCores := hostLimits()
	p := plan{
		spec: spec, root: rootPath(s.id), argv: argv, users: d.users + usersOne*s.slot,
		env:       driver.GuestEnvironment(img.env, spec.Env, bin),
		group:     d.cgroups.Path(s.id),
		openFiles: openFiles, noCores: noCores,
	}
	if err := d.bring(ctx, s, p, img.dir, how); err != nil {
		if derr := s.Destroy(ctx); derr != nil {
			d.log.Error("oci: a sandbox that failed to start remains", "sandbox", s.id, "err", derr)
		}
		return nil, err
	}
	return d.offer(s), nil
}

// usable returns an error if nothing could be started.
func (d *Driver) usable() error {
	if os.Geteuid() != 0 {
		return hearth.Errorf(hearth.CodeUnsupported, "%s needs root", d.dialect).WithHint("%s", rootRemedy)
	}
	if d.binary == "" {
		return hearth.Errorf(hearth.CodeUnsupported, "%s is not installed", d.program()).WithHint("%s", d.remedy())
	}
	return nil
}

// bring starts the reserved sandbox. After an error the caller destroys it.
func (d *Driver) bring(ctx context.Context, s *sandbox, p plan, image string, how begin) error {
	unavailable := func(what string, err error) error {
		return hearth.Errorf(hearth.CodeUnavailable, "%s of sandbox %s: %w", what, s.id, err)
	}
	if err := os.Mkdir(d.bundle(s.id), 0o700); err != nil {
		return unavailable("make the directory", err)
	}
	if err := s.slots.Make(); err != nil {
		return unavailable("make the slots", err)
	}
	group, err := d.cgroups.Create(s.id, groupLimits(d.dialect, p.spec.Limits))
	if errors.Is(err, fs.ErrExist) {
		return errLeft(s.id)
	}
	if err != nil {
		return unavailable("make the control group", err)
	}
	s.group = group
	layer, err := d.layers.get(policy(p.spec), p.spec.Mounts)
	if err != nil {
		return unavailable("lay out the root file system", err)
	}
	if policy(p.spec) == hearth.EgressInternet {
		ns, err := d.connect(s, p.spec.Allow)
		if err != nil {
			return err
		}
		defer ns.Close()
		p.network = namespacePath(ns)
	}
	config, err := json.Marshal(p.config(d.dialect))
	if err != nil {
		return unavailable("write the configuration", err)
	}
	if err := os.WriteFile(filepath.Join(d.bundle(s.id), "config.json"), config, 0o600); err != nil {
		return unavailable("write the configuration", err)
	}
	if err := d.start(s, p, layer, image, how); err != nil {
		return unavailable("start the runtime", err)
	}
	go s.watch()
	go func() {
		defer close(s.unmounted)
		<-s.runtime.done // only then all mounts of the sandbox are its own
		_ = d.mounts.do(func() error {
			unmountRoot(s.id)
			return nil
		})
	}()
	if how.running {
		select {
		case <-s.runtime.done:
			if s.runtime.wait() == nil {
				return s.limitCPU()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case err := <-s.started:
		if err != nil {
			return err
		}
		return s.limitCPU()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// limitCPU ends the start, which groupLimits gives more.
func (s *sandbox) limitCPU() error {
	return s.group.Resize(s.limits)
}

// connect gives the sandbox its way to the internet, in a network namespace
// that the caller closes.
func (d *Driver) connect(s *sandbox, allow []string) (*os.File, error) {
	unsupported := func(err error) error {
		return hearth.Errorf(hearth.CodeUnsupported, "connect sandbox %s: %w", s.id, err).
			WithHint("load the tun module and make %s readable and writable for the user that runs hearth, or use egress: none", egress.TUNPath)
	}
	ns, err := egress.NewNamespace()
	if err != nil {
		return nil, unsupported(err)
	}
	tun, err := egress.Attach(ns)
	if err == nil {
		s.egress, err = egress.Start(tun, egress.Options{Log: d.log, Host: &d.network, Allow: allow})
	}
	if err != nil {
		_ = ns.Close()
		return nil, unsupported(err)
	}
	return ns, nil
}

// start mounts what the sandbox sees and starts the runtime.
func (d *Driver) start(s *sandbox, p plan, layer, image string, how begin) error {
	f := &files{}
	defer f.close()
	if err := f.open(d.dialect, s, how, d.filter); err != nil {
		return err
	}
	args := append(d.global(s.id, p), how.verb...)
	args = append(args, "--detach", "--bundle", d.bundle(s.id))
	if d.dialect == Runc {
		args = append(args, "--preserve-fds", "2")
	}
	// Not with a context: what was begun is undone by Destroy.
	cmd := exec.Command(d.binary, append(args, s.id)...) //nolint:noctx // see above
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = f.inside[0], f.inside[1], f.inside[2], f.inside[3:]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return d.mounts.do(func() error {
		err := mountRoot(s.id, layer, image)
		if err == nil && d.dialect == Runc {
			err = mountScratch(s.id, p.spec.Limits.Disk)
		}
		if err == nil && d.dialect == GVisor {
			err = s.group.Spawn(cmd.SysProcAttr, cmd.Start)
		} else if err == nil {
			err = cmd.Start() // it makes its child join the group
		}
		if err != nil {
			unmountRoot(s.id)
			return err
		}
		s.runtime = supervise(cmd)
		return nil
	})
}

// global are the runtime's options before its command.
func (d *Driver) global(id string, p plan) []string {
	if d.dialect == Runc {
		return []string{"--root", filepath.Join(d.dir, stateDir), "--log", d.logPath(id), "--log-format", "json"}
	}
	network := "none"
	if p.network != "" {
		network = "sandbox"
	}
	return []string{
		"--root=" + filepath.Join(d.dir, stateDir), "--platform=systrap", "--network=" + network,
		"--ignore-cgroups", // the group it was started in is the limit
		"--overlay2=none",  // the root is read-only
		"--host-uds=none", "--host-fifo=none",
		// With it runsc would let the device write checksums where they are behind
		// an Ethernet header, which a TUN device has not: into data and options.
		"--gso=false",
	}
}

func (d *Driver) logPath(id string) string { return filepath.Join(d.bundle(id), "log") }

// files are the descriptors of a new sandbox.
type files struct {
	inside []*os.File // of the runtime, from 0; closed once it has them
}

func (f *files) close() {
	for _, file := range f.inside {
		_ = file.Close()
	}
}

// open makes them, and gives s the other ends. See init/main.go for their order.
func (f *files) open(dialect Dialect, s *sandbox, how begin, filter []byte) (err error) {
	var stream, control, null *os.File
	if s.stream, stream, err = socketPair("guest"); err != nil {
		return err
	}
	defer f.keep(&stream)
	if s.control, control, err = socketPair("control"); err != nil {
		return err
	}
	defer f.keep(&control)
	if dialect == GVisor {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.logs = []*os.File{r}
		f.inside = append(f.inside, stream, control, w)
		stream, control = nil, nil
		if how.running {
			s.copyOutput()
		}
		return nil
	}
	// The first process waits for it; the socket has room.
	if _, err := s.control.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(filter)))); err != nil {
		return err
	}
	if _, err := s.control.Write(filter); err != nil {
		return err
	}
	if null, err = os.Open(os.DevNull); err != nil {
		return err
	}
	f.inside = append(f.inside, null)
	for _, to := range []io.Writer{s.stdout, s.stderr} {
		if to == nil {
			w, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			f.inside = append(f.inside, w)
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.logs = append(s.logs, r)
		f.inside = append(f.inside, w)
	}
	f.inside = append(f.inside, stream, control)
	stream, control = nil, nil
	return nil
}

// keep remembers a file that did not get its place, to be closed.
func (f *files) keep(file **os.File) {
	if *file != nil {
		f.inside = append(f.inside, *file)
	}
}

// copyOutput begins to deliver what the guest writes. Before, the pipes may
// hold what the runtime says of an error.
func (s *sandbox) copyOutput() {
	logs := s.logs
	s.logs = nil
	if s.driver.dialect == GVisor {
		for _, r := range logs {
			s.output.add(r, s.output.records(s.stdout, s.stderr))
		}
		return
	}
	for _, w := range []io.Writer{s.stdout, s.stderr} {
		if w != nil && len(logs) > 0 {
			s.output.add(logs[0], s.output.plain(w))
			logs = logs[1:]
		}
	}
}

// socketPair returns two connected stream sockets.
func socketPair(name string) (host *net.UnixConn, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	guest = os.NewFile(uintptr(fds[1]), name)
	f := os.NewFile(uintptr(fds[0]), name)
	defer f.Close()
	c, err := net.FileConn(f)
	if err == nil {
		err = unix.SetNonblock(fds[1], false)
	}
	if err != nil {
		_ = guest.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), guest, nil
}

// command is a program of the runtime that was started.
type command struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

func supervise(cmd *exec.Cmd) *command {
	c := &command{cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c
}

func (c *command) wait() error {
	<-c.done
	return c.err
}

func (c *command) kill() {
	select {
	case <-c.done:
	default:
		_ = c.cmd.Process.Kill()
	}
}

// explainRuntime makes an error of what the runtime says about its failure.
func (d *Driver) explainRuntime(s *sandbox, err error) error {
	text := ""
	if d.dialect == Runc {
		text = lastError(d.logPath(s.id))
	}
	for _, r := range s.logs {
		if d.dialect == GVisor {
			_ = r.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			b, _ := io.ReadAll(io.LimitReader(r, 4<<10))
			text = strings.TrimSpace(string(b))
		}
		_ = r.Close()
	}
	s.logs = nil
	e := hearth.Errorf(hearth.CodeUnavailable, "%s could not start sandbox %s: %s: %w", d.program(), s.id, cmp.Or(text, "it said nothing"), err)
	if strings.Contains(text, "systrap") {
		return e.WithHint("%s", d.remedy())
	}
	return e
}

// lastError returns the last message of a log in JSON.
func lastError(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	text := ""
	for line := range strings.Lines(string(b)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level != "" {
			text = fmt.Sprintf("%.1000s", entry.Msg)
		}
	}
	return text
}
