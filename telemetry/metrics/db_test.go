package metrics

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
)

// countEnv makes this test binary a program that counts until it is killed.
const countEnv = "HEARTH_TEST_COUNT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(countEnv); dir != "" {
		countUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

func call(function string, took time.Duration, change ...func(*hearth.Invocation)) *hearth.Invocation {
	v := &hearth.Invocation{
		Function: function, Version: 1, Isolation: "native", Instance: "i", Status: 200, StartedAt: time.Now().Add(-took),
		Timings: hearth.Timings{Run: took}, BytesIn: 10, BytesOut: 20,
	}
	for _, c := range change {
		c(v)
	}
	return v
}

// start opens a database that stores often.
func start(t *testing.T, dir string, calls *Calls, change ...func(*Options)) *DB {
	t.Helper()
	o := Options{Dir: dir, Calls: calls, Logger: slog.New(slog.DiscardHandler), Interval: 50 * time.Millisecond}
	for _, c := range change {
		c(&o)
	}
	db := Start(o)
	for db.open.Load() == nil {
		select {
		case <-db.done:
			t.Fatal("the database could not be opened")
		default:
			time.Sleep(time.Millisecond)
		}
	}
	return db
}

// ask sends a query and returns its status and data.
func ask(t testing.TB, db *DB, path string, form url.Values) (status int, data json.RawMessage) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/v1/"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	db.Handler().ServeHTTP(w, r)
	var out struct{ Data json.RawMessage }
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return w.Code, out.Data
}

// number returns the value of a query that has one, -1 if it has none.
func number(t *testing.T, db *DB, query string) float64 {
	t.Helper()
	status, data := ask(t, db, "query", url.Values{"query": {query}})
	var v struct {
		Result []struct{ Value [2]any }
	}
	if err := json.Unmarshal(data, &v); err != nil || status != 200 || len(v.Result) > 1 {
		t.Fatalf("%s: %d %s %v", query, status, data, err)
	}
	if len(v.Result) == 0 {
		return -1
	}
	n, err := strconv.ParseFloat(v.Result[0].Value[1].(string), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// becomes waits until a query has a value.
func becomes(t *testing.T, db *DB, query string, want float64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %v", query, want), func() bool { return number(t, db, query) == want })
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come that %s", what)
		}
	}
}

// What there is no more, or not yet after a restart, is found no more.
func TestGaugesEnd(t *testing.T) {
	var calls Calls
	dir := t.TempDir()
	gauge := func(name string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "It is 7."})
		g.Set(7)
		return g
	}
	registry := prometheus.NewRegistry()
	ends, stays := gauge("hearth_test_ends"), gauge("hearth_test_stays")
	registry.MustRegister(ends, stays)
	with := func(o *Options) { o.Gatherer = registry }
	db := start(t, dir, &calls, with)
	calls.Count(call("f", time.Second))
	becomes(t, db, "hearth_test_ends", 7)
	registry.Unregister(ends)
	becomes(t, db, "count(hearth_test_ends) or vector(0)", 0)
	becomes(t, db, "hearth_test_stays", 7)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	registry = prometheus.NewRegistry()
	registry.MustRegister(gauge("hearth_test_new"))
	db = start(t, dir, &calls, with)
	defer db.Close() //nolint:errcheck // tested above
	becomes(t, db, "hearth_test_new", 7)
	becomes(t, db, "count(hearth_test_stays) or vector(0)", 0)
	becomes(t, db, "count(hearth_invocations_total)", 1)
}

func TestCallsAreStored(t *testing.T) {
	var calls Calls
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hearth_test_gauge", Help: "It is 7."})
	gauge.Set(7)
	durations := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hearth_test_seconds", Help: "Three of them.", NativeHistogramBucketFactor: 1.1})
	for _, n := range []float64{1, 2, 4} {
		durations.Observe(n)
	}
	registry.MustRegister(gauge, durations)
	db := start(t, t.TempDir(), &calls, func(o *Options) { o.Gatherer = registry })
	defer db.Close() //nolint:errcheck // tested below
	for i := range 100 {
		calls.Count(call("f", time.Duration(i+1)*time.Millisecond))
	}
	calls.Count(call("f", time.Second, func(v *hearth.Invocation) { v.ErrorCode, v.Status = hearth.CodeFunction, 502 }))
	calls.Count(call("f", time.Second, func(v *hearth.Invocation) { v.Status = 503 }))
	calls.Count(call("f", 0, func(v *hearth.Invocation) { v.ErrorCode, v.Instance = hearth.CodeExhausted, "" }))
	calls.Count(call("f", 0, func(v *hearth.Invocation) { v.Cached, v.Instance = true, "" }))
	calls.Count(call("f", 0, func(v *hearth.Invocation) {
		v.Cold, v.ColdReason, v.Timings.Start = true, hearth.ColdFirst, 5*time.Second
	}))
	for query, want := range map[string]float64{
		`hearth_invocations_total{function="f",version="1",isolation="native",code="ok",fault=""}`: 102,
		`sum(hearth_invocations_total{fault="function"})`:                                          2,
		`hearth_invocations_total{code="exhausted",fault="limit"}`:                                 1,
		`hearth_cold_starts_total{reason="first"}`:                                                 1,
		`hearth_cached_responses_total`:                                                            1,
		`hearth_request_bytes_total`:                                                               1050,
		`hearth_response_bytes_total`:                                                              2100,
		`histogram_count(hearth_invocation_duration_seconds)`:                                      103,
		`histogram_count(hearth_invocation_phase_seconds{phase="start"})`:                          1,
		`round(histogram_quantile(0.5, hearth_invocation_phase_seconds{phase="run"}), 0.005)`:      0.05,
		`hearth_test_gauge`: 7,
		`round(histogram_quantile(0.5, hearth_test_seconds), 0.5)`: 2,
		`histogram_sum(hearth_test_seconds)`:                       7,
	} {
		becomes(t, db, query, want)
	}
	for path, want := range map[string]string{
		"labels":                  `["__name__","code","fault","function","isolation","phase","reason","version"]`,
		"label/code/values":       `["exhausted","function_error","http_5xx","ok"]`,
		"query_exemplars":         `[]`,
		"metadata?metric=nothing": `{}`,
	} {
		if status, data := ask(t, db, path, nil); status != 200 || string(data) != want {
			t.Errorf("%s: %d %s", path, status, data)
		}
	}
	status, data := ask(t, db, "series", url.Values{"match[]": {`hearth_cold_starts_total`, `{__name__="hearth_test_gauge"}`}})
	if want := `[{"__name__":"hearth_cold_starts_total","function":"f","isolation":"native","reason":"first","version":"1"},{"__name__":"hearth_test_gauge"}]`; status != 200 || string(data) != want {
		t.Errorf("series: %d %s", status, data)
	}
	now := time.Now()
	status, data = ask(t, db, "query_range", url.Values{
		"query": {"hearth_test_gauge"}, "start": {now.Add(-time.Minute).UTC().Format(time.RFC3339Nano)}, "end": {fmt.Sprint(now.Unix() + 60)}, "step": {"30"},
	})
	if status != 200 || !strings.Contains(string(data), `"resultType":"matrix"`) || !strings.Contains(string(data), `"7"`) {
		t.Errorf("range: %d %s", status, data)
	}
	for query, want := range map[string]int{
		"query?query=1%2B": 400, "query?query=1&time=x": 400, "query_range?query=1&start=1&end=0&step=1": 400, "query_range?query=1&start=0&end=1&step=0": 400,
		"query_range?query=1&start=0&end=1e6&step=1": 400, "query?query=1&timeout=1e-9": 503, "series": 400, "series?match[]={}": 400,
		"labels?limit=-1": 400, "query?query=f&timeout=x": 400, "label/%FF/values": 400,
		`query?query=label_replace(hearth_invocations_total,"code","","","")`: 422,
	} {
		if status, _ := ask(t, db, query, nil); status != want {
			t.Errorf("%s: %d, want %d", query, status, want)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// What was counted until the orderly end is there after the next start, and what is
// counted then adds to it, although it is counted from 0.
func TestCountsAddUp(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		var calls Calls
		db := start(t, dir, &calls, func(o *Options) { o.Interval = time.Hour })
		for range 5 {
			calls.Count(call("f", time.Millisecond))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db := start(t, dir, &Calls{})
	defer db.Close() //nolint:errcheck // tested elsewhere
	if n := grown(t, db, "hearth_invocations_total"); n != 15 {
		t.Errorf("%v calls, want 15", n)
	}
}

// grown returns by how much a counter has grown, as its samples tell.
func grown(t *testing.T, db *DB, name string) (sum float64) {
	t.Helper()
	_, data := ask(t, db, "query", url.Values{"query": {name + "[1h]"}})
	var v struct {
		Result []struct{ Values [][2]any }
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	for _, s := range v.Result {
		last := 0.0
		for i, p := range s.Values {
			n, err := strconv.ParseFloat(p[1].(string), 64)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 && n != 0 {
				t.Errorf("the first sample is %v", n)
			}
			if n >= last {
				sum += n - last
			} else {
				sum += n // it began anew
			}
			last = n
		}
	}
	return sum
}

// countUntilKilled counts, and prints how many have been for a second.
func countUntilKilled(dir string) {
	var calls Calls
	db := Start(Options{Dir: dir, Calls: &calls, Logger: slog.New(slog.DiscardHandler), Interval: 3 * time.Second})
	for db.open.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready")
	var safe [11]int // how many there were at the last ticks
	tick := time.NewTicker(100 * time.Millisecond)
	for n := 0; ; {
		select {
		case <-tick.C:
			copy(safe[1:], safe[:10])
			safe[0] = n
			fmt.Println("safe", safe[10])
		default:
			for range 100 {
				calls.Count(call("f", time.Duration(rand.IntN(1e9))))
			}
			n += 100
			time.Sleep(time.Millisecond)
		}
	}
}

// A killed server loses the last second of what it counted at most.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	total := 0
	for _, after := range []time.Duration{2500, 4500, 3100} { // milliseconds: the journal, the database, both
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), countEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		safe := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if line := lines.Text(); line == "ready" {
				time.AfterFunc(after*time.Millisecond, cancel)
			} else if _, err := fmt.Sscanf(line, "safe %d", &safe); err != nil {
				t.Fatal(line)
			}
		}
		_ = cmd.Wait() // it was killed
		cancel()
		total += safe
	}
	if total == 0 {
		t.Fatal("nothing was counted")
	}
	db := start(t, dir, &Calls{})
	defer db.Close() //nolint:errcheck // tested elsewhere
	// What was counted after the last second may be there too: three times at most.
	for _, name := range []string{"sum(hearth_invocations_total)", "histogram_count(hearth_invocation_duration_seconds)"} {
		if n := number(t, db, name); n <= 0 {
			t.Errorf("%s is %v", name, n)
		}
	}
	if n := grown(t, db, "hearth_invocations_total"); n < float64(total) {
		t.Errorf("%v calls are stored, %d were counted a second before the ends", n, total)
	}
}

// A database that cannot be opened is put aside.
func TestBrokenDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tsdb"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tsdb", "wal"), nil, 0o600); err != nil { // it is to be a directory
		t.Fatal(err)
	}
	var calls Calls
	db := start(t, dir, &calls)
	calls.Count(call("f", 1))
	becomes(t, db, "sum(hearth_invocations_total)", 1)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "tsdb.broken-*", "wal")); len(aside) != 1 { //nolint:errcheck // the pattern is valid
		t.Error("it is not put aside")
	}
}

func BenchmarkCount(b *testing.B) {
	var calls Calls
	b.RunParallel(func(pb *testing.PB) {
		v := call("f", time.Millisecond)
		for pb.Next() {
			calls.Count(v)
		}
	})
}

// Prometheus' own client, which promtool uses, takes it for a Prometheus.
func TestClientOfPrometheus(t *testing.T) {
	var calls Calls
	db := start(t, t.TempDir(), &calls)
	defer db.Close() //nolint:errcheck // tested elsewhere
	for range 10 {
		calls.Count(call("f", time.Millisecond))
	}
	becomes(t, db, "sum(hearth_invocations_total)", 10)
	s := httptest.NewServer(db.Handler())
	defer s.Close()
	c, err := api.NewClient(api.Config{Address: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, now, prom := t.Context(), time.Now(), promv1.NewAPI(c)
	if v, _, _, err := prom.Query(ctx, `sum by (function) (hearth_invocations_total)`, now); err != nil || !strings.Contains(v.String(), `{function="f"} => 10`) {
		t.Errorf("query: %v, %v", v, err)
	}
	if v, _, _, err := prom.Query(ctx, `hearth_invocation_duration_seconds`, now); err != nil || !strings.Contains(v.String(), "Count: 10.0") {
		t.Errorf("a histogram: %v, %v", v, err)
	}
	if v, _, _, err := prom.Query(ctx, `scalar(vector(2)) > bool 1`, now); err != nil || v.Type().String() != "scalar" {
		t.Errorf("a scalar: %v, %v", v, err)
	}
	if v, _, _, err := prom.QueryRange(ctx, `hearth_invocations_total`, promv1.Range{Start: now.Add(-time.Minute), End: now, Step: time.Second}); err != nil || v.Type().String() != "matrix" {
		t.Errorf("a range: %v, %v", v, err)
	}
	if names, _, _, err := prom.LabelNames(ctx, []string{"hearth_cold_starts_total", "hearth_invocations_total"}, now.Add(-time.Hour), now); err != nil || len(names) != 5 {
		t.Errorf("labels: %v, %v", names, err)
	}
	if values, _, _, err := prom.LabelValues(ctx, "__name__", nil, now.Add(-time.Hour), now); err != nil || len(values) != 6 {
		t.Errorf("values: %v, %v", values, err)
	}
	if list, _, _, err := prom.Series(ctx, []string{`{function="f"}`}, now.Add(-time.Hour), now, promv1.WithLimit(3)); err != nil || len(list) != 3 {
		t.Errorf("series: %v, %v", list, err)
	}
	if m, err := prom.Metadata(ctx, "hearth_invocations_total", ""); err != nil || len(m) != 1 || m["hearth_invocations_total"][0].Type != promv1.MetricTypeCounter {
		t.Errorf("metadata: %v, %v", m, err)
	}
	if b, err := prom.Buildinfo(ctx); err != nil || b.Version == "" {
		t.Errorf("build info: %v, %v", b, err)
	}
	if r, err := prom.Rules(ctx, nil); err != nil || len(r.Groups) != 2 {
		t.Errorf("rules: %v, %v", r, err)
	}
	var bad *promv1.Error
	if _, _, _, err := prom.Query(ctx, `x(`, now); !errors.As(err, &bad) || bad.Type != promv1.ErrBadData {
		t.Errorf("a bad query: %v", err)
	}
}
