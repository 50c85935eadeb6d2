package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc/PID/stat.
const clockTick = time.Second / 100

// procStat is what one line of /proc/PID/stat tells of a process.
type procStat struct {
	name   string
	parent int
	cpu    time.Duration // used by it, and by children it has waited for
}

// parseStat reads /proc/PID/stat: "12 (a name) S 1 …". The name may contain
// anything, also parentheses.
func parseStat(b []byte) (procStat, bool) {
	begin, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if begin < 0 || end < begin {
		return procStat{}, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 15 {
		return procStat{}, false
	}
	s := procStat{name: string(b[begin+1 : end])}
	s.parent, _ = strconv.Atoi(f[1])
	for _, ticks := range f[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(ticks, 10, 64)
		if err != nil {
			return procStat{}, false
		}
		s.cpu += time.Duration(n) * clockTick
	}
	return s, true
}

// allProcesses returns every process that can be seen.
func allProcesses() map[int]procStat {
	all := map[int]procStat{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat")); err == nil {
			if s, ok := parseStat(b); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// family finds the processes that exist because of one Hearth server: those
// below it, and those that daemons started for it. The latter are told by the
// name of its data directory, which is unique in the world: it is in the command
// line of what an OCI runtime leaves running, and in the mounts of a sandbox,
// into which the function's code is mounted. A shim of containerd is the parent
// of such a process.
type family struct {
	server int
	mark   string // the last unique part of the data directory's path
	// known remembers what was found of a process; a number is not used again
	// within a run's time by something that looks the same.
	known map[int]bool
}

func newFamily(server int, dataDir string) *family {
	return &family{server: server, mark: filepath.Base(filepath.Dir(dataDir)), known: map[int]bool{}}
}

// members returns the processes outside of the server that are there for it.
func (f *family) members() map[int]procStat {
	all := allProcesses()
	children := map[int][]int{}
	for pid, s := range all {
		children[s.parent] = append(children[s.parent], pid)
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	queue := slices.Clone(children[f.server])
	for pid, s := range all {
		marked, known := f.known[pid]
		if !known {
			// What a process is may change until it has executed its program, so
			// only what was found is remembered.
			if marked = f.marked(pid, own); marked {
				f.known[pid] = true
			}
		}
		if !marked {
			continue
		}
		queue = append(queue, pid)
		if p, ok := all[s.parent]; ok && strings.HasPrefix(p.name, "containerd-shim") {
			queue = append(queue, s.parent)
		}
	}
	found := map[int]procStat{}
	for ; len(queue) > 0; queue = queue[1:] {
		pid := queue[0]
		if _, ok := found[pid]; ok || pid == f.server || pid == os.Getpid() {
			continue
		}
		found[pid] = all[pid]
		queue = append(queue, children[pid]...)
	}
	for pid := range f.known {
		if _, ok := all[pid]; !ok {
			delete(f.known, pid)
		}
	}
	return found
}

func (f *family) marked(pid int, own string) bool {
	if pid == os.Getpid() || pid == f.server {
		return false
	}
	dir := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(dir + "cmdline"); err == nil && bytes.Contains(b, []byte(f.mark)) {
		return true
	}
	// Mounts that the server makes on the host are in everybody's table there.
	if ns, err := os.Readlink(dir + "ns/mnt"); err != nil || ns == own {
		return false
	}
	b, err := os.ReadFile(dir + "mountinfo")
	return err == nil && bytes.Contains(b, []byte(f.mark))
}

// usage is what a set of processes uses.
type usage struct {
	processes int
	pss       int64
	cpu       time.Duration
}

// with adds further processes to members.
func with(members map[int]procStat, more ...int) map[int]procStat {
	all := maps.Clone(members)
	for _, pid := range more {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
			if s, ok := parseStat(b); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// cpuBetween returns the processor time that processes used between two looks at them.
// That of a process which ended meanwhile is known if its parent waited for it and is
// still there.
func cpuBetween(before, after map[int]procStat) (sum time.Duration) {
	for _, s := range after {
		sum += s.cpu
	}
	for pid, s := range before {
		_, there := after[pid]
		if _, waited := after[s.parent]; there || waited {
			sum -= s.cpu
		}
	}
	return sum
}

// memoryOf adds up the proportional set sizes of members. Errors: CodeDenied.
func memoryOf(members map[int]procStat) (usage, error) {
	u := usage{processes: len(members)}
	for pid := range members {
		n, err := pss(pid)
		if err != nil {
			return usage{}, err
		}
		u.pss += n
	}
	return u, nil
}

// available returns how much memory the kernel could still give away, 0 if it
// does not tell.
func available() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return kilobytes(field(b, "MemAvailable"))
}

// daemons returns the processes that listen on the unix socket of a Docker
// Engine and of the containerd it uses: they work for sandboxes without being
// there for one.
func daemons(dockerHost string, members map[int]procStat) []int {
	path, ok := strings.CutPrefix(dockerHost, "unix://")
	if !ok {
		return nil
	}
	paths := map[string]bool{path: true}
	for pid, s := range members {
		if !strings.HasPrefix(s.name, "containerd-shim") {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(b), "\x00")
		if i := slices.Index(args, "-address"); i >= 0 && i+1 < len(args) {
			paths[args[i+1]] = true
		}
	}
	sockets := map[string]bool{}
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// Num RefCount Protocol Flags Type St Inode Path; the flag 10000 is that of
		// a listener.
		if f := strings.Fields(s.Text()); len(f) == 8 && f[3] == "00010000" && (paths[f[7]] || paths["/var"+f[7]] || paths[strings.TrimPrefix(f[7], "/var")]) {
			sockets["socket:["+f[6]+"]"] = true
		}
	}
	return holders(sockets)
}

// holders returns the processes that have one of the sockets open, by the lowest
// number first.
func holders(sockets map[string]bool) []int {
	if len(sockets) == 0 {
		return nil
	}
	found := map[int]bool{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && sockets[link] {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
			found[pid] = true
		}
	}
	var pids []int
	for pid := range found {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}
