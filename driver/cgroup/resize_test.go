package cgroup

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// TestResize1 changes limits in both directions, and none when one of them
// cannot be had.
func TestResize1(t *testing.T) {
	groups, ok := Find(fmt.Sprintf("hearth-test-%d", time.Now().UnixNano())).(*v1)
	if !ok || groups.shared["memory"] == "" || groups.shared["cpu"] == "" || os.Geteuid() != 0 {
		t.Skip("no groups of version 1 here")
	}
	defer groups.Close()
	made, err := groups.Create("x", driver.Limits{Memory: 64 << 20, CPU: 0.5, PIDs: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := made.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	g := made.(*group1)
	want := func(memory int64, quota string) {
		t.Helper()
		files := []string{memoryLimit}
		if _, err := os.Stat(filepath.Join(g.dir["memory"], memswLimit)); err == nil {
			files = append(files, memswLimit)
		}
		for _, f := range files {
			if n := readInt(g.dir["memory"], f); n != memory {
				t.Errorf("%s is %d, want %d", f, n, memory)
			}
		}
		if q := read(g.dir["cpu"], "cpu.cfs_quota_us"); q != quota {
			t.Errorf("the quota is %s, want %s", q, quota)
		}
	}
	want(64<<20, "50000")
	for _, c := range []struct {
		memory int64
		cpu    float64
		quota  string
	}{{256 << 20, 2, "200000"}, {32 << 20, 0.1, "10000"}, {32 << 20, 0.2, "20000"}, {64 << 20, math.Inf(1), "-1"}, {48 << 20, 0.5, "50000"}} {
		if err := g.Resize(driver.Limits{Memory: c.memory, CPU: c.cpu}); err != nil {
			t.Fatal(err)
		}
		want(c.memory, c.quota)
	}
	// A child must not have more than its parent.
	if err := write(groups.shared["cpu"], "cpu.cfs_quota_us", "60000"); err != nil {
		t.Fatal(err)
	}
	for _, memory := range []int64{32 << 20, 128 << 20} {
		if err := g.Resize(driver.Limits{Memory: memory, CPU: 1}); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("more CPU than the parent has: %v", err)
		}
		want(48<<20, "50000")
	}
}

// TestResize2 does so in files that stand for a group of version 2: nothing
// there reclaims.
func TestResize2(t *testing.T) {
	g := &group2{dir: t.TempDir()}
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := func(memory string) {
		t.Helper()
		if m := read(g.dir, "memory.max"); m != memory {
			t.Errorf("memory.max is %q, want %q", m, memory)
		}
		if h := read(g.dir, "memory.high"); h != "max" {
			t.Errorf("memory.high is %q, want max", h)
		}
	}
	if err := g.Resize(driver.Limits{Memory: 1 << 20, CPU: 1}); err != nil {
		t.Errorf("without controllers: %v", err)
	}
	set("memory.max", "max")
	set("memory.high", "max")
	set("memory.current", strconv.Itoa(40<<20))
	set("cpu.max", "")
	for _, memory := range []int64{64 << 20, 128 << 20, 48 << 20} {
		if err := g.Resize(driver.Limits{Memory: memory, CPU: 0.5}); err != nil {
			t.Fatal(err)
		}
		want(strconv.FormatInt(memory, 10))
	}
	if q := read(g.dir, "cpu.max"); q != "50000 100000" {
		t.Errorf("cpu.max is %q", q)
	}
	err := g.Resize(driver.Limits{Memory: 32 << 20, CPU: 0.1})
	if hearth.ErrorCode(err) != hearth.CodeUnavailable || hearth.AsError(err).Hint == "" {
		t.Errorf("less than is in use: %v", err)
	}
	want(strconv.Itoa(48 << 20))
	if q := read(g.dir, "cpu.max"); q != "50000 100000" {
		t.Errorf("after an error cpu.max is %q", q)
	}
	// The limit of CPU cannot be set: that of memory stays.
	if err := os.Remove(filepath.Join(g.dir, "cpu.max")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(g.dir, "cpu.max"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := g.Resize(driver.Limits{Memory: 256 << 20, CPU: 1}); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("without a limit of CPU: %v", err)
	}
	want(strconv.Itoa(48 << 20))
}
