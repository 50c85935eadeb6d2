package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hearthrun/hearth"
)

// AsyncCall is an asynchronous call with its result.
type AsyncCall struct {
	hearth.AsyncCall
	// Result is what the function answered; nil until the call succeeded.
	Result *AsyncResult `json:"result,omitempty"`
}

// AsyncResult is the response that was stored. At most one of Value, Text and Base64
// is set.
type AsyncResult struct {
	// Status is that of the HTTP response; 200 for events.
	Status int `json:"status"`
	// Headers are names and values of an HTTP response.
	Headers [][2]string `json:"headers,omitempty"`
	// Value is the response if it is JSON, Text if it is other text, Base64 (which
	// is decoded here) if it is no text.
	Value  json.RawMessage `json:"value,omitempty"`
	Text   string          `json:"text,omitempty"`
	Base64 []byte          `json:"base64,omitempty"`
	// Cut is true if the response was longer.
	Cut bool `json:"cut,omitempty"`
}

// AsyncOptions say how a call is to be run later; the zero value means now and once.
type AsyncOptions struct {
	// Delay is how long it waits at least, at most 30 days.
	Delay time.Duration
	// DeduplicationKey makes a second call with the same key, within a day, return
	// the first.
	DeduplicationKey string
}

// InvokeAsync stores a call with a JSON event (nil: null) that runs later, and
// returns when it has reached the server's disk. first is false if it was accepted
// before under the same deduplication key. Errors: CodeNotFound, CodeInvalid,
// CodeExhausted if there is no room.
func (c *Client) InvokeAsync(ctx context.Context, name string, event io.Reader, o AsyncOptions) (call AsyncCall, first bool, err error) {
	r := request{method: http.MethodPost, path: []string{"v1", "functions", name, "invocations"}}
	r.header = http.Header{"Hearth-Invocation-Type": {"async"}}
	if o.Delay > 0 {
		r.header.Set("Hearth-Delay", hearth.Duration(o.Delay).String())
	}
	if o.DeduplicationKey != "" {
		r.header.Set("Hearth-Deduplication-Key", o.DeduplicationKey)
	}
	if event != nil {
		r.body, r.size, r.contentType = event, size(event), "application/json"
	}
	status, err := c.call(ctx, r, &call)
	return call, status == http.StatusAccepted, err
}

// AsyncCall returns an asynchronous call. With a wait above 0 it returns when the
// call has ended, or after that time as it is then; the server bounds it to 5
// minutes. Errors: CodeNotFound, also for calls that were not asynchronous.
func (c *Client) AsyncCall(ctx context.Context, id string, wait time.Duration) (AsyncCall, error) {
	q := url.Values{}
	if wait > 0 {
		q.Set("wait", hearth.Duration(wait).String())
	}
	var out struct {
		Async *AsyncCall `json:"async"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id}, query: q}, &out)
	if err == nil && out.Async == nil {
		err = hearth.Errorf(hearth.CodeNotFound, "the call %s was not asynchronous", id).WithHint("hearth queue list NAME shows those that are")
	}
	if err != nil {
		return AsyncCall{}, err
	}
	return *out.Async, nil
}

// AsyncPayload returns what a call or a message passes: the event, the message, or the
// body of an HTTP request. Errors: CodeNotFound, also if it is not kept any more.
func (c *Client) AsyncPayload(ctx context.Context, id string) ([]byte, error) {
	var out AsyncResult
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id, "payload"}}, &out)
	switch {
	case out.Value != nil:
		return out.Value, err
	case out.Text != "":
		return []byte(out.Text), err
	}
	return out.Base64, err
}

// CancelAsync cancels an asynchronous call. Errors: CodeNotFound, CodeConflict if it
// has ended.
func (c *Client) CancelAsync(ctx context.Context, id string) (call AsyncCall, err error) {
	_, err = c.call(ctx, request{method: http.MethodDelete, path: []string{"v1", "invocations", id}}, &call)
	return call, err
}

// Queue counts the asynchronous calls that are stored.
func (c *Client) Queue(ctx context.Context) (st hearth.QueueStatus, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "queue"}}, &st)
	return st, err
}

// QueueCalls returns up to limit asynchronous calls (0: the server's choice) of a
// function, or messages of "queue:NAME", newest first, in one state unless that is empty, and the value of before
// for the next page, "" on the last. Errors: CodeNotFound.
func (c *Client) QueueCalls(ctx context.Context, name string, state hearth.AsyncState, limit int, before string) (calls []hearth.AsyncCall, next string, err error) {
	q := page(limit, "before", before)
	if state != "" {
		q.Set("state", string(state))
	}
	var out struct {
		Calls    []hearth.AsyncCall `json:"calls"`
		Messages []hearth.AsyncCall `json:"messages"` // of a queue
		Next     string             `json:"next"`
	}
	_, err = c.call(ctx, request{method: http.MethodGet, path: queuePath(name, ""), query: q}, &out)
	return append(out.Calls, out.Messages...), out.Next, err
}

// Redrive queues dead letters of a function, or of "queue:NAME", anew, those with the ids or, if there are
// none, all, and returns how many. Errors: CodeNotFound.
func (c *Client) Redrive(ctx context.Context, name string, ids ...string) (int64, error) {
	in := struct {
		IDs []string `json:"ids,omitempty"`
	}{ids}
	return c.counted(ctx, request{method: http.MethodPost, path: queuePath(name, "redrive"), in: in})
}

// PurgeDead deletes the dead letters of a function, or of "queue:NAME", and returns how many there were.
// Errors: CodeNotFound.
func (c *Client) PurgeDead(ctx context.Context, name string) (int64, error) {
	return c.counted(ctx, request{method: http.MethodDelete, path: queuePath(name, "dead")})
}

func (c *Client) counted(ctx context.Context, r request) (int64, error) {
	var out struct {
		Calls    int64 `json:"calls"`
		Messages int64 `json:"messages"` // of a queue
	}
	_, err := c.call(ctx, r, &out)
	return out.Calls + out.Messages, err
}

// WebhookSecret returns with what the server signs webhooks: "whsec_" and base64.
func (c *Client) WebhookSecret(ctx context.Context) (string, error) {
	var out struct {
		Secret string `json:"secret"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "queue", "webhook-secret"}}, &out)
	return out.Secret, err
}
