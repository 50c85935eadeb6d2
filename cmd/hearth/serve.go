package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpguts"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/server"
)

func (a *app) serveCmd() *cobra.Command {
	cfg := server.Config{Version: version}
	var logLevel, logFormat, prices string
	var buildEnv []string
	var telemetry bool
	var traceRatio float64
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Serve runs the server: functions answer under /fn/NAME/ and their own routes,
the management API under /v1 (documentation: /docs, OpenAPI: /openapi.json).

Everything it keeps is in the data directory, which one server uses at a time.
On SIGINT or SIGTERM it takes no new calls, lets running ones finish, and ends;
a second signal ends it at once. Logs go to standard error.

Under a service manager that holds the socket (systemd, with a .socket unit) it
serves that one instead of --listen, and no connection is refused during a restart.

The management API has no log-in yet: it is served only to clients on this
machine, under any --listen address; functions are served to everyone.`,
		Example: `  hearth serve
  hearth serve --listen 127.0.0.1:9000 --data-dir ./data
  hearth serve --build-env PIP_INDEX_URL=https://pypi.example.com/simple --build-allow pypi.example.com:443
  HEARTH_LOG_FORMAT=json hearth serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = a.logger(logLevel, logFormat); err != nil {
				return err
			}
			if err := a.hostDefaults(&cfg); err != nil {
				return err
			}
			if cfg.BuildEnv, err = parseEnv("--build-env", buildEnv); err != nil {
				return err
			}
			if cfg.ExportHeaders, err = exportHeaders(a.getenv); err != nil {
				return err
			}
			if cfg.DrainTimeout <= 0 {
				return &usageError{fmt.Errorf("--drain-timeout %s is not positive", cfg.DrainTimeout)}
			}
			if !(traceRatio >= 0 && traceRatio <= 1) { // nor NaN
				return &usageError{fmt.Errorf("--trace-ratio %v is not between 0 and 1", traceRatio)}
			}
			if cfg.TraceRatio = traceRatio; traceRatio == 0 {
				cfg.TraceRatio = -1
			}
			if cfg.BuildTimeout <= 0 {
				return &usageError{fmt.Errorf("--build-timeout %s is not positive", cfg.BuildTimeout)}
			}
			if cfg.RecordSuccesses == 0 || cfg.RecordSuccesses < -1 {
				return &usageError{fmt.Errorf("--record-successes %d is no number of calls\n\ngive one from 1 on, or -1 for all", cfg.RecordSuccesses)}
			}
			if err := checkBounds(&cfg); err != nil {
				return err
			}
			cfg.NoTelemetry = !telemetry
			if cfg.Listener, err = inherited(); err != nil {
				return err
			}
			if cfg.Listener != nil {
				cfg.Logger.Info("the service manager holds the socket; --listen is ignored", "address", cfg.Listener.Addr())
			}
			if prices != "" {
				cfg.Prices = server.DefaultPrices()
				if err := client.ReadPrices(prices, &cfg.Prices); err != nil {
					return err
				}
			}
			s, err := server.New(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	hostFlags(f, &cfg)
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "TCP address to serve on; port 0 takes a free one")
	durationVar(f, &cfg.DrainTimeout, "drain-timeout", 30*time.Second, "how long running calls may go on after a signal")
	f.StringSliceVar(&cfg.AllowedHosts, "allowed-hosts", nil, "host names under which the management API is served besides loopback")
	f.IntVar(&cfg.KeepInvocations, "keep-invocations", 1_000_000, "how many records of calls are kept")
	durationVar(f, &cfg.KeepInvocationsFor, "keep-invocations-for", 7*24*time.Hour, "how long records of calls are kept")
	f.TextVar(&cfg.InvocationsSize, "invocations-size", hearth.Bytes(1<<30), "`SIZE` of the records of calls that are kept at most")
	f.IntVar(&cfg.RecordSuccesses, "record-successes", 200, "how many successful calls are recorded per second, besides all that failed or were asynchronous; -1 for all")
	f.BoolVar(&telemetry, "telemetry", true, "record calls and keep metrics")
	durationVar(f, &cfg.KeepLogsFor, "keep-logs-for", 15*24*time.Hour, "how long log lines of functions are kept")
	f.TextVar(&cfg.LogsSize, "logs-size", hearth.Bytes(4<<30), "`SIZE` of the log lines of all functions that are kept at most, compressed; a function has 16MiB of it at most")
	f.StringVar(&cfg.ExportLogs, "export-logs", "", "`URL` that log lines of functions are sent to as well: https://collector:4318 (OTLP), syslog+tcp://host:514 or syslog+udp://host:514")
	durationVar(f, &cfg.KeepMetricsFor, "keep-metrics-for", 15*24*time.Hour, "how long metrics are kept")
	f.TextVar(&cfg.MetricsSize, "metrics-size", hearth.Bytes(2<<30), "`SIZE` of the metrics that are kept at most")
	durationVar(f, &cfg.MetricsInterval, "metrics-interval", 15*time.Second, "between two samples of metrics that are kept")
	f.StringSliceVar(&cfg.Rules, "rules", nil, "`FILE` with rules of Prometheus, which sum up metrics or raise alerts (repeatable)")
	f.StringVar(&prices, "prices", "", "`FILE` with what this machine costs and clouds ask, for hearth cost; hearth cost prices prints one to edit")
	f.StringSliceVar(&cfg.AlertURLs, "alert-webhook", nil, "`URL` that is told of alerts, as Alertmanager tells its webhooks (repeatable)")
	f.StringVar(&cfg.ExportTraces, "export-traces", "", "`URL` of an OpenTelemetry collector that gets spans of calls by OTLP over HTTP, such as http://127.0.0.1:4318 (default none)")
	f.Float64Var(&traceRatio, "trace-ratio", 1, "how many of the traces that begin here are sampled, from 0 to 1; others are as their beginning says")
	f.IntVar(&cfg.KeepVersions, "keep-versions", 20, "how many of the newest versions of a function are kept besides those that are needed")
	f.StringVar(&cfg.SecretsKeyFile, "secrets-key-file", "", "file with the key that secrets are encrypted with, made with the first secret (default secrets.key in the data directory)")
	f.StringSliceVar(&cfg.BuildAllow, "build-allow", nil, "`HOST:PORT` that dependency builds may reach though its address is not public, such as a registry of your network (repeatable)")
	f.StringArrayVar(&buildEnv, "build-env", nil, "`NAME=VALUE` for installers of dependencies, such as PIP_INDEX_URL or npm_config_registry (repeatable)")
	durationVar(f, &cfg.BuildTimeout, "build-timeout", 10*time.Minute, "how long one dependency build may take")
	f.TextVar(&cfg.MemoryBudget, "memory-budget", hearth.Bytes(0), "`SIZE` that all instances together are expected to use at most, such as 4GiB; 0B means three quarters of the memory there is")
	f.IntVar(&cfg.StemCells, "stem-cells", 8, "how many sandboxes of each kind are started ahead of any function at most; -1 for none")
	f.TextVar(&cfg.QueueSize, "queue-size", hearth.Bytes(1<<30), "`SIZE` of the payloads and results of asynchronous calls that are stored at most; one function can use a part of what others leave free")
	f.StringSliceVar(&cfg.WebhookAllow, "webhook-allow", nil, "`HOST:PORT` that webhooks of functions may reach though its address is not public (repeatable)")
	f.StringVar(&cfg.DebugListen, "debug-listen", "", "loopback address to serve profiles on, under /debug/pprof/ (default none)")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	fromEnv(f, "listen", "drain-timeout", "allowed-hosts", "keep-invocations", "keep-invocations-for", "invocations-size", "record-successes", "telemetry", "keep-versions", "keep-logs-for", "logs-size", "export-logs", "keep-metrics-for", "metrics-size", "metrics-interval", "rules", "prices", "alert-webhook", "export-traces", "trace-ratio", "secrets-key-file", "build-allow", "build-timeout", "memory-budget", "stem-cells", "queue-size", "webhook-allow", "debug-listen", "log-level", "log-format")
	return cmd
}

// checkBounds refuses bounds with which nothing worth it would be kept. Below a second,
// samples of metrics cost more than they say; more than a minute apart, queries and
// /v1/stats would not find them.
func checkBounds(cfg *server.Config) error {
	return cmp.Or(
		within("--keep-invocations", cfg.KeepInvocations, 1, math.MaxInt),
		within("--keep-invocations-for", cfg.KeepInvocationsFor, time.Minute, math.MaxInt64),
		within("--invocations-size", cfg.InvocationsSize, 16<<20, math.MaxInt64),
		within("--keep-logs-for", cfg.KeepLogsFor, time.Minute, math.MaxInt64),
		within("--logs-size", cfg.LogsSize, 16<<20, math.MaxInt64),
		within("--keep-metrics-for", cfg.KeepMetricsFor, time.Hour, math.MaxInt64),
		within("--metrics-size", cfg.MetricsSize, 64<<20, math.MaxInt64),
		within("--metrics-interval", cfg.MetricsInterval, time.Second, time.Minute),
		within("--keep-versions", cfg.KeepVersions, 1, math.MaxInt),
	)
}

// within is nil if least <= value <= most.
func within[T cmp.Ordered](flag string, value, least, most T) error {
	switch {
	case value < least:
		return &usageError{fmt.Errorf("%s %v is less than %v", flag, value, least)}
	case value > most:
		return &usageError{fmt.Errorf("%s %v is more than %v", flag, value, most)}
	}
	return nil
}

// exportHeaders reads what OpenTelemetry's SDKs send to a receiver of log lines, from the
// variable that they read it from: KEY=VALUE,KEY=VALUE with %-escapes. The one for log lines
// stands in the place of the one for everything. Errors: CodeInvalid.
func exportHeaders(getenv func(string) string) (map[string]string, error) {
	name := "OTEL_EXPORTER_OTLP_LOGS_HEADERS"
	if getenv(name) == "" {
		name = "OTEL_EXPORTER_OTLP_HEADERS"
	}
	headers := map[string]string{}
	for pair := range strings.SplitSeq(getenv(name), ",") {
		key, value, ok := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		switch {
		case strings.TrimSpace(pair) == "":
		case !ok || err != nil || !httpguts.ValidHeaderFieldName(key) || !httpguts.ValidHeaderFieldValue(value):
			return nil, hearth.Errorf(hearth.CodeInvalid, "the variable %s holds no headers", name).
				WithHint("write KEY=VALUE,KEY=VALUE, and other characters than letters and digits as %%XX")
		default:
			headers[key] = value
		}
	}
	return headers, nil
}

// inherited returns the socket that a service manager has passed on, nil if there
// is none. The variables that tell of it are unset, for child processes. Errors:
// CodeInvalid.
func inherited() (*net.TCPListener, error) {
	files := activation.Files(true)
	for _, f := range files {
		defer f.Close() //nolint:errcheck // the listener has a copy
	}
	if len(files) == 0 {
		return nil, nil
	}
	if len(files) > 1 {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the service manager passes on %d sockets", len(files)).
			WithHint("give the .socket unit one ListenStream=")
	}
	l, err := net.FileListener(files[0])
	if tcp, ok := l.(*net.TCPListener); ok {
		return tcp, nil
	}
	if err == nil {
		l.Close() //nolint:errcheck // it is of no use
		err = fmt.Errorf("it is a %s socket", l.Addr().Network())
	}
	return nil, hearth.Errorf(hearth.CodeInvalid, "the socket that the service manager passes on cannot be used: %w", err).
		WithHint("give the .socket unit a TCP address, for example ListenStream=127.0.0.1:8080")
}

// hostFlags are the flags that say what a server finds on its host; doctor has
// them too.
func hostFlags(f *pflag.FlagSet, cfg *server.Config) {
	f.StringVar(&cfg.DataDir, "data-dir", "", "where everything is kept (default /var/lib/hearth for root, else ~/.local/share/hearth)")
	f.StringVar(&cfg.ImagesDir, "images-dir", "", "where base images are kept (default images in the data directory)")
	f.StringVar(&cfg.DockerHost, "docker-host", "", "where Docker Engine listens (default $DOCKER_HOST, else unix:///var/run/docker.sock)")
	f.StringVar(&cfg.DockerRuntime, "docker-runtime", "", "OCI runtime that Docker starts containers with, such as runsc (default Docker's own)")
	fromEnv(f, "data-dir", "images-dir", "docker-host", "docker-runtime")
}

// hostDefaults fills in what hostFlags left open.
func (a *app) hostDefaults(cfg *server.Config) (err error) {
	if cfg.DockerHost == "" {
		cfg.DockerHost = a.getenv("DOCKER_HOST")
	}
	if cfg.DataDir == "" {
		cfg.DataDir, err = a.defaultDataDir()
	}
	return err
}

// logger returns the server's logger.
func (a *app) logger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, &usageError{fmt.Errorf("--log-level %q does not exist\n\nchoose debug, info, warn or error", level)}
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(a.stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, opts)), nil
	}
	return nil, &usageError{fmt.Errorf("--log-format %q does not exist\n\nchoose text or json", format)}
}

// defaultDataDir follows the XDG base directories; root gets a system one.
func (a *app) defaultDataDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/hearth", nil
	}
	if dir := a.getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "hearth"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", hearth.Errorf(hearth.CodeInvalid, "no data directory: %w", err).WithHint("give one with --data-dir")
	}
	return filepath.Join(home, ".local", "share", "hearth"), nil
}
