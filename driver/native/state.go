package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/driver/slots"
)

// record is what the state file of a sandbox says: which process is its pid 1.
// The number alone could mean a stranger later; number, start time and boot
// together cannot.
type record struct {
	pid   int
	start string // field 22 of /proc/PID/stat: ticks since boot
	boot  string
}

func (d *Driver) statePath(id string) string { return filepath.Join(d.dir, runDir, id) }

func (d *Driver) slotPath(id string) string { return filepath.Join(d.dir, slotDir, id) }

// remember writes the state file.
func (d *Driver) remember(id string, pid int) error {
	r := record{pid: pid, start: startTime(pid), boot: bootID()}
	return os.WriteFile(d.statePath(id), fmt.Appendf(nil, "%d %s %s\n", r.pid, r.start, r.boot), 0o600)
}

// forget removes the state file.
func (d *Driver) forget(id string) error {
	if err := os.Remove(d.statePath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// orphan returns a sandbox of an earlier process, so that it can be destroyed.
func (d *Driver) orphan(id string) *sandbox {
	s := &sandbox{
		driver: d, id: id, group: d.cgroups.Open(id), orphan: &record{}, slots: slots.New(d.slotPath(id), nil),
		started: make(chan error, 1), done: make(chan struct{}), output: output{ended: make(chan struct{})},
	}
	b, _ := os.ReadFile(d.statePath(id))
	if f := strings.Fields(string(b)); len(f) == 3 {
		s.orphan.pid, _ = strconv.Atoi(f[0])
		s.orphan.start, s.orphan.boot = f[1], f[2]
	}
	return s
}

// hold returns a descriptor of the recorded process, or -1 if it is gone.
func (r *record) hold() int {
	if r.pid <= 0 || r.boot != bootID() {
		return -1
	}
	fd, err := unix.PidfdOpen(r.pid, 0)
	if err != nil {
		return -1
	}
	if startTime(r.pid) != r.start {
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

func (r *record) kill() {
	if fd := r.hold(); fd >= 0 {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	}
}

// gone waits for the recorded process to end.
func (r *record) gone(ctx context.Context) bool {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		fd := r.hold()
		if fd < 0 {
			return true
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		_ = unix.Close(fd)
		if n > 0 {
			return true // a zombie: its parent's affair
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

func startTime(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "gone"
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "gone"
	}
	return f[19]
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
