package drivertest

import (
	"strconv"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// TestProcess shows that the suite passes what it should: the cases that a
// plain process can satisfy.
func TestProcess(t *testing.T) {
	Run(t, newProcessDriver(""))
}
