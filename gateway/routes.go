package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
)

// table is what is deployed, as the gateway needs it. It never changes.
type table struct {
	functions map[string]*hearth.Version
	mux       *http.ServeMux // custom routes
}

// endpoint is what the mux has under a custom route. It is found, not called.
type endpoint struct {
	version *hearth.Version
	route   hearth.Route
}

func (*endpoint) ServeHTTP(http.ResponseWriter, *http.Request) {}

func emptyTable() *table {
	return &table{functions: map[string]*hearth.Version{}, mux: http.NewServeMux()}
}

func newTable(versions []hearth.Version) (*table, error) {
	t := emptyTable()
	for i := range versions {
		v := &versions[i]
		t.functions[v.Function] = v
		for _, r := range v.Config.Routes {
			if err := t.add(r, v); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// add registers a route; the mux's own conflict rules decide.
func (t *table) add(r hearth.Route, v *hearth.Version) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = routeConflict(r, fmt.Sprint(p))
		}
	}()
	t.mux.Handle(string(r), &endpoint{v, r})
	return nil
}

var conflictRE = regexp.MustCompile(`conflicts with pattern "([^"]*)"`)

func routeConflict(r hearth.Route, panicked string) error {
	m := conflictRE.FindStringSubmatch(panicked)
	if m == nil {
		return hearth.Errorf(hearth.CodeInvalid, "route %q is not valid: %s", r, panicked)
	}
	return &conflictError{route: r, with: hearth.Route(m[1])}
}

// conflictError is turned into a hearth.Error by check, which knows the owner.
type conflictError struct{ route, with hearth.Route }

func (e *conflictError) Error() string {
	return fmt.Sprintf("route %q conflicts with %q", e.route, e.with)
}

func (t *table) check(function string, routes []hearth.Route) error {
	trial := emptyTable()
	for name, v := range t.functions {
		if name == function {
			continue
		}
		for _, r := range v.Config.Routes {
			if err := trial.add(r, v); err != nil {
				return err
			}
		}
	}
	own := &hearth.Version{Function: function}
	for _, r := range routes {
		err := trial.add(r, own)
		c, ok := err.(*conflictError) //nolint:errorlint // add returns it bare
		if !ok {
			if err != nil {
				return err
			}
			continue
		}
		owner := function
		for name, v := range t.functions {
			if name != function && slices.Contains(v.Config.Routes, c.with) {
				owner = name
			}
		}
		return hearth.Errorf(hearth.CodeConflict, "route %q conflicts with %q of function %s", c.route, c.with, owner).
			WithHint("change one of them so that they differ, or one is more specific than the other")
	}
	return nil
}

// target is where a request goes.
type target struct {
	version *hearth.Version
	route   hearth.Route // hearth.AllCalls for /fn/{name}
	// path is the path as the function sees it, prefix what was cut off.
	path, prefix string
	routeKey     string
	params       [][2]string
	// redirect answers instead of a function: to the clean form of a path.
	redirect http.Handler
}

// match finds the function for a request.
func (t *table) match(r *http.Request) (target, error) {
	if r.Method == http.MethodConnect {
		// A 2xx answer to it would have no body and begin a tunnel.
		return target{}, hearth.Errorf(hearth.CodeInvalid, "the method CONNECT cannot be used: Hearth is no proxy").
			WithHint("send the request to the function's URL with another method")
	}
	escaped := r.URL.EscapedPath()
	if rest, ok := strings.CutPrefix(escaped, "/fn/"); ok {
		name, _, _ := strings.Cut(rest, "/")
		v := t.functions[name]
		if v == nil {
			return target{}, noFunction(name)
		}
		path := rest[len(name):]
		if path == "" {
			path = "/"
		}
		return target{version: v, route: hearth.AllCalls, path: path, prefix: "/fn/" + name, routeKey: "$default"}, nil
	}
	h, pattern := t.mux.Handler(r)
	e, ok := h.(*endpoint)
	if !ok && pattern != "" {
		return target{redirect: h}, nil
	}
	if !ok {
		err := hearth.Errorf(hearth.CodeNotFound, "no function has the route %s %s", r.Method, r.URL.Path)
		if methods := allowed(h, r); methods != "" {
			return target{}, err.WithHint("this path answers to %s", methods)
		}
		return target{}, err.WithHint("functions answer at /fn/NAME/ and at their routes; hearth list shows them, and /docs describes the management API")
	}
	return target{version: e.version, route: e.route, path: escaped, routeKey: routeKey(e.route), params: pathParams(e.route, escaped)}, nil
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
	method, path := r.Parts()
	if method == "" {
		method = "ANY"
	}
	return method + " " + path
}

// pathParams returns the values of the route's parameters in a path that it
// matches, percent-decoded.
func pathParams(r hearth.Route, escaped string) [][2]string {
	_, pattern := r.Parts()
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
