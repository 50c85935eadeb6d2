package api

import (
	"context"
	"fmt"
	"time"

	"github.com/hearthrun/hearth"
)

// Webhooks knows where webhooks can lead.
type Webhooks interface {
	// CheckURL tells whether the URL of a webhook names an address that the server
	// refuses. Names are not resolved: what they mean is known when a webhook is
	// sent. Errors: CodeDenied.
	CheckURL(url string) error
}

// triggerWarnings tells of destinations that lead nowhere now, which may be made later,
// and of schedules that never come.
func (s *API) triggerWarnings(ctx context.Context, function string, c hearth.Config) ([]string, error) {
	warnings := pastSchedules(c, time.Now())
	if c.Async == nil {
		return warnings, nil
	}
	for _, list := range []struct {
		name         string
		destinations []hearth.Destination
	}{{"on_success", c.Async.OnSuccess}, {"on_failure", c.Async.OnFailure}} {
		for _, d := range list.destinations {
			name := d.Target()
			if queue := hearth.QueueOf(name); queue != "" {
				if _, own := c.Queues[queue]; own {
					warnings = append(warnings, fmt.Sprintf("async.%s: the function takes the messages of the queue %s itself: such a loop ends after 16 calls", list.name, queue))
				}
				if _, own := c.Queues[queue]; !own && s.Router.Queues()[queue] == "" {
					warnings = append(warnings, fmt.Sprintf("async.%s: no function takes the messages of the queue %s: they wait until one does", list.name, queue))
				}
				continue
			}
			if name == "" {
				if err := s.Webhooks.CheckURL(string(d)); err != nil {
					e := hearth.AsError(err)
					warnings = append(warnings, fmt.Sprintf("async.%s: %s: %s; %s", list.name, d, e.Message, e.Hint))
				}
				continue
			}
			if name == function {
				continue
			}
			_, err := s.Catalog.Function(ctx, name)
			if hearth.ErrorCode(err) == hearth.CodeNotFound {
				warnings = append(warnings, fmt.Sprintf("async.%s: there is no function %s: what it is told becomes dead letters of %s until it is deployed", list.name, name, name))
			} else if err != nil {
				return nil, err
			}
		}
	}
	return warnings, nil
}
