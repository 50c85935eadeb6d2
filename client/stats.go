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
func (c *Client) Stats(ctx context.Context, function string, span time.Duration) (hearth.Stats, error) {
	path := []string{"v1", "stats"}
	if function != "" {
		path = []string{"v1", "functions", function, "stats"}
	}
	var st hearth.Stats
	_, err := c.call(ctx, request{method: http.MethodGet, path: path, query: url.Values{"range": {span.String()}}}, &st)
	return st, err
}
