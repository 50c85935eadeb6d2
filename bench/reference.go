package bench

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
)

// referenceArg is the hidden first argument that turns the binary into a
// reference server.
const referenceArg = "__bench-reference"

// noopAnswer is what the Go no-op server says.
const noopAnswer = "ok\n"

// readyPrefix starts the line by which a reference server tells its address.
const readyPrefix = "READY "

var (
	//go:embed scripts/server.py
	pythonServer string
	//go:embed scripts/server.mjs
	nodeServer string
)

// MaybeServeReference turns this process into a reference server if it was
// started as one by Run, and does not return then. A program that calls Run
// must call it first thing in main: Run starts its own executable again, so
// that the Go references are processes of their own.
func MaybeServeReference() {
	if len(os.Args) < 3 || os.Args[1] != referenceArg {
		return
	}
	if err := serveReference(os.Args[2:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hearth:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveReference serves until stdin ends, which it does when the process that
// holds its other end is gone, however it ended.
func serveReference(args []string, stdin io.Reader, stdout io.Writer) error {
	var h http.Handler
	switch {
	case len(args) == 1 && args[0] == "guard":
		return guard(stdin, stdout)
	case len(args) == 1 && args[0] == "noop":
		h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, noopAnswer)
		})
	case len(args) == 2 && args[0] == "proxy":
		u, err := url.Parse(args[1])
		if err != nil {
			return err
		}
		h = &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.SetXForwarded() },
			// The default transport keeps two idle connections to a host, and
			// would measure dialling.
			Transport: &http.Transport{
				MaxIdleConns: 1024, MaxIdleConnsPerHost: 1024, DisableCompression: true,
			},
			ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		}
	default:
		return hearth.Errorf(hearth.CodeInvalid, "%s is for hearth bench itself", referenceArg).WithHint("run hearth bench")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	fmt.Fprintf(stdout, "%s%s\n", readyPrefix, l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guardedFD is the descriptor by which a guard knows the process it guards.
const guardedFD = 3

// guard tells the process behind guardedFD to end when stdin ends. A
// parent-death signal would not do: one that arrives for each thread of the
// dying parent looks like an impatient user, who wants no cleaning up.
func guard(stdin io.Reader, stdout io.Writer) error {
	fmt.Fprintln(stdout, readyPrefix)
	_, _ = io.Copy(io.Discard, stdin)
	if err := unix.PidfdSendSignal(guardedFD, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// startGuard ends the process of the descriptor when this one is gone. It takes
// over pidfd.
func startGuard(ctx context.Context, pidfd int) (*process, error) {
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	cmd := exec.Command("/proc/self/exe", referenceArg, "guard") //nolint:noctx // it must outlive ctx: it ends with its descriptor
	cmd.ExtraFiles = []*os.File{f}                               // becomes guardedFD
	return start(ctx, cmd)
}

// process is a server that Run started to compare with.
type process struct {
	url    string
	cmd    *exec.Cmd
	stdin  io.Closer
	exited chan struct{}
	stop   sync.Once
}

// startNoop starts the Go net/http server that answers nothing of interest.
func startNoop(ctx context.Context) (*process, error) {
	return startProcess(ctx, "/proc/self/exe", nil, referenceArg, "noop")
}

// startProxy starts one httputil.ReverseProxy hop to the URL.
func startProxy(ctx context.Context, to string) (*process, error) {
	return startProcess(ctx, "/proc/self/exe", nil, referenceArg, "proxy", to)
}

// startPlain starts the plain HTTP server of the interpreter's language.
func startPlain(ctx context.Context, i interpreter) (*process, error) {
	switch i.Language {
	case "python":
		return startProcess(ctx, i.Path, bareEnv(), "-c", pythonServer)
	case "nodejs":
		return startProcess(ctx, i.Path, bareEnv(), "--input-type=module", "-e", nodeServer)
	}
	return nil, hearth.Errorf(hearth.CodeUnsupported, "there is no plain HTTP server in %s to compare with", i.Language)
}

// startProcess starts a program that prints the ready line and serves until its
// stdin ends. nil env is this process's own. The caller stops it; when ctx ends
// before it is ready nothing remains.
func startProcess(ctx context.Context, path string, env []string, args ...string) (*process, error) {
	cmd := exec.Command(path, args...) //nolint:noctx // ended by stop, not by ctx
	cmd.Env = env
	return start(ctx, cmd)
}

// start is startProcess for a prepared command.
func start(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	var words tail
	cmd.Stderr = &words
	// Ctrl-C in a terminal reaches the whole foreground group; these processes
	// end when close says so.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		stdin.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "cannot start a server to compare with: %w", err)
	}
	p := &process{cmd: cmd, stdin: stdin, exited: make(chan struct{})}
	ready := make(chan string, 1)
	go func() {
		defer close(p.exited)
		r := bufio.NewReader(stdout)
		line, _ := r.ReadString('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, r)
		_ = cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	select {
	case line := <-ready:
		if addr, ok := strings.CutPrefix(line, readyPrefix); ok {
			p.url = "http://" + strings.TrimSpace(addr) + "/"
			return p, nil
		}
		p.close()
		return nil, hearth.Errorf(hearth.CodeUnavailable, "the server to compare with (%s) did not start: %s", cmd.Path, words.String()).
			WithHint("the program that calls bench.Run must call bench.MaybeServeReference first in main")
	case <-ctx.Done():
		p.close()
		return nil, ctx.Err()
	}
}

// close stops the process and waits until it is gone. It may be called twice.
func (p *process) close() {
	p.stop.Do(func() {
		p.stdin.Close()
		select {
		case <-p.exited:
		case <-time.After(2 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
	})
}

// tail is a writer that keeps the last bytes written, for error messages.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 2 << 10

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(b), nil
}

// String returns what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
