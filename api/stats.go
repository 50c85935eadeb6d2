package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Stats sums up what calls did; package metrics has it.
type Stats interface {
	// Stats returns what the calls of a function did between two times, of its versions
	// from first on, or those of all functions if it is empty; and what they did before.
	// Errors: CodeUnavailable.
	Stats(ctx context.Context, function string, first int, from, to time.Time) (hearth.Stats, error)
}

type statsInput struct {
	Range string `query:"range" doc:"How long the span is, until now: a duration such as 15m, 24h or 168h; default 1h" example:"1h"`
}

type functionStatsInput struct {
	Name  string `path:"name" doc:"Name of the function" example:"hello"`
	Range string `query:"range" doc:"How long the span is, until now: a duration such as 15m, 24h or 168h; default 1h" example:"1h"`
}

type statsOutput struct{ Body hearth.Stats }

// minRange and maxRange bound the span of statistics: samples are some seconds apart.
const (
	minRange = time.Minute
	maxRange = 366 * 24 * time.Hour
)

func (s *API) registerStats() {
	const description = "Counts are exact, percentiles to 5 %. Calls are counted when they end; what ended until 0.1 s ago is there. " +
		"The span begins with a sample, so it may be some seconds longer than the range: from says when. " +
		"Nothing is known of the time before what is kept of metrics begins."
	register(s, huma.Operation{
		OperationID: "get-stats", Method: http.MethodGet, Path: "/v1/stats", Tags: []string{"Metrics"},
		Summary: "What the calls of all functions did in a span of time, and in the one before", Description: description,
	}, func(ctx context.Context, in *statsInput) (*statsOutput, error) { return s.stats(ctx, "", in.Range) })
	register(s, huma.Operation{
		OperationID: "get-function-stats", Method: http.MethodGet, Path: "/v1/functions/{name}/stats", Tags: []string{"Metrics"},
		Summary: "What the calls of a function did in a span of time, and in the one before", Description: description,
	}, func(ctx context.Context, in *functionStatsInput) (*statsOutput, error) {
		return s.stats(ctx, in.Name, in.Range)
	})
}

func (s *API) stats(ctx context.Context, function, within string) (*statsOutput, error) {
	span := hearth.Duration(time.Hour)
	if within != "" {
		if err := span.UnmarshalText([]byte(within)); err != nil {
			return nil, err
		}
	}
	if d := time.Duration(span); d < minRange || d > maxRange {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the range %s is not possible", span).WithHint("choose between 1m and 366 days, which are 8784h")
	}
	first := 0
	if function != "" {
		var err error
		if first, err = s.Versions.FirstVersion(ctx, function); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	out, err := s.Stats.Stats(ctx, function, first, now.Add(-time.Duration(span)), now)
	if err != nil {
		return nil, err
	}
	return &statsOutput{Body: out}, nil
}
