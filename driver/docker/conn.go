package docker

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
)

// Messages of the helper; see init/main.go.
const (
	msgStarted = 'S'
	msgExit    = 'X'
	msgError   = 'E'
)

// peer returns the process at the other end: the helper, or what an OCI runtime
// with a kernel of its own has connected for it.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	if cred.Pid <= 0 {
		return 0, errors.New("it is in another process id namespace: hearth must run where Docker runs")
	}
	return int(cred.Pid), nil
}

// descriptors makes the guest's end of the stream and of its output. inside
// says what each becomes there. The caller closes the files.
func (s *sandbox) descriptors() (files []*os.File, inside []string, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	files, inside = append(files, os.NewFile(uintptr(fds[1]), "guest")), append(inside, "3")
	ours := os.NewFile(uintptr(fds[0]), "stream")
	c, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return files, inside, err
	}
	s.mu.Lock()
	s.stream = c.(*net.UnixConn)
	s.mu.Unlock()
	for i, w := range []io.Writer{s.stdout, s.stderr} {
		if w == nil {
			continue // the helper has a /dev/null
		}
		r, f, err := os.Pipe()
		if err != nil {
			return files, inside, err
		}
		files, inside = append(files, f), append(inside, strconv.Itoa(i+1))
		s.output.add(r, w)
	}
	return files, inside, nil
}

// begin sends the plan with the descriptors and waits until the guest's process
// was started.
func (s *sandbox) begin(ctx context.Context, p *plan, files []*os.File) error {
	s.mu.Lock()
	s.watched = true
	s.mu.Unlock()
	go s.watch()
	stop := context.AfterFunc(ctx, func() { _ = s.control.SetWriteDeadline(time.Now()) })
	defer stop()
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	message := p.message()
	n, _, err := s.control.WriteMsgUnix(message, unix.UnixRights(fds...), nil)
	if err == nil && n < len(message) {
		_, err = s.control.Write(message[n:])
	}
	for _, f := range files { // so that their other ends see the guest's end
		_ = f.Close()
	}
	if err == nil {
		return canceledOr(ctx, s.started)
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

// canceledOr waits for a result or the end of ctx.
func canceledOr(ctx context.Context, c <-chan error) error {
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// messages handles what the helper sends, until the guest has ended or the
// connection has. It returns the guest's wait status if that was among it.
func (s *sandbox) messages() (status syscall.WaitStatus, exited bool) {
	for {
		kind, payload, err := readMessage(s.control)
		if err != nil {
			return status, false
		}
		switch {
		case kind == msgStarted:
			select {
			case s.started <- nil:
			default:
			}
		case kind == msgExit && len(payload) == 4:
			return syscall.WaitStatus(binary.LittleEndian.Uint32(payload)), true
		case kind == msgError && len(payload) >= 5:
			select {
			case s.started <- s.explainStep(payload[0], syscall.Errno(binary.LittleEndian.Uint32(payload[1:])), string(payload[5:])):
			default:
			}
		}
	}
}

// explainStep makes an error of a step that failed.
func (s *sandbox) explainStep(op byte, errno syscall.Errno, what string) error {
	if op == 'x' {
		what = fmt.Sprintf("%q", s.argv0)
		switch errno {
		case unix.ENOENT, unix.EACCES, unix.ENOTDIR, unix.ENOEXEC:
			return hearth.Errorf(hearth.CodeInvalid, "cannot %s %s: %w", stepName(op), what, errno).
				WithHint("the command must be an executable file inside the sandbox, by its absolute path")
		}
	}
	return hearth.Errorf(hearth.CodeUnavailable, "cannot %s %s: %w", stepName(op), what, errno)
}

// readMessage reads one message of the helper.
func readMessage(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > 64<<10 {
		return 0, nil, errors.New("message of the helper is too long")
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return head[0], payload, err
}
