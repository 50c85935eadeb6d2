package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// TestAsyncDestinations: a function and a webhook are told of calls, the webhook
// signed with the secret that the operator reads.
func TestAsyncDestinations(t *testing.T) {
	type delivery struct {
		header http.Header
		body   string
	}
	got := make(chan delivery, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) //nolint:errcheck // its end is checked below
		got <- delivery{r.Header, string(body)}
	}))
	defer receiver.Close()
	in := start(t, "", func(c *server.Config) { c.WebhookAllow = []string{strings.TrimPrefix(receiver.URL, "http://")} })
	in.deploy("told", "python", "def handler(event, context):\n    print('told of', event['data']['invocation']['id'])\n    return event['type']\n", nil)
	private := "http://127.0.0.1:1/hook"
	in.deploy("teller", "python", "def handler(event, context):\n    return 'done'\n", fields{
		"async": fields{"on_success": []string{"function:told", receiver.URL + "/hook", private}},
	})
	id := in.later("teller", fields{"n": 1})
	in.ended(id)
	var d delivery
	select {
	case d = <-got:
	case <-time.After(30 * time.Second):
		t.Fatal("the webhook was not sent")
	}
	secret, _ := in.do("GET", "/v1/queue/webhook-secret", nil).json(t)["secret"].(string)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, d.header.Get("Webhook-Id")+"."+d.header.Get("Webhook-Timestamp")+"."+d.body) //nolint:errcheck // never fails
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); d.header.Get("Webhook-Signature") != want || !strings.Contains(d.body, id) || !strings.Contains(d.body, `"n":1`) {
		t.Errorf("%v %s", d.header, d.body)
	}
	var list struct{ Calls []asyncCall }
	waitFor(t, "the function to be told", func() bool {
		decode(t, in.do("GET", "/v1/functions/told/queue", nil), &list)
		return len(list.Calls) == 1 && list.Calls[0].State == "succeeded"
	})
	if list.Calls[0].Source != id {
		t.Errorf("%+v", list.Calls)
	}
	// What is not allowed is a dead letter at once.
	waitFor(t, "the refused webhook", func() bool {
		decode(t, in.do("GET", "/v1/functions/teller/queue?state=dead", nil), &list)
		return len(list.Calls) == 1
	})
	if c := list.Calls[0]; c.Target != private || c.Attempts != 1 || c.Failures[0].Code != "denied" {
		t.Errorf("%+v", c)
	}
}

// TestAsyncDrain: a server that ends in good order lets calls finish, puts back what
// takes longer without counting the attempt, and lets nobody wait for results.
func TestAsyncDrain(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir, func(c *server.Config) { c.DrainTimeout = 2 * time.Second })
	code := "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"
	in.deploy("sleeper", "python", code, fields{"concurrency": 8})
	short, long := in.later("sleeper", 1), in.later("sleeper", 6)
	waitFor(t, "both to run", func() bool {
		return strings.Contains(string(in.do("GET", "/v1/queue", nil).body), `"running":2`)
	})
	waited := make(chan answer, 1)
	go func() { waited <- in.do("GET", "/v1/invocations/"+long+"?wait=60s", nil) }()
	in.stop()
	if a := <-waited; a.status != 200 && a.err == nil {
		t.Errorf("who waited got %v", a)
	}
	in = start(t, dir)
	in.deploy("sleeper", "python", "def handler(event, context):\n    return 'new'\n", nil)
	if c := in.ended(short); c.State != "succeeded" || string(c.Result.Value) != "1" {
		t.Errorf("the short one: %+v", c)
	}
	c := in.ended(long)
	if c.State != "succeeded" || c.Attempts != 1 {
		t.Errorf("the long one: %+v", c)
	}
}
