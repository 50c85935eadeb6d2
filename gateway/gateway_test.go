package gateway

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

func versionWith(name string, routes ...hearth.Route) hearth.Version {
	return hearth.Version{Function: name, Number: 1, Incarnation: name, Config: hearth.Config{Routes: routes}.WithDefaults()}
}

// fakeCatalog has the live versions of functions.
type fakeCatalog []hearth.Version

func (f *fakeCatalog) Deployments(context.Context) ([]hearth.Deployment, error) {
	var list []hearth.Deployment
	for _, v := range *f {
		list = append(list, hearth.Deployment{
			Function: v.Function, Versions: map[int]*hearth.Version{v.Number: &v},
			Aliases: []hearth.Alias{{Name: hearth.Live, Versions: hearth.Weights{v.Number: 100}}},
		})
	}
	return list, nil
}

func (f *fakeCatalog) Version(_ context.Context, function string, number int) (hearth.Version, error) {
	for _, v := range *f {
		if v.Function == function && v.Number == number {
			return v, nil
		}
	}
	return hearth.Version{}, hearth.Errorf(hearth.CodeNotFound, "function %s has no version %d", function, number)
}

// fakePool refuses calls, telling for which function.
type fakePool struct{ live []string }

func (f *fakePool) Do(_ context.Context, v *hearth.Version, _ func(context.Context, Instance) error) error {
	return hearth.Errorf(hearth.CodeExhausted, "called %s", v.Function)
}

func (f *fakePool) SetLive(versions []hearth.Version) {
	f.live = nil
	for _, v := range versions {
		f.live = append(f.live, v.Incarnation)
	}
}

func (*fakePool) Admit(string)  {}
func (*fakePool) Retire(string) {}

type nowhere struct{}

func (nowhere) Record(hearth.Invocation)       {}
func (nowhere) Refused(hearth.Invocation) bool { return true }
func (nowhere) Append(hearth.LogLine)          {}

func newGateway(t *testing.T, versions ...hearth.Version) (*Gateway, *fakeCatalog, *fakePool) {
	t.Helper()
	catalog, pool := fakeCatalog(versions), &fakePool{}
	g := New(Config{Pool: pool, Catalog: &catalog, Recorder: nowhere{}, Logs: nowhere{}, Logger: slog.New(slog.DiscardHandler)})
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g, &catalog, pool
}

func get(g *Gateway, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestRoutePrecedence(t *testing.T) {
	g, _, _ := newGateway(t,
		versionWith("any", "/x/{id}"),
		versionWith("get", "GET /x/{id}"),
		versionWith("exact", "GET /x/special"),
		versionWith("rest", "/x/{rest...}"),
		versionWith("slash", "/dir/{$}"),
	)
	for _, c := range []struct{ method, target, want string }{
		{"GET", "/x/1", "get"},
		{"POST", "/x/1", "any"},
		{"GET", "/x/special", "exact"},
		{"GET", "/x/1/2", "rest"},
		{"GET", "/x/", "rest"},
		{"GET", "/dir/", "slash"},
		{"GET", "/fn/any/anything", "any"},
		{"GET", "/fn/any", "any"},
		{"PATCH", "/fn/any//a//b", "any"},
		{"GET", "/fn/none/", ""},
		{"GET", "/fn/", ""},
		{"GET", "/nothing", ""},
		{"GET", "/dir/x", ""},
	} {
		w := get(g, c.method, c.target)
		status, code := http.StatusTooManyRequests, "exhausted"
		if c.want == "" {
			status, code = http.StatusNotFound, "not_found"
		}
		if w.Code != status || w.Header().Get("Hearth-Error") != code || !strings.Contains(w.Body.String(), "called "+c.want) && c.want != "" {
			t.Errorf("%s %s: %d %s, want %q", c.method, c.target, w.Code, w.Body, c.want)
		}
		if !json.Valid(w.Body.Bytes()) || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: the error is no problem document: %s", c.method, c.target, w.Body)
		}
	}
	if w := get(g, "POST", "/x/special/"); w.Code != http.StatusTooManyRequests {
		t.Errorf("the rest: %d %s", w.Code, w.Body)
	}
	g, _, _ = newGateway(t, versionWith("get", "GET /only"))
	if w := get(g, "POST", "/only"); w.Code != 404 || !strings.Contains(w.Body.String(), "answers to GET") {
		t.Errorf("another method: %d %s", w.Code, w.Body)
	}
}

func TestRetryAfterIsHonest(t *testing.T) {
	for _, c := range []struct {
		code  hearth.Code
		after time.Duration
		want  string
	}{
		{hearth.CodeExhausted, 0, "1"},
		{hearth.CodeUnavailable, 0, "1"},
		{hearth.CodeTimeout, 0, ""},
		{hearth.CodeFunction, 0, ""},
		{hearth.CodeExhausted, time.Nanosecond, "1"},
		{hearth.CodeExhausted, time.Second, "1"},
		{hearth.CodeUnavailable, time.Second + 1, "2"},
		{hearth.CodeUnavailable, 90 * time.Second, "90"},
		{hearth.CodeTimeout, 5 * time.Second, "5"},
	} {
		w := httptest.NewRecorder()
		writeError(w, httptest.NewRequest("GET", "/", nil), nil, &hearth.Error{Code: c.code, Message: "m", RetryAfter: c.after})
		var p struct {
			RetryAfter json.Number `json:"retry_after_s"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		if got := w.Header().Get("Retry-After"); got != c.want || p.RetryAfter.String() != c.want {
			t.Errorf("%s after %s: Retry-After %q, retry_after_s %q, want %q", c.code, c.after, got, p.RetryAfter, c.want)
		}
	}
}

// coldPool lends for a reason, and the call fails.
type coldPool struct{ fakePool }

func (*coldPool) Do(ctx context.Context, _ *hearth.Version, fn func(context.Context, Instance) error) error {
	ctx, cancel := context.WithCancel(ctx)
	cancel() // so that the instance needs no connection
	return fn(ctx, Instance{Conn: &guest.Conn{}, ID: "i-1", Cold: true, ColdReason: hearth.ColdEvicted})
}

// kept collects records.
type kept []hearth.Invocation

func (k *kept) Record(r hearth.Invocation) { *k = append(*k, r) }

func (k *kept) Refused(r hearth.Invocation) bool {
	k.Record(r)
	return true
}

func TestColdReasonIsTold(t *testing.T) {
	g, _, _ := newGateway(t, versionWith("f"))
	var records kept
	g.cfg.Pool, g.cfg.Recorder = &coldPool{}, &records
	h := get(g, "GET", "/fn/f/").Header()
	if h.Get("Hearth-Start") != "cold" || h.Get("Hearth-Cold-Reason") != "evicted" {
		t.Errorf("headers %v", h)
	}
	if len(records) != 1 || records[0].Instance != "i-1" || !records[0].Cold || records[0].ColdReason != hearth.ColdEvicted {
		t.Errorf("records %+v", records)
	}
	g.cfg.Pool = &fakePool{}
	if _, has := get(g, "GET", "/fn/f/").Header()["Hearth-Cold-Reason"]; has {
		t.Error("a call that was not cold has a reason")
	}
}

// slowPool lets calls wait in vain.
type slowPool struct{ fakePool }

func (*slowPool) Do(ctx context.Context, _ *hearth.Version, _ func(context.Context, Instance) error) error {
	<-ctx.Done()
	return hearth.Errorf(hearth.CodeTimeout, "no instance")
}

func TestWaitInVainIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := newGateway(t, versionWith("f"))
		g.cfg.Pool = &slowPool{}
		w := get(g, "GET", "/fn/f/")
		if got := w.Header().Get("Server-Timing"); w.Code != 504 || got != "queue;dur=30000, start;dur=0, init;dur=0" {
			t.Errorf("%d, Server-Timing: %s", w.Code, got)
		}
	})
}

func TestConnectIsRefused(t *testing.T) {
	g, _, _ := newGateway(t, versionWith("any", "/{rest...}"))
	for _, path := range []string{"/fn/any/", "/x", ""} {
		r := httptest.NewRequest("CONNECT", "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		if g.ServeHTTP(w, r); w.Code != 400 || w.Header().Get("Hearth-Error") != "invalid" {
			t.Errorf("CONNECT %q: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestPathParams(t *testing.T) {
	for _, c := range []struct {
		route hearth.Route
		path  string
		want  [][2]string
	}{
		{"GET /hello/{who}", "/hello/J%C3%BCrgen%2FX", [][2]string{{"who", "Jürgen/X"}}},
		{"/a/{x}/b/{y}", "/a/1/b/2", [][2]string{{"x", "1"}, {"y", "2"}}},
		{"/files/{path...}", "/files/a/b", [][2]string{{"path", "a/b"}}},
		{"/files/{path...}", "/files/", [][2]string{{"path", ""}}},
		{"/dir/{x}/{$}", "/dir/1/", [][2]string{{"x", "1"}}},
		{"/dir/{x}/", "/dir/1/2", [][2]string{{"x", "1"}}},
		{"/plain", "/plain", nil},
	} {
		if got := pathParams(c.route, c.path); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s of %s: %q, want %q", c.path, c.route, got, c.want)
		}
	}
}

func TestCheckRoutes(t *testing.T) {
	g, _, _ := newGateway(t, versionWith("a", "/a/{x}/c", "GET /same"), versionWith("b", "/b"))
	for _, c := range []struct {
		function string
		route    hearth.Route
		owner    string // "" for none
	}{
		{"new", "/free", ""},
		{"new", "/b", "b"},
		{"new", "POST /same", ""},
		{"new", "/same", ""}, // GET /same is more specific
		{"new", "/a/b/{y}", "a"},
		{"a", "/a/b/{y}", ""}, // its own routes are replaced
		{"b", "GET /same", "a"},
	} {
		err := g.CheckRoutes(c.function, hearth.Live, []hearth.Route{c.route})
		if (err != nil) != (c.owner != "") {
			t.Errorf("%s %s: %v", c.function, c.route, err)
		} else if err != nil && (hearth.ErrorCode(err) != hearth.CodeConflict || !strings.Contains(err.Error(), "of function "+c.owner)) {
			t.Errorf("%s %s: %v", c.function, c.route, err)
		}
	}
	if err := g.CheckRoutes("new", hearth.Live, []hearth.Route{"/n/{a}/c", "/n/b/{c}"}); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("two routes of one function: %v", err)
	}
}

func TestReloadTellsWhatIsLive(t *testing.T) {
	g, catalog, pool := newGateway(t, versionWith("a"), versionWith("b"), versionWith("c"))
	next := versionWith("b")
	next.Incarnation = "b2"
	*catalog = fakeCatalog{versionWith("a"), next}
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b2"}; !reflect.DeepEqual(pool.live, want) {
		t.Errorf("live are %v, want %v", pool.live, want)
	}
}

func TestUntrustedForwardingIsDropped(t *testing.T) {
	r := httptest.NewRequest("GET", "http://example.com/p", nil)
	r.RemoteAddr = "198.51.100.7:1234"
	for name, value := range map[string]string{
		"X-Forwarded-For": "1.1.1.1", "X-Forwarded-Proto": "https", "Forwarded": "for=1.1.1.1",
		"Connection": "X-Secret, close", "X-Secret": "s", "Keep-Alive": "5", "Te": "trailers", "X-Kept": "k",
	} {
		r.Header.Set(name, value)
	}
	v := versionWith("f")
	var event struct {
		Headers map[string]string
		Context struct {
			HTTP struct{ SourceIP string }
		} `json:"requestContext"`
	}
	of := hearth.NewTrace(true)
	b := appendEvent(nil, r, &target{version: &v, path: "/p", routeKey: "$default"}, "id", of, time.Now())
	if err := json.Unmarshal(b, &event); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"host": "example.com", "x-forwarded-for": "198.51.100.7", "x-forwarded-proto": "http",
		"x-forwarded-host": "example.com", "x-kept": "k", "traceparent": of.Traceparent(),
	}
	if !reflect.DeepEqual(event.Headers, want) || event.Context.HTTP.SourceIP != "198.51.100.7" {
		t.Errorf("headers %v, source %s", event.Headers, event.Context.HTTP.SourceIP)
	}
}

// A function does not set the cookies of Hearth, which may be those of another function.
func TestFunctionsSetNoCookiesOfHearth(t *testing.T) {
	for value, dropped := range map[string]bool{
		"hearth_g_live=2": true, " hearth_g_live=2; Path=/": true, "=hearth_g_live=2": true, "= \thearth_g_live": true,
		"session=1": false, "my_hearth_=1": false, "Hearth_g_live=2": false, // names have their case
	} {
		bubble(t, "", func(t *testing.T) {
			s := newSite(t, Config{}, func(int, event) reply { return reply{header: []string{"set-cookie: " + value}} }, versionWith("f"))
			a := s.get("/fn/f/")
			if got := a.header["Set-Cookie"]; a.status != 200 || (len(got) == 0) != dropped {
				t.Errorf("%q: %d %q", value, a.status, got)
			}
		})
	}
}

// A client must not speak in the name of Hearth or of a proxy, also not with
// names that frameworks take for the same.
func TestSpoofedHeadersAreDropped(t *testing.T) {
	r := httptest.NewRequest("GET", "http://example.com/p", nil)
	r.RemoteAddr = "127.0.0.1:1234"
	r.Header = http.Header{
		"Hearth-Invocation-Id": {"spoof"}, "Hearth_start": {"warm"}, "X_Forwarded_For": {"1.1.1.1"},
		"X-Forwarded_proto": {"https"}, "X-Forwarded-For": {"1.1.1.1, not an address"}, "A_b": {"kept"},
	}
	v := versionWith("f")
	var event struct {
		Headers map[string]string
		Context struct {
			HTTP struct{ SourceIP string }
		} `json:"requestContext"`
	}
	of := hearth.NewTrace(true)
	b := appendEvent(nil, r, &target{version: &v, path: "/p", routeKey: "$default"}, "id", of, time.Now())
	if err := json.Unmarshal(b, &event); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"host": "example.com", "x-forwarded-for": "1.1.1.1, not an address, 127.0.0.1", "x-forwarded-proto": "http",
		"x-forwarded-host": "example.com", "a_b": "kept", "traceparent": of.Traceparent(),
	}
	if !reflect.DeepEqual(event.Headers, want) || event.Context.HTTP.SourceIP != "127.0.0.1" {
		t.Errorf("headers %v, source %s", event.Headers, event.Context.HTTP.SourceIP)
	}
}

func TestFunctionCannotClaimTimings(t *testing.T) {
	w := httptest.NewRecorder()
	x := &exchange{w: w, r: httptest.NewRequest("GET", "/", nil), begin: time.Now(), limit: 100}
	x.head = &guest.Head{Status: 200, Headers: [][2]string{
		{"server-timing", "db;dur=3"}, {"server-timing", "cache, QUEUE ;dur=999"}, {"server-timing", "run"},
	}}
	x.writeHead(0)
	if got := w.Header()["Server-Timing"]; len(got) != 2 || got[0] != "db;dur=3" || !strings.HasPrefix(got[1], "queue;dur=0,") {
		t.Errorf("Server-Timing: %q", got)
	}
}

// keptLogs collects lines.
type keptLogs []hearth.LogLine

func (k *keptLogs) Append(l hearth.LogLine) { *k = append(*k, l) }

func TestErrorTextIsSplitIntoLines(t *testing.T) {
	g, _, _ := newGateway(t)
	var lines keptLogs
	g.cfg.Logs = &lines
	e := hearth.Errorf(hearth.CodeFunction, "a\r\n2026-01-01 hearth fake\n")
	e.Function = &hearth.FunctionError{Stack: []string{"timeout: fake\n", "  at f\ninternal: fake"}}
	g.logError(&hearth.Invocation{}, e)
	var got []string
	for _, l := range lines {
		got = append(got, l.Text)
	}
	want := []string{"function_error: a", "  | 2026-01-01 hearth fake", "  | timeout: fake", "  |   at f", "  | internal: fake"}
	if !slices.Equal(got, want) {
		t.Errorf("lines %q", got)
	}
}

// FuzzEvent: whatever a client sends, the event is valid JSON that says the same.
func FuzzEvent(f *testing.F) {
	f.Add("/a/b", "x=1&y=%zz", "X-Header", "value \"quoted\"", "a=b; c")
	f.Add("/\x00\xff", "\x80", "Connection", "\\u0000\x01\x7f", "\xf0\x9f")
	f.Fuzz(func(t *testing.T, path, query, name, value, cookie string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL = &url.URL{Path: path, RawQuery: query}
		r.Header = http.Header{"X-Fixed": {value}, "Cookie": {cookie}}
		if canonical := http.CanonicalHeaderKey(name); validToken(name) {
			r.Header[canonical] = append(r.Header[canonical], value)
		}
		v := versionWith("f")
		b := appendEvent(nil, r, &target{version: &v, path: path, routeKey: "$default", params: [][2]string{{"p", value}, {"q", path}}}, "id", hearth.NewTrace(true), time.Now())
		var event struct {
			RawQueryString string
			Headers        map[string]string
			PathParameters map[string]string
		}
		if err := json.Unmarshal(b, &event); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		if utf8.ValidString(query) && event.RawQueryString != query {
			t.Errorf("query %q became %q", query, event.RawQueryString)
		}
		if utf8.ValidString(value) && event.PathParameters["p"] != value {
			t.Errorf("value %q became %q", value, event.PathParameters["p"])
		}
	})
}

func validToken(s string) bool {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) {
			return false
		}
	}
	return s != ""
}

func FuzzRoute(f *testing.F) {
	f.Add("GET /a/{b}/{c...}", "/a/1/2/3")
	f.Fuzz(func(t *testing.T, route, path string) {
		r := hearth.Route(route)
		if r.Validate() != nil {
			return
		}
		table := emptyTable()
		if err := table.add(ownedRoute{"f", hearth.Live, r}, &endpoint{}); err != nil {
			t.Fatalf("a valid route is refused: %q: %v", route, err)
		}
		pathParams(r, path)
	})
}

func TestClientNetwork(t *testing.T) {
	for _, c := range []struct{ remote, forwarded, want string }{
		{"192.0.2.7:1234", "", "192.0.2.7"},
		{"192.0.2.7:1234", "198.51.100.1", "192.0.2.7"}, // it may say what it likes
		{"127.0.0.1:1234", "203.0.113.9, 198.51.100.1", "198.51.100.1"},
		{"127.0.0.1:1234", "", "127.0.0.1"},
		{"[2001:db8:1:2:3:4:5:6]:1234", "", "2001:db8:1::/48"},
		{"[::ffff:192.0.2.7]:1234", "", "192.0.2.7"},
		{"[fe80::1%eth0]:1234", "", "fe80::/48"},
		{"@", "", ""},
	} {
		r := httptest.NewRequest("POST", "/fn/f/", nil)
		r.RemoteAddr = c.remote
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := clientNetwork(r); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
