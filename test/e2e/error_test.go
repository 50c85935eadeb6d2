package e2e

import (
	"strings"
	"testing"
)

// TestErrorShapes: callers can tell the ways in which a call fails apart, as
// docs/errors.md says, and learn nothing of the function's own.
func TestErrorShapes(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
import os, time
def handler(event, context):
    do = event["rawPath"]
    if do == "/exception": raise ValueError("secret detail")
    if do == "/invalid": return {"statusCode": "secret detail"}
    if do == "/marshal": return {"x": object()}
    if do == "/timeout": time.sleep(60)
    if do == "/exit": os._exit(3)
    if do == "/memory":
        kept = []
        while True: kept.append(bytearray(os.urandom(1 << 20)))
    if do == "/large": return b"x" * 2000
    if do == "/own": return {"statusCode": 500, "body": "its own"}
    if do == "/partial":
        def parts():
            yield "first"
            time.sleep(0.05)
            raise ValueError("secret detail")
        return parts()
    return "fine"
`,
		"nodejs": `
import { Readable } from "node:stream";
export const handler = async (event) => {
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  switch (event.rawPath) {
  case "/exception": throw new RangeError("secret detail");
  case "/invalid": return { statusCode: "secret detail" };
  case "/marshal": return { x: 1n };
  case "/timeout": await sleep(60000);
  case "/exit": process.exit(3);
  case "/large": return Buffer.alloc(2000, "x");
  case "/own": return { statusCode: 500, body: "its own" };
  case "/partial": return Readable.from((async function* () { yield "first"; await sleep(50); throw new Error("secret detail"); })());
  }
  return "fine";
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "errors-" + runtime
		in.deploy(name, runtime, code, fields{"timeout": "3s", "limits": fields{"response": "1000B"}})
		for _, c := range []struct {
			do        string
			status    int
			code, typ string
		}{
			{"exception", 502, "function_error", "Handler.Exception"},
			{"invalid", 502, "function_error", "Runtime.InvalidResponse"},
			{"marshal", 502, "function_error", "Runtime.MarshalError"},
			{"timeout", 504, "timeout", ""},
			{"exit", 502, "function_error", "Runtime.ExitError"},
			{"memory", 502, "function_error", "Runtime.OutOfMemory"},
			{"large", 502, "function_error", "Runtime.ResponseTooLarge"},
		} {
			if c.do == "memory" && runtime != "python" {
				continue // V8 ends by itself before the kernel does anything
			}
			a := in.do("GET", "/fn/"+name+"/"+c.do, nil)
			want(t, a, c.status, c.code)
			p := a.json(t)
			typ, _ := p["error_type"].(string)
			if p["code"] != c.code || typ != c.typ || p["invocation"] != a.header.Get("Hearth-Invocation-Id") || a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: %v", c.do, a)
			}
			if strings.Contains(string(a.body), "secret detail") || strings.Contains(string(a.body), "main.") {
				t.Errorf("%s tells what is the function's own: %s", c.do, a.body)
			}
		}
		if a := in.do("GET", "/fn/"+name+"/own", nil); a.status != 500 || a.header.Get("Hearth-Error") != "" || string(a.body) != "its own" {
			t.Errorf("a function's own error: %v", a)
		}
		if a := in.do("GET", "/fn/"+name+"/partial", nil); a.err == nil || string(a.body) != "first" {
			t.Errorf("a broken response looks complete: %v", a)
		}
		if a := in.do("GET", "/fn/"+name+"/", nil); a.status != 200 {
			t.Errorf("afterwards: %v", a)
		}
	})
}
