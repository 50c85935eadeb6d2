package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/rs/cors"
	"golang.org/x/time/rate"

	"github.com/hearthrun/hearth"
)

// table is what is deployed, as the gateway needs it. It never changes.
type table struct {
	functions map[string]*function
	// anyHost has the routes without a host, hosts those with one, by the host.
	anyHost *http.ServeMux
	hosts   map[string]*http.ServeMux
	routes  []ownedRoute
	// queues are the functions that take the messages of queues, by the queues' names,
	// takers those versions of live that do so; none if the function cannot be served.
	queues map[string]string
	takers map[string]*alias
	// incarnations are those of all versions in it.
	incarnations map[string]struct{}
}

// ownedRoute is a route and whose it is.
type ownedRoute struct {
	function, alias string
	route           hearth.Route
}

// owner says whose the route is.
func (o ownedRoute) owner() string {
	if o.alias == hearth.Live {
		return "function " + o.function
	}
	return "alias " + o.alias + " of function " + o.function
}

// endpoint is what a mux has under a route. It is found, not called.
type endpoint struct {
	alias *alias
	err   error // why its function cannot be served
	route hearth.Route
	key   string
	cors  *cors.Cors // nil if none is configured
}

func (*endpoint) ServeHTTP(http.ResponseWriter, *http.Request) {}

func emptyTable() *table {
	return &table{
		functions: map[string]*function{}, anyHost: http.NewServeMux(), hosts: map[string]*http.ServeMux{},
		queues: map[string]string{}, takers: map[string]*alias{}, incarnations: map[string]struct{}{},
	}
}

// newTable makes a table of what is deployed; old is the one before. A function that
// cannot be served is in it with the reason.
func newTable(deployed []hearth.Deployment, old *table) *table {
	t := emptyTable()
	var broken []*hearth.Deployment
	for i := range deployed {
		d := &deployed[i]
		f, err := newFunction(d, old.functions[d.Function])
		t.functions[d.Function] = f
		if err != nil {
			f.err = cannotServe(d.Function, err)
			broken = append(broken, d)
			continue
		}
		var made []*endpoint
		for name, a := range f.all() {
			for _, r := range a.routes {
				e := &endpoint{alias: a, route: r, key: routeKey(r), cors: newCORS(a.main().Config, r)}
				if addErr := t.add(ownedRoute{d.Function, name, r}, e); addErr != nil {
					err = addErr
				}
				made = append(made, e)
			}
		}
		if err != nil {
			f.err = cannotServe(d.Function, err)
			for _, e := range made {
				e.err = f.err
			}
			t.ownQueues(d)
			continue
		}
		for _, s := range f.live.portions {
			for queue := range s.version.Config.Queues {
				if t.queues[queue] == "" { // else it was refused, and is that of the first
					t.queues[queue], t.takers[queue] = d.Function, f.live.taking(queue)
				}
			}
		}
		for _, a := range f.all() {
			for _, s := range a.portions {
				t.incarnations[s.version.Incarnation] = struct{}{}
			}
		}
	}
	for _, d := range broken { // none of their routes stands in the way of others
		t.addBroken(d, t.functions[d.Function].err)
	}
	return t
}

// addBroken registers what is known of the routes of a function that cannot be served,
// so that they are answered with the reason, and its queues, so that no other gets them.
func (t *table) addBroken(d *hearth.Deployment, why error) {
	t.ownQueues(d)
	for _, a := range d.Aliases {
		routes := a.Routes
		if v := d.Versions[a.Main()]; a.Name == hearth.Live && v != nil {
			routes = v.Config.Routes
		}
		for _, r := range routes {
			_ = t.add(ownedRoute{d.Function, a.Name, r}, &endpoint{err: why}) // another has it
		}
	}
}

// ownQueues notes the queues of a function that cannot be served as its own.
func (t *table) ownQueues(d *hearth.Deployment) {
	for _, a := range d.Aliases {
		for n := range a.Versions {
			if v := d.Versions[n]; a.Name == hearth.Live && v != nil {
				for queue := range v.Config.Queues {
					t.queues[queue] = cmp.Or(t.queues[queue], d.Function)
				}
			}
		}
	}
}

// mux returns the mux of a route's host, made if there is none, and the route as
// that mux knows it.
func (t *table) mux(r hearth.Route) (*http.ServeMux, string) {
	method, host, path := r.Parts()
	pattern := strings.TrimPrefix(method+" "+path, " ")
	if host == "" {
		return t.anyHost, pattern
	}
	if t.hosts[host] == nil {
		t.hosts[host] = http.NewServeMux()
	}
	return t.hosts[host], pattern
}

// add registers a route; the mux's own conflict rules decide. Errors:
// CodeConflict naming the owner of the other route.
func (t *table) add(o ownedRoute, e *endpoint) (err error) {
	mux, pattern := t.mux(o.route)
	defer func() {
		if p := recover(); p != nil {
			err = t.conflict(o, fmt.Sprint(p))
		}
	}()
	mux.Handle(pattern, e)
	t.routes = append(t.routes, o)
	return nil
}

var conflictRE = regexp.MustCompile(`conflicts with pattern "([^"]*)"`)

func (t *table) conflict(o ownedRoute, panicked string) error {
	m := conflictRE.FindStringSubmatch(panicked)
	if m == nil {
		return hearth.Errorf(hearth.CodeInvalid, "route %q is not valid: %s", o.route, panicked)
	}
	_, host, _ := o.route.Parts()
	for _, other := range t.routes {
		method, h, path := other.route.Parts()
		if h == host && strings.TrimPrefix(method+" "+path, " ") == m[1] {
			return hearth.Errorf(hearth.CodeConflict, "route %q conflicts with %q of %s", o.route, other.route, other.owner()).
				WithHint("change one of them so that they differ, or one is more specific than the other")
		}
	}
	return hearth.Errorf(hearth.CodeConflict, "route %q conflicts with %q", o.route, m[1])
}

// check tells whether an alias could have these routes in place of its own.
func (t *table) check(function, alias string, routes []hearth.Route) error {
	hosts := map[string]bool{}
	for _, r := range routes {
		_, host, _ := r.Parts()
		hosts[host] = true
	}
	trial := emptyTable()
	for _, o := range t.routes {
		if _, host, _ := o.route.Parts(); !hosts[host] || o.function == function && o.alias == alias {
			continue
		}
		if err := trial.add(o, &endpoint{}); err != nil {
			return err
		}
	}
	for _, r := range routes {
		if err := trial.add(ownedRoute{function, alias, r}, &endpoint{}); err != nil {
			return err
		}
	}
	return nil
}

// ownsHost tells whether a request's host is that of a route.
func (g *Gateway) ownsHost(t *table, host string) bool {
	exact, wild := g.muxes(t, host)
	return exact != nil || wild != nil
}

// muxes returns the routes of a request's host and of "*." and its parent; nil if
// there are none.
func (g *Gateway) muxes(t *table, host string) (exact, wild *http.ServeMux) {
	if len(t.hosts) == 0 || g.cfg.Managed != nil && g.cfg.Managed(host) {
		return nil, nil
	}
	host = hostName(host)
	exact = t.hosts[host]
	if _, parent, ok := strings.Cut(host, "."); ok {
		wild = t.hosts["*."+parent]
	}
	return exact, wild
}

// hostName returns the host of a Host header as routes write it.
func hostName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// target is where a request goes.
type target struct {
	name    hearth.Target
	alias   *alias // nil for a version that was named
	version *hearth.Version
	route   hearth.Route  // hearth.AllCalls for /fn/{name}
	cors    *cors.Cors    // nil if none is configured
	limit   *rate.Limiter // of calls; nil if there is none
	// path is the path as the function sees it, prefix what was cut off.
	path, prefix string
	routeKey     string
	params       [][2]string
	// preflight is true for a CORS preflight request, which cors answers.
	preflight bool
	// redirect answers instead of a function: to the clean form of a path.
	redirect http.Handler
}

// httpRoute returns the path of the route, "" below /fn.
func (t *target) httpRoute() string {
	_, path, _ := strings.Cut(t.routeKey, " ")
	return path
}

// match finds the function for a request. If it names a version that is in no
// alias, the target has neither alias nor version.
func (g *Gateway) match(r *http.Request) (target, error) {
	t := g.table.Load()
	if r.Method == http.MethodConnect {
		// A 2xx answer to it would have no body and begin a tunnel.
		return target{}, hearth.Errorf(hearth.CodeInvalid, "the method CONNECT cannot be used: Hearth is no proxy").
			WithHint("send the request to the function's URL with another method")
	}
	exact, wild := g.muxes(t, r.Host)
	escaped := r.URL.EscapedPath()
	if rest, ok := strings.CutPrefix(escaped, "/fn/"); ok && exact == nil && wild == nil {
		return g.matchCall(r.Context(), t, r, rest)
	}
	wanted := preflightFor(r)
	if wanted != "" {
		asked := *r
		asked.Method = wanted
		for _, mux := range []*http.ServeMux{exact, wild, t.anyHost} {
			e := find(mux, &asked)
			if e == nil {
				continue
			}
			if e.cors != nil {
				return target{cors: e.cors, preflight: true}, nil
			}
			break
		}
	}
	methods := ""
	for _, mux := range []*http.ServeMux{exact, wild, t.anyHost} {
		if mux == nil {
			continue
		}
		h, pattern := mux.Handler(r)
		if e, ok := h.(*endpoint); ok {
			if e.err != nil {
				return target{}, e.err
			}
			answers := e.cors
			if wanted != "" {
				answers = nil // it would answer for another method than the one asked about
			}
			return target{name: e.alias.name, alias: e.alias, limit: e.alias.limit, route: e.route, cors: answers, path: escaped, routeKey: e.key, params: pathParams(e.route, escaped)}, nil
		}
		if pattern != "" {
			return target{redirect: h}, nil
		}
		methods = cmp.Or(methods, allowed(h, r))
	}
	err := hearth.Errorf(hearth.CodeNotFound, "no function has the route %s %s", r.Method, r.URL.Path)
	if methods != "" {
		return target{}, err.WithHint("this path answers to %s", methods)
	}
	return target{}, err.WithHint("functions answer at /fn/NAME/ and at their routes; hearth list shows them, and /docs describes the management API")
}

// find returns the endpoint of a request in mux, nil if there is none.
func find(mux *http.ServeMux, r *http.Request) *endpoint {
	if mux == nil {
		return nil
	}
	h, _ := mux.Handler(r)
	e, _ := h.(*endpoint)
	return e
}

// matchCall finds the target of /fn/{target}/….
func (g *Gateway) matchCall(ctx context.Context, t *table, r *http.Request, rest string) (target, error) {
	name, _, _ := strings.Cut(rest, "/")
	path := rest[len(name):]
	if path == "" {
		path = "/"
	}
	a, v, err := g.resolve(ctx, t, hearth.Target(name))
	if err != nil {
		return target{}, err
	}
	to := target{name: hearth.Target(name), alias: a, version: v, route: hearth.AllCalls, path: path, prefix: "/fn/" + name, routeKey: "$default"}
	if a != nil {
		to.cors = a.cors
		to.limit = a.limit
	} else {
		to.cors = newCORS(v.Config, hearth.AllCalls)
		to.limit = t.functions[v.Function].numbered.of(v, time.Now())
	}
	to.preflight = to.cors != nil && preflightFor(r) != ""
	return to, nil
}

// allowed returns the methods that the mux's own answer names, "" if it names
// none.
func allowed(h http.Handler, r *http.Request) string {
	w := headerOnly{}
	h.ServeHTTP(w, r)
	return w.Header().Get("Allow")
}

// headerOnly is a response of which only the header counts.
type headerOnly http.Header

func (w headerOnly) Header() http.Header         { return http.Header(w) }
func (w headerOnly) Write(p []byte) (int, error) { return len(p), nil }
func (w headerOnly) WriteHeader(int)             {}

func routeKey(r hearth.Route) string {
	method, _, path := r.Parts()
	if method == "" {
		method = "ANY"
	}
	return method + " " + path
}

// pathParams returns the values of the route's parameters in a path that it
// matches, percent-decoded.
func pathParams(r hearth.Route, escaped string) [][2]string {
	_, _, pattern := r.Parts()
	if !strings.Contains(pattern, "{") {
		return nil
	}
	var params [][2]string
	for pattern != "" {
		pattern, escaped = strings.TrimPrefix(pattern, "/"), strings.TrimPrefix(escaped, "/")
		segment, restPattern, _ := strings.Cut(pattern, "/")
		value, restPath, _ := strings.Cut(escaped, "/")
		if name, ok := strings.CutPrefix(segment, "{"); ok && name != "$}" {
			name = strings.TrimSuffix(name, "}")
			if n, rest := strings.CutSuffix(name, "..."); rest {
				name, value, restPath = n, escaped, ""
			}
			if plain, err := url.PathUnescape(value); err == nil {
				value = plain
			}
			params = append(params, [2]string{name, value})
		}
		pattern, escaped = restPattern, restPath
	}
	return params
}
