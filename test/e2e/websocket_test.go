package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
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
            await ws.send(b"x" * 65536)
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
  if (path === "/flood") for (;;) await ws.send(Buffer.alloc(65536));
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
