package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/slots"
)

// processDriver keeps the contract as far as a plain process can, and isolates
// nothing: it is what the broken drivers are made from. Its sandboxes are
// process groups; a file each in dir remembers them over a restart.
type processDriver struct {
	dir, owner string
	broken     string // what to do wrong; see TestSuiteFindsBrokenDrivers

	mu        sync.Mutex
	sandboxes map[string]*process
}

type process struct {
	d     *processDriver
	id    string
	pid   int
	file  string
	slots *slots.Slots
	conn  net.Conn // nil when it came from List
	done  chan struct{}
	state *os.ProcessState
	group sync.WaitGroup // goroutines that copy output

	mu        sync.Mutex
	dialed    bool
	destroyed bool
	ended     bool // by Destroy
	waits     int
}

func newProcessDriver(broken string) Config {
	return Config{
		New: func(_ testing.TB, dir, owner string) driver.Driver {
			return &processDriver{dir: dir, owner: owner, broken: broken, sandboxes: map[string]*process{}}
		},
		Cycles: 10,
	}
}

func (d *processDriver) Probe(context.Context) (driver.Info, error) {
	info := driver.Info{Name: "process", Summary: "a process without isolation", Works: true}
	switch d.broken {
	case "untruthful probe":
		info.Works, info.Missing = false, nil
	case "claims all limits", "process left":
		info.MemoryLimit, info.CPULimit, info.PIDLimit, info.Internet = true, true, true, true
	}
	return info, nil
}

func (d *processDriver) Close() error { return nil }

func (d *processDriver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil && d.broken != "create ignores cancellation" {
		return nil, &hearth.Error{Code: hearth.CodeCanceled, Message: "create was canceled", Err: err}
	}
	if d.broken == "invalid ids allowed" && spec.ID == "ABC" {
		spec.ID = "abc"
	}
	if len(spec.Command) == 0 || spec.ID == "" || spec.ID != filepath.Base(spec.ID) || strings.ToLower(spec.ID) != spec.ID || len(spec.ID) > 40 {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the spec is not valid").WithHint("read the contract")
	}
	if spec.Runtime != "provided" {
		return nil, hearth.Errorf(hearth.CodeNotFound, "there is no runtime %q", spec.Runtime).WithHint("use provided")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.sandboxes[spec.ID]; ok && d.broken != "duplicate id allowed" {
		return nil, hearth.Errorf(hearth.CodeConflict, "sandbox %s exists", spec.ID)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	filled := slots.New(filepath.Join(d.dir, spec.ID+"-slots"), spec.Slots)
	if err := filled.Make(); err != nil {
		return nil, err
	}
	for _, m := range filled.Mounts() { // all sandboxes see the same file system
		if err := errors.Join(os.MkdirAll(filepath.Dir(m.Target), 0o755), os.RemoveAll(m.Target), os.Symlink(m.Source, m.Target)); err != nil {
			return nil, err
		}
	}
	command := spec.Command[0]
	for _, m := range spec.Mounts {
		command = strings.Replace(command, m.Target, m.Source, 1)
	}
	work := filepath.Join(d.dir, spec.ID+"-tmp")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.Command(command, spec.Command[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + work, "LANG=C.UTF-8", "TMPDIR=" + work}
	if d.broken == "environment leaks" {
		cmd.Env = append(os.Environ(), cmd.Env...)
	}
	for k, v := range spec.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, "HEARTH_FD=3") // the last one counts
	cmd.Dir = work
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &process{d: d, id: spec.ID, file: filepath.Join(d.dir, d.owner+"."+spec.ID), slots: filled, conn: conn, done: make(chan struct{})}
	var ends []*os.File
	for _, o := range []struct {
		w   io.Writer
		dst *io.Writer
	}{{spec.Stdout, &cmd.Stdout}, {spec.Stderr, &cmd.Stderr}} {
		if o.w == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		*o.dst = w
		ends = append(ends, w)
		p.group.Go(func() {
			if d.broken == "output lost" {
				_, _ = io.CopyN(io.Discard, r, 1000)
			}
			_, _ = io.Copy(o.w, r)
			if d.broken == "output after destroy" {
				<-time.After(20 * time.Millisecond)
				_, _ = o.w.Write([]byte("late"))
			}
			r.Close()
		})
	}
	err = cmd.Start()
	for _, f := range ends {
		f.Close()
	}
	if err != nil {
		conn.Close()
		os.RemoveAll(work)
		if d.broken == "failed create leaves a file" {
			_ = os.WriteFile(p.file, nil, 0o600)
		}
		return nil, hearth.Errorf(hearth.CodeInvalid, "start: %w", err).WithHint("check the command")
	}
	p.pid = cmd.Process.Pid
	record, _ := json.Marshal(p.pid)
	if err := os.WriteFile(p.file, record, 0o600); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		p.state = cmd.ProcessState
		close(p.done)
	}()
	d.sandboxes[spec.ID] = p
	return p, nil
}

func (d *processDriver) List(context.Context) ([]driver.Sandbox, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pattern := d.owner + ".*"
	if d.broken == "lists others" {
		pattern = "owner-*.*"
	}
	dir := d.dir
	if d.broken == "lists others" {
		dir = filepath.Join(filepath.Dir(d.dir), "*")
	}
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	var list []driver.Sandbox
	if d.broken == "list is empty" || d.broken == "forgets over a restart" && len(d.sandboxes) == 0 {
		return nil, err
	}
	for _, f := range files {
		_, id, _ := strings.Cut(filepath.Base(f), ".")
		if p, ok := d.sandboxes[id]; ok {
			list = append(list, p)
			continue
		}
		p := &process{d: d, id: id, file: f, slots: slots.New(filepath.Join(d.dir, id+"-slots"), nil), done: make(chan struct{})}
		b, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(b, &p.pid) != nil {
			continue
		}
		list = append(list, p)
	}
	return list, err
}

func (p *process) ID() string { return p.id }

func (p *process) Dial(context.Context) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil || p.destroyed || p.dialed && p.d.broken != "second dial allowed" {
		return nil, hearth.Errorf(hearth.CodeConflict, "the stream of sandbox %s is taken", p.id)
	}
	p.dialed = true
	return p.conn, nil
}

func (p *process) Wait(ctx context.Context) (driver.Exit, error) {
	if p.d.broken == "wait ignores its context" {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-p.done:
	default:
		select {
		case <-p.done:
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	x := driver.Exit{Destroyed: p.ended && p.d.broken != "destroyed is not told"}
	if p.state != nil {
		ws := p.state.Sys().(syscall.WaitStatus)
		x.Code = p.state.ExitCode()
		if p.d.broken == "code is lost" && x.Code > 1 {
			x.Code = 1
		}
		if ws.Signaled() {
			x.Code, x.Signal = -1, int(ws.Signal())
		}
	}
	if p.waits++; p.d.broken == "exits differ" {
		x.Code += p.waits
	}
	return x, nil
}

func (p *process) Stats(context.Context) (driver.Stats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.destroyed {
		return driver.Stats{}, hearth.Errorf(hearth.CodeNotFound, "sandbox %s is destroyed", p.id)
	}
	if p.d.broken == "stats are made up" {
		return driver.Stats{Usage: driver.Usage{Memory: 1 << 20, CPU: time.Millisecond}, PIDs: 1}, nil
	}
	var s driver.Stats
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/stat")
	if err != nil {
		return s, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
	s.CPU = time.Duration(number(11)+number(12)) * 10 * time.Millisecond
	s.PIDs, s.Memory = number(17), int64(number(21))*int64(os.Getpagesize())
	return s, nil
}

func (p *process) Pause(context.Context) error {
	if p.d.broken == "pause does nothing" {
		return nil
	}
	return syscall.Kill(-p.pid, syscall.SIGSTOP)
}

func (p *process) Resume(context.Context) error { return syscall.Kill(-p.pid, syscall.SIGCONT) }

func (p *process) Mount(ctx context.Context, m driver.Mount) error {
	if p.d.broken == "mount shows nothing" {
		return nil
	}
	err := p.slots.Fill(ctx, m)
	change := func(name string, as func(string) error) {
		if name = filepath.Join(m.Target, name); err == nil {
			err = errors.Join(os.Remove(name), as(name))
		}
	}
	switch code := hearth.ErrorCode(err); {
	case p.d.broken == "second mount allowed" && code == hearth.CodeConflict,
		p.d.broken == "any target is a slot" && code == hearth.CodeInvalid,
		p.d.broken == "mount after destroy allowed" && code == hearth.CodeNotFound:
		return nil
	case p.d.broken == "links are followed":
		change("link", func(name string) error { return os.WriteFile(name, []byte("further down"), 0o444) })
	case p.d.broken == "modes are lost":
		change("program", func(name string) error { return os.WriteFile(name, nil, 0o444) })
	}
	return err
}

func (p *process) Resize(_ context.Context, to driver.Limits) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.d.broken == "any resize allowed":
	case p.destroyed:
		return hearth.Errorf(hearth.CodeNotFound, "sandbox %s is destroyed", p.id)
	default:
		_, err := driver.Limits{Memory: 96 << 20, CPU: 1, PIDs: 40, Disk: 8 << 20}.Resized(to)
		return err
	}
	return nil
}

func (p *process) Destroy(context.Context) error {
	p.mu.Lock()
	if p.destroyed && p.d.broken == "destroy is not idempotent" {
		p.mu.Unlock()
		return errors.New("no such sandbox")
	}
	if p.destroyed {
		p.mu.Unlock()
		return nil
	}
	p.destroyed = true
	select {
	case <-p.done:
	default:
		p.ended = true
	}
	p.mu.Unlock()
	if p.d.broken != "process left" {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	} else {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	if p.conn != nil {
		<-p.done
		if p.d.broken != "descriptor left" {
			p.conn.Close()
		}
		if p.d.broken != "output after destroy" {
			p.group.Wait()
		}
		if p.d.broken == "goroutine left" {
			go func() { select {} }()
		}
	}
	if p.conn == nil { // from List: nobody waits for the process
		close(p.done)
	}
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	delete(p.d.sandboxes, p.id)
	if p.d.broken == "dir grows" {
		_ = os.WriteFile(filepath.Join(p.d.dir, randomName()), nil, 0o600)
	}
	if p.d.broken != "slots left" && (p.d.broken != "slots left over a restart" || p.conn != nil) {
		if err := p.slots.Remove(); err != nil {
			return err
		}
	}
	if p.d.broken != "file left" {
		os.RemoveAll(filepath.Join(p.d.dir, p.id+"-tmp"))
	}
	if err := os.Remove(p.file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

var (
	_ driver.Driver  = (*processDriver)(nil)
	_ driver.Sandbox = (*process)(nil)
	_ driver.Pauser  = (*process)(nil)
	_ driver.Mounter = (*process)(nil)
	_ driver.Resizer = (*process)(nil)
)
