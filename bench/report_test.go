package bench

import (
	"flag"
	"math"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (go test -run %s -update writes it anew):\n%s\n%s", path, t.Name(), d, got)
	}
}

func example() Report {
	ready := 210.5
	r := Report{
		Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Version: "v1.2.3", Command: "hearth bench --runtime python",
		Machine: Machine{CPU: "Example CPU @ 3 GHz", Cores: 2, Memory: 24 << 30, Kernel: "Linux 6.18.1", Arch: "amd64", Go: "go1.26"},
		Driver:  "native", Runtime: "python3.11", Interpreter: "/usr/bin/python3.11",
		Rounds: 3, WarmupSeconds: 1, DurationSeconds: 2.5, FunctionConcurrency: 16, RequestBytes: 18,
		ReadyMS: &ready,
		Cold: &ColdStart{
			Iterations: 20, Warm: 1, QueueMS: 0.05, StartMS: 20, InitMS: 5, RunMS: 1.25,
			Wall: Summary{MinMS: 24, P50MS: 27.5, P99MS: 40, MaxMS: 41},
			Bare: Summary{MinMS: 11.5, P50MS: 12.5, P99MS: 15, MaxMS: 120},
		},
		Memory: Memory{ServerRSS: 45_600_000, InstancePSS: 7_890_000, Instances: 4},
	}
	figures := map[string]float64{TargetNoop: 72000, TargetPlain: 4000, TargetProxy: 3000, TargetHearth: 14000}
	for _, c := range []int{1, 64} {
		for _, target := range []string{TargetNoop, TargetPlain, TargetProxy, TargetHearth} {
			ms := 1000 * float64(c) / figures[target]
			r.Cells = append(r.Cells, Cell{
				Target: target, Concurrency: c, Throughput: figures[target], P50MS: ms, P99MS: 3 * ms,
				Rounds: []Round{{Cold: 1}, {Cold: 2}, {}},
			})
		}
	}
	r.Half = &Paced{Rate: 7000, Cell: Cell{
		Target: TargetHearth, Concurrency: 64, Throughput: 6998, P50MS: 0.25, P99MS: 2, Rounds: []Round{{}, {Cold: 1}, {}},
	}}
	return r
}

func TestTable(t *testing.T) {
	t.Run("whole", func(t *testing.T) {
		r := example()
		r.judge()
		golden(t, "whole.txt", r.Table())
		if !r.Missed() { // 14000 ÷ 72000 is below 0.25
			t.Error("the missed target is not told")
		}
	})
	t.Run("partial", func(t *testing.T) {
		r := example()
		r.Runtime, r.Command, r.ReadyMS = "nodejs20", "", nil
		r.Cold = &ColdStart{Problem: "the server did not evict the instances of bench-echo-1: 404 Not Found"}
		r.Memory = Memory{ServerRSS: 1e6, ServerIsSelf: true, InstanceProblem: "the server's process cannot be seen"}
		r.BusyAtRest = 0.456
		last := &r.Cells[len(r.Cells)-1]
		last.Failures, last.Problem = 7, "status 429: exhausted"
		r.Half = nil // its rate would be half of nothing
		r.judge()
		golden(t, "partial.txt", r.Table())
	})
	t.Run("empty", func(t *testing.T) {
		r := Report{}
		r.judge()
		if r.Table() == "" || r.Missed() {
			t.Errorf("%s", r.Table())
		}
	})
}

func TestChecks(t *testing.T) {
	c := Check{Op: "≥", Target: 0.2}
	if c.of(0.2, "").Verdict != Met || c.of(0.1999, "").Verdict != Missed || c.of(1, "because").Verdict != NotMeasured {
		t.Error("≥")
	}
	c.Op = "≤"
	if c.of(0.2, "").Verdict != Met || c.of(0.2001, "").Verdict != Missed {
		t.Error("≤")
	}
	if c.of(math.NaN(), "").Verdict == Met {
		t.Error("no number meets a target")
	}
	if got := c.of(math.NaN(), "because").Value; got != 0 {
		t.Errorf("a value that was not measured is %v, which is no JSON", got)
	}
	// Without 64 connections the greatest number stands in, by its own name.
	r := example()
	for i := range r.Cells {
		if r.Cells[i].Concurrency == 64 {
			r.Cells[i].Concurrency = 32
		}
	}
	if got := r.checkThroughput().Name; got != "throughput @32 ÷ Go no-op" {
		t.Errorf("it is named %q", got)
	}
}

func TestStatistics(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 3}, 3}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("median of %v is %v", tt.in, got)
		}
	}
	var v []float64
	for i := range 200 {
		v = append(v, float64(200-i))
	}
	if got, want := summarize(v), (Summary{MinMS: 1, P50MS: 100.5, P99MS: 198, MaxMS: 200}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := summarize([]float64{2, 1}); got.P99MS != 2 {
		t.Errorf("p99 of two is %v", got.P99MS)
	}
}

func TestParseTiming(t *testing.T) {
	got := parseTiming(`queue;dur=0.012, start;dur=31.4,init;desc="x";dur="8.25", run, odd;dur=x, neg;dur=-1`)
	want := map[string]float64{"queue": 0.012, "start": 31.4, "init": 8.25}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
