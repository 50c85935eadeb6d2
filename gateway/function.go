package gateway

import (
	"context"
	"crypto/sha256"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/rs/cors"
	"golang.org/x/time/rate"

	"github.com/hearthrun/hearth"
)

// function is a function in the table.
type function struct {
	generation int64
	err        error // why it cannot be served; then it has no aliases
	live       *alias
	others     map[string]*alias // the other aliases; nil if there are none
	// numbered bounds the calls of versions by their numbers. It is the same as long
	// as there is the function.
	numbered *limiters
}

// alias returns the alias with the name, nil if f is nil or has none.
func (f *function) alias(name string) *alias {
	switch {
	case f == nil:
		return nil
	case name == hearth.Live:
		return f.live
	}
	return f.others[name]
}

// all returns the aliases with their names.
func (f *function) all() iter.Seq2[string, *alias] {
	return func(yield func(string, *alias) bool) {
		if f.err != nil || !yield(hearth.Live, f.live) {
			return
		}
		for name, a := range f.others {
			if !yield(name, a) {
				return
			}
		}
	}
}

// alias is an alias in the table.
type alias struct {
	name  hearth.Target // "function" or "function@alias"
	alias string
	// portions has the newest version first, so that while its share grows callers
	// who stay only ever move to it.
	portions []portion
	header   string // by which callers stay; empty for none
	cookie   string // the same
	routes   []hearth.Route
	cors     *cors.Cors    // of /fn/{name}; nil if none is configured
	limit    *rate.Limiter // of calls over HTTP; nil if there is none
}

// portion is a version and the end of its share, in percent.
type portion struct {
	version *hearth.Version
	end     int
}

// newFunction returns what the table has of a function; old is what it had before,
// nil if nothing. With an error it has no aliases.
func newFunction(d *hearth.Deployment, old *function) (*function, error) {
	f := &function{generation: d.Generation, numbered: &limiters{}}
	if old != nil {
		f.numbered = old.numbered
	}
	if d.Err != nil {
		return f, d.Err
	}
	for _, a := range d.Aliases {
		made, err := newAlias(d, a)
		if err != nil {
			return f, err
		}
		if a.Name == hearth.Live {
			f.live = made
			continue
		}
		if f.others == nil {
			f.others = map[string]*alias{}
		}
		f.others[a.Name] = made
	}
	if f.live == nil {
		return f, hearth.Errorf(hearth.CodeInternal, "it has no version that is live")
	}
	for name, a := range f.all() {
		a.limit = newLimiter(a.main().Config.Limits)
		if was := old.alias(name); was != nil && sameLimit(a.limit, was.limit) {
			a.limit = was.limit // a deploy is no reason for another burst
		}
	}
	return f, nil
}

func newAlias(d *hearth.Deployment, a hearth.Alias) (*alias, error) {
	made := &alias{name: hearth.Target(d.Function), alias: a.Name, routes: a.Routes, header: textproto.CanonicalMIMEHeaderKey(a.Sticky.Header())}
	if a.Sticky == hearth.StickyCookie {
		made.cookie = stickyPrefix + d.Function + "_" + a.Name
	}
	end := 0
	for _, n := range a.Versions.Numbers() {
		v := d.Versions[n]
		if v == nil {
			return nil, hearth.Errorf(hearth.CodeInternal, "its alias %s leads to version %d, which does not exist", a.Name, n)
		}
		if len(a.Env) > 0 {
			with := v.WithEnv(a.Env)
			v = &with
		}
		end += a.Versions[n]
		made.portions = append(made.portions, portion{v, end})
	}
	if len(made.portions) == 0 {
		return nil, hearth.Errorf(hearth.CodeInternal, "its alias %s has no version", a.Name)
	}
	config := made.main().Config
	if a.Name == hearth.Live {
		made.routes = config.Routes
	} else {
		made.name += hearth.Target("@" + a.Name)
	}
	made.cors = newCORS(config, hearth.AllCalls)
	return made, nil
}

// main returns the version with the greatest share.
func (a *alias) main() *hearth.Version {
	begin, most, main := 0, 0, a.portions[0].version
	for _, s := range a.portions {
		if s.end-begin >= most {
			most, main = s.end-begin, s.version
		}
		begin = s.end
	}
	return main
}

// split tells whether calls go to several versions.
func (a *alias) split() bool { return len(a.portions) > 1 }

// at returns the version that has the point of the whole, 0 to 99.
func (a *alias) at(point int) *hearth.Version {
	for _, s := range a.portions {
		if point < s.end {
			return s.version
		}
	}
	return a.portions[len(a.portions)-1].version
}

// pick decides which version answers a request. The returned cookie, if it is not
// empty, is to be set. A cookie by which the caller stays is taken out of r,
// which is returned: the function does not get to see it.
func (a *alias) pick(r *http.Request) (_ *hearth.Version, _ *http.Request, cookie string) {
	if !a.split() {
		if a.cookie != "" && r.Header["Cookie"] != nil {
			_, r, _ = takePoint(r, a.cookie) // of an earlier split
		}
		return a.portions[0].version, r, ""
	}
	switch {
	case a.header != "" && r.Header.Get(a.header) != "":
		return a.at(pointOf(r.Header.Get(a.header))), r, ""
	case a.cookie != "":
		point, r, ok := takePoint(r, a.cookie)
		if !ok {
			point = rand.IntN(100)
			// For as long as the browser runs, and not for scripts.
			cookie = a.cookie + "=" + strconv.Itoa(point) + "; Path=/; HttpOnly; SameSite=Lax"
		}
		return a.at(point), r, cookie
	}
	return a.any(), r, ""
}

// any decides which version has a call of nobody in particular.
func (a *alias) any() *hearth.Version {
	if !a.split() {
		return a.portions[0].version
	}
	return a.at(rand.IntN(a.portions[len(a.portions)-1].end))
}

// taking returns what a is for the messages of a queue: the versions that take them,
// of which there is one at least, with their shares among each other.
func (a *alias) taking(queue string) *alias {
	some := &alias{name: a.name, alias: a.alias}
	begin, end := 0, 0
	for _, s := range a.portions {
		share := s.end - begin
		begin = s.end
		if _, ok := s.version.Config.Queues[queue]; ok {
			end += share
			some.portions = append(some.portions, portion{s.version, end})
		}
	}
	return some
}

// pointOf returns the point of a caller's key. It is the same in all processes.
func pointOf(key string) int {
	sum := sha256.Sum256([]byte(key))
	return (int(sum[0])<<16 | int(sum[1])<<8 | int(sum[2])) % 100
}

// takePoint returns the point in the named cookie, and the request without it.
func takePoint(r *http.Request, name string) (point int, _ *http.Request, ok bool) {
	cookies := r.CookiesNamed(name)
	if len(cookies) == 0 {
		return 0, r, false
	}
	point, err := strconv.Atoi(cookies[0].Value)
	bare := r.WithContext(r.Context()) // handlers must not change the request
	bare.Header = maps.Clone(r.Header)
	var lines []string
	for _, line := range r.Header["Cookie"] {
		kept := slices.DeleteFunc(strings.Split(line, ";"), func(c string) bool {
			n, _, _ := strings.Cut(strings.TrimSpace(c), "=")
			return n == name
		})
		if len(kept) > 0 {
			lines = append(lines, strings.TrimSpace(strings.Join(kept, ";")))
		}
	}
	if bare.Header["Cookie"] = lines; len(lines) == 0 {
		delete(bare.Header, "Cookie")
	}
	return point, bare, err == nil && point >= 0 && point < 100
}

// resolve finds what a target names: an alias, or a version. Errors:
// CodeNotFound, CodeUnavailable for a function that cannot be served.
func (g *Gateway) resolve(ctx context.Context, t *table, to hearth.Target) (*alias, *hearth.Version, error) {
	if f := t.functions[string(to)]; f != nil {
		return f.live, nil, f.err
	}
	name, qualifier, number, err := to.Parts()
	f := t.functions[name]
	switch {
	case f == nil:
		return nil, nil, noFunction(name)
	case f.err != nil:
		return nil, nil, f.err
	case err != nil:
		return nil, nil, err
	case number > 0:
		v, err := g.preview(ctx, f, name, number)
		return nil, v, err
	case qualifier == "":
		return f.live, nil, nil
	}
	if a := f.others[qualifier]; a != nil {
		return a, nil, nil
	}
	return nil, nil, hearth.Errorf(hearth.CodeNotFound, "function %s has no alias %s", name, qualifier).
		WithHint("hearth alias list %s shows them", name)
}
