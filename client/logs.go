package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/hearthrun/hearth"
)

// Logs returns the last tail lines a function wrote, oldest first (-1: the
// server's choice). "NAME@7" and "NAME@beta" mean the lines of a version, or of those
// that an alias leads to now. Errors: CodeNotFound.
func (c *Client) Logs(ctx context.Context, name string, tail int) ([]hearth.LogLine, error) {
	var out struct {
		Lines []hearth.LogLine `json:"lines"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "logs"}, query: tailQuery(tail),
	}, &out)
	return out.Lines, err
}

// FollowLogs calls fn with the last tail lines of what Logs may name and then with each line as it
// is written, until ctx ends (then it returns CodeCanceled or CodeTimeout), fn
// returns an error (then it returns that), or the server ends the stream (then
// it returns nil). Errors: CodeNotFound, CodeUnavailable.
func (c *Client) FollowLogs(ctx context.Context, name string, tail int, fn func(hearth.LogLine) error) error {
	q := tailQuery(tail)
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

func tailQuery(n int) url.Values {
	q := url.Values{}
	if n >= 0 {
		q.Set("tail", strconv.Itoa(n))
	}
	return q
}
