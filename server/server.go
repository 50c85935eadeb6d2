// Package server joins the parts of Hearth into one server: the store, the
// drivers, the pool, the gateway and the management API. It is the only
// package that knows all of them, and can be embedded in other programs.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/gateway"
	"github.com/hearthrun/hearth/pool"
	"github.com/hearthrun/hearth/queue"
	"github.com/hearthrun/hearth/store"
	"github.com/hearthrun/hearth/telemetry"
	"github.com/hearthrun/hearth/telemetry/export"
	"github.com/hearthrun/hearth/telemetry/metrics"
	"github.com/hearthrun/hearth/telemetry/traces"
)

// Server is a Hearth server. Use New, then Run once.
type Server struct {
	cfg      Config
	listener *listener
	debug    net.Listener // nil without Config.DebugListen
	store    *store.Store
	secrets  *store.Secrets
	export   *export.Exporter // nil without Config.ExportLogs
	logs     *telemetry.Logs
	recorder *telemetry.Recorder
	calls    metrics.Calls
	state    *prometheus.Registry // what else there is of metrics
	metrics  *metrics.DB
	health   *healthMetrics
	traces   *traces.Exporter // nil without Config.ExportTraces
	drivers  map[string]driver.Driver
	left     []*leftovers // the same drivers
	builder  *build.Builder
	probes   *probes
	pool     *pool.Pool
	queue    *queue.Queue
	webhooks *webhooks
	gateway  *gateway.Gateway
	api      *api.API
	http     *http.Server
	ready    chan struct{} // closed when calls are served
	draining chan struct{} // closed when Run's context has ended
	wg       sync.WaitGroup
}

// New opens the data directory and the listener. Nothing is served before Run;
// if Run is not called, Close must be. Errors: CodeConflict if another server
// uses the data directory or the address, CodeInvalid and CodeUnavailable as
// the parts return them.
func New(ctx context.Context, cfg Config) (_ *Server, err error) {
	s := &Server{cfg: cfg.withDefaults(), ready: make(chan struct{}), draining: make(chan struct{})}
	s.health = newHealthMetrics(s)
	if cfg.Listener != nil {
		s.listener = newListener(cfg.Listener)
	}
	defer func() {
		if err != nil {
			s.Close() //nolint:errcheck // the first error counts
		}
	}()
	log := s.cfg.Logger
	if err := s.startExport(); err != nil {
		return nil, err
	}
	if s.store, err = store.Open(ctx, s.cfg.DataDir, log); err != nil {
		return nil, err
	}
	s.secrets = s.store.Secrets(s.cfg.secretsKeyFile(s.store.Dir()))
	if s.listener == nil {
		if s.listener, err = listen(ctx, s.cfg.Listen); err != nil {
			return nil, err
		}
	}
	if s.cfg.DebugListen != "" {
		if s.debug, err = listenDebug(ctx, s.cfg.DebugListen); err != nil {
			return nil, err
		}
	}
	kept := telemetry.LogOptions{TotalBytes: int64(s.cfg.LogsSize), KeepFor: s.cfg.KeepLogsFor, Logger: log}
	if s.export != nil {
		kept.Export = s.export.Append
	}
	if s.logs, err = telemetry.OpenLogs(filepath.Join(s.store.Dir(), "logs"), kept); err != nil {
		return nil, err
	}
	counting := counters{&s.calls}
	if s.traces != nil {
		counting = append(counting, s.traces)
	}
	s.recorder = telemetry.NewRecorder(s.store, telemetry.RecorderOptions{
		SuccessRate: s.cfg.RecordSuccesses, Counter: counting, Off: s.cfg.NoTelemetry,
	}, log)
	if s.drivers, err = newDrivers(s.cfg.drivers(s.store.Dir(), s.store.Owner())); err != nil {
		return nil, err
	}
	s.drivers, s.left = cleaning(s.drivers, log)
	s.builder, err = build.NewBuilder(build.Config{
		Dir:   filepath.Join(s.store.Dir(), "builds"),
		Allow: append(build.DefaultAllow(), s.cfg.BuildAllow...), Env: s.cfg.BuildEnv,
		Timeout: s.cfg.BuildTimeout, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	s.probes = newProbes(s.drivers, log)
	s.pool = pool.New(pool.Config{
		Drivers: s.drivers, Artifacts: s.store, Secrets: s.secrets, Logs: s.logs, Logger: log,
		SnapshotDir: filepath.Join(s.store.Dir(), "snapshots"),
		Memory:      s.cfg.memoryBudget(), MaxStems: s.cfg.StemCells, Used: s.used(),
	})
	spool := filepath.Join(s.store.Dir(), "spool")
	// A killed server may have left what it had no time to unlink.
	if err := errors.Join(os.RemoveAll(spool), os.MkdirAll(spool, 0o700)); err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "the data directory cannot be used: %w", err)
	}
	calls := s.store.Queue(store.QueueLimits{Bytes: int64(s.cfg.QueueSize)})
	if s.webhooks, err = newWebhooks(calls.WebhookSecret(), s.cfg.WebhookAllow, s.cfg.Version); err != nil {
		return nil, err
	}
	queued := queue.Config{Store: calls, Webhooks: s.webhooks, Logger: log}
	if s.traces != nil {
		queued.Traces = s.traces
	}
	s.queue = queue.New(queued)
	s.gateway = gateway.New(gateway.Config{
		SpoolDir: spool, Queue: s.queue, Keeper: calls, Schedules: s.queue,
		Pool: lender{s.pool}, Catalog: s.store, Recorder: s.recorder, Logs: s.logs, Logger: log, TraceRatio: s.cfg.TraceRatio,
		Managed: func(host string) bool { return api.ManagementHost(host, s.cfg.AllowedHosts) },
	})
	if err := s.startMetrics(); err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           lastAnswers(readOut(s.handler()), s.draining),
		ConnState:         connState,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    256 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// startExport begins to send on what is to be sent on. Errors: CodeInvalid for a URL.
func (s *Server) startExport() (err error) {
	if s.cfg.ExportLogs != "" {
		s.export, err = export.New(export.Options{URL: s.cfg.ExportLogs, Headers: s.cfg.ExportHeaders, Version: s.cfg.Version, Logger: s.cfg.Logger})
		if err != nil {
			return err
		}
	}
	if s.cfg.ExportTraces != "" {
		s.traces, err = traces.New(traces.Options{URL: s.cfg.ExportTraces, Version: s.cfg.Version, Logger: s.cfg.Logger})
	}
	return err
}

func listen(ctx context.Context, addr string) (*listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return newListener(l.(*net.TCPListener)), nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, hearth.Errorf(hearth.CodeConflict, "the address %s is in use: %w", addr, err).
			WithHint("stop the program that uses it, or choose another address with --listen")
	default:
		return nil, hearth.Errorf(hearth.CodeInvalid, "cannot listen on %s: %w", addr, err).
			WithHint("give an address of this machine, for example --listen 127.0.0.1:8080")
	}
}

// handler splits management from calls.
func (s *Server) handler() http.Handler {
	s.api = api.New(api.Deps{
		Catalog:     s.store,
		Aliases:     s.store,
		Versions:    s.store,
		Traffic:     &s.recorder.Traffic,
		Artifacts:   artifacts{s.store},
		Builder:     builds{s.builder, s.drivers, s.health.builds},
		Verifier:    s.pool,
		Router:      s.gateway,
		Invoker:     s.gateway,
		Acceptor:    s.gateway,
		Queue:       s.queue,
		Schedules:   s.queue,
		Webhooks:    s.webhooks,
		Instances:   instances{s.gateway, s.pool},
		Pool:        s.pool,
		Logs:        s.logs,
		Invocations: recorded{s.store, s.recorder},
		Drivers:     s.probes,
		Secrets:     s.secrets,
		Stats:       s.stats(),
		Prices:      s.cfg.Prices,

		PricesAssumed: s.cfg.pricesAssumed,
		Metrics:       metrics.Exposition(&s.calls, s.state),
		Query:         s.query(),
		Health:        health{s},
		Logger:        s.cfg.Logger,
		Version:       s.cfg.Version,
		Draining:      s.draining,

		AllowedHosts: s.cfg.AllowedHosts,
		KeepVersions: s.cfg.KeepVersions,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.gateway.OwnsHost(r.Host) {
			s.health.gateway.serve(s.gateway, w, r)
			return
		}
		if managed(r.URL.Path) {
			s.health.api.serve(s.api, w, r)
			return
		}
		if api.ManagementHost(r.Host, s.cfg.AllowedHosts) {
			// A function's page must not act as a page of the origin it shares
			// with the management API. A policy of its own can only add to this.
			w.Header().Set("Content-Security-Policy", pageSandbox)
		}
		s.health.gateway.serve(s.gateway, w, r)
	})
}

// pageSandbox gives pages an opaque origin of their own in browsers.
const pageSandbox = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"

// managed tells whether a path belongs to the platform and not to functions.
func managed(path string) bool {
	if strings.HasPrefix(path, "/fn/") {
		return false
	}
	for _, p := range hearth.ReservedPaths() {
		if rest, ok := strings.CutPrefix(path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// Addr is the address that is served, with the port that was chosen for :0.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Ready is closed when calls are served.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, then lets running calls finish (see
// Config.DrainTimeout) and closes everything. It returns nil after an orderly
// end.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close() //nolint:errcheck // logged there
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer s.wg.Wait()
	defer cancel()
	clean(ctx, background, s.left, &s.wg)
	if err := s.gateway.Reload(ctx); err != nil {
		return err
	}
	s.checkSecrets(ctx)
	if err := s.queue.Start(ctx, s.gateway); err != nil {
		return err
	}
	s.wg.Go(func() { s.probes.Drivers(background) })
	s.wg.Go(func() { s.maintain(background) })
	s.wg.Go(func() { s.boundInvocations(background) })
	s.wg.Go(func() { watchKeyFile(background, s.secrets.CheckKeyFile, s.cfg.Logger) })
	s.wg.Go(func() { s.api.Run(background) })

	if s.debug != nil {
		debug := debugServer()
		defer debug.Close()                      //nolint:errcheck // a profile being taken is cut off
		s.wg.Go(func() { debug.Serve(s.debug) }) //nolint:errcheck // it ends with Close
	}

	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	close(s.ready)
	s.cfg.Logger.Info("serving", "url", "http://"+s.Addr(), "data_dir", s.store.Dir())
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	close(s.draining)
	s.gateway.CloseSockets() // their clients connect anew, and would stay for hours
	s.cfg.Logger.Info("draining: running calls may end; a second signal ends them at once", "timeout", s.cfg.DrainTimeout)
	drain, cancelDrain := context.WithTimeout(background, s.cfg.DrainTimeout)
	defer cancelDrain()
	// Nothing is accepted any more; then calls end, then their instances. What
	// outlives the drain is broken off.
	s.listener.Close() //nolint:errcheck // Serve tells
	<-served
	var broken int
	queued := make(chan struct{})
	go func() {
		defer close(queued)
		broken = s.queue.Close(drain)
	}()
	err := s.listener.drain(drain)
	if <-queued; broken > 0 {
		s.cfg.Logger.Info("queued calls and batches that were running begin anew after the next start", "runs", broken)
	}
	if poolErr := s.pool.Close(drain); err == nil {
		err = poolErr
	}
	s.gateway.WaitSockets()
	s.http.Close() //nolint:errcheck // nothing is left to do
	if err != nil {
		s.cfg.Logger.Warn("calls were broken off at the end of the drain", "err", err)
	}
	s.cfg.Logger.Info("stopped")
	return nil
}

// traceFlush is how long the collector of traces is waited for at the end.
const traceFlush = 5 * time.Second

// Close frees everything. Run calls it; call it yourself only without Run.
func (s *Server) Close() error {
	var errs []error
	if s.listener != nil {
		s.listener.Close() //nolint:errcheck // the HTTP server may have done so
	}
	if s.debug != nil {
		s.debug.Close() //nolint:errcheck // as above
	}
	if s.queue != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // Run has waited for what runs
		s.queue.Close(ctx)
		s.webhooks.Close()
	}
	if s.pool != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()          // nobody is being served
		s.pool.Close(ctx) //nolint:errcheck // it tells of calls that were cut off, as meant
	}
	if s.builder != nil {
		errs = append(errs, s.builder.Close())
	}
	for _, d := range s.drivers {
		errs = append(errs, d.Close())
	}
	if s.metrics != nil { // it asks the others
		errs = append(errs, s.metrics.Close())
	}
	if s.recorder != nil {
		errs = append(errs, s.recorder.Close())
	}
	var flushed sync.WaitGroup // both collectors at the same time: one that hangs takes all of its time
	var flushErr error
	if s.traces != nil {
		flushed.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), traceFlush)
			defer cancel()
			flushErr = s.traces.Close(ctx)
		})
	}
	if s.logs != nil {
		errs = append(errs, s.logs.Close())
	}
	if s.export != nil {
		s.export.Close()
	}
	flushed.Wait()
	errs = append(errs, flushErr)
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	err := errors.Join(errs...)
	if err != nil {
		s.cfg.Logger.Error("closing", "err", err)
	}
	return err
}

// checkSecrets tells the log of secrets that cannot be opened: functions that use
// them do not start, and their callers are told little of the reason.
//
// Before, it comes to the end of a change of the key that was interrupted.
func (s *Server) checkSecrets(ctx context.Context) {
	if r, err := s.secrets.ResumeRekey(ctx); err != nil {
		s.cfg.Logger.Error("the change of the secrets' key was interrupted and cannot be finished; all keys of the file are still in use", "err", err)
	} else if r.Values > 0 {
		s.cfg.Logger.Info("the change of the secrets' key that was interrupted is finished", "values", r.Values)
	}
	list, err := s.secrets.Secrets(ctx)
	if err != nil {
		s.cfg.Logger.Error("listing secrets", "err", err)
		return
	}
	var locked []string
	for _, x := range list {
		if x.Locked {
			locked = append(locked, x.Name)
		}
	}
	if len(locked) > 0 {
		s.cfg.Logger.Error("secrets cannot be read: the key they were encrypted with is not in the key file; functions that use them do not start",
			"secrets", locked, "key_file", s.cfg.secretsKeyFile(s.store.Dir()))
	}
}

// watchKeyFile tells the log when the key file of the secrets is lost, or another, while
// the server works with the key that was in it: when the server ends the secrets are
// lost, too. It does so until ctx ends.
func watchKeyFile(ctx context.Context, check func() error, log *slog.Logger) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	lost := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := check()
		switch {
		case err != nil && !lost:
			log.Error("the secrets are lost when this server ends", "err", err, "hint", hearth.AsError(err).Hint)
		case err == nil && lost:
			log.Info("the key file of the secrets is there again")
		}
		lost = err != nil
	}
}

// readiness tells why calls are not served; nil when they are.
func (s *Server) readiness() error {
	select {
	case <-s.draining:
		return errors.New("the server is shutting down")
	case <-s.ready:
		return nil
	default:
		return errors.New("the server is starting")
	}
}
