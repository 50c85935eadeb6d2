package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKillListedSparesItself: a group of version 1 lists this process while one
// of its threads is inside.
func TestKillListedSparesItself(t *testing.T) {
	killListed(func() []int { return []int{os.Getpid()} })
}

// TestSecondDriver finds a place in a delegated group for the driver that moves
// the server and for the one that comes after.
func TestSecondDriver(t *testing.T) {
	root := t.TempDir()
	service := filepath.Join(root, "hearth.service")
	leaf := filepath.Join(service, serverLeaf)
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, pid := range map[string]int{root: 1, service: os.Getpid(), leaf: 0} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := unix.Setxattr(service, "trusted.delegate", []byte("1"), 0); err != nil {
			t.Skipf("groups cannot be marked as delegated: %v", err)
		}
	}
	own := service
	for _, name := range []string{"first", "second"} {
		groups, ok := newV2(own, root, name).(*v2)
		if !ok || groups.shared != filepath.Join(service, name) {
			t.Fatalf("the %s driver's groups are %+v", name, groups)
		}
		own = leaf // where the first has moved the server
	}
	if pids := readPIDs(leaf); len(pids) != 1 || pids[0] != os.Getpid() {
		t.Errorf("the server was not moved: %v", pids)
	}
}
