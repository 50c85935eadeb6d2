package hearth

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what a user configures of a function: the keys of hearth.yaml
// (without name) and the fields of the management API.
type Config struct {
	// Runtime is the language environment. "python" and "nodejs" take the
	// newest one the driver has; "python3.11" pins it.
	Runtime string `json:"runtime" yaml:"runtime" doc:"Language environment: python, nodejs or a pinned one such as python3.11" example:"python"`
	// Handler is FILE.FUNCTION: "main.handler" is handler in main.py or main.mjs.
	Handler string `json:"handler,omitempty" yaml:"handler,omitempty" doc:"FILE.FUNCTION that answers calls" example:"main.handler"`
	// Isolation is the name of the driver.
	Isolation string `json:"isolation,omitempty" yaml:"isolation,omitempty" doc:"Isolation technology that runs the function" example:"native"`
	// Timeout is the one deadline of a call, from its arrival to the end of its
	// response: queue, start, init and run together.
	Timeout Duration `json:"timeout,omitempty" yaml:"timeout,omitempty" doc:"Deadline of a call from its arrival to the end of its response" example:"30s"`
	// Memory limits one instance, without swap.
	Memory Bytes `json:"memory,omitempty" yaml:"memory,omitempty" doc:"Memory limit of one instance" example:"128MiB"`
	// CPU limits one instance, in cores.
	CPU float64 `json:"cpu,omitempty" yaml:"cpu,omitempty" doc:"CPU limit of one instance in cores" example:"1"`
	// Concurrency is the greatest number of calls of the function that run at
	// the same time; each runs in an instance of its own. More calls wait.
	Concurrency int `json:"concurrency,omitempty" yaml:"concurrency,omitempty" doc:"Greatest number of calls that run at the same time" example:"16"`
	// InstanceConcurrency is the greatest number of calls that one instance runs
	// at the same time. Above 1 it needs a handler that is async; others take one.
	InstanceConcurrency int `json:"instance_concurrency,omitempty" yaml:"instance_concurrency,omitempty" doc:"Greatest number of calls that one instance of an async handler runs at the same time" example:"1"`
	// Warm is what is kept ready ahead of calls.
	Warm Warm `json:"warm,omitzero" yaml:"warm,omitempty" doc:"What is kept ready ahead of calls"`
	// Cache keeps responses to GET requests; nil keeps none.
	Cache *Cache `json:"cache,omitempty" yaml:"cache,omitempty" doc:"Keeps responses to GET requests and answers with them"`
	// CORS lets pages of other origins read responses, by route: one of Routes,
	// "/fn" for what comes to /fn/{name}, or "*" for all others.
	CORS map[Route]CORS `json:"cors,omitempty" yaml:"cors,omitempty" doc:"Which pages of other origins may read responses, by route; /fn stands for /fn/{name}, * for all routes that are not named"`
	// Limits bound what callers may send and how often.
	Limits Limits `json:"limits,omitzero" yaml:"limits,omitempty" doc:"Bounds of requests and responses"`
	// Websocket bounds the WebSockets of a handler that takes them; nil means the
	// defaults.
	Websocket *Websocket `json:"websocket,omitempty" yaml:"websocket,omitempty" doc:"Limits of the WebSockets of a handler that takes them"`
	// Async is how calls that run later are treated; nil means the defaults.
	Async *Async `json:"async,omitempty" yaml:"async,omitempty" doc:"How asynchronous calls are retried, and what is told of their end"`
	// CloudEvents makes requests that carry CloudEvents calls with these events.
	CloudEvents bool `json:"cloudevents,omitempty" yaml:"cloudevents,omitempty" doc:"Pass CloudEvents that come over HTTP as the event, rather than the HTTP request"`
	// Schedules call the function by themselves, by their names.
	Schedules map[string]Schedule `json:"schedules,omitempty" yaml:"schedules,omitempty" doc:"When the function is called by itself, by the name of the schedule"`
	// Queues call the function with the messages of queues, by their names.
	Queues map[string]QueueTrigger `json:"queues,omitempty" yaml:"queues,omitempty" doc:"Queues whose messages the function gets in batches, by name"`
	// Egress is what the function may connect to; empty means internet where
	// the driver can enforce that, else none.
	Egress Egress `json:"egress,omitempty" yaml:"egress,omitempty" doc:"What the function may connect to: internet or none" example:"internet"`
	// Env are environment variables.
	Env map[string]string `json:"env,omitempty" yaml:"env,omitempty" doc:"Environment variables"`
	// Secrets are environment variables whose values are secrets, by name.
	Secrets map[string]string `json:"secrets,omitempty" yaml:"secrets,omitempty" doc:"Environment variables that get the value of a secret, with the secret's name" example:"{\"DB_PASSWORD\":\"db-password\"}"`
	// SecretFiles are files below $HEARTH_SECRETS that hold secrets, by name.
	SecretFiles map[string]string `json:"secret_files,omitempty" yaml:"secret_files,omitempty" doc:"Files below $HEARTH_SECRETS that hold the value of a secret, with the secret's name" example:"{\"tls.pem\":\"tls-key\"}"`
	// Labels are for the user's own bookkeeping.
	Labels map[string]string `json:"labels,omitempty" yaml:"labels,omitempty" doc:"Labels for your own bookkeeping"`
	// Routes are served besides /fn/{name}.
	Routes []Route `json:"routes,omitempty" yaml:"routes,omitempty" doc:"HTTP routes besides /fn/{name}: [METHOD ][HOST]/PATH, such as GET /hello/{who} or api.example.com/"`
}

// Warm is what is kept ready ahead of calls.
type Warm struct {
	// Min is how many instances there are at least.
	Min int `json:"min,omitempty" yaml:"min,omitempty" doc:"How many instances are kept ready at least" example:"1"`
	// Schedule is a cron expression: Min holds in the minutes it matches only, by the
	// server's clock unless it names a zone. Empty means always.
	Schedule string `json:"schedule,omitempty" yaml:"schedule,omitempty" doc:"Cron expression of the minutes in which min holds, optionally after CRON_TZ=ZONE; always if empty" example:"* 8-18 * * MON-FRI"`
	// Call is an event that each instance started ahead of calls gets once,
	// before it is used; nil sends none.
	Call any `json:"call,omitempty" yaml:"call,omitempty" doc:"Event that the handler gets once in each instance that is started ahead of calls"`
}

// Minutes returns what Schedule means, nil if it is empty. Errors: CodeInvalid.
func (w Warm) Minutes() (*Cron, error) {
	if w.Schedule == "" {
		return nil, nil
	}
	c, err := ParseCron(w.Schedule, time.Local)
	if err == nil && c.Every > 0 {
		err = Errorf(CodeInvalid, "@every matches no minutes").WithHint("%s", fiveHint)
	}
	if err != nil {
		return nil, Errorf(CodeInvalid, "warm.schedule: %s", AsError(err).Message).WithHint("%s", AsError(err).Hint)
	}
	return &c, nil
}

// Cache is how responses to GET and HEAD requests are kept (RFC 9111).
type Cache struct {
	// TTL is how long responses without a Cache-Control of their own are kept, by
	// route: one of Config.Routes, or "/fn" for what comes to /fn/{name}.
	TTL map[Route]Duration `json:"ttl,omitempty" yaml:"ttl,omitempty" doc:"How long responses without a Cache-Control header are kept, by route; /fn stands for /fn/{name}"`
	// Authorized also keeps responses to requests with an Authorization or Cookie
	// header, for whoever sends the same ones.
	Authorized bool `json:"authorized,omitempty" yaml:"authorized,omitempty" doc:"Keep responses to requests with Authorization or Cookie too, for whoever sends the same ones"`
}

// Websocket bounds WebSockets once they are accepted; until then Config.Timeout
// does. Zero values mean the defaults.
type Websocket struct {
	// IdleTimeout is how long no message may pass in either direction.
	IdleTimeout Duration `json:"idle_timeout,omitempty" yaml:"idle_timeout,omitempty" doc:"How long no message may pass in either direction before the connection is closed" example:"10m"`
	// MaxDuration is how long one may be open.
	MaxDuration Duration `json:"max_duration,omitempty" yaml:"max_duration,omitempty" doc:"How long a connection may be open" example:"2h"`
	// MaxMessage bounds a message in either direction.
	MaxMessage Bytes `json:"max_message,omitempty" yaml:"max_message,omitempty" doc:"Greatest size of a message in either direction" example:"1MiB"`
}

// WithDefaults returns w, which may be nil, with every empty field set.
func (w *Websocket) WithDefaults() Websocket {
	var out Websocket
	if w != nil {
		out = *w
	}
	if out.IdleTimeout == 0 {
		out.IdleTimeout = Duration(DefaultSocketIdle)
	}
	if out.MaxDuration == 0 {
		out.MaxDuration = Duration(DefaultSocketDuration)
	}
	if out.MaxMessage == 0 {
		out.MaxMessage = DefaultMessage
	}
	return out
}

func (w Websocket) validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch {
	case w.IdleTimeout < Duration(time.Second) || time.Duration(w.IdleTimeout) > MaxSocketDuration:
		return bad("choose between 1s and "+Duration(MaxSocketDuration).String(), "websocket.idle_timeout %s is out of range", w.IdleTimeout)
	case w.MaxDuration < Duration(time.Second) || time.Duration(w.MaxDuration) > MaxSocketDuration:
		return bad("choose between 1s and "+Duration(MaxSocketDuration).String(), "websocket.max_duration %s is out of range", w.MaxDuration)
	case w.MaxMessage < 1 || w.MaxMessage > MaxMessage:
		return bad("choose at most "+Bytes(MaxMessage).String(), "websocket.max_message %s is out of range", w.MaxMessage)
	}
	return nil
}

// Egress is what a function may connect to.
type Egress string

const (
	// EgressInternet allows public addresses only: no loopback, address of the
	// host, private range or metadata address.
	EgressInternet Egress = "internet"
	// EgressNone allows no connection at all.
	EgressNone Egress = "none"
)

// Defaults and limits of Config.
const (
	DefaultHandler     = "main.handler"
	DefaultIsolation   = "native"
	DefaultTimeout     = 30 * time.Second
	MaxTimeout         = time.Hour
	DefaultMemory      = 128 << 20
	MinMemory          = 32 << 20
	MaxMemory          = 1 << 40
	DefaultCPU         = 1.0
	MinCPU             = 0.05
	MaxCPU             = 256
	DefaultConcurrency = 16
	MaxConcurrency     = 10_000
	MaxCacheTTL        = 365 * 24 * time.Hour
	// Of Websocket.
	DefaultSocketIdle     = 10 * time.Minute
	DefaultSocketDuration = 2 * time.Hour
	MaxSocketDuration     = 24 * time.Hour
	DefaultMessage        = 1 << 20
	MaxMessage            = 64 << 20
	maxCall               = 64 << 10
	maxEnv                = 64 << 10
	maxLabels             = 64
	maxRoutes             = 100
)

// WithDefaults returns c with every empty field but Runtime and Egress set.
func (c Config) WithDefaults() Config {
	if c.Handler == "" {
		c.Handler = DefaultHandler
	}
	if c.Isolation == "" {
		c.Isolation = DefaultIsolation
	}
	if c.Timeout == 0 {
		c.Timeout = Duration(DefaultTimeout)
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPU == 0 {
		c.CPU = DefaultCPU
	}
	if c.Concurrency == 0 {
		c.Concurrency = DefaultConcurrency
	}
	if c.InstanceConcurrency == 0 {
		c.InstanceConcurrency = 1
	}
	if c.Websocket != nil {
		w := c.Websocket.WithDefaults()
		c.Websocket = &w
	}
	if c.Async != nil {
		a := c.Async.WithDefaults()
		c.Async = &a
	}
	return c
}

// AsyncOrDefault returns Async with its defaults filled in.
func (c Config) AsyncOrDefault() Async {
	if c.Async == nil {
		return Async{}.WithDefaults()
	}
	return c.Async.WithDefaults()
}

// Clone returns a copy that shares nothing with c.
func (c Config) Clone() Config {
	c.Env, c.Labels = maps.Clone(c.Env), maps.Clone(c.Labels)
	c.Secrets, c.SecretFiles = maps.Clone(c.Secrets), maps.Clone(c.SecretFiles)
	c.Routes = append([]Route(nil), c.Routes...)
	if c.Cache != nil {
		c.Cache = &Cache{TTL: maps.Clone(c.Cache.TTL), Authorized: c.Cache.Authorized}
	}
	if c.Websocket != nil {
		w := *c.Websocket
		c.Websocket = &w
	}
	c.Schedules = maps.Clone(c.Schedules)
	c.Queues = maps.Clone(c.Queues)
	c.CORS = maps.Clone(c.CORS)
	for r, cors := range c.CORS {
		c.CORS[r] = cors.clone()
	}
	if c.Async != nil {
		a := *c.Async
		a.OnSuccess, a.OnFailure = slices.Clone(a.OnSuccess), slices.Clone(a.OnFailure)
		c.Async = &a
	}
	return c
}

// MaxInstances is how many instances of the function there can be, at least 1.
func (c Config) MaxInstances() int {
	per := max(1, c.InstanceConcurrency)
	return max(1, (c.Concurrency+per-1)/per)
}

var (
	nameRE    = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	runtimeRE = regexp.MustCompile(`^[a-z]+[0-9]*(\.[0-9]+)*$`)
	handlerRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_/.-]*\.[A-Za-z_$][A-Za-z0-9_$]*$`)
	envRE     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	driverRE  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
)

// ValidateName checks a function's name: lower-case letters, digits and
// hyphens, at most 63, starting with a letter, so that it can be a host label.
// Errors: CodeInvalid.
func ValidateName(name string) error {
	if name == "" {
		return Errorf(CodeInvalid, "the function has no name").WithHint("give it one, for example: name: hello")
	}
	if !nameRE.MatchString(name) {
		return Errorf(CodeInvalid, "function name %q is not valid", clip(name)).
			WithHint("use at most 63 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen")
	}
	return nil
}

// Validate checks everything that needs no knowledge of the host. It expects
// the defaults to be filled in. Errors: CodeInvalid.
func (c Config) Validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch {
	case c.Runtime == "":
		return bad("set runtime, for example: runtime: python", "the function has no runtime")
	case !runtimeRE.MatchString(c.Runtime):
		return bad("examples: python, python3.11, nodejs, nodejs20", "runtime %q is not valid", clip(c.Runtime))
	case !handlerRE.MatchString(c.Handler) || strings.Contains(c.Handler, ".."):
		return bad("write FILE.FUNCTION without the file's ending, for example: handler: main.handler", "handler %q is not valid", clip(c.Handler))
	case !driverRE.MatchString(c.Isolation):
		return bad("hearth doctor lists the drivers", "isolation %q is not valid", clip(c.Isolation))
	case c.Timeout <= 0:
		return bad("write for example: timeout: 30s", "timeout %s is not positive", c.Timeout)
	case time.Duration(c.Timeout) > MaxTimeout:
		return bad("the longest is "+Duration(MaxTimeout).String(), "timeout %s is too long", c.Timeout)
	case c.Memory < MinMemory || c.Memory > MaxMemory:
		return bad(fmt.Sprintf("choose between %s and %s", Bytes(MinMemory), Bytes(MaxMemory)), "memory %s is out of range", c.Memory)
	case math.IsNaN(c.CPU) || c.CPU < MinCPU || c.CPU > MaxCPU:
		return bad(fmt.Sprintf("choose between %v and %v cores", MinCPU, MaxCPU), "cpu %v is out of range", c.CPU)
	case c.Concurrency < 1 || c.Concurrency > MaxConcurrency:
		return bad(fmt.Sprintf("choose between 1 and %d", MaxConcurrency), "concurrency %d is out of range", c.Concurrency)
	case c.InstanceConcurrency < 1 || c.InstanceConcurrency > c.Concurrency:
		return bad(fmt.Sprintf("choose between 1 and the function's concurrency, %d", c.Concurrency), "instance_concurrency %d is out of range", c.InstanceConcurrency)
	case c.Warm.Min < 0 || c.Warm.Min > c.MaxInstances():
		return bad(fmt.Sprintf("with its concurrency the function has %d instances at most", c.MaxInstances()), "warm.min %d is out of range", c.Warm.Min)
	case c.Warm.Schedule != "" && c.Warm.Min == 0:
		return bad("set min too, for example: warm: {min: 1, schedule: '* 8-18 * * MON-FRI'}", "warm.schedule without warm.min keeps nothing ready")
	case len(c.Warm.Schedule) > 256:
		return bad("examples: '* 8-18 * * MON-FRI', 'CRON_TZ=Europe/Berlin 50-59 6 * * *'", "warm.schedule is longer than 256 bytes")
	case c.Egress != "" && c.Egress != EgressInternet && c.Egress != EgressNone:
		return bad("choose internet or none", "egress %q is not valid", clip(string(c.Egress)))
	case len(c.Labels) > maxLabels:
		return bad(fmt.Sprintf("use at most %d", maxLabels), "%d labels are too many", len(c.Labels))
	case len(c.Routes) > maxRoutes:
		return bad(fmt.Sprintf("use at most %d", maxRoutes), "%d routes are too many", len(c.Routes))
	}
	if _, err := c.Warm.Minutes(); err != nil {
		return err
	}
	if call, err := json.Marshal(c.Warm.Call); err != nil || len(call) > maxCall {
		return bad("give a JSON value of at most "+Bytes(maxCall).String(), "warm.call is not valid")
	}
	if err := cmp.Or(c.validateCache(), c.validateCORS(), c.validateSchedules(), c.validateQueues(), c.Limits.validate()); err != nil {
		return err
	}
	if err := c.Websocket.WithDefaults().validate(); err != nil {
		return err
	}
	if c.Async != nil {
		if err := c.Async.WithDefaults().validate(); err != nil {
			return err
		}
	}
	if err := cmp.Or(validateEnv(c.Env), c.validateSecrets()); err != nil {
		return err
	}
	for k, v := range c.Labels {
		if k == "" || len(k) > 63 || len(v) > 255 {
			return bad("keys have 1 to 63 bytes, values at most 255", "label %q is not valid", clip(k))
		}
	}
	seen := map[Route]bool{}
	for _, r := range c.Routes {
		if err := r.Validate(); err != nil {
			return err
		}
		if seen[r] {
			return bad("remove one of them", "route %q is given twice", r)
		}
		seen[r] = true
	}
	return nil
}

// validateEnv checks environment variables. Errors: CodeInvalid.
func validateEnv(env map[string]string) error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	size := 0
	for k, v := range env {
		size += len(k) + len(v)
		switch {
		case !envRE.MatchString(k):
			return bad("use letters, digits and underscores", "environment variable name %q is not valid", clip(k))
		case strings.ContainsRune(v, 0):
			return bad("remove the NUL byte", "environment variable %s contains a NUL byte", k)
		case strings.HasPrefix(k, "HEARTH_"):
			return bad("names that start with HEARTH_ belong to the platform", "environment variable name %s is reserved", k)
		}
	}
	if size > maxEnv {
		return bad(fmt.Sprintf("the limit is %s for names and values together; put large data into files", Bytes(maxEnv)), "the environment has %s", Bytes(size))
	}
	return nil
}

func (c Config) validateCache() error {
	if c.Cache == nil {
		return nil
	}
	for r, ttl := range c.Cache.TTL {
		if r != AllCalls && !slices.Contains(c.Routes, r) {
			return Errorf(CodeInvalid, "cache.ttl has the route %q, which the function has not", clip(string(r))).
				WithHint("write it as in routes, or /fn for what comes to /fn/{name}")
		}
		if m, _, _ := r.Parts(); m != "" && m != "GET" && m != "HEAD" {
			return Errorf(CodeInvalid, "cache.ttl has the route %q, whose responses are never kept", clip(string(r))).
				WithHint("only responses to GET and HEAD requests are")
		}
		if ttl < 0 || time.Duration(ttl) > MaxCacheTTL {
			return Errorf(CodeInvalid, "cache.ttl %s of %q is out of range", ttl, clip(string(r))).
				WithHint("the longest is %s", Duration(MaxCacheTTL))
		}
	}
	return nil
}

// Duration is a time.Duration written as "30s" or "1m30s" in JSON and YAML; a
// bare number means seconds.
type Duration time.Duration

// String returns the duration as UnmarshalText reads it.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: CodeInvalid.
func (d *Duration) UnmarshalText(b []byte) error {
	s := strings.TrimSpace(string(b))
	if n, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(n) < 1e9 {
		*d = Duration(n * float64(time.Second))
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return Errorf(CodeInvalid, "%q is not a duration", clip(s)).WithHint("durations need a unit: 500ms, 30s, 2m or 24h")
	}
	*d = Duration(v)
	return nil
}

// Bytes is a size written as "128MiB" in JSON and YAML. KiB, MiB, GiB and TiB
// are powers of 1024, KB, MB, GB and TB of 1000.
type Bytes int64

var units = []struct {
	name string
	size int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
}

// String returns the size in the largest binary unit that divides it.
func (b Bytes) String() string {
	for _, u := range units[:4] {
		if b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: CodeInvalid.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	for _, u := range units {
		if num, ok := strings.CutSuffix(s, u.name); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
			if err != nil || math.IsNaN(n) || n < 0 || n*float64(u.size) > math.MaxInt64/2 {
				break
			}
			*b = Bytes(n * float64(u.size))
			return nil
		}
	}
	return Errorf(CodeInvalid, "%q is not a size", clip(s)).WithHint("write a number and a unit, for example 128MiB or 1GiB")
}

// clip shortens a user's value for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
