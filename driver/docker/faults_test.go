package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/docker"
	"github.com/hearthrun/hearth/images"
)

// ownEngine is an engine that the test may stop.
type ownEngine struct{ dir, host string }

func startEngine(t *testing.T) *ownEngine {
	t.Helper()
	engine(t) // where no engine is wanted, none is started
	if os.Getuid() != 0 {
		t.Skip("starting an engine needs root")
	}
	dir, err := os.MkdirTemp("", "hearth-docker-") // short: a socket lies inside
	if err != nil {
		t.Fatal(err)
	}
	e := &ownEngine{dir: dir, host: "unix://" + dir + "/docker.sock"}
	t.Cleanup(func() { e.script(t, "stop") })
	e.script(t, "start")
	return e
}

func (e *ownEngine) script(t *testing.T, command string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../scripts/docker.sh", command, e.dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // the engine must not hold the pipes
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("docker.sh %s: %v\n%s", command, err, out.String())
	}
}

// kill ends the engine's daemon without a chance to tidy up.
func (e *ownEngine) kill(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, "docker.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the daemon ends", func() bool { return syscall.Kill(pid, 0) != nil })
}

// until waits for a condition that must come.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("in 30 s it does not come true that %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// testguestEnv is a directory with a test guest already built.
const testguestEnv = "HEARTH_TEST_GUEST_DIR"

var guestDir = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(testguestEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "hearth-testguest-")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", filepath.Join(dir, "testguest"), "../drivertest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, os.Chmod(dir, 0o755)
})

// spec describes a sandbox with the test guest.
func spec(t testing.TB, id string) driver.Spec {
	t.Helper()
	dir, err := guestDir()
	if err != nil {
		t.Fatal(err)
	}
	return driver.Spec{
		ID: id, Runtime: images.Provided, Command: []string{"/testguest/testguest"},
		Mounts: []driver.Mount{{Source: dir, Target: "/testguest"}},
	}
}

// running creates a sandbox and checks that its guest answers.
func running(t *testing.T, d driver.Driver, id string) (driver.Sandbox, net.Conn) {
	t.Helper()
	s, err := d.Create(t.Context(), spec(t, id))
	if err != nil {
		t.Fatalf("Create: %v (hint: %s)", err, hearth.AsError(err).Hint)
	}
	t.Cleanup(func() { _ = s.Destroy(context.Background()) })
	c, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := echo(c); err != nil {
		t.Fatalf("the guest does not answer: %v", err)
	}
	return s, c
}

// guestAnswer is what the test guest says.
type guestAnswer struct {
	Err, Text string
	N         int64
}

func ask(c net.Conn, request map[string]any) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return json.NewEncoder(c).Encode(request)
}

func answerOf(c net.Conn) (guestAnswer, error) {
	var a guestAnswer
	err := json.NewDecoder(c).Decode(&a)
	return a, err
}

func echo(c net.Conn) error {
	if err := ask(c, map[string]any{"Op": "echo", "Text": "hello"}); err != nil {
		return err
	}
	a, err := answerOf(c)
	if err == nil && a.Text != "hello" {
		err = fmt.Errorf("the echo is %q", a.Text)
	}
	return err
}

// ended checks that the stream ends and Wait returns.
func ended(t *testing.T, s driver.Sandbox, c net.Conn) driver.Exit {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the stream does not end")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	x, err := s.Wait(ctx)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	return x
}

// closing makes a driver whose sandboxes must all be gone at the end.
func closing(t *testing.T, host string, store docker.Images) driver.Driver {
	t.Helper()
	d, err := docker.New(docker.Config{Dir: filepath.Join(t.TempDir(), "docker"), Owner: fmt.Sprintf("faults-%08x", rand.Uint32()), Images: store, Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if list, err := d.List(context.Background()); err == nil {
			for _, s := range list { // of a test that failed
				_ = s.Destroy(context.Background())
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func empty(t *testing.T, d driver.Driver) {
	t.Helper()
	until(t, "nothing is left", func() bool {
		list, err := d.List(t.Context())
		return err == nil && len(list) == 0
	})
}

func TestEngineStops(t *testing.T) {
	e := startEngine(t)
	d := closing(t, e.host, &bare{})
	s, c := running(t, d, "one")
	e.script(t, "halt")
	if x := ended(t, s, c); x.Code == 0 || x.OOM || x.Destroyed {
		t.Errorf("Exit of a sandbox whose engine was stopped: %+v", x)
	}
	start := time.Now()
	_, err := d.Create(t.Context(), spec(t, "two"))
	if hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(hearth.AsError(err).Hint, "systemctl start docker") {
		t.Errorf("Create without the engine: %v, hint %q", err, hearth.AsError(err).Hint)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Create without the engine took %v", took)
	}
	if info, err := d.Probe(t.Context()); err != nil || info.Works || len(info.Missing) == 0 {
		t.Errorf("Probe without the engine: %+v, %v", info, err)
	}
	if err := s.Destroy(t.Context()); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("Destroy without the engine, which still has the container: %v", err)
	}
	e.script(t, "start")
	running(t, d, "three")
	until(t, "the driver frees what it could not before", func() bool {
		list, err := d.List(t.Context())
		return err == nil && len(list) == 1
	})
	running(t, d, "one")
}

func TestEngineKilled(t *testing.T) {
	e := startEngine(t)
	d := closing(t, e.host, &bare{})
	s, c := running(t, d, "one")
	e.kill(t)
	// Its containers live on, and so do calls.
	if err := echo(c); err != nil {
		t.Errorf("the guest does not answer without the daemon: %v", err)
	}
	if err := s.Destroy(t.Context()); err == nil {
		t.Error("Destroy says that a container is gone that nobody has removed")
	}
	if x := ended(t, s, c); !x.Destroyed {
		t.Errorf("Exit is %+v, want Destroyed", x)
	}
	e.script(t, "start")
	empty(t, d)
	running(t, d, "one")
}

// parent returns the parent of a process.
func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	n, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKilled(t *testing.T) {
	host := engine(t)
	api, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.Close() })
	d := closing(t, host, &bare{})
	first := func(t *testing.T, id string) (pid int) {
		t.Helper()
		until(t, "the engine knows that the container runs", func() bool {
			list, err := api.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "run.hearth.sandbox="+id)})
			if err != nil || len(list.Items) != 1 {
				return false
			}
			c, err := api.ContainerInspect(t.Context(), list.Items[0].ID, client.ContainerInspectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pid = c.Container.State.Pid
			return pid > 0
		})
		return pid
	}
	for name, victim := range map[string]func(t *testing.T, id string) int{
		"first process": first,
		"containerd-shim": func(t *testing.T, id string) int {
			shim := parent(t, first(t, id))
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", shim))
			if err != nil || !strings.Contains(filepath.Base(exe), "shim") {
				t.Fatalf("the container's parent is %s, %v", exe, err)
			}
			return shim
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := "killed-" + strings.ReplaceAll(name, " ", "-")
			s, c := running(t, d, id)
			_, other := running(t, d, id+"-other")
			if err := syscall.Kill(victim(t, id), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if x := ended(t, s, c); x != (driver.Exit{Code: -1, Signal: 9}) {
				t.Errorf("Exit is %+v, want signal 9", x)
			}
			if err := s.Destroy(t.Context()); err != nil {
				t.Errorf("Destroy: %v", err)
			}
			if err := echo(other); err != nil {
				t.Errorf("another sandbox: %v", err)
			}
		})
	}
	empty(t, d)
}

// counting counts how often the image is asked for, and can fail.
type counting struct {
	bare

	archives atomic.Int64
	fail     atomic.Bool
}

func (c *counting) Archive(ctx context.Context, img images.Image, w io.Writer) error {
	c.archives.Add(1)
	if c.fail.Load() {
		return hearth.Errorf(hearth.CodeUnavailable, "the disk is broken")
	}
	return c.bare.Archive(ctx, img, w)
}

func TestImageMissing(t *testing.T) {
	e := startEngine(t)
	store := &counting{}
	d := closing(t, e.host, store)
	store.fail.Store(true)
	if _, err := d.Create(t.Context(), spec(t, "none")); hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(err.Error(), "the disk is broken") {
		t.Errorf("Create with an image that cannot be read: %v", err)
	}
	store.fail.Store(false)
	store.archives.Store(0)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			s, err := d.Create(t.Context(), spec(t, "load-"+strconv.Itoa(i)))
			if err != nil {
				t.Errorf("Create: %v", err)
				return
			}
			if err := s.Destroy(context.Background()); err != nil {
				t.Errorf("Destroy: %v", err)
			}
		})
	}
	wg.Wait()
	if n := store.archives.Load(); n < 1 || n > 2 { // a second if one came late
		t.Errorf("the image was loaded %d times for 4 sandboxes at once", n)
	}
	empty(t, d)
}

func TestEngineAbsent(t *testing.T) {
	d := closing(t, "unix://"+filepath.Join(t.TempDir(), "no.sock"), &bare{})
	info, err := d.Probe(t.Context())
	if err != nil || info.Works || len(info.Missing) != 1 || !strings.Contains(info.Missing[0].Remedy, "systemctl start docker") {
		t.Errorf("Probe: %+v, %v", info, err)
	}
	if _, err := d.Create(t.Context(), spec(t, "x")); hearth.ErrorCode(err) != hearth.CodeUnavailable || hearth.AsError(err).Hint == "" {
		t.Errorf("Create: %v", err)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List on a machine without Docker: %v, %v", list, err)
	}
}

func TestEngineRemote(t *testing.T) {
	d := closing(t, "tcp://127.0.0.1:1", &bare{})
	info, err := d.Probe(t.Context())
	if err != nil || info.Works || len(info.Missing) != 1 || !strings.Contains(info.Missing[0].What, "tcp://127.0.0.1:1") {
		t.Errorf("Probe: %+v, %v", info, err)
	}
}

// deniedEnv is set in the process that TestEngineDenied starts as nobody.
const deniedEnv = "HEARTH_TEST_DENIED"

func TestEngineDenied(t *testing.T) {
	if host := os.Getenv(deniedEnv); host != "" {
		d := closing(t, host, &bare{})
		info, err := d.Probe(t.Context())
		if err != nil || info.Works || len(info.Missing) != 1 || !strings.Contains(info.Missing[0].Remedy, "group docker") {
			t.Errorf("Probe: %+v, %v", info, err)
		}
		_, err = d.Create(t.Context(), driver.Spec{ID: "x", Runtime: images.Provided, Command: []string{"/x"}})
		if hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(hearth.AsError(err).Hint, "group docker") {
			t.Errorf("Create: %v", err)
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	dir, err := os.MkdirTemp("", "hearth-denied-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Join(dir, "docker.sock"), 0o660)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestEngineDenied$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), deniedEnv+"=unix://"+filepath.Join(dir, "docker.sock"), "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}
