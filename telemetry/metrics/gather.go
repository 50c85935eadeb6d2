package metrics

import (
	"cmp"
	"context"
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	stale "github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// gathered are the series of the Gatherer that were stored last, by the hashes of their
// labels; nil before the first time.
type gathered map[uint64]labels.Labels

// lookback is how long a value counts in queries that nothing follows: as in Prometheus.
const lookback = 5 * time.Minute

// store appends what the Gatherer has, but for the calls. What it has no more ends there:
// else queries would go on to find it for as long as lookback.
func (g *gathered) store(db *DB, a storage.Appender, now time.Time) (failed error) {
	if db.opts.Gatherer == nil {
		return nil
	}
	if *g == nil {
		*g = db.left(now)
	}
	families, failed := db.opts.Gatherer.Gather() // what could be gathered is there
	next := gathered{}
	builder := labels.NewScratchBuilder(8)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			series := func(suffix string) labels.Labels {
				builder.Reset()
				builder.Add(model.MetricNameLabel, f.GetName()+suffix)
				for _, l := range m.GetLabel() {
					builder.Add(l.GetName(), l.GetValue())
				}
				builder.Sort()
				l := builder.Labels()
				next[l.Hash()] = l
				return l
			}
			put := func(suffix string, n float64) {
				_, err := a.Append(0, series(suffix), now.UnixMilli(), n)
				failed = cmp.Or(failed, err)
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				put("", m.GetCounter().GetValue())
			case dto.MetricType_GAUGE:
				put("", m.GetGauge().GetValue())
			case dto.MetricType_UNTYPED:
				put("", m.GetUntyped().GetValue())
			case dto.MetricType_SUMMARY:
				put("_sum", m.GetSummary().GetSampleSum())
				put("_count", float64(m.GetSummary().GetSampleCount()))
			case dto.MetricType_HISTOGRAM:
				_, err := a.AppendHistogram(0, series(""), now.UnixMilli(), native(m.GetHistogram()), nil)
				failed = cmp.Or(failed, err)
			}
		}
	}
	for hash, l := range *g {
		if _, there := next[hash]; !there {
			_, err := a.Append(0, l, now.UnixMilli(), math.Float64frombits(stale.StaleNaN))
			failed = cmp.Or(failed, err)
		}
	}
	*g = next
	return failed
}

// left returns what the Gatherer of an earlier process had at its end.
func (db *DB) left(now time.Time) gathered {
	out := gathered{}
	// Neither what is counted, which stays as it was, nor what rules make.
	others := labels.MustNewMatcher(labels.MatchNotRegexp, model.MetricNameLabel, familyPattern+"|"+startedMetric+"|ALERTS|ALERTS_FOR_STATE|.*:.*")
	r := reader{ctx: context.Background(), db: db.open.Load()}
	from := now.Add(-lookback)
	err := r.each(from, now, &storage.SelectHints{Start: from.UnixMilli(), End: now.UnixMilli(), Func: "series"}, func(s storage.Series) error {
		out[s.Labels().Hash()] = s.Labels()
		return nil
	}, others)
	if err != nil {
		db.failed("reading what an earlier process stored", err)
	}
	return out
}

// native returns a native histogram as the database stores it.
func native(h *dto.Histogram) *histogram.Histogram {
	spans := func(from []*dto.BucketSpan) (to []histogram.Span) {
		for _, s := range from {
			to = append(to, histogram.Span{Offset: s.GetOffset(), Length: s.GetLength()})
		}
		return to
	}
	return &histogram.Histogram{
		Schema: h.GetSchema(), ZeroThreshold: h.GetZeroThreshold(), ZeroCount: h.GetZeroCount(), Count: h.GetSampleCount(), Sum: h.GetSampleSum(),
		PositiveSpans: spans(h.GetPositiveSpan()), PositiveBuckets: h.GetPositiveDelta(),
		NegativeSpans: spans(h.GetNegativeSpan()), NegativeBuckets: h.GetNegativeDelta(),
	}
}
