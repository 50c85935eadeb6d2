package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

var discard = slog.New(slog.DiscardHandler)

// cachedVersion has a cache and a route /page/{id} whose ttl is a minute.
func cachedVersion(name string, change ...func(*hearth.Cache)) hearth.Version {
	route := hearth.Route("/" + name + "/{id...}")
	v := versionWith(name, route)
	v.Config.Cache = &hearth.Cache{TTL: map[hearth.Route]hearth.Duration{route: hearth.Duration(time.Minute)}}
	for _, c := range change {
		c(v.Config.Cache)
	}
	return v
}

func authorized(c *hearth.Cache) { c.Authorized = true }

// says makes a function that always answers with these header lines.
func says(header ...string) func(int, event) reply {
	return func(int, event) reply { return reply{header: header} }
}

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestCacheLifetime(t *testing.T) {
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for name, c := range map[string]struct {
		header func() []string
		status int
		path   string        // /fn/f/ by default
		want   time.Duration // 0: not kept
	}{
		"max-age":                  {header: func() []string { return []string{"Cache-Control: max-age=10"} }, want: 10 * time.Second},
		"public, max-age":          {header: func() []string { return []string{"Cache-Control: public, max-age=10"} }, want: 10 * time.Second},
		"s-maxage counts more":     {header: func() []string { return []string{"Cache-Control: max-age=10, s-maxage=20"} }, want: 20 * time.Second},
		"s-maxage of 0":            {header: func() []string { return []string{"Cache-Control: max-age=10, s-maxage=0"} }},
		"two lines":                {header: func() []string { return []string{"Cache-Control: max-age=10", "Cache-Control: no-store"} }},
		"the lesser of two":        {header: func() []string { return []string{"Cache-Control: max-age=10, max-age=5"} }, want: 5 * time.Second},
		"must-revalidate":          {header: func() []string { return []string{"Cache-Control: max-age=10, must-revalidate"} }, want: 10 * time.Second},
		"no-store":                 {header: func() []string { return []string{"Cache-Control: No-Store, max-age=10"} }},
		"no-cache":                 {header: func() []string { return []string{"Cache-Control: no-cache, max-age=10"} }},
		"no-cache of a field":      {header: func() []string { return []string{`Cache-Control: no-cache="x, y", max-age=10`} }},
		"private":                  {header: func() []string { return []string{"Cache-Control: private, max-age=10"} }},
		"private of a field":       {header: func() []string { return []string{`Cache-Control: private=x,max-age=10`} }},
		"quoted age":               {header: func() []string { return []string{`Cache-Control: max-age="10"`} }, want: 10 * time.Second},
		"bad age":                  {header: func() []string { return []string{"Cache-Control: max-age=-10"} }},
		"public only":              {header: func() []string { return []string{"Cache-Control: public"} }},
		"public only, with a ttl":  {header: func() []string { return []string{"Cache-Control: public"} }, path: "/f/x"},
		"Expires":                  {header: func() []string { return []string{"Expires: " + at(15*time.Second)} }, want: 15 * time.Second},
		"Expires after Date":       {header: func() []string { return []string{"Date: " + at(0), "Expires: " + at(15*time.Second)} }, want: 15 * time.Second},
		"max-age counts more":      {header: func() []string { return []string{"Expires: " + at(15*time.Second), "Cache-Control: max-age=3"} }, want: 3 * time.Second},
		"Expires in the past":      {header: func() []string { return []string{"Expires: " + at(-time.Second)} }, path: "/f/x"},
		"Expires 0":                {header: func() []string { return []string{"Expires: 0"} }, path: "/f/x"},
		"Age":                      {header: func() []string { return []string{"Cache-Control: max-age=10", "Age: 4"} }, want: 6 * time.Second},
		"Age over":                 {header: func() []string { return []string{"Cache-Control: max-age=10", "Age: 10"} }},
		"Date of another cache":    {header: func() []string { return []string{"Cache-Control: max-age=10", "Date: " + at(-7*time.Second)} }, want: 3 * time.Second},
		"Date in the future":       {header: func() []string { return []string{"Cache-Control: max-age=10", "Date: " + at(time.Hour)} }, want: 10 * time.Second},
		"nothing":                  {},
		"nothing, with a ttl":      {path: "/f/x", want: time.Minute},
		"Last-Modified is no ttl":  {header: func() []string { return []string{"Last-Modified: " + at(-time.Hour)} }},
		"own age, with a ttl":      {header: func() []string { return []string{"Cache-Control: max-age=10"} }, path: "/f/x", want: 10 * time.Second},
		"no-store, with a ttl":     {header: func() []string { return []string{"Cache-Control: no-store"} }, path: "/f/x"},
		"Set-Cookie":               {header: func() []string { return []string{"Cache-Control: max-age=10", "Set-Cookie: a=b"} }},
		"Set-Cookie, with a ttl":   {header: func() []string { return []string{"Set-Cookie: a=b"} }, path: "/f/x"},
		"Content-Range":            {header: func() []string { return []string{"Cache-Control: max-age=10", "Content-Range: bytes 0-0/9"} }},
		"Vary: *":                  {header: func() []string { return []string{"Cache-Control: max-age=10", "Vary: Accept, *"} }},
		"Vary by the peer":         {header: func() []string { return []string{"Cache-Control: max-age=10", "Vary: X-Forwarded-For"} }},
		"Vary by what is no name":  {header: func() []string { return []string{"Cache-Control: max-age=10", "Vary: a b"} }},
		"200 with the longest age": {header: func() []string { return []string{"Cache-Control: max-age=99999999999999999999"} }, want: maxSeconds * time.Second},
		"203":                      {status: 203, path: "/f/x", want: time.Minute},
		"204":                      {status: 204, path: "/f/x", want: time.Minute},
		"206":                      {status: 206, path: "/f/x", header: func() []string { return []string{"Cache-Control: max-age=10"} }},
		"300":                      {status: 300, path: "/f/x", want: time.Minute},
		"301":                      {status: 301, path: "/f/x", header: func() []string { return []string{"Location: /"} }, want: time.Minute},
		"302":                      {status: 302, path: "/f/x", header: func() []string { return []string{"Location: /", "Cache-Control: max-age=10"} }},
		"304":                      {status: 304, path: "/f/x", header: func() []string { return []string{"Cache-Control: max-age=10"} }},
		"404 with a ttl":           {status: 404, path: "/f/x"},
		"404 of its own will":      {status: 404, path: "/f/x", header: func() []string { return []string{"Cache-Control: max-age=10"} }, want: 10 * time.Second},
		"410":                      {status: 410, header: func() []string { return []string{"Cache-Control: max-age=10"} }, want: 10 * time.Second},
		"500":                      {status: 500, path: "/f/x", header: func() []string { return []string{"Cache-Control: max-age=10"} }},
		"503":                      {status: 503, header: func() []string { return []string{"Cache-Control: max-age=10"} }},
	} {
		bubble(t, name, func(t *testing.T) {
			s := newSite(t, Config{}, func(int, event) reply {
				r := reply{status: c.status}
				if c.header != nil {
					r.header = c.header()
				}
				return r
			}, cachedVersion("f"))
			path := c.path
			if path == "" {
				path = "/fn/f/"
			}
			body := func(n string) string {
				if c.status == 204 || c.status == 304 {
					return ""
				}
				return n
			}
			s.want(s.get(path), "warm", body("1"))
			if c.want == 0 {
				s.want(s.get(path), "warm", body("2"))
				return
			}
			time.Sleep(c.want - time.Second)
			a := s.get(path)
			s.want(a, "cached", body("1"))
			if c.status != 0 && a.status != c.status {
				t.Errorf("status %d, want %d", a.status, c.status)
			}
			time.Sleep(time.Second)
			s.want(s.get(path), "warm", body("2"))
		})
	}
}

func TestCachedAnswerIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("long", 100_000)
		s := newSite(t, Config{}, func(int, event) reply {
			return reply{body: long, header: []string{
				"Cache-Control: max-age=100", "Content-Type: text/x", "X-Two: a", "X-Two: b", "Etag: \"e\"",
				"Age: 7", "Server-Timing: db;dur=3", "Connection: X-Two", "Hearth-Start: cold",
			}}
		}, cachedVersion("f"))
		first := s.get("/fn/f/a?b=c")
		s.want(first, "warm", long)
		time.Sleep(3500 * time.Millisecond)
		a := s.get("/fn/f/a?b=c")
		s.want(a, "cached", long)
		for name, want := range map[string]string{
			"Age": "10", "Content-Type": "text/x", "X-Two": "a b", "Cache-Control": "max-age=100", "Etag": `"e"`,
			"Content-Length": "400000", "Server-Timing": "queue;dur=0, start;dur=0, init;dur=0", "Connection": "",
			"Date": first.header.Get("Date"),
		} {
			if got := strings.Join(a.header[name], " "); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		id := a.header.Get("Hearth-Invocation-Id")
		if id == "" || id == first.header.Get("Hearth-Invocation-Id") {
			t.Errorf("invocation id %q", id)
		}
		synctest.Wait()
		rec := s.records.last()
		want := hearth.Invocation{
			ID: id, Function: "f", Version: 1, Alias: hearth.Live, Isolation: "native", Kind: hearth.KindHTTP, Method: "GET", Path: "/fn/f/a",
			Status: 200, Cached: true, BytesOut: 400_000, StartedAt: rec.StartedAt, Trace: rec.Trace,
		}
		if !reflect.DeepEqual(rec, want) {
			t.Errorf("record %+v, want %+v", rec, want)
		}

		a = s.do(t.Context(), "HEAD", "/fn/f/a?b=c")
		s.want(a, "cached", "")
		if a.header.Get("Content-Length") != "400000" || s.records.last().BytesOut != 0 {
			t.Errorf("HEAD: %v, record %+v", a.header, s.records.last())
		}
		// Another URL is another response; a HEAD's is of no use to a GET.
		for _, path := range []string{"/fn/f/a", "/fn/f/a?b=d", "/fn/f/A?b=c", "/fn/f/%61?b=c", "/fn/f//a?b=c", "http://other.example/fn/f/a?b=c"} {
			if a := s.do(t.Context(), "HEAD", path); a.start() != "warm" {
				t.Errorf("HEAD %s is %s", path, a.start())
			}
			if a := s.get(path); a.start() != "warm" {
				t.Errorf("GET %s is %s", path, a.start())
			}
			if a := s.get(path); a.start() != "cached" {
				t.Errorf("again GET %s is %s", path, a.start())
			}
		}
		if a := s.do(t.Context(), "OPTIONS", "/fn/f/a?b=c"); a.start() != "warm" {
			t.Errorf("OPTIONS is %s", a.start())
		}
	})
}

// Each request is sent twice after one without its header; what it is the second
// time tells whether its responses are kept.
func TestRequestsThatBypassTheCache(t *testing.T) {
	for _, c := range []struct {
		header, first, second string
	}{
		{"X-Any: thing", "cached", "cached"},
		{"Cache-Control: no-cache", "cached", "cached"},
		{"Cache-Control: max-age=0", "cached", "cached"},
		{"Cache-Control: only-if-cached", "cached", "cached"},
		{"Cache-Control: no-store", "cached", "cached"},
		{"Pragma: no-cache", "cached", "cached"},
		{"Range: bytes=0-1", "warm", "warm"},
		{"If-Range: x", "warm", "warm"},
		{`If-Match: "x"`, "warm", "warm"},
		{"If-Unmodified-Since: x", "warm", "warm"},
		{"Authorization: Bearer x", "warm", "warm"},
		{"Cookie: a=b", "warm", "warm"},
		// What makes frameworks see another URL or method is a request of its own.
		{"X-Original-Url: /admin", "warm", "cached"},
		{"X-Http-Method-Override: DELETE", "warm", "cached"},
		{"X-Forwarded-Host: evil.example", "warm", "cached"},
		{"X-Forwarded-Proto: https", "warm", "cached"},
		{"X-Forwarded-Protocol: https", "warm", "cached"},
		{"X-Forwarded-Uri: /admin", "warm", "cached"},
		{"X-Forwarded-For: 192.0.2.1", "cached", "cached"},
		{"Forwarded: host=evil.example", "warm", "cached"},
		{"X-Url-Scheme: https", "warm", "cached"},
		// Frameworks on CGI and WSGI take an underscore for a dash.
		{"X_Original_Url: /admin", "warm", "cached"},
		{"X-Http-Method_Override: DELETE", "warm", "cached"},
	} {
		bubble(t, c.header, func(t *testing.T) {
			s := newSite(t, Config{}, says("Cache-Control: max-age=10"), cachedVersion("f"))
			s.want(s.get("/fn/f/"), "warm", "1")
			if a := s.get("/fn/f/", c.header); a.start() != c.first {
				t.Errorf("at first it is %s", a.start())
			}
			if a := s.get("/fn/f/", c.header); a.start() != c.second {
				t.Errorf("then it is %s", a.start())
			}
			s.want(s.get("/fn/f/"), "cached", "1")
		})
	}
	bubble(t, "no-store keeps nothing", func(t *testing.T) {
		s := newSite(t, Config{}, says("Cache-Control: max-age=10"), cachedVersion("f"))
		s.want(s.get("/fn/f/", "Cache-Control: no-store"), "warm", "1")
		s.want(s.get("/fn/f/"), "warm", "2")
	})
	bubble(t, "a function without a cache", func(t *testing.T) {
		s := newSite(t, Config{}, says("Cache-Control: max-age=10"), versionWith("f"))
		s.want(s.get("/fn/f/"), "warm", "1")
		s.want(s.get("/fn/f/"), "warm", "2")
	})
	bubble(t, "a body", func(t *testing.T) {
		s := newSite(t, Config{}, says("Cache-Control: max-age=10"), cachedVersion("f"))
		for _, want := range []string{"1", "2"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", "http://site.example/fn/f/", strings.NewReader("poison"))
			if err != nil {
				t.Fatal(err)
			}
			w, err := s.client.Do(r)
			if err != nil || w.Header.Get("Hearth-Start") != "warm" {
				t.Fatalf("%v %v", w, err)
			}
			w.Body.Close()
			if got := fmt.Sprint(s.calls()); got != want {
				t.Errorf("%s calls, want %s", got, want)
			}
		}
	})
}

func TestVary(t *testing.T) {
	type request struct{ header, start string }
	for name, c := range map[string]struct {
		vary     string
		requests []request
	}{
		"one header": {"Accept-Language", []request{
			{"Accept-Language: de", "warm"},
			{"Accept-Language: en", "warm"},
			{"Accept-Language: de", "cached"},
			{"Accept-Language: en", "cached"},
			{"X-Other: x", "warm"},
			{"", "cached"},
		}},
		"what means the same": {"accept-encoding, ACCEPT-LANGUAGE", []request{
			{"Accept-Encoding: gzip, br", "warm"},
			{"Accept-Encoding: GZIP,br", "cached"},
			{"Accept-Encoding: gzip\tbr", "warm"},
			{"Accept-Encoding: br, gzip", "warm"},
		}},
		"what may mean something else": {"X-Title", []request{
			{"X-Title: a b", "warm"},
			{"X-Title: a  b", "warm"},
			{"X-Title: A b", "warm"},
			{"X-Title: a b", "cached"},
		}},
		"hidden from the function": {"X-Title", []request{
			{"Connection: X-Title|X-Title: a", "warm"},
			{"X-Title: a", "warm"},
			{"", "cached"}, // what the first one got is what it would get
		}},
		"with an underscore": {"Accept-Language", []request{
			{"Accept_Language: de", "warm"},
			{"", "warm"},
			{"Accept_Language: de", "cached"},
			{"", "cached"},
		}},
		"none and empty": {"X-Title", []request{
			{"X-Title: ", "warm"},
			{"", "warm"},
			{"X-Title: ", "cached"},
		}},
		"host": {"Host", []request{{"", "warm"}, {"", "cached"}}},
	} {
		bubble(t, name, func(t *testing.T) {
			s := newSite(t, Config{}, says("Cache-Control: max-age=10", "Vary: "+c.vary), cachedVersion("f"))
			for i, r := range c.requests {
				var lines []string
				if r.header != "" {
					lines = strings.Split(r.header, "|")
				}
				if a := s.get("/fn/f/", lines...); a.start() != r.start {
					t.Errorf("request %d, %q, is %s, want %s", i, r.header, a.start(), r.start)
				}
			}
		})
	}
}

// Responses of one URL may depend on different headers.
func TestVaryGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, Config{}, func(_ int, e event) reply {
			r := reply{header: []string{"Cache-Control: max-age=10"}}
			if e.Headers["x-user"] != "" {
				r.header = append(r.header, "Vary: X-User")
			}
			return r
		}, cachedVersion("f"))
		s.want(s.get("/fn/f/", "X-User: a"), "warm", "1")
		s.want(s.get("/fn/f/"), "warm", "2")
		s.want(s.get("/fn/f/", "X-User: b"), "warm", "3") // and not what 2 got
		s.want(s.get("/fn/f/", "X-User: a"), "cached", "1")
		s.want(s.get("/fn/f/"), "cached", "2")
	})
}

func TestConditionalRequests(t *testing.T) {
	modified := "Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"
	for name, c := range map[string]struct {
		header, request string
		status          int
	}{
		"tag":                {`Etag: "a"`, `If-None-Match: "a"`, 304},
		"weak tag":           {`Etag: W/"a"`, `If-None-Match: "a"`, 304},
		"weakly asked":       {`Etag: "a"`, `If-None-Match: W/"a"`, 304},
		"one of many":        {`Etag: "a"`, `If-None-Match: "x, y" , W/"z","a"`, 304},
		"any":                {`Etag: "a"`, `If-None-Match: *`, 304},
		"another tag":        {`Etag: "a"`, `If-None-Match: "b", "aa"`, 200},
		"tag in a tag":       {`Etag: "a"`, `If-None-Match: "x,"a"`, 200},
		"malformed":          {`Etag: "a"`, `If-None-Match: a`, 200},
		"no tag":             {`X-Tag: "a"`, `If-None-Match: "a"`, 200},
		"since then":         {modified, "If-Modified-Since: Mon, 02 Jan 2006 15:04:05 GMT", 304},
		"since later":        {modified, "If-Modified-Since: Mon, 02 Jan 2026 15:04:05 GMT", 304},
		"since before":       {modified, "If-Modified-Since: Mon, 02 Jan 2006 15:04:04 GMT", 200},
		"since no date":      {modified, "If-Modified-Since: yesterday", 200},
		"tags count more":    {modified, `If-None-Match: "a"|If-Modified-Since: Mon, 02 Jan 2026 15:04:05 GMT`, 200},
		"unknown when":       {`Etag: "a"`, "If-Modified-Since: Mon, 02 Jan 2006 15:04:05 GMT", 200},
		"not for other than": {`Etag: "a"|404`, `If-None-Match: "a"`, 404},
	} {
		bubble(t, name, func(t *testing.T) {
			header, status, _ := strings.Cut(c.header, "|")
			s := newSite(t, Config{}, func(_ int, e event) reply {
				if e.Headers["if-none-match"]+e.Headers["if-modified-since"] != "" {
					t.Errorf("the function is asked to compare: %v", e.Headers)
				}
				r := reply{header: []string{"Cache-Control: max-age=10", "Content-Type: text/x", "X-Kept: yes", header}}
				fmt.Sscan(status, &r.status) //nolint:errcheck // mostly there is none
				return r
			}, cachedVersion("f"))
			// A condition does not keep a response from being kept, and is honoured
			// whoever answers.
			for _, start := range []string{"warm", "cached"} {
				a := s.get("/fn/f/", strings.Split(c.request, "|")...)
				body := "1"
				if c.status == 304 {
					body = ""
				}
				s.want(a, start, body)
				if a.status != c.status || a.header.Get("X-Kept") != "yes" || s.records.last().Status != c.status {
					t.Errorf("%s: %d %v, record %+v", start, a.status, a.header, s.records.last())
				}
				if has := a.header.Get("Content-Type") != ""; has != (c.status != 304) {
					t.Errorf("%s: content type %q", start, a.header.Get("Content-Type"))
				}
			}
			s.want(s.get("/fn/f/"), "cached", "1")
		})
	}
	bubble(t, "where nothing can be kept the function compares", func(t *testing.T) {
		s := newSite(t, Config{}, func(n int, e event) reply {
			if n > 1 && e.Headers["if-none-match"] != `"a"` {
				t.Errorf("call %d has headers %v", n, e.Headers)
			}
			return reply{header: []string{"Cache-Control: no-cache", `Etag: "a"`}}
		}, cachedVersion("f"))
		s.want(s.get("/fn/f/", `If-None-Match: "a"`), "warm", "")
		s.want(s.get("/fn/f/", `If-None-Match: "a"`), "warm", "2")
	})
}

func TestAuthorizedCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, Config{}, says("Cache-Control: max-age=10"), cachedVersion("f", authorized))
		for i, header := range []string{"Authorization: Bearer a", "Authorization: Bearer b", "Cookie: s=a", "Cookie: s=b", "X-None: x"} {
			s.want(s.get("/fn/f/", header), "warm", fmt.Sprint(i+1))
			s.want(s.get("/fn/f/", header), "cached", fmt.Sprint(i+1))
		}
		// What was put for one of them is gone for all.
		if a := s.do(t.Context(), "POST", "/fn/f/", "Authorization: Bearer a"); a.start() != "warm" {
			t.Errorf("POST is %s", a.start())
		}
		s.want(s.get("/fn/f/", "Cookie: s=b"), "warm", "7")
	})
}

func TestChangesInvalidate(t *testing.T) {
	for _, c := range []struct {
		method string
		status int
		want   string
	}{
		{"POST", 201, "warm"},
		{"PUT", 204, "warm"},
		{"DELETE", 303, "warm"},
		{"PATCH", 200, "warm"},
		{"POST", 404, "cached"},
		{"POST", 500, "cached"},
		{"OPTIONS", 200, "cached"},
		{"HEAD", 200, "cached"},
	} {
		bubble(t, fmt.Sprint(c.method, c.status), func(t *testing.T) {
			s := newSite(t, Config{}, func(_ int, e event) reply {
				r := reply{header: []string{"Cache-Control: max-age=10"}}
				if e.Context.HTTP.Method != "GET" {
					r.status = c.status
				}
				return r
			}, cachedVersion("f"))
			s.get("/fn/f/")
			s.get("/fn/f/?other")
			s.do(t.Context(), c.method, "/fn/f/")
			if a := s.get("/fn/f/"); a.start() != c.want {
				t.Errorf("afterwards it is %s", a.start())
			}
			if a := s.get("/fn/f/?other"); a.start() != "cached" {
				t.Errorf("another URL is %s", a.start())
			}
		})
	}
}

// stored is a queue that runs nothing by itself.
type stored struct{ list []hearth.AsyncEntry }

func (s *stored) Accept(_ context.Context, r hearth.AsyncRequest) (hearth.AsyncCall, bool, error) {
	e := hearth.AsyncEntry{AsyncCall: hearth.AsyncCall{ID: r.ID, Target: r.Target, Kind: r.Kind}, AsyncPayload: r.AsyncPayload}
	s.list = append(s.list, e)
	return e.AsyncCall, true, nil
}

func (s *stored) Reloaded() {}

func (s *stored) AcceptAll(context.Context, []hearth.AsyncRequest) ([]hearth.AsyncCall, error) {
	return nil, nil
}

// A change that is made later is one when it is made.
func TestLaterChangesInvalidate(t *testing.T) {
	const path = "/fn/f/a%2Fb/%7e?x=%41"
	for _, c := range []struct {
		method string
		status int
		want   string
	}{{"POST", 201, "warm"}, {"DELETE", 204, "warm"}, {"POST", 500, "cached"}, {"GET", 200, "cached"}} {
		bubble(t, fmt.Sprint(c.method, c.status), func(t *testing.T) {
			queue := &stored{}
			s := newSite(t, Config{Queue: queue}, func(n int, _ event) reply {
				r := reply{header: []string{"Cache-Control: max-age=10"}}
				if n == 3 {
					r.status = c.status
				}
				return r
			}, cachedVersion("f"))
			s.get(path)
			s.get("/fn/f/a/b/~?x=A")
			if a := s.do(t.Context(), c.method, path, "Hearth-Invocation-Type: async"); a.status != 202 {
				t.Fatal(a)
			}
			if a := s.get(path); a.start() != "cached" {
				t.Errorf("before it runs it is %s", a.start())
			}
			if _, lent, err := s.gateway.RunAsync(t.Context(), queue.list[0], 1); err != nil || !lent {
				t.Fatal(lent, err)
			}
			if a := s.get(path); a.start() != c.want {
				t.Errorf("afterwards it is %s", a.start())
			}
			if a := s.get("/fn/f/a/b/~?x=A"); a.start() != "cached" {
				t.Errorf("another URL is %s", a.start())
			}
		})
	}
}

func TestDeployInvalidates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, Config{}, says("Cache-Control: max-age=10"), cachedVersion("f"), cachedVersion("g"))
		for _, path := range []string{"/fn/f/", "/fn/g/"} {
			s.get(path)
			if a := s.get(path); a.start() != "cached" {
				t.Errorf("%s is %s", path, a.start())
			}
		}
		next := cachedVersion("f")
		next.Incarnation, next.Number = "f2", 2
		*s.catalog = fakeCatalog{next, cachedVersion("g")}
		before := s.gateway.cache.used
		if err := s.gateway.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if used := s.gateway.cache.used; used != before/2 {
			t.Errorf("%d bytes of %d are still used", used, before)
		}
		s.want(s.get("/fn/f/"), "warm", "3")
		s.want(s.get("/fn/g/"), "cached", "2")
	})
}

func TestOnlyWholeResponsesAreKept(t *testing.T) {
	for name, c := range map[string]struct {
		reply reply
		kept  bool
		hangs bool
	}{
		"in pieces":         {reply: reply{then: []piece{{data: "two"}, {data: "three"}}}, kept: true},
		"at the bound":      {reply: reply{body: strings.Repeat("x", 1000)}, kept: true},
		"over the bound":    {reply: reply{body: strings.Repeat("x", 1001)}},
		"in pieces over it": {reply: reply{body: strings.Repeat("x", 600), then: []piece{{data: strings.Repeat("x", 600)}}}},
		"broken off":        {reply: reply{breaks: true}},
		"broken in pieces":  {reply: reply{then: []piece{{data: "two"}}, breaks: true}},
		"never ended":       {hangs: true},
	} {
		bubble(t, name, func(t *testing.T) {
			s := newSite(t, Config{MaxCached: 1000}, func(int, event) reply {
				r := c.reply
				r.header = []string{"Cache-Control: max-age=1000"}
				if c.hangs {
					r.then = []piece{{data: "two", after: make(chan struct{})}}
				}
				return r
			}, cachedVersion("f"))
			first := s.get("/fn/f/")
			second := s.get("/fn/f/")
			if (second.start() == "cached") != c.kept || c.kept && second.body != first.body {
				t.Errorf("%+v, then %+v", first, second)
			}
			if n := s.gateway.cache.collecting.Load(); n != 0 {
				t.Errorf("%d bytes are being collected", n)
			}
		})
	}
	bubble(t, "the client leaves", func(t *testing.T) {
		never := make(chan struct{})
		s := newSite(t, Config{}, func(int, event) reply {
			return reply{header: []string{"Cache-Control: max-age=1000"}, then: []piece{{data: "two", after: never}}}
		}, cachedVersion("f"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if a := s.do(ctx, "GET", "/fn/f/"); a.err == nil {
			t.Errorf("got %+v", a)
		}
		synctest.Wait()
		if a := s.do(t.Context(), "HEAD", "/fn/f/"); a.start() != "warm" {
			t.Errorf("then it is %s", a.start())
		}
	})
}

// burst sends n requests at once and returns their answers.
func (s *site) burst(n int, header ...string) []answer {
	answers := make([]answer, n)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = s.get("/fn/f/", header...) })
	}
	wg.Wait()
	return answers
}

func TestConcurrentMissesMakeOneCall(t *testing.T) {
	slow := func(d time.Duration, r reply) func(int, event) reply {
		return func(int, event) reply {
			time.Sleep(d)
			return r
		}
	}
	fresh := []string{"Cache-Control: max-age=100"}
	bubble(t, "kept", func(t *testing.T) {
		s := newSite(t, Config{}, slow(time.Second, reply{header: fresh}), cachedVersion("f"))
		begin := time.Now()
		for _, a := range s.burst(20) {
			if a.body != "1" {
				t.Errorf("%+v", a)
			}
		}
		if took := time.Since(begin); s.calls() != 1 || took != time.Second {
			t.Errorf("%d calls in %s", s.calls(), took)
		}
		waited := 0
		for _, r := range s.records.list {
			if r.Cached && r.Timings.Queue == time.Second && r.Timings.Run == 0 {
				waited++
			}
		}
		if waited != 19 {
			t.Errorf("%d have waited", waited)
		}
	})
	bubble(t, "not kept", func(t *testing.T) {
		s := newSite(t, Config{}, slow(time.Second, reply{}), cachedVersion("f"))
		begin := time.Now()
		s.burst(20)
		if took := time.Since(begin); s.calls() != 20 || took != 2*time.Second {
			t.Errorf("%d calls in %s", s.calls(), took)
		}
		for _, r := range s.records.list[1:] {
			if r.Timings.Queue != time.Second || r.Timings.Run != time.Second {
				t.Errorf("timings %+v", r.Timings)
			}
		}
		// From now on nobody waits for another.
		begin = time.Now()
		s.burst(20)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("the second burst took %s", took)
		}
	})
	bubble(t, "not kept at first", func(t *testing.T) {
		s := newSite(t, Config{}, func(n int, _ event) reply {
			if n == 1 {
				return reply{status: 500}
			}
			return reply{header: fresh}
		}, cachedVersion("f"))
		s.want(s.get("/fn/f/"), "warm", "1")
		s.want(s.get("/fn/f/"), "warm", "2")
		s.want(s.get("/fn/f/"), "cached", "2")
	})
	bubble(t, "the first one hangs", func(t *testing.T) {
		s := newSite(t, Config{}, func(n int, _ event) reply {
			if n == 1 {
				time.Sleep(time.Hour)
			}
			return reply{header: fresh}
		}, cachedVersion("f"))
		failed := 0
		for _, a := range s.burst(5) {
			if a.status != 200 {
				failed++
			}
		}
		if failed != 1 {
			t.Errorf("%d failed with it", failed)
		}
		time.Sleep(time.Hour) // ends the handler
	})
	bubble(t, "the first one fails", func(t *testing.T) {
		s := newSite(t, Config{}, func(n int, _ event) reply {
			time.Sleep(time.Second)
			return reply{header: fresh, breaks: n == 1}
		}, cachedVersion("f"))
		begin := time.Now()
		s.burst(5)
		if took := time.Since(begin); s.calls() != 5 || took != 2*time.Second {
			t.Errorf("%d calls in %s", s.calls(), took)
		}
	})
	bubble(t, "refused", func(t *testing.T) {
		busy := true
		s := newSite(t, Config{}, slow(time.Second, reply{header: fresh}), cachedVersion("f"))
		s.gateway.cfg.Pool = refusing{s.origin, &busy}
		if a := s.get("/fn/f/"); a.status != 429 {
			t.Errorf("%+v", a)
		}
		busy = false
		s.burst(5) // still together
		if s.calls() != 1 {
			t.Errorf("%d calls", s.calls())
		}
	})
	bubble(t, "the first one leaves", func(t *testing.T) {
		s := newSite(t, Config{}, slow(3*time.Second, reply{header: fresh}), cachedVersion("f"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go s.do(ctx, "GET", "/fn/f/")
		synctest.Wait()
		begin := time.Now()
		if a := s.get("/fn/f/"); a.status != 200 || time.Since(begin) != 4*time.Second {
			t.Errorf("%+v after %s", a, time.Since(begin))
		}
		synctest.Wait()
	})
	bubble(t, "the first one streams to one who does not read", func(t *testing.T) {
		end := make(chan struct{})
		s := newSite(t, Config{}, func(n int, _ event) reply {
			r := reply{header: fresh}
			if n == 1 {
				r.then = []piece{{data: "two", after: end}}
			}
			return r
		}, cachedVersion("f"))
		done := make(chan answer)
		go func() { done <- s.get("/fn/f/") }()
		synctest.Wait()
		s.want(s.get("/fn/f/"), "warm", "2")
		close(end)
		s.want(<-done, "warm", "1two")
	})
	bubble(t, "different responses", func(t *testing.T) {
		s := newSite(t, Config{}, slow(time.Second, reply{header: append(fresh, "Vary: Accept-Language")}), cachedVersion("f"))
		s.get("/fn/f/", "Accept-Language: fr") // now it is known that they differ
		var wg sync.WaitGroup
		for _, language := range []string{"de", "en"} {
			wg.Go(func() { s.burst(10, "Accept-Language: "+language) })
		}
		wg.Wait()
		if s.calls() != 3 {
			t.Errorf("%d calls", s.calls())
		}
	})
}

// refusing is a pool with no room while it is busy.
type refusing struct {
	*origin
	busy *bool
}

func (r refusing) Do(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error {
	if *r.busy {
		return hearth.Errorf(hearth.CodeExhausted, "busy")
	}
	return r.origin.Do(ctx, v, fn)
}

// check verifies the books of the cache.
func (c *cache) check(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var used int64
	for incarnation, s := range c.shares {
		var own int64
		n := 0
		for url, r := range s.resources {
			for variant, e := range r.variants {
				own += e.size
				n++
				if e.resource != r || e.variant != variant || r.url != url || r.share != s || s.incarnation != incarnation {
					t.Fatalf("an entry is in the wrong place: %+v", e)
				}
			}
		}
		if own != s.used || n != s.recent.Len() || n == 0 || own > c.share {
			t.Fatalf("share %s: %d bytes in %d entries, booked %d in %d", incarnation, own, n, s.used, s.recent.Len())
		}
		used += own
	}
	if used != c.used || used > c.limit {
		t.Fatalf("%d bytes, booked %d, limit %d", used, c.used, c.limit)
	}
}

func TestCacheMemory(t *testing.T) {
	now := time.Now()
	c := newCache(400<<10, 100<<10)
	put := func(incarnation, url string, size int, vary ...string) {
		k := &cacheKey{incarnation: incarnation, url: url, header: http.Header{"A": {url}}}
		c.put(k, vary, &entry{body: make([]byte, size), expires: now.Add(time.Minute)}, now)
	}
	has := func(incarnation, url string) bool {
		e, _, _ := c.get(&cacheKey{incarnation: incarnation, url: url}, now, false)
		return e != nil
	}
	// A function that is full loses its own least recently used.
	for i := range 20 {
		put("greedy", fmt.Sprint(i), 10<<10)
		if i < 9 && !has("greedy", "0") {
			t.Errorf("0 is gone with %d", i)
		}
	}
	if c.check(t); has("greedy", "1") || !has("greedy", "19") {
		t.Error("it is not the least recently used that went")
	}
	if put("greedy", "huge", 100<<10); has("greedy", "huge") || !has("greedy", "19") {
		t.Error("an entry over the share is kept")
	}
	// What is small stays when others fill everything.
	put("small", "page", 1<<10)
	for f := range 10 {
		for i := range 20 {
			put(fmt.Sprint("greedy", f), fmt.Sprint(i), 10<<10)
		}
	}
	if c.check(t); !has("small", "page") {
		t.Error("a small function lost its entry to greedy ones")
	}
	// Whatever happens, the books are right.
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		incarnation, url := fmt.Sprint(r.IntN(6)), fmt.Sprint(r.IntN(30))
		switch r.IntN(20) {
		case 0:
			c.invalidate(&cacheKey{incarnation: incarnation, url: url})
		case 1:
			c.retire(incarnation)
		default:
			put(incarnation, url, r.IntN(20<<10), []string{"A", "B", "C"}[:r.IntN(4)]...)
		}
	}
	c.check(t)
}

func TestCacheUnderConcurrentUse(t *testing.T) {
	s := newSite(t, Config{MaxCache: 200 << 10}, func(n int, e event) reply {
		r := reply{header: []string{"Cache-Control: max-age=1", "Vary: X-User"}, body: strings.TrimPrefix(e.RawPath, "/") + e.Headers["x-user"]}
		switch n % 10 {
		case 0:
			r.breaks = true
		case 1:
			r.header = nil
		case 2:
			r.header = append(r.header, "Vary: X-Other")
		case 3:
			r.then = []piece{{data: strings.Repeat("x", 3000)}}
		}
		return r
	}, cachedVersion("f", authorized), cachedVersion("g"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 150 {
				path := fmt.Sprint(r.IntN(12))
				url := "/fn/" + []string{"f", "g"}[r.IntN(2)] + "/" + path
				switch r.IntN(12) {
				case 0:
					s.do(t.Context(), "POST", url)
				case 1:
					if err := s.gateway.Reload(t.Context()); err != nil {
						t.Error(err)
					}
				case 2:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(2000))*time.Microsecond)
					s.do(ctx, "GET", url)
					cancel()
				default:
					user := []string{"", "a", "b"}[r.IntN(3)]
					var header []string
					if user != "" {
						header = []string{"X-User: " + user}
					}
					a := s.get(url, header...)
					if a.err == nil && a.status == 200 && strings.TrimRight(a.body, "x") != path+user {
						t.Errorf("%s for %q got %.40q", url, user, a.body)
					}
				}
			}
		})
	}
	wg.Wait()
	// Calls whose clients left may not have ended yet.
	if err := s.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.gateway.cache.check(t)
	if n := s.gateway.cache.collecting.Load(); n != 0 || len(s.gateway.cache.flights) != 0 {
		t.Errorf("%d bytes are being collected, %d flights", n, len(s.gateway.cache.flights))
	}
}

func FuzzCacheControl(f *testing.F) {
	for _, s := range []string{"max-age=1", `private="a, b", max-age="2"`, `x="\"`, "a b", "=", ",,", `a="b"c, d`, "s-maxage=99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := parseCacheControl([]string{s})
		if d.maxAge < -1 || d.maxAge > maxSeconds || d.sharedMaxAge < -1 || d.sharedMaxAge > maxSeconds {
			t.Errorf("%q: %+v", s, d)
		}
		// Nothing hides a no-store beside it.
		for _, lines := range [][]string{{s, "no-store"}, {"no-store", s}, {"no-store," + s}, {s + ",no-store"}} {
			if !parseCacheControl(lines).noStore {
				t.Errorf("%q: no-store is not found", lines)
			}
		}
		// Nor does anything make a lifetime longer.
		if d := parseCacheControl([]string{"max-age=5," + s}); d.maxAge > 5 {
			t.Errorf("%q: %+v", s, d)
		}
	})
}

func FuzzVaryAndTags(f *testing.F) {
	f.Add("Accept, accept", `"a", W/"b"`, "a")
	f.Fuzz(func(t *testing.T, vary, list, tag string) {
		names, ok := varyNames([]string{vary})
		if ok && (len(names) > maxVary || !slices.IsSorted(names) || slices.Contains(names, "*")) {
			t.Errorf("%q: %q", vary, names)
		}
		matchesTag(list, tag)
		if quoted := `"` + tag + `"`; !strings.Contains(tag, `"`) {
			if !matchesTag(quoted, quoted) || !matchesTag(`"other" , W/`+quoted, "W/"+quoted) {
				t.Errorf("%q does not match itself", quoted)
			}
		}
	})
}
