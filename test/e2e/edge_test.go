package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// TestBodyThatNeverArrives: the call ends with its timeout and holds nothing.
func TestBodyThatNeverArrives(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", "def handler(event, context):\n    return 1\n", fields{"timeout": "1s", "concurrency": 1})
	for _, length := range []int{1000, 1 << 20} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(in.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /fn/f/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nabc", length)
		conn.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a net.Conn has deadlines
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, " 504 ") {
			t.Errorf("%d bytes announced: %q, %v", length, line, err)
		}
		want(t, in.do("GET", "/fn/f/", nil), 200, "")
	}
}

// TestSlowSendersHoldNoInstance: other callers are served while long bodies
// trickle in; a function that asked for streams gets them as they arrive.
func TestSlowSendersHoldNoInstance(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", "def handler(event, context):\n    return len(event.get('body') or '')\n", fields{"concurrency": 1})
	var senders []net.Conn
	for range 5 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(in.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /fn/f/ HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\nabc")
		senders = append(senders, conn)
	}
	for range 5 {
		want(t, in.do("GET", "/fn/f/", nil), 200, "")
	}
	// The last one goes on and is served.
	conn := senders[4]
	if _, err := conn.Write(make([]byte, 999997)); err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a net.Conn has deadlines
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "1000000" {
		t.Errorf("a long body: %d %q, %v", resp.StatusCode, body, err)
	}
}

// TestRunIsTheFunctionsTime: a body that arrives slowly is not counted as run.
func TestRunIsTheFunctionsTime(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", "def handler(event, context):\n    return 1\n", nil)
	for _, size := range []int{100, 300_000} {
		r, w := io.Pipe()
		go func() {
			w.Write(make([]byte, size)) //nolint:errcheck // a pipe that is read to its end
			time.Sleep(500 * time.Millisecond)
			w.Close()
		}()
		a := in.do("POST", "/fn/f/", r)
		want(t, a, 200, "")
		_, run, _ := strings.Cut(a.header.Get("Server-Timing"), "run;dur=")
		if ms, err := strconv.ParseFloat(run, 64); err != nil || ms > 400 {
			t.Errorf("%d bytes: run %q", size, run)
		}
	}
}

// TestRetiredInstancesEnd: nothing of a replaced or deleted version stays.
func TestRetiredInstancesEnd(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.StemCells = -1 }) // which are of no version
	for _, n := range []string{"1", "2"} {
		in.deploy("f", "python", "def handler(event, context):\n    return "+n+"\n", nil)
		want(t, in.do("GET", "/fn/f/", nil), 200, "")
	}
	// The sandbox of one version is its pid 1 and its guest.
	waitFor(t, "the replaced version's instance to end", func() bool { return len(sandboxProcesses(in.dir)) == 2 })
	if a := in.do("DELETE", "/v1/functions/f", nil); a.status != 204 {
		t.Fatal(a)
	}
	waitFor(t, "the deleted version's instance to end", func() bool { return len(sandboxProcesses(in.dir)) == 0 })
}

// TestRequestStream: the function answers to a part of the body before the
// client sends the next.
func TestRequestStream(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
def handler(event, context):
    def echo():
        for chunk in context.body:
            yield chunk.upper()
    return {"statusCode": 200, "body": echo()}
handler.request_stream = True
`,
		"nodejs": `
export const handler = async (event, context) => ({ statusCode: 200, body: (async function* () {
  for await (const chunk of context.body) yield Buffer.from(chunk.toString().toUpperCase());
})() });
handler.requestStream = true;
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("stream-"+runtime, runtime, code, nil)
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", in.url+"/fn/stream-"+runtime+"/", r)
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() {
			_, err := w.Write([]byte("first"))
			written <- err
		}()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"first", "second", "third"} {
			if word != "first" {
				if _, err := w.Write([]byte(word)); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(word))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != strings.ToUpper(word) {
				t.Fatalf("to %q it answered %q, %v", word, got, err)
			}
		}
		w.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
			t.Errorf("the end: %q, %v", rest, err)
		}
	})
}

// TestReaderThatNeverReads: a client that does not read a long response holds
// up neither other calls nor the end of its own.
func TestReaderThatNeverReads(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", `
def handler(event, context):
    def forever():
        while True:
            yield b"x" * 65536
    if event.get("long"):
        return forever()
    return {"statusCode": 200, "body": forever()} if event.get("rawPath") == "/long" else 1
`, fields{"timeout": "2s", "concurrency": 2})
	for _, c := range []struct{ request, record string }{
		{"GET /fn/f/long HTTP/1.1\r\nHost: x\r\n\r\n", `"kind":"http"`},
		{
			"POST /v1/functions/f/invocations HTTP/1.1\r\nHost: localhost\r\n" +
				"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"long\":true}", `"kind":"event"`,
		},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(in.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, c.request)
		want(t, in.do("GET", "/fn/f/", nil), 200, "")
		waitFor(t, "the record of the call that was never read: "+c.record, func() bool {
			var page struct{ Invocations []json.RawMessage }
			if err := json.Unmarshal(in.do("GET", "/v1/functions/f/invocations?limit=10", nil).body, &page); err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(page.Invocations, func(i json.RawMessage) bool {
				return strings.Contains(string(i), c.record) && strings.Contains(string(i), `"timeout"`)
			})
		})
		want(t, in.do("GET", "/fn/f/", nil), 200, "")
	}
}

// TestQueueAttribution: calls over the concurrency wait, and are told so.
func TestQueueAttribution(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", "import time\ndef handler(event, context):\n    time.sleep(0.3)\n    return 1\n", fields{"concurrency": 1})
	answers := make(chan answer, 3)
	for range 3 {
		go func() { answers <- in.do("GET", "/fn/f/", nil) }()
	}
	longest := 0.0
	for range 3 {
		a := <-answers
		want(t, a, 200, "")
		var queue, start, init, run float64
		if _, err := fmt.Sscanf(strings.NewReplacer("queue;dur=", "", " start;dur=", " ", " init;dur=", " ", " run;dur=", " ", ",", "").Replace(a.header.Get("Server-Timing")), "%g %g %g %g", &queue, &start, &init, &run); err != nil {
			t.Fatalf("%v: %v", err, a.header)
		}
		longest = max(longest, queue)
		if run < 300 || start != 0 || init != 0 {
			t.Errorf("timings %s", a.header.Get("Server-Timing"))
		}
	}
	if longest < 500 {
		t.Errorf("three calls of 300 ms on one instance: the longest queue was %v ms", longest)
	}
}

// TestIsolationBetweenFunctions: nothing of another function, of the server or
// of the host's users is visible from inside.
func TestIsolationBetweenFunctions(t *testing.T) {
	in := start(t, "")
	canary := t.TempDir() + "/canary"
	if err := os.WriteFile(canary, []byte("canary"), 0o666); err != nil {
		t.Fatal(err)
	}
	look := map[string]string{
		"python": `
import os, socket
def handler(event, context):
    found = []
    for p in event["paths"]:
        try:
            os.stat(p); found.append(p)
        except OSError: pass
    try:
        s = socket.create_connection(("127.0.0.1", event["port"]), 2); s.close(); found.append("loopback")
    except OSError: pass
    n = 0
    for d in os.listdir("/proc"):
        if d.isdigit(): n += 1
    try: os.kill(1, 0); os.kill(1, 9)
    except OSError: pass
    writable = []
    for d in ("/", "/usr", "/function", "/etc", "/hearth", "/proc/sys/kernel/hostname", "/sys"):
        try:
            if os.path.isdir(d):
                open(d + "/x", "w").close(); writable.append(d)
            else:
                open(d, "w").close(); writable.append(d)
        except OSError: pass
    env = [k for k in os.environ if "SECRET" in k]
    return {"found": found, "processes": n, "writable": writable, "env": env, "uid": os.getuid()}
`,
	}
	each(t, look, func(t *testing.T, runtime, code string) {
		in.t = t
		in.deploy("look-"+runtime, runtime, code, nil)
		in.deploy("other-"+runtime, runtime, code, nil)
		in.invoke("other-"+runtime, fields{"paths": []string{}, "port": 1})
		var port int
		fmt.Sscanf(in.url, "http://127.0.0.1:%d", &port) //nolint:errcheck // a zero port fails below
		got := in.invoke("look-"+runtime, fields{
			"paths": []string{canary, in.dir, "/root/.bashrc", "/root/.ssh", "/home", "/etc/shadow", "/var/log", "/var/lib", "/boot", "/run/systemd", "/run/lock", "/run/docker.sock", "/sys/kernel", "/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/tmp/" + strings.TrimPrefix(canary, "/tmp/")},
			"port":  port,
		}).json(t)
		if len(got["found"].([]any)) != 0 || len(got["writable"].([]any)) != 0 || len(got["env"].([]any)) != 0 {
			t.Errorf("from inside: %v", got)
		}
		if n := got["processes"].(float64); n > 3 {
			t.Errorf("%v processes are visible", n)
		}
		if got["uid"] == 0.0 {
			t.Error("it runs as uid 0")
		}
		want(t, in.invoke("look-"+runtime, fields{"paths": []string{}, "port": 1}), 200, "")
	})
}

// TestFunctionPagesCannotManage: where functions and management share an
// origin, browsers are told to give functions' pages another, and requests from
// such a page are refused.
func TestFunctionPagesCannotManage(t *testing.T) {
	in := start(t, "")
	in.deploy("f", "python", "def handler(event, context):\n    return {'statusCode': 200, 'headers': {'content-type': 'text/html', 'content-security-policy': 'sandbox allow-same-origin allow-scripts'}, 'body': '<p>'}\n", nil)
	policies := in.do("GET", "/fn/f/", nil).header.Values("Content-Security-Policy")
	if len(policies) != 2 || !strings.HasPrefix(policies[0], "sandbox ") || strings.Contains(policies[0], "allow-same-origin") {
		t.Errorf("policies %q", policies)
	}
	want(t, in.do("DELETE", "/v1/functions/f", nil, "Origin", "null", "Sec-Fetch-Site", "cross-site"), 403, "denied")
	want(t, in.do("GET", "/v1/functions", nil, "Host", "evil.example"), 403, "denied")
	if p := in.do("GET", "/fn/f/", nil, "Host", "functions.example").header.Values("Content-Security-Policy"); len(p) != 1 {
		t.Errorf("on a host without management: %q", p)
	}
}

// TestOrdinaryUser runs the server without root, with what the kernel allows.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	dir, err := os.MkdirTemp("/tmp", "hearth-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	// The test binary lies where nobody may not look.
	bin := dir + "/server"
	copyFile(t, os.Args[0], bin)
	in, _ := spawnAs(t, dir+"/data", bin, 65534)
	each(t, map[string]string{
		"python": "import os\ndef handler(event, context):\n    return os.getuid()\n",
		"nodejs": "export const handler = () => process.getuid();\n",
	}, func(t *testing.T, runtime, code string) {
		in.t = t
		a := in.try("f-"+runtime, runtime, code, nil)
		if a.status != 201 {
			if strings.Contains(string(a.body), "namespace") {
				t.Skipf("this kernel gives ordinary users no user namespaces: %s", a.body)
			}
			t.Fatal(a)
		}
		var f struct{ Warnings []string }
		decode(t, a, &f)
		t.Logf("warnings: %q", f.Warnings)
		want(t, in.invoke("f-"+runtime, nil), 200, "")
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}
