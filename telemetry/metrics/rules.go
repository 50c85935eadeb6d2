package metrics

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hearthrun/hearth"
)

// This file has rules evaluated: those that are shipped, which sum up, and the operator's,
// which may do so too or raise alerts.

// shipped are the rules that are always there.
//
//go:embed rules.yaml
var shipped []byte

const (
	// shippedRules is the name of shipped where others have a file.
	shippedRules = "hearth"
	// ruleInterval is between two evaluations of a group that does not say.
	ruleInterval = time.Minute
	// resendAfter is after which time receivers are told again of an alert that fires.
	resendAfter = time.Minute
)

// Notify tells somebody of alerts that fire or have ended, as JSON in the form of
// Alertmanager's webhooks, version 4. It is told again every minute while an alert fires,
// and for 15 minutes after its end, and holds up the evaluation of rules meanwhile.
type Notify func(ctx context.Context, body []byte)

// CheckRules reads files with rules, as Prometheus has them. Errors: CodeInvalid for one
// that cannot be read or has a fault.
func CheckRules(files []string) error {
	for _, f := range files {
		if _, errs := (loader{parser.NewParser(parser.Options{})}).Load(f, false, model.UTF8Validation); len(errs) > 0 {
			return hearth.Errorf(hearth.CodeInvalid, "the rules cannot be used: %w", errors.Join(errs...)).
				WithHint("write them as Prometheus has them; promtool check rules %s tells more", f)
		}
	}
	return nil
}

// loader reads rules.
type loader struct{ parser parser.Parser }

// Load implements rules.GroupLoader.
func (l loader) Load(name string, ignoreUnknown bool, scheme model.ValidationScheme) (*rulefmt.RuleGroups, []error) {
	content := shipped
	if name != shippedRules {
		var err error
		if content, err = os.ReadFile(name); err != nil {
			return nil, []error{err}
		}
	}
	groups, errs := rulefmt.Parse(content, ignoreUnknown, scheme, l.parser, slog.New(slog.DiscardHandler))
	for i, err := range errs {
		errs[i] = fmt.Errorf("%s: %w", name, err)
	}
	return groups, errs
}

// Parse implements rules.GroupLoader.
func (l loader) Parse(query string) (parser.Expr, error) { return l.parser.ParseExpr(query) }

// newRules reads rules. They are evaluated while the manager runs.
func (db *DB) newRules(ctx context.Context, t *tsdb.DB) (*rules.Manager, error) {
	m := rules.NewManager(&rules.ManagerOptions{
		NameValidationScheme: model.UTF8Validation,
		ExternalURL:          &externalURL,
		QueryFunc:            rules.EngineQueryFunc(db.queries.engine, t),
		NotifyFunc:           db.notify,
		Context:              ctx,
		Appendable:           t,
		Queryable:            t,
		Logger:               db.opts.Logger.With("part", "rules"),
		OutageTolerance:      outageTolerance, ForGracePeriod: 10 * time.Minute, ResendDelay: resendAfter,
		GroupLoader: loader{db.queries.parser},
		Parser:      db.queries.parser,
	})
	files := append([]string{shippedRules}, db.opts.Rules...)
	return m, m.Update(ruleInterval, files, labels.EmptyLabels(), "", nil)
}

// externalURL is where rules say that they are.
var externalURL = url.URL{Scheme: "http", Host: "localhost", Path: "/metrics"}

// message is what webhooks of Alertmanager are told.
type message struct {
	Version           string        `json:"version"`
	GroupKey          string        `json:"groupKey"`
	TruncatedAlerts   int           `json:"truncatedAlerts"`
	Status            string        `json:"status"`
	Receiver          string        `json:"receiver"`
	GroupLabels       labels.Labels `json:"groupLabels"`
	CommonLabels      labels.Labels `json:"commonLabels"`
	CommonAnnotations labels.Labels `json:"commonAnnotations"`
	ExternalURL       string        `json:"externalURL"`
	Alerts            []toldAlert   `json:"alerts"`
}

type toldAlert struct {
	Status       string        `json:"status"`
	Labels       labels.Labels `json:"labels"`
	Annotations  labels.Labels `json:"annotations"`
	StartsAt     time.Time     `json:"startsAt"`
	EndsAt       time.Time     `json:"endsAt"` // the zero time while it fires
	GeneratorURL string        `json:"generatorURL"`
	Fingerprint  string        `json:"fingerprint"`
}

// notify tells of the alerts of a rule.
func (db *DB) notify(ctx context.Context, expr string, alerts ...*rules.Alert) {
	if db.opts.Notify == nil || len(alerts) == 0 {
		return
	}
	generator := externalURL.JoinPath("api/v1/query")
	generator.RawQuery = url.Values{"query": {expr}}.Encode()
	m := message{
		Version: "4", Status: "resolved", Receiver: "hearth", ExternalURL: externalURL.String(),
		GroupLabels:  labels.FromStrings(labels.AlertName, alerts[0].Labels.Get(labels.AlertName)),
		CommonLabels: alerts[0].Labels, CommonAnnotations: alerts[0].Annotations,
	}
	m.GroupKey = "{}:" + m.GroupLabels.String()
	for _, a := range alerts {
		out := toldAlert{
			Status: "firing", Labels: a.Labels, Annotations: a.Annotations, StartsAt: a.FiredAt, EndsAt: a.ResolvedAt,
			GeneratorURL: generator.String(), Fingerprint: fmt.Sprintf("%016x", a.Labels.Hash()),
		}
		if !a.ResolvedAt.IsZero() {
			out.Status = "resolved"
		} else {
			m.Status = "firing"
		}
		m.CommonLabels, m.CommonAnnotations = common(m.CommonLabels, a.Labels), common(m.CommonAnnotations, a.Annotations)
		m.Alerts = append(m.Alerts, out)
	}
	b, err := json.Marshal(m)
	if err != nil {
		db.failed("telling of alerts", err)
		return
	}
	db.opts.Notify(ctx, b)
}

// common returns the labels that both have.
func common(a, b labels.Labels) labels.Labels {
	out := labels.NewBuilder(a)
	a.Range(func(l labels.Label) {
		if b.Get(l.Name) != l.Value {
			out.Del(l.Name)
		}
	})
	return out.Labels()
}

// rule is a rule as Prometheus' HTTP API has it.
type rule struct {
	Type           string        `json:"type"`
	Name           string        `json:"name"`
	Query          string        `json:"query"`
	Labels         labels.Labels `json:"labels"`
	Health         string        `json:"health"`
	LastError      string        `json:"lastError,omitempty"`
	EvaluationTime float64       `json:"evaluationTime"`
	LastEvaluation time.Time     `json:"lastEvaluation"`

	// Of those that raise alerts.
	State       string         `json:"state,omitempty"`
	Duration    float64        `json:"duration,omitempty"`
	Annotations *labels.Labels `json:"annotations,omitempty"`
	Alerts      []activeAlert  `json:"alerts,omitempty"`
}

// activeAlert is an alert as Prometheus' HTTP API has it.
type activeAlert struct {
	Labels      labels.Labels `json:"labels"`
	Annotations labels.Labels `json:"annotations"`
	State       string        `json:"state"`
	ActiveAt    time.Time     `json:"activeAt"`
	Value       string        `json:"value"`
}

// rules tells which rules there are and how they are.
func (q *queries) rules(r *http.Request) (any, annotations.Annotations, error) {
	type group struct {
		Name           string    `json:"name"`
		File           string    `json:"file"`
		Interval       float64   `json:"interval"`
		Limit          int       `json:"limit"`
		Rules          []rule    `json:"rules"`
		EvaluationTime float64   `json:"evaluationTime"`
		LastEvaluation time.Time `json:"lastEvaluation"`
	}
	only := map[string]string{"": "", "alert": "alerting", "record": "recording"}
	kind, ok := only[r.FormValue("type")]
	if !ok {
		return nil, nil, badData("type", errors.New("it is alert or record"))
	}
	groups := []group{}
	for _, g := range q.db.ruleGroups() {
		out := group{
			Name: g.Name(), File: g.File(), Interval: g.Interval().Seconds(), Limit: g.Limit(), Rules: []rule{},
			EvaluationTime: g.GetEvaluationTime().Seconds(), LastEvaluation: g.GetLastEvaluation(),
		}
		for _, r := range g.Rules() {
			if o := ruleOf(r); kind == "" || o.Type == kind {
				out.Rules = append(out.Rules, o)
			}
		}
		if len(out.Rules) > 0 || kind == "" {
			groups = append(groups, out)
		}
	}
	return map[string]any{"groups": groups}, nil, nil
}

func ruleOf(r rules.Rule) rule {
	out := rule{
		Type: "recording", Name: r.Name(), Query: r.Query().String(), Labels: r.Labels(), Health: string(r.Health()),
		EvaluationTime: r.GetEvaluationDuration().Seconds(), LastEvaluation: r.GetEvaluationTimestamp(),
	}
	if err := r.LastError(); err != nil {
		out.LastError = err.Error()
	}
	if a, ok := r.(*rules.AlertingRule); ok {
		notes := a.Annotations()
		out.Type, out.State, out.Duration, out.Annotations, out.Alerts = "alerting", a.State().String(), a.HoldDuration().Seconds(), &notes, alertsOf(a)
	}
	return out
}

func alertsOf(r *rules.AlertingRule) []activeAlert {
	out := []activeAlert{}
	for _, a := range r.ActiveAlerts() {
		out = append(out, activeAlert{Labels: a.Labels, Annotations: a.Annotations, State: a.State.String(), ActiveAt: a.ActiveAt, Value: fmt.Sprint(a.Value)})
	}
	return out
}

// alerts tells which alerts fire or are about to.
func (q *queries) alerts(*http.Request) (any, annotations.Annotations, error) {
	list := []activeAlert{}
	for _, g := range q.db.ruleGroups() {
		for _, r := range g.AlertingRules() {
			list = append(list, alertsOf(r)...)
		}
	}
	return map[string]any{"alerts": list}, nil, nil
}

// ruleGroups returns the groups of rules, none while the database is not open.
func (db *DB) ruleGroups() []*rules.Group {
	m := db.manager.Load()
	if m == nil {
		return nil
	}
	return m.RuleGroups()
}
