package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// asyncCall is what the API says of an asynchronous call.
type asyncCall struct {
	ID       string
	State    string
	Attempts int
	Function string
	Source   string
	Target   string
	Kind     string
	Failures []struct {
		Attempt             int
		Code, Type, Message string
	}
	Result *struct {
		Status  int
		Headers [][2]string
		Value   json.RawMessage
		Text    string
		Base64  []byte
		Cut     bool
	}
}

// later calls a function asynchronously and returns the id.
func (in *installation) later(name string, event any, header ...string) string {
	in.t.Helper()
	data, err := json.Marshal(event)
	if err != nil {
		in.t.Fatal(err)
	}
	a := in.do("POST", "/v1/functions/"+name+"/invocations", data, append(header, "Content-Type", "application/json", "Hearth-Invocation-Type", "async")...)
	if a.status != 202 {
		in.t.Fatalf("async call: %v", a)
	}
	return a.header.Get("Hearth-Invocation-Id")
}

// ended waits for the end of an asynchronous call.
func (in *installation) ended(id string) asyncCall {
	in.t.Helper()
	var v struct{ Async *asyncCall }
	a := in.do("GET", "/v1/invocations/"+id+"?wait=60s", nil)
	decode(in.t, a, &v)
	if v.Async == nil || v.Async.State == "queued" || v.Async.State == "running" {
		in.t.Fatalf("call %s did not end: %v", id, a)
	}
	return *v.Async
}

// TestAsync: an event and an HTTP request are accepted at once, run, and their
// results can be read.
func TestAsync(t *testing.T) {
	source := map[string]string{
		"python": `import time, base64
def handler(event, context):
    print("attempt of", context.aws_request_id)
    if isinstance(event, dict) and "rawPath" in event:
        body = event.get("body") or ""
        if event.get("isBase64Encoded"):
            body = base64.b64decode(body)
        else:
            body = body.encode()
        return {"statusCode": 201, "headers": {"X-Path": event["rawPath"], "Content-Type": "application/octet-stream"}, "isBase64Encoded": True, "body": base64.b64encode(body[::-1]).decode()}
    return {"got": event, "id": context.aws_request_id}
`,
	}
	in := start(t, "")
	each(t, source, func(t *testing.T, runtime, code string) {
		in.deploy("later", runtime, code, fields{"routes": []string{"POST /orders/{id}"}})
		id := in.later("later", fields{"n": 7})
		c := in.ended(id)
		if c.State != "succeeded" || c.Attempts != 1 || c.Result == nil || !strings.Contains(string(c.Result.Value), `"n"`) || !strings.Contains(string(c.Result.Value), id) {
			t.Errorf("%+v", c)
		}
		found := false
		for _, l := range in.logs("later") {
			found = found || l["invocation"] == id && strings.Contains(fmt.Sprint(l["text"]), id)
		}
		if !found {
			t.Error("the log has no line of the call")
		}

		body := []byte{0, 1, 0xff, 'x'}
		for _, path := range []string{"/fn/later/orders/1", "/orders/1"} {
			a := in.do("POST", path, body, "Hearth-Invocation-Type", "async", "Content-Type", "application/octet-stream")
			if a.status != 202 || a.header.Get("Location") != "/v1/invocations/"+a.header.Get("Hearth-Invocation-Id") {
				t.Fatalf("%v", a)
			}
			c := in.ended(a.header.Get("Hearth-Invocation-Id"))
			if c.State != "succeeded" || c.Result.Status != 201 || string(c.Result.Base64) != "x\xff\x01\x00" || !strings.Contains(fmt.Sprint(c.Result.Headers), "/orders/1") {
				t.Errorf("%s: %+v %+v", path, c, c.Result)
			}
		}
		a := in.do("POST", "/fn/later/", make([]byte, 6<<20+1), "Hearth-Invocation-Type", "async")
		want(t, a, http.StatusRequestEntityTooLarge, "invalid")
		want(t, in.do("POST", "/fn/later/", "x", "Hearth-Invocation-Type", "sometimes"), 400, "invalid")
		want(t, in.do("POST", "/fn/later/", "x", "Hearth-Invocation-Type", "async", "Hearth-Delay", "soon"), 400, "invalid")
		want(t, in.do("POST", "/fn/later/", "x", "Hearth-Invocation-Type", "async", "Hearth-Delay", "1000h"), 400, "invalid")
		if a := in.do("POST", "/fn/later/", strings.Repeat("x", 5<<20), "Hearth-Invocation-Type", "async"); a.status != 202 {
			t.Errorf("a large body: %v", a)
		} else if c := in.ended(a.header.Get("Hearth-Invocation-Id")); c.State != "succeeded" || !c.Result.Cut {
			t.Errorf("a large body: %+v", c)
		}
	})
}

// TestAsyncRetries: a call that fails is tried again, becomes a dead letter, and runs
// when it is redriven after the function was mended.
// What callers over HTTP may do with the queue is up to the function.
func TestAsyncOverHTTP(t *testing.T) {
	in := start(t, "")
	const code = "def handler(event, context):\n    return 'done'\n"
	in.deploy("open", "python", code, nil)
	in.deploy("closed", "python", code, fields{"async": fields{"api_only": true}, "cloudevents": true})
	in.deploy("patient", "python", code, fields{"async": fields{"max_delay": "48h"}})
	later := func(path, body string, headers ...string) answer {
		return in.do("POST", path, []byte(body), append(headers, "Hearth-Invocation-Type", "async")...)
	}
	const batch = `[{"specversion":"1.0","id":"1","source":"/","type":"t"}]`
	want(t, later("/fn/closed/", "{}"), 403, "denied")
	in.deploy("closed", "python", code+"# again\n", fields{"async": fields{"api_only": true}, "cloudevents": true})
	in.deploy("shut", "python", code, nil)
	in.deploy("shut", "python", code, fields{"async": fields{"api_only": true}})
	want(t, later("/fn/shut@1/", "{}"), 403, "denied") // an old version is no way around it
	want(t, in.do("POST", "/fn/closed/", []byte(batch), "Content-Type", "application/cloudevents-batch+json"), 403, "denied")
	if a := in.do("POST", "/fn/closed/", []byte("{}")); a.status != 200 {
		t.Errorf("a call that does not wait: %v", a)
	}
	in.ended(in.later("closed", 1))

	want(t, later("/fn/open/", "{}", "Hearth-Delay", "24h1m"), 400, "invalid")
	want(t, later("/fn/patient/", "{}", "Hearth-Delay", "48h1m"), 400, "invalid")
	for _, a := range []answer{later("/fn/open/", "{}", "Hearth-Delay", "23h"), later("/fn/patient/", "{}", "Hearth-Delay", "47h")} {
		if a.status != 202 {
			t.Errorf("%v", a)
		}
	}
	in.later("open", 1, "Hearth-Delay", "700h")

	// A key is its caller's: none answers for that of another, nor takes it.
	keyed := func(body, who string) answer {
		return later("/fn/open/", body, "Hearth-Deduplication-Key", "k", "Authorization", "Bearer "+who)
	}
	ada := keyed("1", "ada")
	for who, a := range map[string]answer{"ada": ada, "bob": keyed("2", "bob"), "the API": in.do("POST", "/v1/functions/open/invocations", []byte("3"),
		"Content-Type", "application/json", "Hearth-Invocation-Type", "async", "Hearth-Deduplication-Key", "k")} {
		if a.status != 202 {
			t.Errorf("%s: %v", who, a)
		}
	}
	if a := keyed("1", "ada"); a.status != 200 || a.header.Get("Hearth-Invocation-Id") != ada.header.Get("Hearth-Invocation-Id") {
		t.Errorf("the same again: %v", a)
	}
	want(t, keyed("2", "ada"), 422, "invalid")
	var v struct {
		Async struct {
			Key string `json:"deduplication_key"`
		}
	}
	decode(t, in.do("GET", "/v1/invocations/"+ada.header.Get("Hearth-Invocation-Id"), nil), &v)
	if v.Async.Key != "k" {
		t.Errorf("the key is shown as %q", v.Async.Key)
	}
}

func TestAsyncRetries(t *testing.T) {
	in := start(t, "")
	const code = `def handler(event, context):
    raise ValueError("not yet")
`
	policy := fields{"async": fields{"max_attempts": 3, "min_backoff": "10ms", "max_backoff": "20ms"}}
	in.deploy("flaky", "python", code, policy)
	id := in.later("flaky", nil)
	c := in.ended(id)
	if c.State != "failed" || c.Attempts != 3 || len(c.Failures) != 3 || c.Failures[2].Type != "ValueError" || c.Failures[2].Message != "not yet" {
		t.Fatalf("%+v", c)
	}
	var list struct{ Calls []asyncCall }
	decode(t, in.do("GET", "/v1/functions/flaky/queue?state=dead", nil), &list)
	if len(list.Calls) != 1 || list.Calls[0].ID != id {
		t.Errorf("dead letters: %+v", list)
	}
	waitFor(t, "records of the attempts", func() bool {
		a, b := in.do("GET", "/v1/functions/flaky/invocations", nil), in.do("GET", "/v1/invocations/"+id+".3", nil)
		return b.status == 200 && strings.Count(string(a.body), id) == 3
	})
	in.deploy("flaky", "python", "def handler(event, context):\n    return 'mended'\n", policy)
	a := in.do("POST", "/v1/functions/flaky/queue/redrive", fields{"ids": []string{id}})
	if a.status != 200 || !strings.Contains(string(a.body), `"calls":1`) {
		t.Fatalf("redrive: %v", a)
	}
	if c := in.ended(id); c.State != "succeeded" || string(c.Result.Value) != `"mended"` {
		t.Errorf("%+v", c)
	}
	want(t, in.do("DELETE", "/v1/invocations/"+id, nil), 409, "conflict")
	eventually(t, "the redriven call has a record of its own", func() bool {
		r := in.do("GET", "/v1/invocations/"+id, nil).json(t)
		return r["status"] == 200.0 && r["version"] == 2.0 && in.do("GET", "/v1/invocations/"+id+".4", nil).status == 200
	})

	// A call that waits is canceled; the same key is the same call.
	id = in.later("flaky", 1, "Hearth-Delay", "1h", "Hearth-Deduplication-Key", "k")
	keyed := func(path, body string) answer {
		return in.do("POST", path, []byte(body), "Content-Type", "application/json", "Hearth-Invocation-Type", "async", "Hearth-Deduplication-Key", "k")
	}
	// Another request with the key is no call, however it comes.
	for _, path := range []string{"/v1/functions/flaky/invocations", "/v1/functions/flaky@1/invocations"} {
		want(t, keyed(path, "2"), 422, "invalid")
	}
	again := keyed("/v1/functions/flaky/invocations", "1")
	if again.status != 200 || again.header.Get("Hearth-Invocation-Id") != id || again.header.Get("Hearth-Deduplicated") != "true" {
		t.Errorf("the same key: %v", again)
	}
	if a := in.do("DELETE", "/v1/invocations/"+id, nil); a.status != 200 {
		t.Errorf("cancel: %v", a)
	}
	if c := in.ended(id); c.State != "canceled" {
		t.Errorf("%+v", c)
	}

	// One that runs is broken off.
	in.deploy("slow", "python", "import time\ndef handler(event, context):\n    time.sleep(20)\n", nil)
	id = in.later("slow", nil)
	waitFor(t, "the call to run", func() bool {
		var v struct{ Async asyncCall }
		decode(t, in.do("GET", "/v1/invocations/"+id, nil), &v)
		return v.Async.State == "running"
	})
	began := time.Now()
	if a := in.do("DELETE", "/v1/invocations/"+id, nil); a.status != 200 {
		t.Errorf("cancel: %v", a)
	}
	if c := in.ended(id); c.State != "canceled" || time.Since(began) > 10*time.Second {
		t.Errorf("%+v", c)
	}

	// The calls of a deleted function are canceled.
	id = in.later("flaky", 1, "Hearth-Delay", "1h")
	in.do("DELETE", "/v1/functions/flaky", nil)
	if c := in.ended(id); c.State != "canceled" || !strings.Contains(c.Failures[0].Message, "deleted") {
		t.Errorf("%+v", c)
	}
	in.deploy("flaky", "python", code, policy)
	decode(t, in.do("GET", "/v1/functions/flaky/queue", nil), &list)
	if len(list.Calls) != 0 {
		t.Errorf("a new function of the same name has %+v", list.Calls)
	}
}
