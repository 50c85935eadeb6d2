package hearth

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Route is "[METHOD ][HOST]/PATH": "GET /hello/{who}", "api.example.com/",
// "POST *.example.com/hooks". Without a method it is any method, without a host
// any host; "*." at the start of a host stands for one label. The path may have
// parameters for one segment ("/users/{id}") and, at its end, for the rest
// ("/files/{path...}"). What is percent-encoded in it means the same as plain.
//
// Of the routes that match a request those of its host come first, then those of
// "*." and its parent, then those without a host. Among them a specific one wins
// over a general one; two of which neither is more specific conflict. The rules
// for methods and paths are those of net/http.ServeMux.
type Route string

const (
	// AllCalls stands for what comes to /fn/{name} where settings go by route.
	AllCalls Route = "/fn"
	// OtherRoutes stands for all routes that are not named, and for AllCalls, in
	// Config.CORS.
	OtherRoutes Route = "*"
)

// Parts returns the method ("" for any), the host ("" for any) and the path.
func (r Route) Parts() (method, host, path string) {
	rest := string(r)
	if m, p, ok := strings.Cut(rest, " "); ok {
		method, rest = m, strings.TrimLeft(p, " ")
	}
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		return method, rest[:i], rest[i:]
	}
	return method, "", rest
}

// ReservedPaths belong to Hearth; a route without a host may not lie at or
// below them. Under the host of a route they are free.
func ReservedPaths() []string {
	return []string{"/fn", "/v1", "/healthz", "/readyz", "/openapi.json", "/openapi.yaml", "/docs", "/schemas", "/metrics", "/ui"}
}

var (
	methodRE = regexp.MustCompile(`^[A-Z]{1,20}$`)
	hostRE   = regexp.MustCompile(`^(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
)

// Validate checks the form of the route, not whether it is free.
// Errors: CodeInvalid.
func (r Route) Validate() error {
	method, host, path := r.Parts()
	bad := func(why string) error {
		return Errorf(CodeInvalid, "route %q is not valid: %s", clip(string(r)), why).
			WithHint("write for example: GET /hello/{who}, /files/{path...} or api.example.com/")
	}
	switch {
	case method != "" && !methodRE.MatchString(method):
		return bad("the method must be in capital letters")
	case method == "CONNECT":
		return bad("the method CONNECT cannot be routed")
	case !strings.HasPrefix(path, "/"):
		return bad("it has no path; a path starts with /")
	case len(r) > 1024:
		return bad("it is longer than 1024 bytes")
	}
	if why := checkHost(host); why != "" {
		return bad(why)
	}
	if why := checkPath(path); why != "" {
		return bad(why)
	}
	path = unescape(path)
	for _, p := range ReservedPaths() {
		if host == "" && (path == p || strings.HasPrefix(path, p+"/")) {
			return bad(p + " belongs to Hearth")
		}
	}
	return nil
}

// checkHost says what is wrong with a route's host, "" if nothing is.
func checkHost(host string) string {
	switch _, err := netip.ParseAddr(host); {
	case host == "":
		return ""
	case err == nil:
		return "its host is an address; a host is a name"
	case len(host) > 253 || !hostRE.MatchString(host):
		return "its host must be a name in small letters without a port, such as api.example.com or *.example.com"
	case host == "localhost" || strings.HasSuffix(host, ".localhost"):
		return "the host " + host + " belongs to Hearth"
	case !strings.Contains(strings.TrimPrefix(host, "*."), "."):
		return "its host " + host + " has no dot; if it is to be a path, it must start with /"
	}
	return ""
}

// checkPath says what is wrong with a route's path, "" if nothing is.
func checkPath(path string) string {
	names := map[string]bool{}
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		plain := unescape(s)
		switch {
		case s == "" && !last, plain == ".", plain == "..":
			return "it has an empty segment, . or .."
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}"):
			name, rest := strings.CutSuffix(s[1:len(s)-1], "...")
			if name == "$" && !rest && last {
				continue
			}
			switch {
			case !envRE.MatchString(name):
				return "a parameter's name must be a word"
			case rest && !last:
				return "{" + name + "...} must be at the end"
			case names[name]:
				return "the parameter " + name + " is given twice"
			}
			names[name] = true
		case strings.ContainsAny(s, "{}"):
			return "a parameter must be a whole segment"
		case strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '?' || c == '#' }):
			return "it contains a space, ?, # or a control character"
		}
	}
	return ""
}

// unescape returns a path as ServeMux and those who look at a request's path compare
// it: percent-decoded, segment by segment; one that is not validly encoded stays.
func unescape(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if plain, err := url.PathUnescape(s); err == nil {
			segments[i] = plain
		}
	}
	return strings.Join(segments, "/")
}

// CORS lets pages of other origins call a route and read its responses (Fetch
// Standard, "CORS protocol"). Hearth answers the preflight requests itself; what
// the function says about CORS is replaced.
type CORS struct {
	// Origins are those that may: "https://app.example.com",
	// "https://*.example.com", or "*" for all.
	Origins []string `json:"origins" yaml:"origins" doc:"Origins whose pages may read responses: https://app.example.com, https://*.example.com, or * for all" example:"[\"https://app.example.com\"]"`
	// Methods are those that pages may use; empty means that of the route or, if it
	// has none, GET, HEAD, POST, PUT, PATCH and DELETE.
	Methods []string `json:"methods,omitempty" yaml:"methods,omitempty" doc:"Methods that pages may use; default is that of the route, or GET, HEAD, POST, PUT, PATCH and DELETE"`
	// Headers are request headers that pages may set; empty means all of them.
	Headers []string `json:"headers,omitempty" yaml:"headers,omitempty" doc:"Request headers that pages may set; default is all"`
	// Expose are response headers that pages may read besides the simple ones.
	Expose []string `json:"expose,omitempty" yaml:"expose,omitempty" doc:"Response headers that pages may read besides the usual ones"`
	// Credentials allows cookies and Authorization. It needs named origins.
	Credentials bool `json:"credentials,omitempty" yaml:"credentials,omitempty" doc:"Whether cookies and Authorization are allowed; needs named origins"`
	// MaxAge is how long browsers may keep the answer to a preflight request; 0
	// leaves it to them (5 seconds).
	MaxAge Duration `json:"max_age,omitempty" yaml:"max_age,omitempty" doc:"How long browsers may keep the answer to a preflight request" example:"10m"`
}

func (c CORS) clone() CORS {
	c.Origins, c.Methods = slices.Clone(c.Origins), slices.Clone(c.Methods)
	c.Headers, c.Expose = slices.Clone(c.Headers), slices.Clone(c.Expose)
	return c
}

var headerRE = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")

// maxList bounds lists in CORS.
const maxList = 100

func (c CORS) validate(r Route) error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, "cors of %q: %s", clip(string(r)), fmt.Sprintf(format, args...)).WithHint("%s", hint)
	}
	const origins = `write for example: origins: ["https://app.example.com"]`
	if len(c.Origins) == 0 {
		return bad(origins, "it has no origins")
	}
	if max(len(c.Origins), len(c.Methods), len(c.Headers), len(c.Expose)) > maxList {
		return bad(fmt.Sprintf("use at most %d of each", maxList), "a list is too long")
	}
	for _, o := range c.Origins {
		if o == "*" && c.Credentials {
			return bad("name the origins, or remove credentials", "credentials cannot be allowed to every origin")
		}
		u, err := url.Parse(strings.Replace(o, "://*.", "://", 1))
		if o != "*" && (err != nil || u.Host == "" || u.Scheme+"://"+u.Host != strings.Replace(o, "://*.", "://", 1) || strings.Contains(u.Host, "*") || o != strings.ToLower(o)) {
			return bad(origins, "the origin %q is not valid: it is a scheme and a host in small letters, without a path", clip(o))
		}
	}
	for _, m := range c.Methods {
		if !methodRE.MatchString(m) || m == "CONNECT" {
			return bad("write for example: methods: [GET, POST]", "the method %q is not valid", clip(m))
		}
	}
	for _, h := range slices.Concat(c.Headers, c.Expose) {
		if !headerRE.MatchString(h) {
			return bad("write for example: headers: [X-Request-Id]", "the header %q is not valid", clip(h))
		}
	}
	if c.MaxAge < 0 || time.Duration(c.MaxAge) > 24*time.Hour {
		return bad("choose at most 24h; browsers keep it for less", "max_age %s is out of range", c.MaxAge)
	}
	return nil
}

// CORSOf returns what Config.CORS has for a route of the function or AllCalls.
func (c Config) CORSOf(r Route) (CORS, bool) {
	cors, ok := c.CORS[r]
	if !ok {
		cors, ok = c.CORS[OtherRoutes]
	}
	return cors, ok
}

func (c Config) validateCORS() error {
	for r, cors := range c.CORS {
		if r != AllCalls && r != OtherRoutes && !slices.Contains(c.Routes, r) {
			return Errorf(CodeInvalid, "cors has the route %q, which the function has not", clip(string(r))).
				WithHint("write it as in routes, /fn for what comes to /fn/{name}, or * for all others")
		}
		if err := cors.validate(r); err != nil {
			return err
		}
	}
	return nil
}

// Limits bound what callers of a function may send, what it may answer, and how
// often it is called. Zero fields mean the server's own limits.
type Limits struct {
	// Request and Response bound bodies in bytes.
	Request  Bytes `json:"request,omitempty" yaml:"request,omitempty" doc:"Greatest size of a request's body; default 32MiB" example:"1MiB"`
	Response Bytes `json:"response,omitempty" yaml:"response,omitempty" doc:"Greatest size of a response's body; default 1GiB" example:"10MiB"`
	// Rate is how often the function may be called over HTTP, by all callers
	// together; more get 429.
	Rate Rate `json:"rate,omitempty" yaml:"rate,omitempty" doc:"How often the function may be called over HTTP, by all callers of an alias together; more get 429" example:"100/s"`
	// Burst is how many calls may come at once after a pause; 0 means what Rate
	// allows in a second, at least 1.
	Burst int `json:"burst,omitempty" yaml:"burst,omitempty" doc:"How many calls may come at once after a pause; default is what rate allows in a second" example:"50"`
}

// Bounds of Limits.
const (
	MaxBody  = 1 << 40
	maxBurst = 1_000_000
)

func (l Limits) validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch {
	case l.Request < 0 || l.Request > MaxBody:
		return bad("choose at most "+Bytes(MaxBody).String(), "limits.request %s is out of range", l.Request)
	case l.Response < 0 || l.Response > MaxBody:
		return bad("choose at most "+Bytes(MaxBody).String(), "limits.response %s is out of range", l.Response)
	case l.Burst < 0 || l.Burst > maxBurst:
		return bad(fmt.Sprintf("choose at most %d", maxBurst), "limits.burst %d is out of range", l.Burst)
	case l.Burst > 0 && l.Rate == 0:
		return bad("set rate too, for example: limits: {rate: 100/s, burst: 50}", "limits.burst without limits.rate limits nothing")
	}
	return nil
}

// Rate is a number of events in a second, written as "100/s", "30/m" or "5/h" in
// JSON and YAML.
type Rate float64

var ratePer = []struct {
	unit    string
	seconds float64
}{{"s", 1}, {"m", 60}, {"h", 3600}}

// String returns the rate as UnmarshalText reads it, in the smallest unit in
// which it is a whole number.
func (r Rate) String() string {
	for _, p := range ratePer {
		if n := float64(r) * p.seconds; math.Abs(n-math.Round(n)) < 1e-9*math.Abs(n) {
			return strconv.FormatFloat(math.Round(n), 'f', -1, 64) + "/" + p.unit
		}
	}
	return strconv.FormatFloat(float64(r), 'g', -1, 64) + "/s"
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: CodeInvalid.
func (r *Rate) UnmarshalText(b []byte) error {
	s := strings.TrimSpace(string(b))
	num, unit, _ := strings.Cut(s, "/")
	n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	for _, p := range ratePer {
		if err == nil && strings.TrimSpace(unit) == p.unit && n > 0 && n <= 1e9 {
			*r = Rate(n / p.seconds)
			return nil
		}
	}
	return Errorf(CodeInvalid, "%q is not a rate", clip(s)).WithHint("write a number above 0 of calls in a second, minute or hour, for example 100/s, 30/m or 5/h")
}
