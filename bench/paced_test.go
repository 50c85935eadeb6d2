package bench

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPacedRate(t *testing.T) {
	var served atomic.Int64
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = io.WriteString(w, "ok")
	})
	s, err := paced(t.Context(), tg, 200, 8, 100*time.Millisecond, 500*time.Millisecond)
	if err != nil || s.problem != "" {
		t.Fatalf("%v, problem %q", err, s.problem)
	}
	if n := served.Load(); n != 120 {
		t.Errorf("%d calls in 0.6 s at 200/s, want 120", n)
	}
	// What is overdue when the warm-up ends counts as of the tick that sent it.
	if s.requests < 95 || s.requests > 120 || s.latencies.TotalCount() != s.requests {
		t.Errorf("%d calls and %d latencies counted, want 100", s.requests, s.latencies.TotalCount())
	}
}

// TestPacedWaits: while one answer is late, the calls behind it wait, and it is
// told how long.
func TestPacedWaits(t *testing.T) {
	var once sync.Once
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { time.Sleep(300 * time.Millisecond) }) // the stall under test
		_, _ = io.WriteString(w, "ok")
	})
	s, err := paced(t.Context(), tg, 100, 1, 0, 500*time.Millisecond)
	if err != nil || s.problem != "" {
		t.Fatalf("%v, problem %q", err, s.problem)
	}
	if s.requests != 50 {
		t.Errorf("%d calls, want 50", s.requests)
	}
	// A closed loop would have had one slow call of 50; here all that were due in
	// the stall are slow, half of them by more than half of it.
	if late := s.latencies.ValueAtQuantile(80); late < int64(100*time.Millisecond) {
		t.Errorf("the 80th percentile is %s", time.Duration(late))
	}
}

func TestPacedSheds(t *testing.T) {
	var n atomic.Int64
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1)%2 == 0 {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		_, _ = io.WriteString(w, "ok")
	})
	s, err := paced(t.Context(), tg, 100, 2, 0, 200*time.Millisecond)
	if err != nil || s.failures == 0 {
		t.Errorf("%v, a refusal is no failure: %+v", err, s)
	}
	tg.sheds = true
	s, err = paced(t.Context(), tg, 100, 2, 0, 200*time.Millisecond)
	if err != nil || s.problem != "" || s.failures != 0 || s.refused == 0 || s.requests+s.refused != 20 {
		t.Errorf("%v, %d answered and %d refused of 20, problem %q", err, s.requests, s.refused, s.problem)
	}
}

func TestPacedCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		_, _ = io.WriteString(w, "ok")
	})
	if _, err := paced(ctx, tg, 10, 2, 0, time.Minute); err == nil {
		t.Error("it goes on without its caller")
	}
}
