package bench

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// TestMain also plays the programs that the tests start: the reference servers
// and, for StartServer, a hearth that knows serve.
func TestMain(m *testing.M) {
	MaybeServeReference()
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(fakeServe(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// fakeServe is a hearth serve that is ready a little after it listens.
// --broken makes it end at once.
func fakeServe(args []string) int {
	fs := flag.NewFlagSet("serve", flag.ExitOnError)
	dir, listen, broken := fs.String("data-dir", "", ""), fs.String("listen", "", ""), fs.Bool("broken", false, "")
	_ = fs.Parse(args)
	if *broken {
		fmt.Fprintln(os.Stderr, "the data directory is cursed")
		return 1
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return 1
	}
	begin := time.Now()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if time.Since(begin) < 50*time.Millisecond {
			w.WriteHeader(503)
		}
	})}
	go s.Serve(l) //nolint:errcheck // ends with Close
	<-ctx.Done()
	s.Close()
	return 0
}

// fakeHearth implements the endpoints the benchmark uses. Its instances are
// real idle processes, so that memory can be measured.
type fakeHearth struct {
	*httptestServer
	calls   atomic.Int64
	noEvict bool
	// evicts tells whether the nth eviction, from 0, is carried out; nil always.
	evicts   func(n int64) bool
	evicted  atomic.Int64
	broken   atomic.Bool // answers calls with 503
	mu       sync.Mutex
	idle     map[string][]*exec.Cmd // guarded by mu; by function
	handlers map[string]string      // guarded by mu
	deleted  []string               // guarded by mu
}

type httptestServer struct {
	URL string
	s   *http.Server
}

func newFakeHearth(t *testing.T) *fakeHearth {
	t.Helper()
	f := &fakeHearth{idle: map[string][]*exec.Cmd{}, handlers: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/drivers", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"drivers": []client.Driver{{
			Name: "native", Works: true,
			Runtimes: []client.Runtime{{Name: "python3.11", Language: "python"}, {Name: "nodejs20", Language: "nodejs"}},
		}}})
	})
	mux.HandleFunc("GET /v1/pool", f.pool)
	mux.HandleFunc("PUT /v1/functions/{name}", f.put)
	mux.HandleFunc("DELETE /v1/functions/{name}", func(w http.ResponseWriter, r *http.Request) {
		f.evict(r.PathValue("name"))
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.handlers, r.PathValue("name"))
		f.deleted = append(f.deleted, r.PathValue("name"))
		w.WriteHeader(204)
	})
	mux.HandleFunc("DELETE /v1/functions/{name}/instances", func(w http.ResponseWriter, r *http.Request) {
		if f.noEvict {
			w.WriteHeader(404)
			return
		}
		if n := f.evicted.Add(1) - 1; f.evicts == nil || f.evicts(n) {
			f.evict(r.PathValue("name"))
		}
		w.WriteHeader(204)
	})
	mux.HandleFunc("POST /fn/{name}/{$}", f.call)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.httptestServer = &httptestServer{URL: "http://" + l.Addr().String(), s: &http.Server{Handler: mux}}
	done := make(chan struct{})
	go func() { defer close(done); _ = f.s.Serve(l) }()
	t.Cleanup(func() {
		f.s.Close()
		<-done
		f.mu.Lock()
		names := []string{}
		for n := range f.idle {
			names = append(names, n)
		}
		f.mu.Unlock()
		for _, n := range names {
			f.evict(n)
		}
	})
	return f
}

func (f *fakeHearth) put(w http.ResponseWriter, r *http.Request) {
	var in struct {
		hearth.Config
		Code client.Code `json:"code"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil || len(in.Code.Files) != 1 {
		http.Error(w, "bad body", 400)
		return
	}
	if err := in.WithDefaults().Validate(); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handlers[r.PathValue("name")] = in.Handler
	w.WriteHeader(201)
	_ = json.NewEncoder(w).Encode(client.Function{})
}

// pool has one stem cell and an instance for each idle process.
func (f *fakeHearth) pool(w http.ResponseWriter, _ *http.Request) {
	st := hearth.PoolStatus{
		MemoryUsed: 3 << 20, MemoryBudget: 1 << 40,
		Stems: []hearth.StemStock{{Isolation: "native", Runtime: "python3.11", Ready: 1, Target: 1}},
	}
	f.mu.Lock()
	for name, cmds := range f.idle {
		for _, cmd := range cmds {
			st.Instances = append(st.Instances, hearth.Instance{ID: fmt.Sprint(cmd.Process.Pid), Function: name, State: hearth.InstanceIdle})
		}
	}
	f.mu.Unlock()
	_ = json.NewEncoder(w).Encode(st)
}

// take returns an idle instance of a function, or starts one.
func (f *fakeHearth) take(name string) (cmd *exec.Cmd, cold bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.idle[name]; len(l) > 0 {
		f.idle[name] = l[:len(l)-1]
		return l[len(l)-1], false
	}
	cmd = exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return cmd, true
}

func (f *fakeHearth) evict(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, cmd := range f.idle[name] {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	delete(f.idle, name)
}

func (f *fakeHearth) call(w http.ResponseWriter, r *http.Request) {
	f.calls.Add(1)
	if f.broken.Load() {
		w.Header().Set("Hearth-Error", "unavailable")
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	name := r.PathValue("name")
	f.mu.Lock()
	handler, ok := f.handlers[name]
	f.mu.Unlock()
	if !ok {
		http.Error(w, "no such function", 404)
		return
	}
	body, _ := io.ReadAll(r.Body)
	cmd, cold := f.take(name)
	if strings.HasSuffix(handler, ".wait") {
		time.Sleep(100 * time.Millisecond) // what the function does
	}
	h := w.Header()
	h.Set("Hearth-Start", "warm")
	timings := hearth.Timings{Queue: time.Microsecond, Run: time.Millisecond}
	if cold {
		h.Set("Hearth-Start", "cold")
		timings.Start, timings.Init = 20*time.Millisecond, 5*time.Millisecond
	}
	h.Set("Server-Timing", timings.ServerTiming())
	f.mu.Lock()
	f.idle[name] = append(f.idle[name], cmd)
	f.mu.Unlock()
	_, _ = w.Write(body)
}

// left returns the functions that were deployed and not deleted.
func (f *fakeHearth) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for n := range f.handlers {
		names = append(names, n)
	}
	return names
}
