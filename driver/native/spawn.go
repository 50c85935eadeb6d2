package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver/egress"
)

// Messages of the helper; see init/main.go.
const (
	msgCloned    = 'P'
	msgAssembled = 'A'
	msgStarted   = 'S'
	msgExit      = 'X'
	msgTUN       = 'T'
	msgError     = 'E'
)

// socketPair returns two connected stream sockets.
func socketPair(name string) (host, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// fileConn turns a socket into a connection and closes f.
func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// spawn starts the helper in the sandbox's group and new namespaces. The
// caller frees what s then holds, also after an error.
func (d *Driver) spawn(s *sandbox) error {
	var inside []*os.File // the helper's descriptors, from 0
	defer func() {
		for _, f := range inside {
			_ = f.Close()
		}
	}()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	inside = append(inside, null)
	for _, w := range []io.Writer{s.stdout, s.stderr} {
		if w == nil {
			f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			inside = append(inside, f)
			continue
		}
		r, f, err := os.Pipe()
		if err != nil {
			return err
		}
		inside = append(inside, f)
		s.output.add(r, w)
	}
	host, guest, err := socketPair("guest")
	if err != nil {
		return err
	}
	inside = append(inside, guest)
	if s.stream, err = fileConn(host); err != nil {
		return err
	}
	host, guest, err = socketPair("control")
	if err != nil {
		return err
	}
	inside = append(inside, guest)
	if s.control, err = fileConn(host); err != nil {
		return err
	}

	var first *os.Process
	attr := &syscall.SysProcAttr{}
	err = s.group.Spawn(attr, func() (err error) {
		first, err = os.StartProcess(d.helperPath, []string{"init"}, &os.ProcAttr{
			Dir:   "/",
			Env:   []string{"GOMAXPROCS=1", "GOGC=off", "GOTRACEBACK=none"},
			Files: inside,
			Sys:   attr,
		})
		return err
	})
	if err != nil {
		return explainClone(err)
	}
	if s.zygote != nil {
		s.inside, inside = inside[:4], inside[4:]
	}
	for i := range inside { // so that the socket ends with the helper
		_ = inside[i].Close()
	}
	pid, err := s.cloned()
	if err != nil {
		_ = first.Kill()
	}
	go func() { _, _ = first.Wait() }() // it has done its work
	if err != nil {
		return err
	}
	if s.process, err = os.FindProcess(pid); err != nil {
		return err
	}
	if err := d.mapUser(s, pid); err != nil {
		go s.watch()
		return explainClone(err)
	}
	return nil
}

// cloned waits for the helper to have cloned itself into the namespaces. It
// does not end early, as then nobody would know which process to reap.
func (s *sandbox) cloned() (pid int, err error) {
	_ = s.control.SetReadDeadline(time.Now().Add(cloneTimeout))
	defer func() { _ = s.control.SetReadDeadline(time.Time{}) }()
	kind, payload, _, err := readMessage(s.control)
	switch {
	case err != nil:
		return 0, fmt.Errorf("wait for the sandbox's first process: %w", err)
	case kind == msgCloned && len(payload) == 4:
		return int(binary.LittleEndian.Uint32(payload)), nil
	case kind == msgError && len(payload) >= 5:
		return 0, explainClone(syscall.Errno(binary.LittleEndian.Uint32(payload[1:])))
	}
	return 0, errors.New("the sandbox's first process said something unexpected")
}

// cloneTimeout is for a host that hardly moves: it takes about a millisecond.
const cloneTimeout = 20 * time.Second

// mapUser says which of the host's users the sandbox's only one is.
func (d *Driver) mapUser(s *sandbox, pid int) error {
	dir := "/proc/" + strconv.Itoa(pid)
	uid, gid := os.Geteuid(), os.Getegid()
	if d.root {
		// Nothing inside is a user of the host, and root less than any.
		uid = int(d.users.base + s.user)
		gid = uid
	} else if err := os.WriteFile(dir+"/setgroups", []byte("deny"), 0); err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/uid_map", []byte(guestUser+" "+strconv.Itoa(uid)+" 1"), 0); err != nil {
		return err
	}
	return os.WriteFile(dir+"/gid_map", []byte(guestUser+" "+strconv.Itoa(gid)+" 1"), 0)
}

// explainClone says what the host forbids and how to allow it.
func explainClone(err error) error {
	e := hearth.Errorf(hearth.CodeUnavailable, "start a sandbox: %w", err)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return e.WithHint("%s", userNamespaceRemedy())
	case errors.Is(err, unix.ENOSPC):
		return e.WithHint("raise the number of namespaces: sysctl -w user.max_user_namespaces=31000 (likewise max_net_namespaces, max_mnt_namespaces, max_pid_namespaces)")
	case errors.Is(err, unix.EAGAIN):
		return e.WithHint("the host is out of processes: raise pids.max or ulimit -u")
	case errors.Is(err, unix.ENOMEM):
		return e.WithHint("the host is out of memory: give functions less memory, or the host more")
	}
	return e
}

// start sends the plan and waits until the guest's process was started.
func (s *sandbox) start(ctx context.Context, p *plan) error {
	go s.watch()
	if err := s.send(ctx, p); err != nil {
		return err
	}
	return s.wait(ctx)
}

// wait returns when the guest's process was started or cannot be.
func (s *sandbox) wait(ctx context.Context) error {
	select {
	case err := <-s.started:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send sends the plan, and writes the state file meanwhile.
func (s *sandbox) send(ctx context.Context, p *plan) error {
	stop := context.AfterFunc(ctx, func() { _ = s.control.SetWriteDeadline(time.Now()) })
	_, err := s.control.Write(p.message())
	stop()
	if rerr := s.driver.remember(s.id, s.process.Pid); rerr != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "write the state of sandbox %s: %w", s.id, rerr)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select { // a helper that failed has said why
	case err := <-s.started:
		return err
	case <-s.done:
	}
	return hearth.Errorf(hearth.CodeUnavailable, "the sandbox's first process ended early: %w", err)
}

// watch reads the helper's messages until it has ended, then tells everyone.
func (s *sandbox) watch() {
	status, exited := s.messages()
	state, err := s.process.Wait()
	if !exited && err == nil {
		status, _ = state.Sys().(syscall.WaitStatus)
	}
	select {
	case s.started <- hearth.Errorf(hearth.CodeUnavailable, "the sandbox's first process ended early (%v)", state):
	default: // it had started, or failed with a reason
	}
	oom := s.group.OOMKilled()
	s.output.drain()
	s.mu.Lock()
	s.exit.OOM, s.exit.Destroyed = oom, s.destroying && !exited
	if status.Signaled() {
		s.exit.Code, s.exit.Signal = -1, int(status.Signal())
	} else {
		s.exit.Code = status.ExitStatus()
	}
	s.mu.Unlock()
	close(s.done)
}

// messages handles what the helper sends, until the socket ends. It returns
// the guest's wait status if that was among it.
func (s *sandbox) messages() (status syscall.WaitStatus, exited bool) {
	for {
		kind, payload, file, err := readMessage(s.control)
		if err != nil {
			return status, exited
		}
		switch {
		case kind == msgStarted && len(payload) == 24:
			for i := range s.phases {
				s.phases[i] = time.Duration(binary.LittleEndian.Uint64(payload[8*i:]))
			}
			s.started <- nil
		case kind == msgAssembled:
			s.assembled <- struct{}{}
		case kind == msgExit && len(payload) == 4:
			status, exited = syscall.WaitStatus(binary.LittleEndian.Uint32(payload)), true
		case kind == msgError && len(payload) >= 5:
			s.started <- s.explainStep(payload[0], syscall.Errno(binary.LittleEndian.Uint32(payload[1:])), string(payload[5:]))
		case kind == msgTUN && file != nil:
			s.connect(file)
			file = nil
		}
		if file != nil {
			_ = file.Close()
		}
	}
}

// connect gives the sandbox its way to the internet.
func (s *sandbox) connect(tun *os.File) {
	stack, err := egress.Start(tun, egress.Options{Log: s.driver.log, Host: &s.driver.network, Allow: s.allow})
	if err != nil {
		s.driver.log.Error("native: no network for a sandbox", "sandbox", s.id, "err", err)
		return
	}
	s.mu.Lock()
	gone := s.destroying
	if !gone {
		s.egress = stack
	}
	s.mu.Unlock()
	if gone {
		_ = stack.Close()
	}
}

// explainStep makes an error of a step that failed.
func (s *sandbox) explainStep(op byte, errno syscall.Errno, what string) error {
	code, hint := hearth.CodeUnavailable, ""
	switch {
	case op == 'x' && (errno == unix.ENOENT || errno == unix.EACCES || errno == unix.ENOTDIR || errno == unix.ENOEXEC):
		code, hint = hearth.CodeInvalid, "the command must be an executable file inside the sandbox, by its absolute path"
		what = fmt.Sprintf("%q", s.argv0)
	case op == 'o' && (errno == unix.ENOENT || errno == unix.ENOTDIR):
		code, hint = hearth.CodeInvalid, "the directory does not exist on the host"
	case op == 'O':
		code, hint = hearth.CodeUnsupported, "load the tun module and make "+tunPath+" readable and writable for the user that runs hearth, or use egress: none"
	case op == 'p':
		hint = "inside of a container, /proc must not be masked: docker run --security-opt systempaths=unconfined"
	case errno == unix.EPERM || errno == unix.EACCES:
		hint = userNamespaceRemedy()
	}
	return hearth.Errorf(code, "cannot %s %s: %w", stepName(op), what, errno).WithHint("%s", hint)
}

// readMessage reads one message of the helper; file is a descriptor that came
// with it.
func readMessage(c *net.UnixConn) (kind byte, payload []byte, file *os.File, err error) {
	var head [5]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for got := 0; got < len(head); {
		n, oobn, _, _, err := c.ReadMsgUnix(head[got:], oob)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if oobn > 0 {
			file = receivedFile(oob[:oobn])
		}
		if err != nil {
			return 0, nil, file, err
		}
		got += n
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > 64<<10 {
		return 0, nil, file, errors.New("message of the helper is too long")
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c, payload)
	return head[0], payload, file, err
}

func receivedFile(oob []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "tun0")
}

// userNamespaceRemedy names the setting that most likely forbids sandboxes.
func userNamespaceRemedy() string {
	for file, remedy := range map[string]string{
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
		"/proc/sys/kernel/unprivileged_userns_clone":             "sysctl -w kernel.unprivileged_userns_clone=1",
		"/proc/sys/user/max_user_namespaces":                     "sysctl -w user.max_user_namespaces=31000",
	} {
		bad := byte('0')
		if remedy[len(remedy)-1] == '0' && remedy[len(remedy)-2] == '=' {
			bad = '1'
		}
		if b, err := os.ReadFile(file); err == nil && len(b) == 2 && b[0] == bad {
			return "allow user namespaces: " + remedy
		}
	}
	return "allow user and mount namespaces; inside of a container, run it privileged"
}
