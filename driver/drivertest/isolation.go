package drivertest

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func isolationCases() []testCase {
	return []testCase{
		{"Isolation/host files", hostFilesHidden},
		{"Isolation/system is read-only", systemIsReadOnly},
		{"Isolation/host processes", hostProcessesHidden},
		{"Isolation/other sandboxes", sandboxesApart},
		{"Isolation/abstract sockets", abstractSocketsHidden},
		{"Isolation/shared memory", sharedMemoryHidden},
		{"Isolation/privileges", noPrivileges},
		{"Isolation/not root on the host", notRootOnHost},
		{"Isolation/terminals", noTerminals},
		{"Isolation/out of memory", diesBeforeHost},
		{"Isolation/system calls", dangerousCallsRefused},
		{"Isolation/descriptors", noDescriptorsInherited},
	}
}

func hostFilesHidden(t *testing.T, e *env) {
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("secret of the host"), 0o666); err != nil {
		t.Fatal(err)
	}
	// A file in /tmp, which every user of the host can read.
	shared, err := os.CreateTemp("", "hearth-canary-")
	if err != nil {
		t.Fatal(err)
	}
	shared.Close()
	t.Cleanup(func() { _ = os.Remove(shared.Name()) })
	if err := os.Chmod(shared.Name(), 0o666); err != nil {
		t.Fatal(err)
	}
	inData := filepath.Join(e.dir, "canary")
	if err := os.WriteFile(inData, []byte("of Hearth"), 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(inData) })
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}

	g := e.create(t)
	for _, f := range []string{
		canary, shared.Name(), inData, filepath.Join(wd, "drivertest.go"),
		"/etc/shadow", "/etc/gshadow", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda",
		"/proc/1/root/etc/shadow", "/proc/1/environ/../../../etc/shadow", "/proc/self/root/etc/shadow",
		"/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
	} {
		if a := g.ask(t, request{Op: "read", Path: f}); a.Err == "" && a.N > 0 {
			t.Errorf("the guest could read %s (%d bytes)", f, a.N)
		}
	}
	for _, d := range []string{"/root", "/home", e.dir, filepath.Dir(canary), "/var/lib/docker", "/proc/1/cwd", "/lost+found"} {
		a := g.ask(t, request{Op: "list", Path: d})
		if host, err := os.ReadDir(d); a.Err == "" && err == nil {
			for _, entry := range host {
				if slices.Contains(a.List, entry.Name()) {
					t.Errorf("the guest sees %s of the host's %s", entry.Name(), d)
					break
				}
			}
		}
	}
	// The way out over .. and a chroot of its own.
	if a := g.ask(t, request{Op: "chroot", Path: "/tmp"}); a.Err == "" {
		t.Error("the guest could chroot")
	}
	deep := strings.Repeat("/..", 30)
	if a := g.ask(t, request{Op: "read", Path: "/tmp" + deep + canary}); a.Err == "" {
		t.Error("the guest could read the canary through ..")
	}
}

func systemIsReadOnly(t *testing.T, e *env) {
	g := e.create(t)
	for _, f := range []string{
		"/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
		"/proc/1/oom_score_adj", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory.max",
		"/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
		"/usr/lib/x", "/usr/bin/x", "/bin/x", "/lib/x", "/etc/passwd", "/etc/resolv.conf", "/etc/x",
	} {
		// Opening alone would truncate a file, so look first whether it exists
		// on the host and how it is afterwards.
		before, _ := os.ReadFile(f)
		if a := g.ask(t, request{Op: "write", Path: f, Text: "1"}); a.Err == "" {
			t.Errorf("the guest could write %s", f)
		}
		if after, _ := os.ReadFile(f); string(after) != string(before) {
			t.Errorf("the host's %s has changed", f)
		}
	}
}

func hostProcessesHidden(t *testing.T, e *env) {
	g := e.create(t)
	seen := g.do(t, request{Op: "processes"}).Map
	if len(seen) == 0 || len(seen) > 10 {
		t.Errorf("the guest sees %d processes, want its own few: %v", len(seen), seen)
	}
	self, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	mine := strings.TrimSpace(strings.ReplaceAll(string(self), "\x00", " "))
	for pid, cmd := range seen {
		if strings.TrimSpace(cmd) == mine {
			t.Errorf("the guest sees this test as process %s", pid)
		}
	}
}

func sandboxesApart(t *testing.T, e *env) {
	a, b := e.create(t), e.create(t)
	a.do(t, request{Op: "spawn", N: 3})
	a.do(t, request{Op: "write", Path: "/tmp/secret", Text: "of a"})
	a.ask(t, request{Op: "write", Path: "/dev/shm/secret", Text: "of a"})
	for pid, cmd := range b.do(t, request{Op: "processes"}).Map {
		if strings.Contains(cmd, "sleep") {
			t.Errorf("a sandbox sees another's process %s: %s", pid, cmd)
		}
	}
	for _, f := range []string{"/tmp/secret", "/dev/shm/secret", "/var/tmp/secret"} {
		if x := b.ask(t, request{Op: "read", Path: f}); x.Err == "" {
			t.Errorf("a sandbox can read another's %s", f)
		}
	}
	addr := a.do(t, request{Op: "listen"}).Text
	if x := a.do(t, request{Op: "connect", Path: addr, Text: "x", Timeout: 2 * time.Second}); x.Text != "x" {
		t.Errorf("the sandbox cannot use its own loopback")
	}
	if x := b.ask(t, request{Op: "connect", Path: addr, Timeout: 2 * time.Second}); x.Err == "" {
		t.Errorf("a sandbox could connect to another's loopback")
	}
}

func abstractSocketsHidden(t *testing.T, e *env) {
	name := "hearth-test-" + randomName()
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := e.create(t)
	if a := g.ask(t, request{Op: "abstract", Path: name, Timeout: time.Second}); a.Err == "" {
		t.Error("the guest could connect to an abstract unix socket of the host")
	}
}

func sharedMemoryHidden(t *testing.T, e *env) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o666)
	if err != nil {
		t.Skipf("the host has no System V shared memory: %v", err)
	}
	defer func() { _, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) }()
	g := e.create(t)
	for _, line := range g.do(t, request{Op: "shm"}).List {
		if f := strings.Fields(line); len(f) > 1 && f[1] == strconv.Itoa(id) {
			t.Errorf("the guest sees the host's shared memory segment %d", id)
		}
	}
}

func noPrivileges(t *testing.T, e *env) {
	g := e.create(t)
	s := g.do(t, request{Op: "status"}).Map
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if strings.Trim(s[set], "0") != "" {
			t.Errorf("the guest's capability set %s is %s, want none", set, s[set])
		}
	}
	if s["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs is %q, want 1", s["NoNewPrivs"])
	}
	if uid := strings.Fields(s["Uid"]); len(uid) == 0 || uid[0] == "0" {
		t.Errorf("the guest's user is %v, want one that is not root", uid)
	}
	if groups := strings.Fields(s["Groups"]); slices.Contains(groups, "0") {
		t.Errorf("the guest is in the groups %v", groups)
	}
	if p, ok := s["Seccomp"]; ok && p == "0" && enforces(e, "seccomp") {
		t.Error("Probe says that system calls are filtered, but they are not")
	}
}

func enforces(e *env, what string) bool {
	return slices.ContainsFunc(e.info.Enforced, func(s string) bool { return strings.Contains(strings.ToLower(s), what) })
}

// onHost returns the process IDs that guests have on the host, where they are
// processes of the host: it skips the case where there are none.
func onHost(t *testing.T, e *env) []string {
	t.Helper()
	var pids []string
	for id := range ourProcesses(e.binary) {
		pid, _, _ := strings.Cut(id, "@")
		if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && filepath.Base(exe) == "testguest" {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Skip("the guest is no process that the host can see")
	}
	return pids
}

// notRootOnHost looks from the host at the processes of a sandbox.
func notRootOnHost(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	for _, pid := range onHost(t, e) {
		b, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 4 && f[0] == "Uid:" && slices.Contains(f[1:], "0") {
				t.Errorf("the guest is root on the host: %s", strings.TrimSpace(line))
			}
		}
	}
}

// noTerminals checks that a guest takes no pseudoterminals: a kernel has few of
// them, which all sandboxes and the host share, whatever their namespaces.
func noTerminals(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	onHost(t, e)
	for _, f := range []string{"/dev/ptmx", "/dev/pts/ptmx"} {
		if a := g.ask(t, request{Op: "write", Path: f, Text: "1"}); a.Err == "" {
			t.Errorf("the guest could open %s", f)
		}
	}
}

// diesBeforeHost checks that a guest cannot make the kernel spare it when the
// host is out of memory.
func diesBeforeHost(t *testing.T, e *env) {
	g := e.create(t)
	g.ask(t, request{Op: "write", Path: "/proc/self/oom_score_adj", Text: "0"})
	for _, pid := range onHost(t, e) {
		b, err := os.ReadFile("/proc/" + pid + "/oom_score_adj")
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n <= 0 {
			t.Errorf("the guest's oom_score_adj is %s, want more than the host's programs have", b)
		}
	}
}

func dangerousCallsRefused(t *testing.T, e *env) {
	g := e.create(t)
	// ENOENT and ESRCH are for what cannot even be seen, the last ones for
	// kinds of sockets that do not exist.
	refused := []syscall.Errno{
		syscall.EPERM, syscall.EACCES, syscall.ENOSYS, syscall.ENOENT, syscall.ESRCH,
		syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT, syscall.ESOCKTNOSUPPORT,
	}
	results := g.do(t, request{Op: "syscalls"}).Map
	if len(results) < 20 {
		t.Errorf("the guest tried only %d calls", len(results))
	}
	for _, name := range slices.Sorted(maps.Keys(results)) {
		n, err := strconv.Atoi(results[name])
		if name == "setuid-0" && syscall.Errno(n) == syscall.EINVAL {
			continue // the sandbox has no such user
		}
		if err != nil || !slices.Contains(refused, syscall.Errno(n)) {
			t.Errorf("%s is not refused: %s (%v)", name, results[name], syscall.Errno(n))
		}
	}
}

func noDescriptorsInherited(t *testing.T, e *env) {
	// Descriptors of the host's, one of them without close-on-exec, as a careless
	// library opens them.
	secret, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	careless, err := unix.FcntlInt(secret.Fd(), unix.F_DUPFD, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(careless)
	g := e.create(t)
	fds := g.do(t, request{Op: "fds"}).Map
	stream := 0
	for _, fd := range slices.Sorted(maps.Keys(fds)) {
		switch {
		case fd == "0" || fd == "1" || fd == "2":
		case strings.HasPrefix(fds[fd], "/sys/fs/cgroup/cpu"): // the Go runtime's own, for GOMAXPROCS
		// gVisor's name for a socket that its host gave it is "host:".
		case (strings.HasPrefix(fds[fd], "socket:") || strings.HasPrefix(fds[fd], "host:")) && stream == 0:
			stream++
		default:
			t.Errorf("the guest has descriptor %s: %s", fd, fds[fd])
		}
	}
}
