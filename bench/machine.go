package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

// Machine is what the figures were measured on. Figures of two machines cannot
// be compared; ratios can, with care.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"` // usable by this process
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"`
	Go     string `json:"go"`
}

// describeMachine asks the kernel. What it does not tell stays "unknown" or 0.
func describeMachine() Machine {
	m := Machine{CPU: "unknown", Cores: runtime.NumCPU(), Kernel: "unknown", Arch: runtime.GOARCH, Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		// "model name" on x86, "Model" on some ARM machines.
		for _, key := range []string{"model name", "Model", "cpu"} {
			if v := field(b, key); v != "" {
				m.CPU = strings.Join(strings.Fields(v), " ")
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.Memory = kilobytes(field(b, "MemTotal"))
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// busyShare returns which part of the machine's cores, 0 to 1, is busy during d.
func busyShare(ctx context.Context, d time.Duration) (float64, error) {
	busy, total := telemetry.CPUTimes()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	busy2, total2 := telemetry.CPUTimes()
	if total2 <= total {
		return 0, nil
	}
	return min(max((busy2-busy)/(total2-total), 0), 1), nil
}

// field returns the value of the first "key : value" line.
func field(b []byte, key string) string {
	for line := range bytes.Lines(b) {
		k, v, ok := bytes.Cut(line, []byte(":"))
		if ok && string(bytes.TrimSpace(k)) == key {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}

// kilobytes parses "123 kB" to bytes, 0 if it is something else.
func kilobytes(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return n * 1024
}

// rss returns the resident set of a process. Errors: CodeNotFound.
func rss(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if n := kilobytes(field(b, "VmRSS")); err == nil && n > 0 {
		return n, nil
	}
	return 0, hearth.Errorf(hearth.CodeNotFound, "the memory of process %d cannot be read", pid)
}

// pss returns the proportional set size of a process, 0 when it is gone. Errors:
// CodeDenied if it belongs to someone else.
func pss(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if errors.Is(err, fs.ErrPermission) {
		return 0, hearth.Errorf(hearth.CodeDenied, "the memory of process %d cannot be read", pid).
			WithHint("run hearth bench as the user that runs hearth serve, or as root")
	}
	return kilobytes(field(b, "Pss")), nil
}

// descendants returns the processes below pid, without it.
func descendants(pid int) map[int]bool {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // gone meanwhile
		}
		// "12 (a name) S 1 …": the name may contain anything, so look behind it.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		child, err1 := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err1 != nil || len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], child)
	}
	found := map[int]bool{}
	for queue := children[pid]; len(queue) > 0; queue = queue[1:] {
		if !found[queue[0]] {
			found[queue[0]] = true
			queue = append(queue, children[queue[0]]...)
		}
	}
	return found
}

// listener returns the process that listens on the local TCP port. Errors:
// CodeNotFound if there is none or it belongs to someone else.
func listener(port int) (int, error) {
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
			fields := strings.Fields(s.Text())
			if len(fields) < 10 || fields[3] != "0A" {
				continue
			}
			_, p, _ := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(p, 16, 16); err == nil && int(n) == port {
				sockets["socket:["+fields[9]+"]"] = true
			}
		}
		f.Close()
	}
	if pids := holders(sockets); len(pids) > 0 {
		return pids[0], nil
	}
	return 0, hearth.Errorf(hearth.CodeNotFound, "the process that listens on port %d cannot be seen", port).
		WithHint("run hearth bench as the user that runs hearth serve, or as root")
}
