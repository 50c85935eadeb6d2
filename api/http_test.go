package api_test

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/client"
)

func TestGuard(t *testing.T) {
	h := newHost(t, func(d *api.Deps) { d.AllowedHosts = []string{"hearth.example"} })
	for _, c := range []struct {
		headers []string
		ok      bool
	}{
		{nil, true},
		{[]string{"RemoteAddr", "[::1]:99", "Host", "[::1]:8080"}, true},
		{[]string{"RemoteAddr", "[::ffff:127.0.0.1]:99", "Host", "localhost"}, true},
		{[]string{"Host", "LOCALHOST:1"}, true},
		{[]string{"Host", "127.8.8.8"}, true},
		{[]string{"Host", "hearth.example:8080"}, true},
		{[]string{"RemoteAddr", "192.0.2.7:99"}, false},
		{[]string{"RemoteAddr", "nonsense"}, false},
		{[]string{"Host", "evil.example"}, false},
		{[]string{"Host", "127.0.0.1.evil.example"}, false},
		{[]string{"Host", "localhost.evil.example"}, false},
		{[]string{"Host", ""}, false},
		{[]string{"X-Forwarded-For", "127.0.0.1"}, false},
		{[]string{"Forwarded", "for=127.0.0.1"}, false},
		{[]string{"Via", "1.1 proxy"}, false},
		{[]string{"X-Forwarded-Proto", "https"}, false},
		{[]string{"X-Real-Ip", "192.0.2.7"}, false},
		{[]string{"Proto", "HTTP/1.0"}, false}, // nginx by default, without any header
	} {
		for _, path := range []string{"/v1/functions", "/openapi.json", "/docs"} {
			a := h.do("GET", path, nil, c.headers...)
			if c.ok {
				if a.Code != 200 {
					t.Errorf("%s with %v: %d %s", path, c.headers, a.Code, a.Body)
				}
				continue
			}
			if p := a.problem(403, hearth.CodeDenied); p.Hint == "" {
				t.Errorf("%s with %v: no hint", path, c.headers)
			}
		}
		if a := h.do("GET", "/healthz", nil, c.headers...); a.Code != 200 {
			t.Errorf("healthz with %v: %d", c.headers, a.Code)
		}
	}
	for _, headers := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Origin", "http://evil.example"},
	} {
		h.do("POST", "/v1/functions", hello(), headers...).problem(403, hearth.CodeDenied, "origins")
		h.do("DELETE", "/v1/functions/hello", nil, headers...).problem(403, hearth.CodeDenied, "origins")
	}
	// Pages of others make no work by reading, but a link may lead here.
	h.do("GET", "/v1/invocations", nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors").problem(403, hearth.CodeDenied, "origins")
	h.do("GET", "/v1/invocations", nil, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors").json(200, &struct{}{})
	h.do("GET", "/v1/invocations", nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate").json(200, &struct{}{})
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/json, text/plain"} {
		h.do("POST", "/v1/functions", hello(), "Content-Type", ct).problem(415, hearth.CodeInvalid, "application/json")
	}
	h.do("POST", "/v1/functions", hello(), "Content-Type", "application/json; charset=utf-8", "Sec-Fetch-Site", "same-origin").json(201, &function{})
	a := h.do("GET", "/v1/functions", nil)
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Referrer-Policy": "no-referrer",
	} {
		if got := a.Header().Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	h := newHost(t)
	for _, p := range []string{"/v1", "/v1/", "/v1/nothing", "/v2/functions", "/", "/docs/x.js", "/openapi-3.0.json", "/schemas/Function.json"} {
		h.do("GET", p, nil).problem(404, hearth.CodeNotFound, "nothing at", "/docs")
	}
	a := h.do("PATCH", "/v1/functions/hello", "{}")
	a.problem(405, hearth.CodeInvalid, "PATCH", "GET")
	if allow := a.Header().Get("Allow"); !strings.Contains(allow, "PUT") || !strings.Contains(allow, "DELETE") {
		t.Errorf("Allow: %q", allow)
	}
	h.do("DELETE", "/v1/drivers", nil).problem(405, hearth.CodeInvalid)
}

func TestHealthAndDrivers(t *testing.T) {
	h := newHost(t)
	var s struct{ Status string }
	h.do("GET", "/healthz", nil).json(200, &s)
	h.do("GET", "/readyz?probe=1", nil).json(200, &s)
	h.ready = errors.New("draining")
	h.do("GET", "/readyz", nil).problem(503, hearth.CodeUnavailable, "draining")
	h.do("GET", "/healthz", nil).json(200, &s)
	var d struct{ Drivers []struct{ Name string } }
	if h.do("GET", "/v1/drivers", nil).json(200, &d); len(d.Drivers) != 3 || d.Drivers[0].Name != "native" || s.Status != "ok" {
		t.Errorf("got %+v, %+v", d, s)
	}
}

func TestEvict(t *testing.T) {
	h := newHost(t)
	var got struct{ Evicted int }
	if h.do("DELETE", "/v1/functions/hello/instances", nil).json(200, &got); got.Evicted != 2 {
		t.Errorf("got %+v", got)
	}
	h.do("DELETE", "/v1/functions/none/instances", nil).problem(404, hearth.CodeNotFound)
}

func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestArtifacts(t *testing.T) {
	h := newHost(t, func(d *api.Deps) { d.Limits = build.Limits{Compressed: 4000, Unpacked: 10_000} })
	tarred := tarOf(t, "main.py", python)
	var zipped bytes.Buffer
	zw := zip.NewWriter(&zipped)
	f, err := zw.Create("main.py")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(f, python)
	_ = zw.Close()
	type artifact struct {
		Digest string
		Files  int
		Bytes  int64
	}
	var first artifact
	for ct, data := range map[string][]byte{"application/zip": zipped.Bytes(), "application/x-tar": tarred, "application/gzip": gzipped(t, tarred), "application/x-gzip": gzipped(t, tarred)} {
		var a artifact
		h.do("POST", "/v1/artifacts", data, "Content-Type", ct).json(201, &a)
		if first.Digest == "" {
			first = a
		}
		if a != first || a.Files != 1 || a.Bytes != int64(len(python)) {
			t.Errorf("%s: %+v, first %+v", ct, a, first)
		}
	}
	var fn function
	h.do("POST", "/v1/functions", hello(set("code", map[string]any{"artifact": first.Digest}))).json(201, &fn)
	if fn.Artifact != first.Digest {
		t.Errorf("artifact %s, uploaded %s", fn.Artifact, first.Digest)
	}
	h.do("PUT", "/v1/functions/hello", nameless()).json(200, &fn)
	if fn.Live != 1 {
		t.Error("the same code inline made a new version")
	}

	post := func(data []byte, ct string) answer { return h.do("POST", "/v1/artifacts", data, "Content-Type", ct) }
	post(tarred, "application/json").problem(415, hearth.CodeInvalid, "application/zip")
	post(tarred, "").problem(415, hearth.CodeInvalid, "application/zip")
	post(tarred, "application/zip").problem(400, hearth.CodeInvalid, "zip")
	post(tarOf(t, "../x", "y"), "application/x-tar").problem(400, hearth.CodeInvalid, "../x")
	post(tarOf(t), "application/x-tar").problem(400, hearth.CodeInvalid, "no files")
	post(bytes.Repeat([]byte("x"), 4001), "application/x-tar").problem(413, hearth.CodeInvalid, "4000B")
	post(gzipped(t, tarOf(t, "zeros", strings.Repeat("0", 20_000))), "application/gzip").problem(400, hearth.CodeInvalid, "zeros")
}

func TestInvoke(t *testing.T) {
	h := newHost(t, func(d *api.Deps) { d.MaxEvent = 1000 })
	record := hearth.Invocation{ID: "inv1", Cold: true, ColdReason: hearth.ColdScale, Timings: hearth.Timings{Queue: 1500 * time.Microsecond, Start: 20 * time.Millisecond}}
	var got hearth.EventRequest
	var event string
	h.invoke = func(_ context.Context, r hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
		b, err := io.ReadAll(r.Event)
		got, event = r, string(b)
		if err != nil {
			return record, err
		}
		started(record)
		_, err = io.WriteString(w, `{"a":`)
		if err == nil {
			_, err = io.WriteString(w, `1}`)
		}
		done := record
		done.Timings.Run = 3 * time.Millisecond
		return done, err
	}
	var v map[string]int
	a := h.do("POST", "/v1/functions/hello/invocations", ` {"k": 1} `).json(200, &v)
	if v["a"] != 1 || event != `{"k": 1}` || got.Target != "hello" || got.Size != 8 {
		t.Errorf("got %v, event %q, %+v", v, event, got)
	}
	want := map[string]string{
		"Hearth-Invocation-Id": "inv1", "Hearth-Start": "cold", "Hearth-Cold-Reason": "scale", "Content-Length": "7", "Hearth-Error": "",
		"Server-Timing": "queue;dur=1.5, start;dur=20, init;dur=0, run;dur=3",
	}
	for k, w := range want {
		if g := a.Header().Get(k); g != w {
			t.Errorf("%s: %q, want %q", k, g, w)
		}
	}
	if h.do("POST", "/v1/functions/hello/invocations", nil); event != "" {
		t.Errorf("without a body the event is %q", event)
	}
	h.do("POST", "/v1/functions/hello/invocations", "{k:1}").problem(400, hearth.CodeInvalid, "not valid JSON", "byte 2")
	h.do("POST", "/v1/functions/hello/invocations", "{\"a\":\"\xff\"}").problem(400, hearth.CodeInvalid, "text at byte 5 is not UTF-8")
	h.do("POST", "/v1/functions/hello/invocations", `"`+strings.Repeat("x", 1000)+`"`).problem(413, hearth.CodeInvalid, "1000B", "/fn/hello/")
	h.do("POST", "/v1/functions/hello/invocations", "k=1", "Content-Type", "application/x-www-form-urlencoded").problem(415, hearth.CodeInvalid)

	h.invoke = func(_ context.Context, _ hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
		started(record)
		_, _ = io.WriteString(w, "half")
		return record, &hearth.Error{Code: hearth.CodeFunction, Message: "ValueError: no", Function: &hearth.FunctionError{Type: "ValueError", Message: "no"}}
	}
	a = h.do("POST", "/v1/functions/hello/invocations", `{}`)
	p := a.problem(502, hearth.CodeFunction, "ValueError")
	if p.Function == nil || p.Function.Type != "ValueError" || p.Instance != "/v1/invocations/inv1" || a.Header().Get("Hearth-Invocation-Id") != "inv1" || a.Header().Get("Hearth-Start") != "cold" {
		t.Errorf("%+v %v", p, a.Header())
	}
	h.invoke = func(context.Context, hearth.EventRequest, io.Writer, func(hearth.Invocation)) (hearth.Invocation, error) {
		return hearth.Invocation{}, hearth.Errorf(hearth.CodeNotFound, "there is no function hello")
	}
	a = h.do("POST", "/v1/functions/hello/invocations", `{}`)
	a.problem(404, hearth.CodeNotFound)
	for code, seconds := range map[hearth.Code]int64{hearth.CodeExhausted: 3, hearth.CodeUnavailable: 1} {
		h.invoke = func(context.Context, hearth.EventRequest, io.Writer, func(hearth.Invocation)) (hearth.Invocation, error) {
			return hearth.Invocation{}, &hearth.Error{Code: code, Message: "busy", RetryAfter: time.Duration(seconds)*time.Second - time.Millisecond}
		}
		refused := h.do("POST", "/v1/functions/hello/invocations", `{}`)
		if p := refused.problem(code.HTTPStatus(), code); p.RetryAfter != seconds {
			t.Errorf("%s: retry_after_s %d, want %d", code, p.RetryAfter, seconds)
		}
	}
	if _, ok := a.Header()["Hearth-Start"]; ok {
		t.Error("a call that never was has a start")
	}
}

// serve runs the API on a real connection.
func (h *host) serve() *httptest.Server {
	srv := httptest.NewServer(h.handler)
	h.t.Cleanup(srv.Close)
	return srv
}

func (h *host) send(srv *httptest.Server, method, path, body string) *http.Response {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := srv.Client().Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestInvokeStreams(t *testing.T) {
	h := newHost(t)
	srv := h.serve()
	read := make(chan struct{})
	big := strings.Repeat("x", 100<<10)
	var fail error
	h.invoke = func(_ context.Context, _ hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
		i := hearth.Invocation{ID: "big", Timings: hearth.Timings{Queue: time.Millisecond}}
		started(i)
		_, err := io.WriteString(w, `"`+big)
		<-read // the client has the first part before there is a second
		if err == nil {
			_, err = io.WriteString(w, `"`)
		}
		i.Timings.Run = time.Second
		return i, errors.Join(err, fail)
	}
	resp := h.send(srv, "POST", "/v1/functions/hello/invocations", "{}")
	if resp.StatusCode != 200 || resp.Header.Get("Server-Timing") != "queue;dur=1, start;dur=0, init;dur=0" || resp.Header.Get("Hearth-Invocation-Id") != "big" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	read <- struct{}{}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != `x"` {
		t.Errorf("rest %q, %v", rest, err)
	}
	if got := resp.Trailer.Get("Server-Timing"); got != "queue;dur=1, start;dur=0, init;dur=0, run;dur=1000" {
		t.Errorf("trailer %q", got)
	}

	// An answer that fails half-way must not look complete.
	fail = hearth.Errorf(hearth.CodeFunction, "broken")
	resp = h.send(srv, "POST", "/v1/functions/hello/invocations", "{}")
	read <- struct{}{}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the broken answer looks complete")
	}
}

func TestLogs(t *testing.T) {
	h := newHost(t)
	h.do("GET", "/v1/functions/hello/logs", nil).problem(404, hearth.CodeNotFound)
	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	var list struct{ Lines []hearth.LogLine }
	if a := h.do("GET", "/v1/functions/hello/logs", nil).json(200, &list); !strings.Contains(a.Body.String(), `"lines":[]`) {
		t.Errorf("got %s", a.Body)
	}
	line := func(i int) {
		h.logs.Append(hearth.LogLine{Time: time.Now(), Function: "hello", Version: 1, Stream: "stdout", Text: fmt.Sprintf("line\n%d", i)})
	}
	for i := range 5 {
		line(i)
	}
	h.do("GET", "/v1/functions/hello/logs?tail=2", nil).json(200, &list)
	if len(list.Lines) != 2 || list.Lines[1].Text != "line\n4" {
		t.Errorf("got %+v", list)
	}
	for _, q := range []string{"tail=-1", "tail=x", "tail=10001", "follow=perhaps", "tial=3"} {
		h.do("GET", "/v1/functions/hello/logs?"+q, nil).problem(400, hearth.CodeInvalid, strings.Split(q, "=")[0])
	}

	srv := h.serve()
	resp := h.send(srv, "GET", "/v1/functions/hello/logs?follow=true&tail=1", "")
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("content type %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() hearth.LogLine {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var l hearth.LogLine
				if err := json.Unmarshal([]byte(data), &l); err != nil {
					t.Fatal(err)
				}
				return l
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return hearth.LogLine{}
	}
	if l := next(); l.Text != "line\n4" {
		t.Errorf("got %+v", l)
	}
	line(5)
	if l := next(); l.Text != "line\n5" {
		t.Errorf("got %+v", l)
	}
	close(h.draining)
	for lines.Scan() {
		if lines.Text() != "" && !strings.HasPrefix(lines.Text(), ":") {
			t.Errorf("after the drain: %q", lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the stream was broken off: %v", err)
	}
}

// TestSearchLogs: the parameters reach the search, in the answer and in the stream.
func TestSearchLogs(t *testing.T) {
	h := newHost(t)
	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	begin := time.Now().Add(-time.Hour).UTC()
	for i, text := range []string{`{"level":"warn","msg":"Slow"}`, "plain Slow", `{"level":50,"msg":"broken"}`, `{"severity":"debug"}`} {
		h.logs.Append(hearth.LogLine{
			Time: begin.Add(time.Duration(i) * time.Minute), Function: "hello", Version: 1, Invocation: []string{"call", "other"}[i/3],
			Stream: []string{"stdout", "stderr"}[i/2], Text: text,
		})
	}
	numbers := func(list []hearth.LogLine) (out string) {
		for _, l := range list {
			out += fmt.Sprint(l.Time.Sub(begin).Minutes())
		}
		return out
	}
	at := func(minute int) string {
		return begin.Add(time.Duration(minute) * time.Minute).Format(time.RFC3339Nano)
	}
	for query, want := range map[string]string{
		"":                               "0123",
		"q=sLOW":                         "01",
		"q=slow&tail=1":                  "1",
		"level=WARNING":                  "02",
		"level=trace":                    "023",
		"level=error":                    "2",
		"stream=stderr":                  "23",
		"invocation=call":                "012",
		"invocation=call.2":              "012",
		"invocation=cal":                 "",
		"since=59m30s":                   "123",
		"until=59m30s":                   "0",
		"since=" + at(1):                 "123",
		"until=" + at(1):                 "0",
		"since=58m30s&level=info&tail=9": "2",
	} {
		var list struct{ Lines []hearth.LogLine }
		if h.do("GET", "/v1/functions/hello/logs?"+query, nil).json(200, &list); numbers(list.Lines) != want {
			t.Errorf("%s: got %q, want %q", query, numbers(list.Lines), want)
		}
	}
	for _, q := range []string{"level=loud", "stream=stdin", "since=yesterday", "until=-5m", "since=5", "q=" + strings.Repeat("x", 1001), "invocation=" + strings.Repeat("x", 1001)} {
		h.do("GET", "/v1/functions/hello/logs?"+q, nil).problem(400, hearth.CodeInvalid, "query."+strings.Split(q, "=")[0])
	}

	srv := h.serve()
	body := h.send(srv, "GET", "/v1/functions/hello/logs?follow=true&level=error&tail=9", "").Body
	lines := bufio.NewScanner(body)
	for i, want := range []string{`"broken"`, `"new"`} {
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "data: ") {
		}
		if !strings.Contains(lines.Text(), want[1:len(want)-1]) {
			t.Errorf("line %d is %s, %v", i, lines.Text(), lines.Err())
		}
		for _, level := range []string{"info", "fatal"} {
			h.logs.Append(hearth.LogLine{Function: "hello", Version: 1, Stream: "stdout", Text: `{"level":"` + level + `","msg":"new ` + level + `"}`})
		}
	}
	if strings.Contains(lines.Text(), "info") {
		t.Errorf("got %s", lines.Text())
	}
	// It ends by itself when the time has come.
	if _, err := io.ReadAll(h.send(srv, "GET", "/v1/functions/hello/logs?follow=true&until=0s", "").Body); err != nil {
		t.Error(err)
	}
}

func TestInvocationRecords(t *testing.T) {
	h := newHost(t)
	h.do("GET", "/v1/functions/hello/invocations", nil).problem(404, hearth.CodeNotFound)
	h.do("GET", "/v1/invocations/none", nil).problem(404, hearth.CodeNotFound, "none")
	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	var records []hearth.Invocation
	for i := range 3 {
		records = append(records, hearth.Invocation{ID: fmt.Sprint("id", i), Function: "hello", Version: 1, Kind: hearth.KindEvent, Status: 200, StartedAt: time.Now()})
	}
	if err := h.store.AppendInvocations(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Invocations []hearth.Invocation
		Next        string
	}
	h.do("GET", "/v1/functions/hello/invocations?limit=2", nil).json(200, &list)
	if len(list.Invocations) != 2 || list.Invocations[0].ID != "id2" || !strings.HasPrefix(list.Next, "id1@") {
		t.Errorf("got %+v", list)
	}
	next := list.Next
	list.Next = ""
	h.do("GET", "/v1/functions/hello/invocations?limit=2&before="+next, nil).json(200, &list)
	if len(list.Invocations) != 1 || list.Invocations[0].ID != "id0" || list.Next != "" {
		t.Errorf("got %+v", list)
	}
	var one hearth.Invocation
	if h.do("GET", "/v1/invocations/id1", nil).json(200, &one); one.ID != "id1" {
		t.Errorf("got %+v", one)
	}
}

// TestInvocationSearch: each parameter reaches the search, through the client too.
func TestInvocationSearch(t *testing.T) {
	h := newHost(t)
	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	now := time.Now()
	odd := hearth.Invocation{
		ID: "01a2189c-odd", Function: "hello", Version: 3, Kind: hearth.KindQueue, Status: 502, ErrorCode: hearth.CodeFunction,
		Cold: true, Attempt: 2, StartedAt: now.Add(-time.Hour), Timings: hearth.Timings{Queue: time.Second, Run: time.Second},
	}
	usual := hearth.Invocation{ID: "01a2189d-usual", Function: "hello", Version: 1, Kind: hearth.KindEvent, Status: 200, StartedAt: now}
	if err := h.store.AppendInvocations(t.Context(), []hearth.Invocation{odd, usual}); err != nil {
		t.Fatal(err)
	}
	type list struct{ Invocations []hearth.Invocation }
	for query, want := range map[string]string{
		"version=3": odd.ID, "version=1": usual.ID, "status=502": odd.ID, "status=2xx": usual.ID, "code=function_error": odd.ID,
		"code=ok": usual.ID, "code=error": odd.ID, "kind=queue": odd.ID, "async=true": odd.ID, "async=false": usual.ID,
		"cold=true": odd.ID, "cold=false": usual.ID, "min_duration=1500ms": odd.ID, "max_duration=1s": usual.ID,
		"since=30m": usual.ID, "until=30m": odd.ID, "id=01a2189c": odd.ID, "function=hello&limit=1": usual.ID,
		"until=" + now.Add(-time.Minute).UTC().Format(time.RFC3339): odd.ID, "before=" + usual.ID: odd.ID,
	} {
		for _, path := range []string{"/v1/invocations?", "/v1/functions/hello/invocations?"} {
			if strings.HasPrefix(query, "function=") && path != "/v1/invocations?" {
				continue
			}
			var got list
			h.do("GET", path+query, nil).json(200, &got)
			if len(got.Invocations) != 1 || got.Invocations[0].ID != want {
				t.Errorf("%s%s: got %+v, want %s", path, query, got, want)
			}
		}
	}
	for query, says := range map[string]string{
		"status=9xx": "no status", "code=x": "does not exist", "since=yesterday": "no time", "min_duration=x": "not a duration",
		"since=1h&until=2h": "before it begins", "before=x": "nothing is known", "kind=x": "", "id=0123": "", "async=perhaps": "", "limit=501": "",
	} {
		h.do("GET", "/v1/invocations?"+query, nil).problem(400, hearth.CodeInvalid, says)
	}
	h.do("GET", "/v1/invocations?function=none", nil).problem(404, hearth.CodeNotFound, "none")

	c, err := client.New(h.serve().URL)
	if err != nil {
		t.Fatal(err)
	}
	got, next, err := c.Invocations(t.Context(), hearth.InvocationFilter{
		Function: "hello", Version: 3, Status: "5xx", Code: "function_error", Kind: hearth.KindQueue, Async: new(true), Cold: new(true),
		MinDuration: 2 * time.Second, MaxDuration: 2 * time.Second, Since: odd.StartedAt.Truncate(time.Microsecond), Until: now, ID: odd.ID,
	}, 5, "")
	if err != nil || len(got) != 1 || got[0].ID != odd.ID || got[0].Attempt != 2 || next != "" {
		t.Errorf("got %+v %q %v", got, next, err)
	}
	for range 2 { // before is passed on
		got, next, err = c.Invocations(t.Context(), hearth.InvocationFilter{}, 1, next)
	}
	if err != nil || len(got) != 1 || got[0].ID != odd.ID || next != "" {
		t.Errorf("got %+v %q %v", got, next, err)
	}
}
