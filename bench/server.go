package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

const (
	// readyTimeout is how long a server may take to become ready.
	readyTimeout = 30 * time.Second
	// readyPoll is the time between two looks, and so the error of ReadyTime.
	readyPoll = 2 * time.Millisecond
	// drainTimeout is how long a server may take to end after SIGTERM.
	drainTimeout = 30 * time.Second
)

// Server is a hearth serve that StartServer started.
type Server struct {
	// URL is where it listens, PID its process.
	URL string
	PID int
	// DataDir is its data directory.
	DataDir string
	// ReadyTime is from the start of its process to its first 200 on /readyz.
	ReadyTime time.Duration

	cmd    *exec.Cmd // nil until started
	guard  *process  // ends the server when this process is gone; may be nil
	dir    string
	exited chan struct{}
	once   sync.Once
	err    error
}

// StartServer starts "binary serve" on a free port of 127.0.0.1 with a data
// directory of its own and returns when it is ready. args are added to the
// command line. The caller stops it; on an error nothing remains. Errors:
// CodeUnavailable with the server's last words if it does not become ready.
func StartServer(ctx context.Context, binary string, args ...string) (*Server, error) {
	dir, err := os.MkdirTemp("", "hearth-bench-")
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "make a data directory: %w", err)
	}
	return startServer(ctx, dir, binary, args...)
}

// dataDir is the data directory in that of a server.
const dataDir = "data"

// startServer is StartServer with a directory that may have a data directory in
// it. It takes over dir, also on an error.
func startServer(ctx context.Context, dir, binary string, args ...string) (*Server, error) {
	s := &Server{dir: dir, DataDir: filepath.Join(dir, dataDir), exited: make(chan struct{})}
	if err := s.start(ctx, binary, args); err != nil {
		_ = s.Stop(ctx)
		return nil, err
	}
	return s, nil
}

// start fills in s. What it has done when it fails, Stop undoes.
func (s *Server) start(ctx context.Context, binary string, args []string) error {
	// The server's own choice of a port could not be known before it says so in
	// a log line, whose wording is not an interface.
	addr, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	s.URL = "http://" + addr
	// Its words go to a file: if they went to this process and that was killed,
	// the server would die of a broken pipe instead of cleaning up.
	words, err := os.Create(filepath.Join(s.dir, "serve.log"))
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the server's log: %w", err)
	}
	defer words.Close()
	args = append([]string{"serve", "--data-dir", s.DataDir, "--listen", addr}, args...)
	cmd := exec.Command(binary, args...) //nolint:noctx // ended in order by stop, not by ctx
	cmd.Stdout, cmd.Stderr = words, words
	// Ctrl-C in a terminal reaches the whole foreground group; the server ends
	// when Stop says so, after the functions were deleted.
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "start %s: %w", binary, err)
	}
	s.cmd, s.PID = cmd, cmd.Process.Pid
	go func() {
		defer close(s.exited)
		_ = cmd.Wait()
	}()
	err = s.waitReady(ctx)
	s.ReadyTime = time.Since(begin)
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = hearth.Errorf(hearth.CodeUnavailable, "%s serve %w: %s", binary, err, lastWords(words.Name())).
			WithHint("run it by hand to see what it needs")
	}
	if pidfd < 0 { // Linux before 5.4
		return err
	}
	if err != nil {
		_ = unix.Close(pidfd)
		return err
	}
	// Only now, so as not to take part in the measurement.
	s.guard, err = startGuard(ctx, pidfd)
	return err
}

// waitReady returns when the server is ready, or why it will not be.
func (s *Server) waitReady(ctx context.Context) error {
	c, err := client.New(s.URL)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for c.Ready(ctx) != nil {
		select {
		case <-tick.C:
		case <-s.exited:
			return errors.New("ended at once")
		case <-ctx.Done():
			return fmt.Errorf("was not ready after %s", readyTimeout)
		}
	}
	return nil
}

// Stop ends the server in good order, by force if that takes too long, and
// removes its data. It goes on after ctx has ended, and may be called twice.
// Errors: CodeInternal if force was needed or the data remains.
func (s *Server) Stop(ctx context.Context) error {
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if s.cmd != nil {
			s.err = s.terminate(ctx)
		}
		if s.guard != nil {
			s.guard.close()
		}
		if err := os.RemoveAll(s.dir); err != nil && s.err == nil {
			s.err = hearth.Errorf(hearth.CodeInternal, "remove the server's data: %w", err)
		}
	})
	return s.err
}

func (s *Server) terminate(ctx context.Context) error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		_ = s.cmd.Process.Kill()
		<-s.exited
		return hearth.Errorf(hearth.CodeInternal, "the server did not end within %s and was killed", drainTimeout)
	}
}

// ServeReady returns how long "binary serve" takes until GET /readyz is 200,
// with an empty data directory. It leaves nothing behind. Errors: as
// StartServer and Stop.
func ServeReady(ctx context.Context, binary string) (time.Duration, error) {
	s, err := StartServer(ctx, binary)
	if err != nil {
		return 0, err
	}
	return s.ReadyTime, s.Stop(ctx)
}

// lastWords returns the end of a log file.
func lastWords(name string) string {
	var t tail
	if f, err := os.Open(name); err == nil {
		_, _ = io.Copy(&t, f)
		f.Close()
	}
	return t.String()
}

// freeAddress returns an address of 127.0.0.1 that nobody listens on now.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", hearth.Errorf(hearth.CodeUnavailable, "find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
