package drivertest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// snapshot is what exists on the host and in this process at one moment.
type snapshot struct {
	processes map[string]string // by process id and start time
	fds       map[string]int    // how many descriptors refer to what
	devices   map[string]bool   // network devices
	ignore    goleak.Option     // goroutines that exist
}

// takeSnapshot looks at what belongs to us. What other programs on the host do
// meanwhile does not count: processes are our descendants and test guests;
// mounts, cgroups and files are those that bear the name of a sandbox.
func takeSnapshot(e *env) snapshot {
	return snapshot{
		processes: ourProcesses(e.binary),
		fds:       descriptors(),
		devices:   devices(),
		ignore:    goleak.IgnoreCurrent(),
	}
}

// compareSnapshots fails the test for everything that is there now and was not
// before, after giving it a moment to go.
func compareSnapshots(t *testing.T, e *env, before snapshot) {
	t.Helper()
	eventually(t, e.cfg.patience, func() string { return strings.Join(differences(e, before), "\n") })
	if err := goleak.Find(before.ignore); err != nil {
		t.Errorf("goroutines left: %v", err)
	}
	// What a wrong driver has left must not outlive its test.
	for id := range ourProcesses(e.binary) {
		if _, ok := before.processes[id]; !ok {
			pid, _, _ := strings.Cut(id, "@")
			if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && filepath.Base(exe) == "testguest" {
				n, _ := strconv.Atoi(pid)
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
}

func differences(e *env, before snapshot) []string {
	var diff []string
	for id, what := range ourProcesses(e.binary) {
		if _, ok := before.processes[id]; !ok {
			diff = append(diff, "process left: "+what)
		}
	}
	for what, n := range descriptors() {
		if n > before.fds[what] {
			diff = append(diff, fmt.Sprintf("%d descriptors left: %s", n-before.fds[what], what))
		}
	}
	for name := range devices() {
		if !before.devices[name] && (strings.Contains(name, "hearth") || namesAny(name, e.ids)) {
			diff = append(diff, "network device left: "+name)
		}
	}
	for _, m := range mountsOf(e) {
		diff = append(diff, "mount left: "+m)
	}
	for _, root := range []string{"/sys/fs/cgroup", "/run/netns", e.dir} {
		for _, p := range pathsOf(root, e.ids) {
			diff = append(diff, "file left: "+p)
		}
	}
	return diff
}

// ourProcesses returns the descendants of this process, and every process that
// runs the test guest, whoever its parent is.
func ourProcesses(binary string) map[string]string {
	guest, err := os.Stat(filepath.Join(binary, "testguest"))
	if err != nil {
		guest = nil
	}
	type process struct{ parent, start, state, name string }
	all := map[string]process{}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid := entry.Name()
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		name, rest, ok := bytes.Cut(b, []byte(") "))
		f := strings.Fields(string(rest))
		if !ok || len(f) < 20 {
			continue
		}
		all[pid] = process{f[1], f[19], f[0], string(name)}
	}
	self := strconv.Itoa(os.Getpid())
	ours := map[string]string{}
	for pid, p := range all {
		is := false
		for up := pid; up != "" && up != "0" && !is; up = all[up].parent {
			is = all[up].parent == self
		}
		if !is && guest != nil {
			exe, err := os.Stat("/proc/" + pid + "/exe")
			is = err == nil && os.SameFile(exe, guest)
		}
		if is {
			ours[pid+"@"+p.start] = p.name + ") state " + p.state + ", parent " + p.parent
		}
	}
	return ours
}

// descriptors counts this process' open descriptors by what they refer to; the
// numbers of sockets and pipes differ each time and are left out.
func descriptors() map[string]int {
	found := map[string]int{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || link == "anon_inode:[eventpoll]" || link == "anon_inode:[eventfd]" {
			continue // gone already, or the Go runtime's
		}
		for _, kind := range []string{"socket:", "pipe:", "mnt:", "net:", "pid:", "user:", "ipc:", "uts:", "cgroup:"} {
			if strings.HasPrefix(link, kind+"[") {
				link = kind
			}
		}
		found[link]++
	}
	return found
}

func devices() map[string]bool {
	found := map[string]bool{}
	entries, _ := os.ReadDir("/sys/class/net")
	for _, e := range entries {
		found[e.Name()] = true
	}
	return found
}

// mountsOf returns the mounts in our namespace that bear the name of a sandbox
// or lie below the data directory.
func mountsOf(e *env) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var list []string
	for line := range strings.Lines(string(b)) {
		if namesAny(line, e.ids) || strings.Contains(line, e.dir+"/") || strings.Contains(line, e.dir+" ") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// pathsOf returns the paths below root that bear the name of a sandbox.
func pathsOf(root string, ids []string) []string {
	var list []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has just gone
		}
		if namesAny(d.Name(), ids) {
			list = append(list, path)
			if d.IsDir() {
				return filepath.SkipDir
			}
		}
		// The files of a cgroup never bear a name of ours.
		return nil
	})
	return list
}

func namesAny(s string, ids []string) bool {
	for _, id := range ids {
		if strings.Contains(s, id) {
			return true
		}
	}
	return false
}
