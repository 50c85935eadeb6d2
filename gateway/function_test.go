package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// deployments is a catalog of functions with several versions and aliases.
type deployments struct {
	list []hearth.Deployment
	// others are versions that no alias names.
	others []hearth.Version
	reads  int // of others
}

func (d *deployments) Deployments(context.Context) ([]hearth.Deployment, error) { return d.list, nil }

func (d *deployments) Version(_ context.Context, function string, number int) (hearth.Version, error) {
	d.reads++
	for _, v := range d.others {
		if v.Function == function && v.Number == number {
			return v, nil
		}
	}
	return hearth.Version{}, hearth.Errorf(hearth.CodeNotFound, "function %s has no version %d", function, number)
}

// numberPool refuses calls and tells of which version; it counts them.
type numberPool struct {
	fakePool
	calls             map[int]int
	env               map[string]string // of the last call
	admitted, retired []string
}

func (p *numberPool) Do(_ context.Context, v *hearth.Version, _ func(context.Context, Instance) error) error {
	p.calls[v.Number]++
	p.env = v.Config.Env
	return hearth.Errorf(hearth.CodeExhausted, "called %s@%d", v.Function, v.Number)
}

func (p *numberPool) Admit(incarnation string)  { p.admitted = append(p.admitted, incarnation) }
func (p *numberPool) Retire(incarnation string) { p.retired = append(p.retired, incarnation) }

func numbered(function string, number int, change func(*hearth.Config)) *hearth.Version {
	v := hearth.Version{Function: function, Number: number, Incarnation: fmt.Sprint(function, number), Config: hearth.Config{}.WithDefaults()}
	if change != nil {
		change(&v.Config)
	}
	return &v
}

func newSplit(t testing.TB, aliases []hearth.Alias, versions ...*hearth.Version) (*Gateway, *deployments, *numberPool) {
	t.Helper()
	d := hearth.Deployment{Function: "f", Generation: 1, Aliases: aliases, Versions: map[int]*hearth.Version{}}
	for _, v := range versions {
		d.Versions[v.Number] = v
	}
	catalog, pool := &deployments{list: []hearth.Deployment{d}}, &numberPool{calls: map[int]int{}}
	g := New(Config{
		Pool: pool, Catalog: catalog, Recorder: nowhere{}, Logs: nowhere{}, Logger: slog.New(slog.DiscardHandler),
		Managed: func(host string) bool { return host == "admin.example.com" },
	})
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g, catalog, pool
}

// request sends a request with headers and returns the answer.
func request(g *Gateway, method, target string, headers ...string) *httptest.ResponseRecorder {
	w, r := httptest.NewRecorder(), httptest.NewRequest(method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	g.ServeHTTP(w, r)
	return w
}

func live(w hearth.Weights) hearth.Alias { return hearth.Alias{Name: hearth.Live, Versions: w} }

func TestSplit(t *testing.T) {
	g, _, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 90, 2: 10})}, numbered("f", 1, nil), numbered("f", 2, nil))
	for range 2000 {
		request(g, "GET", "/fn/f/")
	}
	// Six standard deviations of 10 % are 80.
	if n := pool.calls[2]; n < 120 || n > 280 || pool.calls[1]+n != 2000 {
		t.Errorf("calls %v, want 10 %% of 2000 at version 2", pool.calls)
	}
	if !slices.Equal(pool.live, []string{"f2", "f1"}) {
		t.Errorf("live are %v", pool.live)
	}
}

// Callers that stay move to the newer version only, as its share grows.
func TestStickyCallersMoveOneWay(t *testing.T) {
	for _, sticky := range []hearth.Sticky{hearth.StickyCookie, "header:X-User"} {
		t.Run(string(sticky), func(t *testing.T) {
			versions := []*hearth.Version{numbered("f", 1, nil), numbered("f", 2, nil)}
			has := map[string]string{} // version by caller
			cookies := map[string]string{}
			for _, share := range []int{1, 20, 50, 99} {
				alias := live(hearth.Weights{1: 100 - share, 2: share})
				alias.Sticky = sticky
				g, _, _ := newSplit(t, []hearth.Alias{alias}, versions...)
				moved := 0
				for i := range 200 {
					user := fmt.Sprint("user", i)
					headers := []string{"X-User", user}
					if c := cookies[user]; c != "" {
						headers = append(headers, "Cookie", "a=b; "+c+"; x=y")
					}
					w := request(g, "GET", "/fn/f/", headers...)
					if c := w.Result().Cookies(); len(c) > 0 {
						if cookies[user] != "" || sticky != hearth.StickyCookie || !c[0].HttpOnly {
							t.Fatalf("an unexpected cookie %v", c)
						}
						cookies[user] = c[0].Name + "=" + c[0].Value
					}
					version := w.Header().Get("Hearth-Version")
					if has[user] == "2" && version == "1" {
						t.Fatalf("%s moved back at %d %%", user, share)
					}
					if has[user] != version {
						moved++
					}
					has[user] = version
				}
				fresh := 0
				for _, v := range has {
					if v == "2" {
						fresh++
					}
				}
				if want := 200 * share / 100; fresh < want-45 || fresh > want+45 {
					t.Errorf("at %d %% version 2 has %d of 200 callers", share, fresh)
				}
				again := request(g, "GET", "/fn/f/", "X-User", "user7", "Cookie", cookies["user7"])
				if again.Header().Get("Hearth-Version") != has["user7"] {
					t.Error("a caller does not stay")
				}
			}
		})
	}
}

// The cookie is between Hearth and the caller.
func TestStickyCookieIsNotPassedOn(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", "a=b; hearth_f_live=42; c=d")
	point, bare, ok := takePoint(r, "hearth_f_live")
	if !ok || point != 42 || bare.Header.Get("Cookie") != "a=b; c=d" || !strings.Contains(r.Header.Get("Cookie"), "42") {
		t.Errorf("%d %v %q", point, ok, bare.Header.Get("Cookie"))
	}
	r.Header.Set("Cookie", "hearth_f_live=42")
	if _, bare, _ = takePoint(r, "hearth_f_live"); bare.Header["Cookie"] != nil {
		t.Errorf("an empty header %v remains", bare.Header["Cookie"])
	}
	for _, bad := range []string{"-1", "100", "x", ""} {
		r.Header.Set("Cookie", "hearth_f_live="+bad)
		if _, _, ok := takePoint(r, "hearth_f_live"); ok {
			t.Errorf("the value %q is believed", bad)
		}
	}
}

func TestAliases(t *testing.T) {
	g, _, pool := newSplit(t, []hearth.Alias{
		live(hearth.Weights{1: 100}),
		{Name: "beta", Versions: hearth.Weights{2: 100}, Env: map[string]string{"STAGE": "beta"}, Routes: []hearth.Route{"beta.example.com/", "/beta/{x}"}},
	}, numbered("f", 1, func(c *hearth.Config) {
		c.Routes = []hearth.Route{"/f"}
		c.Env = map[string]string{"STAGE": "live", "A": "1"}
	}),
		numbered("f", 2, func(c *hearth.Config) {
			c.Routes = []hearth.Route{"/never"}
			c.Env = map[string]string{"STAGE": "live", "A": "2"}
		}))
	for target, want := range map[string]string{
		"/fn/f/": "f@1", "/fn/f@live/x": "f@1", "/f": "f@1", "/fn/f@beta": "f@2", "http://beta.example.com/any/path": "f@2", "/beta/1": "f@2",
		"/never": "", "/fn/f@none/": "",
	} {
		w := request(g, "GET", target)
		if (want == "") != (w.Code == 404) || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %q", target, w.Code, w.Body, want)
		}
	}
	request(g, "GET", "/fn/f@beta/")
	if pool.env["STAGE"] != "beta" || pool.env["A"] != "2" {
		t.Errorf("the environment is %v", pool.env)
	}
	// Instances with an environment of their own are others than those without.
	if len(pool.live) != 2 || slices.Contains(pool.live, "f2") {
		t.Errorf("live are %v", pool.live)
	}
	for _, c := range []struct{ alias, route, owner string }{
		{"live", "/beta/{y}", "alias beta of function f"},
		{"beta", "/f", "of function f"},
		{"beta", "/beta/{x}", ""},
		{"new", "beta.example.com/", "alias beta of function f"},
		{"new", "/", ""},
	} {
		err := g.CheckRoutes("f", c.alias, []hearth.Route{hearth.Route(c.route)})
		if (err == nil) != (c.owner == "") || err != nil && !strings.Contains(err.Error(), c.owner) {
			t.Errorf("%s %s: %v, want %q", c.alias, c.route, err, c.owner)
		}
	}
}

// scheduled takes the schedules.
type scheduled struct{ list []hearth.FunctionSchedules }

func (s *scheduled) SetSchedules(list []hearth.FunctionSchedules) { s.list = list }

// A function of which something is wrong keeps no other from being served; its calls
// are told what it is.
func TestABrokenFunctionHarmsNoOther(t *testing.T) {
	routed := func(name string, routes ...hearth.Route) *hearth.Version {
		return numbered(name, 1, func(c *hearth.Config) { c.Routes = routes })
	}
	deployment := func(name string, v *hearth.Version) hearth.Deployment {
		return hearth.Deployment{Function: name, Aliases: []hearth.Alias{live(hearth.Weights{1: 100})}, Versions: map[int]*hearth.Version{1: v}}
	}
	unread := deployment("a-unread", routed("a-unread", "/fine", "/unread"))
	unread.Err = errors.New("version 1: it is no JSON")
	missing := deployment("b-missing", nil)
	missing.Versions = nil
	empty := deployment("c-empty", nil)
	empty.Aliases = nil
	clash := deployment("z-clash", routed("z-clash", "/mine", "/fine"))
	g, catalog, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100})}, numbered("f", 1, nil))
	var log bytes.Buffer
	schedules := &scheduled{}
	g.cfg.Logger, g.cfg.Schedules = slog.New(slog.NewTextHandler(&log, nil)), schedules
	for _, number := range []int{0, 1} {
		catalog.list = append([]hearth.Deployment{unread, missing, empty, deployment("fine", routed("fine", "/fine"))}, clash)
		if err := g.Reload(t.Context()); err != nil {
			t.Fatal(number, err)
		}
	}
	for path, want := range map[string]string{
		"/fn/a-unread/": "it is no JSON", "/unread": "it is no JSON", "/fn/a-unread@1/": "it is no JSON",
		"/fn/b-missing/": "version 1, which does not exist", "/fn/b-missing@live/x": "version 1, which does not exist",
		"/fn/c-empty/": "no version that is live",
		"/fn/z-clash/": "conflicts with", "/mine": "conflicts with", "/fn/z-clash@beta/": "conflicts with",
	} {
		if w := request(g, "GET", path); w.Code != 503 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want 503 and %q", path, w.Code, w.Body, want)
		}
	}
	for _, path := range []string{"/fn/fine/", "/fine"} {
		if w := request(g, "GET", path); !strings.Contains(w.Body.String(), "called fine@1") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if !slices.Equal(pool.live, []string{"fine1"}) {
		t.Errorf("live are %v", pool.live)
	}
	for _, name := range []string{"a-unread", "b-missing", "c-empty", "z-clash"} {
		if !strings.Contains(log.String(), "function="+name) {
			t.Errorf("the log does not name %s: %s", name, &log)
		}
		// Neither its stored calls nor its schedules are those of a function that is gone.
		if _, err := g.AsyncConfig(name); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("the configuration of %s: %v", name, err)
		}
		if !slices.ContainsFunc(schedules.list, func(s hearth.FunctionSchedules) bool { return s.Function == name }) {
			t.Errorf("the schedules lack %s: %v", name, schedules.list)
		}
		if list, err := g.Incarnations(name); err != nil || len(list) != 0 {
			t.Errorf("incarnations of %s: %v, %v", name, list, err)
		}
	}
	// The next deploy may mend it.
	catalog.list[1] = deployment("b-missing", routed("b-missing"))
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w := request(g, "GET", "/fn/b-missing/"); !strings.Contains(w.Body.String(), "called b-missing@1") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPreviews(t *testing.T) {
	g, catalog, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{2: 100})}, numbered("f", 2, nil))
	catalog.others = []hearth.Version{*numbered("f", 1, nil), *numbered("f", 2, nil)}
	for range 3 {
		if w := request(g, "GET", "/fn/f@1/"); !strings.Contains(w.Body.String(), "called f@1") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if catalog.reads != 1 || !slices.Equal(pool.admitted, []string{"f1"}) {
		t.Errorf("%d reads, admitted %v", catalog.reads, pool.admitted)
	}
	if w := request(g, "GET", "/fn/f@9/"); w.Code != 404 || !strings.Contains(w.Body.String(), "hearth versions f") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if list, err := g.Incarnations("f"); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	// A change of another function ends no preview, one of its own does.
	catalog.list = append(catalog.list, hearth.Deployment{Function: "g", Aliases: []hearth.Alias{live(hearth.Weights{1: 100})}, Versions: map[int]*hearth.Version{1: numbered("g", 1, nil)}})
	if err := g.Reload(t.Context()); err != nil || len(pool.retired) > 0 {
		t.Errorf("retired %v, %v", pool.retired, err)
	}
	catalog.list[0].Generation++
	if err := g.Reload(t.Context()); err != nil || !slices.Equal(pool.retired, []string{"f1"}) {
		t.Errorf("retired %v, %v", pool.retired, err)
	}
	catalog.others = nil // it was removed
	if w := request(g, "GET", "/fn/f@1/"); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Records tell through which alias a call came: a release compares only those of the
// alias that it changes.
func TestRecordsTellTheAlias(t *testing.T) {
	g, catalog, _ := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100}), {Name: "beta", Versions: hearth.Weights{1: 100}, Routes: []hearth.Route{"/beta"}}},
		numbered("f", 1, func(c *hearth.Config) { c.Routes = []hearth.Route{"/f"} }))
	catalog.others = []hearth.Version{*numbered("f", 1, nil)}
	var records kept
	g.cfg.Recorder = &records
	for path, want := range map[string]string{"/fn/f/": "live", "/f": "live", "/fn/f@live/": "live", "/fn/f@beta/": "beta", "/beta": "beta", "/fn/f@1/": ""} {
		records = nil
		if request(g, "GET", path); len(records) != 1 || records[0].Alias != want {
			t.Errorf("%s: %+v, want alias %q", path, records, want)
		}
	}
	for to, want := range map[hearth.Target]string{"f": "live", "f@beta": "beta", "f@1": ""} {
		records = nil
		_, _ = g.InvokeEvent(t.Context(), hearth.EventRequest{Target: to}, io.Discard, nil) // the pool refuses all
		if len(records) != 1 || records[0].Alias != want {
			t.Errorf("an event for %s: %+v, want alias %q", to, records, want)
		}
	}
}

func TestHosts(t *testing.T) {
	g, _, _ := newSplit(t, []hearth.Alias{
		live(hearth.Weights{1: 100}),
		{Name: "exact", Versions: hearth.Weights{2: 100}, Routes: []hearth.Route{"a.example.com/x", "GET a.example.com/v1/{y}"}},
		{Name: "wild", Versions: hearth.Weights{3: 100}, Routes: []hearth.Route{"*.example.com/"}},
	}, numbered("f", 1, func(c *hearth.Config) { c.Routes = []hearth.Route{"/x", "/everywhere"} }), numbered("f", 2, nil), numbered("f", 3, nil))
	for target, want := range map[string]string{
		"http://a.example.com/x":            "f@2",
		"http://A.Example.com.:8080/x":      "f@2",
		"http://a.example.com/v1/1":         "f@2",
		"http://a.example.com/other":        "f@3", // no route of the host itself
		"http://b.example.com/x":            "f@3", // the wildcard is more specific than no host
		"http://b.example.com/fn/f/":        "f@3", // all paths of a routed host belong to its functions
		"http://deep.b.example.com/x":       "f@1", // a wildcard is one label
		"http://example.com/x":              "f@1",
		"http://192.0.2.1/x":                "f@1",
		"http://[2001:db8::1]:80/x":         "f@1",
		"http://other.test/everywhere":      "f@1",
		"http://admin.example.com/x":        "f@1", // management's, whatever routes say
		"http://admin.example.com/fn/f@2/":  "",
		"http://other.test/nowhere":         "",
		"http://deep.b.example.com/nowhere": "",
	} {
		w := request(g, "GET", target)
		if want == "" && w.Code != 404 || !strings.Contains(w.Body.String(), "called "+want) && want != "" {
			t.Errorf("%s: %d %s, want %q", target, w.Code, w.Body, want)
		}
	}
	for host, want := range map[string]bool{"a.example.com": true, "zz.example.com:80": true, "example.com": false, "admin.example.com": false, "127.0.0.1:8080": false} {
		if g.OwnsHost(host) != want {
			t.Errorf("owns %s: %v", host, !want)
		}
	}
}

func TestCORS(t *testing.T) {
	const app = "https://app.example.com"
	g, _, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100})}, numbered("f", 1, func(c *hearth.Config) {
		c.Routes = []hearth.Route{"POST /open", "/named", "GET /none"}
		c.CORS = map[hearth.Route]hearth.CORS{
			"POST /open": {Origins: []string{"*"}, Expose: []string{"X-Total"}},
			"/named":     {Origins: []string{app, "https://*.test"}, Credentials: true, MaxAge: hearth.Duration(10 * time.Minute), Headers: []string{"X-Token"}},
			"/fn":        {Origins: []string{app}},
		}
	}))
	preflight := func(path, origin, method string, more ...string) http.Header {
		w := request(g, "OPTIONS", path, append([]string{"Origin", origin, "Access-Control-Request-Method", method}, more...)...)
		if w.Code != 204 && w.Code != 404 {
			t.Errorf("%s: status %d", path, w.Code)
		}
		return w.Header()
	}
	for _, c := range []struct{ path, origin, method, headers, allow string }{
		{"/open", "https://any.example", "POST", "x-custom", "*"},
		{"/open", "https://any.example", "GET", "", ""}, // no such route
		{"/named", app, "DELETE", "", app},
		{"/named", "https://a.test", "GET", "x-token", "https://a.test"},
		{"/named", app, "GET", "x-other", ""},
		{"/named", "https://evil.example", "GET", "", ""},
		{"/named", "https://app.example.com.evil.example", "GET", "", ""},
		{"/none", app, "GET", "", ""},
		{"/fn/f/x", app, "PUT", "", app},
	} {
		var more []string
		if c.headers != "" {
			more = []string{"Access-Control-Request-Headers", c.headers}
		}
		h := preflight(c.path, c.origin, c.method, more...)
		if h.Get("Access-Control-Allow-Origin") != c.allow {
			t.Errorf("%+v: %v", c, h)
		}
	}
	if len(pool.calls) != 0 {
		t.Errorf("preflight requests reached the function: %v", pool.calls)
	}
	if h := preflight("/named", app, "GET"); h.Get("Access-Control-Max-Age") != "600" || h.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("%v", h)
	}
	// The answer itself, here an error of the pool, may be read as well.
	h := request(g, "POST", "/open", "Origin", app).Header()
	if h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Expose-Headers") != "X-Total" || !strings.Contains(h.Get("Vary"), "Origin") {
		t.Errorf("%v", h)
	}
	// An OPTIONS request that is no preflight is the function's.
	request(g, "OPTIONS", "/named", "Origin", app)
	if pool.calls[1] != 2 {
		t.Errorf("calls %v", pool.calls)
	}
}

// What a function says of CORS does not count where the configuration does.
func TestCORSReplacesTheFunctions(t *testing.T) {
	v := cachedVersion("f")
	v.Config.Cache = nil
	v.Config.CORS = map[hearth.Route]hearth.CORS{"/fn": {Origins: []string{"https://app.example.com"}}}
	bubble(t, "", func(t *testing.T) {
		s := newSite(t, Config{}, func(int, event) reply {
			return reply{header: []string{"access-control-allow-origin: *", "x-kept: 1"}}
		}, v)
		a := s.get("/fn/f/", "Origin: https://evil.example")
		if a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("X-Kept") != "1" {
			t.Errorf("%v", a.header)
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := func(c *hearth.Config) { c.Limits = hearth.Limits{Rate: 2, Burst: 5} }
		g, catalog, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100})}, numbered("f", 1, limit))
		burst := func() (refused int) {
			for range 20 {
				if w := request(g, "GET", "/fn/f/"); strings.Contains(w.Body.String(), "2/s") {
					refused++
					if w.Code != 429 || w.Header().Get("Retry-After") != "1" || w.Header().Get("Hearth-Error") != "exhausted" {
						t.Fatalf("%d %v", w.Code, w.Header())
					}
				}
			}
			return refused
		}
		if n := burst(); n != 15 || pool.calls[1] != 5 {
			t.Errorf("%d of 20 refused, calls %v", n, pool.calls)
		}
		time.Sleep(time.Second)
		if n := burst(); n != 18 {
			t.Errorf("a second later %d of 20 refused", n)
		}
		// A deploy is no reason for another burst.
		d := &catalog.list[0]
		d.Generation, d.Versions[2], d.Aliases = 2, numbered("f", 2, limit), []hearth.Alias{live(hearth.Weights{2: 100})}
		if err := g.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := burst(); n != 20 {
			t.Errorf("after a deploy %d of 20 refused", n)
		}
	})
}

// Every alias and every version that is called by its number has a limit of its
// own: none escapes it, and none uses up that of another.
func TestRateLimitOfEachWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := func(burst int) func(*hearth.Config) {
			return func(c *hearth.Config) { c.Limits = hearth.Limits{Rate: 1, Burst: burst} }
		}
		g, catalog, _ := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100}), {Name: "beta", Versions: hearth.Weights{2: 100}}},
			numbered("f", 1, limit(3)), numbered("f", 2, limit(4)))
		catalog.others = []hearth.Version{*numbered("f", 1, limit(3)), *numbered("f", 2, limit(4)), *numbered("f", 3, limit(5)), *numbered("f", 4, nil)}
		check := func(when string, want map[string]int) {
			t.Helper()
			for path, n := range want {
				allowed := 0
				for range 20 {
					if w := request(g, "GET", path); !strings.Contains(w.Body.String(), "1/s") {
						allowed++
					}
				}
				if allowed != n {
					t.Errorf("%s: %d of 20 calls of %s were allowed, want %d", when, allowed, path, n)
				}
			}
		}
		check("at first", map[string]int{"/fn/f/": 3, "/fn/f@beta/": 4, "/fn/f@1/": 3, "/fn/f@2/": 4, "/fn/f@3/": 5, "/fn/f@4/": 20})
		catalog.list[0].Generation++
		if err := g.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		none := map[string]int{"/fn/f/": 0, "/fn/f@beta/": 0, "/fn/f@1/": 0, "/fn/f@2/": 0, "/fn/f@3/": 0}
		check("after a change of the function", none)
		// Other versions do not make room for more of one that has used it up.
		for n := 5; n < 5+2*maxLimiters; n++ {
			catalog.others = append(catalog.others, *numbered("f", n, limit(1)))
			request(g, "GET", fmt.Sprintf("/fn/f@%d/", n))
		}
		check("after calls of others", none)
		time.Sleep(time.Hour)
		check("an hour later", map[string]int{"/fn/f@3/": 5, "/fn/f@5/": 1})
		limits := g.table.Load().functions["f"].numbered
		limits.of(numbered("f", 1000, limit(1)), time.Now())
		if n := len(limits.kept); n > 4 {
			t.Errorf("%d limits of versions nobody calls are kept", n)
		}
	})
}

func TestBodyLimit(t *testing.T) {
	g, _, pool := newSplit(t, []hearth.Alias{live(hearth.Weights{1: 100})}, numbered("f", 1, func(c *hearth.Config) { c.Limits.Request = 10 }))
	for body, want := range map[string]int{"0123456789": 429, "0123456789a": 413} { // 429 is what the pool says here
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("POST", "/fn/f/", strings.NewReader(body)))
		if w.Code != want {
			t.Errorf("%d bytes: %d %s", len(body), w.Code, w.Body)
		}
	}
	if pool.calls[1] != 1 {
		t.Errorf("calls %v", pool.calls)
	}
}

// BenchmarkMatch finds one of 10,000 routes, with and without parameters and
// hosts: docs/routing.md has the figures.
func BenchmarkMatch(b *testing.B) {
	for _, c := range []struct{ name, route, target string }{
		{"plain", "GET /api%d/items", "/api%d/items"},
		{"parameter", "GET /api%d/items/{item}", "/api%d/items/42"},
		{"host", "GET h%d.example.com/items/{item}", "http://h%d.example.com/items/42"},
	} {
		for _, n := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				list := make([]hearth.Deployment, n)
				for i := range list {
					name := fmt.Sprint("f", i)
					v := numbered(name, 1, func(h *hearth.Config) { h.Routes = []hearth.Route{hearth.Route(fmt.Sprintf(c.route, i))} })
					list[i] = hearth.Deployment{Function: name, Aliases: []hearth.Alias{live(hearth.Weights{1: 100})}, Versions: map[int]*hearth.Version{1: v}}
				}
				g, catalog, _ := newSplit(b, []hearth.Alias{live(hearth.Weights{1: 100})}, numbered("f", 1, nil))
				catalog.list = list
				if err := g.Reload(b.Context()); err != nil {
					b.Fatal(err)
				}
				requests := make([]*http.Request, 64)
				for i := range requests {
					requests[i] = httptest.NewRequest("GET", fmt.Sprintf(c.target, i*n/len(requests)), nil)
				}
				i := 0
				for b.Loop() {
					if to, err := g.match(requests[i%len(requests)]); err != nil || to.alias == nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// TestQueueTakers: the messages of a queue go to those versions of live that take them,
// and the queue is the function's as long as one of them does, also while it cannot be
// served.
func TestQueueTakers(t *testing.T) {
	takes := func(c *hearth.Config) { c.Queues = map[string]hearth.QueueTrigger{"orders": {}} }
	one, two, three := numbered("f", 1, nil), numbered("f", 2, takes), numbered("f", 3, takes)
	d := hearth.Deployment{
		Function: "f", Versions: map[int]*hearth.Version{1: one, 2: two, 3: three},
		Aliases: []hearth.Alias{{Name: hearth.Live, Versions: hearth.Weights{1: 70, 2: 10, 3: 20}}},
	}
	table := newTable([]hearth.Deployment{d}, emptyTable())
	a := table.takers["orders"]
	if table.queues["orders"] != "f" || a == nil || a.main().Number != 3 {
		t.Fatalf("%v, %+v", table.queues, a)
	}
	count := map[int]int{}
	for range 3000 {
		count[a.any().Number]++
	}
	if count[1] != 0 || count[2] < 700 || count[2] > 1300 {
		t.Errorf("%v, want 1:2 of versions 2 and 3", count)
	}
	lost := func(why string, deployed ...hearth.Deployment) {
		t.Helper()
		table := newTable(deployed, emptyTable())
		if table.queues["orders"] != "f" || table.takers["orders"] != nil {
			t.Errorf("%s: %v, %v", why, table.queues, table.takers)
		}
	}
	first := numbered("a", 1, func(c *hearth.Config) { c.Routes = []hearth.Route{"/x"} })
	three.Config.Routes, one.Config.Routes = first.Config.Routes, first.Config.Routes
	lost("its routes belong to another", hearth.Deployment{
		Function: "a", Versions: map[int]*hearth.Version{1: first}, Aliases: []hearth.Alias{{Name: hearth.Live, Versions: hearth.Weights{1: 100}}},
	}, d)
	delete(d.Versions, 1)
	lost("a version is missing", d)
}
