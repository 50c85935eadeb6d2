package e2e

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// counting counts its calls in a file of its instance, of which there is one.
const counting = `
import time, os, threading
calls = 0
def handler(event, context):
    global calls
    calls += 1
    do = event.get("queryStringParameters", {}).get("do")
    if do == "slow": time.sleep(0.5)
    if do == "raise": raise ValueError("no")
    if do == "exit": os._exit(1)
    if do == "large": return {"statusCode": 200, "body": "x" * 1100000}
    if do == "part":
        def parts():
            yield "a"
            time.sleep(0.05)
            raise ValueError("no")
        return parts()
    return {"statusCode": 201, "headers": {"X-Call": str(calls)}, "cookies": ["a=b"], "body": str(calls) + (event.get("body") or "")}
`

func TestIdempotencyKey(t *testing.T) {
	in := start(t, "")
	in.deploy("once", "python", counting, fields{"concurrency": 1})
	post := func(path, key string, body any, headers ...string) answer {
		return in.do("POST", "/fn/once/"+path, body, append([]string{"Idempotency-Key", key}, headers...)...)
	}
	first := post("", "k1", "x")
	again := post("", "k1", "x")
	if first.status != 201 || string(first.body) != "1x" || first.header.Get("Hearth-Idempotent-Replay") != "" {
		t.Fatal(first)
	}
	for _, name := range []string{"X-Call", "Set-Cookie", "Hearth-Invocation-Id", "Content-Length"} {
		if again.header.Get(name) != first.header.Get(name) {
			t.Errorf("%s is %q, was %q", name, again.header.Get(name), first.header.Get(name))
		}
	}
	if again.status != 201 || string(again.body) != "1x" || again.header.Get("Hearth-Idempotent-Replay") != "true" {
		t.Error(again)
	}
	// Another request with the same key, and the same key of another caller.
	want(t, post("", "k1", "y"), 422, "invalid")
	want(t, post("other", "k1", "x"), 422, "invalid")
	if a := post("other", "k1", "x"); !strings.Contains(string(a.body), "method, host, path, query, Content-Type and body") {
		t.Errorf("it does not say what must be the same: %v", a)
	}
	if a := post("", "k1", "x", "Authorization", "Bearer other"); string(a.body) != "2x" {
		t.Error(a)
	}
	want(t, post("", strings.Repeat("k", 257), "x"), 400, "invalid")
	// A safe request does not need one.
	for range 2 {
		in.do("GET", "/fn/once/", nil, "Idempotency-Key", "g")
	}
	// Requests at the same time are one call.
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if a := post("?do=slow", "k2", strings.Repeat("b", 400_000)); a.status != 201 || !strings.HasPrefix(string(a.body), "5bbb") {
				t.Errorf("%d %.20q", a.status, a.body)
			}
		})
	}
	wg.Wait()
	// The function's errors are its answers; so is its end.
	for _, do := range []string{"raise", "exit"} {
		a, b := post("?do="+do, "k-"+do, "x"), post("?do="+do, "k-"+do, "x")
		want(t, a, 502, "function_error")
		want(t, b, 502, "function_error")
		if a.json(t)["invocation"] != b.json(t)["invocation"] {
			t.Errorf("%s ran twice", do)
		}
	}
	// Where the response is not known, nobody pretends that it is.
	post("?do=part", "k3", "x")
	want(t, post("?do=part", "k3", "x"), 409, "conflict")
	if a := post("?do=large", "k4", "x"); len(a.body) != 1_100_000 {
		t.Errorf("%d bytes", len(a.body))
	}
	want(t, post("?do=large", "k4", "x"), 409, "conflict")

	// A caller that left finds the response.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if a := in.doContext(ctx, "POST", "/fn/once/?do=slow", "x", "Idempotency-Key", "k5"); a.err == nil {
		t.Error("it was not slow")
	}
	if a := post("?do=slow", "k5", "x"); a.status != 201 || a.header.Get("Hearth-Idempotent-Replay") != "true" {
		t.Error(a)
	}

	// What the function did not get can be tried again.
	in.deploy("bound", "python", counting, fields{"limits": fields{"rate": "1/h"}})
	for i, status := range []int{201, 429, 429} {
		if a := in.do("POST", "/fn/bound/", "x", "Idempotency-Key", string(rune('a'+i/2+i%2))); a.status != status {
			t.Error(i, a)
		}
	}

	// With the function its responses go.
	in.do("DELETE", "/v1/functions/once", nil)
	in.deploy("once", "python", counting, nil)
	if a := post("", "k1", "x"); string(a.body) != "1x" || a.header.Get("Hearth-Idempotent-Replay") != "" {
		t.Error(a)
	}
}

// A server that was killed keeps what it has answered, and does not run again what
// may have run.
func TestIdempotencyKeySurvivesKill(t *testing.T) {
	dir := t.TempDir()
	in, cmd := spawn(t, dir)
	in.deploy("once", "python", counting, nil)
	first := in.do("POST", "/fn/once/", "x", "Idempotency-Key", "done")
	gone := make(chan answer, 1)
	go func() { gone <- in.do("POST", "/fn/once/?do=slow", "x", "Idempotency-Key", "cut") }()
	eventually(t, "the call has an instance", func() bool { return in.pool("once").Functions[0].InFlight == 1 })
	kill(t, cmd)
	<-gone
	in, _ = spawn(t, dir)
	if a := in.do("POST", "/fn/once/", "x", "Idempotency-Key", "done"); string(a.body) != string(first.body) || a.header.Get("Hearth-Idempotent-Replay") != "true" {
		t.Error(a)
	}
	want(t, in.do("POST", "/fn/once/?do=slow", "x", "Idempotency-Key", "cut"), 409, "conflict")
}

// kill ends a server without any chance to tidy up.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
}

// TestIdempotencyCookieLines: of a header that tells callers apart all lines count.
func TestIdempotencyCookieLines(t *testing.T) {
	in := start(t, "")
	in.deploy("seen", "python", "def handler(event, context):\n    return {'statusCode': 200, 'body': ' '.join(event.get('cookies', []))}\n", nil)
	post := func(session string) (body string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.url+"/fn/seen/", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k")
		req.Header["Cookie"] = []string{"theme=dark", "session=" + session}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%d %s %v", resp.StatusCode, b, err)
		}
		return string(b)
	}
	for _, session := range []string{"a", "b", "a"} {
		if got := post(session); !strings.Contains(got, "session="+session) {
			t.Errorf("session %s got %q", session, got)
		}
	}
}
