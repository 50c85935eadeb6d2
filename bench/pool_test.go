package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// shortPool are options that finish in a moment, without PartMany, which needs a
// real server.
func shortPool(f *fakeHearth) PoolOptions {
	return PoolOptions{
		Server: &Server{URL: f.URL, PID: os.Getpid(), DataDir: os.TempDir()}, Parts: []string{PartFlood, PartBurst, PartCold},
		Duration: 100 * time.Millisecond, ColdIterations: 2, Burst: 4, Bursts: 2, FloodConcurrency: 2, FloodCallers: []int{2},
		rest: 20 * time.Millisecond,
	}
}

func TestPool(t *testing.T) {
	installed(t, "python")
	installed(t, "nodejs")
	f := newFakeHearth(t)
	var progress bytes.Buffer
	r, err := Pool(t.Context(), shortPool(f), &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	if left := f.left(); len(left) > 0 {
		t.Errorf("functions %v are left", left)
	}
	if len(r.Cold) != 2 {
		t.Fatalf("cold starts %+v", r.Cold)
	}
	for _, c := range r.Cold {
		if c.Problem != "" || c.Iterations != 2 || c.StartMS != 20 || c.InitMS != 5 || c.Wall.P50MS <= 0 || c.Plain.P50MS <= 1 {
			t.Errorf("cold starts %+v", c)
		}
	}
	if len(r.Bursts) != 2 {
		t.Fatalf("bursts %+v", r.Bursts)
	}
	for _, b := range r.Bursts {
		// The fake starts an instance for each call that finds none.
		if b.Problem != "" || b.Failures != 0 || b.P99MS <= 0 || b.MaxMS < b.P50MS || b.Instances < 1 || b.Instances > 4 ||
			b.Charged != 3<<20 || b.Budget != 1<<40 || b.BoundMS <= b.ColdMS {
			t.Errorf("burst %+v", b)
		}
	}
	if r.Quiet == nil || !r.Quiet.Valid() || len(r.Floods) != 2 {
		t.Fatalf("quiet %+v, floods %+v", r.Quiet, r.Floods)
	}
	for _, fl := range r.Floods {
		if fl.Problem != "" || fl.Throughput <= 0 || fl.Refused != 0 || !fl.Quiet.Valid() {
			t.Errorf("flood %+v", fl)
		}
	}
	checks := r.Checks()
	for _, c := range checks {
		if c.Verdict == NotMeasured {
			t.Errorf("check %+v", c)
		}
	}
	if len(checks) != 1+2*3+2 {
		t.Errorf("%d checks: %+v", len(checks), checks)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"cold   native python3.11", "burst  work", "flood  none", "flood  sleep, 2 callers"} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("progress lacks %q:\n%s", want, &progress)
		}
	}
}

// TestPoolBadServer: what cannot be measured is said, and never a number.
func TestPoolBadServer(t *testing.T) {
	installed(t, "python")
	f := newFakeHearth(t)
	f.broken.Store(true)
	o := shortPool(f)
	o.Parts = []string{PartBurst, PartFlood, PartMany}
	r, err := Pool(t.Context(), o, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Checks() {
		if c.Verdict != NotMeasured || c.Why == "" {
			t.Errorf("check %+v", c)
		}
	}
	if r.Missed() || len(r.Checks()) != 2*3+2+1 {
		t.Errorf("%+v", r.Checks())
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestPoolCancel(t *testing.T) {
	installed(t, "python")
	for _, step := range []string{"cold   native", "burst  work", "flood  none"} {
		t.Run(step, func(t *testing.T) {
			f := newFakeHearth(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := Pool(ctx, shortPool(f), writerFunc(func(b []byte) {
				if strings.Contains(string(b), step) {
					cancel()
				}
			}))
			if hearth.ErrorCode(err) != hearth.CodeCanceled {
				t.Errorf("got %v, want canceled", err)
			}
			if left := f.left(); len(left) > 0 {
				t.Errorf("functions %v are left", left)
			}
		})
	}
}

func TestPoolRefuses(t *testing.T) {
	for name, change := range map[string]func(*PoolOptions){
		"part":      func(o *PoolOptions) { o.Parts = []string{"warm"} },
		"duration":  func(o *PoolOptions) { o.Duration = time.Hour },
		"cold":      func(o *PoolOptions) { o.ColdIterations = -1 },
		"burst":     func(o *PoolOptions) { o.Burst = 5000 },
		"bursts":    func(o *PoolOptions) { o.Bursts = -1 },
		"callers":   func(o *PoolOptions) { o.FloodCallers = []int{0} },
		"instances": func(o *PoolOptions) { o.FloodConcurrency = -1 },
		"functions": func(o *PoolOptions) { o.Functions = 1 },
	} {
		var o PoolOptions
		change(&o)
		if err := o.Validate(); hearth.ErrorCode(err) != hearth.CodeInvalid || hearth.AsError(err).Hint == "" {
			t.Errorf("%s: got %v, want invalid with a hint", name, err)
		}
	}
}

func TestSettledStock(t *testing.T) {
	stem := hearth.StemStock{Isolation: "native", Ready: 2, Target: 2}
	full := hearth.PoolStatus{Stems: []hearth.StemStock{stem, {Isolation: "docker", Target: 1}}}
	if !settledStock(full, "native") || settledStock(full, "docker") || settledStock(full, "gvisor") {
		t.Error("the stock is full for native only")
	}
	full.Instances = []hearth.Instance{{State: hearth.InstanceStopping}}
	if settledStock(full, "native") {
		t.Error("an instance still stops")
	}
}

// TestSeed: the functions are deployed, and can be found by their routes.
func TestSeed(t *testing.T) {
	dir := t.TempDir() + "/data"
	if err := seed(t.Context(), dir, "python3.11", "native", 3); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	deployed, err := s.Deployments(t.Context())
	if err != nil || len(deployed) != 3 {
		t.Fatalf("%d functions, %v", len(deployed), err)
	}
	v := deployed[2].Versions[1]
	code, err := s.ArtifactDir(v.Artifact)
	if err != nil || v.Function != crowdFunction(2) || len(v.Config.Routes) != 1 || v.Config.Validate() != nil {
		t.Errorf("%+v, %v", v, err)
	}
	if b, err := os.ReadFile(code + "/main.py"); err != nil || string(b) != poolFunction {
		t.Errorf("the code is %q, %v", b, err)
	}
}

func TestPoolTable(t *testing.T) {
	cell := func(n int, throughput, p50, p99 float64) Cell {
		return Cell{Concurrency: n, Throughput: throughput, P50MS: p50, P99MS: p99}
	}
	e := example()
	r := PoolReport{
		Date: e.Date, Version: "v1.2.3", Command: "hearth bench pool", Machine: e.Machine, Driver: "native", BusyAtRest: 0.456,
		Cold: []PoolCold{
			{
				Driver: "native", Runtime: "python3.11", Iterations: 20, Wall: Summary{P50MS: 5, P99MS: 8}, Reference: "python3 -c 1",
				Plain: Summary{P50MS: 12.5}, StartMS: 0.5, InitMS: 3,
			},
			{Driver: "native", Runtime: "nodejs20", Iterations: 20, Wall: Summary{P50MS: 30, P99MS: 40}, Reference: "node -e 1", Plain: Summary{P50MS: 75}},
			{Driver: "docker", Problem: "there is no engine"},
		},
		Bursts: []Burst{
			{
				Handler: "work", Calls: 200, P50MS: 300, P99MS: 600, MaxMS: 610, ServiceMS: 6, ColdMS: 10, BoundMS: 610,
				Instances: 8, Charged: 500e6, Memory: 100e6, Budget: 4e9,
			},
			{Handler: "sleep", Calls: 200, Failures: 2, First: "status 429: exhausted", P99MS: 300, BoundMS: 200, Budget: 4e9},
		},
		Quiet: &Paced{Rate: 50, Cell: cell(16, 50, 0.5, 2)},
		Floods: []Flood{
			{Handler: "work", Callers: 64, Concurrency: 16, Throughput: 350, Quiet: cell(16, 50, 1, 8)},
			{Handler: "work", Callers: 1200, Concurrency: 16, Problem: "the flood: status 500: oh"},
		},
		Many: &Many{
			Functions: 10000, Active: 100, FewPSS: 30e6, ManyPSS: 50e6, PerFunction: 2020, HeapPerFunction: 1500, FewReadyMS: 50, ManyReadyMS: 300,
			Few:  ManyCells{ByName: cell(1, 4000, 0.25, 1), ByRoute: cell(1, 4000, 0.25, 1), Full: cell(64, 12000, 5, 9)},
			Many: ManyCells{ByName: cell(1, 4000, 0.25, 1), ByRoute: cell(1, 4000, 0.275, 1), Full: cell(64, 11400, 5, 9)},
		},
	}
	golden(t, "pool.txt", r.Table())
	if !r.Missed() {
		t.Error("the missed targets are not told")
	}
	if empty := (PoolReport{}); empty.Table() == "" || empty.Missed() {
		t.Errorf("%s", empty.Table())
	}
}
