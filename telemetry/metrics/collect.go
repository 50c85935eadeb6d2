package metrics

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Describe implements prometheus.Collector.
func (c *Calls) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Calls) Collect(ch chan<- prometheus.Metric) {
	for _, n := range c.all() {
		number := strconv.Itoa(n.number)
		n.each(func(_ int, v value) {
			labels := append([]string{n.function, number, n.isolation}, v.labels...)
			var m prometheus.Metric
			var err error
			if v.histogram == nil {
				m, err = prometheus.NewConstMetricWithCreatedTimestamp(v.desc, prometheus.CounterValue, v.n, n.since, labels...)
			} else {
				h := v.histogram.Snapshot()
				buckets := make(map[int]int64, len(h.PositiveBuckets))
				for it := h.PositiveBucketIterator(); it.Next(); {
					b := it.At()
					buckets[int(b.Index)] = int64(b.Count)
				}
				m, err = prometheus.NewConstNativeHistogram(v.desc, h.Count, h.Sum, buckets, nil, h.ZeroCount, h.Schema, h.ZeroThreshold, n.since, labels...)
			}
			if err != nil {
				m = prometheus.NewInvalidMetric(v.desc, err)
			}
			ch <- m
		})
	}
}

// Exposition serves the calls and what the gatherer has to a Prometheus that scrapes it.
// Histograms are native: Prometheus takes them if it is told to scrape them.
func Exposition(calls *Calls, others prometheus.Gatherer) http.Handler {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(calls)
	h := promhttp.HandlerFor(prometheus.Gatherers{others, r}, promhttp.HandlerOpts{})
	slots := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}

// maxScrapes is how many scrapers, and looks of hearth top, are served at the same time;
// more wait for them.
const maxScrapes = 2

// described is what is known of the metrics with one name.
type described struct{ kind, help string }

// families returns what is known of all metrics by their names.
func (db *DB) families() map[string]described {
	out := map[string]described{}
	for _, f := range families {
		out[f.name] = described{f.kind, f.help}
	}
	if db.opts.Gatherer == nil {
		return out
	}
	gathered, _ := db.opts.Gatherer.Gather() //nolint:errcheck // what could be gathered is there
	kinds := map[string]string{"COUNTER": "counter", "GAUGE": "gauge", "SUMMARY": "summary", "UNTYPED": "unknown"}
	for _, f := range gathered {
		out[f.GetName()] = described{kinds[f.GetType().String()], f.GetHelp()}
	}
	return out
}
