package server

import (
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/hearthrun/hearth"
)

// Config of a Server. DataDir and Logger are required.
type Config struct {
	// DataDir holds everything the server keeps; one server uses it at a time.
	DataDir string
	// Listen is the TCP address to serve on; default 127.0.0.1:8080.
	Listen string
	// DebugListen is a loopback address to serve profiles on, under /debug/pprof/;
	// default none.
	DebugListen string
	// Listener, if it is not nil, is served instead of Listen. The server closes it
	// when it stops. If another process holds the same socket, connections wait in
	// its backlog until the next server accepts them.
	Listener *net.TCPListener
	Logger   *slog.Logger
	// Version is Hearth's own, for people.
	Version string
	// DrainTimeout is how long calls may go on after Run's context has ended;
	// default 30 s.
	DrainTimeout time.Duration
	// AllowedHosts are names under which management is served besides
	// localhost and loopback addresses.
	AllowedHosts []string
	// NoTelemetry makes neither records of calls nor metrics of them.
	NoTelemetry bool
	// RecordSuccesses is how many successful calls are recorded per second; negative
	// means all. Default 200. Failed and asynchronous ones are recorded always.
	RecordSuccesses int
	// KeepInvocations, KeepInvocationsFor and InvocationsSize bound the records of
	// calls; defaults 1,000,000, 7 days and 1 GiB.
	KeepInvocations    int
	KeepInvocationsFor time.Duration
	InvocationsSize    hearth.Bytes
	// KeepMetricsFor and MetricsSize bound what is stored of metrics; defaults 15 days
	// and 2 GiB. MetricsInterval is between two samples; default 15 s.
	KeepMetricsFor  time.Duration
	MetricsSize     hearth.Bytes
	MetricsInterval time.Duration
	// LogsSize and KeepLogsFor bound the log lines of all functions; defaults 4 GiB and 15
	// days.
	LogsSize    hearth.Bytes
	KeepLogsFor time.Duration
	// ExportLogs is where log lines are sent, too: see export.Options. Default nowhere.
	// ExportHeaders are sent along by OTLP.
	ExportLogs    string
	ExportHeaders map[string]string
	// Rules are files with rules of Prometheus, which sum up or raise alerts. AlertURLs
	// are told of the alerts; they may be anywhere.
	Rules     []string
	AlertURLs []string
	// Prices are what costs are computed with; default DefaultPrices.
	Prices        hearth.Prices
	pricesAssumed bool
	// ExportTraces is the URL of an OpenTelemetry collector that gets spans of calls, by
	// OTLP over HTTP; default none. TraceRatio is how many of the traces that begin here
	// are sampled, for that and in functions; default 1, all, negative none.
	ExportTraces string
	TraceRatio   float64
	// KeepVersions is how many of the newest versions of a function are kept besides
	// those that aliases and releases need; default 20.
	KeepVersions int

	// QueueSize bounds the payloads and results of asynchronous calls that are stored,
	// in bytes; default 1 GiB.
	QueueSize hearth.Bytes
	// WebhookAllow are endpoints, "host:port", that webhooks of functions may reach
	// besides public addresses.
	WebhookAllow []string

	// MemoryBudget is what all instances together are expected to use at most, in
	// bytes; default three quarters of the memory that this process may have.
	MemoryBudget hearth.Bytes
	// StemCells is how many sandboxes of each kind are started ahead of any
	// function at most; default 8, negative none.
	StemCells int

	// SecretsKeyFile holds the key that secrets are encrypted with, 32 bytes in
	// base64; it is made with the first secret. Default "secrets.key" in DataDir.
	SecretsKeyFile string

	// ImagesDir holds the base images of runtimes; default "images" in DataDir.
	ImagesDir string
	// DockerHost is where Docker Engine listens, as in the variable DOCKER_HOST;
	// default unix:///var/run/docker.sock.
	DockerHost string
	// DockerRuntime is the OCI runtime that Docker starts containers with, such
	// as runsc; default is Docker's own.
	DockerRuntime string

	// BuildAllow are endpoints, "host:port", that dependency builds may reach
	// besides public addresses and the usual registries, wherever they are.
	BuildAllow []string
	// BuildEnv are environment variables of installers, such as PIP_INDEX_URL or
	// npm_config_registry.
	BuildEnv map[string]string
	// BuildTimeout bounds one dependency build; default 10 minutes.
	BuildTimeout time.Duration
}

// drivers returns what drivers are made with that may write to dir.
func (c Config) drivers(dir, owner string) driverConfig {
	return driverConfig{
		dir: dir, owner: owner, images: c.imagesDir(),
		dockerHost: c.DockerHost, dockerRuntime: c.DockerRuntime, log: c.Logger,
	}
}

// imagesDir is where base images are.
func (c Config) imagesDir() string {
	if c.ImagesDir != "" {
		return c.ImagesDir
	}
	return filepath.Join(c.DataDir, "images")
}

// secretsKeyFile is where the key of secrets is.
func (c Config) secretsKeyFile(dataDir string) string {
	if c.SecretsKeyFile != "" {
		return c.SecretsKeyFile
	}
	return filepath.Join(dataDir, "secrets.key")
}

// DefaultPrices are those of a machine like this one.
func DefaultPrices() hearth.Prices {
	memory, err := memoryThere()
	if err != nil {
		memory = 1 << 30 // who cares says it
	}
	return hearth.DefaultPrices(float64(runtime.NumCPU()), hearth.Bytes(memory))
}

// memoryBudget returns MemoryBudget or its default.
func (c Config) memoryBudget() int64 {
	if c.MemoryBudget > 0 {
		return int64(c.MemoryBudget)
	}
	total, err := memoryThere()
	if err != nil {
		c.Logger.Warn("the memory of instances is not bounded: give --memory-budget", "err", err)
		return 0
	}
	return int64(total / 4 * 3)
}

// memoryThere returns how many bytes of memory this process may have.
func memoryThere() (uint64, error) {
	total, err := memlimit.FromSystem()
	if err != nil {
		return 0, err
	}
	if limit, err := memlimit.FromCgroup(); err == nil { // else there is no limit
		total = min(total, limit)
	}
	return total, nil
}

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:8080"
	}
	if c.Prices.Currency == "" {
		c.Prices, c.pricesAssumed = DefaultPrices(), true
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 30 * time.Second
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.TraceRatio == 0 {
		c.TraceRatio = 1
	}
	if c.KeepInvocations == 0 {
		c.KeepInvocations = 1_000_000
	}
	if c.KeepInvocationsFor == 0 {
		c.KeepInvocationsFor = 7 * 24 * time.Hour
	}
	if c.InvocationsSize == 0 {
		c.InvocationsSize = 1 << 30
	}
	return c
}
