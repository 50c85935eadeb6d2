package drivertest

import (
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func leakCases() []testCase {
	return []testCase{
		{"Leak/cycles", cyclesLeaveNothing},
	}
}

// cyclesLeaveNothing creates and destroys many sandboxes. What leaks a little
// each time, too little for the comparison after one case, adds up here.
func cyclesLeaveNothing(t *testing.T, e *env) {
	cycle := func() {
		g := e.create(t)
		g.echo(t)
		destroy(t, g)
		g.conn.Close()
	}
	cycle() // what a driver makes once and keeps
	files, fds, goroutines := pathCount(e.dir), total(descriptors()), runtime.NumGoroutine()
	start := time.Now()
	for range e.cfg.Cycles {
		cycle()
	}
	t.Logf("%d cycles, %v each", e.cfg.Cycles, time.Since(start)/time.Duration(e.cfg.Cycles))
	few := 3 + e.cfg.Cycles/20
	eventually(t, 5*time.Second, func() string {
		var why []string
		if n := pathCount(e.dir); n > files+few {
			why = append(why, "files grow in number")
		}
		if n := total(descriptors()); n > fds+few {
			why = append(why, "descriptors grow in number")
		}
		if n := runtime.NumGoroutine(); n > goroutines+few {
			why = append(why, "goroutines grow in number")
		}
		e.mu.Lock()
		all := slices.Clone(e.ids)
		e.mu.Unlock()
		if left := append(pathsOf("/sys/fs/cgroup", all), pathsOf(e.dir, all)...); len(left) > 0 {
			why = append(why, "left: "+strings.Join(left, ", "))
		}
		if left := mountsOf(e); len(left) > 0 {
			why = append(why, "mounts left: "+strings.Join(left, ", "))
		}
		return strings.Join(why, "; ")
	})
}

// pathCount returns how many files and directories are below root.
func pathCount(root string) int {
	n := 0
	_ = filepath.WalkDir(root, func(string, fs.DirEntry, error) error { n++; return nil })
	return n
}

func total(m map[string]int) int {
	n := 0
	for _, c := range m {
		n += c
	}
	return n
}

// heap returns the bytes that are in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
