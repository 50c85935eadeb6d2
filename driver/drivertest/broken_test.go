package drivertest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// brokenEnv names, in a process that this test starts, what the driver there
// does wrong; guestEnv the directory of the test guest.
const (
	brokenEnv = "HEARTH_TEST_BROKEN"
	guestEnv  = "HEARTH_TEST_GUEST"
)

// faults are ways to be wrong, each with the case that must find it. All but
// the first are one deviation of processDriver from the contract.
var faults = []struct {
	fault, finder string
}{
	{"untruthful probe", ""},
	{"second dial allowed", "Lifecycle/one stream"},
	{"duplicate id allowed", "Lifecycle/duplicate id"},
	{"destroy is not idempotent", "Lifecycle/destroy idempotent"},
	{"stats are made up", "Lifecycle/stats"},
	{"pause does nothing", "Lifecycle/pause"},
	{"process left", "Limit/fork bomb"},
	{"file left", "Lifecycle/echo"},
	{"descriptor left", "Lifecycle/destroy undialed"},
	{"goroutine left", "Lifecycle/destroy canceled"},
	{"dir grows", "Leak/cycles"},
	{"create ignores cancellation", "Lifecycle/create canceled"},
	{"failed create leaves a file", "Spec/bad"},
	{"invalid ids allowed", "Spec/bad/id in capitals"},
	{"environment leaks", "Spec/environment"},
	{"exits differ", "Wait/many callers"},
	{"destroyed is not told", "Wait/destroyed"},
	{"code is lost", "Wait/exit code"},
	{"wait ignores its context", "Wait/canceled"},
	{"output lost", "Output/complete and in order"},
	{"output after destroy", "Output/none after destroy"},
	{"lists others", "Owner/others"},
	{"list is empty", "Owner/list"},
	{"forgets over a restart", "Owner/restart"},
	{"mount shows nothing", "Slot/files"},
	{"links are followed", "Slot/files"},
	{"modes are lost", "Slot/files"},
	{"second mount allowed", "Slot/refused"},
	{"any target is a slot", "Slot/refused"},
	{"mount after destroy allowed", "Slot/destroyed"},
	{"slots left", "Slot/destroyed"},
	{"slots left", "Slot/destroy meanwhile"},
	{"slots left over a restart", "Slot/restart"},
	{"any resize allowed", "Resize/refused"},
}

// isolationFinders are cases that a driver which isolates nothing must fail. Those
// in which a guest without isolation would harm the host are not among them.
var isolationFinders = []string{
	"Spec/mounts", "Isolation/host files", "Isolation/host processes", "Isolation/abstract sockets",
	"Isolation/privileges", "Isolation/terminals", "Isolation/out of memory", "Isolation/descriptors",
	"Lifecycle/destroy with orphans", "Limit/disk filler", "Egress/none", "Slot/read-only", "Slot/apart",
	"Resize/memory", "Resize/memory in use",
}

// TestProcess shows that the suite passes what keeps the rule: every case that
// finds a fault passes with the driver that does not have it.
func TestProcess(t *testing.T) {
	binary := buildGuest(t)
	for _, f := range faults {
		if f.fault == "untruthful probe" || f.fault == "process left" || f.finder == "Spec/bad" {
			continue // also test what a plain process cannot do
		}
		if out, failed := runBroken(t, binary, "nothing", f.finder); failed {
			t.Errorf("%s fails a driver that is right:\n%s", f.finder, out)
		}
	}
}

// TestSuiteFindsBrokenDrivers runs the suite against drivers that are wrong in
// one thing each, in processes of their own, and expects the case that is about
// that thing to fail.
func TestSuiteFindsBrokenDrivers(t *testing.T) {
	binary := buildGuest(t)
	for _, f := range faults {
		t.Run(f.fault, func(t *testing.T) {
			out, failed := runBroken(t, binary, f.fault, f.finder)
			if !failed {
				t.Errorf("the case %q does not find it:\n%s", f.finder, out)
			}
		})
	}
	for _, c := range isolationFinders {
		t.Run("no isolation/"+c, func(t *testing.T) {
			out, failed := runBroken(t, binary, "claims all limits", c)
			if !failed {
				t.Errorf("the case %q passes a plain process:\n%s", c, out)
			}
		})
	}
}

// runBroken runs one case against a driver with a fault and tells whether the
// case itself failed.
func runBroken(t *testing.T, binary, fault, finder string) (string, bool) {
	t.Helper()
	pattern := "^TestBroken$"
	name := "TestBroken"
	for _, part := range strings.Split(finder, "/") {
		if part != "" {
			part = strings.ReplaceAll(part, " ", "_")
			pattern += "/^" + regexp.QuoteMeta(part) + "$"
			name += "/" + part
		}
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", pattern, "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), brokenEnv+"="+fault, guestEnv+"="+binary)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "=== RUN   "+name) {
		t.Fatalf("the case %s did not run:\n%s", name, out)
	}
	failed := strings.Contains(string(out), "--- FAIL: "+name+" (")
	if failed != (err != nil) {
		t.Fatalf("the case %s ended in another way than by passing or failing: %v\n%s", name, err, out)
	}
	return string(out), failed
}

// TestBroken is what runBroken runs.
func TestBroken(t *testing.T) {
	fault := os.Getenv(brokenEnv)
	if fault == "" {
		t.Skip("runs only as a part of TestSuiteFindsBrokenDrivers")
	}
	cfg := newProcessDriver(fault)
	cfg.guest, cfg.patience, cfg.Start = os.Getenv(guestEnv), time.Second, 5*time.Second
	cfg.slots = filepath.Join(t.TempDir(), "slots")
	Run(t, cfg)
}
