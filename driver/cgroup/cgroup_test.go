package cgroup

import (
	"os"
	"testing"
)

// TestKillListedSparesItself: a group of version 1 lists this process while one
// of its threads is inside.
func TestKillListedSparesItself(t *testing.T) {
	killListed(func() []int { return []int{os.Getpid()} })
}
