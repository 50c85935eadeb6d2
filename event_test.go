package hearth_test

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// examples returns the examples by name.
func examples(t *testing.T, o hearth.ExampleOptions) map[string]any {
	t.Helper()
	list, err := hearth.Examples(o)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	for _, e := range list {
		if out[e.Name] != nil || e.Summary == "" {
			t.Errorf("example %+v", e)
		}
		out[e.Name] = e.Event
	}
	return out
}

// TestExampleWebhook checks a signature as receivers do.
func TestExampleWebhook(t *testing.T) {
	for _, body := range []string{"", `{"mine":1}`} {
		o := hearth.ExampleOptions{}
		if body != "" {
			o.Body = []byte(body)
		}
		e := examples(t, o)["webhook"].(hearth.HTTPEvent)
		if body != "" && e.Body != body || e.Body == "" || e.RequestContext.HTTP.Method != "POST" {
			t.Errorf("the event is %+v", e)
		}
		mac := hmac.New(sha256.New, []byte(hearth.ExampleSecret))
		mac.Write([]byte(e.Body))
		if got, want := e.Headers["x-hub-signature-256"], "sha256="+hex.EncodeToString(mac.Sum(nil)); got != want {
			t.Errorf("the signature is %s, want %s", got, want)
		}
	}
}

func TestExampleQueue(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	e := examples(t, hearth.ExampleOptions{Function: "orders", Time: at})["queue"].(hearth.QueueEvent)
	ids := map[string]bool{}
	for _, r := range e.Records {
		sum := md5.Sum([]byte(r.Body))
		if r.MD5OfBody != hex.EncodeToString(sum[:]) || ids[r.MessageID] || r.Attributes["SentTimestamp"] != "1772366400000" {
			t.Errorf("record %+v", r)
		}
		ids[r.MessageID] = true
	}
	if len(ids) < 2 {
		t.Errorf("%d records are no batch", len(ids))
	}
}

func TestExampleRefuses(t *testing.T) {
	for _, o := range []hearth.ExampleOptions{{Method: "get"}, {Method: "A B"}, {Path: "hello"}, {Path: "/a b\x00"}, {Path: "/%zz"}, {Path: "http://x/"}} {
		if _, err := hearth.Examples(o); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
