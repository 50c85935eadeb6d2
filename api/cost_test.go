package api_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
)

// statsOf has what it returns.
type statsOf []hearth.VersionStats

func (s statsOf) Stats(_ context.Context, function string, first int, from, to time.Time) (hearth.Stats, error) {
	out := hearth.Stats{Function: function, From: from, To: to}
	for _, v := range s {
		if function == "" || v.Function == function && v.Version >= first {
			out.Versions = append(out.Versions, v)
		}
	}
	return out, nil
}

// Costs are added up over versions, and clouds are asked for what each of them is given.
func TestCost(t *testing.T) {
	used := func(function string, version int, isolation string, calls int64, u hearth.Usage) hearth.VersionStats {
		return hearth.VersionStats{Function: function, Version: version, Isolation: isolation, StatsNumbers: hearth.StatsNumbers{
			Calls: calls, Usage: u, Phases: map[string]hearth.Durations{"run": {Count: calls, Mean: 1}},
		}}
	}
	idle := func(gib float64) hearth.Usage {
		return hearth.Usage{Idle: hearth.Occupancy{ByteSeconds: gib * (1 << 30)}}
	}
	h := newHost(t, func(d *api.Deps) {
		// A core costs 1 a second, a GiB 2; the cloud asks 1 for a GiB and 100 for a core.
		d.Prices = hearth.Prices{
			Currency: "EUR", Machine: hearth.MachinePrice{PerMonth: 10 * hearth.Month.Seconds(), Cores: 2, Memory: 4 << 30, CPUShare: 0.2},
			Clouds: []hearth.CloudPrice{{Name: "cloud", PerGBSecond: 1, PerCoreSecond: 100}},
		}
		d.Stats = statsOf{
			used("hello", 1, "native", 1, hearth.Usage{CPUSeconds: 3}), used("hello", 2, "native", 1, idle(1)),
			used("", 0, "native", 0, idle(5)), used("gone", 7, "docker", 2, idle(10)),
		}
	})
	h.do("POST", "/v1/functions", hello(set("memory", "1GiB", "cpu", 0.5))).json(201, &function{})
	var r hearth.CostReport
	h.do("GET", "/v1/cost?range=1h", nil).json(200, &r)
	is := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %g, want %g", what, got, want)
		}
	}
	is("all", r.Total, 3+2+10+20)
	is("the machine", r.Machine, 10*3600)
	is("a million", r.PerMillion, 35/4.*1e6)
	if len(r.Functions) != 2 || r.Functions[0].Function != "gone" || len(r.Isolations) != 2 || r.Isolations[0].Isolation != "docker" {
		t.Fatalf("%+v", r)
	}
	is("hello", r.Functions[1].Total, 5)
	is("native", r.Isolations[1].Total, 15)
	is("its stem cells", r.Isolations[1].StemCells, 10)
	// Version 1 is given 1 GiB and half a core; the others are no more: 128 MiB and one.
	is("hello in the cloud", r.Functions[1].Clouds["cloud"], 1+50+0.125+100)
	is("gone in the cloud", r.Functions[0].Clouds["cloud"], 2*(0.125+100))
	is("all in the cloud", r.Clouds["cloud"], 51+3*100.125)

	r = hearth.CostReport{}
	h.do("GET", "/v1/functions/hello/cost", nil).json(200, &r)
	is("hello alone", r.Total, 5)
	h.do("GET", "/v1/functions/nosuch/cost", nil).problem(404, hearth.CodeNotFound)
	h.do("GET", "/v1/cost?range=1ms", nil).problem(400, hearth.CodeInvalid, "not possible")
}
