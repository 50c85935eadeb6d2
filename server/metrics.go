package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/telemetry/metrics"
)

// startMetrics begins to store what the parts of the server tell of themselves, besides
// the calls. Errors: CodeInvalid for a file with rules or the URL of a receiver.
func (s *Server) startMetrics() error {
	if err := metrics.CheckRules(s.cfg.Rules); err != nil {
		return err
	}
	for _, address := range s.cfg.AlertURLs {
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return hearth.Errorf(hearth.CodeInvalid, "alerts cannot be sent to %q", address).WithHint("give a URL such as https://alerts.example.com/hook")
		}
	}
	if s.cfg.NoTelemetry && len(s.cfg.Rules)+len(s.cfg.AlertURLs)+len(s.cfg.ExportTraces) > 0 {
		return hearth.Errorf(hearth.CodeInvalid, "rules, alerts and traces need the telemetry that is off").
			WithHint("leave out --telemetry=false, or --rules, --alert-webhook and --export-traces")
	}
	s.state = prometheus.NewRegistry()
	s.state.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), stateCollector{s}, s.health)
	if s.cfg.NoTelemetry {
		return nil
	}
	s.metrics = metrics.Start(metrics.Options{
		Dir: filepath.Join(s.store.Dir(), "metrics"), Calls: &s.calls, Gatherer: s.state, Logger: s.cfg.Logger,
		Interval: s.cfg.MetricsInterval, Retention: s.cfg.KeepMetricsFor, MaxBytes: s.cfg.MetricsSize,
		Rules: s.cfg.Rules, Notify: s.tellOfAlerts,
	})
	return nil
}

// used returns what is told what instances use.
func (s *Server) used() func(string, int, string, hearth.Usage) {
	if s.cfg.NoTelemetry {
		return nil
	}
	return s.calls.Use
}

// errNoTelemetry is what a server answers that keeps no metrics.
func errNoTelemetry() error {
	return hearth.Errorf(hearth.CodeUnsupported, "this server keeps no metrics").WithHint("start it without --telemetry=false")
}

// noMetrics is in the place of a database that there is not.
type noMetrics struct{}

func (noMetrics) Stats(context.Context, string, int, time.Time, time.Time) (hearth.Stats, error) {
	return hearth.Stats{}, errNoTelemetry()
}

// stats is what sums up calls.
func (s *Server) stats() api.Stats {
	if s.metrics == nil {
		return noMetrics{}
	}
	return s.metrics
}

// query answers PromQL.
func (s *Server) query() http.Handler {
	if s.metrics != nil {
		return s.metrics.Handler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		err := hearth.AsError(errNoTelemetry())
		http.Error(w, err.Message+": "+err.Hint, err.Code.HTTPStatus())
	})
}

// alertTimeout bounds how long a receiver of alerts may take.
const alertTimeout = 10 * time.Second

// tellOfAlerts tells all receivers at the same time. Whoever does not hear is told again.
func (s *Server) tellOfAlerts(ctx context.Context, body []byte) {
	bounded, cancel := context.WithTimeout(ctx, alertTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, address := range s.cfg.AlertURLs {
		wg.Go(func() {
			if err := s.tellOne(bounded, address, body); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("a receiver of alerts was not told", "url", address, "err", err)
			}
		})
	}
	wg.Wait()
}

func (s *Server) tellOne(ctx context.Context, address string, body []byte) error {
	req, err := s.webhooks.request(ctx, address, uuid.Must(uuid.NewV7()).String(), "application/json", body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("its answer is %s", resp.Status)
	}
	return nil
}

// pruneCalls lets the counts of versions go that do not exist any more.
func (s *Server) pruneCalls(ctx context.Context) error {
	numbers, err := s.store.VersionNumbers(ctx)
	if err == nil {
		s.calls.Prune(func(function string, version int) bool {
			return function == "" || slices.Contains(numbers[function], version) // stem cells have none
		})
	}
	return err
}

// stateCollector tells how the parts of a server are when they are asked.
type stateCollector struct{ s *Server }

// stateTimeout bounds how long the parts may take together.
const stateTimeout = 5 * time.Second

// described is the description of a metric of Hearth.
func described(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hearth_"+name, help, labels, nil)
}

var (
	infoDesc          = described("info", "1, for the version of Hearth.", "version")
	instancesDesc     = described("instances", "Instances and stem cells, by what they do; stem cells have no function.", "function", "version", "isolation", "state")
	memoryDesc        = described("instance_memory_bytes", "What instances use, all of a version together.", "function", "version", "isolation")
	pssDesc           = described("instance_pss_bytes", "The same, when they were last weighed, with what they share with others counted in parts.", "function", "version", "isolation")
	peakDesc          = described("instance_memory_peak_bytes", "The most that an instance of a version has used at a time, of those that exist.", "function", "version", "isolation")
	inFlightDesc      = described("invocations_in_flight", "Calls that have an instance.", "function", "version")
	waitingDesc       = described("invocations_waiting", "Calls that wait for an instance.", "function", "version")
	poolUsedDesc      = described("pool_memory_used_bytes", "What all instances are expected to use.")
	poolBudgetDesc    = described("pool_memory_budget_bytes", "Bound of hearth_pool_memory_used_bytes; 0 means none.")
	stemsDesc         = described("stem_cells", "Started sandboxes without a function, by whether they are ready or starting.", "isolation", "runtime", "state")
	queueCallsDesc    = described("queue_calls", "Calls, or messages, that are stored to run later, by state; a queue of messages is queue:NAME.", "function", "state")
	queueBytesDesc    = described("queue_bytes", "Size of what is stored of them.", "function")
	queueLagDesc      = described("queue_lag_seconds", "For how long the oldest of them has been due.", "function")
	recordsLostDesc   = described("records_dropped_total", "Records of calls that were lost because the store was too slow or failed.")
	exportLostDesc    = described("logs_export_dropped_total", "Log lines that the receiver of --export-logs did not take, or not in time.")
	recordsSampleDesc = described("records_skipped_total", "Records of successful and refused calls that were left out because there were too many.")
	spansLostDesc     = described("spans_dropped_total", "Spans that were not exported because the collector was too slow or could not be reached.")
)

// Describe implements prometheus.Collector.
func (c stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, instancesDesc, memoryDesc, pssDesc, peakDesc, inFlightDesc, waitingDesc, poolUsedDesc, poolBudgetDesc, stemsDesc,
		queueCallsDesc, queueBytesDesc, queueLagDesc, recordsLostDesc, recordsSampleDesc, exportLostDesc, spansLostDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	put(infoDesc, 1, c.s.cfg.Version)
	c.pool(put)
	ctx, cancel := context.WithTimeout(context.Background(), stateTimeout)
	defer cancel()
	if err := c.queue(ctx, put); err != nil {
		ch <- prometheus.NewInvalidMetric(queueCallsDesc, err)
	}
	counts := map[*prometheus.Desc]int64{recordsLostDesc: c.s.recorder.Dropped(), recordsSampleDesc: c.s.recorder.Skipped()}
	if c.s.export != nil {
		counts[exportLostDesc] = c.s.export.Dropped()
	}
	if c.s.traces != nil {
		counts[spansLostDesc] = c.s.traces.Dropped()
	}
	for d, n := range counts {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
}

type putter func(d *prometheus.Desc, n float64, labels ...string)

func (c stateCollector) pool(put putter) {
	st := c.s.pool.Status()
	put(poolUsedDesc, float64(st.MemoryUsed))
	put(poolBudgetDesc, float64(st.MemoryBudget))
	for _, f := range st.Functions {
		version := strconv.Itoa(f.Version)
		put(inFlightDesc, float64(f.InFlight), f.Function, version)
		put(waitingDesc, float64(f.Queued), f.Function, version)
	}
	type key struct{ function, version, isolation string }
	type doing struct {
		key
		state hearth.InstanceState
	}
	count, memory, pss, peak := map[doing]int{}, map[key]int64{}, map[key]int64{}, map[key]int64{}
	for _, i := range st.Instances {
		k := key{isolation: i.Isolation, function: i.Function}
		if i.Function != "" {
			k.version = strconv.Itoa(i.Version)
		}
		count[doing{k, i.State}]++
		memory[k] += i.Memory
		pss[k] += i.PSS
		peak[k] = max(peak[k], i.MemoryPeak)
	}
	for d, n := range count {
		put(instancesDesc, float64(n), d.function, d.version, d.isolation, string(d.state))
	}
	for d, of := range map[*prometheus.Desc]map[key]int64{memoryDesc: memory, pssDesc: pss, peakDesc: peak} {
		for k, n := range of {
			if n > 0 { // else it is not known yet
				put(d, float64(n), k.function, k.version, k.isolation)
			}
		}
	}
	type stock struct{ isolation, runtime, state string }
	stems := map[stock]int{} // stocks differ in limits, too
	for _, s := range st.Stems {
		stems[stock{s.Isolation, s.Runtime, "ready"}] += s.Ready
		stems[stock{s.Isolation, s.Runtime, "starting"}] += s.Starting
	}
	for s, n := range stems {
		put(stemsDesc, float64(n), s.isolation, s.runtime, s.state)
	}
}

func (c stateCollector) queue(ctx context.Context, put putter) error {
	st, err := c.s.queue.Status(ctx, "")
	if err != nil {
		return err
	}
	for _, f := range st.Functions {
		for state, n := range map[hearth.AsyncState]int64{
			hearth.AsyncQueued: f.Queued, hearth.AsyncRunning: f.Running, hearth.AsyncSucceeded: f.Succeeded, hearth.AsyncFailed: f.Dead, hearth.AsyncCanceled: f.Canceled,
		} {
			put(queueCallsDesc, float64(n), f.Function, string(state))
		}
		put(queueBytesDesc, float64(f.Bytes), f.Function)
		lag := 0.0
		if !f.OldestDue.IsZero() {
			lag = max(0, st.Time.Sub(f.OldestDue).Seconds())
		}
		put(queueLagDesc, lag, f.Function)
	}
	return nil
}
