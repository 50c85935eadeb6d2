package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
// and of schedules that never come or call an alias that neither exists nor is coming.
func (s *API) triggerWarnings(ctx context.Context, function string, c hearth.Config, coming []string) ([]string, error) {
	warnings := pastSchedules(c, time.Now())
	more, err := s.aliasWarnings(ctx, function, c, coming)
	if err != nil {
		return nil, err
	}
	if warnings = append(warnings, more...); c.Async == nil {
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

// aliasWarnings tells of schedules that call an alias that neither exists nor is coming.
func (s *API) aliasWarnings(ctx context.Context, function string, c hearth.Config, coming []string) (warnings []string, err error) {
	known := append([]string{hearth.Live}, coming...)
	list, err := s.Aliases.Aliases(ctx, function)
	if err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
		return nil, err
	}
	for _, a := range list {
		known = append(known, a.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Schedules)) {
		if alias := c.Schedules[name].WithDefaults().Alias; !slices.Contains(known, alias) {
			warnings = append(warnings, fmt.Sprintf("schedules.%s: there is no alias %s: its times are skipped until hearth alias set %s %s makes it", name, alias, function, alias))
		}
	}
	return warnings, nil
}

// queuesOf returns the queues whose messages a function takes, sorted.
func (s *API) queuesOf(function string) (queues []string) {
	for queue, owner := range s.Router.Queues() {
		if owner == function {
			queues = append(queues, queue)
		}
	}
	slices.Sort(queues)
	return queues
}

// strandedMessages tells of messages that wait in those of the queues that no function
// takes now.
func (s *API) strandedMessages(ctx context.Context, queues []string) (warnings []string) {
	owners := s.Router.Queues()
	for _, queue := range queues {
		if owners[queue] != "" {
			continue
		}
		switch n, err := s.unended(ctx, hearth.QueueTarget(queue)); {
		case err != nil:
			s.Logger.WarnContext(ctx, "counting messages that no function takes", "queue", queue, "err", err)
		case n > 0:
			what := fmt.Sprintf("%d messages wait", n)
			if n == 1 {
				what = "1 message waits"
			}
			warnings = append(warnings, fmt.Sprintf("%s in queue %s, which no function takes now: deploy one that does, before they are too old and become dead letters", what, queue))
		}
	}
	return warnings
}

// unended counts the calls of a function, or the messages of a queue, that have not ended.
func (s *API) unended(ctx context.Context, of string) (n int64, err error) {
	st, err := s.Queue.Status(ctx, of)
	for _, f := range st.Functions {
		n += f.Queued + f.Running
	}
	return n, err
}
