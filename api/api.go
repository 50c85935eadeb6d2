// Package api is the control plane: the management API /v1, its OpenAPI
// document and documentation pages, and the health endpoints. It declares what
// it needs of the other parts as small interfaces; package server joins them.
//
// Until there is authentication, only clients on the same machine may manage:
// see guard.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
)

// Catalog keeps functions.
type Catalog interface {
	// Function returns the function. Errors: CodeNotFound.
	Function(ctx context.Context, name string) (hearth.Function, error)
	// Functions returns at most limit functions whose names come after the
	// given one, in the order of their names.
	Functions(ctx context.Context, after string, limit int) ([]hearth.Function, error)
	// CreateFunction makes the function v.Function with v as its first, live
	// version. Errors: CodeConflict if the name is taken.
	CreateFunction(ctx context.Context, v hearth.Version) (hearth.Function, hearth.Version, error)
	// AddVersion adds v to v.Function, which must be at ifGeneration, and makes it
	// live if that is asked for. Errors: CodeNotFound, CodeConflict.
	AddVersion(ctx context.Context, v hearth.Version, live bool, ifGeneration int64) (hearth.Function, hearth.Version, error)
	// DeleteFunction removes the function with its versions and records; it must
	// be at ifGeneration. Errors: CodeNotFound, CodeConflict.
	DeleteFunction(ctx context.Context, name string, ifGeneration int64) error
}

// Versions keeps the versions of functions.
type Versions interface {
	// NextNumber returns the number that the next version of the function will
	// get. The function need not exist.
	NextNumber(ctx context.Context, function string) (int, error)
	// FirstVersion returns the number of the first version of a function: what is known
	// of lower ones is of deleted functions that had its name. Errors: CodeNotFound.
	FirstVersion(ctx context.Context, function string) (int, error)
	// Version returns one version. Errors: CodeNotFound.
	Version(ctx context.Context, function string, number int) (hearth.Version, error)
	// Versions returns at most limit versions with numbers below before, newest
	// first; 0 means from the newest.
	Versions(ctx context.Context, function string, before, limit int) ([]hearth.Version, error)
	// DeleteVersion removes a version. Errors: CodeNotFound, CodeConflict if an
	// alias or a release needs it.
	DeleteVersion(ctx context.Context, function string, number int) error
	// PruneVersions removes the versions but the newest keep and those to go back to
	// that nothing needs, and returns them.
	PruneVersions(ctx context.Context, function string, keep int, back []int) ([]hearth.Version, error)
}

// Artifacts keeps artifacts by their digest.
type Artifacts interface {
	// Put calls fill with an empty directory and keeps what fill wrote there
	// under the digest it returned. If fill fails, nothing remains and Put
	// returns its error.
	Put(ctx context.Context, fill func(dir string) (digest string, err error)) error
	// ArtifactDir returns the directory of an artifact. Errors: CodeNotFound.
	ArtifactDir(digest string) (string, error)
}

// Verifier starts versions; package pool implements it.
type Verifier interface {
	// Verify loads v in a real sandbox, which may then stay to serve the first
	// call, under v.Incarnation. Errors: CodeFunction if the code cannot be
	// loaded.
	Verify(ctx context.Context, v *hearth.Version) error
	// Admit lets a version that was retired have instances again.
	Admit(incarnation string)
	// Retire ends the instances of a version that no more calls will reach, after
	// the calls they have.
	Retire(incarnation string)
}

// Router knows which routes lead to which function; package gateway implements
// it.
type Router interface {
	// CheckRoutes tells whether an alias of the function may have these routes
	// besides those of all others. Errors: CodeConflict.
	CheckRoutes(function, alias string, routes []hearth.Route) error
	// Queues returns the functions that take the messages of queues, by the queues'
	// names.
	Queues() map[string]string
	// Reload reads the catalog. When it returns, calls reach what is in it, and
	// the instances of versions that none reaches any more are being retired.
	Reload(ctx context.Context) error
}

// Logs reads what functions wrote.
type Logs interface {
	// Tail returns the newest lines that q asks for, oldest first.
	Tail(ctx context.Context, q hearth.LogQuery) ([]hearth.LogLine, error)
	// Follow calls emit for those and then for each new one that q asks for, until ctx
	// ends, q.Until has come or emit fails.
	Follow(ctx context.Context, q hearth.LogQuery, emit func(hearth.LogLine) error) error
	// Delete removes the logs of a function.
	Delete(function string) error
}

// Invocations reads the records of calls.
type Invocations interface {
	// Invocations returns at most limit records, newest first, that are older than
	// the one with the id before; "" means from the newest. next is the before of the
	// next page, if there is one. Errors: CodeNotFound, CodeInvalid.
	Invocations(ctx context.Context, f hearth.InvocationFilter, before string, limit int) (list []hearth.Invocation, next string, err error)
	// Invocation returns one record. Errors: CodeNotFound.
	Invocation(ctx context.Context, id string) (hearth.Invocation, error)
	// TraceInvocations returns at most limit records of a trace, the oldest first.
	TraceInvocations(ctx context.Context, of hearth.TraceID, limit int) ([]hearth.Invocation, error)
}

// Drivers tells what the drivers can do on this host.
type Drivers interface {
	// Drivers returns the result of each driver's latest Probe, kept by the
	// server.
	Drivers(ctx context.Context) []driver.Info
	// Refresh probes the named driver again, or all if the name is empty, unless
	// that was done a moment ago. Then it returns the same as Drivers.
	Refresh(ctx context.Context, name string) []driver.Info
}

// Health tells whether the server takes calls.
type Health interface {
	// Ready returns nil, or why the server does not take calls now.
	Ready() error
}

// Deps are the parts that the API works with. All but the fields that name a
// default are required.
type Deps struct {
	Catalog     Catalog
	Aliases     Aliases
	Versions    Versions
	Artifacts   Artifacts
	Builder     Builder
	Verifier    Verifier
	Instances   Instances
	Pool        Pool
	Router      Router
	Invoker     hearth.Invoker
	Acceptor    Acceptor
	Queue       Queue
	Schedules   Schedules
	Webhooks    Webhooks
	Logs        Logs
	Invocations Invocations
	Drivers     Drivers
	Secrets     Secrets
	Health      Health
	Traffic     Traffic
	Stats       Stats
	// Prices are what costs are computed with; PricesAssumed if nobody said them.
	Prices        hearth.Prices
	PricesAssumed bool
	// Metrics serves /metrics, and Query what is below it: /metrics/api/v1/… and
	// /metrics/grafana.json.
	Metrics, Query http.Handler
	Logger         *slog.Logger
	// Version is that of Hearth, for the OpenAPI document; default "dev".
	Version string
	// Limits bound uploaded code; see build.Limits for the defaults.
	Limits build.Limits
	// MaxEvent is the greatest size of the event of POST …/invocations in bytes;
	// default 6 MiB.
	MaxEvent int64
	// AllowedHosts are names in the Host header under which management is
	// served besides localhost and loopback addresses.
	AllowedHosts []string
	// KeepVersions is how many of the newest versions of a function are kept besides
	// those that are needed; default 20.
	KeepVersions int
	// Draining is closed when the server begins to shut down; it ends followed
	// logs and events. nil means never.
	Draining <-chan struct{}
}

// API serves the management API. Its releases by steps proceed while Run runs.
type API struct {
	Deps
	huma huma.API
	mux  *http.ServeMux
	http http.Handler

	// commit serialises changes of the catalog and the routes that follow it.
	commit sync.Mutex
	// deploys serialises the deploys of one function, changes those of its aliases.
	deploys, changes locks
	// uploads bounds how many artifacts are unpacked at the same time.
	uploads chan struct{}
	// builds bounds how many dependency builds run at the same time.
	builds chan struct{}
	// bodies bounds how many large bodies are in memory at the same time.
	bodies chan struct{}
	// drainContext ends when the server begins to shut down.
	drainContext context.Context
}

// maxUploads is how many artifacts are unpacked at the same time; others wait.
const maxUploads = 4

// New returns the API. It serves /v1, /openapi.json, /openapi.yaml, /docs,
// /healthz and /readyz; other paths get a 404 problem.
func New(d Deps) *API {
	if d.Version == "" {
		d.Version = "dev"
	}
	if d.MaxEvent <= 0 {
		d.MaxEvent = 6 << 20
	}
	d.Limits = d.Limits.WithDefaults()
	if d.KeepVersions <= 0 {
		d.KeepVersions = 20
	}
	s := &API{
		Deps: d, mux: http.NewServeMux(),
		deploys: locks{held: map[string]*lock{}}, changes: locks{held: map[string]*lock{}},
		uploads: make(chan struct{}, maxUploads),
		builds:  make(chan struct{}, maxBuilds),
		bodies:  make(chan struct{}, maxLargeBodies),
	}
	s.drainContext = untilClosed{context.Background(), d.Draining}
	s.huma = newHuma(s)
	s.registerFunctions()
	s.registerPlan()
	s.registerVersions()
	s.registerAliases()
	s.registerReleases()
	s.registerSecrets()
	s.registerSource()
	s.registerInstances()
	s.registerPool()
	s.registerArtifacts()
	s.registerInvocations()
	s.registerTraces()
	s.registerExamples()
	s.registerQueue()
	s.registerQueues()
	s.registerSchedules()
	s.registerStats()
	s.registerCost()
	s.registerLogs()
	s.registerHost()
	s.registerDocs()
	s.mux.Handle("GET /metrics", s.Metrics)
	for _, path := range []string{queriesPath, "GET /metrics/grafana.json"} {
		s.mux.Handle(path, http.StripPrefix("/metrics", s.Query))
	}
	s.http = s.guard(http.HandlerFunc(s.route))
	return s
}

// ServeHTTP implements http.Handler.
func (s *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.ServeHTTP(w, r) }

// queriesPath is where queries of metrics are.
const queriesPath = "/metrics/api/v1/"

// untilClosed is a context that ends when a channel is closed.
type untilClosed struct {
	context.Context
	closed <-chan struct{}
}

// Done implements context.Context.
func (c untilClosed) Done() <-chan struct{} { return c.closed }

// Err implements context.Context.
func (c untilClosed) Err() error {
	select {
	case <-c.closed:
		return context.Canceled
	default:
		return nil
	}
}

// route serves r, or a problem where net/http would answer in plain text.
func (s *API) route(w http.ResponseWriter, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	probe := &headerProbe{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header()["Allow"] = probe.header["Allow"]
		err := hearth.Errorf(hearth.CodeInvalid, "%s is not possible here", r.Method).
			WithHint("possible: %s", probe.header.Get("Allow"))
		s.fail(w, r, withStatus(http.StatusMethodNotAllowed, err))
		return
	}
	s.fail(w, r, hearth.Errorf(hearth.CodeNotFound, "there is nothing at %q", clip(r.URL.Path)).
		WithHint("the documentation of the management API is at /docs"))
}

// headerProbe finds out what net/http would answer.
type headerProbe struct {
	header http.Header
	status int
}

func (p *headerProbe) Header() http.Header         { return p.header }
func (p *headerProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *headerProbe) WriteHeader(status int)      { p.status = status }

// clip shortens a user's value for a message.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
