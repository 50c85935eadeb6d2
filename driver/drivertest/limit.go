package drivertest

import (
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
)

func limitCases() []testCase {
	return []testCase{
		{"Limit/memory hog", memoryHog},
		{"Limit/tmp counts as memory", tmpIsBounded},
		{"Limit/cpu", cpuQuota},
		{"Limit/fork bomb", forkBomb},
		{"Limit/descendants", manyThreads},
		{"Limit/disk filler", diskFiller},
	}
}

// helpers is how many processes and threads of its own a driver may have inside
// a sandbox besides Limits.PIDs of the guest's.
const helpers = 8

func memoryHog(t *testing.T, e *env) {
	e.skipUnless(t, e.info.MemoryLimit, "memory limit")
	g := e.create(t, func(s *driver.Spec) { s.Limits.Memory = 96 << 20 })
	g.do(t, request{Op: "allocate", N: 32 << 20}) // what is allowed works
	if a, err := g.try(request{Op: "allocate", N: 1 << 30}); err == nil && a.Err == "" {
		t.Errorf("the guest took 1 GiB with a limit of 96 MiB")
	}
	if s, err := g.Stats(e.context(t)); err == nil && max(s.Memory, s.MemoryPeak) > 100<<20 {
		t.Errorf("Stats tell of %d bytes with a limit of 96 MiB", max(s.Memory, s.MemoryPeak))
	}
	destroy(t, g)
	e.create(t).echo(t)
}

func tmpIsBounded(t *testing.T, e *env) {
	e.skipUnless(t, e.info.MemoryLimit, "memory limit")
	g := e.create(t, func(s *driver.Spec) { s.Limits.Memory, s.Limits.Disk = 64<<20, 1<<30 })
	// Either the disk is real and has room, or it is memory and ends the guest.
	a, err := g.try(request{Op: "write", Path: "/tmp/big", N: 512 << 20})
	if err == nil && a.Err == "" {
		if s, err := g.Stats(e.context(t)); err != nil || s.Memory > 68<<20 {
			t.Errorf("512 MiB in /tmp got around a memory limit of 64 MiB: %+v, %v", s, err)
		}
	}
}

func cpuQuota(t *testing.T, e *env) {
	e.skipUnless(t, e.info.CPULimit, "CPU limit")
	const wall = 2 * time.Second
	g := e.create(t, func(s *driver.Spec) { s.Limits.CPU = 0.25 })
	g.echo(t)
	host := func() time.Duration {
		s, err := g.Stats(e.context(t))
		if err != nil {
			t.Fatalf("Stats: %v", err)
		}
		return s.CPU
	}
	before, start := host(), time.Now()
	a := g.do(t, request{Op: "spin", N: 2, Timeout: wall})
	used, took := time.Duration(a.N), time.Since(start)
	charged := host() - before
	// Generous: quotas are kept over periods, and other programs run beside.
	const most = 0.25 * 1.8
	share := float64(used) / float64(took)
	if share <= most {
		return
	}
	// A kernel of the sandbox's own does not know when the host stops it, and
	// counts that time. What the host has charged must be less, then, but not
	// so little that it was not counted.
	if c := float64(charged) / float64(took); c > most || c < 0.25/4 {
		t.Errorf("two busy threads got %.2f cores with a limit of 0.25; the host charged for %.2f", share, c)
	}
}

func forkBomb(t *testing.T, e *env) {
	e.skipUnless(t, e.info.PIDLimit, "limit of processes")
	g := e.create(t, func(s *driver.Spec) { s.Limits.PIDs, s.Limits.Memory = 64, 512<<20 })
	bystander := e.create(t)
	a := g.ask(t, request{Op: "spawn", N: 500})
	if a.Err == "" || a.N >= 64 {
		t.Errorf("the guest started %d processes with a limit of 64 (%s)", a.N, a.Err)
	}
	if syscall.Errno(a.Errno) != syscall.EAGAIN {
		t.Errorf("the error is %s, want that of a limit", a.Err)
	}
	s, err := g.Stats(e.context(t))
	if err != nil || s.PIDs > 64+helpers {
		t.Errorf("Stats tell of %d processes and threads with a limit of 64, %v", s.PIDs, err)
	}
	bystander.echo(t)
	start := time.Now()
	destroy(t, g)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Destroy of a fork bomb took %v", d)
	}
}

func manyThreads(t *testing.T, e *env) {
	e.skipUnless(t, e.info.PIDLimit, "limit of processes")
	g := e.create(t, func(s *driver.Spec) { s.Limits.PIDs, s.Limits.Memory = 48, 512<<20 })
	// The guest itself counts as well; what the driver's own tasks leave of their
	// part may be the guest's.
	if a := g.ask(t, request{Op: "threads", N: 500}); a.Err == "" || a.N >= 48+helpers {
		t.Errorf("the guest started %d descendants with a limit of 48 (%s)", a.N, a.Err)
	}
}

func diskFiller(t *testing.T, e *env) {
	g := e.create(t, func(s *driver.Spec) { s.Limits.Disk, s.Limits.Memory = 16<<20, 256<<20 })
	var sum int64
	for _, dir := range []string{"/tmp", "/dev/shm", "/var/tmp", "/run", "/root", "/home", "/"} {
		a := g.ask(t, request{Op: "write", Path: dir + "/fill", N: 128 << 20})
		sum += a.N
		if a.Err == "" {
			t.Errorf("the guest wrote 128 MiB to %s with a limit of 16 MiB in total", dir)
		} else if dir == "/tmp" && syscall.Errno(a.Errno) != syscall.ENOSPC && syscall.Errno(a.Errno) != syscall.EDQUOT {
			t.Errorf("the error is %s, want ENOSPC", a.Err)
		}
		if dir == "/tmp" && a.N < 8<<20 {
			t.Errorf("only %d bytes could be written to /tmp with a limit of 16 MiB", a.N)
		}
	}
	if sum > 17<<20 {
		t.Errorf("the guest wrote %d bytes in total with a limit of 16 MiB", sum)
	}
	g.echo(t)
}
