package metrics

import (
	"fmt"
	"os"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"
)

// point is a sample of a series.
type point struct {
	labels    labels.Labels
	t         int64 // milliseconds since 1970
	n         float64
	histogram *histogram.Histogram // in place of n, if it is not nil
}

// journal keeps points until the database has newer ones. What was added survives the end
// of the process in whatever way, but not that of the machine. It has the format of the
// database's own write-ahead log.
type journal struct {
	log     *wlog.WL
	encoder record.Encoder
	series  map[string]chunks.HeadSeriesRef // since it was cleared
}

// replay gives fn the points of the journal in a directory, in their order, and removes
// it. Errors: of what could be read, which fn has got, and fn's.
func replay(dir string, fn func([]point) error) error {
	if _, err := os.Stat(dir); err != nil {
		return nil //nolint:nilerr // there is none
	}
	segments, err := wlog.NewSegmentsReader(dir)
	if err != nil {
		return err
	}
	defer segments.Close() //nolint:errcheck // it was only read
	var points []point
	known := map[chunks.HeadSeriesRef]labels.Labels{}
	decoder := record.NewDecoder(labels.NewSymbolTable(), nil)
	reader := wlog.NewReader(segments)
	for err == nil && reader.Next() {
		rec := reader.Record()
		switch decoder.Type(rec) {
		case record.Series:
			var list []record.RefSeries
			list, err = decoder.Series(rec, nil)
			for _, s := range list {
				known[s.Ref] = s.Labels
			}
		case record.Samples:
			var list []record.RefSample
			list, err = decoder.Samples(rec, nil)
			for _, s := range list {
				points = append(points, point{labels: known[s.Ref], t: s.T, n: s.V})
			}
		case record.HistogramSamples:
			var list []record.RefHistogramSample
			list, err = decoder.HistogramSamples(rec, nil)
			for _, s := range list {
				points = append(points, point{labels: known[s.Ref], t: s.T, histogram: s.H})
			}
		default:
			err = fmt.Errorf("the journal has a record of type %v", decoder.Type(rec))
		}
	}
	if err == nil {
		err = reader.Err()
	}
	if e := fn(points); err == nil {
		err = e
	}
	if e := os.RemoveAll(dir); err == nil {
		err = e
	}
	return err
}

// newJournal makes a journal in a directory that is not there.
func newJournal(dir string) (*journal, error) {
	log, err := wlog.New(nil, nil, dir, compression.Snappy)
	if err != nil {
		return nil, err
	}
	return &journal{log: log, series: map[string]chunks.HeadSeriesRef{}}, nil
}

// add keeps points.
func (j *journal) add(points []point) error {
	var fresh []record.RefSeries
	var samples []record.RefSample
	var histograms []record.RefHistogramSample
	var key []byte
	for _, p := range points {
		key = p.labels.Bytes(key)
		ref, ok := j.series[string(key)]
		if !ok {
			ref = chunks.HeadSeriesRef(len(j.series) + 1)
			j.series[string(key)] = ref
			fresh = append(fresh, record.RefSeries{Ref: ref, Labels: p.labels})
		}
		if p.histogram != nil {
			histograms = append(histograms, record.RefHistogramSample{Ref: ref, T: p.t, H: p.histogram})
		} else {
			samples = append(samples, record.RefSample{Ref: ref, T: p.t, V: p.n})
		}
	}
	var records [][]byte
	if len(fresh) > 0 {
		records = append(records, j.encoder.Series(fresh, nil))
	}
	if len(samples) > 0 {
		records = append(records, j.encoder.Samples(samples, nil))
	}
	if len(histograms) > 0 {
		b, _ := j.encoder.HistogramSamples(histograms, nil)
		records = append(records, b)
	}
	return j.log.Log(records...)
}

// clear forgets everything.
func (j *journal) clear() error {
	clear(j.series)
	next, err := j.log.NextSegment()
	if err != nil {
		return err
	}
	return j.log.Truncate(next)
}

func (j *journal) close() error { return j.log.Close() }
