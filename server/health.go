package server

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
)

// healthMetrics are what the server counts of its own parts.
type healthMetrics struct {
	gateway, api *answers
	builds       *prometheus.HistogramVec
	server       *Server
}

func newHealthMetrics(s *Server) *healthMetrics {
	return &healthMetrics{server: s, gateway: newAnswers(), api: newAnswers(), builds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "hearth_build_duration_seconds", Help: "How long the installation of dependencies took, by result: installed, cached or failed.",
		NativeHistogramBucketFactor: 1.1,
	}, []string{"runtime", "result"})}
}

var (
	requestsDesc      = described("http_requests_total", "Requests that were answered, by who did: gateway or api; error is the code of the error that Hearth answered with, if it did.", "part", "error")
	connectionsDesc   = described("http_connections", "Connections that are open, by whether a request is under way.", "state")
	storeBytesDesc    = described("store_bytes", "Size of a database with its write-ahead log.", "database")
	storeWritesDesc   = described("store_writes_total", "Transactions that were to change something.", "database")
	storeFailuresDesc = described("store_write_failures_total", "Those that the database could not do.", "database")
	storeTimeDesc     = described("store_write_seconds_total", "How long those transactions took together.", "database")
)

// Describe implements prometheus.Collector.
func (m *healthMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, connectionsDesc, storeBytesDesc, storeWritesDesc, storeFailuresDesc, storeTimeDesc} {
		ch <- d
	}
	m.builds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *healthMetrics) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, n, labels...)
	}
	for part, a := range map[string]*answers{"gateway": m.gateway, "api": m.api} {
		put(requestsDesc, prometheus.CounterValue, float64(a.fine.Load()), part, "")
		for i := range a.errors {
			if e := &a.errors[i]; e.n.Load() > 0 {
				put(requestsDesc, prometheus.CounterValue, float64(e.n.Load()), part, e.code)
			}
		}
	}
	open, busy := m.server.listener.connections()
	put(connectionsDesc, prometheus.GaugeValue, float64(busy), "active")
	put(connectionsDesc, prometheus.GaugeValue, float64(open-busy), "idle")
	for _, h := range m.server.store.Health() {
		put(storeBytesDesc, prometheus.GaugeValue, float64(h.Bytes), h.Name)
		put(storeWritesDesc, prometheus.CounterValue, float64(h.Writes), h.Name)
		put(storeFailuresDesc, prometheus.CounterValue, float64(h.Failures), h.Name)
		put(storeTimeDesc, prometheus.CounterValue, h.WriteTime.Seconds(), h.Name)
	}
	m.builds.Collect(ch)
}

// answers counts requests by the errors that Hearth answered with.
type answers struct {
	fine   atomic.Int64
	errors []errorCount
}

type errorCount struct {
	code string
	n    atomic.Int64
}

func newAnswers() *answers {
	a := &answers{errors: make([]errorCount, len(hearth.Codes()))}
	for i, c := range hearth.Codes() {
		a.errors[i].code = string(c.Code)
	}
	return a
}

// serve has a request answered and counts it.
func (a *answers) serve(h http.Handler, w http.ResponseWriter, r *http.Request) {
	defer a.count(w) // also when the answer is broken off
	h.ServeHTTP(w, r)
}

func (a *answers) count(w http.ResponseWriter) {
	if failed := w.Header()["Hearth-Error"]; len(failed) > 0 {
		for i := range a.errors {
			if e := &a.errors[i]; e.code == failed[0] {
				e.n.Add(1)
				return
			}
		}
	}
	a.fine.Add(1)
}
