package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Metrics returns what the server counts and how its parts are, as Prometheus scrapes it,
// in a format of its exposition, such as "text/plain". The caller closes it.
func (c *Client) Metrics(ctx context.Context, format string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, request{method: http.MethodGet, path: []string{"metrics"}, header: http.Header{"Accept": {format}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Query evaluates a PromQL expression as it was at a time, or is now if that is zero, and
// returns its result as Prometheus writes it. Errors: CodeInvalid for an expression that
// is none or asks for too much, CodeUnavailable.
func (c *Client) Query(ctx context.Context, expression string, at time.Time) (json.RawMessage, error) {
	q := url.Values{"query": {expression}}
	if !at.IsZero() {
		q.Set("time", strconv.FormatFloat(float64(at.UnixMilli())/1000, 'f', 3, 64))
	}
	var out struct {
		Data struct {
			Result json.RawMessage `json:"result"`
		} `json:"data"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"metrics", "api", "v1", "query"}, query: q}, &out)
	return out.Data.Result, err
}
