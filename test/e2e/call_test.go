package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// echoEvent answers with the event and the environment.
var echoEvent = map[string]string{
	"python": `
import os
def handler(event, context):
    print("called", context.aws_request_id)
    return {"event": event, "env": os.environ.get("GREETING"), "id": context.aws_request_id,
            "left": context.get_remaining_time_in_millis()}
`,
	"nodejs": `
export const handler = async (event, context) => {
  console.log("called", context.awsRequestId);
  return { event, env: process.env.GREETING, id: context.awsRequestId,
           left: context.getRemainingTimeInMillis() };
};
`,
}

func TestHTTPCall(t *testing.T) {
	in := start(t, "")
	each(t, echoEvent, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("echo-"+runtime, runtime, code, fields{
			"env": fields{"GREETING": "hi"}, "routes": []string{"GET /hello-" + runtime + "/{who}", "/all-" + runtime + "/{rest...}"},
		})
		a := in.do("GET", "/fn/echo-"+runtime+"/a%20b/c?x=1&x=2&y=%C3%A9", nil, "X-Custom", "v", "Cookie", "a=b; c=d", "X-Forwarded-For", "203.0.113.9")
		if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
			t.Fatal(a)
		}
		id := a.header.Get("Hearth-Invocation-Id")
		timing := a.header.Get("Server-Timing")
		if len(id) != 36 || a.header.Get("Hearth-Start") != "warm" || a.header.Get("Hearth-Error") != "" ||
			!regexp.MustCompile(`^queue;dur=[0-9.]+, start;dur=0, init;dur=0, run;dur=[0-9.]+$`).MatchString(timing) {
			t.Errorf("headers %v", a.header)
		}
		got := a.json(t)
		if got["env"] != "hi" || got["id"] != id {
			t.Errorf("env %v, id %v, want hi, %v", got["env"], got["id"], id)
		}
		if left := got["left"].(float64); left <= 25000 || left > 30000 {
			t.Errorf("remaining time %v ms of 30 s", left)
		}
		event := got["event"].(map[string]any)
		ctx := event["requestContext"].(map[string]any)
		for name, pair := range map[string][2]any{
			"version":   {event["version"], "2.0"},
			"routeKey":  {event["routeKey"], "$default"},
			"rawPath":   {event["rawPath"], "/a b/c"},
			"rawQuery":  {event["rawQueryString"], "x=1&x=2&y=%C3%A9"},
			"query":     {event["queryStringParameters"], fields{"x": "1,2", "y": "é"}},
			"cookies":   {event["cookies"], []any{"a=b", "c=d"}},
			"header":    {event["headers"].(map[string]any)["x-custom"], "v"},
			"prefix":    {event["headers"].(map[string]any)["x-forwarded-prefix"], "/fn/echo-" + runtime},
			"forwarded": {event["headers"].(map[string]any)["x-forwarded-for"], "203.0.113.9, 127.0.0.1"},
			"method":    {ctx["http"].(map[string]any)["method"], "GET"},
			"sourceIp":  {ctx["http"].(map[string]any)["sourceIp"], "203.0.113.9"},
			"requestId": {ctx["requestId"], id},
			"body":      {event["body"], nil},
			"base64":    {event["isBase64Encoded"], false},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Errorf("event %s: %#v, want %#v", name, pair[0], pair[1])
			}
		}

		a = in.do("GET", "/hello-"+runtime+"/J%C3%BCrgen", nil)
		event = a.json(t)["event"].(map[string]any)
		if !reflect.DeepEqual(event["pathParameters"], fields{"who": "Jürgen"}) || event["routeKey"] != "GET /hello-"+runtime+"/{who}" {
			t.Errorf("route: %v %v", event["pathParameters"], event["routeKey"])
		}
		a = in.do("DELETE", "/all-"+runtime+"/x/y", nil)
		if event = a.json(t)["event"].(map[string]any); !reflect.DeepEqual(event["pathParameters"], fields{"rest": "x/y"}) {
			t.Errorf("rest: %v", event["pathParameters"])
		}
		want(t, in.do("POST", "/hello-"+runtime+"/x", nil), 404, "not_found")

		// The body: text as it is, binary as base64.
		a = in.do("POST", "/fn/echo-"+runtime, `{"k":"ü"}`, "Content-Type", "application/json")
		if event = a.json(t)["event"].(map[string]any); event["body"] != `{"k":"ü"}` || event["isBase64Encoded"] != false {
			t.Errorf("text body: %v", event)
		}
		a = in.do("POST", "/fn/echo-"+runtime, []byte{0, 255, 1}, "Content-Type", "application/octet-stream")
		if event = a.json(t)["event"].(map[string]any); event["body"] != "AP8B" || event["isBase64Encoded"] != true {
			t.Errorf("binary body: %v", event)
		}

		// What it printed is in the log, with the call's id.
		found := false
		for _, l := range in.logs("echo-" + runtime) {
			found = found || l["invocation"] == id && l["text"] == "called "+id && l["stream"] == "stdout"
		}
		if !found {
			t.Errorf("the log lacks the line of call %s: %v", id, in.logs("echo-"+runtime))
		}
		rec := in.do("GET", "/v1/invocations/"+id, nil).json(t)
		if rec["status"] != 200.0 || rec["function"] != "echo-"+runtime || rec["cold"] != false {
			t.Errorf("record: %v", rec)
		}
	})
}

func TestEventCall(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": "def handler(event, context):\n    return event\n",
		"nodejs": "export const handler = (event) => event;\n",
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "id-" + runtime
		in.deploy(name, runtime, code, nil)
		for _, event := range []string{`{"k":1}`, `null`, `"text ü 😀"`, `[1,2.5,true]`, `{"nested":{"a":[]}}`, `12345678901`} {
			a := in.do("POST", "/v1/functions/"+name+"/invocations", event, "Content-Type", "application/json")
			var got, want any
			json.Unmarshal([]byte(event), &want) //nolint:errcheck // a constant
			if err := json.Unmarshal(a.body, &got); err != nil || a.status != 200 || !reflect.DeepEqual(got, want) {
				t.Errorf("event %s: %v", event, a)
			}
			for _, h := range []string{"Hearth-Invocation-Id", "Hearth-Start", "Server-Timing"} {
				if a.header.Get(h) == "" {
					t.Errorf("no %s", h)
				}
			}
		}
		want(t, in.do("POST", "/v1/functions/"+name+"/invocations", "{", "Content-Type", "application/json"), 400, "invalid")
		want(t, in.do("POST", "/v1/functions/nobody/invocations", "{}", "Content-Type", "application/json"), 404, "not_found")
	})
}

func TestResponses(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
def handler(event, context):
    p = event["rawPath"]
    if p == "/full":
        return {"statusCode": 201, "headers": {"X-A": "b", "Connection": "x", "Hearth-Error": "fake"},
                "cookies": ["a=1", "b=2; HttpOnly"], "body": "<p>ü</p>"}
    if p == "/base64":
        return {"statusCode": 200, "body": "AP8B", "isBase64Encoded": True}
    if p == "/bytes":
        return bytes(range(256))
    if p == "/text":
        return "plain"
    if p == "/none":
        return {"statusCode": 204}
    if p == "/status":
        return {"statusCode": 9}
    if p == "/header":
        return {"statusCode": 200, "headers": {"bad name": "x"}}
`,
		"nodejs": `
export const handler = async (event) => {
  const p = event.rawPath;
  if (p === "/full") return { statusCode: 201, headers: { "X-A": "b", "Connection": "x", "Hearth-Error": "fake" },
    cookies: ["a=1", "b=2; HttpOnly"], body: "<p>ü</p>" };
  if (p === "/base64") return { statusCode: 200, body: "AP8B", isBase64Encoded: true };
  if (p === "/bytes") return Uint8Array.from({ length: 256 }, (_, i) => i);
  if (p === "/text") return "plain";
  if (p === "/none") return { statusCode: 204 };
  if (p === "/status") return { statusCode: 9 };
  if (p === "/header") return { statusCode: 200, headers: { "bad name": "x" } };
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		fn := "/fn/resp-" + runtime
		in.deploy("resp-"+runtime, runtime, code, nil)
		a := in.do("GET", fn+"/full", nil)
		if a.status != 201 || string(a.body) != "<p>ü</p>" || a.header.Get("X-A") != "b" || a.header.Get("Hearth-Error") != "" ||
			!reflect.DeepEqual(a.header["Set-Cookie"], []string{"a=1", "b=2; HttpOnly"}) {
			t.Errorf("full: %v", a)
		}
		if a = in.do("GET", fn+"/base64", nil); !bytes.Equal(a.body, []byte{0, 255, 1}) {
			t.Errorf("base64: %v", a)
		}
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		if a = in.do("GET", fn+"/bytes", nil); !bytes.Equal(a.body, all) || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("bytes: %v", a)
		}
		if a = in.do("GET", fn+"/text", nil); string(a.body) != "plain" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
			t.Errorf("text: %v", a)
		}
		if a = in.do("HEAD", fn+"/text", nil); a.status != 200 || len(a.body) != 0 || a.header.Get("Content-Length") != "5" {
			t.Errorf("HEAD: %v", a)
		}
		if a = in.do("GET", fn+"/none", nil); a.status != 204 || len(a.body) != 0 {
			t.Errorf("none: %v", a)
		}
		want(t, in.do("GET", fn+"/status", nil), 502, "function_error")
		want(t, in.do("GET", fn+"/header", nil), 502, "function_error")
		want(t, in.do("GET", fn+"/text", nil), 200, "")
	})
}

// TestLargeBodies sends and receives bodies over every internal chunk size.
func TestLargeBodies(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
import base64, hashlib
def handler(event, context):
    b = base64.b64decode(event["body"])
    return {"statusCode": 200, "headers": {"x-sum": hashlib.sha256(b).hexdigest()}, "body": b}
`,
		"nodejs": `
import { createHash } from "node:crypto";
export const handler = async (event) => {
  const b = Buffer.from(event.body, "base64");
  return { statusCode: 200, headers: { "x-sum": createHash("sha256").update(b).digest("hex") }, body: b };
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("large-"+runtime, runtime, code, fields{"memory": "512MiB"})
		for _, size := range []int{1, 65535, 65536, 65537, 1<<20 + 1, 9 << 20} {
			body := make([]byte, size)
			rand.Read(body)
			sum := sha256.Sum256(body)
			for _, chunked := range []bool{false, true} {
				var b any = body
				if chunked {
					b = struct{ *bytes.Reader }{bytes.NewReader(body)}
				}
				a := in.do("POST", "/fn/large-"+runtime+"/", b, "Content-Type", "application/octet-stream")
				if a.status != 200 || a.header.Get("X-Sum") != hex.EncodeToString(sum[:]) || !bytes.Equal(a.body, body) {
					t.Fatalf("%d bytes, chunked %v: %d, sum ok %v, %d bytes back, %v", size, chunked, a.status,
						a.header.Get("X-Sum") == hex.EncodeToString(sum[:]), len(a.body), a.err)
				}
			}
		}
		want(t, in.do("POST", "/fn/large-"+runtime+"/", make([]byte, 33<<20)), 413, "invalid")
	})
}

// TestStreaming: a chunk reaches the client before the function makes the next.
func TestStreaming(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
import urllib.request, time
def handler(event, context):
    if event["rawPath"] == "/boom":
        def broken():
            yield "some"
            raise ValueError("broke")
        return {"statusCode": 200, "body": broken()}
    def chunks():
        for i in range(5):
            yield "chunk %d\n" % i
            time.sleep(0.15)
    return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": chunks()}
`,
		"nodejs": `
export const handler = async (event) => {
  if (event.rawPath === "/boom") return { statusCode: 200, body: (async function* () { yield "some"; throw new Error("broke"); })() };
  return { statusCode: 200, headers: { "content-type": "text/plain" }, body: (async function* () {
    for (let i = 0; i < 5; i++) { yield "chunk " + i + "\n"; await new Promise((r) => setTimeout(r, 150)); }
  })() };
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("stream-"+runtime, runtime, code, nil)
		req, err := http.NewRequestWithContext(t.Context(), "GET", in.url+"/fn/stream-"+runtime+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		for i := range 5 {
			line, err := r.ReadString('\n')
			if err != nil || line != fmt.Sprintf("chunk %d\n", i) {
				t.Fatalf("line %d: %q, %v", i, line, err)
			}
			if i == 0 {
				// The other four take the function 600 ms; if the first came with
				// them, the record of the call would exist by now.
				rec := in.do("GET", "/v1/invocations/"+resp.Header.Get("Hearth-Invocation-Id"), nil)
				if rec.status != 404 {
					t.Errorf("the call had ended when its first chunk came: %v", rec)
				}
			}
		}
		// A stream that breaks must not look complete: it breaks for the client
		// too, or, if nothing had been sent yet, is an error.
		if a := in.do("GET", "/fn/stream-"+runtime+"/boom", nil); a.err == nil && a.status != 502 {
			t.Errorf("broken stream: %v", a)
		}
	})
}
