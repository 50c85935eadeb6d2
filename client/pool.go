package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hearthrun/hearth"
)

// Pool returns what instances there are and why: of all functions, or of one
// (then without stem cells; the totals are still those of the whole pool).
// Errors: CodeNotFound.
func (c *Client) Pool(ctx context.Context, function string) (hearth.PoolStatus, error) {
	q := url.Values{}
	if function != "" {
		q.Set("function", function)
	}
	var st hearth.PoolStatus
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "pool"}, query: q}, &st)
	return st, err
}

// PoolEvent is news of the pool; one of its fields is set.
type PoolEvent struct {
	// Status is the first news, and comes again when changes were missed because
	// they were not taken fast enough.
	Status *hearth.PoolStatus `json:"status,omitempty"`
	// Instance is a change since the news before.
	Instance *hearth.InstanceEvent `json:"instance,omitempty"`
}

// WatchPool calls fn with the status of the pool and then with each change of an
// instance, until ctx ends (then it returns CodeCanceled or CodeTimeout), fn
// returns an error (then it returns that), or the server ends the stream because
// it shuts down (then it returns nil). Errors: CodeUnavailable.
func (c *Client) WatchPool(ctx context.Context, fn func(PoolEvent) error) error {
	for {
		missed := false
		err := c.stream(ctx, request{method: http.MethodGet, path: []string{"v1", "pool", "events"}}, func(e event) error {
			var news PoolEvent
			var err error
			switch e.name {
			case "status":
				err = e.decode(&news.Status)
			case "instance":
				err = e.decode(&news.Instance)
			case "reset":
				missed = true
				return nil
			default:
				return nil
			}
			if err != nil {
				return err
			}
			return fn(news)
		})
		if err != nil || !missed {
			return err
		}
	}
}
