package bench

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// exampleComparison is what a run on a machine with two drivers may have found;
// a third does not work there.
func exampleComparison() Comparison {
	at := func(ms float64) Spread {
		return Spread{Count: 5, MinMS: ms * 0.9, P25MS: ms * 0.95, P50MS: ms, P75MS: ms * 1.05, P99MS: ms * 1.2, MaxMS: ms * 1.2}
	}
	cold := func(ms float64) *ColdCalls {
		return &ColdCalls{Wall: at(ms), StartMS: ms * 0.8, InitMS: ms * 0.1, RunMS: ms * 0.1, CPUPer1000: ms}
	}
	warm := func(p50, rate float64) []WarmCalls {
		var out []WarmCalls
		for _, n := range []int{1, 8} {
			out = append(out, WarmCalls{
				Connections: n, Requests: 1000, Throughput: rate, Slowest: rate * 0.9, Fastest: rate * 1.1,
				P50MS: p50, P90MS: p50 * 2, P99MS: p50 * 3, CPUPer1000: 0.25,
			})
		}
		return out
	}
	c := Comparison{
		Schema: comparisonSchema, Date: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Version: "v1.2.3", Command: "hearth bench compare",
		Machine: Machine{CPU: "Example CPU @ 3 GHz", Cores: 2, Memory: 24 << 30, Kernel: "Linux 6.18.1", Arch: "amd64", Go: "go1.26"},
		Seconds: 200, Connections: []int{1, 8}, Instances: 2,
		Drivers: []ComparedDriver{
			{Name: "native", Summary: "Linux namespaces", Works: true},
			{Name: "docker", Summary: "Docker Engine", Works: true},
			{Name: "gvisor", Summary: "gVisor", Works: true},
			{Name: "kata", Problem: "there is no <script>alert(1)</script> | pipe"},
		},
		Cells: []ComparedCell{
			{Driver: "native", Runtime: "python3.13", Workload: "empty", Cold: cold(30), Warm: warm(0.3, 6000)},
			{Driver: "docker", Runtime: "python3.11", Workload: "empty", Cold: cold(200), Warm: warm(0.31, 4000)},
			{Driver: "gvisor", Runtime: "python3.11", Workload: "empty", Cold: cold(160), Restored: cold(120), Warm: warm(0.5, 3000)},
			{Driver: "native", Runtime: "python3.13", Workload: "imports", Cold: cold(400), Warm: warm(0.5, 3000)},
			{Driver: "docker", Runtime: "python3.11", Workload: "imports", Problem: "its first call failed: status 500"},
			{Driver: "gvisor", Runtime: "python3.11", Workload: "imports", Restored: cold(200), Warm: warm(0.7, 2000)},
		},
		Idle: []IdleInstances{
			{Driver: "native", Runtime: "python3.13", Instances: 20, Processes: 2, PSS: 6_000_000, Available: 7_000_000, PerGiB: 178.9},
			{Driver: "docker", Runtime: "python3.11", Instances: 20, Problem: "cannot be weighed"},
		},
		Plain: []PlainCommand{
			{Name: "bare interpreter", Driver: "native", Runtime: "python3.13", Workload: "empty", Wall: at(20)},
			{Name: "docker run", Driver: "docker", Runtime: "python3.11", Workload: "empty", Wall: at(250)},
			{Name: "docker run", Driver: "docker", Runtime: "python3.11", Workload: "imports", Wall: at(500)},
			{Name: "runsc run", Driver: "gvisor", Runtime: "python3.11", Workload: "empty", Wall: at(100)},
			{Name: "runsc run", Driver: "gvisor", Runtime: "python3.11", Workload: "imports", Wall: at(400)},
		},
	}
	c.judge()
	return c
}

func TestComparisonRatios(t *testing.T) {
	c := exampleComparison()
	verdict := map[string]Verdict{}
	value := map[string]float64{}
	for _, r := range c.Ratios {
		verdict[r.Name], value[r.Name] = r.Verdict, r.Value
	}
	for name, want := range map[string]Verdict{
		"native python3.13 empty: cold ÷ bare interpreter":         Reported,
		"docker python3.11 empty: cold ÷ docker run":               Met,
		"docker python3.11 imports: cold ÷ docker run":             NotMeasured,
		"gvisor python3.11 empty: cold ÷ runsc run":                Missed,
		"gvisor python3.11 empty: restored ÷ runsc run":            Reported,
		"gvisor python3.11 imports: restored ÷ runsc run":          Met,
		"docker python empty: warm p50 @1 ÷ native":                Met,
		"docker python empty: warm throughput @8 ÷ native":         Missed,
		"gvisor python empty: warm p50 @1 ÷ native":                Reported,
		"gvisor python all workloads: warm p50 @1 ÷ native":        Reported,
		"docker python all workloads: warm p50 @1 ÷ native":        Met,
		"gvisor python all workloads: warm throughput @8 ÷ native": Reported,
	} {
		if verdict[name] != want {
			t.Errorf("%s: verdict %q, want %q", name, verdict[name], want)
		}
	}
	if got := value["docker python3.11 empty: cold ÷ docker run"]; got != 0.8 {
		t.Errorf("200 ms ÷ 250 ms is %v", got)
	}
	if !c.Missed() {
		t.Error("no target was missed, it says")
	}
	if (Comparison{}).Missed() {
		t.Error("an empty comparison missed a target")
	}
}

func TestComparisonTable(t *testing.T) { golden(t, "compare.txt", exampleComparison().Table()) }

func TestComparisonMarkdown(t *testing.T) { golden(t, "compare.md", exampleComparison().Markdown()) }

// TestComparisonPage reads the page as a browser would that must ask for nothing.
func TestComparisonPage(t *testing.T) {
	b, err := exampleComparison().HTML()
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, want := range []string{"docker run", "Python: cold call", "python3.11 imports: restored ÷ runsc run", "its first call failed", "Example CPU @ 3 GHz"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script", "src=", "@import", "url(", `href="http`} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if _, err := (Comparison{}).HTML(); err != nil {
		t.Errorf("an empty comparison has no page: %v", err)
	}
}

func TestUpdateMarkdown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + markdownBegin + "\nold figures\n" + markdownEnd + "\nafter\n")
	for range 2 { // the second time replaces the first
		if err := exampleComparison().UpdateMarkdown(file); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if !strings.HasPrefix(got, "before\n"+markdownBegin) || !strings.HasSuffix(got, markdownEnd+"\nafter\n") {
		t.Errorf("what is around the markers has changed:\n%s", got)
	}
	if strings.Contains(got, "old figures") || strings.Count(got, "Measured on 2 January 2026") != 1 {
		t.Errorf("the figures are not replaced:\n%s", got)
	}
	write("no place\n")
	if err := exampleComparison().UpdateMarkdown(file); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("without markers: %v", err)
	}
	if err := exampleComparison().UpdateMarkdown(filepath.Join(file, "none")); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("without a file: %v", err)
	}
}

func TestCompareOptions(t *testing.T) {
	if err := (CompareOptions{}).Validate(); err != nil {
		t.Errorf("the defaults are invalid: %v", err)
	}
	for name, o := range map[string]CompareOptions{
		"language":  {Languages: []string{"cobol"}},
		"workload":  {Workloads: []string{"nothing"}},
		"short":     {Duration: time.Second},
		"long":      {Duration: 24 * time.Hour},
		"instances": {Instances: 1000},
	} {
		if err := o.Validate(); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWorkloadCode checks that each language has the files it needs and none of
// the other's.
func TestWorkloadCode(t *testing.T) {
	for _, w := range Workloads() {
		for language, want := range map[string][]string{"python": {"main.py"}, "nodejs": {"main.mjs"}} {
			if w.Name == "imports" {
				want = append(want, map[string][]string{"python": {"requirements.txt"}, "nodejs": {"package-lock.json", "package.json"}}[language]...)
			}
			var got []string
			for name, text := range workloadCode(w.Name, language).Files {
				if got = append(got, name); text == "" {
					t.Errorf("%s in %s: %s is empty", w.Name, language, name)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s in %s has %v, want %v", w.Name, language, got, want)
			}
		}
	}
}

func TestParseStat(t *testing.T) {
	s, ok := parseStat([]byte("7 (a) b) (c) S 3 7 7 0 -1 4194560 100 0 0 0 10 20 3 4 20 0 1 0 5 0 0"))
	if want := (procStat{name: "a) b) (c", parent: 3, cpu: 370 * time.Millisecond}); !ok || s != want {
		t.Errorf("got %+v %v, want %+v", s, ok, want)
	}
	for _, bad := range []string{"", "7", "7 (a", "7 )a( S", "7 (a) S 1 2", "7 (a) S 3 7 7 0 -1 4194560 100 0 0 0 x 20 3 4"} {
		if s, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}

// A process that ends takes the time it used before with it, unless its parent has it.
func TestCPUBetween(t *testing.T) {
	before := map[int]procStat{1: {cpu: 10}, 2: {parent: 1, cpu: 5}, 3: {parent: 99, cpu: 7}, 4: {parent: 3, cpu: 2}}
	// 2 ended, having used 3 more, which 1 has now besides 4 of its own; 3 and 4 ended
	// unnoticed; 5 is new.
	after := map[int]procStat{1: {cpu: 10 + 4 + 5 + 3}, 5: {parent: 1, cpu: 6}}
	if d := cpuBetween(before, after); d != 4+3+6 {
		t.Errorf("they used %d, want 13", d)
	}
}
