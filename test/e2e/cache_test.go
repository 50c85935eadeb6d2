package e2e

import (
	"sync"
	"testing"
)

// countingCalls answers with how often it was called, and says of itself how long
// that is true.
const countingCalls = `
calls = 0
def handler(event, context):
    global calls
    calls += 1
    print("call", calls)
    query = event.get("queryStringParameters") or {}
    headers = {"content-type": "text/plain", "etag": '"%d"' % calls}
    if "control" in query:
        headers["cache-control"] = query["control"]
    if "vary" in query:
        headers["vary"] = query["vary"]
    return {"statusCode": 200, "headers": headers, "body": "%s %d" % (event["headers"].get("x-user", "all"), calls)}
`

func TestCache(t *testing.T) {
	in := start(t, "")
	config := fields{
		"routes": []string{"GET /counted/{id}", "/other/{id}"},
		"cache":  fields{"ttl": fields{"GET /counted/{id}": "1h"}},
	}
	in.deploy("counting", "python", countingCalls, config)
	get := func(path, start, body string, header ...string) answer {
		t.Helper()
		a := in.do("GET", path, nil, header...)
		if a.status != 200 || a.header.Get("Hearth-Start") != start || string(a.body) != body {
			t.Errorf("GET %s: want %s %q, got %v", path, start, body, a)
		}
		return a
	}
	get("/fn/counting/", "warm", "all 1") // no ttl, and it says nothing
	get("/fn/counting/", "warm", "all 2")
	get("/other/1", "warm", "all 3")
	get("/other/1", "warm", "all 4")
	get("/counted/1", "warm", "all 5")
	a := get("/counted/1", "cached", "all 5")
	if a.header.Get("Age") != "0" || a.header.Get("Content-Type") != "text/plain" || a.header.Get("Server-Timing") == "" {
		t.Errorf("headers %v", a.header)
	}
	rec := in.do("GET", "/v1/invocations/"+a.header.Get("Hearth-Invocation-Id"), nil).json(t)
	if rec["cached"] != true || rec["status"] != 200.0 || rec["cold"] != false || rec["timings"].(fields)["run_ns"] != 0.0 {
		t.Errorf("record %v", rec)
	}
	if a := in.do("HEAD", "/counted/1", nil); a.header.Get("Hearth-Start") != "cached" || a.header.Get("Content-Length") != "5" || len(a.body) != 0 {
		t.Errorf("HEAD: %v", a)
	}
	if a := in.do("GET", "/counted/1", nil, "If-None-Match", `"5"`); a.status != 304 || len(a.body) != 0 {
		t.Errorf("conditional: %v", a)
	}
	get("/counted/2", "warm", "all 6")
	get("/counted/1", "warm", "all 7", "Authorization", "Bearer x")
	get("/counted/1", "cached", "all 5", "Cache-Control", "no-cache")
	get("/counted/1?control=no-store", "warm", "all 8")
	get("/counted/1?control=no-store", "warm", "all 9")
	get("/other/1?control=max-age%3D60&vary=X-User", "warm", "a 10", "X-User", "a")
	get("/other/1?control=max-age%3D60&vary=X-User", "warm", "b 11", "X-User", "b")
	get("/other/1?control=max-age%3D60&vary=X-User", "cached", "a 10", "X-User", "a")

	// What many ask for at once is made once.
	var wg sync.WaitGroup
	bodies := make([]string, 20)
	for i := range bodies {
		wg.Go(func() { bodies[i] = string(in.do("GET", "/counted/3", nil).body) })
	}
	wg.Wait()
	for _, b := range bodies {
		if b != "all 12" {
			t.Errorf("bodies %q", bodies)
			break
		}
	}
	lines := 0
	for _, l := range in.logs("counting") {
		if l["stream"] == "stdout" {
			lines++
		}
	}
	if lines != 12 {
		t.Errorf("the function was called %d times, want 12", lines)
	}

	// A change of the URL's state, and a new version, make what was kept old.
	in.do("POST", "/other/1?control=max-age%3D60&vary=X-User", nil)
	get("/other/1?control=max-age%3D60&vary=X-User", "warm", "a 14", "X-User", "a")
	in.deploy("counting", "python", countingCalls+"\n# changed\n", config)
	get("/counted/1", "warm", "all 1")

	// A route that the function has not is refused.
	config["cache"] = fields{"ttl": fields{"GET /elsewhere": "1h"}}
	want(t, in.try("counting", "python", countingCalls, config), 400, "invalid")
}
