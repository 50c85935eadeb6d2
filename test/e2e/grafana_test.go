package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/model"

	"github.com/hearthrun/hearth/server"
)

// called starts a server with a function that was called.
func called(t *testing.T) *installation {
	in := start(t, "", func(c *server.Config) { c.MetricsInterval = 200 * time.Millisecond })
	in.deploy("counted", "python", "def handler(event, context):\n    return 'done'\n", nil)
	in.do("POST", "/v1/functions/counted/invocations", nil)
	in.ended(in.later("counted", nil))
	eventually(t, "the calls are stored", func() bool {
		n, ok := in.metric(`sum(hearth_invocations_total)`)
		return ok && n == 2
	})
	return in
}

// grafana sends requests as Grafana's Prometheus data source does: queries as forms, and
// by GET what Prometheus knows only so.
type grafana struct{ *installation }

// ask sends a request and decodes the data of the answer, which is to be a success.
func (g grafana) ask(method, path string, form url.Values, data any) {
	g.t.Helper()
	address, body := g.url+"/metrics/api/v1/"+path, io.Reader(nil)
	if method == http.MethodPost {
		body = strings.NewReader(form.Encode())
	} else if len(form) > 0 {
		address += "?" + form.Encode()
	}
	req, err := http.NewRequestWithContext(g.t.Context(), method, address, body)
	if err != nil {
		g.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range map[string]string{
		"User-Agent": "Grafana/12.3.0", "Accept-Encoding": "gzip", "X-Grafana-Org-Id": "1", "X-Datasource-Uid": "hearth", "X-Dashboard-Uid": "hearth", "X-Panel-Id": "2",
	} {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	reader := io.Reader(resp.Body)
	if resp.Header.Get("Content-Encoding") == "gzip" {
		if reader, err = gzip.NewReader(resp.Body); err != nil {
			g.t.Fatal(err)
		}
	}
	text, err := io.ReadAll(reader)
	if err != nil {
		g.t.Fatal(err)
	}
	var answer struct {
		Status any // a string in Prometheus' answers
		Data   json.RawMessage
	}
	if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != 200 || answer.Status != "success" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		g.t.Fatalf("%s %s %v: %s, %v: %.500s", method, path, form, resp.Status, err, text)
	}
	if err := json.Unmarshal(answer.Data, data); err != nil {
		g.t.Fatalf("%s: %v: %.500s", path, err, answer.Data)
	}
}

// TestGrafana: Grafana can use Hearth as a data source, and the dashboard with it. These
// are the requests of Grafana: of "Save & test", of its query builder and of dashboards.
func TestGrafana(t *testing.T) {
	g := grafana{called(t)}
	now := time.Now()
	seconds := func(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64) }
	span := func(more ...string) url.Values {
		v := url.Values{"start": {seconds(now.Add(-time.Hour))}, "end": {seconds(now.Add(time.Minute))}}
		for i := 0; i < len(more); i += 2 {
			v.Add(more[i], more[i+1])
		}
		return v
	}

	// What kind of Prometheus it is, and whether it answers.
	var build struct{ Version, Application string }
	g.ask("GET", "status/buildinfo", nil, &build)
	if major, _, _ := strings.Cut(build.Version, "."); major != "3" {
		t.Errorf("the version is %q", build.Version)
	}
	var result struct {
		ResultType string
		Result     json.RawMessage
	}
	g.ask("POST", "query", url.Values{"query": {"1+1"}, "time": {seconds(now)}}, &result)
	if result.ResultType != "scalar" || !strings.HasSuffix(string(result.Result), `,"2"]`) {
		t.Errorf("1+1 is %s", result.Result)
	}

	// What the query builder offers.
	has := func(list []string, want string) {
		t.Helper()
		for _, s := range list {
			if s == want {
				return
			}
		}
		t.Errorf("%q lacks %q", list, want)
	}
	var list []string
	g.ask("POST", "labels", span("match[]", `{__name__="hearth_invocations_total"}`), &list)
	has(list, "isolation")
	g.ask("GET", "label/__name__/values", span("limit", "40000"), &list)
	has(list, "hearth_invocation_duration_seconds")
	g.ask("GET", "label/function/values", span("match[]", "hearth_invocations_total"), &list) // a variable of the dashboard
	has(list, "counted")
	var metadata map[string][]struct{ Type, Help string }
	g.ask("GET", "metadata", url.Values{"limit": {"40000"}}, &metadata)
	if m := metadata["hearth_invocations_total"]; len(m) != 1 || m[0].Type != "counter" || m[0].Help == "" {
		t.Errorf("metadata: %v", m)
	}
	var series []map[string]string
	g.ask("POST", "series", span("match[]", `hearth_invocations_total{function="counted"}`), &series)
	if len(series) != 1 || series[0]["code"] != "ok" {
		t.Errorf("series: %v", series)
	}
	var exemplars []json.RawMessage
	g.ask("POST", "query_exemplars", span("query", "hearth_invocations_total"), &exemplars)
	var rules struct{ Groups []struct{ Name string } }
	g.ask("GET", "rules", nil, &rules)
	if len(rules.Groups) != 2 {
		t.Errorf("rules: %v", rules)
	}

	// The dashboard: every expression of it.
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	a := g.do("GET", "/metrics/grafana.json", nil)
	decode(t, a, &dashboard)
	if a.header.Get("Content-Type") != "application/json" || len(dashboard.Panels) == 0 {
		t.Fatal(a)
	}
	shown := map[string]bool{}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "4m", "$function", "counted", "$isolation", ".*").Replace(target.Expr)
			g.ask("POST", "query_range", span("query", expr, "step", "15"), &result)
			if result.ResultType != "matrix" {
				t.Errorf("%s: %s is a %s", p.Title, expr, result.ResultType)
			}
			shown[p.Title] = shown[p.Title] || string(result.Result) != "[]"
		}
	}
	for _, title := range []string{"Calls by outcome", "Calls", "p95", "Durations", "By state", "Memory of the pool", "Goroutines and files"} {
		if !shown[title] {
			t.Errorf("the panel %q is empty", title)
		}
	}
}

// TestPromtool: what promtool asks for, with the library that it is made of: query
// instant, range, series and labels, and check metrics.
func TestPromtool(t *testing.T) {
	in := called(t)
	c, err := api.NewClient(api.Config{Address: in.url + "/metrics"})
	if err != nil {
		t.Fatal(err)
	}
	prom, ctx, now := promv1.NewAPI(c), t.Context(), time.Now()
	long := promv1.Range{Start: now.Add(-time.Hour), End: now, Step: 15 * time.Second}
	v, warnings, _, err := prom.Query(ctx, `sum by (function) (hearth_invocations_total)`, now)
	if err != nil || len(warnings) > 0 || !strings.Contains(v.String(), `{function="counted"} => 2`) {
		t.Errorf("instant: %v, %v, %v", v, warnings, err)
	}
	v, _, _, err = prom.QueryRange(ctx, `histogram_count(hearth_invocation_duration_seconds)`, long)
	if m, ok := v.(model.Matrix); err != nil || !ok || len(m) != 1 {
		t.Errorf("range: %v, %v", v, err)
	}
	sets, _, _, err := prom.Series(ctx, []string{`hearth_instances`, `{__name__=~"hearth_pool_.*"}`}, long.Start, long.End)
	if err != nil || len(sets) < 3 {
		t.Errorf("series: %v, %v", sets, err)
	}
	values, _, _, err := prom.LabelValues(ctx, "function", nil, long.Start, long.End)
	if err != nil || len(values) == 0 || values[0] != "counted" {
		t.Errorf("labels: %v, %v", values, err)
	}
	if _, _, _, err := prom.Query(ctx, "sum(", now); err == nil || !strings.Contains(err.Error(), "bad_data") {
		t.Errorf("a bad query: %v", err)
	}
	problems, err := promlint.New(bytes.NewReader(in.do("GET", "/metrics", nil).body)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("check metrics: %v, %v", problems, err)
	}
}
