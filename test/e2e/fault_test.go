package e2e

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestDeployErrors: a deploy that fails says why and changes nothing.
func TestDeployErrors(t *testing.T) {
	in := start(t, "")
	ok := map[string]string{
		"python": "def handler(event, context):\n    return 1\n",
		"nodejs": "export const handler = () => 1;\n",
	}
	type bad struct {
		name, code string
		config     fields
		status     int
		errorCode  string
		says       string
	}
	cases := map[string][]bad{
		"python": {
			{"syntax error", "def handler(:\n", nil, 502, "function_error", "SyntaxError"},
			{"import error", "import nosuchmodule\ndef handler(e, c): pass\n", nil, 502, "function_error", "nosuchmodule"},
			{"no handler function", "x = 1\n", nil, 502, "function_error", "handler"},
			{"exits while loading", "import os\nos._exit(4)\n", nil, 502, "function_error", "status 4"},
		},
		"nodejs": {
			{"syntax error", "export const handler = (;\n", nil, 502, "function_error", "SyntaxError"},
			{"import error", "import x from 'nosuchmodule';\nexport const handler = () => 1;\n", nil, 502, "function_error", "nosuchmodule"},
			{"no handler function", "export const x = 1;\n", nil, 502, "function_error", "handler"},
			{"exits while loading", "process.exit(4);\n", nil, 502, "function_error", "status 4"},
		},
	}
	each(t, ok, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "good-" + runtime
		in.deploy(name, runtime, code, fields{"routes": []string{"/taken-" + runtime}})
		list := append(cases[runtime],
			bad{"unknown runtime", code, fields{"runtime": "cobol"}, 400, "invalid", "cobol"},
			bad{"missing handler file", code, fields{"handler": "nofile.handler"}, 400, "invalid", "nofile"},
			bad{"bad handler", code, fields{"handler": "../x"}, 400, "invalid", "handler"},
			bad{"negative timeout", code, fields{"timeout": "-1s"}, 400, "invalid", "timeout"},
			bad{"unknown field", code, fields{"timout": "1s"}, 400, "invalid", "timout"},
			bad{"unknown isolation", code, fields{"isolation": "magic"}, 400, "invalid", "magic"},
			bad{"too little memory", code, fields{"memory": "1MiB"}, 400, "invalid", "memory"},
			bad{"reserved route", code, fields{"routes": []string{"/v1/x"}}, 400, "invalid", "/v1"},
			bad{"reserved variable", code, fields{"env": fields{"HEARTH_X": "1"}}, 400, "invalid", "HEARTH_X"},
		)
		for _, c := range list {
			// Once as a new function, once as a new version of one that works.
			for _, target := range []string{"new-" + runtime, name} {
				a := in.try(target, runtime, c.code, c.config)
				want(t, a, c.status, c.errorCode)
				if !strings.Contains(string(a.body), c.says) {
					t.Errorf("%s: the error does not mention %q: %v", c.name, c.says, a)
				}
			}
		}
		want(t, in.do("GET", "/v1/functions/new-"+runtime, nil), 404, "not_found")
		if f := in.do("GET", "/v1/functions/"+name, nil).json(t); f["live"] != 1.0 {
			t.Errorf("the failed deploys changed the function: %v", f)
		}
		want(t, in.do("GET", "/taken-"+runtime, nil), 200, "")

		a := in.try("other-"+runtime, runtime, code, fields{"routes": []string{"/taken-" + runtime}})
		want(t, a, 409, "conflict")
		if !strings.Contains(string(a.body), name) {
			t.Errorf("the conflict does not name the other function: %v", a)
		}
		a = in.do("POST", "/v1/functions", fields{"name": name, "runtime": runtime, "code": fields{"files": fields{"main.py": "x=1", "main.mjs": ""}}})
		want(t, a, 409, "conflict")
	})
}

// hostile has one function that does all kinds of harm, by its event.
var hostile = map[string]string{
	"python": `
import os, sys, time
def handler(event, context):
    do = event.get("do")
    if do == "exit":
        os._exit(7)
    if do == "loop":
        while True: pass
    if do == "raise":
        raise ValueError("bad ü")
    if do == "fork":
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60); os._exit(0)
        except OSError as e:
            return "stopped: " + str(e)
    if do == "memory":
        x = []
        while True: x.append(bytearray(1 << 20))
    if do == "disk":
        try:
            with open("/tmp/fill", "wb") as f:
                while True: f.write(b"x" * (1 << 20))
        except OSError as e:
            os.unlink("/tmp/fill")
            return "stopped: " + str(e)
    if do == "logs":
        for i in range(200000): print("x" * 100)
        return "done"
    if do == "unserialisable":
        return object()
    if do == "large":
        return "x" * (100 << 20)
    if do == "close":
        for fd in range(3, 50):
            try: os.close(fd)
            except OSError: pass
        time.sleep(60)
    if do == "garbage":
        for fd in range(3, 50):
            try: os.write(fd, os.urandom(4096))
            except OSError: pass
        time.sleep(60)
    if do == "kill":
        os.kill(os.getpid(), 9)
    return "fine"
`,
	"nodejs": `
import fs from "node:fs";
import { spawn } from "node:child_process";
export const handler = async (event) => {
  switch (event.do) {
    case "exit": process.exit(7);
    case "loop": for (;;);
    case "raise": throw new RangeError("bad ü");
    case "fork": {
      return await new Promise((resolve) => {
        const more = () => { for (let i = 0; i < 50; i++) {
          try { spawn("/bin/sleep", ["60"]).on("error", (e) => resolve("stopped: " + e.code)); } catch (e) { resolve("stopped: " + e.code); }
        } setImmediate(more); };
        more();
      });
    }
    case "memory": { const x = []; for (;;) x.push(Buffer.alloc(1 << 20, 1)); }
    case "disk": {
      try { const fd = fs.openSync("/tmp/fill", "w"); const b = Buffer.alloc(1 << 20); for (;;) fs.writeSync(fd, b); }
      catch (e) { fs.unlinkSync("/tmp/fill"); return "stopped: " + e.code; }
    }
    case "logs": for (let i = 0; i < 200000; i++) console.log("x".repeat(100)); return "done";
    case "unserialisable": { const a = {}; a.a = a; return a; }
    case "large": return "x".repeat(100 << 20);
    case "close": for (let fd = 3; fd < 50; fd++) { try { fs.closeSync(fd); } catch {} } await new Promise((r) => setTimeout(r, 60000)); return;
    case "garbage": for (let fd = 3; fd < 50; fd++) { try { fs.writeSync(fd, Buffer.alloc(4096, 0xa5)); } catch {} } await new Promise((r) => setTimeout(r, 60000)); return;
    case "kill": process.kill(process.pid, "SIGKILL"); await new Promise((r) => setTimeout(r, 60000)); return;
  }
  return "fine";
};
`,
}

// TestHostileFunctions: each harm ends in its documented way, and neither the
// function's next call nor another function suffers.
func TestHostileFunctions(t *testing.T) {
	in := start(t, "")
	each(t, hostile, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "hostile-" + runtime
		in.deploy("calm-"+runtime, runtime, code, nil)
		in.deploy(name, runtime, code, fields{"timeout": "8s", "memory": "384MiB", "concurrency": 2})
		for _, c := range []struct {
			do        string
			status    int
			errorCode string
			says      []string // one of them
		}{
			{"raise", 502, "function_error", []string{"bad ü"}},
			{"exit", 502, "function_error", []string{"status 7"}},
			{"kill", 502, "function_error", []string{"signal 9"}},
			{"loop", 504, "timeout", []string{"8s"}},
			{"fork", 200, "", []string{"stopped"}},
			{"memory", 502, "function_error", []string{"Runtime.OutOfMemory", "MemoryError"}},
			{"disk", 200, "", []string{"stopped"}},
			{"logs", 200, "", []string{"done"}},
			{"unserialisable", 502, "function_error", []string{"Runtime.MarshalError"}},
			{"large", 0, "", nil},
			{"close", 502, "function_error", []string{"Runtime.ExitError", "Runtime.ProtocolError"}},
			{"garbage", 502, "function_error", []string{"Runtime.ProtocolError"}},
		} {
			t.Run(c.do, func(t *testing.T) {
				in.t = t
				a := in.invoke(name, fields{"do": c.do})
				if c.status != 0 {
					want(t, a, c.status, c.errorCode)
				} else if a.status == 200 && a.err == nil && len(a.body) < 100<<20 {
					t.Errorf("a cut answer looks complete: %d bytes", len(a.body))
				}
				said := len(c.says) == 0
				for _, s := range c.says {
					said = said || strings.Contains(string(a.body), s)
				}
				if !said {
					t.Errorf("the answer mentions none of %q: %v", c.says, a)
				}
				for _, f := range []string{"calm-" + runtime, name} {
					a := in.invoke(f, fields{"do": "nothing"})
					if a.status != 200 || strings.TrimSpace(string(a.body)) != `"fine"` {
						t.Errorf("%s after %s: %v", f, c.do, a)
					}
				}
			})
		}
		in.t = t
		// The public answer of the gateway hides what the function raised.
		a := in.do("POST", "/fn/"+name+"/", `x`)
		want(t, a, 200, "")
	})
}

// TestFailureIsHiddenFromCallers: the owner sees the exception, callers do not.
func TestFailureIsHiddenFromCallers(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": "def handler(event, context):\n    raise ValueError('secret detail')\n",
		"nodejs": "export const handler = () => { throw new TypeError('secret detail'); };\n",
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "raise-" + runtime
		in.deploy(name, runtime, code, nil)
		a := in.do("GET", "/fn/"+name+"/", nil)
		want(t, a, 502, "function_error")
		if strings.Contains(string(a.body), "secret") {
			t.Errorf("the answer shows the exception: %v", a)
		}
		id := a.header.Get("Hearth-Invocation-Id")
		var text strings.Builder
		for _, l := range in.logs(name) {
			if l["invocation"] == id {
				text.WriteString(l["text"].(string) + "\n")
			}
		}
		if !strings.Contains(text.String(), "secret detail") || !strings.Contains(text.String(), "main.") {
			t.Errorf("the log lacks the exception with its stack: %q", text.String())
		}
		p := in.invoke(name, nil).json(t)
		fe, _ := p["function_error"].(map[string]any)
		if fe == nil || fe["message"] != "secret detail" || len(fe["stack"].([]any)) == 0 {
			t.Errorf("the API's answer lacks type, message or stack: %v", p)
		}
	})
}

// TestTimeoutAfterBegin: a response that has begun is broken off.
func TestTimeoutAfterBegin(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": "import time\ndef handler(event, context):\n    def g():\n        while True:\n            yield 'x' * 1000\n            time.sleep(0.01)\n    return {'statusCode': 200, 'body': g()}\n",
		"nodejs": "export const handler = () => ({ statusCode: 200, body: (async function* () { for (;;) { yield 'x'.repeat(1000); await new Promise((r) => setTimeout(r, 10)); } })() });\n",
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("endless-"+runtime, runtime, code, fields{"timeout": "1s"})
		begin := time.Now()
		a := in.do("GET", "/fn/endless-"+runtime+"/", nil)
		if a.status != 200 || a.err == nil || len(a.body) == 0 {
			t.Errorf("an endless response: %v", a)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("it ended after %v, its timeout is 1 s", took)
		}
		rec := in.do("GET", "/v1/invocations/"+a.header.Get("Hearth-Invocation-Id"), nil).json(t)
		if rec["error_code"] != "timeout" || rec["status"] != 200.0 {
			t.Errorf("record: %v", rec)
		}
	})
}

// TestCallerLeaves: the call goes on, and its instance serves the next one.
func TestCallerLeaves(t *testing.T) {
	in := start(t, "")
	in.deploy("slow", "python", "import time\ndef handler(event, context):\n    time.sleep(event.get('s', 0))\n    return 1\n", fields{"concurrency": 1})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	a := in.doContext(ctx, "POST", "/v1/functions/slow/invocations", []byte(`{"s":1}`), "Content-Type", "application/json")
	if a.err == nil {
		t.Fatalf("the call ended: %v", a)
	}
	a = in.invoke("slow", fields{})
	want(t, a, 200, "")
	if a.header.Get("Hearth-Start") != "warm" {
		t.Error("the instance was lost with its caller")
	}
}

// TestUpdateLosesNoCall deploys new versions under load.
func TestUpdateLosesNoCall(t *testing.T) {
	in := start(t, "")
	each(t, map[string]string{
		"python": "import time\ndef handler(event, context):\n    time.sleep(0.01)\n    return 'v%d'\n",
		"nodejs": "export const handler = async () => { await new Promise((r) => setTimeout(r, 10)); return 'v%d'; };\n",
	}, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "update-" + runtime
		at := func(n string) string { return strings.ReplaceAll(code, "%d", n) }
		in.deploy(name, runtime, at("1"), fields{"concurrency": 4})
		var done atomic.Bool
		var calls atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				last := "v1"
				for !done.Load() {
					a := in.do("GET", "/fn/"+name+"/", nil)
					if a.status != 200 || string(a.body) < last {
						t.Errorf("after %s: %v", last, a)
						return
					}
					last = string(a.body)
					calls.Add(1)
				}
			})
		}
		for _, n := range []string{"2", "3", "4"} {
			before := calls.Load()
			in.deploy(name, runtime, at(n), fields{"concurrency": 4})
			if a := in.do("GET", "/fn/"+name+"/", nil); string(a.body) != "v"+n {
				t.Errorf("a call after deploy %s: %v", n, a)
			}
			waitFor(t, "calls to go on", func() bool { return calls.Load() > before+20 })
		}
		done.Store(true)
		wg.Wait()
	})
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("canceled")
		}
	}
}

// TestDrain: a call in flight ends, new ones are refused, then all is gone.
func TestDrain(t *testing.T) {
	in := start(t, "")
	in.deploy("slow", "python", "import time\ndef handler(event, context):\n    print('begun')\n    time.sleep(1)\n    return 'whole'\n", nil)
	got := make(chan answer, 1)
	go func() { got <- in.do("GET", "/fn/slow/", nil) }()
	waitFor(t, "the call to begin", func() bool {
		for _, l := range in.logs("slow") {
			if l["text"] == "begun" {
				return true
			}
		}
		return false
	})
	in.stop()
	if a := <-got; a.status != 200 || string(a.body) != "whole" {
		t.Errorf("the call in flight: %v", a)
	}
}
