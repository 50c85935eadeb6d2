package e2e

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// TestExampleHTTP compares the example of an HTTP request with the event of the
// same request: only what differs from call to call may differ.
func TestExampleHTTP(t *testing.T) {
	in := start(t, "")
	in.deploy("echo", "python", "def handler(event, context):\n    return event\n", nil)
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
	}{
		{name: "plain", method: "GET", path: "/"},
		{name: "path and query", method: "DELETE", path: "/a%20b/c?name=Ada&x=1&x=2&e="},
		{name: "JSON", method: "POST", path: "/orders", body: `{"a":1}`, header: []string{"Content-Type", "application/json"}},
		{name: "text", method: "PUT", path: "/", body: "grüß", header: []string{"Content-Type", "text/plain; charset=utf-8"}},
		{name: "binary", method: "POST", path: "/", body: "\xff\x00", header: []string{"Content-Type", "application/octet-stream"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := hearth.ExampleOptions{Function: "echo", Method: c.method, Path: c.path, Time: time.Now()}
			var body any
			if c.body != "" {
				o.Body, body = []byte(c.body), []byte(c.body)
			}
			list, err := hearth.Examples(o)
			if err != nil {
				t.Fatal(err)
			}
			example := list[0].Event.(hearth.HTTPEvent)
			var exampled map[string]any
			decode(t, in.invoke("echo", example), &exampled)

			a := in.do(c.method, "/fn/echo"+c.path, body, append(c.header, "User-Agent", example.RequestContext.HTTP.UserAgent, "Accept", "*/*")...)
			real := a.json(t)
			headers := real["headers"].(map[string]any)
			delete(headers, "accept-encoding") // Go's client adds it
			for key, host := range map[string]map[string]any{"host": headers, "x-forwarded-host": headers, "domainName": real["requestContext"].(map[string]any)} {
				if "http://"+host[key].(string) != in.url {
					t.Errorf("%s is %v", key, host[key])
				}
				host[key] = "127.0.0.1:8080"
			}
			for _, v := range []map[string]any{real, exampled} {
				rc := v["requestContext"].(map[string]any)
				if at, err := time.Parse("02/Jan/2006:15:04:05 -0700", rc["time"].(string)); err != nil || time.Since(at) > time.Minute {
					t.Errorf("time is %v: %v", rc["time"], err)
				}
				if len(rc["requestId"].(string)) != 36 || rc["timeEpoch"].(float64) < 1e12 {
					t.Errorf("requestContext is %v", rc)
				}
				rc["requestId"], rc["time"], rc["timeEpoch"] = "", "", 0
				h := v["headers"].(map[string]any)
				if p, _ := h["traceparent"].(string); len(p) != 55 {
					t.Errorf("traceparent is %q", p)
				}
				h["traceparent"] = ""
			}
			if diff := cmp.Diff(real, exampled); diff != "" {
				t.Errorf("the example (+) differs from a real event (-):\n%s", diff)
			}

			// The type has a field for all that comes.
			dec := json.NewDecoder(bytes.NewReader(a.body))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&hearth.HTTPEvent{}); err != nil {
				t.Errorf("HTTPEvent: %v", err)
			}
		})
	}
	// The type also has what only routes and browsers send.
	in.deploy("routed", "python", "def handler(event, context):\n    return event\n", fields{"routes": []string{"GET /users/{id}"}})
	a := in.do("GET", "/users/7", nil, "Cookie", "a=1; b=2")
	var e hearth.HTTPEvent
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		t.Fatalf("%v: %v", err, a)
	}
	if e.RouteKey != "GET /users/{id}" || e.PathParameters["id"] != "7" || len(e.Cookies) != 2 {
		t.Errorf("decoded: %+v", e)
	}

	// The API has the same.
	var listed struct {
		Examples []struct {
			Name  string
			Event json.RawMessage
		}
	}
	decode(t, in.do("GET", "/v1/examples?function=echo", nil), &listed)
	if len(listed.Examples) < 5 || listed.Examples[0].Name != "http" {
		t.Fatalf("the API has %+v", listed)
	}
	if err := json.Unmarshal(listed.Examples[0].Event, &e); err != nil || e.RequestContext.APIID != "echo" {
		t.Errorf("the API has %s: %v", listed.Examples[0].Event, err)
	}
}
