package hearth_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func almost(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9*math.Abs(want) {
		t.Errorf("%s is %.12g, want %.12g", what, got, want)
	}
}

func TestMachineCost(t *testing.T) {
	// A core costs 1 a second, a GiB 2.
	m := hearth.MachinePrice{PerMonth: (4 + 16) * hearth.Month.Seconds(), Cores: 4, Memory: 8 << 30, CPUShare: 0.2, PerMillionRequests: 100, PerGBOut: 3}
	almost(t, "a core", m.CoreSecond(), 1)
	almost(t, "a GiB", m.GBSecond(), 2)
	n := hearth.StatsNumbers{Calls: 900_000, Phases: map[string]hearth.Durations{"run": {Count: 500_000}}, BytesOut: 1 << 28, Usage: hearth.Usage{
		CPUSeconds: 7, Starting: hearth.Occupancy{ByteSeconds: 1 << 30}, Busy: hearth.Occupancy{ByteSeconds: 2 << 30},
		Idle: hearth.Occupancy{ByteSeconds: 3 << 30}, NetworkOut: 1 << 28,
	}}
	c := m.Cost(n, hearth.Month/10)
	want := hearth.Cost{
		Calls: 500_000, CPU: 7, Starting: 2, Busy: 4, KeepWarm: 6, Requests: 50, Network: 1.5, Total: 70.5, PerMillion: 141, KeepWarmPerMonth: 60,
	}
	got, wanted := reflect.ValueOf(c), reflect.ValueOf(want)
	for i := range got.NumField() {
		if f := got.Type().Field(i); f.Type.Kind() == reflect.Float64 {
			almost(t, f.Name, got.Field(i).Float(), wanted.Field(i).Float())
		}
	}
	sum := c.Add(hearth.Cost{}).Add(c)
	almost(t, "the sum", sum.Total, 141)
	almost(t, "a million of both", sum.PerMillion, 141)
	if c := m.Cost(hearth.StatsNumbers{}, time.Hour); c != (hearth.Cost{}) {
		t.Errorf("nothing costs %+v", c)
	}
}

func TestCloudCost(t *testing.T) {
	c := hearth.CloudPrice{
		PerMillionRequests: 0.2, PerGBSecond: 1, PerCoreSecond: 10, Granularity: hearth.Duration(100 * time.Millisecond), MinMemory: 512 << 20, PerGBOut: 5,
	}
	n := hearth.StatsNumbers{Calls: 1e6, Phases: map[string]hearth.Durations{"run": {Count: 1e6, Mean: 0.25}, "init": {Count: 10, Mean: 2}}}
	almost(t, "0.3 s each, and what is loaded", c.Cost(n, 1<<30, 0), 0.2+0.3*1e6+20)
	almost(t, "with little memory", c.Cost(n, 1<<20, 0), 0.2+(0.3*1e6+20)/2)
	almost(t, "with cores", c.Cost(n, 1<<30, 0.5), 0.2+(0.3*1e6+20)*6)
	n.Phases["run"] = hearth.Durations{Count: 1e6, Mean: 0.001}
	n.Usage.NetworkOut = 2 << 30
	almost(t, "of short calls", c.Cost(n, 1<<30, 0), 0.2+0.1*1e6+20+10)
	c.MinDuration = hearth.Duration(time.Second)
	almost(t, "of a second each", c.Cost(n, 1<<30, 0), 0.2+1e6+20+10)
	almost(t, "warm", hearth.CloudPrice{WarmPerGBSecond: 2, MinMemory: 1 << 30}.Warm(128<<20), 2*730*3600)
}

func TestPricesAreChecked(t *testing.T) {
	good := hearth.DefaultPrices(2, 8<<30)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(p *hearth.Prices){
		"machine.per_month":             func(p *hearth.Prices) { p.Machine.PerMonth = -1 },
		"machine.cores":                 func(p *hearth.Prices) { p.Machine.Cores = 0 },
		"machine.memory":                func(p *hearth.Prices) { p.Machine.Memory = 0 },
		"machine.cpu_share":             func(p *hearth.Prices) { p.Machine.CPUShare = 1.5 },
		"currency":                      func(p *hearth.Prices) { p.Currency = "" },
		"clouds[1].name":                func(p *hearth.Prices) { p.Clouds[1].Name = p.Clouds[0].Name },
		"clouds[0].per_gb_second":       func(p *hearth.Prices) { p.Clouds[0].PerGBSecond = math.NaN() },
		"clouds[0].min_duration":        func(p *hearth.Prices) { p.Clouds[0].MinDuration = -1 },
		"there are 51 clouds":           func(p *hearth.Prices) { p.Clouds = many(51) },
		"machine.per_gb_out":            func(p *hearth.Prices) { p.Machine.PerGBOut = math.Inf(1) },
		"clouds[0].warm_per_gb_second":  func(p *hearth.Prices) { p.Clouds[0].WarmPerGBSecond = -1 },
		"machine.per_million_requests":  func(p *hearth.Prices) { p.Machine.PerMillionRequests = -1 },
		"clouds[3].per_core_second":     func(p *hearth.Prices) { p.Clouds[3].PerCoreSecond = -1 },
		"clouds[0].name: \"\" is not":   func(p *hearth.Prices) { p.Clouds[0].Name = "" },
		"clouds[2].granularity: -1 is ": func(p *hearth.Prices) { p.Clouds[2].Granularity = -1 },
	} {
		p := hearth.DefaultPrices(2, 8<<30)
		change(&p)
		if err := p.Validate(); hearth.ErrorCode(err) != hearth.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want one about %s", err, want)
		}
	}
	// What a server says can be written into a file and read again.
	b, err := json.Marshal(good)
	var again hearth.Prices
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || !reflect.DeepEqual(good, again) {
		t.Errorf("%v: %+v became %+v", err, good, again)
	}
}

func many(n int) []hearth.CloudPrice {
	list := make([]hearth.CloudPrice, n)
	for i := range list {
		list[i].Name = strings.Repeat("x", i+1)
	}
	return list
}
