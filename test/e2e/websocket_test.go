package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hearthrun/hearth/server"
)

// socketFunctions are one handler in each language, which does what the path says.
var socketFunctions = map[string]string{
	"python": `
import asyncio, json

def warmup():
    pass

async def handler(event, context):
    ws = context.websocket
    path = event["rawPath"]
    if ws is None:
        return "plain"
    if path == "/refuse":
        return {"statusCode": 403, "headers": {"x-why": "no"}, "body": "not you"}
    if path == "/nothing":
        return None
    if path == "/raise":
        raise ValueError("before")
    if path == "/protocol":
        ws.accept(subprotocol=ws.subprotocols[-1], headers={"x-extra": "yes"})
    if path == "/event":
        await ws.send(json.dumps({"headers": event["headers"], "context": event["requestContext"], "left": context.get_remaining_time_in_millis()}))
    if path == "/raise-later":
        await ws.send("so far")
        raise ValueError("after")
    if path == "/close":
        await ws.close(4321, "enough")
    if path == "/hang":
        await asyncio.sleep(3600)
    if path == "/flood":
        while True:
            await ws.send(b"x" * 1000)
    try:
        async for message in ws:
            await ws.send(message)
    except asyncio.CancelledError:
        print("canceled")
        raise
    print("closed", ws.close_code, ws.close_reason)
handler.websocket = True
`,
	"nodejs": `
export const handler = async (event, context) => {
  const ws = context.websocket;
  const path = event.rawPath;
  if (ws === null) return "plain";
  if (path === "/refuse") return { statusCode: 403, headers: { "x-why": "no" }, body: "not you" };
  if (path === "/nothing") return;
  if (path === "/raise") throw new Error("before");
  if (path === "/protocol") ws.accept({ subprotocol: ws.subprotocols.at(-1), headers: { "x-extra": "yes" } });
  if (path === "/event") await ws.send(JSON.stringify({ headers: event.headers, context: event.requestContext, left: context.getRemainingTimeInMillis() }));
  if (path === "/raise-later") {
    await ws.send("so far");
    throw new Error("after");
  }
  if (path === "/close") await ws.close(4321, "enough");
  if (path === "/hang") await new Promise((r) => setTimeout(r, 3600_000));
  if (path === "/flood") for (;;) await ws.send(Buffer.alloc(1000));
  try {
    for await (const message of ws) await ws.send(message);
  } catch (e) {
    if (context.signal.aborted) console.log("canceled");
    throw e;
  }
  console.log("closed", ws.closeCode, ws.closeReason);
};
handler.websocket = true;
`,
}

// dial opens a WebSocket of a function.
func (in *installation) dial(path string, o *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(in.t.Context(), 20*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, strings.Replace(in.url, "http:", "ws:", 1)+path, o)
	if err == nil {
		in.t.Cleanup(func() { c.CloseNow() }) //nolint:errcheck // it may be closed
		c.SetReadLimit(-1)
	}
	return c, resp, err
}

// connect is dial for one that must be accepted.
func (in *installation) connect(path string) *websocket.Conn {
	in.t.Helper()
	c, _, err := in.dial(path, nil)
	if err != nil {
		in.t.Fatal(err)
	}
	return c
}

// exchange sends a message and returns the answer.
func exchange(t *testing.T, c *websocket.Conn, kind websocket.MessageType, p []byte) (websocket.MessageType, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Write(ctx, kind, p); err != nil {
		t.Fatal(err)
	}
	return receive(t, c)
}

func receive(t *testing.T, c *websocket.Conn) (websocket.MessageType, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	kind, p, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return kind, p
}

// closing reads to the end of a connection and returns how it was closed; -1 if
// it was not.
func closing(t *testing.T, c *websocket.Conn) (code websocket.StatusCode, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			var e websocket.CloseError
			if errors.As(err, &e) {
				return e.Code, e.Reason
			}
			return -1, err.Error()
		}
	}
}

// hasLog waits until the function has logged a line.
func (in *installation) hasLog(name, text string) {
	in.t.Helper()
	waitFor(in.t, "the log line "+text, func() bool {
		return slices.ContainsFunc(in.logs(name), func(l fields) bool { return l["text"] == text })
	})
}

// record waits for the record of the call of a path.
func (in *installation) record(name, path string) fields {
	in.t.Helper()
	var found fields
	waitFor(in.t, "the record of "+path, func() bool {
		var page struct{ Invocations []fields }
		decode(in.t, in.do("GET", "/v1/functions/"+name+"/invocations?limit=100", nil), &page)
		for _, i := range page.Invocations {
			if p, _ := i["path"].(string); strings.HasSuffix(p, path) {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

func TestWebSocket(t *testing.T) {
	in := start(t, "")
	each(t, socketFunctions, func(t *testing.T, runtime, code string) {
		in.t = t
		name := "ws-" + runtime
		in.deploy(name, runtime, code, fields{"instance_concurrency": 16})
		base := "/fn/" + name

		c := in.connect(base + "/echo?a=b")
		for _, m := range []struct {
			kind websocket.MessageType
			p    []byte
		}{
			{websocket.MessageText, []byte("héllo")},
			{websocket.MessageBinary, []byte{0, 255, 1}},
			{websocket.MessageText, nil},
			{websocket.MessageBinary, bytes.Repeat([]byte("x"), 1<<20)},
			{websocket.MessageText, bytes.Repeat([]byte("é"), 1<<19)},
		} {
			if kind, p := exchange(t, c, m.kind, m.p); kind != m.kind || !bytes.Equal(p, m.p) {
				t.Errorf("%v of %d bytes came back as %v of %d", m.kind, len(m.p), kind, len(p))
			}
		}
		if err := c.Close(4000, "bye"); err != nil {
			t.Errorf("close: %v", err)
		}
		in.hasLog(name, "closed 4000 bye")
		rec := in.record(name, "/echo")
		if rec["kind"] != "websocket" || rec["status"] != 101.0 || rec["error_code"] != nil || rec["bytes_in"].(float64) < 2<<20 || rec["bytes_out"] != rec["bytes_in"] {
			t.Errorf("the record: %v", rec)
		}

		// A request like any other.
		if a := in.do("GET", base+"/plain", nil); a.status != 200 || string(a.body) != "plain" {
			t.Error(a)
		}

		for path, want := range map[string]int{"/refuse": 403, "/nothing": 502, "/raise": 502} {
			_, resp, err := in.dial(base+path, nil)
			if err == nil || resp == nil || resp.StatusCode != want {
				t.Fatalf("%s: %v, %v", path, resp, err)
			}
			if path == "/refuse" && resp.Header.Get("X-Why") != "no" || resp.Header.Get("Hearth-Invocation-Id") == "" {
				t.Errorf("%s: %v", path, resp)
			}
		}

		c, resp, err := in.dial(base+"/protocol", &websocket.DialOptions{Subprotocols: []string{"one", "two"}})
		if err != nil || c.Subprotocol() != "two" || resp.Header.Get("X-Extra") != "yes" || resp.Header.Get("Hearth-Start") == "" {
			t.Errorf("%v, %v", resp, err)
		}

		c, _, err = in.dial(base+"/event", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://example.com"}, "Hearth-Fake": {"x"}}})
		if err != nil {
			t.Fatal(err)
		}
		var event struct {
			Headers map[string]string
			Context struct{ HTTP struct{ Path string } }
			Left    int
		}
		if _, p := receive(t, c); json.Unmarshal(p, &event) != nil || event.Headers["origin"] != "https://example.com" || event.Headers["hearth-fake"] != "" ||
			event.Headers["upgrade"] != "" || event.Context.HTTP.Path != "/event" || event.Left < 7_000_000 || event.Left > 7_200_000 {
			t.Errorf("the event: %s", p)
		}

		c = in.connect(base + "/raise-later")
		if code, reason := closing(t, c); code != 1011 || strings.Contains(reason, "after") {
			t.Errorf("after an exception: %d %s", code, reason)
		}
		if rec := in.record(name, "/raise-later"); rec["status"] != 101.0 || rec["error_code"] != "function_error" {
			t.Errorf("the record: %v", rec)
		}
		c = in.connect(base + "/close")
		if code, reason := closing(t, c); code != 4321 || reason != "enough" {
			t.Errorf("after close: %d %s", code, reason)
		}

		// Who disappears frees the place.
		c = in.connect(base + "/lost")
		exchange(t, c, websocket.MessageText, []byte("x"))
		c.CloseNow()
		in.hasLog(name, "canceled")
		if rec := in.record(name, "/lost"); rec["error_code"] != "canceled" {
			t.Errorf("the record: %v", rec)
		}
	})
}

// TestWebSocketLimits: what a client must not send, and what time brings.
func TestWebSocketLimits(t *testing.T) {
	in := start(t, "")
	code := socketFunctions["python"]
	in.deploy("ws", "python", code, fields{"timeout": "1s", "concurrency": 64, "instance_concurrency": 64, "websocket": fields{"max_message": "1KiB"}})
	for _, c := range []struct {
		name   string
		kind   websocket.MessageType
		p      string
		code   websocket.StatusCode
		reason string
	}{
		{"large", websocket.MessageBinary, strings.Repeat("x", 1025), 1009, "1KiB"},
		{"no-text", websocket.MessageText, "\xff\xfe", 1007, "UTF-8"},
	} {
		conn := in.connect("/fn/ws/" + c.name)
		exchange(t, conn, websocket.MessageBinary, bytes.Repeat([]byte("x"), 1024)) // which is allowed
		if err := conn.Write(t.Context(), c.kind, []byte(c.p)); err != nil {
			t.Fatal(err)
		}
		if code, reason := closing(t, conn); code != c.code || !strings.Contains(reason, c.reason) {
			t.Errorf("%s: closed with %d %q", c.name, code, reason)
		}
		in.record("ws", "/"+c.name)
	}
	for name, frame := range map[string]string{
		"unmasked":     "\x81\x01x",
		"reserved":     "\xf1\x80\x00\x00\x00\x00",
		"continuation": "\x80\x80\x00\x00\x00\x00",
		"long ping":    "\x89\xfe\x00\x7e\x00\x00\x00\x00",
		"length":       "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		"half a code":  "\x88\x81\x00\x00\x00\x00x",
	} {
		conn, r := in.handshake("/fn/ws/raw", "")
		fmt.Fprint(conn, frame)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a net.Conn has deadlines
		b := make([]byte, 4)
		if _, err := io.ReadFull(r, b); err != nil || b[0] != 0x88 || int(b[2])<<8|int(b[3]) != 1002 {
			t.Errorf("%s: %x %v", name, b, err)
		}
	}
	// A client that sends with its request.
	conn, r := in.handshake("/fn/ws/early", "\x81\x82\x00\x00\x00\x00hi")
	conn.SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // as above
	b := make([]byte, 4)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "\x81\x02hi" {
		t.Errorf("an early message: %x %v", b, err)
	}
	// The timeout is that of the handshake.
	if _, resp, err := in.dial("/fn/ws/hang", nil); err == nil || resp == nil || resp.StatusCode != 504 {
		t.Errorf("a handshake that takes too long: %v, %v", resp, err)
	}
	long := in.connect("/fn/ws/long")
	// Requests that are no valid handshake.
	for _, header := range [][]string{{"Sec-Websocket-Version", "8"}, {"Sec-Websocket-Key", "short"}} {
		h := []string{"Connection", "keep-alive, Upgrade", "Upgrade", "WebSocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
		a := in.do("GET", "/fn/ws/", nil, append(h, header...)...)
		want(t, a, 400, "invalid")
		if a.header.Get("Sec-Websocket-Version") != "13" {
			t.Error(a)
		}
	}
	// A client that does not read holds up nobody, and is given up in the end.
	flood, _ := in.handshake("/fn/ws/flood", "")
	defer flood.Close()
	exchange(t, long, websocket.MessageText, []byte("still there, after more than the timeout"))

	in.deploy("idle", "python", code, fields{"websocket": fields{"idle_timeout": "1s"}})
	c := in.connect("/fn/idle/idle")
	if code, reason := closing(t, c); code != 1001 || !strings.Contains(reason, "1s") {
		t.Errorf("idle: closed with %d %q", code, reason)
	}
	in.hasLog("idle", "closed 1001 no message passed for 1s")
	if rec := in.record("idle", "/idle"); rec["error_code"] != nil {
		t.Errorf("the record: %v", rec)
	}
	in.deploy("idle", "python", code, fields{"websocket": fields{"max_duration": "1s"}})
	c = in.connect("/fn/idle/duration")
	if code, reason := closing(t, c); code != 1001 || !strings.Contains(reason, "open for 1s") {
		t.Errorf("max_duration: closed with %d %q", code, reason)
	}
	for _, bad := range []fields{{"idle_timeout": "1ms"}, {"max_duration": "25h"}, {"max_message": "1GiB"}, {"nonsense": 1}} {
		if a := in.try("bad", "python", code, fields{"websocket": bad}); a.status != 400 && a.status != 422 {
			t.Errorf("%v: %v", bad, a)
		}
	}
}

// handshake opens a WebSocket and leaves the rest to the caller; early is sent
// with the request.
func (in *installation) handshake(path, early string) (net.Conn, *bufio.Reader) {
	in.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(in.url, "http://"))
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n%s", path, early)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		in.t.Fatalf("%v, %v", resp, err)
	}
	return conn, r
}

// TestWebSocketsAndDeploys: a deploy drops no connection, a delete and the end of
// the server close them in an orderly way, and the death of an instance is told.
func TestWebSocketsAndDeploys(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.StemCells = -1 })
	version := func(n string) string {
		return `
async def handler(event, context):
    ws = context.websocket
    await ws.send("` + n + `")
    async for m in ws:
        await ws.send("` + n + ` " + m)
    print("closed", ws.close_code, ws.close_reason)
handler.websocket = True
`
	}
	many := fields{"concurrency": 100, "instance_concurrency": 100}
	in.deploy("f", "python", version("1"), many)
	hello := func(c *websocket.Conn, want string) {
		t.Helper()
		if _, p := receive(t, c); string(p) != want {
			t.Errorf("got %q, want %q", p, want)
		}
	}
	var old []*websocket.Conn
	for range 20 {
		c := in.connect("/fn/f/")
		hello(c, "1")
		old = append(old, c)
	}
	in.deploy("f", "python", version("2"), many)
	young := in.connect("/fn/f/")
	hello(young, "2")
	for _, c := range old {
		if _, p := exchange(t, c, websocket.MessageText, []byte("there?")); string(p) != "1 there?" {
			t.Errorf("an old connection: %q", p)
		}
	}
	if n := len(sandboxProcesses(in.dir)); n != 4 {
		t.Errorf("%d processes for two versions", n)
	}
	for _, c := range old {
		if err := c.Close(1000, ""); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	waitFor(t, "the replaced version's instance to end", func() bool { return len(sandboxProcesses(in.dir)) == 2 })

	// The death of an instance.
	c := in.connect("/fn/f/")
	hello(c, "2")
	for _, i := range in.pool("f").Instances {
		killInstance(i.ID)
	}
	for _, c := range []*websocket.Conn{c, young} {
		if code, _ := closing(t, c); code != 1011 {
			t.Errorf("its instance died: closed with %d", code)
		}
	}
	c = in.connect("/fn/f/")
	hello(c, "2")
	if a := in.do("DELETE", "/v1/functions/f", nil); a.status != 204 {
		t.Fatal(a)
	}
	if code, reason := closing(t, c); code != 1001 || reason != "the function was deleted" {
		t.Errorf("deleted: closed with %d %q", code, reason)
	}
	in.deploy("g", "python", version("1"), many)
	c = in.connect("/fn/g/")
	hello(c, "1")
	// One whose client does not answer.
	mute, _ := in.handshake("/fn/g/", "")
	defer mute.Close()
	begin := time.Now()
	closed := make(chan websocket.StatusCode, 1)
	go func() {
		code, _ := closing(t, c)
		closed <- code
	}()
	in.stop()
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("the server took %s to end", took)
	}
	if code := <-closed; code != 1001 {
		t.Errorf("the server ended: closed with %d", code)
	}
}
