package metrics

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// This file answers queries as Prometheus does: its HTTP API v1, as far as it is about
// data, so that Grafana and promtool take Hearth for one.

const (
	// maxSamples bounds what a query has in memory, at 16 bytes each; queryTimeout how
	// long it takes, and maxQueries how many run at the same time.
	maxSamples   = 50_000_000
	queryTimeout = 30 * time.Second
	maxQueries   = 4
	// maxPoints bounds the points of each series of a range query, as Prometheus does.
	maxPoints = 11_000
	// maxForm bounds the body of a query in bytes.
	maxForm = 1 << 20
)

// queries answers queries.
type queries struct {
	db     *DB
	engine *promql.Engine
	parser parser.Parser
	slots  chan struct{}
}

func newQueries(db *DB, logger *slog.Logger) *queries {
	p := parser.NewParser(parser.Options{})
	return &queries{db: db, parser: p, slots: make(chan struct{}, maxQueries), engine: promql.NewEngine(promql.EngineOpts{
		Logger: logger, MaxSamples: maxSamples, Timeout: queryTimeout, EnableAtModifier: true, EnableNegativeOffset: true, Parser: p,
	})}
}

// dashboard is one of Grafana's, as Grafana exports and imports it.
//
//go:embed grafana.json
var dashboard []byte

// Handler serves Prometheus' HTTP API v1 below /api/v1/: query, query_range, series,
// labels, label/{name}/values, metadata and what Grafana asks for besides; and at
// /grafana.json a dashboard to import there. It asks for no authentication.
func (db *DB) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, fn := range map[string]func(*http.Request) (any, annotations.Annotations, error){
		"query":               db.queries.instant,
		"query_range":         db.queries.ranged,
		"series":              db.queries.series,
		"labels":              db.queries.labels,
		"label/{name}/values": db.queries.values,
		"metadata":            db.queries.metadata,
		"query_exemplars":     none,
		"rules":               db.queries.rules,
		"alerts":              db.queries.alerts,
		"status/buildinfo":    buildInfo,
		"status/runtimeinfo":  func(*http.Request) (any, annotations.Annotations, error) { return map[string]any{}, nil, nil },
	} {
		mux.HandleFunc("GET /api/v1/"+path, answer(fn))
		mux.HandleFunc("POST /api/v1/"+path, answer(fn))
	}
	mux.HandleFunc("GET /grafana.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(dashboard) //nolint:errcheck // the client is gone
	})
	return mux
}

func none(*http.Request) (any, annotations.Annotations, error) { return []any{}, nil, nil }

// buildInfo tells which version of Prometheus this is like.
func buildInfo(*http.Request) (any, annotations.Annotations, error) {
	return map[string]string{"version": "3.12.0", "application": "hearth"}, nil, nil
}

// queryError is an error with the type that Prometheus gives it.
type queryError struct {
	kind   string
	status int
	err    error
}

func (e *queryError) Error() string { return e.err.Error() }

// badData says what is wrong with a request.
func badData(what string, err error) error {
	return &queryError{"bad_data", http.StatusBadRequest, errors.New(what + ": " + err.Error())}
}

// errorOf returns an error as Prometheus has it.
func errorOf(err error) *queryError {
	var e *queryError
	var canceled promql.ErrQueryCanceled
	var timeout promql.ErrQueryTimeout
	var store promql.ErrStorage
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &canceled), errors.Is(err, context.Canceled):
		return &queryError{"canceled", 499, err}
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded):
		return &queryError{"timeout", http.StatusServiceUnavailable, err}
	case errors.As(err, &store):
		return &queryError{"internal", http.StatusInternalServerError, err}
	}
	return &queryError{"execution", http.StatusUnprocessableEntity, err}
}

// answer serves what fn returns.
func answer(fn func(*http.Request) (any, annotations.Annotations, error)) http.HandlerFunc {
	type response struct {
		Status    string   `json:"status"`
		Data      any      `json:"data,omitempty"`
		ErrorType string   `json:"errorType,omitempty"`
		Error     string   `json:"error,omitempty"`
		Warnings  []string `json:"warnings,omitempty"`
		Infos     []string `json:"infos,omitempty"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		var data any
		var notes annotations.Annotations
		err := r.ParseForm()
		if err != nil {
			err = badData("the form cannot be read", err)
		} else {
			data, notes, err = fn(r)
		}
		status, out := http.StatusOK, response{Status: "success", Data: data}
		out.Warnings, out.Infos = notes.AsStrings(r.FormValue("query"), 10, 10)
		if err != nil {
			e := errorOf(err)
			status, out = e.status, response{Status: "error", ErrorType: e.kind, Error: e.Error()}
		}
		body, err := json.Marshal(out)
		if err != nil { // of values that JSON has not; promql writes its own
			status, body = http.StatusInternalServerError, []byte(`{"status":"error","errorType":"internal","error":"the result cannot be written"}`)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write(body) //nolint:errcheck // the client is gone
	}
}

// run runs a query that make makes.
func (q *queries) run(r *http.Request, make func(ctx context.Context, s storage.Queryable, opts promql.QueryOpts) (promql.Query, error)) (any, annotations.Annotations, error) {
	ctx, cancel, err := withTimeout(r)
	if err != nil {
		return nil, nil, err
	}
	defer cancel()
	store, err := q.store()
	if err != nil {
		return nil, nil, err
	}
	select {
	case q.slots <- struct{}{}:
		defer func() { <-q.slots }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	lookback := time.Duration(0) // the engine's
	if s := r.FormValue("lookback_delta"); s != "" {
		if lookback, err = parseDuration(s); err != nil {
			return nil, nil, badData("lookback_delta", err)
		}
	}
	query, err := make(ctx, store, promql.NewPrometheusQueryOpts(false, lookback))
	if err != nil {
		return nil, nil, badData("the query is not valid", err)
	}
	defer query.Close()
	result := query.Exec(ctx)
	if result.Err != nil {
		return nil, result.Warnings, result.Err
	}
	// The result is the query's until it is closed: it is written first.
	data, err := json.Marshal(map[string]any{"resultType": result.Value.Type(), "result": resultOf(result.Value)})
	return json.RawMessage(data), result.Warnings, err
}

// resultOf returns a value as it is written: empty lists are lists.
func resultOf(v parser.Value) any {
	switch v := v.(type) {
	case promql.Vector:
		if v == nil {
			return promql.Vector{}
		}
	case promql.Matrix:
		if v == nil {
			return promql.Matrix{}
		}
	}
	return v
}

func (q *queries) instant(r *http.Request) (any, annotations.Annotations, error) {
	at, err := timeOf(r, "time", time.Now())
	if err != nil {
		return nil, nil, err
	}
	return q.run(r, func(ctx context.Context, s storage.Queryable, opts promql.QueryOpts) (promql.Query, error) {
		return q.engine.NewInstantQuery(ctx, s, opts, r.FormValue("query"), at)
	})
}

func (q *queries) ranged(r *http.Request) (any, annotations.Annotations, error) {
	var start, end time.Time
	var step time.Duration
	var err error
	if start, err = parseTime(r.FormValue("start")); err != nil {
		return nil, nil, badData("start", err)
	}
	if end, err = parseTime(r.FormValue("end")); err != nil {
		return nil, nil, badData("end", err)
	}
	if step, err = parseDuration(r.FormValue("step")); err != nil {
		return nil, nil, badData("step", err)
	}
	switch {
	case end.Before(start):
		return nil, nil, badData("end", errors.New("it is before start"))
	case step <= 0:
		return nil, nil, badData("step", errors.New("it is not positive"))
	case end.Sub(start)/step > maxPoints:
		return nil, nil, badData("step", errors.New("there would be more than 11,000 points for each series: use a longer step, or a shorter range"))
	}
	return q.run(r, func(ctx context.Context, s storage.Queryable, opts promql.QueryOpts) (promql.Query, error) {
		return q.engine.NewRangeQuery(ctx, s, opts, r.FormValue("query"), start, end, step)
	})
}

// choose calls fn with a querier of the time that a request is about, for each of its
// selectors, and once without any if it has none.
func (q *queries) choose(r *http.Request, fn func(ctx context.Context, s storage.Querier, hints storage.SelectHints, m []*labels.Matcher) (annotations.Annotations, error)) (notes annotations.Annotations, err error) {
	ctx, cancel, err := withTimeout(r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	start, err := timeOf(r, "start", time.Unix(0, 0))
	if err != nil {
		return nil, err
	}
	end, err := timeOf(r, "end", time.Now().Add(time.Hour))
	if err != nil {
		return nil, err
	}
	limit := 0
	if s := r.FormValue("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 0 {
			return nil, badData("limit", errors.New("it is no number of 0 or more"))
		}
	}
	sets, err := q.parser.ParseMetricSelectors(r.Form["match[]"])
	if err != nil {
		return nil, badData("match[]", err)
	}
	for _, m := range sets {
		if !slices.ContainsFunc(m, func(m *labels.Matcher) bool { return !m.Matches("") }) {
			return nil, badData("match[]", errors.New("it has no matcher that asks for something"))
		}
	}
	if len(sets) == 0 {
		sets = append(sets, nil)
	}
	store, err := q.store()
	if err != nil {
		return nil, err
	}
	s, err := store.Querier(start.UnixMilli(), end.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // it was only read
	for _, m := range sets {
		n, err := fn(ctx, s, storage.SelectHints{Start: start.UnixMilli(), End: end.UnixMilli(), Limit: limit, Func: "series"}, m)
		if notes.Merge(n); err != nil {
			return notes, err
		}
	}
	return notes, nil
}

// limited returns a list without what is more than the limit, which 0 is not.
func limited[T any](list []T, limit int, notes *annotations.Annotations) []T {
	if limit > 0 && len(list) > limit {
		notes.Add(errors.New("results truncated due to limit"))
		list = list[:limit]
	}
	if list == nil {
		list = []T{}
	}
	return list
}

func (q *queries) series(r *http.Request) (any, annotations.Annotations, error) {
	if len(r.Form["match[]"]) == 0 {
		return nil, nil, badData("match[]", errors.New("it is missing"))
	}
	found := map[uint64]labels.Labels{}
	var limit int
	notes, err := q.choose(r, func(ctx context.Context, s storage.Querier, hints storage.SelectHints, m []*labels.Matcher) (annotations.Annotations, error) {
		limit, hints.Limit = hints.Limit, 0
		set := s.Select(ctx, false, &hints, m...)
		for set.Next() {
			l := set.At().Labels()
			found[l.Hash()] = l
		}
		return set.Warnings(), set.Err()
	})
	list := make([]labels.Labels, 0, len(found))
	for _, l := range found {
		list = append(list, l)
	}
	slices.SortFunc(list, labels.Compare)
	return limited(list, limit, &notes), notes, err
}

func (q *queries) labels(r *http.Request) (any, annotations.Annotations, error) {
	return q.names(r, func(ctx context.Context, s storage.Querier, m []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return s.LabelNames(ctx, &storage.LabelHints{}, m...)
	})
}

func (q *queries) values(r *http.Request) (any, annotations.Annotations, error) {
	name := r.PathValue("name")
	if !model.UTF8Validation.IsValidLabelName(name) {
		return nil, nil, badData("label", errors.New("its name is not valid"))
	}
	return q.names(r, func(ctx context.Context, s storage.Querier, m []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return s.LabelValues(ctx, name, &storage.LabelHints{}, m...)
	})
}

func (q *queries) names(r *http.Request, fn func(ctx context.Context, s storage.Querier, m []*labels.Matcher) ([]string, annotations.Annotations, error)) (any, annotations.Annotations, error) {
	var list []string
	var limit int
	notes, err := q.choose(r, func(ctx context.Context, s storage.Querier, hints storage.SelectHints, m []*labels.Matcher) (annotations.Annotations, error) {
		limit = hints.Limit
		names, notes, err := fn(ctx, s, m)
		list = append(list, names...)
		return notes, err
	})
	slices.Sort(list)
	return limited(slices.Compact(list), limit, &notes), notes, err
}

// metadata tells the types of metrics.
func (q *queries) metadata(r *http.Request) (any, annotations.Annotations, error) {
	type entry struct {
		Type string `json:"type"`
		Help string `json:"help"`
		Unit string `json:"unit"`
	}
	out := map[string][]entry{}
	wanted := r.FormValue("metric")
	for name, f := range q.db.families() {
		if wanted == "" || wanted == name {
			out[name] = []entry{{Type: f.kind, Help: f.help}}
		}
	}
	return out, nil, nil
}

// store returns the database once it is open.
func (q *queries) store() (storage.Queryable, error) {
	if t := q.db.open.Load(); t != nil {
		return t, nil
	}
	return nil, &queryError{"unavailable", http.StatusServiceUnavailable, errors.New("the database of metrics is being opened, or could not be: see the server's log")}
}

// withTimeout returns the context of a request, which ends when it is to.
func withTimeout(r *http.Request) (context.Context, context.CancelFunc, error) {
	timeout := queryTimeout
	if s := r.FormValue("timeout"); s != "" {
		d, err := parseDuration(s)
		if err != nil {
			return nil, nil, badData("timeout", err)
		}
		timeout = min(d, timeout)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	return ctx, cancel, nil
}

// timeOf reads a time of a request that may be left out.
func timeOf(r *http.Request, name string, otherwise time.Time) (time.Time, error) {
	s := r.FormValue(name)
	if s == "" {
		return otherwise, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return t, badData(name, err)
	}
	return t, nil
}

// parseTime reads seconds since 1970 or RFC 3339.
func parseTime(s string) (time.Time, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(n) || math.Abs(n) > math.MaxInt64/1000 {
			return time.Time{}, errors.New("it is out of range")
		}
		return time.UnixMilli(int64(math.Round(n * 1000))), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, errors.New("it is no time: write seconds since 1970, or RFC 3339")
	}
	return t, nil
}

// parseDuration reads seconds or a duration such as 5m.
func parseDuration(s string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(n) || math.Abs(n) > math.MaxInt64/float64(time.Second) {
			return 0, errors.New("it is out of range")
		}
		return time.Duration(n * float64(time.Second)), nil
	}
	d, err := model.ParseDuration(s)
	if err != nil {
		return 0, errors.New("it is no duration: write seconds, or for example 5m")
	}
	return time.Duration(d), nil
}
