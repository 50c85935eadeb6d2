package bench

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// serve starts an HTTP server and returns the target of its root.
func serve(t *testing.T, answer string, h http.HandlerFunc) target {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	tg, err := newTarget(t.Context(), "test", s.URL+"/some/path?q=1", []byte("ping"), []byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func load(t *testing.T, tg target, n int, warm, d time.Duration) sample {
	t.Helper()
	s, err := generate(t.Context(), tg, n, warm, d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGenerateCounts(t *testing.T) {
	var served, wrong atomic.Int64
	tg := serve(t, "pong", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != "POST" || r.RequestURI != "/some/path?q=1" || string(body) != "ping" || r.Header.Get("Content-Type") != "application/json" {
			wrong.Add(1)
		}
		served.Add(1)
		w.Header().Set("Hearth-Start", "cold")
		_, _ = io.WriteString(w, "pong")
	})
	s := load(t, tg, 4, 0, 200*time.Millisecond)
	if s.problem != "" || s.failures != 0 || wrong.Load() != 0 {
		t.Fatalf("problem %q, %d failures, %d wrong requests", s.problem, s.failures, wrong.Load())
	}
	// Up to one request a connection ends after the time.
	if n := served.Load(); s.requests > n || s.requests < n-4 || s.requests == 0 {
		t.Errorf("counted %d, the server %d", s.requests, n)
	}
	if s.cold != s.requests || s.latencies.TotalCount() != s.requests {
		t.Errorf("%d cold and %d latencies of %d", s.cold, s.latencies.TotalCount(), s.requests)
	}
	if want := float64(s.requests) / 0.2; s.throughput != want {
		t.Errorf("throughput %v, want %v", s.throughput, want)
	}
}

// TestGenerateLatencies: 9 of 10 answers take 5 ms, one takes 40 ms.
func TestGenerateLatencies(t *testing.T) {
	var n atomic.Int64
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		d := 5 * time.Millisecond
		if n.Add(1)%10 == 0 {
			d = 40 * time.Millisecond
		}
		time.Sleep(d) // the latency under test
		_, _ = io.WriteString(w, "ok")
	})
	s := load(t, tg, 1, 0, time.Second)
	if s.problem != "" || s.requests < 20 {
		t.Fatalf("%d requests, problem %q", s.requests, s.problem)
	}
	r := newRound(s)
	// A busy machine makes an answer later, never earlier.
	if r.P50MS < 5 || r.P50MS > 39 {
		t.Errorf("p50 is %v ms, want 5 or a little more", r.P50MS)
	}
	if r.P99MS < 40 || r.P99MS > 500 || r.MaxMS < r.P99MS {
		t.Errorf("p99 is %v ms and max %v ms, want 40 or a little more", r.P99MS, r.MaxMS)
	}
}

// TestGenerateWarmup: what is answered in the warm-up is not in the figures.
func TestGenerateWarmup(t *testing.T) {
	var early atomic.Int64
	begin := time.Now()
	tg := serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(begin) < 100*time.Millisecond {
			early.Add(1)
			w.Header().Set("Hearth-Start", "cold")
		}
		_, _ = io.WriteString(w, "ok")
	})
	s := load(t, tg, 2, 500*time.Millisecond, 200*time.Millisecond)
	if s.problem != "" || s.requests == 0 || early.Load() == 0 {
		t.Fatalf("%d requests, %d early, problem %q", s.requests, early.Load(), s.problem)
	}
	if s.cold > 0 {
		t.Errorf("%d answers of the warm-up are counted", s.cold)
	}
}

func TestGenerateBodies(t *testing.T) {
	t.Run("chunked", func(t *testing.T) {
		tg := serve(t, "one two", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "one ")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "two")
		})
		if s := load(t, tg, 2, 0, 50*time.Millisecond); s.problem != "" || s.requests == 0 || s.reconnects != 0 {
			t.Errorf("%d requests, %d reconnects, problem %q", s.requests, s.reconnects, s.problem)
		}
	})
	t.Run("connection close", func(t *testing.T) {
		tg := serve(t, "bye", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, "bye")
		})
		if s := load(t, tg, 2, 0, 50*time.Millisecond); s.problem != "" || s.requests == 0 || s.reconnects < s.requests {
			t.Errorf("%d requests, %d reconnects, problem %q", s.requests, s.reconnects, s.problem)
		}
	})
}

func TestGenerateProblems(t *testing.T) {
	for name, tt := range map[string]struct {
		h    http.HandlerFunc
		want string
	}{
		"status": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no room", http.StatusTooManyRequests) }, "status 429: no room"},
		"body":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "other") }, `wrong body "other"`},
		"hang up": {func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, "closed instead of an answer"},
		"half": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
		}, "closed within an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := load(t, serve(t, "ok", tt.h), 2, 50*time.Millisecond, 50*time.Millisecond)
			if !strings.Contains(s.problem, tt.want) || s.failures == 0 || s.requests != 0 {
				t.Errorf("%d requests, %d failures, problem %q, want %q", s.requests, s.failures, s.problem, tt.want)
			}
			if s.failures > 2*maxFailures {
				t.Errorf("%d failures: it does not give up", s.failures)
			}
		})
	}
	t.Run("one in many", func(t *testing.T) {
		var n atomic.Int64
		s := load(t, serve(t, "ok", func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1) == 20 {
				w.WriteHeader(500)
			}
			_, _ = io.WriteString(w, "ok")
		}), 1, 0, 100*time.Millisecond)
		if s.failures != 1 || s.problem == "" || s.requests < 20 {
			t.Errorf("%d requests, %d failures, problem %q", s.requests, s.failures, s.problem)
		}
		if newCell("x", 1, []sample{s}).Valid() {
			t.Error("the cell is valid with a failure in it")
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		addr, err := freeAddress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tg, err := newTarget(t.Context(), "x", "http://"+addr, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s := load(t, tg, 2, 0, time.Second); !strings.Contains(s.problem, "cannot connect") {
			t.Errorf("problem %q", s.problem)
		}
	})
}

// TestGenerateCancel: a server that never answers does not hold up a cancel.
func TestGenerateCancel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		_, _ = r.ReadString('\n')
		cancel()
		_, _ = io.Copy(io.Discard, r) // until the generator hangs up
	}()
	tg, err := newTarget(ctx, "x", "http://"+l.Addr().String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := generate(ctx, tg, 1, 0, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	l.Close()
	<-done
}

func TestLoopbackOnly(t *testing.T) {
	for _, u := range []string{"http://127.0.0.1:8080", "http://127.9.9.9", "http://[::1]:80/x", "http://localhost:1234"} {
		if _, err := newTarget(t.Context(), "x", u, nil, nil); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, u := range []string{
		"http://192.0.2.1", "http://0.0.0.0:80", "http://[2001:db8::1]", "https://127.0.0.1", "ftp://127.0.0.1",
		"http://", "127.0.0.1:80", "http://127.0.0.1.invalid", "http://169.254.169.254/", ":", "http://[::ffff:192.0.2.1]/",
	} {
		_, err := newTarget(t.Context(), "x", u, nil, nil)
		if hearth.ErrorCode(err) != hearth.CodeInvalid || hearth.AsError(err).Hint == "" {
			t.Errorf("%s: got %v, want invalid with a hint", u, err)
		}
	}
}
