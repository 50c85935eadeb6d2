package api

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// canaryInterval is how often releases by steps are looked at.
const canaryInterval = time.Second

// Run lets releases by steps proceed until ctx ends. Those that ran when the
// server stopped go on with the step at which they were; its calls are counted
// anew.
func (s *API) Run(ctx context.Context) {
	tick := time.NewTicker(canaryInterval)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var proceeding sync.Map // by id
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		list, err := s.Aliases.RunningReleases(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.Logger.ErrorContext(ctx, "releases do not proceed", "err", err)
			}
			continue
		}
		for _, r := range list {
			if _, busy := proceeding.LoadOrStore(r.ID, true); busy {
				continue
			}
			// One that waits, as for the start of a version, holds up no other.
			wg.Go(func() {
				defer proceeding.Delete(r.ID)
				if err := s.proceed(ctx, r); err != nil && ctx.Err() == nil {
					s.Logger.ErrorContext(ctx, "a release does not proceed", "function", r.Function, "release", r.ID, "err", err)
				}
			})
		}
	}
}

// proceed does what a release needs now.
func (s *API) proceed(ctx context.Context, r hearth.Release) error {
	fresh, old, ok := s.Traffic.Traffic(r)
	if !ok {
		return s.advance(ctx, r, func(hearth.Function) error {
			s.Traffic.Watch(r)
			return nil
		})
	}
	if waits(r, fresh) != "" {
		return nil
	}
	conditions, err := hearth.ParseConditions(r.Canary.RollbackOn)
	if err != nil {
		return err
	}
	for _, c := range conditions {
		if why, breaks := c.Breaks(fresh, old); breaks {
			return s.advance(ctx, r, func(f hearth.Function) error {
				_, err := s.end(ctx, f, r, hearth.ReleaseRolledBack, why)
				return err
			})
		}
	}
	if time.Since(r.StepAt) < time.Duration(r.Canary.Step) {
		return nil
	}
	return s.advance(ctx, r, func(f hearth.Function) error {
		var err error
		if r.Step+1 == len(r.Canary.Shares) {
			_, err = s.end(ctx, f, r, hearth.ReleaseDone, fmt.Sprintf("no condition of %s held", r.Canary.RollbackOn))
		} else {
			next := r
			next.Step, next.StepAt = r.Step+1, time.Now()
			_, err = s.shift(ctx, f, next, split(next))
		}
		if now, nowErr := s.function(ctx, f.Name); hearth.ErrorCode(err) != hearth.CodeConflict || nowErr != nil || now.Generation != f.Generation {
			return err
		}
		// A route was free when it began, and belongs to another now.
		_, back := s.end(ctx, f, r, hearth.ReleaseRolledBack, err.Error())
		return back
	})
}

// waits says which calls are missing before anything can be said of a release that
// runs, "" if none are.
func waits(r hearth.Release, fresh hearth.Traffic) string {
	if fresh.Calls >= int64(r.Canary.MinCalls) {
		return ""
	}
	text := fmt.Sprintf("it waits until version %d has had %d calls in this step", r.To, r.Canary.MinCalls)
	if fresh.Left > 0 {
		text += fmt.Sprintf("; callers that left before it answered: %d", fresh.Left)
	}
	return text
}

// advance runs fn unless the release has ended meanwhile.
func (s *API) advance(ctx context.Context, r hearth.Release, fn func(hearth.Function) error) error {
	return s.change(ctx, r.Function, condition{}, func(ctx context.Context, f hearth.Function) error {
		now, err := s.running(ctx, f)
		if err != nil || now == nil || now.ID != r.ID {
			return err
		}
		return fn(f)
	})
}
