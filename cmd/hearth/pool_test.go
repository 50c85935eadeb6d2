package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// poolServer answers as a server with this function, pool and calls.
func poolServer(t *testing.T, cfg hearth.Config, st hearth.PoolStatus, events string, calls ...hearth.Invocation) string {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, v := range map[string]any{
		"GET /v1/functions/hello":             hearth.Function{Name: "hello", Live: 2, Config: cfg},
		"GET /v1/functions/hello/invocations": map[string]any{"invocations": calls},
		"GET /v1/pool":                        st,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			if err := json.NewEncoder(w).Encode(v); err != nil {
				t.Error(err)
			}
		})
	}
	mux.HandleFunc("GET /v1/pool/events", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, events)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

// runPool runs a command that must succeed and returns what it printed.
func runPool(t *testing.T, url string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
	if code := a.run(t.Context(), append([]string{"pool", "--url", url}, args...)); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs.String())
	}
	return out.String(), errs.String()
}

func TestPoolTables(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	st := hearth.PoolStatus{
		Time: now, MemoryBudget: 4 << 30, MemoryUsed: 96 << 20, MaxInstances: 1000, Queued: 3,
		Instances: []hearth.Instance{
			{ID: "i-1", Function: "hello", Version: 1, Isolation: "native", State: hearth.InstanceBusy, Since: now.Add(-90 * time.Second), InFlight: 4, Why: "all others were busy"},
			{ID: "i-2", Function: "hello", Version: 2, Isolation: "docker", State: hearth.InstanceIdle, Since: now, Served: 7, Memory: 5 << 20, Why: "warm.min of the\x1bfunction"},
			{ID: "i-3", Isolation: "native", Runtime: "python3.11", State: hearth.InstanceStem},
		},
		Functions: []hearth.PoolFunction{
			{Function: "hello", Version: 1, Retired: true, Instances: 1, InFlight: 4, Max: 16},
			{
				Function: "hello", Version: 2, Instances: 1, Target: 2, Min: 1, Max: 16, Queued: 3, Calls: 20,
				Service: 1500 * time.Microsecond, Cold: 45 * time.Millisecond, KeepAlive: "kept 10 min",
				ColdStarts: map[hearth.ColdReason]int64{hearth.ColdFirst: 1, hearth.ColdScale: 4, hearth.ColdDied: 1},
			},
		},
		Stems: []hearth.StemStock{{Isolation: "native", Runtime: "python3.11", Memory: 128 << 20, Egress: "none", Ready: 1, Target: 2, Starting: 1, Why: "up to 2 were wanted"}},
	}
	url := poolServer(t, hearth.Config{}, st, "")
	got, _ := runPool(t, url)
	want := `memory 96 MiB of 4.0 GiB, 2 instances and 1 stem cell of at most 1000, 3 queued

FUNCTION           INSTANCES   IN FLIGHT  QUEUED  CALLS  COLD STARTS              SERVICE  COLD     KEEP-ALIVE
hello@1 (retired)  1/0 (0–16)  4          0       0      -                        -        -        -
hello@2            1/2 (1–16)  0          3       20     scale 4, died 1, first 1  1.5 ms   45.0 ms  kept 10 min

INSTANCE  FUNCTION  ISOLATION  STATE              MEMORY   SERVED  WHY
i-1       hello@1   native     busy 1m, 4 calls  -        0       all others were busy
i-2       hello@2   docker     idle 0s            5.0 MiB  7       warm.min of the` + "\uFFFD" + `function

STEM CELLS         MEMORY  EGRESS  READY  STARTING  TARGET  WHY
native python3.11  128MiB  none    1      1         2       up to 2 were wanted
`
	// Only words count, not how wide the columns are.
	words := func(s string) []string { return strings.Fields(s) }
	if d := cmp.Diff(words(want), words(got)); d != "" {
		t.Errorf("output (-want +got):\n%s\n%s", d, got)
	}
	got, _ = runPool(t, url, "-o", "json")
	var decoded hearth.PoolStatus
	if err := json.Unmarshal([]byte(got), &decoded); err != nil || cmp.Diff(st, decoded) != "" {
		t.Errorf("%v: %s", err, got)
	}

	got, stderr := runPool(t, poolServer(t, hearth.Config{}, hearth.PoolStatus{Queued: 1}, ""), "hello")
	if got != "memory 0 B (no budget) and 1 queued in the whole pool\n" || !strings.Contains(stderr, "the next call will be a cold start") {
		t.Errorf("without an instance: %q, %q", got, stderr)
	}
}

func TestPoolWatch(t *testing.T) {
	events := "event: status\ndata: " + `{"instances":[{"id":"i-1","function":"hello","version":1,"state":"idle","since":"2026-05-01T12:00:00Z"},{"id":"i-2","function":"other","state":"idle"}]}` + "\n\n" +
		"event: instance\ndata: " + `{"time":"2026-05-01T12:00:00Z","from":"idle","instance":{"id":"i-1","function":"hello","version":1,"state":"busy","why":"1 calls waited"}}` + "\n\n" +
		"event: instance\ndata: " + `{"from":"idle","instance":{"id":"i-2","function":"other","version":1,"state":"busy"}}` + "\n\n" +
		"event: instance\ndata: " + `{"instance":{"id":"i-3","isolation":"native","runtime":"python3.11","state":"starting"}}` + "\n\n"
	url := poolServer(t, hearth.Config{}, hearth.PoolStatus{}, events)
	got, _ := runPool(t, url, "--watch")
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[0], "memory ") || !strings.Contains(lines[3], "idle → busy") || !strings.Contains(lines[5], "native python3.11") {
		t.Errorf("got %q", lines)
	}
	got, _ = runPool(t, url, "hello", "-w")
	if strings.Count(got, "\n") != 3 || strings.Contains(got, "i-2") || strings.Contains(got, "i-3") {
		t.Errorf("of one function: %s", got)
	}
	got, _ = runPool(t, url, "hello", "-w", "-o", "json")
	lines = strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], `{"status":{`) || strings.Contains(lines[0], "i-2") || !strings.HasPrefix(lines[1], `{"instance":{`) {
		t.Errorf("as JSON: %q", lines)
	}
}

func TestPoolWhy(t *testing.T) {
	now := time.Now()
	call := func(id string, age time.Duration, reason hearth.ColdReason) hearth.Invocation {
		return hearth.Invocation{
			ID: id, Cold: reason != "", ColdReason: reason, StartedAt: now.Add(-age),
			Timings: hearth.Timings{Queue: time.Millisecond, Start: 40 * time.Millisecond, Init: 200 * time.Millisecond, Run: time.Second},
		}
	}
	last := func(age time.Duration, reason hearth.ColdReason) *hearth.ColdStart {
		return &hearth.ColdStart{Time: now.Add(-age), Reason: reason, Explanation: "as the pool says", Timings: hearth.Timings{Start: time.Second}}
	}
	pool := func(f hearth.PoolFunction, states ...hearth.InstanceState) hearth.PoolStatus {
		f.Function, f.Version = "hello", 2
		st := hearth.PoolStatus{MemoryUsed: 3 << 30, MemoryBudget: 4 << 30, Functions: []hearth.PoolFunction{{Function: "hello", Version: 1}, f}}
		for _, s := range states {
			st.Instances = append(st.Instances, hearth.Instance{Function: "hello", Version: 2, State: s})
		}
		return st
	}
	cfg := hearth.Config{Runtime: "python3.11"}.WithDefaults()
	warm := cfg
	warm.Warm = hearth.Warm{Min: 2, Schedule: "* 8-18 * * *"}
	for _, tt := range []struct {
		name   string
		config hearth.Config
		status hearth.PoolStatus
		calls  []hearth.Invocation
		want   []string
		not    string
	}{
		{
			name: "nothing known", config: cfg,
			want: []string{"No cold start of hello is known", "There is no record of a call yet.", "the next call is a cold start", "nothing is known yet"},
			not:  "What you can do",
		},
		{
			name: "the pool's own words", config: cfg,
			status: pool(hearth.PoolFunction{
				Calls: 9, LastCold: last(60*time.Second, hearth.ColdExpired), KeepAlive: "kept 10 min after each call",
				ColdStarts: map[hearth.ColdReason]int64{hearth.ColdExpired: 3, hearth.ColdFirst: 1},
			}, hearth.InstancePaused),
			calls: []hearth.Invocation{call("c3", 5*time.Second, ""), call("c2", 60*time.Second, hearth.ColdExpired), call("c1", time.Hour, hearth.ColdFirst)},
			want: []string{
				"The latest cold call of hello was 1m ago: expired", "Why: as the pool says.", "It took 241.0 ms: queue 1.0 ms, start 40.0 ms (sandbox and runtime), init 200.0 ms (your code).",
				"2 of the last 3 calls were cold:", "start 40.0 ms, init 200.0 ms  c2", "c1", "since the server's start: expired 3, first 1.",
				"1 instance ready, so the next call is warm", "Keep-alive: kept 10 min after each call.",
				"- (expired, first) warm: {min: 1}", "most of the start is init",
			},
			not: "not one of the last calls",
		},
		{
			name: "after a restart, of an older call", config: warm, calls: []hearth.Invocation{call("c1", 3*time.Hour, hearth.ColdFirst)},
			want: []string{"was 2h ago: first", "Why: the version had no instance since", "1 of the last 1 call was cold:", "- (first) warm.min is 2", "or outside of warm.schedule (* 8-18 * * *)", "Keep-alive: warm.min 2 in the minutes of * 8-18 * * *."},
		},
		{
			name: "the test of a deploy", config: cfg,
			status: pool(hearth.PoolFunction{LastCold: last(time.Second, hearth.ColdFirst), ColdStarts: map[hearth.ColdReason]int64{hearth.ColdFirst: 1}}, hearth.InstanceIdle),
			want:   []string{"The latest cold start of hello was 1s ago", "the test of a deploy"},
			not:    "(first)",
		},
		{
			name: "others", config: cfg,
			status: pool(hearth.PoolFunction{
				Calls: 9, ColdStarts: map[hearth.ColdReason]int64{hearth.ColdScale: 5, hearth.ColdEvicted: 2, hearth.ColdDied: 1},
			}, hearth.InstanceBusy, hearth.InstanceBusy),
			calls: []hearth.Invocation{call("c1", time.Second, hearth.ColdScale)},
			want: []string{
				"Why: all instances were busy.", "all of its 2 instances busy", "- (scale) raise warm.min (now 0)", "instance_concurrency",
				"- (evicted) memory is scarce (3.0 GiB of 4.0 GiB used now)", "- (died) hearth logs hello", "raise memory (now 128MiB)",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := poolServer(t, tt.config, tt.status, "", tt.calls...)
			got, _ := runPool(t, url, "why", "hello", "--url", url)
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is not in:\n%s", w, got)
				}
			}
			if tt.not != "" && strings.Contains(got, tt.not) {
				t.Errorf("%q is in:\n%s", tt.not, got)
			}
			got, _ = runPool(t, url, "why", "hello", "--url", url, "-o", "json")
			var v struct {
				RecentCalls int             `json:"recent_calls"`
				RecentCold  json.RawMessage `json:"recent_cold"`
				Advice      json.RawMessage `json:"advice"`
			}
			if err := json.Unmarshal([]byte(got), &v); err != nil || v.RecentCalls != len(tt.calls) || string(v.RecentCold) == "null" || string(v.Advice) == "null" {
				t.Errorf("%v: %s", err, got)
			}
		})
	}
}
