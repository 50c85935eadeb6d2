package main

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/telemetry/metrics"
)

const (
	// lookTimeout bounds how long one look at the server may take.
	lookTimeout = 10 * time.Second
	// maxExposition bounds what is read of a server's metrics, in bytes.
	maxExposition = 256 << 20
)

// topStatus is what a server does now, as hearth top -o json writes it.
type topStatus struct {
	Time time.Time `json:"time"`
	// Seconds is how long the time was that counts and rates are of; 0 as long as
	// they are not known.
	Seconds float64 `json:"seconds"`
	topNumbers
	// Recent are calls a second between the last looks, oldest first.
	Recent []float64 `json:"recent"`
	// StemCells are in no count of instances.
	StemCells    int      `json:"stem_cells"`
	MemoryUsed   int64    `json:"memory_used"`   // as the pool expects it, in bytes
	MemoryBudget int64    `json:"memory_budget"` // its bound; 0 means none
	Queue        topQueue `json:"queue"`
	// ServerCPU is how many cores the server's process used since the last look, or its
	// start, and ServerMemory its resident memory in bytes.
	ServerCPU    float64       `json:"server_cpu"`
	ServerMemory int64         `json:"server_memory"`
	Functions    []topFunction `json:"functions"`
}

// topNumbers are those of everything, of a function or of a version.
type topNumbers struct {
	hearth.StatsNumbers
	InFlight  int                          `json:"in_flight"`
	Waiting   int                          `json:"waiting"`
	Instances map[hearth.InstanceState]int `json:"instances"`
	// Memory is what the instances use, in bytes.
	Memory int64 `json:"memory"`
}

// topFunction is a function that was called since the server's start, or has instances.
type topFunction struct {
	Function  string `json:"function"`
	Isolation string `json:"isolation"` // several are separated by commas
	topNumbers
	Queue    topQueue     `json:"queue"`
	Recent   []float64    `json:"recent"` // as in topStatus
	Versions []topVersion `json:"versions"`
}

type topVersion struct {
	Version   int    `json:"version"`
	Isolation string `json:"isolation"`
	topNumbers
}

// topQueue is what is stored to run later.
type topQueue struct {
	Queued     int64   `json:"queued"`
	Running    int64   `json:"running"`
	Dead       int64   `json:"dead"`
	LagSeconds float64 `json:"lag_seconds"`
}

// topWatch looks at a server again and again.
type topWatch struct {
	client *client.Client
	span   time.Duration
	live   *metrics.Live
	last   *metrics.Reading
}

// look returns what the server does now. Errors: those of client.Client.Metrics.
func (w *topWatch) look(ctx context.Context) (topStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	now := time.Now()
	body, err := w.client.Metrics(ctx, metrics.ExpositionFormat)
	if err != nil {
		return topStatus{}, err
	}
	defer body.Close()
	r, err := metrics.Read(io.LimitReader(body, maxExposition), now)
	if err != nil {
		return topStatus{}, err
	}
	if w.live == nil {
		w.live = metrics.NewLive(w.span)
		past, err := w.past(ctx, now)
		if hearth.ErrorCode(err) == hearth.CodeUnsupported {
			return topStatus{}, err // it counts nothing
		}
		if past != nil {
			w.live.Add(past)
		}
	}
	w.live.Add(r)
	stats, err := w.live.Stats()
	if err != nil {
		return topStatus{}, err
	}
	st := topOf(r, stats, w.live.Recent)
	before := &metrics.Reading{Time: r.Started}
	if w.last != nil && !w.last.Time.Before(r.Started) {
		before = w.last
	}
	const cpu = "process_cpu_seconds_total"
	st.ServerCPU = max(0, r.State(cpu)-before.State(cpu)) / max(now.Sub(before.Time).Seconds(), 0.001)
	w.last = r
	return st, nil
}

// past returns what the server had counted a span ago, so that the first numbers are of
// the whole span; nil if the server does not know: then they begin with the next look.
func (w *topWatch) past(ctx context.Context, now time.Time) (*metrics.Reading, error) {
	at, err := w.query(ctx, metrics.PastTime(w.span), time.Time{})
	if err != nil || len(at) != 1 {
		return nil, err
	}
	moment := func(seconds model.SampleValue) time.Time {
		return time.UnixMilli(int64(math.Round(float64(seconds) * 1000)))
	}
	stored := moment(at[0].Value)
	started, err := w.query(ctx, metrics.StartedQuery, stored)
	if err != nil || len(started) != 1 {
		return nil, err
	}
	counts, err := w.query(ctx, metrics.CountsQuery(stored.Sub(moment(started[0].Value))), stored)
	if err != nil {
		return nil, err
	}
	return metrics.ReadCounts(counts, now.Add(-at[0].Timestamp.Time().Sub(stored))), nil // by our clock
}

func (w *topWatch) query(ctx context.Context, expression string, at time.Time) (v model.Vector, err error) {
	data, err := w.client.Query(ctx, expression, at)
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	return v, err
}

// failures returns the last calls of a function that failed, newest first.
func (w *topWatch) failures(ctx context.Context, function string) ([]hearth.Invocation, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	list, _, err := w.client.Invocations(ctx, hearth.InvocationFilter{Function: function, Code: hearth.FilterError}, 100, "")
	return list, err
}

// topOf puts together how the parts of a server are and what calls did.
func topOf(r *metrics.Reading, stats map[string]hearth.Stats, recent func(string) []float64) topStatus {
	all := stats[""]
	st := topStatus{
		Time: r.Time, Seconds: all.To.Sub(all.From).Seconds(), topNumbers: newTopNumbers(all.StatsNumbers), Functions: []topFunction{},
		Recent:     append([]float64{}, recent("")...),
		StemCells:  int(r.State("hearth_stem_cells")),
		MemoryUsed: int64(r.State("hearth_pool_memory_used_bytes")), MemoryBudget: int64(r.State("hearth_pool_memory_budget_bytes")),
		ServerMemory: int64(r.State("process_resident_memory_bytes")),
	}
	functions := map[string]*topFunction{}
	function := func(name string) *topFunction {
		f := functions[name]
		if f == nil {
			f = &topFunction{Function: name, topNumbers: newTopNumbers(stats[name].StatsNumbers), Recent: append([]float64{}, recent(name)...)}
			for _, v := range stats[name].Versions {
				f.Versions = append(f.Versions, topVersion{Version: v.Version, Isolation: v.Isolation, topNumbers: newTopNumbers(v.StatsNumbers)})
			}
			functions[name] = f
		}
		return f
	}
	for name := range stats {
		if name != "" {
			function(name)
		}
	}
	for metric, set := range map[string]func(n *topNumbers, s metrics.State){
		"hearth_instances": func(n *topNumbers, s metrics.State) {
			n.Instances[hearth.InstanceState(s.Labels["state"])] += int(s.Value)
		},
		"hearth_instance_memory_bytes": func(n *topNumbers, s metrics.State) { n.Memory += int64(s.Value) },
		"hearth_invocations_in_flight": func(n *topNumbers, s metrics.State) { n.InFlight += int(s.Value) },
		"hearth_invocations_waiting":   func(n *topNumbers, s metrics.State) { n.Waiting += int(s.Value) },
	} {
		for _, s := range r.States(metric) {
			if name := s.Labels["function"]; name != "" { // else of stem cells
				f := function(name)
				set(&st.topNumbers, s)
				set(&f.topNumbers, s)
				set(&f.version(s.Labels).topNumbers, s)
			}
		}
	}
	for metric, set := range map[string]func(q *topQueue, s metrics.State){
		"hearth_queue_calls":       (*topQueue).count,
		"hearth_queue_lag_seconds": func(q *topQueue, s metrics.State) { q.LagSeconds = max(q.LagSeconds, s.Value) },
	} {
		for _, s := range r.States(metric) {
			set(&st.Queue, s)
			// Messages of a queue have no function, and what only waits needs no line.
			if f := functions[s.Labels["function"]]; f != nil {
				set(&f.Queue, s)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		f := functions[name]
		slices.SortFunc(f.Versions, func(a, b topVersion) int { return b.Version - a.Version })
		var isolations []string
		for _, v := range f.Versions {
			if v.Isolation != "" && !slices.Contains(isolations, v.Isolation) {
				isolations = append(isolations, v.Isolation)
			}
		}
		f.Isolation = strings.Join(isolations, ",")
		st.Functions = append(st.Functions, *f)
	}
	return st
}

// newTopNumbers returns numbers whose maps can be written.
func newTopNumbers(n hearth.StatsNumbers) topNumbers {
	if n.Codes == nil {
		n.Errors, n.Codes, n.Cold, n.Phases = map[string]int64{}, map[string]int64{}, map[hearth.ColdReason]int64{}, map[string]hearth.Durations{}
	}
	return topNumbers{StatsNumbers: n, Instances: map[hearth.InstanceState]int{}}
}

// version returns the version with these labels, which it adds if it is not there.
func (f *topFunction) version(labels map[string]string) *topVersion {
	number, _ := strconv.Atoi(labels["version"]) //nolint:errcheck // the server wrote it from one
	i := slices.IndexFunc(f.Versions, func(v topVersion) bool { return v.Version == number })
	if i < 0 {
		i = len(f.Versions)
		f.Versions = append(f.Versions, topVersion{Version: number, topNumbers: newTopNumbers(hearth.StatsNumbers{})})
	}
	v := &f.Versions[i]
	v.Isolation = cmp.Or(v.Isolation, labels["isolation"])
	return v
}

// count counts calls in a state.
func (q *topQueue) count(s metrics.State) {
	switch hearth.AsyncState(s.Labels["state"]) {
	case hearth.AsyncQueued:
		q.Queued += int64(s.Value)
	case hearth.AsyncRunning:
		q.Running += int64(s.Value)
	case hearth.AsyncFailed:
		q.Dead += int64(s.Value)
	}
}
