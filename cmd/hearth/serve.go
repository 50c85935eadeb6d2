package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

func (a *app) serveCmd() *cobra.Command {
	cfg := server.Config{Version: version}
	var logLevel, logFormat string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Serve runs the server: functions answer under /fn/NAME/ and their own routes,
the management API under /v1 (documentation: /docs, OpenAPI: /openapi.json).

Everything it keeps is in the data directory, which one server uses at a time.
On SIGINT or SIGTERM it takes no new calls, lets running ones finish, and ends;
a second signal ends it at once. Logs go to standard error.

The management API has no log-in yet: it is served only to clients on this
machine, under any --listen address; functions are served to everyone.`,
		Example: `  hearth serve
  hearth serve --listen 127.0.0.1:9000 --data-dir ./data
  HEARTH_LOG_FORMAT=json hearth serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = a.logger(logLevel, logFormat); err != nil {
				return err
			}
			if cfg.DataDir == "" {
				if cfg.DataDir, err = a.defaultDataDir(); err != nil {
					return err
				}
			}
			if cfg.DrainTimeout <= 0 {
				return &usageError{fmt.Errorf("--drain-timeout %s is not positive", cfg.DrainTimeout)}
			}
			s, err := server.New(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", "", "where everything is kept (default /var/lib/hearth for root, else ~/.local/share/hearth)")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "TCP address to serve on; port 0 takes a free one")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", 30*time.Second, "how long running calls may go on after a signal")
	f.StringSliceVar(&cfg.AllowedHosts, "allowed-hosts", nil, "host names under which the management API is served besides loopback")
	f.IntVar(&cfg.KeepInvocations, "keep-invocations", 1_000_000, "how many records of calls are kept")
	f.DurationVar(&cfg.KeepInvocationsFor, "keep-invocations-for", 7*24*time.Hour, "how long records of calls are kept")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	fromEnv(f, "data-dir", "listen", "drain-timeout", "allowed-hosts", "keep-invocations", "keep-invocations-for", "log-level", "log-format")
	return cmd
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
