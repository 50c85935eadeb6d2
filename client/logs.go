package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
)

// Logs returns the last tail lines a function wrote that the filter means, oldest first
// (-1: the server's choice). "NAME@7" and "NAME@beta" mean the lines of a version, or of those
// that an alias leads to now. Errors: CodeNotFound, CodeInvalid.
func (c *Client) Logs(ctx context.Context, name string, tail int, filter hearth.LogFilter) ([]hearth.LogLine, error) {
	var out struct {
		Lines []hearth.LogLine `json:"lines"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "logs"}, query: logQuery(tail, filter),
	}, &out)
	return out.Lines, err
}

// FollowLogs calls fn with the lines that Logs returns and then with each line that the
// filter means as it is written, until ctx ends (then it returns CodeCanceled or
// CodeTimeout), fn returns an error (then it returns that), or filter.Until has come or
// the server ends the stream (then it returns nil). Errors: CodeNotFound, CodeInvalid,
// CodeUnavailable.
func (c *Client) FollowLogs(ctx context.Context, name string, tail int, filter hearth.LogFilter, fn func(hearth.LogLine) error) error {
	q := logQuery(tail, filter)
	q.Set("follow", "true")
	return c.stream(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "logs"}, query: q,
	}, func(e event) error {
		if e.name != "line" {
			return nil
		}
		var l hearth.LogLine
		if err := e.decode(&l); err != nil {
			return err
		}
		return fn(l)
	})
}

func logQuery(tail int, f hearth.LogFilter) url.Values {
	q := url.Values{}
	set := func(key, v string) {
		if v != "" {
			q.Set(key, v)
		}
	}
	moment := func(key string, t time.Time) {
		if !t.IsZero() {
			q.Set(key, t.Format(time.RFC3339Nano))
		}
	}
	if tail >= 0 {
		q.Set("tail", strconv.Itoa(tail))
	}
	set("q", f.Text)
	set("level", string(f.Level))
	set("invocation", f.Invocation)
	set("stream", f.Stream)
	moment("since", f.Since)
	moment("until", f.Until)
	return q
}
