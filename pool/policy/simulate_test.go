package policy

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// calls makes a trace of one function, each of one second.
func calls(starts ...time.Duration) Trace {
	return func(yield func(Call, error) bool) {
		for _, s := range starts {
			if !yield(Call{Function: "f", Start: s, Duration: time.Second, MemoryMB: 1}, nil) {
				return
			}
		}
	}
}

// always has the same windows.
type always Windows

func (always) Observe(time.Duration) {}
func (a always) Windows() Windows    { return Windows(a) }

func TestSimulate(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name  string
		trace Trace
		w     Windows
		want  Result
	}{
		{"nothing", calls(), Windows{}, Result{}},
		{
			"not kept", calls(0, 100*s),
			Windows{},
			Result{Functions: 1, Calls: 2, Cold: 2, BusyMBs: 4},
		},
		{
			"kept", calls(0, 100*s, 200*s),
			Windows{KeepAlive: 200 * s},
			Result{Functions: 1, Calls: 3, Cold: 1, BusyMBs: 4, IdleMBs: 98 + 99},
		},
		{
			"kept not long enough", calls(0, 100*s),
			Windows{KeepAlive: 50 * s},
			Result{Functions: 1, Calls: 2, Cold: 2, BusyMBs: 4, IdleMBs: 50},
		},
		{
			"two at once", calls(0, 0, 10*s, 10*s),
			Windows{KeepAlive: time.Hour},
			Result{Functions: 1, Calls: 4, Cold: 2, BusyMBs: 6, IdleMBs: 16},
		},
		{ // the second instance is there for a minute only
			"a peak", calls(0, 0, 30*s, 60*s, 90*s),
			Windows{KeepAlive: time.Hour},
			Result{Functions: 1, Calls: 5, Cold: 2, BusyMBs: 7, IdleMBs: 60 + 28 + 29 + 29},
		},
		{
			"started ahead", calls(0, 102*s),
			Windows{PreWarm: 95 * s, KeepAlive: 20 * s},
			Result{Functions: 1, Calls: 2, Cold: 1, BusyMBs: 3, IdleMBs: 5, PreWarms: 1},
		},
		{
			"started ahead, not quite ready", calls(0, 102*s),
			Windows{PreWarm: 99500 * time.Millisecond, KeepAlive: 20 * s},
			Result{Functions: 1, Calls: 2, Cold: 2, BusyMBs: 4},
		},
		{
			"started ahead in vain", calls(0, 1000*s),
			Windows{Linger: 10 * s, PreWarm: 95 * s, KeepAlive: 20 * s},
			Result{Functions: 1, Calls: 2, Cold: 2, BusyMBs: 4, IdleMBs: 30, PreWarms: 1, Wasted: 1},
		},
		{
			"an early call", calls(0, 50*s),
			Windows{Linger: 60 * s, PreWarm: 95 * s, KeepAlive: 20 * s},
			Result{Functions: 1, Calls: 2, Cold: 1, BusyMBs: 3, IdleMBs: 48},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			results, err := Simulate(tt.trace, []Policy{{"p", func() Learner { return always(tt.w) }}}, SimOptions{ColdStart: s, Calm: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Policy = "p"
			if tt.want.Calls > 0 {
				tt.want.ColdShare = float64(tt.want.Cold) / float64(tt.want.Calls)
				tt.want.ColdP50, tt.want.ColdP75 = tt.want.ColdShare, tt.want.ColdShare
			}
			if diff := cmp.Diff(results[0], tt.want); diff != "" {
				t.Errorf("-got +want\n%s", diff)
			}
		})
	}
}

func TestSimulateError(t *testing.T) {
	boom := errors.New("boom")
	trace := func(yield func(Call, error) bool) { yield(Call{}, boom) }
	if _, err := Simulate(trace, nil, SimOptions{}); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
}

// TestSimulateLaws checks what must hold for any trace: who keeps longer has
// fewer cold starts and more idle memory, and the default is worth its price.
func TestSimulateLaws(t *testing.T) {
	for _, pattern := range Patterns() {
		t.Run(pattern, func(t *testing.T) {
			t.Parallel()
			trace, err := Generate(GenerateOptions{Pattern: pattern, Functions: 10, Duration: 24 * time.Hour, Seed: 7})
			if err != nil {
				t.Fatal(err)
			}
			var policies []Policy
			for _, name := range []string{"none", "fixed:5m", "fixed", "fixed:1h", "fixed:1000h", "history"} {
				p, err := PolicyNamed(name)
				if err != nil {
					t.Fatal(err)
				}
				policies = append(policies, p)
			}
			results, err := Simulate(trace, policies, SimOptions{})
			if err != nil {
				t.Fatal(err)
			}
			cost := func(r Result) float64 { return r.IdleMBs + float64(r.Cold)*Price.Seconds()*memoryMedian }
			for i, r := range results[1:5] {
				if r.Cold > results[i].Cold || r.IdleMBs < results[i].IdleMBs {
					t.Errorf("%s has %d cold and %.0f idle, but %s %d and %.0f",
						r.Policy, r.Cold, r.IdleMBs, results[i].Policy, results[i].Cold, results[i].IdleMBs)
				}
			}
			fixed, history := results[2], results[5]
			if cost(history) > 1.05*cost(fixed) { // instances differ in memory
				t.Errorf("history costs %.3g, fixed %.3g: %+v", cost(history), cost(fixed), history)
			}
			again, err := Simulate(trace, policies, SimOptions{})
			if err != nil || !slices.Equal(again, results) {
				t.Errorf("a second run differs: %v %v", again, err)
			}
		})
	}
}

// TestPeakWindow checks that to keep the instances of a peak for PeakWindow
// costs less idle time than Price for each cold start that it saves.
func TestPeakWindow(t *testing.T) {
	trace, err := Generate(GenerateOptions{Pattern: "mix", Functions: 40, Duration: 24 * time.Hour, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := PolicyNamed("fixed")
	if err != nil {
		t.Fatal(err)
	}
	var last Result
	for _, calm := range []time.Duration{m, 2 * m, 3 * m, 5 * m, PeakWindow} {
		results, err := Simulate(trace, []Policy{fixed}, SimOptions{Calm: calm})
		if err != nil {
			t.Fatal(err)
		}
		r := results[0]
		if last.Calls > 0 {
			saved := time.Duration((r.IdleMBs - last.IdleMBs) / float64(last.Cold-r.Cold) / memoryMedian * 1e9)
			t.Logf("%6s: %.2f %% cold, idle memory ×%.2f, one cold start saved costs %s", human(calm), 100*r.ColdShare, r.IdleMBs/last.IdleMBs, human(saved))
			if saved > Price {
				t.Errorf("%s cost more than they save", human(calm))
			}
		} else {
			t.Logf("%6s: %.2f %% cold", human(calm), 100*r.ColdShare)
		}
		last = r
	}
}

// TestMix checks that the mix is as skewed as the paper says.
func TestMix(t *testing.T) {
	trace, err := Generate(GenerateOptions{Pattern: "mix", Functions: 300, Duration: 48 * time.Hour, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	perFunction := map[string]int{}
	last := time.Duration(0)
	for c, err := range trace {
		if err != nil || c.Start < last || c.Duration <= 0 || c.MemoryMB <= 0 {
			t.Fatalf("%+v after %v: %v", c, last, err)
		}
		last = c.Start
		perFunction[c.Function]++
	}
	hourly, minutely := 300-len(perFunction), 300-len(perFunction) // some are never called
	for _, n := range perFunction {
		if n <= 48 {
			hourly++
		}
		if n <= 48*60 {
			minutely++
		}
	}
	if share := float64(hourly) / 300; math.Abs(share-0.45) > 0.08 {
		t.Errorf("%.2f are called at most once an hour", share)
	}
	if share := float64(minutely) / 300; math.Abs(share-0.81) > 0.08 {
		t.Errorf("%.2f are called at most once a minute", share)
	}
}

func TestGenerateErrors(t *testing.T) {
	for _, o := range []GenerateOptions{
		{Pattern: "nothing", Functions: 1, Duration: h},
		{Pattern: "mix", Functions: 0, Duration: h},
		{Pattern: "mix", Functions: 1},
	} {
		if _, err := Generate(o); err == nil {
			t.Errorf("%+v is no error", o)
		}
	}
}

func TestPolicyNamed(t *testing.T) {
	for _, name := range append(PolicyNames(), "fixed:90s", "history:20m") {
		if p, err := PolicyNamed(name); err != nil || p.New() == nil || p.Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "nothing", "fixed:", "fixed:-1m", "fixed:soon", "none:1m", "hybrid:1h"} {
		if _, err := PolicyNamed(name); err == nil {
			t.Errorf("%q is no error", name)
		}
	}
}

// collect reads a trace to its end or first error.
func collect(trace Trace) (calls []Call, err error) {
	for c, err := range trace {
		if err != nil {
			return calls, err
		}
		calls = append(calls, c)
	}
	return calls, nil
}

func TestReadTrace(t *testing.T) {
	got, err := collect(ReadTrace(strings.NewReader("\ufefffunction,start_s,duration_s\na,0,1.5\n\"b,c\",0.25,0\n")))
	want := []Call{{Function: "a", Duration: 1500 * time.Millisecond}, {Function: "b,c", Start: 250 * time.Millisecond}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, tt := range []struct{ in, want string }{
		{"", "trace: is empty"},
		{"a,b\n", `trace: line 1 is "a,b", not the header`},
		{"function,start_s,duration_s,memory\n", "not the header"},
		{"function,start_s,duration_s\na,1\n", "trace: line 2: 2 columns, but the header has 3"},
		{"function,start_s,duration_s,memory_mb\na,1,1\n", "trace: line 2: 3 columns, but the header has 4"},
		{"function,start_s,duration_s\n,1,1\n", "trace: line 2: function is empty"},
		{"function,start_s,duration_s\na,x,1\n", `trace: line 2: start_s "x" is not a number from 0 to`},
		{"function,start_s,duration_s\n\na,1,-1\n", `trace: line 3: duration_s "-1" is not a number`},
		{"function,start_s,duration_s\na,1,NaN\n", `duration_s "NaN"`},
		{"function,start_s,duration_s\na,1e300,1\n", `start_s "1e300"`},
		{"function,start_s,duration_s\na,2,1\na,1,1\n", "trace: line 3: start_s 1 is before that of the line above; sort the trace by start_s"},
		{"function,start_s,duration_s\na,\"2,1\n", "line 2"},
	} {
		if _, err := collect(ReadTrace(strings.NewReader(tt.in))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.in, err, tt.want)
		}
	}
}

func TestWriteTrace(t *testing.T) {
	trace, err := Generate(GenerateOptions{Pattern: "bursty", Functions: 5, Duration: h, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteTrace(&b, trace); err != nil {
		t.Fatal(err)
	}
	want, _ := collect(trace)
	got, err := collect(ReadTrace(&b))
	if err != nil || len(want) == 0 {
		t.Fatal(err, len(want))
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("-read +written\n%s", diff)
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add("function,start_s,duration_s\na,0,1\nb,1,1\n")
	f.Add("function,start_s,duration_s,memory_mb\n\"a\"\"b\",0,1,128\r\na,1e3,0.001,1e-9\n")
	f.Add("function,start_s,duration_s\na,1\n")
	f.Fuzz(func(t *testing.T, in string) {
		read, err := collect(ReadTrace(strings.NewReader(in)))
		if err != nil && !strings.HasPrefix(err.Error(), "trace: ") {
			t.Fatalf("error %v", err)
		}
		trace := func(yield func(Call, error) bool) {
			for _, c := range read {
				if !yield(c, nil) {
					return
				}
			}
		}
		p, _ := PolicyNamed("history")
		results, err := Simulate(trace, []Policy{p}, SimOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r := results[0]
		if r.Calls != len(read) || r.Cold > r.Calls || r.IdleMBs < 0 || math.IsNaN(r.IdleMBs+r.BusyMBs) {
			t.Fatalf("%+v", r)
		}
	})
}
