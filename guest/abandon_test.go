package guest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// leave makes a call that ends with its context after d.
func leave(t *testing.T, c *Conn, call *Call, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	wantError(t, c.Invoke(ctx, call, &recorder{}), hearth.CodeTimeout, "")
}

// TestOverdue: a call that its caller has left ends in time, or the connection
// does.
func TestOverdue(t *testing.T) {
	for _, tt := range []struct {
		name                       string
		deadline, left, grace, end time.Duration // since the beginning; no deadline if 0
	}{
		{"at the deadline", time.Second, time.Second, 2 * time.Second, 3 * time.Second},
		{"before the deadline", time.Minute, time.Second, time.Second, 61 * time.Second},
		{"after the deadline", time.Second, 4 * time.Second, time.Second, 5 * time.Second},
		{"without a deadline", 0, time.Second, time.Second, 2 * time.Second},
		{"default grace", time.Second, time.Second, 0, 1500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host, far := net.Pipe()
				c := start(t, host, far, Options{Grace: tt.grace, OnSettled: func() { t.Error("it has settled") }}, func(g *script) {
					g.expect(typeInvoke)
					g.expect(typeInvoke)
					g.expect(typeCancel)
				})
				begin := time.Now()
				var others sync.WaitGroup
				others.Go(func() {
					e := wantError(t, c.Invoke(t.Context(), httpCall("other"), &recorder{}), hearth.CodeFunction, "Runtime.ExitError")
					if !strings.Contains(e.Message, "did not end after its deadline") || e.Hint == "" {
						t.Errorf("error %+v", e)
					}
				})
				synctest.Wait()
				call := httpCall("a")
				call.Deadline = time.Time{}
				if tt.deadline > 0 {
					call.Deadline = begin.Add(tt.deadline)
				}
				leave(t, c, call, tt.left)
				if c.Abandoned() != 1 {
					t.Errorf("%d abandoned", c.Abandoned())
				}
				<-c.Done()
				if d := time.Since(begin); d != tt.end {
					t.Errorf("the connection ended after %s, want %s", d, tt.end)
				}
				others.Wait()
				wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ExitError")
				wantError(t, c.Invoke(t.Context(), httpCall("b"), &recorder{}), hearth.CodeFunction, "Runtime.ExitError")
				if c.Abandoned() != 0 {
					t.Errorf("%d abandoned at the end", c.Abandoned())
				}
			})
		})
	}
}

// TestAbandonedCallsEnd: each call that was left counts until the guest has
// ended it, and those that were not left go on.
func TestAbandonedCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		settled, release := make(chan int, 10), make(chan struct{})
		var c *Conn
		c = start(t, host, far, Options{OnSettled: func() { settled <- c.Abandoned() }}, func(g *script) {
			var streams []uint32
			for range 4 {
				streams = append(streams, g.expect(typeInvoke).stream)
			}
			for range 3 {
				g.expect(typeCancel)
			}
			<-release
			g.send(typeError, streams[1], `{"kind":"canceled"}`)
			g.respond(streams[3], "fine")
			g.respond(streams[0], "too late")
			time.Sleep(time.Second)
			g.send(typeError, streams[2], `{"kind":"canceled"}`)
			g.respond(g.expect(typeInvoke).stream, "next")
		})
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				call := httpCall(fmt.Sprint(i))
				call.Deadline = time.Now().Add(time.Hour)
				leave(t, c, call, time.Second)
			})
		}
		time.Sleep(time.Millisecond)
		wg.Go(func() {
			var r recorder
			if err := c.Invoke(t.Context(), httpCall("stays"), &r); err != nil || string(r.body) != "fine" {
				t.Errorf("%q, %v", r.body, err)
			}
		})
		time.Sleep(time.Minute)
		if c.Abandoned() != 3 || len(settled) != 0 {
			t.Errorf("%d abandoned, %d settled", c.Abandoned(), len(settled))
		}
		close(release)
		for _, want := range []int{2, 1, 0} {
			if left := <-settled; left != want {
				t.Errorf("%d abandoned, want %d", left, want)
			}
		}
		wg.Wait()
		time.Sleep(2 * time.Hour) // nothing is overdue any more
		if err := c.Invoke(t.Context(), httpCall("next"), &recorder{}); err != nil {
			t.Error(err)
		}
		if len(settled) != 0 {
			t.Error("a call settled that nobody had left")
		}
	})
}

// TestCloseWithAbandoned: the end of a connection leaves no timer behind.
func TestCloseWithAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		c := start(t, host, far, Options{OnSettled: func() { t.Error("it has settled") }}, func(g *script) {
			g.expect(typeInvoke)
			g.expect(typeCancel)
		})
		leave(t, c, httpCall("a"), time.Second)
		synctest.Wait()
		c.mu.Lock()
		timer := c.calls[1].overdue
		c.mu.Unlock()
		c.Close()
		if timer.Stop() || c.Abandoned() != 0 {
			t.Errorf("the timer still ran, or %d calls are abandoned", c.Abandoned())
		}
		time.Sleep(time.Hour)
		wantError(t, c.Err(), hearth.CodeUnavailable, "")
	})
}

// TestLeaving: callers leave at any moment, also in that of the answer.
func TestLeaving(t *testing.T) {
	host, far := socketpair(t)
	var settled atomic.Int64
	const callers, calls = 8, 200
	c := start(t, host, far, Options{Grace: time.Minute, OnSettled: func() { settled.Add(1) }}, func(g *script) {
		for {
			f, err := g.next()
			if err != nil {
				return
			}
			if f.typ == typeInvoke {
				g.respond(f.stream, "x")
			}
		}
	})
	var wg sync.WaitGroup
	var left atomic.Int64
	for i := range callers {
		wg.Go(func() {
			for j := range calls {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+j)%2 == 0 {
					time.AfterFunc(time.Duration(j%20)*5*time.Microsecond, cancel)
				}
				if err := c.Invoke(ctx, httpCall("a"), &recorder{}); err != nil {
					wantError(t, err, hearth.CodeCanceled, "")
					left.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if err := c.Invoke(t.Context(), httpCall("last"), &recorder{}); err != nil { // answered after all others
		t.Fatal(err)
	}
	if c.Abandoned() != 0 || settled.Load() > left.Load() {
		t.Errorf("%d abandoned; %d settled of %d left", c.Abandoned(), settled.Load(), left.Load())
	}
	t.Logf("%d of %d calls were left, %d under way", left.Load(), callers*calls, settled.Load())
}
