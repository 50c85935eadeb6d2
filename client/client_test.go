package client_test

import (
	"bytes"
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

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve returns a client of a server with these handlers.
func serve(t *testing.T, handlers map[string]http.HandlerFunc) *client.Client {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range handlers {
		mux.HandleFunc(pattern, h)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c, err := client.New(s.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if status >= 400 {
			w.Header().Set("Content-Type", "application/problem+json")
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// wantError checks code and texts of an error.
func wantError(t *testing.T, err error, code hearth.Code, texts ...string) *hearth.Error {
	t.Helper()
	var e *hearth.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v (%T), want a hearth.Error with code %s", err, err, code)
	}
	if e.Code != code {
		t.Errorf("code %s, want %s (%v)", e.Code, code, err)
	}
	for _, s := range texts {
		if !strings.Contains(e.Error()+"\n"+e.Hint, s) {
			t.Errorf("error %q, hint %q: want %q in it", e.Error(), e.Hint, s)
		}
	}
	return e
}

func TestNewRefusesWhatIsNoURL(t *testing.T) {
	for _, u := range []string{"", "127.0.0.1:8080", "ftp://x", "http://", "http://x/?q=1", "http://x/#f", "http://a b/"} {
		_, err := client.New(u)
		wantError(t, err, hearth.CodeInvalid, "not the URL of a server")
	}
}

func TestErrorsKeepCodeHintAndDetails(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/functions/gone":    answer(404, `{"title":"Not Found","status":404,"detail":"there is no function \"gone\"","code":"not_found","hint":"hearth list shows all"}`),
		"GET /v1/functions/fields":  answer(400, `{"title":"Bad Request","detail":"the request is wrong","code":"invalid","errors":[{"location":"body.cpu","message":"expected number"}]}`),
		"GET /v1/functions/nocode":  answer(429, `{"title":"Too Many Requests"}`),
		"GET /v1/functions/garbage": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", 502) },
		"GET /v1/functions/broken":  answer(200, `{"name":`),
		"GET /v1/functions/html":    answer(200, `<html>`),
	})
	get := func(name string) error { _, err := c.Function(t.Context(), name); return err }
	wantError(t, get("gone"), hearth.CodeNotFound, `there is no function "gone"`, "hearth list shows all")
	wantError(t, get("fields"), hearth.CodeInvalid, "the request is wrong", "body.cpu: expected number")
	wantError(t, get("nocode"), hearth.CodeExhausted, "Too Many Requests")
	// A proxy's error page is not taken for a failure of the function's code.
	wantError(t, get("garbage"), hearth.CodeUnavailable, "502", "Hearth server")
	wantError(t, get("html"), hearth.CodeInternal, "unexpected answer", "Hearth server")
	if err := get("broken"); err == nil {
		t.Error("half a JSON document was taken for a function")
	}
}

func TestNoServer(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	c, err := client.New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Healthy(t.Context()), hearth.CodeUnavailable, "no hearth server answers at "+s.URL, "start one with: hearth serve")
}

func TestCancelAndDeadline(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{"GET /healthz": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, c.Healthy(ctx), hearth.CodeCanceled)
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantError(t, c.Healthy(ctx), hearth.CodeTimeout)
}

func TestFunctions(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/functions": func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("after") == "" {
				io.WriteString(w, `{"functions":[{"name":"a","url":"/fn/a/"}],"next":"a"}`)
				return
			}
			io.WriteString(w, `{"functions":[{"name":"b","url":"http://elsewhere/b"}],"next":""}`)
		},
		"PUT /v1/functions/{name}": func(w http.ResponseWriter, r *http.Request) {
			var in map[string]any
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			want := map[string]any{"runtime": "python", "timeout": "3s", "code": map[string]any{"artifact": "sha256:1"}}
			if diff := cmp.Diff(want, in); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := r.Header.Get("If-Match"); got != `"4"` {
				t.Errorf("If-Match %s", got)
			}
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"name":%q,"live":1,"url":"/fn/a%%20b/","warnings":["w"]}`, r.PathValue("name"))
		},
		"DELETE /v1/functions/{name}": func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("name") != ".." && r.PathValue("name") != "a/b" {
				t.Errorf("name %q", r.PathValue("name"))
			}
			w.WriteHeader(http.StatusNoContent)
		},
	})
	fs, err := c.AllFunctions(t.Context())
	if err != nil || len(fs) != 2 || fs[0].URL != c.URL()+"/fn/a/" || fs[1].URL != "http://elsewhere/b" {
		t.Errorf("functions %+v, %v", fs, err)
	}
	cfg := hearth.Config{Runtime: "python", Timeout: hearth.Duration(3 * time.Second)}
	f, created, err := c.PutFunction(t.Context(), "a b", cfg, client.Code{Artifact: "sha256:1"}, 4)
	if err != nil || !created || f.Name != "a b" || f.URL != c.URL()+"/fn/a%20b/" || len(f.Warnings) != 1 {
		t.Errorf("put: %+v %v %v", f, created, err)
	}
	// A name with a slash stays one segment.
	if err := c.DeleteFunction(t.Context(), "a/b", 0); err != nil {
		t.Error(err)
	}
}

func TestInvoke(t *testing.T) {
	headers := func(w http.ResponseWriter) {
		w.Header().Set("Hearth-Invocation-Id", "i1")
		w.Header().Set("Hearth-Start", "cold")
		w.Header().Set("Hearth-Cold-Reason", "first")
		w.Header().Set("Server-Timing", `queue;dur=0.5, start;dur=40;desc="x", init;dur=2, other, run;dur=bad`)
	}
	c := serve(t, map[string]http.HandlerFunc{
		"POST /v1/functions/echo/invocations": func(w http.ResponseWriter, r *http.Request) {
			headers(w)
			io.Copy(w, r.Body)
		},
		"POST /v1/functions/fails/invocations": func(w http.ResponseWriter, r *http.Request) {
			headers(w)
			answer(502, `{"code":"function_error","detail":"no luck","function_error":{"type":"ValueError","message":"no luck","stack":["a","b"]}}`)(w, r)
		},
		"POST /v1/functions/breaks/invocations": func(w http.ResponseWriter, _ *http.Request) {
			headers(w)
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"GET /v1/invocations/i1": answer(200, `{"id":"i1","function":"breaks","error_code":"timeout","error_message":"it took longer than 1s"}`),
	})
	want := client.Call{InvocationID: "i1", Cold: true, ColdReason: hearth.ColdFirst, Timings: hearth.Timings{Queue: 500 * time.Microsecond, Start: 40 * time.Millisecond, Init: 2 * time.Millisecond}}

	var out bytes.Buffer
	call, err := c.Invoke(t.Context(), "echo", strings.NewReader(`{"a":1}`), &out)
	if err != nil || out.String() != `{"a":1}` {
		t.Errorf("%q, %v", out.String(), err)
	}
	if diff := cmp.Diff(want, call); diff != "" {
		t.Errorf("call (-want +got):\n%s", diff)
	}

	call, err = c.Invoke(t.Context(), "fails", nil, io.Discard)
	e := wantError(t, err, hearth.CodeFunction, "no luck")
	if diff := cmp.Diff(&hearth.FunctionError{Type: "ValueError", Message: "no luck", Stack: []string{"a", "b"}}, e.Function); diff != "" {
		t.Errorf("function error (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, call); diff != "" {
		t.Errorf("call besides an error (-want +got):\n%s", diff)
	}

	for seconds, want := range map[string]time.Duration{"7": 7 * time.Second, "-1": 0, "9000000000000000000": 24 * time.Hour} {
		c := serve(t, map[string]http.HandlerFunc{
			"POST /v1/functions/busy/invocations": answer(429, `{"code":"exhausted","detail":"busy","retry_after_s":`+seconds+`}`),
		})
		_, err = c.Invoke(t.Context(), "busy", nil, io.Discard)
		if e := wantError(t, err, hearth.CodeExhausted, "busy"); e.RetryAfter != want {
			t.Errorf("retry_after_s %s: %s, want %s", seconds, e.RetryAfter, want)
		}
	}

	// An answer that breaks off never looks complete, and the record says why.
	out.Reset()
	_, err = c.Invoke(t.Context(), "breaks", nil, &out)
	wantError(t, err, hearth.CodeTimeout, "broke off: it took longer than 1s")
	if out.String() != "half" {
		t.Errorf("got %q", out.String())
	}

	// The caller's own writer failing is the caller's error.
	full := errors.New("disk full")
	if _, err := c.Invoke(t.Context(), "echo", strings.NewReader("1"), writerFunc(func([]byte) (int, error) { return 0, full })); !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestLogs(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/functions/{name}/logs": func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("name") == "query" {
				fmt.Fprintf(w, `{"lines":[{"text":%q}]}`, r.URL.RawQuery)
				return
			}
			if r.FormValue("follow") == "" {
				fmt.Fprintf(w, `{"lines":[{"text":"tail=%s"}]}`, r.FormValue("tail"))
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, ": following\n\nevent: line\ndata: {\"text\":\"one\"}\n\nevent: future\ndata: x\n\nevent:line\ndata:{\"text\":\ndata:\"two\"}\n\n")
			switch r.PathValue("name") {
			case "forever":
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			case "fails":
				io.WriteString(w, "event: error\ndata: {\"code\":\"not_found\",\"detail\":\"deleted\"}\n\n")
			}
		},
	})
	lines, err := c.Logs(t.Context(), "f", 0, hearth.LogFilter{})
	if err != nil || len(lines) != 1 || lines[0].Text != "tail=0" {
		t.Errorf("logs: %v, %v", lines, err)
	}
	moment := time.Date(2026, 1, 31, 8, 0, 0, 5, time.UTC)
	all := hearth.LogFilter{Text: "a&b", Level: hearth.LevelWarn, Invocation: "id", Stream: "stderr", Since: moment, Until: moment.Add(time.Hour)}
	lines, err = c.Logs(t.Context(), "query", -1, all)
	if want := "invocation=id&level=warn&q=a%26b&since=2026-01-31T08%3A00%3A00.000000005Z&stream=stderr&until=2026-01-31T09%3A00%3A00.000000005Z"; err != nil || lines[0].Text != want {
		t.Errorf("logs: %v, %v", lines, err)
	}
	var got []string
	collect := func(l hearth.LogLine) error { got = append(got, l.Text); return nil }
	if err := c.FollowLogs(t.Context(), "ends", 5, hearth.LogFilter{}, collect); err != nil || cmp.Diff([]string{"one", "two"}, got) != "" {
		t.Errorf("follow: %q, %v", got, err)
	}
	wantError(t, c.FollowLogs(t.Context(), "fails", 5, hearth.LogFilter{}, collect), hearth.CodeNotFound, "deleted")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	err = c.FollowLogs(ctx, "forever", 5, hearth.LogFilter{}, func(hearth.LogLine) error {
		if n++; n == 2 {
			cancel()
		}
		return nil
	})
	wantError(t, err, hearth.CodeCanceled)
	stop := errors.New("enough")
	if err := c.FollowLogs(t.Context(), "forever", 5, hearth.LogFilter{}, func(hearth.LogLine) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v, want %v", err, stop)
	}
}
