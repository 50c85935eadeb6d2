package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

type costOutput struct{ Body hearth.CostReport }

func (s *API) registerCost() {
	const description = "The price of the machine is split between its cores and its memory, and functions pay for what they used of both, " +
		"also while they are kept warm: see docs/cost.md. The prices are those of hearth serve --prices."
	register(s, huma.Operation{
		OperationID: "get-cost", Method: http.MethodGet, Path: "/v1/cost", Tags: []string{"Metrics"},
		Summary: "What functions cost in a span of time, and would have cost elsewhere", Description: description,
	}, func(ctx context.Context, in *statsInput) (*costOutput, error) { return s.cost(ctx, "", in.Range) })
	register(s, huma.Operation{
		OperationID: "get-function-cost", Method: http.MethodGet, Path: "/v1/functions/{name}/cost", Tags: []string{"Metrics"},
		Summary: "What a function costs in a span of time, and would have cost elsewhere", Description: description,
	}, func(ctx context.Context, in *functionStatsInput) (*costOutput, error) {
		return s.cost(ctx, in.Name, in.Range)
	})
}

func (s *API) cost(ctx context.Context, function, within string) (*costOutput, error) {
	stats, err := s.stats(ctx, function, within)
	if err != nil {
		return nil, err
	}
	st := stats.Body
	span := st.To.Sub(st.From)
	out := hearth.CostReport{
		From: st.From, To: st.To, Prices: s.Prices, Assumed: s.PricesAssumed, Machine: s.Prices.Machine.PerMonth * float64(span) / float64(hearth.Month),
		Clouds: map[string]float64{}, Isolations: []hearth.IsolationCost{}, Functions: []hearth.FunctionCost{},
	}
	type key struct{ function, isolation string }
	functions, isolations := map[key]*hearth.FunctionCost{}, map[string]*hearth.IsolationCost{}
	for _, v := range st.Versions {
		cost := s.Prices.Machine.Cost(v.StatsNumbers, span)
		out.Cost = out.Add(cost)
		i := isolations[v.Isolation]
		if i == nil {
			i = &hearth.IsolationCost{Isolation: v.Isolation}
			isolations[v.Isolation] = i
		}
		i.Cost = i.Add(cost)
		if v.Function == "" {
			i.StemCells += cost.Total
			continue
		}
		k := key{v.Function, v.Isolation}
		f := functions[k]
		if f == nil {
			f = &hearth.FunctionCost{Function: v.Function, Isolation: v.Isolation, Clouds: map[string]float64{}}
			functions[k] = f
		}
		f.Cost = f.Add(cost)
		memory, cores, err := s.given(ctx, v.Function, v.Version)
		if err != nil {
			return nil, err
		}
		for _, c := range s.Prices.Clouds {
			there := c.Cost(v.StatsNumbers, memory, cores)
			f.Clouds[c.Name] += there
			out.Clouds[c.Name] += there
		}
	}
	for _, f := range functions {
		out.Functions = append(out.Functions, *f)
	}
	for _, i := range isolations {
		out.Isolations = append(out.Isolations, *i)
	}
	slices.SortFunc(out.Functions, func(a, b hearth.FunctionCost) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Isolation, b.Isolation))
	})
	slices.SortFunc(out.Isolations, func(a, b hearth.IsolationCost) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Isolation, b.Isolation))
	})
	return &costOutput{Body: out}, nil
}

// given returns what a version may use; the defaults for one that is no more.
func (s *API) given(ctx context.Context, function string, number int) (memory hearth.Bytes, cores float64, err error) {
	v, err := s.Versions.Version(ctx, function, number)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return driver.DefaultMemory, driver.DefaultCPU, nil
	}
	return v.Config.Memory, v.Config.CPU, err
}
