package metrics

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
)

// rulesFile writes a file with rules.
func rulesFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRules(t *testing.T) {
	file := rulesFile(t, `
groups:
  - name: mine
    interval: 100ms
    rules:
      - record: double
        expr: 2 * hearth_test_gauge
      - alert: TooMany
        expr: hearth_test_gauge > 5
        labels: {severity: page}
        annotations: {summary: "it is {{ $value }}"}
`)
	if err := CheckRules([]string{file}); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hearth_test_gauge", Help: "It is set."})
	registry.MustRegister(gauge)
	gauge.Set(1)
	told := make(chan string, 1000)
	db := start(t, t.TempDir(), &Calls{}, func(o *Options) {
		o.Gatherer, o.Rules = registry, []string{file}
		o.Notify = func(_ context.Context, body []byte) { told <- string(body) }
	})
	defer db.Close() //nolint:errcheck // tested elsewhere
	becomes(t, db, "double", 2)
	if len(told) > 0 {
		t.Error("an alert was raised without a reason")
	}
	gauge.Set(7)
	wait := func() (message struct {
		Status, GroupKey, ExternalURL                string
		GroupLabels, CommonLabels, CommonAnnotations map[string]string
		Alerts                                       []struct {
			Status              string
			Labels, Annotations map[string]string
			StartsAt, EndsAt    time.Time
			GeneratorURL        string
			Fingerprint         string
		}
	},
	) {
		t.Helper()
		select {
		case text := <-told:
			if err := json.Unmarshal([]byte(text), &message); err != nil || len(message.Alerts) != 1 {
				t.Fatal(text, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nobody was told")
		}
		return message
	}
	m := wait()
	if a := m.Alerts[0]; m.Status != "firing" || a.Status != "firing" || a.Labels["alertname"] != "TooMany" || a.Labels["severity"] != "page" ||
		a.Annotations["summary"] != "it is 7" || a.StartsAt.IsZero() || !a.EndsAt.IsZero() {
		t.Errorf("%+v", m)
	} else if m.GroupKey != `{}:{alertname="TooMany"}` || m.GroupLabels["alertname"] != "TooMany" || m.CommonLabels["severity"] != "page" ||
		m.CommonAnnotations["summary"] != "it is 7" || m.ExternalURL == "" || len(a.Fingerprint) != 16 || !strings.Contains(a.GeneratorURL, "query=") {
		t.Errorf("it is not as Alertmanager tells it: %+v", m)
	}
	if _, data := ask(t, db, "alerts", nil); !strings.Contains(string(data), `"state":"firing"`) {
		t.Errorf("alerts: %s", data)
	}
	for kind, want := range map[string][2]string{"": {"double", "TooMany"}, "record": {"double", ""}, "alert": {"TooMany", ""}} {
		_, data := ask(t, db, "rules", url.Values{"type": {kind}})
		for _, name := range want {
			if !strings.Contains(string(data), name) || kind == "alert" && strings.Contains(string(data), `"double"`) {
				t.Errorf("rules of type %q: %s", kind, data)
			}
		}
	}
	gauge.Set(2)
	if m := wait(); m.Status != "resolved" || m.Alerts[0].EndsAt.IsZero() {
		t.Errorf("%+v", m)
	}
}

// An alert that ends while the server is started anew is told of all the same.
func TestAlertEndsAcrossRestart(t *testing.T) {
	file := rulesFile(t, `
groups:
  - name: mine
    interval: 100ms
    rules:
      - {alert: TooMany, expr: hearth_test_gauge > 5, labels: {severity: page}}
      - {alert: Goes on, expr: hearth_test_gauge > 0}
`)
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hearth_test_gauge", Help: "It is set."})
	registry.MustRegister(gauge)
	told := make(chan string, 10000)
	begin := func() *DB {
		return start(t, dir, &Calls{}, func(o *Options) {
			o.Gatherer, o.Rules = registry, []string{file}
			o.Notify = func(_ context.Context, body []byte) { told <- string(body) }
		})
	}
	wait := func(status, alert string) {
		t.Helper()
		for {
			select {
			case text := <-told:
				if strings.Contains(text, `"status":"`+status+`","labels":{"alertname":"`+alert) {
					return
				}
				if strings.Contains(text, `"resolved"`) {
					t.Fatalf("%s has ended", text)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("nobody was told that %s is %s", alert, status)
			}
		}
	}
	gauge.Set(7)
	db := begin()
	wait("firing", "TooMany")
	becomes(t, db, `count(ALERTS{alertstate="firing"})`, 2)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	gauge.Set(2)
	db = begin()
	defer db.Close() //nolint:errcheck // tested above
	wait("firing", "Goes on")
	wait("resolved", "TooMany")
}

// The rules that are shipped have no fault, and what dashboards ask is there.
func TestShippedRules(t *testing.T) {
	if err := CheckRules([]string{shippedRules}); err != nil {
		t.Fatal(err)
	}
	var calls Calls
	db := start(t, t.TempDir(), &calls)
	defer db.Close() //nolint:errcheck // tested elsewhere
	for range 10 {
		calls.Count(call("f", time.Second))
	}
	becomes(t, db, "sum(hearth_invocations_total)", 10)
	at := time.Now()
	for _, g := range db.ruleGroups() {
		g.Eval(t.Context(), at)
		for _, r := range g.Rules() {
			if err := r.LastError(); err != nil {
				t.Errorf("%s: %v", r.Name(), err)
			}
		}
	}
	if n := number(t, db, "sum(function_fault:hearth_invocations:rate5m) > 0"); n <= 0 {
		t.Errorf("the rate is %v", n)
	}
	if n := number(t, db, "round(histogram_quantile(0.5, hearth_invocation_duration_seconds:rate5m), 0.1)"); n != 1 {
		t.Errorf("the median is %v", n)
	}
}

func TestCheckRules(t *testing.T) {
	for text, want := range map[string]string{
		"groups: [{name: a, rules: [{record: x, expr: 'sum('}]}]": "unclosed left parenthesis",
		"groups: [{name: a, rulez: []}]":                          "rulez",
		"x":                                                       "cannot unmarshal",
	} {
		if err := CheckRules([]string{rulesFile(t, text)}); hearth.ErrorCode(err) != hearth.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := CheckRules([]string{"nosuch"}); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("no file: %v", err)
	}
}
