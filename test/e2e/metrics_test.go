package e2e

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// metric returns the value of a PromQL query that has one; ok is false if it has none.
func (in *installation) metric(query string) (n float64, ok bool) {
	in.t.Helper()
	var v struct {
		Status string
		Data   struct {
			Result []struct{ Value [2]any }
		}
	}
	decode(in.t, in.do("GET", "/metrics/api/v1/query?query="+url.QueryEscape(query), nil), &v)
	if v.Status != "success" || len(v.Data.Result) > 1 {
		in.t.Fatalf("%s: %+v", query, v)
	}
	if len(v.Data.Result) == 0 {
		return 0, false
	}
	n, err := strconv.ParseFloat(v.Data.Result[0].Value[1].(string), 64)
	if err != nil {
		in.t.Fatal(err)
	}
	return n, true
}

// TestMetrics: what calls did is counted, stored, and there after a restart.
func TestMetrics(t *testing.T) {
	often := func(c *server.Config) { c.MetricsInterval = 200 * time.Millisecond }
	in := start(t, "", often)
	in.deploy("counted", "python", `def handler(event, context):
    if event and event.get("fail"):
        raise ValueError("no")
    return "done"
`, nil)
	for i := range 5 {
		in.do("POST", "/v1/functions/counted/invocations", fields{"n": i})
	}
	in.do("POST", "/v1/functions/counted/invocations", fields{"fail": true})
	in.ended(in.later("counted", nil))
	is := func(query string, want float64) {
		t.Helper()
		eventually(t, query, func() bool {
			n, ok := in.metric(query)
			return ok && n == want
		})
	}
	is(`hearth_invocations_total{function="counted",version="1",isolation="native",code="ok"}`, 6)
	is(`sum(hearth_invocations_total{fault="function"})`, 1)
	is(`histogram_count(hearth_invocation_duration_seconds{function="counted"})`, 7)
	is(`sum(hearth_instances{function="counted",state=~"idle|paused"})`, 1)
	is(`hearth_queue_calls{function="counted",state="succeeded"}`, 1)
	is(`hearth_invocations_in_flight{function="counted"}`, 0)
	in.do("GET", "/fn/nosuch", nil)
	is(`hearth_http_requests_total{part="gateway",error="not_found"}`, 1)
	is(`hearth_store_write_failures_total{database="queue"}`, 0)
	is(`sum(hearth_http_connections) > bool 0`, 1)
	for _, query := range []string{
		`hearth_instance_cpu_seconds_total{function="counted"}`, `hearth_instance_seconds_total{function="counted",state="idle"}`,
		`hearth_instance_memory_byte_seconds_total{function="counted",state="idle"}`, `hearth_instance_memory_peak_bytes{function="counted"}`,
		`hearth_store_writes_total{database="invocations"}`, `hearth_store_bytes{database="catalog"}`,
	} {
		eventually(t, query, func() bool { n, ok := in.metric(query); return ok && n > 0 })
	}
	a := in.do("GET", "/metrics", nil)
	for _, want := range []string{
		"# TYPE hearth_invocation_phase_seconds histogram",
		`hearth_invocations_total{code="function_error",fault="function",function="counted",isolation="native",version="1"} 1`,
		"process_resident_memory_bytes ",
	} {
		if a.status != 200 || !strings.Contains(string(a.body), want) {
			t.Errorf("%d: /metrics lacks %s", a.status, want)
		}
	}
	in.stop()
	in = start(t, in.dir, often)
	in.do("POST", "/v1/functions/counted/invocations", nil)
	is(`hearth_invocations_total{function="counted",code="ok"}`, 1)
	is(`resets(hearth_invocations_total{function="counted",code="ok"}[10m])`, 1)
	is(`sum(max_over_time(hearth_invocations_total{function="counted"}[10m]))`, 7)
	if a := in.do("GET", "/metrics/api/v1/query?query=x(", nil); a.status != 400 || !strings.Contains(string(a.body), `"errorType":"bad_data"`) {
		t.Errorf("a bad query: %v", a)
	}
}

// TestAlerts: a rule of the operator raises an alert, and a receiver is told.
func TestAlerts(t *testing.T) {
	told := make(chan *http.Request, 100)
	bodies := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) //nolint:errcheck // the test sees what is missing
		told <- r
		bodies <- string(body)
	}))
	defer receiver.Close()
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	err := os.WriteFile(rules, []byte(`groups: [{name: mine, interval: 200ms, rules: [
  {alert: Failing, expr: 'sum by (function) (hearth_invocations_total{code="function_error"}) > 0', labels: {severity: page}}]}]`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	in := start(t, "", func(c *server.Config) {
		c.MetricsInterval, c.Rules, c.AlertURLs = 200*time.Millisecond, []string{rules}, []string{receiver.URL + "/hook"}
	})
	in.deploy("failing", "python", "def handler(event, context):\n    raise ValueError('no')\n", nil)
	in.do("POST", "/v1/functions/failing/invocations", nil)
	select {
	case r := <-told:
		if r.URL.Path != "/hook" || r.Header.Get("Content-Type") != "application/json" || !strings.HasPrefix(r.Header.Get("Webhook-Signature"), "v1,") {
			t.Errorf("%s %v", r.URL, r.Header)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody was told")
	}
	if body := <-bodies; !strings.Contains(body, `"status":"firing"`) || !strings.Contains(body, `"alertname":"Failing","function":"failing","severity":"page"`) {
		t.Error(body)
	}
	if _, err := server.New(t.Context(), server.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Rules: []string{"nosuch"}}); err == nil {
		t.Error("a server began without its rules")
	}
	if _, err := server.New(t.Context(), server.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), AlertURLs: []string{"example"}}); err == nil {
		t.Error("a server began with a receiver that is none")
	}
}
