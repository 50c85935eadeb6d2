package drivertest

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func waitCases() []testCase {
	return []testCase{
		{"Wait/exit code", exitCode},
		{"Wait/signal", exitSignal},
		{"Wait/destroyed", exitDestroyed},
		{"Wait/many callers", waitMany},
		{"Wait/canceled", waitCanceled},
		{"Wait/out of memory", exitOutOfMemory},
	}
}

func exitCode(t *testing.T, e *env) {
	for _, code := range []int{0, 1, 42, 255} {
		g := e.create(t)
		g.say(t, request{Op: "exit", N: int64(code)})
		if x := g.wait(t); x != (driver.Exit{Code: code}) {
			t.Errorf("Exit is %+v, want code %d and nothing else", x, code)
		}
		g.ended(t)
		destroy(t, g)
		if x := g.wait(t); x != (driver.Exit{Code: code}) {
			t.Errorf("after Destroy Exit is %+v, want the same as before", x)
		}
	}
}

func exitSignal(t *testing.T, e *env) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		g := e.create(t)
		// As pid 1 of its namespace a guest could not kill itself.
		if a, err := g.try(request{Op: "kill", N: int64(sig)}); err == nil {
			t.Fatalf("the guest survived signal %v: %s", sig, a.Err)
		}
		if x := g.wait(t); x != (driver.Exit{Code: -1, Signal: int(sig)}) {
			t.Errorf("Exit is %+v, want code -1, signal %d and nothing else", x, sig)
		}
	}
}

func exitDestroyed(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	early := make(chan driver.Exit, 1)
	go func() {
		x, _ := g.Wait(context.Background())
		early <- x
	}()
	destroy(t, g)
	a, b := <-early, g.wait(t)
	if !a.Destroyed || a.OOM || a != b {
		t.Errorf("Exits are %+v before and %+v after Destroy, want the same, Destroyed", a, b)
	}
}

func waitMany(t *testing.T, e *env) {
	g := e.create(t)
	exits := make([]driver.Exit, 16)
	var wg sync.WaitGroup
	for i := range exits {
		wg.Go(func() {
			x, err := g.Wait(t.Context())
			if err != nil {
				t.Errorf("Wait: %v", err)
			}
			exits[i] = x
		})
	}
	g.say(t, request{Op: "exit", N: 7})
	wg.Wait()
	for _, x := range append(exits, g.wait(t), g.wait(t)) {
		if x != (driver.Exit{Code: 7}) {
			t.Errorf("Exit is %+v, want code 7 for every caller", x)
		}
	}
}

func waitCanceled(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	for _, ctx := range []func() (context.Context, context.CancelFunc){
		func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx, cancel
		},
		func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 50*time.Millisecond)
		},
	} {
		ctx, cancel := ctx()
		result := make(chan error, 1)
		go func() {
			_, err := g.Wait(ctx)
			result <- err
		}()
		select {
		case err := <-result:
			if c := hearth.ErrorCode(err); !errors.Is(err, ctx.Err()) && c != hearth.CodeCanceled && c != hearth.CodeTimeout {
				t.Errorf("error of Wait is %v, want that of its context", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Wait does not end with its context")
			destroy(t, g)
			<-result
		}
		cancel()
	}
	g.echo(t) // nobody was harmed
}

func exitOutOfMemory(t *testing.T, e *env) {
	e.skipUnless(t, e.info.MemoryLimit, "memory limit")
	g := e.create(t, func(s *driver.Spec) { s.Limits.Memory = 64 << 20 })
	bystander := e.create(t)
	if a, err := g.try(request{Op: "allocate", N: 512 << 20}); err == nil && a.Err == "" {
		t.Fatalf("the guest could take 512 MiB with a limit of 64 MiB")
	} else if err == nil {
		t.Skipf("the guest was refused memory instead of being killed: %s", a.Err)
	}
	if x := g.wait(t); !x.OOM || x.Destroyed {
		t.Errorf("Exit is %+v, want OOM", x)
	}
	bystander.echo(t)
	// A kill that is not the kernel's for memory must not look like one.
	if _, err := bystander.try(request{Op: "kill", N: int64(syscall.SIGKILL)}); err == nil {
		t.Error("the guest survived SIGKILL")
	}
	if x := bystander.wait(t); x.OOM {
		t.Errorf("Exit is %+v of a guest that was killed by itself, with OOM", x)
	}
}
