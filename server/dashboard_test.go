package server

import (
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/hearthrun/hearth/telemetry/metrics"
)

// TestDashboard: what the dashboard for Grafana asks for is valid and exists.
func TestDashboard(t *testing.T) {
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID      int
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../telemetry/metrics/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	exist := existing(t)
	ids := map[int]string{}
	check := func(title, expr string) {
		t.Helper()
		// Grafana replaces its variables before it asks.
		expr = strings.NewReplacer("$__rate_interval", "4m", "$function", ".*", "$isolation", "a|b").Replace(expr)
		parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		if err != nil || strings.Contains(expr, "$") {
			t.Errorf("%s: %s: %v", title, expr, err)
			return
		}
		parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
			if s, ok := node.(*parser.VectorSelector); ok {
				known, ok := exist[s.Name]
				if !ok {
					t.Errorf("%s: there is no metric %q", title, s.Name)
				}
				for _, m := range s.LabelMatchers {
					if m.Name != model.MetricNameLabel && !slices.Contains(known, m.Name) {
						t.Errorf("%s: %s has no label %q", title, s.Name, m.Name)
					}
				}
			}
			return nil
		})
	}
	for _, p := range dashboard.Panels {
		if ids[p.ID] != "" {
			t.Errorf("%q has the id of %q", p.Title, ids[p.ID])
		}
		ids[p.ID] = p.Title
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("%q asks for nothing, or is a row", p.Title)
		}
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
	}
	if len(ids) < 20 {
		t.Errorf("there are %d panels", len(ids))
	}
	values := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
	var names []string
	for _, v := range dashboard.Templating.List {
		names = append(names, v.Name)
		if v.Definition == "" {
			continue
		}
		m := values.FindStringSubmatch(v.Definition)
		if m == nil || !slices.Contains(exist[m[1]], m[2]) {
			t.Errorf("the variable %s is %q", v.Name, v.Definition)
		}
	}
	if !slices.Equal(names, []string{"datasource", "function", "isolation"}) {
		t.Errorf("the variables are %q", names)
	}
}

// existing returns the labels of all metrics that a server has, and of those that its
// rules make.
func existing(t *testing.T) map[string][]string {
	t.Helper()
	described := regexp.MustCompile(`^Desc\{fqName: "([^"]*)", .*variableLabels: \{([^}]*)\}\}$`)
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		for _, c := range []prometheus.Collector{
			&metrics.Calls{}, stateCollector{}, newHealthMetrics(nil), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		} {
			c.Describe(descs)
		}
	}()
	out := map[string][]string{}
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("a description is %s", d)
		}
		out[m[1]] = strings.Split(m[2], ",")
	}
	rules, errs := rulefmt.ParseFile("../telemetry/metrics/rules.yaml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			sum, ok := expr.(*parser.AggregateExpr)
			if !ok || sum.Without {
				t.Fatalf("%s is no sum by labels", r.Record)
			}
			out[r.Record] = append(sum.Grouping, "")
		}
	}
	return out
}
