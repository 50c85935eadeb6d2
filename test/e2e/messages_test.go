package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestMessages sends messages over HTTP to functions that take them in batches, kills
// the server while batches are under way, and finds every message handled after that.
func TestMessages(t *testing.T) {
	source := map[string]string{
		"python": `
import json, time
def handler(event, context):
    time.sleep(0.2)
    bad = [r for r in event["Records"] if int(json.loads(r["body"])["n"]) % 10 == 3 and r["attributes"]["ApproximateReceiveCount"] == "1"]
    return {"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in bad]}
`,
		"nodejs": `
export const handler = async (event) => {
  await new Promise((r) => setTimeout(r, 200));
  const bad = event.Records.filter((r) => JSON.parse(r.body).n % 10 === 3 && r.attributes.ApproximateReceiveCount === "1");
  return { batchItemFailures: bad.map((r) => ({ itemIdentifier: r.messageId })) };
};
`,
	}
	each(t, source, func(t *testing.T, runtime, code string) {
		dir := t.TempDir()
		in, cmd := spawn(t, dir)
		in.deploy("take", runtime, code, fields{
			"queues": fields{"numbers": fields{"batch_size": 10, "concurrency": 2}},
			"async":  fields{"max_attempts": 10, "min_backoff": "1ms", "max_backoff": "5ms"},
		})
		var messages []string
		for i := range 100 {
			messages = append(messages, fmt.Sprintf(`{"body":{"n":%d}}`, i))
		}
		var sent struct{ Messages []struct{ ID string } }
		a := in.do("POST", "/v1/queues/numbers/messages", `{"messages":[`+strings.Join(messages, ",")+`]}`, "Content-Type", "application/json")
		if a.status != 202 {
			t.Fatalf("%d %s %v", a.status, a.body, a.err)
		}
		decode(t, a, &sent)
		waitFor(t, "20 messages to be handled", func() bool { return in.queueCounts("queue:numbers").Succeeded >= 20 })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // killed
		in, _ = spawn(t, dir)
		again := 0
		for i, m := range sent.Messages {
			var call struct{ Async asyncCall }
			decode(t, in.do("GET", "/v1/invocations/"+m.ID+"?wait=60s", nil), &call)
			least := 1
			if i%10 == 3 {
				least = 2 // the function refused it once
			}
			if c := call.Async; c.State != "succeeded" || c.Attempts < least {
				t.Errorf("message %d: %+v", i, c)
			}
			again += call.Async.Attempts - least
		}
		if again > 20 {
			t.Errorf("%d attempts more than there were messages with the function at the kill", again)
		}
	})
}

// TestMessagesRefused: what cannot be put into a queue is refused as a whole.
func TestMessagesRefused(t *testing.T) {
	in := start(t, "")
	in.deploy("take", "python", "def handler(event, context):\n    pass\n", fields{"queues": fields{"q": fields{}}})
	for _, c := range []struct {
		queue, body string
		status      int
		code        string
	}{
		{"nosuch", `{"messages":[{"body":"x"}]}`, 404, "not_found"},
		{"No", `{"messages":[{"body":"x"}]}`, 400, "invalid"},
		{"q", `{"messages":[]}`, 400, "invalid"},
		{"q", `{"messages":[{"body":"x"},{}]}`, 400, "invalid"},
		{"q", `{"messages":[{"body":"x"},{"body":""}]}`, 400, "invalid"},
		{"q", `{"messages":[{"body":"x"},{"body":"y","delay":"-1s"}]}`, 400, "invalid"},
		{"q", `{"messages":[{"body":"x"},{"body":"y","delay":"9000h"}]}`, 400, "invalid"},
		{"q", `{"messages":[{"body":"x"},{"body":"` + strings.Repeat("y", 1<<20+1) + `"}]}`, 400, "invalid"},
		{"q", `{"messages":[` + strings.TrimSuffix(strings.Repeat(`{"body":"`+strings.Repeat("y", 1<<20)+`"},`, 7), ",") + `]}`, 413, "invalid"},
		{"q", `{"messages":[` + strings.TrimSuffix(strings.Repeat(`{"body":"y"},`, 1001), ",") + `]}`, 400, "invalid"},
	} {
		want(t, in.do("POST", "/v1/queues/"+c.queue+"/messages", c.body, "Content-Type", "application/json"), c.status, c.code)
	}
	if list, ok := in.do("GET", "/v1/queues/q/messages", nil).json(t)["messages"].([]any); !ok || len(list) != 0 {
		t.Errorf("the messages are %v", list)
	}
	// All dead letters are queued anew without a body, too.
	for path, counted := range map[string]string{"/v1/queues/q/redrive": "messages", "/v1/functions/take/queue/redrive": "calls"} {
		for _, body := range []any{nil, `{}`} {
			if a := in.do("POST", path, body, "Content-Type", "application/json"); a.status != 200 || a.json(t)[counted] != 0.0 {
				t.Errorf("%s %v: %v", path, body, a)
			}
		}
	}
	keyed := func(body string) answer {
		return in.do("POST", "/v1/queues/q/messages", `{"messages":[{"body":"`+body+`","deduplication_key":"k","delay":"1h"}]}`, "Content-Type", "application/json")
	}
	if a := keyed("x"); a.status != 202 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := keyed("x"); a.status != 202 || !strings.Contains(string(a.body), `"duplicate":true`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	want(t, keyed("y"), 422, "invalid")
	if a := in.do("POST", "/v1/queues/q/messages", ` { "messages" : [ {"delay":"1h","body":{"n": [1, 2]},"deduplication_key":"`+strings.Repeat("ä", 100)+`"} , {"body": "a\u00e4" , "Delay": "1h", "deduplication_key": null} ] } `, "Content-Type", "application/json"); a.status != 202 || strings.Count(string(a.body), `"id"`) != 2 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := in.queueCounts("queue:q"); n != (queueCounts{Queued: 3}) {
		t.Errorf("%+v", n)
	}
	// A queue is no function, whatever way it is called.
	for _, path := range []string{"/fn/queue:q/", "/v1/functions/queue:q/invocations"} {
		for _, kind := range []string{"sync", "async"} {
			a := in.do("POST", path, `{}`, "Content-Type", "application/json", "Hearth-Invocation-Type", kind)
			if a.status != 404 && a.status != 400 {
				t.Errorf("%s %s: %d %s", kind, path, a.status, a.body)
			}
		}
	}
}

// queueCounts are those of GET /v1/queue.
type queueCounts struct{ Queued, Running, Succeeded, Dead int }

// queueCounts returns those of a function or queue, none if it has no calls.
func (in *installation) queueCounts(name string) queueCounts {
	in.t.Helper()
	var st struct {
		Functions []struct {
			Function string
			queueCounts
		}
	}
	decode(in.t, in.do("GET", "/v1/queue", nil), &st)
	for _, f := range st.Functions {
		if f.Function == name {
			return f.queueCounts
		}
	}
	return queueCounts{}
}
