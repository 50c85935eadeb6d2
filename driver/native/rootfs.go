package native

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/egress"
)

// guestUser is the user and group id inside each sandbox.
const guestUser = "1000"

// view is something of the host that a sandbox sees, read-only.
type view struct {
	source, target string
	link           string // instead of a mount: a symbolic link to this
}

// hostViews are the host's system directories: /usr, and the traditional
// directories beside it, which are links into it on most systems.
func hostViews() []view {
	views := []view{{source: "/usr", target: "/usr"}}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		info, err := os.Lstat(dir)
		switch {
		case err != nil:
		case info.Mode()&os.ModeSymlink != 0:
			if to, err := os.Readlink(dir); err == nil {
				views = append(views, view{target: dir, link: to})
			}
		case info.IsDir():
			views = append(views, view{source: dir, target: dir})
		}
	}
	if _, err := os.Stat("/nix/store"); err == nil { // NixOS keeps everything there
		views = append(views, view{source: "/nix/store", target: "/nix/store"})
	}
	return views
}

// etcViews are the parts of the host's /etc that programs need and that say
// nothing private.
func etcViews() []view {
	var views []view
	for _, p := range []string{"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/ca-certificates/extracted", "/etc/alternatives"} {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			views = append(views, view{source: p, target: p})
		}
	}
	return views
}

// writeEtc writes the sandboxes' /etc: one without and one with a name server.
func (d *Driver) writeEtc() error {
	files := map[string]string{
		"passwd":        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":         "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
		"hosts":         "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
		"hostname":      "sandbox\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
		"resolv.conf":   "",
	}
	for _, name := range []string{"ld.so.cache", "ld.so.conf", "services", "protocols", "mime.types", "ssl/openssl.cnf"} {
		if b, err := os.ReadFile(filepath.Join("/etc", name)); err == nil {
			files[name] = string(b)
		}
	}
	for _, v := range []hearth.Egress{hearth.EgressNone, hearth.EgressInternet} {
		if v == hearth.EgressInternet {
			files["resolv.conf"] = "nameserver " + egress.Gateway + "\n"
		}
		dir := filepath.Join(d.dir, etcDir, string(v))
		for name, content := range files {
			p := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				return err
			}
			if err := writeFile(p, []byte(content), 0o644); err != nil {
				return err
			}
		}
		for _, e := range d.etc { // places to mount on
			if err := os.MkdirAll(filepath.Join(d.dir, etcDir, string(v), strings.TrimPrefix(e.target, "/etc")), 0o755); err != nil {
				return err
			}
		}
		localtime := filepath.Join(dir, "localtime")
		if zone, err := filepath.EvalSymlinks("/etc/localtime"); err == nil && strings.HasPrefix(zone, "/usr/") {
			_ = os.Remove(localtime)
			if err := os.Symlink(zone, localtime); err != nil {
				return err
			}
		}
	}
	return publish(filepath.Join(d.dir, etcDir))
}

// devices are bound from the host: a user namespace cannot make its own.
var devices = []string{"null", "zero", "full", "random", "urandom"}

// hiddenProc are files below /proc that tell about the host what no function
// needs to know. Those that only the host's root may read are not listed:
// nobody in a sandbox is that user.
var hiddenProc = []string{"cmdline", "config.gz", "diskstats", "kallsyms", "key-users", "keys", "locks", "modules", "partitions", "timer_list"}

// compose returns the plan of a sandbox.
func (d *Driver) compose(spec driver.Spec, views []view, argv, env []string, dir string) *plan {
	p := &plan{}
	limits := spec.Limits
	p.step('k')
	p.step('W', "/proc/self/oom_score_adj", oomScore) // the host's own programs outlive sandboxes
	// A batch task does not preempt whoever wakes it: the server hands out and
	// collects many calls in one go instead of a context switch for each, which
	// is worth a quarter of the throughput when all cores are busy.
	p.step('S', strconv.Itoa(unix.SCHED_BATCH))
	for _, l := range rlimits(limits) {
		p.step('i', strconv.Itoa(l.number), strconv.FormatUint(l.soft, 10), strconv.FormatUint(l.hard, 10))
	}
	p.step('h', "sandbox")
	p.step('n')

	// While the helper still is the server's user, it opens all it needs of the
	// host: parts may lie below directories that only that user can pass.
	policy := cmp.Or(spec.Egress, hearth.EgressNone)
	views = append(slices.Clone(views), view{source: filepath.Join(d.dir, etcDir, string(policy)), target: "/etc"})
	views = append(views, d.etc...)
	for _, m := range spec.Mounts {
		views = append(views, view{source: m.Source, target: m.Target})
	}
	trees := make([]string, len(views))
	for i, v := range views {
		if v.link == "" {
			trees[i] = p.open(v.source, "")
		}
	}
	devs := make([]string, len(devices))
	for i, name := range devices {
		devs[i] = p.open("/dev/"+name, "v")
	}
	if policy == hearth.EgressInternet {
		p.step('O', tunPath)
	}

	p.step('r', filepath.Join(d.dir, rootDir), "mode=0755,size=1m,nr_inodes=4k,uid="+guestUser+",gid="+guestUser)
	p.step('u', guestUser, guestUser)
	made := map[string]bool{"/": true}
	var mkdir func(dir string)
	mkdir = func(dir string) {
		if dir = path.Clean(dir); made[dir] {
			return
		}
		mkdir(path.Dir(dir))
		made[dir] = true
		p.step('d', dir[1:], mode(0o755))
	}
	for i, v := range views {
		if v.link != "" {
			mkdir(path.Dir(v.target))
			p.step('l', v.link, v.target[1:])
			continue
		}
		if !strings.HasPrefix(v.target, "/etc/") { // places in /etc exist
			mkdir(v.target)
		}
		p.step('b', trees[i], v.target[1:])
	}
	for _, dir := range []string{"/tmp", "/dev/shm", "/var/tmp", "/proc", "/run"} {
		mkdir(dir)
	}
	for i, name := range devices {
		p.step('f', "dev/"+name, mode(0o444), "")
		p.step('b', devs[i], "dev/"+name)
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		p.step('l', to, "dev/"+name)
	}
	// One file system for all that can be written, so that one size bounds it.
	p.step('d', ".scratch", mode(0o755))
	p.step('t', ".scratch", fmt.Sprintf("mode=0755,size=%d,nr_inodes=%d,uid=%s,gid=%s",
		limits.Disk, max(1024, limits.Disk/4096), guestUser, guestUser))
	for from, to := range map[string]string{"tmp": "tmp", "vartmp": "var/tmp", "shm": "dev/shm"} {
		p.step('d', ".scratch/"+from, mode(0o1777))
		p.step('B', ".scratch/"+from, to, "w")
	}
	p.step('U', ".scratch")
	p.step('p', "proc")
	for _, name := range hiddenProc {
		p.step('B', "dev/null", "proc/"+name, "v")
	}
	p.step('R', "proc")
	p.step('P')
	p.step('R', "/")

	if policy == hearth.EgressInternet {
		v4, v6 := netip.MustParsePrefix(egress.GuestIPv4), netip.MustParsePrefix(egress.GuestIPv6)
		v6bytes := v6.Addr().As16()
		p.step('T', "tun0", v4.Addr().String(), strconv.Itoa(v4.Bits()), strconv.Itoa(egress.MTU),
			string(v6bytes[:]), strconv.Itoa(v6.Bits()))
	}
	p.step('c')
	if d.landlock > 0 {
		p.step('L', landlockRules(d.landlock)...)
	}
	p.step('s', string(d.filter))
	p.guest = len(p.b)
	p.list('e', env)
	p.list('a', argv)
	p.step('w', dir)
	p.step('x')
	return p
}

const tunPath = "/dev/net/tun"

func mode(m uint32) string { return strconv.Itoa(int(m)) }

type rlimit struct {
	number     int
	soft, hard uint64
}

// rlimits are a second line behind the control groups, and the first for users
// without them: the kernel counts RLIMIT_NPROC within the user namespace.
func rlimits(l driver.Limits) []rlimit {
	files := uint64(65536)
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err == nil {
		files = min(files, now.Max)
	}
	// A core_pattern that names a program runs it as the host's root whatever
	// the limit is, except for a limit of 1.
	core := uint64(0)
	if b, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err == nil && strings.HasPrefix(string(b), "|") {
		core = 1
	}
	return []rlimit{
		{unix.RLIMIT_CORE, core, core},
		{unix.RLIMIT_NOFILE, min(files, 4096), files},
		{unix.RLIMIT_MEMLOCK, 64 << 10, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0, 0},
		{unix.RLIMIT_NPROC, uint64(l.PIDs + cgroup.HelperTasks), uint64(l.PIDs + cgroup.HelperTasks)},
	}
}

// Landlock's rights on files, by the version that added them.
const (
	landlockRead  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockWrite = 1<<13 - 1
	landlockRefer = unix.LANDLOCK_ACCESS_FS_REFER     // version 2
	landlockTrunc = unix.LANDLOCK_ACCESS_FS_TRUNCATE  // version 3
	landlockIoctl = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV // version 5
)

// landlockRules are the arguments of the 'L' step: everything can be read,
// /tmp and /dev/shm also written. They repeat what the mounts say already, for
// the day when somebody gets around those. Device nodes and sockets in /tmp
// are not among the rights.
func landlockRules(version int) []string {
	handled := uint64(landlockWrite)
	if version >= 2 {
		handled |= landlockRefer
	}
	if version >= 3 {
		handled |= landlockTrunc
	}
	if version >= 5 {
		handled |= landlockIoctl
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	scratch := handled &^ (unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | landlockIoctl)
	device := handled & (unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | landlockTrunc)
	rules := []string{number(handled), number(landlockRead), "/", number(scratch), "/tmp", number(scratch), "/var/tmp", number(scratch), "/dev/shm"}
	for _, name := range devices {
		rules = append(rules, number(device), "/dev/"+name)
	}
	return rules
}

// landlockVersion asks the kernel; 0 means that it has no Landlock.
func landlockVersion() int {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(v)
}
