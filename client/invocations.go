package client

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
)

// Invocation is the record of a call and, if it was asynchronous, how that is.
type Invocation struct {
	hearth.Invocation
	// Async is nil unless the call was asynchronous. Then the record is that of an
	// attempt, as far as there is one.
	Async *AsyncCall `json:"async,omitempty"`
}

// Invocations returns up to limit records of calls (0: the server's choice) that fit the
// filter, by when they started, newest first, and the before of the next page, "" on the
// last. A page that has few records or none can have a next one: the search goes on
// there. before is "" for the first page. Records appear shortly after the call ended.
// Errors: CodeNotFound if there is no such function, CodeInvalid.
func (c *Client) Invocations(ctx context.Context, f hearth.InvocationFilter, limit int, before string) (list []hearth.Invocation, next string, err error) {
	var out struct {
		Invocations []hearth.Invocation `json:"invocations"`
		Next        string              `json:"next"`
	}
	path := []string{"v1", "invocations"}
	if f.Function != "" {
		path = []string{"v1", "functions", f.Function, "invocations"}
	}
	query := page(limit, "before", before)
	set := func(key, value string, given bool) {
		if given {
			query.Set(key, value)
		}
	}
	set("version", strconv.Itoa(f.Version), f.Version != 0)
	set("status", f.Status, f.Status != "")
	set("code", f.Code, f.Code != "")
	set("kind", string(f.Kind), f.Kind != "")
	for key, b := range map[string]*bool{"async": f.Async, "cold": f.Cold} {
		if b != nil {
			query.Set(key, strconv.FormatBool(*b))
		}
	}
	set("min_duration", f.MinDuration.String(), f.MinDuration != 0)
	set("max_duration", f.MaxDuration.String(), f.MaxDuration != 0)
	set("since", f.Since.Format(time.RFC3339Nano), !f.Since.IsZero())
	set("until", f.Until.Format(time.RFC3339Nano), !f.Until.IsZero())
	set("id", f.ID, f.ID != "")
	_, err = c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &out)
	return out.Invocations, out.Next, err
}

// Invocation returns the record of one call, of an asynchronous one from the moment of
// its acceptance. Other records appear shortly after the call ended. Errors: CodeNotFound.
func (c *Client) Invocation(ctx context.Context, id string) (Invocation, error) {
	var i Invocation
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id}}, &i)
	return i, err
}

// Trace returns what is known of the trace that a call belongs to, by the id of either. Errors: CodeNotFound.
func (c *Client) Trace(ctx context.Context, id string) (hearth.TraceView, error) {
	var v hearth.TraceView
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id, "trace"}}, &v)
	return v, err
}
