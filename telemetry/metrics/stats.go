package metrics

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser/posrange"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/hearthrun/hearth"
)

// This file sums up what calls did in a span of time, exactly: by what the counts were at
// its ends. Since they begin at 0 with each process, it does so for each process apart.

// startedMetric is when the process began that stored the other samples of its time.
const startedMetric = "hearth_start_time_seconds"

// life is a part of a span in which one process counted.
type life struct {
	begin time.Time // of the process; all counts were 0 then
	from  time.Time // the beginning of the span, or begin
	to    time.Time // its last sample within the span
}

// Stats returns what the calls of a function did between two times, of its versions from
// first on, or those of all functions if it is empty; and what they did in the span before.
// Both begin at the latest sample that is not after their beginning, if there is one; From
// says when that was. What ended until 0.1 s ago is in it. Errors: CodeUnavailable if the
// database is not open.
func (db *DB) Stats(ctx context.Context, function string, first int, from, to time.Time) (hearth.Stats, error) {
	db.flush(ctx)
	out := hearth.Stats{Function: function, To: to, Versions: []hearth.VersionStats{}}
	var err error
	earlier := from.Add(from.Sub(to))
	for _, t := range []*time.Time{&from, &earlier} {
		if *t, err = db.sampleAt(ctx, *t); err != nil {
			return out, err
		}
	}
	out.From = from
	before, _, err := db.sum(ctx, function, first, earlier, from)
	if err != nil {
		return out, err
	}
	now, versions, err := db.sum(ctx, function, first, from, to)
	if err != nil {
		return out, err
	}
	seconds := to.Sub(from).Seconds()
	out.StatsNumbers, out.Previous = now.numbers(seconds), before.numbers(from.Sub(earlier).Seconds())
	for v, s := range versions {
		if n := s.numbers(seconds); n.Calls > 0 || n.Usage != (hearth.Usage{}) {
			out.Versions = append(out.Versions, hearth.VersionStats{Function: v.function, Version: v.number, Isolation: v.isolation, StatsNumbers: n})
		}
	}
	sortVersions(out.Versions)
	return out, nil
}

// sortVersions sorts those with most calls to the front.
func sortVersions(list []hearth.VersionStats) {
	slices.SortFunc(list, func(a, b hearth.VersionStats) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Isolation, b.Isolation))
	})
}

// flush returns when what has been counted until now is stored, or ctx ends.
func (db *DB) flush(ctx context.Context) {
	done := make(chan struct{})
	select {
	case db.flushes <- done:
	case <-db.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-db.done:
	case <-ctx.Done():
	}
}

// margin is how old a sample may be and still be the latest of its series.
func (db *DB) margin() time.Duration {
	return max(repeatAfter, db.opts.Interval) + 2*db.opts.Interval + journalEvery
}

// sums are what was counted, of one version or of several.
type sums struct {
	codes, cold, phases map[string]*tally
	plain               map[string]float64    // by the names of metrics
	used                map[[2]string]float64 // by the names of metrics and their label
	duration            tally
}

// tally is a number or a histogram.
type tally struct {
	n float64
	h *histogram.FloatHistogram
}

func newSums() *sums {
	return &sums{codes: map[string]*tally{}, cold: map[string]*tally{}, phases: map[string]*tally{}, plain: map[string]float64{}, used: map[[2]string]float64{}}
}

func (t *tally) add(n float64, h *histogram.FloatHistogram) {
	t.n += n
	switch {
	case h == nil:
	case t.h == nil:
		t.h = h.Copy()
	default:
		if sum, _, _, err := t.h.Add(h); err == nil { // the schemas are the same
			t.h = sum
		}
	}
}

// add adds what a series counted.
func (s *sums) add(l labels.Labels, grown tally) {
	of := func(m map[string]*tally, label string) {
		key := l.Get(label)
		if m[key] == nil {
			m[key] = &tally{}
		}
		m[key].add(grown.n, grown.h)
	}
	switch name := l.Get(model.MetricNameLabel); name {
	case callsFamily.name:
		of(s.codes, "code")
	case coldFamily.name:
		of(s.cold, "reason")
	case phaseFamily.name:
		of(s.phases, "phase")
	case durationFamily.name:
		s.duration.add(grown.n, grown.h)
	case timeFamily.name, memoryFamily.name, networkFamily.name, diskFamily.name:
		s.used[[2]string{name, cmp.Or(l.Get("state"), l.Get("direction"))}] += grown.n
	default:
		s.plain[name] += grown.n
	}
}

// reader returns what reads what is counted. Errors: CodeUnavailable.
func (db *DB) reader(ctx context.Context) (*reader, error) {
	t := db.open.Load()
	if t == nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "the database of metrics is not open").WithHint("it is being opened, or could not be: see the server's log")
	}
	return &reader{ctx: ctx, db: t, margin: db.margin(), matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, familyPattern)}}, nil
}

// sampleAt returns when the latest sample was stored that is not after a time; the time
// itself if there was none shortly before.
func (db *DB) sampleAt(ctx context.Context, at time.Time) (time.Time, error) {
	r, err := db.reader(ctx)
	if err != nil {
		return at, err
	}
	lives, err := r.lives(at, at)
	if len(lives) > 0 {
		at = lives[len(lives)-1].to
	}
	return at, unreadable(err)
}

// unreadable is the error of a database that cannot be read; nil without one.
func unreadable(err error) error {
	if err == nil {
		return nil
	}
	return hearth.Errorf(hearth.CodeUnavailable, "the database of metrics cannot be read: %w", err)
}

// sum returns what was counted between two times, of all and of each version.
func (db *DB) sum(ctx context.Context, function string, first int, from, to time.Time) (*sums, map[version]*sums, error) {
	r, err := db.reader(ctx)
	if err != nil {
		return nil, nil, err
	}
	if function != "" {
		r.matchers = append(r.matchers, labels.MustNewMatcher(labels.MatchEqual, "function", function))
	}
	all, versions := newSums(), map[version]*sums{}
	lives, err := r.lives(from, to)
	for _, l := range lives {
		if err == nil && !l.to.Before(from) {
			err = r.grown(l, func(l labels.Labels, grown tally) {
				number, _ := strconv.Atoi(l.Get("version")) //nolint:errcheck // it was written from one
				if function != "" && number < first {
					return
				}
				v := version{l.Get("function"), number, l.Get("isolation")}
				if versions[v] == nil {
					versions[v] = newSums()
				}
				versions[v].add(l, grown)
				all.add(l, grown)
			})
		}
	}
	return all, versions, unreadable(err)
}

// reader reads the series that some matchers choose.
type reader struct {
	ctx      context.Context
	db       storage.Queryable
	margin   time.Duration // how old a sample may be and still be the latest of its series
	matchers []*labels.Matcher
}

// each calls fn for each series that has samples between two times.
func (r *reader) each(from, to time.Time, hints *storage.SelectHints, fn func(storage.Series) error, matchers ...*labels.Matcher) error {
	q, err := r.db.Querier(from.UnixMilli(), to.UnixMilli())
	if err != nil {
		return err
	}
	defer q.Close() //nolint:errcheck // it was only read
	set := q.Select(r.ctx, false, hints, matchers...)
	for set.Next() {
		if err := fn(set.At()); err != nil {
			return err
		}
	}
	return set.Err()
}

// lives returns the parts of a span in which processes counted, in their order.
func (r *reader) lives(from, to time.Time) (lives []life, err error) {
	err = r.each(from.Add(-r.margin), to, nil, func(s storage.Series) error {
		started := math.NaN()
		it := s.Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			t, v := it.At()
			if v != started {
				begin := time.UnixMilli(int64(math.Round(v * 1000)))
				lives = append(lives, life{begin: begin, from: later(begin, from)})
				started = v
			}
			lives[len(lives)-1].to = time.UnixMilli(t)
		}
		return it.Err()
	}, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, startedMetric))
	return lives, err
}

// grown calls fn with each series that grew in a part of a span, and by how much.
//
// What it was at the ends tells, which is all that is read, but for series that end
// sooner or have begun anew: those of versions that were no more.
func (r *reader) grown(l life, fn func(labels.Labels, tally)) error {
	before, scan := map[uint64]tally{}, map[uint64]bool{}
	if l.begin.Before(l.from) {
		err := r.each(later(l.begin, l.from.Add(-r.margin)), l.from, nil, func(s storage.Series) (err error) {
			before[s.Labels().Hash()], err = latest(s)
			return err
		}, r.matchers...)
		if err != nil {
			return err
		}
	}
	// The names are read of all, the samples only when they are asked for.
	err := r.each(l.from, l.to, &storage.SelectHints{Start: l.from.UnixMilli(), End: l.to.UnixMilli(), Func: "series"}, func(s storage.Series) error {
		scan[s.Labels().Hash()] = true
		return nil
	}, r.matchers...)
	if err != nil {
		return err
	}
	add := func(s storage.Series, grown tally, err error) error {
		if err == nil && grown.n > 0 {
			fn(s.Labels(), grown)
		}
		return err
	}
	err = r.each(later(l.from, l.to.Add(-r.margin)), l.to, nil, func(s storage.Series) error {
		hash := s.Labels().Hash()
		after, err := latest(s)
		if err != nil || after.n < before[hash].n {
			return err
		}
		delete(scan, hash)
		var grown tally
		err = grown.addGrowth(before[hash], after)
		return add(s, grown, err)
	}, r.matchers...)
	if err != nil || len(scan) == 0 {
		return err
	}
	return r.each(l.from, l.to, nil, func(s storage.Series) error {
		hash := s.Labels().Hash()
		if !scan[hash] {
			return nil
		}
		grown, last := tally{}, before[hash]
		it := s.Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			next := sampleAt(it, kind, nil)
			if err := grown.addGrowth(last, next); err != nil {
				return err
			}
			last = next
		}
		return add(s, grown, it.Err())
	}, r.matchers...)
}

// latest returns the last sample of a series.
func latest(s storage.Series) (out tally, err error) {
	it := s.Iterator(nil)
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		out = sampleAt(it, kind, out.h)
	}
	return out, it.Err()
}

// addGrowth adds by how much a series grew from one sample to a later one.
func (t *tally) addGrowth(before, after tally) (err error) {
	grown := after.h
	if after.n < before.n { // it has begun anew
		before = tally{}
	}
	if grown != nil && before.h != nil {
		if grown, _, _, err = grown.Copy().Sub(before.h); err != nil {
			return err
		}
	}
	t.add(after.n-before.n, grown)
	return nil
}

// sampleAt returns the sample that an iterator is at, in the memory of h if that is a
// histogram.
func sampleAt(it chunkenc.Iterator, kind chunkenc.ValueType, h *histogram.FloatHistogram) (out tally) {
	if kind == chunkenc.ValFloat {
		_, out.n = it.At()
		return out
	}
	_, out.h = it.AtFloatHistogram(h)
	out.n = out.h.Count
	return out
}

// numbers returns the sums as they are told, of a span of so many seconds.
func (s *sums) numbers(seconds float64) hearth.StatsNumbers {
	out := hearth.StatsNumbers{
		Errors: map[string]int64{}, Codes: map[string]int64{}, Cold: map[hearth.ColdReason]int64{}, Phases: map[string]hearth.Durations{},
		Cached: int64(s.plain[cachedFamily.name]), BytesIn: int64(s.plain[inFamily.name]), BytesOut: int64(s.plain[outFamily.name]),
		Duration: s.duration.durations(), Usage: s.usage(),
	}
	for _, o := range outcomes {
		t := s.codes[string(o.code)]
		if t == nil {
			continue
		}
		n := int64(t.n)
		out.Calls += n
		out.Codes[string(o.code)] = n
		if o.fault != "" {
			out.Errors[o.fault] += n
		}
	}
	for reason, t := range s.cold {
		out.Cold[hearth.ColdReason(reason)] = int64(t.n)
		out.ColdStarts += int64(t.n)
	}
	for phase, t := range s.phases {
		out.Phases[phase] = t.durations()
	}
	ratio := func(a, b int64) float64 {
		if b == 0 {
			return 0
		}
		return float64(a) / float64(b)
	}
	out.ErrorRatio = ratio(out.Errors["function"]+out.Errors["hearth"], out.Calls)
	out.ColdRatio = ratio(out.ColdStarts, out.Duration.Count)
	if seconds > 0 {
		out.PerSecond = float64(out.Calls) / seconds
	}
	return out
}

// usage returns what instances used.
func (s *sums) usage() hearth.Usage {
	of := func(f *family, label string) float64 { return s.used[[2]string{f.name, label}] }
	occupancy := func(state string) hearth.Occupancy {
		return hearth.Occupancy{Seconds: of(timeFamily, state), ByteSeconds: of(memoryFamily, state)}
	}
	return hearth.Usage{
		CPUSeconds: s.plain[cpuFamily.name],
		Starting:   occupancy(activities[0]), Busy: occupancy(activities[1]), Idle: occupancy(activities[2]),
		NetworkIn: int64(of(networkFamily, "in")), NetworkOut: int64(of(networkFamily, "out")),
		DiskRead: int64(of(diskFamily, "read")), DiskWritten: int64(of(diskFamily, "written")),
	}
}

// durations returns the mean and the percentiles of a histogram.
func (t *tally) durations() (d hearth.Durations) {
	if t.h == nil || t.h.Count == 0 {
		return d
	}
	d.Count, d.Mean = int64(t.h.Count), t.h.Sum/t.h.Count
	for q, p := range map[float64]*float64{0.5: &d.P50, 0.9: &d.P90, 0.95: &d.P95, 0.99: &d.P99} {
		*p, _ = promql.HistogramQuantile(q, t.h, "", posrange.PositionRange{})
	}
	return d
}
