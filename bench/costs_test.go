package bench

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// roundPrices: a core second costs 1 and a GiB second 2; a cloud asks 1 for a call and
// 4 for a GiB second.
func roundPrices() hearth.Prices {
	return hearth.Prices{
		Currency: "EUR",
		Machine:  hearth.MachinePrice{PerMonth: (2 + 16) * hearth.Month.Seconds(), Cores: 2, Memory: 8 << 30, CPUShare: 2.0 / 18},
		Clouds: []hearth.CloudPrice{
			{Name: "cloud", PerMillionRequests: million, PerGBSecond: 4, WarmPerGBSecond: 0.5},
			{Name: "coldcloud", PerMillionRequests: 2 * million},
		},
	}
}

// roundComparison has figures to compute with by hand: native computes 0.1 s for a
// cold call and 0.01 s for a warm one, and its instances have half a GiB.
func roundComparison() Comparison {
	cell := func(driver, workload string, coldMS, coldCPU, warmMS, warmCPU, rate float64) ComparedCell {
		return ComparedCell{
			Driver: driver, Runtime: "python3.13", Workload: workload,
			Cold: &ColdCalls{Wall: Spread{Count: 3, P50MS: coldMS}, RunMS: coldMS / 2, InitMS: coldMS / 4, CPUPer1000: coldCPU},
			Warm: []WarmCalls{
				{Connections: 1, Throughput: rate, P50MS: warmMS, CPUPer1000: warmCPU},
				{Connections: 8, Throughput: rate, P50MS: 2 * warmMS, CPUPer1000: warmCPU / 2},
			},
		}
	}
	return Comparison{
		Schema: comparisonSchema, Date: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Version: "v1.2.3",
		Machine: Machine{CPU: "Example", Cores: 2, Memory: 8 << 30}, Connections: []int{1, 8}, Instances: 2,
		Cells: []ComparedCell{
			cell("native", "empty", 200, 100, 20, 10, 100),
			cell("gvisor", "empty", 400, 200, 40, 20, 50),
			cell("native", "cpu", 200, 100, 20, 10, 100),
			cell("gvisor", "cpu", 400, 100, 20, 10, 100),
		},
		Idle: []IdleInstances{
			{Driver: "native", Runtime: "python3.13", PSS: 1 << 29},
			{Driver: "gvisor", Runtime: "python3.13", PSS: 1 << 29},
		},
	}
}

func costsOf(t *testing.T, c Comparison, p hearth.Prices) Costs {
	t.Helper()
	costs, err := c.Costs(p)
	if err != nil {
		t.Fatal(err)
	}
	return costs
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9*math.Abs(want) {
		t.Errorf("%s is %.12g, want %.12g", what, got, want)
	}
}

func TestCostsOfShapes(t *testing.T) {
	c := costsOf(t, roundComparison(), roundPrices())
	// Of one call: half a GiB for a second costs 1, as a core does.
	for _, want := range []struct {
		shape   string
		mode    Mode
		cost    float64
		latency float64
	}{
		{"rare", ModeCold, 0.1 + 0.2, 200},                 // computing, and memory for 200 ms
		{"always warm", ModeWarm, 0.01 + 3600, 20},         // memory for an hour
		{"occasional", ModeCold, 0.1 + 0.2, 200},           //
		{"occasional", ModeWarm, 0.01 + 60, 20},            // memory for a minute
		{"steady", ModeWarm, 0.01 + 0.1, 20},               // one instance, for 100 ms
		{"busy", ModeWarm, 0.005 + 2.0/100, 40},            // two instances serve 100 calls a second
		{"bursty", ModeBoth, 0.1*0.1 + 0.9*0.01 + 6, 5000}, // 100 instances for a minute; 100 starts of 0.1 s on 2 cores
	} {
		found := false
		for _, x := range c.Costs {
			if x.Shape == want.shape && x.Mode == want.mode && x.Driver == "native" && x.Workload == "empty" {
				found = true
				near(t, want.shape+" "+string(want.mode), x.Cost.PerMillion, want.cost*million)
				near(t, want.shape+" latency", x.LatencyMS, want.latency)
				if cheapest := want.shape != "occasional" || want.mode == ModeCold; x.Cheapest != cheapest {
					t.Errorf("%s %s: cheapest is %v", want.shape, want.mode, x.Cheapest)
				}
				if want.shape == "always warm" {
					near(t, "a month", x.PerMonth, 730*want.cost)
					near(t, "its keep-warm", x.Cost.KeepWarm, (3600-0.02)*million)
				}
				if want.shape == "rare" {
					near(t, "its start", x.Cost.Starting, 0.1*million)
				}
			}
		}
		if !found {
			t.Errorf("%s %s was not computed", want.shape, want.mode)
		}
	}
	near(t, "an instance for a month", c.Instances[0].KeepWarmPerMonth, hearth.Month.Seconds())
	near(t, "instances in a GiB", c.Instances[0].PerGiB, 2)

	// A cold call costs 0.3, a warm one 0.03: 0.27 s of waiting, and the call's 0.02.
	e := c.breakEven("native", "python", "empty")
	if e == nil || e.CallsPerHour == nil {
		t.Fatalf("no break-even: %+v", c.BreakEvens)
	}
	near(t, "break-even", *e.CallsPerHour, 3600/0.29)
	near(t, "at the break-even both", e.at(*e.CallsPerHour), e.Cold)
}

func TestSlowCallsNeedSeveralInstances(t *testing.T) {
	c := roundComparison()
	c.Cells[0].Warm[0].P50MS = 250
	x := costsOf(t, c, roundPrices()).best("steady", "native", "python", "empty")
	near(t, "three instances for 100 ms each", x.Cost.PerMillion, (0.01+0.3)*million)
}

func TestCloudCosts(t *testing.T) {
	c := costsOf(t, roundComparison(), roundPrices())
	got := map[string]float64{}
	for _, x := range c.Clouds {
		if x.Workload == "empty" {
			got[x.Cloud+" "+x.Shape] = x.PerMillion / million
			if x.Driver != "native" || x.RunMS != 20 || x.InitMS != 50 {
				t.Errorf("not the figures of the fastest: %+v", x)
			}
		}
	}
	// 256 MiB for a second cost 1.
	near(t, "rare", got["cloud rare"], 1+0.02+0.05)
	near(t, "busy", got["cloud busy"], 1+0.02)
	near(t, "bursty", got["cloud bursty"], 1+0.02+0.005)
	near(t, "always warm", got["cloud always warm"], 1+0.02+3600*0.125)
	near(t, "without memory", got["coldcloud busy"], 2)
	if _, ok := got["coldcloud always warm"]; ok {
		t.Error("a cloud sells what it has no price for")
	}
}

func TestAdvice(t *testing.T) {
	advice := func(c Comparison, shape string) Advice {
		t.Helper()
		for _, a := range costsOf(t, c, roundPrices()).Advice {
			if a.Shape == shape {
				return a
			}
		}
		t.Fatalf("no advice for %s", shape)
		return Advice{}
	}
	has := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("%q lacks %q", text, p)
			}
		}
	}
	// gVisor costs 0.6 for empty, 0.5 for cpu: √0.3 in the mean, against 0.3.
	a := advice(roundComparison(), "rare")
	if a.Recommended != "native" || a.Cheapest != "native" || a.Fastest != "native" || len(a.Stronger) != 1 {
		t.Errorf("%+v", a)
	}
	has(a.Text, "Take native: 300000 EUR for a million calls", "200 ms", "the cheapest and the fastest")
	has(a.Stronger[0], "gvisor", "for 83% more", "+247723 EUR", "400 ms", "from 67% more for cpu to 100% more for empty")

	// What is stronger and costs nearly the same is taken.
	c := roundComparison()
	c.Cells[1], c.Cells[3] = c.Cells[0], c.Cells[2]
	c.Cells[1].Driver, c.Cells[3].Driver = "gvisor", "gvisor"
	more := *c.Cells[0].Cold
	more.CPUPer1000 = 112 // 4 % of the cost
	c.Cells[1].Cold, c.Cells[3].Cold = &more, &more
	a = advice(c, "rare")
	if a.Recommended != "gvisor" || a.Cheapest != "native" {
		t.Errorf("%+v", a)
	}
	has(a.Text, "Take gvisor", "native costs 3.8% less and is the weaker wall", "None that was measured is stronger")

	// A driver that nobody has ranked is neither stronger nor weaker.
	for i := range c.Cells {
		if c.Cells[i].Driver == "gvisor" {
			c.Cells[i].Driver = "new"
		}
	}
	c.Idle[1].Driver = "new"
	if a = advice(c, "rare"); a.Recommended != "native" || len(a.Stronger) != 0 {
		t.Errorf("%+v", a)
	}

	// Means are over what all have.
	c = roundComparison()
	c.Cells[3].Cold = nil
	if a = advice(c, "rare"); len(a.Workloads) != 1 || a.Left[0] != "cpu" {
		t.Errorf("%+v", a)
	}
	has(a.Text, "Without cpu")
	c.Cells[1].Warm[1].CPUPer1000 = -1
	has(advice(c, "busy").Text, "Without empty")
	// The cheapest mode is only known where both are.
	if a = advice(c, "occasional"); len(a.Workloads) != 1 {
		t.Errorf("%+v", a)
	}
	c.Idle = nil
	has(advice(c, "rare").Text, "Nothing can be said", "empty, cpu under native: its idle instances were not weighed")
}

func TestCostsThatAreNothing(t *testing.T) {
	p := roundPrices()
	p.Machine.PerMonth = 0
	c := costsOf(t, roundComparison(), p)
	if a := c.Advice[0]; a.Recommended != "gvisor" {
		t.Errorf("of what costs nothing not the strongest: %+v", a)
	}
	if e := c.breakEven("native", "python", "empty"); e.CallsPerHour != nil {
		t.Errorf("a break-even of nothing: %v", *e.CallsPerHour)
	}
	if _, err := json.Marshal(c); err != nil {
		t.Error(err)
	}
	wellFormed(t, c)

	p = roundPrices()
	p.Machine.CPUShare = 1 // memory costs nothing
	if e := costsOf(t, roundComparison(), p).breakEven("native", "python", "empty"); e.CallsPerHour == nil || *e.CallsPerHour != 0 {
		t.Errorf("keeping warm costs nothing: %v", e.CallsPerHour)
	}
	p.Machine.PerMonth, p.Machine.Cores = math.MaxFloat64, 1e-9
	if _, err := roundComparison().Costs(p); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("costs without end: %v", err)
	}
	p.Currency = ""
	if _, err := roundComparison().Costs(p); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("bad prices: %v", err)
	}
}

// wellFormed reads the page as a browser would that must ask for nothing.
func wellFormed(t *testing.T, c Costs) string {
	t.Helper()
	b, err := c.HTML()
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, bad := range []string{"<script", "src=", "@import", "url(", "href=", "://", "NaN", "Inf", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = true, xml.HTMLAutoClose, xml.HTMLEntity
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return page
		} else if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}
	}
}

func TestCostsReports(t *testing.T) {
	m := exampleComparison()
	m.Idle = append(m.Idle, IdleInstances{Driver: "gvisor", Runtime: "python3.11", PSS: 33_000_000})
	c := costsOf(t, m, hearth.DefaultPrices(2, 24<<30))
	golden(t, "costs.txt", c.Table())
	golden(t, "costs.md", c.Markdown())
	page := wellFormed(t, c)
	for _, want := range []string{"Example CPU @ 3 GHz", "<desc", `role="img"`, "What to take", "google-cloud-run", "empty: cost of a million calls"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	m.Cells[0].Problem = "<script>alert(1)</script>"
	wellFormed(t, costsOf(t, m, hearth.DefaultPrices(2, 24<<30)))
	wellFormed(t, costsOf(t, Comparison{}, hearth.DefaultPrices(2, 24<<30)))

	file := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(file, []byte("before\n"+costsBegin+"\nold\n"+costsEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.UpdateMarkdown(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before\n" + costsBegin + "\n\n" + c.Markdown() + "\n" + costsEnd + "\nafter\n"; string(b) != want {
		t.Errorf("the file is\n%s", b)
	}
}

func TestReadComparison(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compare.json")
	read := func(change func(*Comparison)) error {
		t.Helper()
		c := roundComparison()
		change(&c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = ReadComparison(file)
		return err
	}
	for _, v := range []float64{10, -1} { // a process that ended has taken its processor time along
		if err := read(func(c *Comparison) { c.Cells[0].Warm[0].CPUPer1000 = v }); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*Comparison){
		"schema": func(c *Comparison) { c.Schema = 7 },
		"empty":  func(c *Comparison) { c.Cells = nil },
		"name":   func(c *Comparison) { c.Cells[0].Driver = "\x1b[31m" },
		"text":   func(c *Comparison) { c.Machine.CPU = "a\nb" },
		"large":  func(c *Comparison) { c.Cells[0].Warm[0].P50MS = 1e300 },
		"many":   func(c *Comparison) { c.Cells = append(c.Cells, make([]ComparedCell, maxCells)...) },
	} {
		if err := read(change); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(file, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, filepath.Join(file, "none"), t.TempDir()} {
		if _, err := ReadComparison(f); hearth.ErrorCode(err) != hearth.CodeInvalid || hearth.AsError(err).Hint == "" {
			t.Errorf("%s: %v", f, err)
		}
	}
}
