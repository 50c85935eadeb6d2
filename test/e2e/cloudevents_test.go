package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

const cloudEventsCode = `def handler(event, context):
    if event.get("type") == "null":
        return None
    if event.get("type") == "reply":
        return {"specversion": "1.0", "id": "r" + event["id"], "source": "/reply", "type": "replied", "data": event.get("data")}
    if event.get("type") == "fail":
        raise ValueError("no")
    return event
`

// TestCloudEvents: events in each mode reach the handler as one JSON object, in the
// paths of the function and in the API, and answers that are events are such.
func TestCloudEvents(t *testing.T) {
	in := start(t, "")
	in.deploy("events", "python", cloudEventsCode, fields{"cloudevents": true, "routes": []string{"POST /hooks"}, "async": fields{"max_attempts": 1}})
	in.deploy("plain", "python", cloudEventsCode, nil)
	binary := func(kind string, more ...string) []string {
		return append([]string{"ce-specversion", "1.0", "ce-id", "7", "ce-source", "/shop", "ce-type", kind}, more...)
	}
	for _, path := range []string{"/fn/events/", "/fn/events/deep/er", "/hooks", "/v1/functions/events/invocations"} {
		var got map[string]any
		a := in.do("POST", path, "hello", binary("order", "Content-Type", "text/plain", "ce-subject", "%E2%82%AC")...)
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got["data"] != "hello" || got["subject"] != "€" || got["datacontenttype"] != "text/plain" {
			t.Errorf("%s: %v", path, a)
		}
		// A large one waits on the disk, and arrives whole.
		long := strings.Repeat("0123456789abcdef", 200_000)
		a = in.do("POST", path, long, binary("order", "Content-Type", "text/plain")...)
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got["data"] != long {
			t.Errorf("%s: %d, %d bytes of %d", path, a.status, len(a.body), len(long))
		}
		structured := `{"specversion":"1.0","id":"8","source":"/s","type":"reply","data":{"n":1}}`
		a = in.do("POST", path, structured, "Content-Type", "application/cloudevents+json; charset=utf-8")
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || got["id"] != "r8" {
			t.Errorf("%s: %v", path, a)
		}
		if kind := a.header.Get("Content-Type"); !strings.HasPrefix(path, "/v1") && kind != "application/cloudevents+json" {
			t.Errorf("%s: an event was answered as %s", path, kind)
		}
		want(t, in.do("POST", path, "{}", "Content-Type", "application/cloudevents+json"), 400, "invalid")
		want(t, in.do("POST", path, "{}", "Content-Type", "application/cloudevents+xml"), 400, "invalid")

		a = in.do("POST", path, `[`+structured+`,{"specversion":"1.0","id":"9","source":"/s","type":"fail"}]`, "Content-Type", "application/cloudevents-batch+json")
		var ids struct{ Invocations []string }
		if err := json.Unmarshal(a.body, &ids); err != nil || a.status != 202 || len(ids.Invocations) != 2 {
			t.Fatalf("%s: %v", path, a)
		}
		if one, two := in.ended(ids.Invocations[0]), in.ended(ids.Invocations[1]); one.State != "succeeded" || two.State != "failed" || !strings.Contains(string(one.Result.Value), "r8") {
			t.Errorf("%s: %+v %+v", path, one, two)
		}
		a = in.do("POST", path, "", binary("reply", "Hearth-Invocation-Type", "async")...)
		if a.status != 202 {
			t.Fatalf("%s: %v", path, a)
		}
		if c := in.ended(a.header.Get("Hearth-Invocation-Id")); c.State != "succeeded" || c.Kind != "event" {
			t.Errorf("%s: %+v", path, c)
		}
	}
	before := len(in.calls("events"))
	want(t, in.do("POST", "/hooks", `[{"specversion":"1.0","id":"8","source":"/s","type":"order"},{}]`, "Content-Type", "application/cloudevents-batch+json"), 400, "invalid")
	if n := len(in.calls("events")); n != before {
		t.Errorf("of a batch that was refused %d calls were stored", n-before)
	}
	if a := in.do("POST", "/fn/events/", "", binary("null")...); a.status != 204 || len(a.body) > 0 {
		t.Errorf("null: %v", a)
	}
	want(t, in.do("POST", "/fn/events/", "", binary("fail")...), 502, "function_error")
	if a := in.do("POST", "/fn/events/", "x"); !strings.Contains(string(a.body), "rawPath") {
		t.Errorf("an ordinary request: %v", a)
	}
	if a := in.do("POST", "/fn/plain/", "x", binary("order")...); !strings.Contains(string(a.body), "ce-specversion") {
		t.Errorf("a function that does not take events: %v", a)
	}
	want(t, in.do("POST", "/v1/functions/plain/invocations", "x", binary("order", "Content-Type", "text/plain")...), 415, "invalid")
}

func (in *installation) calls(function string) []asyncCall {
	in.t.Helper()
	var list struct{ Calls []asyncCall }
	decode(in.t, in.do("GET", "/v1/functions/"+function+"/queue?limit=500", nil), &list)
	return list.Calls
}

// TestCloudEventHeaders: the headers that say how a call is to be treated mean the same
// for events as for other requests.
func TestCloudEventHeaders(t *testing.T) {
	in := start(t, "")
	in.deploy("events", "python", `
calls = 0
def handler(event, context):
    global calls
    calls += 1
    if event.get("type") == "fail": raise ValueError("no")
    return {"calls": calls, "subject": event.get("subject"), "http": "rawPath" in event}
`, fields{"cloudevents": true, "concurrency": 1})
	const one = `{"specversion":"1.0","id":"8","source":"/s","type":"order"}`
	post := func(path, body string, headers ...string) answer { return in.do("POST", path, body, headers...) }
	binary := func(more ...string) []string {
		return append([]string{"ce-specversion", "1.0", "ce-id", "7", "ce-source", "/shop", "ce-type", "order"}, more...)
	}
	structured := func(more ...string) []string {
		return append([]string{"Content-Type", "application/cloudevents+json"}, more...)
	}
	batch := func(more ...string) []string {
		return append([]string{"Content-Type", "application/cloudevents-batch+json"}, more...)
	}

	// With a key an event reaches the function once.
	first := post("/fn/events/", one, structured("Idempotency-Key", "a")...)
	again := post("/fn/events/", one, structured("Idempotency-Key", "a")...)
	if first.status != 200 || first.json(t)["calls"] != 1.0 || string(again.body) != string(first.body) || again.header.Get("Hearth-Idempotent-Replay") != "true" {
		t.Error(first, again)
	}
	want(t, post("/fn/events/", one+" ", structured("Idempotency-Key", "a")...), 422, "invalid")
	large := binary("Idempotency-Key", "b", "Content-Type", "text/plain", "ce-subject", "x")
	first, again = post("/fn/events/", strings.Repeat("x", 1<<20), large...), post("/fn/events/", strings.Repeat("x", 1<<20), large...)
	if first.json(t)["calls"] != 2.0 || string(again.body) != string(first.body) {
		t.Error(first, again)
	}
	// The attributes in its headers are part of an event.
	large[len(large)-1] = "y"
	want(t, post("/fn/events/", strings.Repeat("x", 1<<20), large...), 422, "invalid")
	failing := binary("Idempotency-Key", "c")
	failing[7] = "fail"
	want(t, post("/fn/events/", "", failing...), 502, "function_error")
	want(t, post("/fn/events/", "", failing...), 502, "function_error")
	if a := post("/fn/events/", one, structured()...); a.json(t)["calls"] != 4.0 {
		t.Errorf("a failed event with a key came again: %v", a)
	}
	// What was no event can be sent anew.
	want(t, post("/fn/events/", "{", structured("Idempotency-Key", "d")...), 400, "invalid")
	if a := post("/fn/events/", one, structured("Idempotency-Key", "d")...); a.status != 200 {
		t.Error(a)
	}

	before := len(in.calls("events"))
	for _, path := range []string{"/fn/events/", "/v1/functions/events/invocations"} {
		// The case of a media type means nothing.
		if a := post(path, one, "Content-Type", "Application/CloudEvents+JSON"); a.status != 200 || a.json(t)["http"] != false {
			t.Errorf("%s: %v", path, a)
		}
		// What is for calls that run later is for no other.
		for _, header := range []string{"Hearth-Delay", "Hearth-Not-Before", "Hearth-Deduplication-Key"} {
			want(t, post(path, one, structured(header, "2030-01-31T08:00:00Z")...), 400, "invalid")
			want(t, post(path, "", binary(header, "1h")...), 400, "invalid")
		}
		// Calls that run later have another key.
		want(t, post(path, one, structured("Idempotency-Key", "k", "Hearth-Invocation-Type", "async")...), 400, "invalid")
		want(t, post(path, "["+one+"]", batch("Idempotency-Key", "k")...), 400, "invalid")
		want(t, post(path, "["+one+"]", batch("Hearth-Deduplication-Key", "k")...), 400, "invalid")
	}
	want(t, post("/v1/functions/events/invocations", one, structured("Idempotency-Key", "k")...), 400, "invalid")
	if n := len(in.calls("events")); n != before {
		t.Errorf("%d calls were stored", n-before)
	}
	// A batch always runs later, so it may have a delay.
	for i, path := range []string{"/fn/events/", "/v1/functions/events/invocations"} {
		if a := post(path, "["+one+"]", batch("Hearth-Delay", "1h")...); a.status != 202 || len(in.calls("events")) != before+i+1 {
			t.Errorf("%s: %v", path, a)
		}
	}
	// Only methods with a body bring events.
	for method, event := range map[string]bool{"POST": true, "PUT": true, "PATCH": true, "GET": false, "DELETE": false, "OPTIONS": false} {
		if a := in.do(method, "/fn/events/", nil, binary()...); a.status != 200 || a.json(t)["http"] == event {
			t.Errorf("%s: %v", method, a)
		}
	}
}
