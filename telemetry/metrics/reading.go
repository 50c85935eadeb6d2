package metrics

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hearthrun/hearth"
)

// Reading is what a server told of itself at a time: what it had counted of calls, and
// how its parts were.
type Reading struct {
	Time time.Time
	// Started is when the process began; zero for a reading of the past.
	Started time.Time

	counts map[uint64]count // by the hashes of labels
	states map[string][]State
}

// State is one value of a part of the server.
type State struct {
	Labels map[string]string
	Value  float64
}

// count is what one series had counted.
type count struct {
	labels labels.Labels
	tally
}

// counted are the names of what is counted of calls.
var counted = func() map[string]bool {
	m := map[string]bool{}
	for _, f := range families {
		m[f.name] = true
	}
	return m
}()

// ExpositionFormat is what a request for the exposition accepts so that Read can read the
// answer: the one that has native histograms.
const ExpositionFormat = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"

// Read reads what a server tells now, in ExpositionFormat. Errors: CodeUnavailable if r
// ends early or has something else.
func Read(r io.Reader, now time.Time) (*Reading, error) {
	out := &Reading{Time: now, counts: map[uint64]count{}, states: map[string][]State{}}
	for d := expfmt.NewDecoder(r, expfmt.NewFormat(expfmt.TypeProtoDelim)); ; {
		var f dto.MetricFamily
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "the server's metrics cannot be read: %w", err).
				WithHint("is this a Hearth server, of a version that fits this client?")
		}
		for _, m := range f.GetMetric() {
			if counted[f.GetName()] {
				out.count(f.GetName(), m)
			} else {
				out.state(f.GetName(), m)
			}
		}
	}
}

// count notes what a series had counted.
func (r *Reading) count(name string, m *dto.Metric) {
	b := labels.NewScratchBuilder(1 + len(m.GetLabel()))
	b.Add(model.MetricNameLabel, name)
	for _, l := range m.GetLabel() {
		if l.GetValue() != "" { // which is as if there were none
			b.Add(l.GetName(), l.GetValue())
		}
	}
	b.Sort()
	t := tally{n: m.GetCounter().GetValue()}
	if h := m.GetHistogram(); h != nil {
		t.h = native(h).ToFloat(nil)
		t.n = t.h.Count
	}
	l := b.Labels()
	r.counts[l.Hash()] = count{l, t}
}

// state notes how a part was.
func (r *Reading) state(name string, m *dto.Metric) {
	s := State{Labels: map[string]string{}}
	for _, l := range m.GetLabel() {
		s.Labels[l.GetName()] = l.GetValue()
	}
	switch {
	case m.Gauge != nil:
		s.Value = m.GetGauge().GetValue()
	case m.Counter != nil:
		s.Value = m.GetCounter().GetValue()
	default:
		return
	}
	if name == "process_start_time_seconds" {
		r.Started = time.UnixMilli(int64(s.Value * 1000))
	}
	r.states[name] = append(r.states[name], s)
}

// States returns the values of a metric that is not of calls.
func (r *Reading) States(name string) []State { return r.states[name] }

// State returns the sum of them.
func (r *Reading) State(name string) (sum float64) {
	for _, s := range r.states[name] {
		sum += s.Value
	}
	return sum
}

// StartedQuery is a query for when the process began that counted at the time of the query.
const StartedQuery = startedMetric

// PastTime is a query for when a server stored last what it counts, at the latest so long
// ago, by its clock.
func PastTime(ago time.Duration) string {
	return "timestamp(" + startedMetric + " offset " + model.Duration(ago).String() + ")"
}

// CountsQuery is a query for all that a process had counted that had run for so long.
func CountsQuery(ran time.Duration) string {
	// What is not repeated is stored again after repeatAfter; what is older than the
	// process is another's.
	within := min(ran, repeatAfter+time.Minute)
	return fmt.Sprintf(`last_over_time({__name__=~"%s"}[%dms])`, familyPattern, max(1, within.Milliseconds()))
}

// ReadCounts makes a reading of the answer to CountsQuery, as of a time.
func ReadCounts(v model.Vector, at time.Time) *Reading {
	out := &Reading{Time: at, counts: map[uint64]count{}}
	for _, s := range v {
		b := labels.NewScratchBuilder(len(s.Metric))
		for name, value := range s.Metric {
			b.Add(string(name), string(value))
		}
		b.Sort()
		t := tally{n: float64(s.Value)}
		if s.Histogram != nil {
			t.h = histogramOf(s.Histogram)
			t.n = t.h.Count
		}
		l := b.Labels()
		out.counts[l.Hash()] = count{l, t}
	}
	return out
}

// histogramOf returns a histogram, of what Histogram observed, from how queries tell it.
func histogramOf(in *model.SampleHistogram) *histogram.FloatHistogram {
	out := &histogram.FloatHistogram{Schema: schema, ZeroThreshold: math.Exp2(firstOctave), Count: float64(in.Count), Sum: float64(in.Sum)}
	next := 0
	for _, b := range in.Buckets {
		if b.Lower <= 0 {
			out.ZeroCount = float64(b.Count)
			continue
		}
		index := int(math.Round(math.Log2(float64(b.Upper)) * perOctave))
		if k := len(out.PositiveSpans); k > 0 && index == next {
			out.PositiveSpans[k-1].Length++
		} else {
			offset := index
			if k > 0 {
				offset = index - next
			}
			out.PositiveSpans = append(out.PositiveSpans, histogram.Span{Offset: int32(offset), Length: 1})
		}
		out.PositiveBuckets = append(out.PositiveBuckets, float64(b.Count))
		next = index + 1
	}
	return out
}

// since returns what calls did between two readings, by function, also of those that had
// none; "" has all.
func (r *Reading) since(before *Reading) (map[string]hearth.Stats, error) {
	all, functions, versions := newSums(), map[string]*sums{}, map[version]*sums{}
	for hash, c := range r.counts {
		number, _ := strconv.Atoi(c.labels.Get("version")) //nolint:errcheck // it was written from one
		v := version{c.labels.Get("function"), number, c.labels.Get("isolation")}
		var grown tally
		if err := grown.addGrowth(before.counts[hash].tally, c.tally); err != nil {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "the server's metrics do not fit each other: %w", err)
		}
		if grown.n > 0 {
			all.add(c.labels, grown)
		}
		if v.function == "" {
			continue // stem cells
		}
		if functions[v.function] == nil {
			functions[v.function] = newSums()
		}
		if versions[v] == nil {
			versions[v] = newSums()
		}
		if grown.n > 0 {
			functions[v.function].add(c.labels, grown)
			versions[v].add(c.labels, grown)
		}
	}
	seconds := r.Time.Sub(before.Time).Seconds()
	out := map[string]hearth.Stats{"": {From: before.Time, To: r.Time, StatsNumbers: all.numbers(seconds)}}
	for name, s := range functions {
		out[name] = hearth.Stats{Function: name, From: before.Time, To: r.Time, StatsNumbers: s.numbers(seconds)}
	}
	for v, s := range versions {
		f := out[v.function]
		f.Versions = append(f.Versions, hearth.VersionStats{Function: v.function, Version: v.number, Isolation: v.isolation, StatsNumbers: s.numbers(seconds)})
		out[v.function] = f
	}
	for _, f := range out {
		sortVersions(f.Versions)
	}
	return out, nil
}

// share uses the memory of an older reading for what has not changed.
func (r *Reading) share(before *Reading) {
	for hash, c := range r.counts {
		if old, ok := before.counts[hash]; ok {
			if c.labels = old.labels; old.n == c.n {
				c.tally = old.tally
			}
			r.counts[hash] = c
		}
	}
}

// calls returns how many calls had ended, by function; "" has all.
func (r *Reading) calls() map[string]float64 {
	out := map[string]float64{}
	for _, c := range r.counts {
		if c.labels.Get(model.MetricNameLabel) == callsFamily.name {
			out[c.labels.Get("function")] += c.n
			out[""] += c.n
		}
	}
	return out
}
