// Package drivertest is the contract of package driver as an executable
// specification. A driver is right when Run passes.
//
// A driver's test is a factory and one call:
//
//	func TestDriver(t *testing.T) {
//		drivertest.Run(t, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver { … }})
//	}
//
// Every case makes a driver of its own, and whatever the case does, processes,
// mounts, cgroups, network devices, goroutines, descriptors and files of before
// and after are compared. What a host cannot enforce, as the driver's Info
// says, is skipped with the reason; nothing else is.
package drivertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
)

// Config says what to test.
type Config struct {
	// New makes the driver of the installation that has the data directory dir
	// and the name owner. Called again with the same values after Close, it
	// stands for the restart of that installation. It must not return nil.
	New func(t testing.TB, dir, owner string) driver.Driver
	// Runtime of the sandboxes. Default "provided".
	Runtime string
	// Cycles is how many sandboxes the leak case creates and destroys. Default
	// the environment variable HEARTH_TEST_CYCLES, or 50.
	Cycles int
	// Start is how long a sandbox may take to start and to answer. Default 30 s;
	// emulated machines need more.
	Start time.Duration

	slots    string        // where slots are inside
	guest    string        // directory of a test guest already built
	patience time.Duration // how long what was freed may take to vanish
}

func (c Config) withDefaults() Config {
	if c.Runtime == "" {
		c.Runtime = "provided"
	}
	if c.Cycles == 0 {
		c.Cycles = 50
		if n, err := strconv.Atoi(os.Getenv("HEARTH_TEST_CYCLES")); err == nil {
			c.Cycles = n
		}
	}
	if c.Start == 0 {
		c.Start = 30 * time.Second
	}
	if c.slots == "" {
		c.slots = "/slots"
	}
	if c.patience == 0 {
		c.patience = 5 * time.Second
	}
	return c
}

// testCase is one rule of the contract.
type testCase struct {
	name string
	run  func(*testing.T, *env)
}

// cases are grouped by topic, one file each.
func cases() []testCase {
	var all []testCase
	for _, group := range [][]testCase{
		lifecycleCases(), specCases(), waitCases(), ownerCases(), outputCases(),
		limitCases(), isolationCases(), egressCases(), slotCases(), resizeCases(), leakCases(),
	} {
		all = append(all, group...)
	}
	return all
}

// Run tests a driver against the whole contract. When the driver does not work
// on this host, it only checks that Probe says why, and skips the rest.
func Run(t *testing.T, cfg Config) {
	cfg = cfg.withDefaults()
	binary := cfg.guest
	if binary == "" {
		binary = buildGuest(t)
	}
	info := probe(t, cfg)
	if !info.Works {
		if len(info.Missing) == 0 {
			t.Fatal("Probe says that the driver does not work, but not what is missing")
		}
		t.Skipf("the driver %s does not work here: %v", info.Name, info.Missing)
	}
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) { c.run(t, newEnv(t, cfg, info, binary)) })
	}
}

// probe asks a driver of its own, so that no case depends on it.
func probe(t testing.TB, cfg Config) driver.Info {
	t.Helper()
	d := cfg.New(t, t.TempDir(), "probe-"+strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*cfg.Start)
	defer cancel()
	info, err := d.Probe(ctx)
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	return info
}

// buildGuest compiles the test guest and returns the directory it is in.
func buildGuest(t testing.TB) string {
	t.Helper()
	// Not t.TempDir: an ordinary user's sandbox must be able to enter it.
	dir, err := os.MkdirTemp("", "hearth-testguest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w",
		"-o", filepath.Join(dir, "testguest"), "github.com/hearthrun/hearth/driver/drivertest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest: %v\n%s", err, out)
	}
	return dir
}
