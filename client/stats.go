package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/hearthrun/hearth"
)

// Stats returns what the calls of a function did within a time until now and within the
// same before, or those of all functions if it is empty. Errors: CodeNotFound,
// CodeInvalid for a range.
func (c *Client) Stats(ctx context.Context, function string, span time.Duration) (st hearth.Stats, err error) {
	err = c.within(ctx, "stats", function, span, &st)
	return st, err
}

// Cost returns what a function costs within a time until now, or all of them if it is
// empty. Errors: CodeNotFound, CodeInvalid for a range.
func (c *Client) Cost(ctx context.Context, function string, span time.Duration) (r hearth.CostReport, err error) {
	err = c.within(ctx, "cost", function, span, &r)
	return r, err
}

// within asks for what is said of a function, or of all, within a time until now.
func (c *Client) within(ctx context.Context, what, function string, span time.Duration, out any) error {
	path := []string{"v1", what}
	if function != "" {
		path = []string{"v1", "functions", function, what}
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: path, query: url.Values{"range": {span.String()}}}, out)
	return err
}
