// Package queue runs calls later: it accepts them durably, gives each function its
// turn, tries again what may succeed another time, and tells others how calls ended.
//
// A call runs at least once. It is acknowledged after it has reached the disk, and
// what was running when the server ended in whatever way runs again. So it can run
// more than once: then, and when an attempt fails after it had an effect. All
// attempts of a call have the same id, by which a function can tell.
//
// What is in memory is a hint of what is in the store: the next few calls of each
// lane (the calls of a function, or the deliveries of its webhooks), and those that
// run. An attempt reads its call anew and believes only that.
package queue

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/hearthrun/hearth"
)

// Store keeps calls; package store has one. A method that returned without an error
// has reached the disk, but for Started; one that returned an error has changed nothing.
type Store interface {
	Accept(ctx context.Context, list []hearth.AsyncEntry) ([]hearth.AsyncCall, error)
	Begin(ctx context.Context, ids []string) ([]hearth.AsyncEntry, error)
	Started(id string, attempt int)
	Retry(ctx context.Context, c hearth.AsyncCall) (queued bool, err error)
	Finish(ctx context.Context, c hearth.AsyncCall, purge time.Time, follow []hearth.AsyncEntry) (ended bool, refused []hearth.AsyncEntry, err error)
	Cancel(ctx context.Context, id string, reason hearth.AsyncFailure, purge time.Time) (call hearth.AsyncCall, canceled bool, err error)
	Forget(ctx context.Context, function string, reason hearth.AsyncFailure, purge time.Time) error
	Redrive(ctx context.Context, function string, ids []string, now, expires time.Time) (int64, error)
	Purge(ctx context.Context, function string) (int64, error)
	Prune(ctx context.Context, now time.Time) error
	Call(ctx context.Context, id string) (hearth.AsyncCall, error)
	Calls(ctx context.Context, function string, state hearth.AsyncState, before string, limit int) ([]hearth.AsyncCall, error)
	TraceCalls(ctx context.Context, of hearth.TraceID, limit int) ([]hearth.AsyncCall, error)
	Waiting(ctx context.Context, lane string, limit int) ([]hearth.AsyncCall, error)
	Lanes(ctx context.Context) ([]string, error)
	Functions(ctx context.Context) ([]string, error)
	Status(ctx context.Context, function string, now time.Time) (hearth.QueueStatus, error)
	WebhookSecret() string
	ScheduleStore
}

// Runner knows functions and calls them; package gateway implements it.
type Runner interface {
	// AsyncConfig returns the configuration of what a target names now.
	// Errors: CodeNotFound.
	AsyncConfig(target string) (hearth.Config, error)
	// NewTrace begins a trace.
	NewTrace() hearth.Trace
	// RunAsync makes an attempt of a call, which is the span e.Attempt. lent tells whether
	// an instance had it.
	RunAsync(ctx context.Context, e hearth.AsyncEntry, attempt int) (result hearth.AsyncResult, lent bool, err error)
}

// Deliverer sends webhooks.
type Deliverer interface {
	// Deliver posts a signed body to the URL, as the span of, and returns the response's
	// status, and for how long the receiver wants to be left alone. Errors: CodeDenied for an
	// address that is not allowed, CodeInvalid, CodeTimeout, CodeUnavailable.
	Deliver(ctx context.Context, url, id string, of hearth.Trace, body []byte) (status int, wait time.Duration, err error)
}

const (
	// headSize is how many calls of a lane are in memory.
	headSize = 64
	// keepDead is how long dead letters are kept, unless keep_result is longer.
	keepDead = 14 * 24 * time.Hour
	// maxDepth is how long a chain of destinations can be, maxFollow how many calls may
	// come of one in all its branches together.
	maxDepth  = 16
	maxFollow = 250
	// maxKey bounds a deduplication key in bytes.
	maxKey = 256
	// maxWaiters bounds how many wait for results.
	maxWaiters = 10_000
)

// Config of a Queue. Store and Logger are required.
type Config struct {
	Store  Store
	Logger *slog.Logger
	// MaxRunning bounds the calls that run at the same time; default 64 for each
	// core. MaxRunningBytes bounds their payloads together; default 256 MiB.
	MaxRunning      int
	MaxRunningBytes int64
	// Webhooks sends what goes to URLs; nil refuses all.
	Webhooks Deliverer
	// Traces takes the spans of calls that were accepted and of webhooks; nil takes none.
	Traces Traces
}

// Traces exports spans. It must not block.
type Traces interface {
	// Span takes a span of the trace t, if that is sampled.
	Span(t hearth.Trace, s hearth.Span)
}

// Queue accepts calls and, once it is started, runs them. Its methods may be called
// from many goroutines.
type Queue struct {
	cfg       Config
	schedules *schedules

	// Set by Start.
	runner Runner
	ctx    context.Context // ends when running attempts are broken off
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	wake chan struct{} // the first timer has changed; capacity 1

	mu       sync.Mutex // guards what follows and all lanes
	started  bool
	stopping bool
	lanes    map[string]*lane
	ready    []*lane // have a call that may begin, in their turn
	later    laneHeap
	running  map[string]*run // by the ids of their calls
	runs     int             // how many running has
	bytes    int64           // of their payloads
	loads    int
	loadNext []*lane
	idle     chan struct{} // closed when stopping and nothing runs
	waiters  map[string][]chan struct{}
	waiting  int
}

// run is an attempt under way, of several messages if the lane is that of a queue.
type run struct {
	lane   *lane
	items  []item
	bytes  int64
	cancel context.CancelCauseFunc
	seen   bool // one was found among those that wait
}

// New returns a queue that accepts calls; they begin after Start.
func New(cfg Config) *Queue {
	if cfg.MaxRunning == 0 {
		cfg.MaxRunning = 64 * runtime.NumCPU()
	}
	if cfg.MaxRunningBytes == 0 {
		cfg.MaxRunningBytes = 256 << 20
	}
	q := &Queue{
		cfg: cfg, wake: make(chan struct{}, 1), lanes: map[string]*lane{}, running: map[string]*run{},
		idle: make(chan struct{}), waiters: map[string][]chan struct{}{},
	}
	q.ctx, q.cancel = context.WithCancelCause(context.Background())
	q.schedules = newSchedules(q)
	return q
}

// NewID returns the id of a new call: a version 7 UUID, unique and sorted by time.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// Start begins to run calls, those first that were left by the server before.
// Close must be called. Errors: those of the store.
func (q *Queue) Start(ctx context.Context, runner Runner) error {
	q.runner = runner
	functions, err := q.cfg.Store.Functions(ctx)
	if err != nil {
		return err
	}
	for _, f := range functions {
		if hearth.QueueOf(f) != "" {
			continue // messages wait for a function that takes them
		}
		// The server may have ended between the delete of a function and that of
		// its calls.
		if _, err := runner.AsyncConfig(f); hearth.ErrorCode(err) == hearth.CodeNotFound {
			if err := q.Forget(ctx, f); err != nil {
				return err
			}
		}
	}
	lanes, err := q.cfg.Store.Lanes(ctx)
	if err != nil {
		return err
	}
	q.mu.Lock()
	q.started = true
	for _, key := range lanes {
		q.laneLocked(key).more = true
	}
	for _, l := range q.lanes {
		q.placeLocked(l)
	}
	q.dispatchLocked()
	q.mu.Unlock()
	q.wg.Go(q.timer)
	q.wg.Go(q.prune)
	return q.schedules.start(ctx)
}

// Close begins no more attempts and lets those under way finish until ctx ends;
// then it breaks them off and puts their calls back. The store may be closed after
// it. It returns how many were broken off. A second call does nothing.
func (q *Queue) Close(ctx context.Context) int {
	q.mu.Lock()
	if q.stopping {
		q.mu.Unlock()
		q.wg.Wait()
		return 0
	}
	q.stopping = true
	if q.runs == 0 {
		close(q.idle)
	}
	q.mu.Unlock()
	select {
	case <-q.idle:
	case <-ctx.Done():
	}
	q.mu.Lock()
	n := q.runs
	q.mu.Unlock()
	q.cancel(errStopping)
	q.wg.Wait()
	return n
}

// stopped tells whether Close was called.
func (q *Queue) stopped() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stopping
}

// entry makes a call that is queued.
func entry(id, function, target string, kind hearth.Kind, now, due time.Time, age hearth.Duration, p hearth.AsyncPayload) hearth.AsyncEntry {
	// The store has no finer time; what it returns is to be the same.
	now, due = now.Truncate(time.Microsecond).UTC(), due.Truncate(time.Microsecond).UTC()
	return hearth.AsyncEntry{
		AsyncCall: hearth.AsyncCall{
			ID: id, Function: function, Target: target, Kind: kind, State: hearth.AsyncQueued,
			AcceptedAt: now, DueAt: due, ExpiresAt: due.Add(time.Duration(age)), Bytes: int64(len(p.Head) + len(p.Body) + len(p.URL)),
			Payer: function, Budget: maxFollow,
		},
		AsyncPayload: p,
	}
}

// accepted exports the span of the acceptance of a call, which took as long as given.
func (q *Queue) accepted(c hearth.AsyncCall, took time.Duration) {
	if q.cfg.Traces != nil && c.Sampled {
		q.cfg.Traces.Span(c.Trace, c.Accepted(took))
	}
}

// Cancel ends a call that has not ended: one that runs is broken off as when its
// caller leaves. canceled is false if it had ended before. Errors: CodeNotFound.
func (q *Queue) Cancel(ctx context.Context, id string) (call hearth.AsyncCall, canceled bool, err error) {
	now := time.Now()
	keep := time.Duration(hearth.Async{}.WithDefaults().KeepResult)
	reason := hearth.AsyncFailure{StartedAt: now, EndedAt: now, Code: hearth.CodeCanceled, Message: "the call was canceled"}
	call, canceled, err = q.cfg.Store.Cancel(ctx, id, reason, now.Add(keep))
	if err != nil || !canceled {
		return call, false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if r := q.running[id]; r != nil && call.Kind != hearth.KindQueue { // others are in its batch
		r.cancel(errCanceled)
	}
	if l := q.lanes[call.Lane()]; l != nil {
		l.remove(id)
		q.placeLocked(l)
	}
	q.endedLocked(id)
	q.schedules.ended(call.Function)
	return call, true, nil
}

// Forget cancels the calls of a function that was deleted, and takes them out of
// its queue: a new function of the same name does not get them.
func (q *Queue) Forget(ctx context.Context, function string) error {
	now := time.Now()
	reason := hearth.AsyncFailure{StartedAt: now, EndedAt: now, Code: hearth.CodeCanceled, Message: "function " + function + " was deleted"}
	err := q.cfg.Store.Forget(ctx, function, reason, now.Add(time.Duration(hearth.DefaultKeepResult)))
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, key := range []string{function, hearth.WebhookLane(function)} {
		l := q.lanes[key]
		if l == nil {
			continue
		}
		for _, r := range q.running {
			if r.lane == l {
				r.cancel(errCanceled)
			}
		}
		l.head, l.more = nil, false
		l.stale = l.loading
		q.placeLocked(l)
	}
	// Who waits for one of them looks again; there is no list of which they are.
	for id := range q.waiters {
		q.endedLocked(id)
	}
	return nil
}

// Redrive queues dead letters of a function anew: those with the given ids, or all.
// It returns how many. Errors: CodeNotFound if none has one of the ids.
func (q *Queue) Redrive(ctx context.Context, function string, ids []string) (int64, error) {
	cfg, err := q.runner.AsyncConfig(function)
	if err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
		return 0, err // a destination that is not deployed has dead letters, too
	}
	now := time.Now()
	n, err := q.cfg.Store.Redrive(ctx, function, ids, now, now.Add(time.Duration(cfg.AsyncOrDefault().MaxAge)))
	if n > 0 {
		q.mu.Lock()
		for _, key := range []string{function, hearth.WebhookLane(function)} {
			q.reloadLocked(q.laneLocked(key))
		}
		q.dispatchLocked()
		q.mu.Unlock()
	}
	if err == nil && n == 0 && len(ids) > 0 {
		err = hearth.Errorf(hearth.CodeNotFound, "none of these calls is a dead letter of %s", function).
			WithHint("hearth queue list %s --state dead shows them", function)
	}
	return n, err
}

// Purge deletes the dead letters of a function and returns how many there were.
func (q *Queue) Purge(ctx context.Context, function string) (int64, error) {
	return q.cfg.Store.Purge(ctx, function)
}

// Call returns a call, with its result if it has one. Errors: CodeNotFound.
func (q *Queue) Call(ctx context.Context, id string) (hearth.AsyncCall, error) {
	return q.cfg.Store.Call(ctx, id)
}

// Payload returns what a call passes. Errors: CodeNotFound also for one that succeeded or
// was canceled, of which it is not kept.
func (q *Queue) Payload(ctx context.Context, id string) (hearth.AsyncPayload, error) {
	c, err := q.cfg.Store.Call(ctx, id)
	if err != nil {
		return hearth.AsyncPayload{}, err
	}
	if c.State == hearth.AsyncSucceeded || c.State == hearth.AsyncCanceled {
		return hearth.AsyncPayload{}, hearth.Errorf(hearth.CodeNotFound, "the payload of the call %s is not kept any more: it is %s", id, c.State)
	}
	entries, err := q.cfg.Store.Begin(ctx, []string{id})
	if err != nil {
		return hearth.AsyncPayload{}, err
	}
	return entries[0].AsyncPayload, nil
}

// Calls returns calls of a function, newest first; see Store.
func (q *Queue) Calls(ctx context.Context, function string, state hearth.AsyncState, before string, limit int) ([]hearth.AsyncCall, error) {
	return q.cfg.Store.Calls(ctx, function, state, before, limit)
}

// TraceCalls returns calls of a trace, the first ones; see Store.
func (q *Queue) TraceCalls(ctx context.Context, of hearth.TraceID, limit int) ([]hearth.AsyncCall, error) {
	return q.cfg.Store.TraceCalls(ctx, of, limit)
}

// Status counts what is stored, of one function or, if it is empty, of all.
func (q *Queue) Status(ctx context.Context, function string) (hearth.QueueStatus, error) {
	return q.cfg.Store.Status(ctx, function, time.Now())
}

// WebhookSecret is with what webhooks are signed.
func (q *Queue) WebhookSecret() string { return q.cfg.Store.WebhookSecret() }

// Wait returns a call as Call does, as soon as it has ended or ctx ends; then it is
// returned as it is. Errors: CodeNotFound.
func (q *Queue) Wait(ctx context.Context, id string) (hearth.AsyncCall, error) {
	for {
		ended := make(chan struct{})
		q.mu.Lock()
		full := q.waiting >= maxWaiters
		if !full {
			q.waiting++
			q.waiters[id] = append(q.waiters[id], ended)
		}
		q.mu.Unlock()
		c, err := q.cfg.Store.Call(context.WithoutCancel(ctx), id)
		if err != nil || c.State.Ended() || full || ctx.Err() != nil {
			q.leave(id, ended)
			return c, err
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
		q.leave(id, ended)
	}
}

// leave takes a waiter away that may have been told already.
func (q *Queue) leave(id string, ended chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.waiters[id]
	for i, ch := range list {
		if ch == ended {
			q.waiting--
			if list = append(list[:i:i], list[i+1:]...); len(list) == 0 {
				delete(q.waiters, id)
			} else {
				q.waiters[id] = list
			}
			return
		}
	}
}

// endedLocked tells those who wait for a call.
func (q *Queue) endedLocked(id string) {
	for _, ch := range q.waiters[id] {
		close(ch)
		q.waiting--
	}
	delete(q.waiters, id)
}

// prune deletes what need not be kept any longer.
func (q *Queue) prune() {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-q.ctx.Done():
			return
		}
		if err := q.cfg.Store.Prune(q.ctx, time.Now()); err != nil && q.ctx.Err() == nil {
			q.cfg.Logger.Error("pruning the queue", "err", err)
		}
	}
}
