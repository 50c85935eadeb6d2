package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// short are options that finish in a moment.
func short(f *fakeHearth, runtime string) Options {
	return Options{
		BaseURL: f.URL, Runtime: runtime, Concurrencies: []int{2, 1}, Rounds: 2,
		Warmup: 10 * time.Millisecond, Duration: 50 * time.Millisecond, ColdIterations: 2,
		ReadyTime: 123 * time.Millisecond, rest: 20 * time.Millisecond, Version: "v0", Command: "hearth bench",
	}
}

func TestRun(t *testing.T) {
	for _, tt := range []struct{ runtime, pinned string }{{"python", "python3.11"}, {"nodejs", "nodejs20"}} {
		t.Run(tt.runtime, func(t *testing.T) {
			installed(t, tt.runtime)
			f := newFakeHearth(t)
			var progress bytes.Buffer
			o := short(f, tt.runtime)
			o.Duration = 300 * time.Millisecond // long enough for an answer on a busy machine
			r, err := Run(t.Context(), o, &progress)
			if err != nil {
				t.Fatalf("%v\n%s", err, &progress)
			}
			if left := f.left(); len(left) > 0 {
				t.Errorf("functions %v are left", left)
			}
			if n := descendants(os.Getpid()); len(n) > 0 {
				t.Errorf("processes %v are left", n)
			}
			if r.Runtime != tt.pinned || r.Interpreter == "" || r.Driver != "native" {
				t.Errorf("runtime %q, interpreter %q, driver %q", r.Runtime, r.Interpreter, r.Driver)
			}
			if len(r.Cells) != 8 { // 4 targets, 2 concurrencies
				t.Fatalf("%d cells", len(r.Cells))
			}
			for _, c := range r.Cells {
				if !c.Valid() || c.Throughput <= 0 || c.P50MS <= 0 || c.P99MS < c.P50MS || len(c.Rounds) != 2 {
					t.Errorf("bad cell %+v", c)
				}
			}
			cold := r.Cold
			if cold == nil || cold.Iterations != 2 || cold.StartMS != 20 || cold.InitMS != 5 || cold.RunMS != 1 ||
				cold.Wall.P50MS <= 0 || cold.Bare.MinMS <= 1 || cold.Problem != "" {
				t.Errorf("cold starts %+v", cold)
			}
			// The fake's instances are sleep processes of under 2 MB; the server is
			// this test.
			m := r.Memory
			if m.Instances != idleCount || m.InstancePSS < 4096 || m.InstancePSS > 5<<20 || m.ServerRSS < 1<<20 || !m.ServerIsSelf {
				t.Errorf("memory %+v", m)
			}
			for _, c := range r.Checks {
				if c.Verdict == NotMeasured {
					t.Errorf("check %+v", c)
				}
			}
			if len(r.Checks) != 6 {
				t.Errorf("%d checks", len(r.Checks))
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			var back Report
			if err := json.Unmarshal(b, &back); err != nil || back.Table() != r.Table() {
				t.Errorf("the report does not survive JSON: %v", err)
			}
			for _, want := range []string{"deployed bench-echo-", "round 2/2", "cold start", "idle instance"} {
				if !strings.Contains(progress.String(), want) {
					t.Errorf("progress lacks %q:\n%s", want, &progress)
				}
			}
		})
	}
}

// TestRunCancel interrupts a run at each of its steps.
func TestRunCancel(t *testing.T) {
	installed(t, "python")
	for _, step := range []string{"measuring", "deployed bench-echo", "cold start", "deployed bench-idle", "go-noop", "hearth     @"} {
		t.Run(step, func(t *testing.T) {
			f := newFakeHearth(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := short(f, "python")
			_, err := Run(ctx, o, writerFunc(func(b []byte) {
				if strings.Contains(string(b), step) {
					cancel()
				}
			}))
			if hearth.ErrorCode(err) != hearth.CodeCanceled {
				t.Errorf("got %v, want canceled", err)
			}
			if left := f.left(); len(left) > 0 {
				t.Errorf("functions %v are left", left)
			}
			if n := descendants(os.Getpid()); len(n) > 0 {
				t.Errorf("processes %v are left", n)
			}
		})
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// TestRunBadServer: what cannot be measured is said, and never a number.
func TestRunBadServer(t *testing.T) {
	installed(t, "python")
	f := newFakeHearth(t)
	f.noEvict = true
	o := short(f, "python")
	o.Rounds, o.Concurrencies = 1, []int{1}
	r, err := Run(t.Context(), o, writerFunc(func(b []byte) {
		if strings.Contains(string(b), "go-noop") {
			f.broken.Store(true)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, c := range r.Checks {
		if c.Verdict == NotMeasured {
			verdicts[c.Name] = c.Why
		}
	}
	for name, why := range map[string]string{
		"throughput @1 ÷ Go no-op":      "hearth: status 503: out of order",
		"p50 @1 ÷ proxy hop":            "hearth: status 503: out of order",
		"cold start ÷ bare interpreter": "404",
	} {
		if !strings.Contains(verdicts[name], why) {
			t.Errorf("%s: %q, want %q", name, verdicts[name], why)
		}
	}
	if r.Memory.InstanceProblem == "" || r.Memory.InstancePSS != 0 {
		t.Errorf("memory %+v", r.Memory)
	}
	if !strings.Contains(r.Table(), "INVALID") {
		t.Errorf("the table does not tell:\n%s", r.Table())
	}
}

// TestColdOnly: a warm answer is no cold start.
func TestColdOnly(t *testing.T) {
	i := installed(t, "python")
	cold := func(evicts func(n int64) bool) *ColdStart {
		t.Helper()
		f := newFakeHearth(t)
		f.evicts = evicts
		r, err := newRun(t.Context(), Options{BaseURL: f.URL, Interpreter: i.Path, ColdIterations: 2}.withDefaults(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close(t.Context())
		name, err := r.deploy(t.Context(), "bench-echo", "main.handler")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.coldStarts(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		return r.report.Cold
	}
	if c := cold(func(n int64) bool { return n%2 == 0 }); c.Iterations != 2 || c.Warm != 1 || c.Problem != "" {
		t.Errorf("every other call is cold: %+v", c)
	}
	if c := cold(func(int64) bool { return false }); c.Iterations != 1 || c.Warm != 5 || c.Problem != "only 1 of 6 calls were cold" {
		t.Errorf("only the first call is cold: %+v", c)
	}
}

func TestRunRefuses(t *testing.T) {
	f := newFakeHearth(t)
	free, err := freeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Options)
		want   hearth.Code
	}{
		"no URL":      {func(o *Options) { o.BaseURL = "" }, hearth.CodeInvalid},
		"foreign":     {func(o *Options) { o.BaseURL = "http://192.0.2.1:8080" }, hearth.CodeInvalid},
		"runtime":     {func(o *Options) { o.Runtime = "ruby" }, hearth.CodeInvalid},
		"rounds":      {func(o *Options) { o.Rounds = -1 }, hearth.CodeInvalid},
		"duration":    {func(o *Options) { o.Duration = -time.Second }, hearth.CodeInvalid},
		"warm-up":     {func(o *Options) { o.Warmup = time.Hour }, hearth.CodeInvalid},
		"concurrency": {func(o *Options) { o.Concurrencies = []int{0} }, hearth.CodeInvalid},
		"cold":        {func(o *Options) { o.ColdIterations = 1 << 20 }, hearth.CodeInvalid},
		"interpreter": {func(o *Options) { o.Interpreter = "/does/not/exist" }, hearth.CodeNotFound},
		"no server":   {func(o *Options) { o.BaseURL = "http://" + free }, hearth.CodeUnavailable},
		"bad config":  {func(o *Options) { o.FunctionConcurrency = -1 }, hearth.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			o := short(f, "python")
			tt.change(&o)
			_, err := Run(t.Context(), o, io.Discard)
			if hearth.ErrorCode(err) != tt.want || hearth.AsError(err).Hint == "" {
				t.Errorf("got %v, want %s with a hint", err, tt.want)
			}
		})
	}
	if f.calls.Load() != 0 || len(f.left()) != 0 {
		t.Errorf("%d calls, functions %v", f.calls.Load(), f.left())
	}
}

func TestListener(t *testing.T) {
	f := newFakeHearth(t)
	u, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(u.Port())
	if pid, err := listener(port); err != nil || pid != os.Getpid() {
		t.Errorf("port %d belongs to %d, %v", port, pid, err)
	}
	free, err := freeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, p, _ := net.SplitHostPort(free)
	port, _ = strconv.Atoi(p)
	if _, err := listener(port); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("a free port belongs to someone: %v", err)
	}
}

func TestStartServer(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("ready", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		s, err := StartServer(t.Context(), self)
		if err != nil {
			t.Fatal(err)
		}
		if s.ReadyTime < 50*time.Millisecond || s.ReadyTime > 20*time.Second {
			t.Errorf("ready after %s", s.ReadyTime)
		}
		u, _ := url.Parse(s.URL)
		port, _ := strconv.Atoi(u.Port())
		if pid, err := listener(port); err != nil || pid != s.PID {
			t.Errorf("process %d listens, %v; want %d", pid, err, s.PID)
		}
		// Stop works for a caller that was interrupted.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 {
			if err := s.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
		nothingLeft(t, s.PID)
	})
	t.Run("guarded", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		s, err := StartServer(t.Context(), self)
		if err != nil {
			t.Fatal(err)
		}
		// As when this process is killed: nobody holds the guard's stdin.
		s.guard.stdin.Close()
		select {
		case <-s.exited:
		case <-time.After(10 * time.Second):
			t.Error("the server goes on without its parent")
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		nothingLeft(t, s.PID)
	})
	t.Run("ServeReady", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		if d, err := ServeReady(t.Context(), self); err != nil || d < 50*time.Millisecond {
			t.Errorf("got %s, %v", d, err)
		}
		nothingLeft(t, 0)
	})
	t.Run("broken", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		_, err := StartServer(t.Context(), self, "--broken")
		if hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(err.Error(), "cursed") {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, 0)
	})
	t.Run("no binary", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		if _, err := StartServer(t.Context(), "/does/not/exist"); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, 0)
	})
	t.Run("canceled", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := StartServer(ctx, self); err == nil {
			t.Error("it starts with a canceled context")
		}
		nothingLeft(t, 0)
	})
}

// nothingLeft checks that neither data nor processes remain.
func nothingLeft(t *testing.T, pid int) {
	t.Helper()
	if files, _ := os.ReadDir(os.TempDir()); len(files) > 0 {
		t.Errorf("%v are left in the temporary directory", files)
	}
	if pid != 0 && alive(pid) {
		t.Errorf("process %d is left", pid)
	}
	if n := descendants(os.Getpid()); len(n) > 0 {
		t.Errorf("processes %v are left", n)
	}
}
