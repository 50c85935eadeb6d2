package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hearthrun/hearth/driver"
)

// How long the server waits for what an earlier process left before it serves,
// how often it tries again, and how much it destroys at once.
const (
	cleanTimeout    = 30 * time.Second
	cleanInterval   = 5 * time.Second
	maxCleanPause   = time.Minute
	destroysAtATime = 16
)

// leftovers is a driver that first destroys what an earlier process of the same
// owner left: before its first Create or Probe, if it can. What cannot be listed
// or destroyed then, because an engine is away for example, is tried again by
// destroy.
type leftovers struct {
	driver.Driver

	// Constant after construction.
	name string
	log  *slog.Logger

	// turn is held by who lists and destroys.
	turn chan struct{}
	left []driver.Sandbox // guarded by turn
	said map[string]bool  // guarded by turn: what was logged

	mu      sync.Mutex
	own     map[string]bool // guarded by mu: what this process made before listed
	listed  bool            // guarded by mu; left is known
	settled bool            // guarded by mu; each of left was tried once
}

// restoring is one that can restore.
type restoring struct {
	*leftovers
	driver.Restorer
}

var (
	_ driver.Driver   = (*leftovers)(nil)
	_ driver.Restorer = restoring{}
)

func newLeftovers(name string, d driver.Driver, log *slog.Logger) *leftovers {
	return &leftovers{
		Driver: d, name: name, log: log, turn: make(chan struct{}, 1),
		said: map[string]bool{}, own: map[string]bool{},
	}
}

// cleaning makes drivers that destroy what is left. The second result is the same
// drivers.
func cleaning(drivers map[string]driver.Driver, log *slog.Logger) (map[string]driver.Driver, []*leftovers) {
	wrapped := map[string]driver.Driver{}
	var all []*leftovers
	for _, name := range slices.Sorted(maps.Keys(drivers)) {
		l := newLeftovers(name, drivers[name], log)
		all = append(all, l)
		wrapped[name] = l
		if r, ok := l.Driver.(driver.Restorer); ok {
			wrapped[name] = restoring{l, r}
		}
	}
	return wrapped, all
}

// Create implements driver.Driver.
func (l *leftovers) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	l.before(ctx, spec.ID)
	return l.Driver.Create(ctx, spec)
}

// Restore implements driver.Restorer.
func (r restoring) Restore(ctx context.Context, spec driver.Spec, dir string) (driver.Sandbox, error) {
	r.before(ctx, spec.ID)
	return r.Restorer.Restore(ctx, spec, dir)
}

// Probe implements driver.Driver. The sandboxes that it makes are not taken for
// others.
func (l *leftovers) Probe(ctx context.Context) (driver.Info, error) {
	if l.isSettled() || !l.take(ctx) {
		return l.Driver.Probe(ctx)
	}
	defer l.give()
	if !l.isSettled() {
		l.round(ctx)
	}
	return l.Driver.Probe(ctx)
}

// before has what is left destroyed before a sandbox is made. Whether that
// succeeds or not: the driver knows best whether it works.
func (l *leftovers) before(ctx context.Context, id string) {
	l.mu.Lock()
	settled := l.settled
	if !l.listed {
		l.own[id] = true
	}
	l.mu.Unlock()
	if settled || !l.take(ctx) {
		return
	}
	defer l.give()
	if !l.isSettled() {
		l.round(ctx)
	}
}

func (l *leftovers) isSettled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled
}

func (l *leftovers) take(ctx context.Context) bool {
	select {
	case l.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *leftovers) give() { <-l.turn }

// destroy tries until nothing is left or ctx ends. It calls tried after the
// first round.
func (l *leftovers) destroy(ctx context.Context, tried func()) {
	tried = sync.OnceFunc(tried)
	defer tried()
	for pause := cleanInterval; ; pause = min(2*pause, maxCleanPause) {
		if !l.take(ctx) {
			return
		}
		done := l.round(ctx)
		l.give()
		tried()
		if done {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// round tries once and tells whether nothing is left. Its caller has the turn.
func (l *leftovers) round(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	if !l.list(ctx) {
		return false
	}
	var (
		wg     sync.WaitGroup
		places = make(chan struct{}, destroysAtATime)
		failed = make([]error, len(l.left))
	)
	for i, sb := range l.left {
		wg.Go(func() {
			select {
			case places <- struct{}{}:
				failed[i] = sb.Destroy(ctx)
				<-places
			case <-ctx.Done():
				failed[i] = ctx.Err()
			}
		})
	}
	wg.Wait()
	var remain []driver.Sandbox
	for i, sb := range l.left {
		if failed[i] != nil {
			remain = append(remain, sb)
			l.warn("a sandbox of an earlier run cannot be destroyed", failed[i], sb.ID())
		}
	}
	if n := len(l.left) - len(remain); n > 0 {
		l.log.Info("destroyed sandboxes of an earlier run", "driver", l.name, "count", n)
	}
	l.left = remain
	l.mu.Lock()
	l.settled = true
	l.mu.Unlock()
	return len(remain) == 0
}

// list finds out what is left, once.
func (l *leftovers) list(ctx context.Context) bool {
	l.mu.Lock()
	listed := l.listed
	l.mu.Unlock()
	if listed {
		return true
	}
	found, err := l.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.warn("cannot list sandboxes of an earlier run", err, "")
		}
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sb := range found {
		if !l.own[sb.ID()] {
			l.left = append(l.left, sb)
		}
	}
	l.listed, l.own = true, nil
	return true
}

// warn logs something once, not each time it is tried.
func (l *leftovers) warn(what string, err error, id string) {
	level := slog.LevelWarn
	if l.said[what+id] {
		level = slog.LevelDebug
	}
	l.said[what+id] = true
	l.log.Log(context.Background(), level, what+"; it is tried again", "driver", l.name, "sandbox", id, "err", err)
}

// clean has all drivers destroy what is left. It returns when each has tried
// once, when ctx ends, or after cleanTimeout. What goes on then ends with
// background, and wg waits for it.
func clean(ctx, background context.Context, all []*leftovers, wg *sync.WaitGroup) {
	var first sync.WaitGroup
	for _, l := range all {
		first.Add(1)
		wg.Go(func() { l.destroy(background, first.Done) })
	}
	tried := make(chan struct{})
	wg.Go(func() {
		first.Wait()
		close(tried)
	})
	select {
	case <-tried:
	case <-time.After(cleanTimeout):
	case <-ctx.Done():
	}
}
