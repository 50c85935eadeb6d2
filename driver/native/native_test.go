package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

// asUser is set in the process that repeats the tests as an ordinary user.
const asUser = "HEARTH_TEST_AS_USER"

// newDriver makes a driver that works here, or skips the test.
func newDriver(t testing.TB) *Driver {
	t.Helper()
	owner := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())
	d, err := New(Config{Dir: filepath.Join(t.TempDir(), "native"), Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		list, err := d.List(context.Background())
		if err != nil || len(list) > 0 {
			t.Errorf("left over: %v, %v", list, err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for _, dir := range groupDirs(owner) {
			t.Errorf("left over: %s", dir)
		}
	})
	if err := d.tryCommand(t.Context(), d.system, []string{"/bin/sh", "-c", ":"}, hearth.EgressNone); err != nil {
		t.Skipf("sandboxes do not work here: %v", err)
	}
	return d
}

// groupDirs lists the control groups of an owner.
func groupDirs(owner string) []string {
	var dirs []string
	for _, p := range []string{"/sys/fs/cgroup/hearth-", "/sys/fs/cgroup/*/hearth-", "/sys/fs/cgroup/*/*/hearth-", "/sys/fs/cgroup/*/*/*/hearth-"} {
		found, _ := filepath.Glob(p + owner)
		dirs = append(dirs, found...)
	}
	return dirs
}

// run runs a shell script in a sandbox and returns what it wrote.
func run(t *testing.T, d *Driver, script string, change ...func(*driver.Spec)) (string, driver.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out buffer
	spec := driver.Spec{ID: "a", Runtime: "provided", Command: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out}
	for _, f := range change {
		f(&spec)
	}
	s, err := d.Create(ctx, spec)
	if err != nil {
		t.Fatalf("Create: %v (%s)", err, hearth.AsError(err).Hint)
	}
	exit, err := s.Wait(ctx)
	if err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := s.Destroy(ctx); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	return out.String(), exit
}

// buffer is an io.Writer that may be read while it is written to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestInside looks at the sandbox from its inside.
func TestInside(t *testing.T) {
	d := newDriver(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ script, want string }{
		"user":                {"id -u; id -g", "1000\n1000"},
		"groups":              {"[ $(id -u) = 1000 ] && echo ok", "ok"},
		"pid 1 is the helper": {"cat /proc/1/comm", "hearth-init"},
		"no host processes":   {"[ $(ls -d /proc/[0-9]* | wc -l) -le 6 ] && echo ok", "ok"},
		"pid 1 is opaque":     {"cat /proc/1/environ /proc/1/maps; ls /proc/1/fd/; readlink /proc/1/exe; cd /proc/1/root; echo", "Permission denied"},
		"itself is not":       {"cat /proc/self/environ /proc/self/maps >/dev/null && ls /proc/self/fd >/dev/null && echo ok", "ok"},
		"capabilities":        {"grep Cap /proc/self/status | grep -v 0000000000000000; echo none", "none"},
		"no new privileges":   {"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"},
		"seccomp":             {"grep Seccomp: /proc/self/status", "Seccomp:\t2"},
		"descriptors":         {"ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 4 "}, // 4 is ls's own
		"environment":         {"env | sort | grep -v '^_=\\|PWD' | tr '\\n' ' '", "HEARTH_FD=3 HOME=/tmp LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin TMPDIR=/tmp "},
		"root":                {"ls / | tr '\\n' ' ' | sed 's/lib[^ ]* //g; s/nix //'", "bin dev etc proc run sbin tmp usr var "},
		"no file of the host": {"cat " + secret, "No such file"},
		"no home":             {"ls /root /home", "No such file"},
		"read-only root":      {"touch /x", "Read-only file system"},
		"read-only usr":       {"touch /usr/x /etc/x", "Read-only file system"},
		"read-only proc":      {"echo 1 > /proc/self/oom_score_adj", "Read-only file system"},
		"no core dumps":       {"ulimit -Hc", "0"},
		"no unshare":          {"unshare -U true", "Operation not permitted"},
		"no mount":            {"mount -t tmpfs x /tmp", "must be superuser"},
		"no mknod":            {"mknod /tmp/x c 1 3", "ermi"},
		"kill pid 1":          {"kill -9 1; sleep 0.1; echo alive", "alive"},
		"loopback only":       {"cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' '", "lo"},
		"cgroup hidden":       {"cut -d: -f3 /proc/self/cgroup | sort -u", "/"},
		"hostname":            {"cat /proc/sys/kernel/hostname", "sandbox"},
		"masked":              {"cat /proc/cmdline /proc/kallsyms | wc -c", "0"},
		"session keyring":     {"cat /proc/keys | wc -l", "0"},
		"dev":                 {"ls /dev | tr '\\n' ' '", "fd full null random shm stderr stdin stdout urandom zero "},
		"exec in tmp":         {"cp /bin/true /tmp/t && /tmp/t && echo ok", "ok"},
		"stdin":               {"wc -c", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "cgroup hidden" && d.cgroups == (cgroup.None{}) {
				t.Skip("no control groups here")
			}
			if name == "no core dumps" && os.Getenv(asUser) != "" {
				t.Log("as an ordinary user")
			}
			out, _ := run(t, d, c.script)
			if !strings.Contains(strings.TrimLeft(out, " "), c.want) {
				t.Errorf("%s\nwrote %q\nwant  %q", c.script, out, c.want)
			}
		})
	}
}

// TestSystemCalls makes forbidden calls, and some that must work.
func TestSystemCalls(t *testing.T) {
	d := newDriver(t)
	python := "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		t.Skip("no system python")
	}
	script := `
import ctypes, socket, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(n, *a):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(n), *[ctypes.c_long(x) for x in a])
    return ctypes.get_errno() if r == -1 else 0
def sock(*a):
    try: socket.socket(*a).close()
    except OSError as e: return e.errno
    return 0
import errno
E = errno
for want, got, what in [
    (E.EPERM, call(%d, 0x10000000), "unshare user"),
    (E.EPERM, call(%d, 0x80), "unshare time"),
    (E.EPERM, call(%d, 0x10000000|17, 0, 0, 0, 0), "clone user"),
    (E.EPERM, call(%d, 0x40000000|17, 0, 0, 0, 0), "clone net"),
    (E.ENOSYS, call(435, 0, 0), "clone3"),
    (E.EPERM, call(425, 1, 0), "io_uring_setup"),
    (E.EPERM, call(%d, 0), "keyctl"),
    (E.EPERM, call(%d, 0, 0), "bpf"),
    (E.EPERM, call(%d, 0, 0, 0, 0, 0), "perf_event_open"),
    (E.EPERM, call(%d, 0), "userfaultfd"),
    (E.EPERM, call(%d, 0), "ptrace"),
    (E.EPERM, call(428, 0, 0, 0), "open_tree"),
    (E.EPERM, call(%d), "sync"),
    (E.ENOSYS, call(9999), "unknown"),
    (E.EPERM, call(%d, 0, (1 << 32) + 0x5412, 0), "TIOCSTI with a high bit"),
    (0, sock(socket.AF_INET, socket.SOCK_STREAM), "tcp"),
    (0, sock(socket.AF_INET6, socket.SOCK_DGRAM), "udp6"),
    (0, sock(socket.AF_UNIX, socket.SOCK_SEQPACKET), "unix"),
    (0, sock(socket.AF_NETLINK, socket.SOCK_RAW, 0), "netlink route"),
    (E.EPROTONOSUPPORT, sock(socket.AF_NETLINK, socket.SOCK_RAW, 12), "netlink netfilter"),
    (E.EPROTONOSUPPORT, sock(socket.AF_INET, socket.SOCK_STREAM, 132), "sctp"),
    (E.EPERM, sock(socket.AF_INET, socket.SOCK_RAW, 1), "raw"),
    (E.EAFNOSUPPORT, sock(40, socket.SOCK_STREAM), "vsock"),
    (E.EAFNOSUPPORT, sock(17, socket.SOCK_RAW), "packet"),
    (E.EAFNOSUPPORT, sock(38, socket.SOCK_SEQPACKET), "alg"),
]:
    if want != got: print(what, "got", E.errorcode.get(got, got), "want", E.errorcode.get(want, want))
import threading, subprocess, multiprocessing, asyncio, tempfile
t = threading.Thread(target=lambda: None); t.start(); t.join()
assert subprocess.run(["/bin/echo", "hi"], capture_output=True).stdout == b"hi\n"
multiprocessing.Lock(); os.mkfifo("/tmp/fifo"); tempfile.TemporaryFile().write(b"x")
assert os.fork() or os._exit(0) is None
print("done")
`
	script = fmt.Sprintf(script, unix.SYS_UNSHARE, unix.SYS_UNSHARE, unix.SYS_CLONE, unix.SYS_CLONE, unix.SYS_KEYCTL,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_PTRACE, unix.SYS_SYNC, unix.SYS_IOCTL)
	out, _ := run(t, d, "", func(s *driver.Spec) { s.Command = []string{python, "-c", script} })
	if out != "done\n" {
		t.Error(out)
	}
}

// TestHostile lets guests do their worst.
func TestHostile(t *testing.T) {
	d := newDriver(t)
	memory, _, _, _ := d.cgroups.Enforces()
	small := func(s *driver.Spec) {
		s.Limits = driver.Limits{PIDs: 20, Disk: 1 << 20, Memory: 32 << 20}
	}
	t.Run("fork bomb", func(t *testing.T) {
		out, _ := run(t, d, "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done 2>&1; exit 0", small)
		if !strings.Contains(out, "fork") {
			t.Errorf("nothing stopped it: %q", out)
		}
	})
	t.Run("disk filler", func(t *testing.T) {
		out, _ := run(t, d, "head -c 900000 /dev/zero > /dev/shm/a; head -c 900000 /dev/zero > /tmp/b; cat /dev/shm/a /tmp/b | wc -c", small)
		if !strings.Contains(out, "No space left") {
			t.Error(out)
		}
	})
	t.Run("memory hog", func(t *testing.T) {
		if !memory {
			t.Skip("no memory limit here")
		}
		_, exit := run(t, d, "x=$(head -c 200m /dev/zero | tr '\\0' x); exit 9", small)
		if !exit.OOM || exit.Code != -1 || exit.Signal != 9 {
			t.Errorf("exit: %+v", exit)
		}
	})
	t.Run("processes left behind", func(t *testing.T) {
		_, exit := run(t, d, "setsid sleep 1000 & setsid sleep 1000 & exit 7", small)
		if exit.Code != 7 {
			t.Errorf("exit: %+v", exit)
		}
	})
	t.Run("signal", func(t *testing.T) {
		if _, exit := run(t, d, "kill -15 $$"); exit.Code != -1 || exit.Signal != 15 || exit.OOM {
			t.Errorf("exit: %+v", exit)
		}
	})
}

// TestInternet looks at the way out of a sandbox, without leaving the machine:
// package egress tests what it lets through.
func TestInternet(t *testing.T) {
	d := newDriver(t)
	internet := func(s *driver.Spec) { s.Egress = hearth.EgressInternet }
	if err := d.tryCommand(t.Context(), d.system, []string{"/bin/sh", "-c", ":"}, hearth.EgressInternet); hearth.ErrorCode(err) == hearth.CodeUnsupported {
		t.Skip(err)
	}
	out, _ := run(t, d, "cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' \\n'; echo; cat /etc/resolv.conf; tail -n +2 /proc/net/route; cat /proc/net/if_inet6", internet)
	for _, want := range []string{"tun0", "nameserver 198.18.0.1", "tun0\t00000000\t", "fd4865617274680000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip("no bash here")
	}
	for _, host := range []string{"127.0.0.1", "198.18.0.1"} {
		out, exit := run(t, d, fmt.Sprintf("timeout 5 bash -c 'echo > /dev/tcp/%s/%d' && echo reached", host, port), internet)
		if exit.Code == 0 || strings.Contains(out, "reached") {
			t.Errorf("a sandbox reached the host's loopback at %s: %s", host, out)
		}
	}
}

// TestErrors checks what a caller learns about a bad spec.
func TestErrors(t *testing.T) {
	d := newDriver(t)
	for name, c := range map[string]struct {
		change func(*driver.Spec)
		code   hearth.Code
	}{
		"id":             {func(s *driver.Spec) { s.ID = "../x" }, hearth.CodeInvalid},
		"runtime":        {func(s *driver.Spec) { s.Runtime = "cobol" }, hearth.CodeNotFound},
		"no command":     {func(s *driver.Spec) { s.Command = nil }, hearth.CodeInvalid},
		"command":        {func(s *driver.Spec) { s.Command = []string{"/nothing"} }, hearth.CodeInvalid},
		"relative":       {func(s *driver.Spec) { s.Command = []string{"sh"} }, hearth.CodeInvalid},
		"mount source":   {func(s *driver.Spec) { s.Mounts = []driver.Mount{{Source: "/nothing", Target: "/x"}} }, hearth.CodeInvalid},
		"mount over usr": {func(s *driver.Spec) { s.Mounts = []driver.Mount{{Source: "/tmp", Target: "/usr/x"}} }, hearth.CodeInvalid},
		"mount twice": {func(s *driver.Spec) {
			s.Mounts = []driver.Mount{{Source: "/tmp", Target: "/x"}, {Source: "/tmp", Target: "/x/y"}}
		}, hearth.CodeInvalid},
		"env":    {func(s *driver.Spec) { s.Env = map[string]string{"A=B": ""} }, hearth.CodeInvalid},
		"memory": {func(s *driver.Spec) { s.Limits.Memory = -1 }, hearth.CodeInvalid},
		"egress": {func(s *driver.Spec) { s.Egress = "all" }, hearth.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			spec := driver.Spec{ID: "a", Runtime: "provided", Command: []string{"/bin/true"}}
			c.change(&spec)
			s, err := d.Create(t.Context(), spec)
			if err == nil {
				_ = s.Destroy(t.Context())
			}
			if hearth.ErrorCode(err) != c.code {
				t.Errorf("error %v has code %q, want %q", err, hearth.ErrorCode(err), c.code)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Create(ctx, driver.Spec{ID: "a", Runtime: "provided", Command: []string{"/bin/true"}}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestShims starts the guest of every runtime of this host and greets it.
func TestShims(t *testing.T) {
	d := newDriver(t)
	info, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Runtimes) == 0 {
		t.Skip("no interpreters here")
	}
	for _, r := range info.Runtimes {
		t.Run(r.Name, func(t *testing.T) {
			var out buffer
			s, err := d.Create(t.Context(), driver.Spec{
				ID: "shim", Runtime: r.Name, Stderr: &out,
				Env: map[string]string{"HEARTH_SECRET": "s3cret"},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
			}()
			c, err := s.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ready, err := greet(c)
			if err != nil || !strings.HasPrefix(ready.Runtime, strings.TrimRight(r.Name, "0123456789.")) {
				t.Errorf("READY %+v, %v; stderr: %s", ready, err, out.String())
			}
			if _, err := s.Dial(t.Context()); hearth.ErrorCode(err) != hearth.CodeConflict {
				t.Errorf("second Dial: %v", err)
			}
		})
	}
}

type ready struct {
	Protocol int    `json:"protocol"`
	Runtime  string `json:"runtime"`
}

// greet sends HELLO and reads READY.
func greet(c net.Conn) (r ready, err error) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	hello := `{"protocol":1,"secret":"s3cret"}`
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(hello))), 1, 0, 0, 0, 0)
	if _, err := c.Write(append(frame, hello...)); err != nil {
		return r, err
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(c, head); err != nil {
		return r, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(c, payload); err != nil {
		return r, err
	}
	return r, json.Unmarshal(payload, &r)
}

// TestPause freezes a sandbox and destroys it while it is frozen.
func TestPause(t *testing.T) {
	d := newDriver(t)
	if _, none := d.cgroups.(cgroup.None); none {
		t.Skip("no control groups here")
	}
	testPause(t, d)
}

// TestPause2 does so in groups of version 2 without controllers, which a host
// with version 1 has as well.
func TestPause2(t *testing.T) {
	d := newDriver(t)
	parent := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil || os.Geteuid() != 0 {
		t.Skip("no second hierarchy here")
	}
	old := d.cgroups
	defer func() { d.cgroups = old }()
	name := fmt.Sprintf("hearth-test-%d", time.Now().UnixNano())
	groups, ok := cgroup.InV2(parent, name)
	if !ok {
		t.Fatal("cannot make a group")
	}
	d.cgroups = groups
	testPause(t, d)
	if ids := groups.List(); len(ids) > 0 {
		t.Errorf("left over: %v", ids)
	}
	groups.Close()
	if _, err := os.Stat(filepath.Join(parent, name)); err == nil {
		t.Errorf("left over: %s", name)
	}
}

func testPause(t *testing.T, d *Driver) {
	t.Helper()
	s, err := d.Create(t.Context(), driver.Spec{ID: "p", Runtime: "provided", Command: []string{"/bin/sh", "-c", "while :; do :; done"}})
	if err != nil {
		t.Fatal(err)
	}
	p := s.(driver.Pauser)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, _ := s.Stats(t.Context())
	b, err := s.Stats(t.Context())
	if err != nil || b.CPU-a.CPU > time.Millisecond || b.PIDs == 0 || b.Memory == 0 || b.PSS == 0 {
		t.Errorf("%+v, then %+v, %v", a, b, err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	exit, err := s.Wait(t.Context())
	if err != nil || !exit.Destroyed || exit.Code != -1 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if _, err := s.Stats(t.Context()); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("Stats after Destroy: %v", err)
	}
}

// TestOrdinaryUser repeats the tests as a user without privileges.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv(asUser) != "" {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "hearth-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binary, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "native.test"), binary, 0o755)
	}
	if err == nil {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "native.test"), "-test.v",
		"-test.run", "TestInside|TestSystemCalls|TestHostile|TestInternet|TestErrors|TestShims|TestPause|TestOutlivesServer|TestFork")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + dir, asUser + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	if strings.Contains(string(out), "sandboxes do not work here") {
		t.Skip("ordinary users may not make user namespaces here")
	}
}

// TestForbidden probes in a user namespace that forbids to make others, and in
// one that does not but has a single user.
func TestForbidden(t *testing.T) {
	if want := os.Getenv("HEARTH_TEST_WORKS"); want != "" {
		d, err := New(Config{Dir: filepath.Join(t.TempDir(), "native"), Owner: "nested"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		info, err := d.Probe(t.Context())
		if err != nil || fmt.Sprint(info.Works) != want {
			t.Fatalf("%v: %+v", err, info)
		}
		if !info.Works && (len(info.Missing) == 0 || !strings.Contains(info.Missing[0].Remedy, "user.max_user_namespaces")) {
			t.Errorf("missing: %+v", info.Missing)
		}
		return
	}
	if err := exec.CommandContext(t.Context(), "unshare", "-Ur", "true").Run(); err != nil {
		t.Skip("no unshare, or no user namespaces here")
	}
	for works, prepare := range map[string]string{"false": "echo 0 > /proc/sys/user/max_user_namespaces", "true": ":"} {
		cmd := exec.CommandContext(t.Context(), "unshare", "-Ur", "sh", "-c", prepare+` && exec "$0" -test.run '^TestForbidden$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "HEARTH_TEST_WORKS="+works)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("works: %s: %v\n%s", works, err, out)
		}
	}
}
