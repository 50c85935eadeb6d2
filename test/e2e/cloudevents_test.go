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
