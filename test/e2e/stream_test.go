package e2e

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestServerSentEvents: an event reaches the client before the next one is
// produced, also where responses may be kept, and a client that leaves ends the
// handler.
func TestServerSentEvents(t *testing.T) {
	in := start(t, "")
	source := map[string]string{
		"python": `
import asyncio
released = asyncio.Event()
async def events(context):
    try:
        yield "data: 1\n\n"
        await released.wait()
        yield b"data: 2\n\n"
        await asyncio.sleep(3600)
    finally:
        print("closed")
async def handler(event, context):
    if event["rawPath"] == "/release":
        released.set()
        return "ok"
    return {"statusCode": 200, "headers": {"content-type": "text/event-stream"}, "body": events(context)}
`,
		"nodejs": `
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
let release;
const released = new Promise((resolve) => { release = resolve; });
export const handler = async (event, context) => {
  if (event.rawPath === "/release") { release(); return "ok"; }
  async function* events() {
    try {
      yield "data: 1\n\n";
      await released;
      yield "data: 2\n\n";
      await sleep(3600_000, null, { signal: context.signal });
    } finally {
      console.log("closed");
    }
  }
  return { statusCode: 200, headers: { "content-type": "text/event-stream" }, body: Readable.from(events()) };
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		in.t = t
		for i, config := range []fields{nil, {"cache": fields{"ttl": fields{"/fn": "1m"}}}} {
			name := "sse-" + runtime + "-" + strconv.Itoa(i)
			limits := fields{"instance_concurrency": 8, "timeout": "1h"}
			for k, v := range config {
				limits[k] = v
			}
			in.deploy(name, runtime, code, limits)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "GET", in.url+"/fn/"+name+"/events", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", "text/event-stream")
			req.Header.Set("Accept-Encoding", "gzip")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			r := bufio.NewReader(resp.Body)
			line := func(want string) {
				t.Helper()
				got, err := r.ReadString('\n')
				if _, more := r.ReadString('\n'); err != nil || more != nil || got != want+"\n" {
					t.Fatalf("got %q, %v, want %q", got, err, want)
				}
			}
			line("data: 1")
			if a := in.do("GET", "/fn/"+name+"/release", nil, "Cache-Control", "no-cache"); a.status != 200 {
				t.Fatal(a)
			}
			line("data: 2")
			cancel()
			in.hasLog(name, "closed")
			if rec := in.record(name, "/events"); rec["error_code"] != "canceled" {
				t.Errorf("the record: %v", rec)
			}
		}
	})

	// A sync generator, which nothing can interrupt before its next event.
	in.t = t
	in.deploy("sync", "python", `
import time
def handler(event, context):
    def events():
        try:
            yield "data: 1\n\n"
            time.sleep(1)
            while True:
                yield ": still there\n\n"
                time.sleep(0.01)
        finally:
            print("closed")
    return {"statusCode": 200, "headers": {"content-type": "text/event-stream"}, "body": events()}
`, nil)
	begin := time.Now()
	resp, err := http.Get(in.url + "/fn/sync/")
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 9)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "data: 1\n\n" || time.Since(begin) > 900*time.Millisecond {
		t.Errorf("%q, %v after %s", first, err, time.Since(begin))
	}
	resp.Body.Close()
	in.hasLog("sync", "closed")
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestGigabyte: a response and a request of 1 GB pass in constant memory.
func TestGigabyte(t *testing.T) {
	const size = 1_000_000_000
	dir := t.TempDir()
	in, child := spawn(t, dir)
	in.deploy("f", "python", `
def handler(event, context):
    if event["requestContext"]["http"]["method"] == "POST":
        n = 0
        for chunk in context.body:
            n += len(chunk)
        return n
    def chunks():
        chunk = bytes(1_000_000)
        for _ in range(int(event.get("queryStringParameters", {}).get("n", 1000))):
            yield chunk
    return chunks()
handler.request_stream = True
`, fields{"timeout": "5m"})
	want(t, in.do("GET", "/fn/f/?n=20", nil), 200, "") // what the first one needs, stays
	before := peak(t, child.Process.Pid)

	resp, err := http.Get(in.url + "/fn/f/")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != size {
		t.Errorf("%d bytes, %v", n, err)
	}
	resp, err = http.Post(in.url+"/fn/f/", "application/octet-stream", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != strconv.Itoa(size) {
		t.Errorf("%d %q, %v", resp.StatusCode, body, err)
	}
	if grown := peak(t, child.Process.Pid) - before; grown > 32<<20 {
		t.Errorf("the server's memory grew by %d MiB", grown>>20)
	}
}

// peak is the most memory a process has used, in bytes.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
