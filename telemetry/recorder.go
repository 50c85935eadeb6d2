package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// Sink stores invocation records; package store has one. A batch that failed
// may be given to it again.
type Sink interface {
	AppendInvocations(ctx context.Context, records []hearth.Invocation) error
}

// RecorderOptions bound what a Recorder keeps; zero fields take the default.
type RecorderOptions struct {
	// SuccessRate is how many successful calls are recorded per second, with
	// bursts of one second; the others are skipped. Negative means all. Failed and
	// asynchronous calls are not limited. Default 200.
	SuccessRate int
	// Buffer is how many records may wait for the sink, and BufferBytes how large they
	// may be together. Defaults 16384 and 16 MiB.
	Buffer, BufferBytes int
	// Batch is how many records go to the sink at once. Default 500.
	Batch int
	// Interval is the longest wait of a record before it goes to the sink.
	// Default 100 ms.
	Interval time.Duration
	// SinkTimeout bounds one call of the sink. Default 10 s.
	SinkTimeout time.Duration
	// Counter counts all calls, whatever becomes of their records; nil counts none.
	Counter Counter
	// Off records nothing and counts nothing but Traffic.
	Off bool
}

// Counter counts calls that have ended; package metrics has one.
type Counter interface {
	Count(v *hearth.Invocation)
}

func (o RecorderOptions) withDefaults() RecorderOptions {
	setDefault(&o.SuccessRate, 200)
	setDefault(&o.Buffer, 16384)
	setDefault(&o.BufferBytes, 16<<20)
	setDefault(&o.Batch, 500)
	setDefault(&o.Interval, 100*time.Millisecond)
	setDefault(&o.SinkTimeout, 10*time.Second)
	return o
}

func setDefault[T int | int64 | time.Duration](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// refusalRate is how many refused calls of each function are recorded per second.
const refusalRate = 10

const (
	// recordSize is about what a record takes in memory without its texts, in bytes.
	recordSize = 512
	// maxText bounds each of those that callers and functions choose, in bytes. Sinks
	// may cut them to less.
	maxText = 8 << 10
)

// maxBackoff is the longest pause between attempts to reach a failing sink.
const maxBackoff = 5 * time.Second

// Recorder takes invocation records off the path of the calls and gives them
// to a sink in batches. It would rather lose a record than hold up a call, and
// that of a success whose caller waited rather than any other. Its methods may be
// called from many goroutines.
type Recorder struct {
	// Constant after construction.
	sink Sink
	opts RecorderOptions
	log  *slog.Logger
	kick chan struct{}      // there is work; holds at most one token
	jobs chan chan<- error  // Flush and Close
	done chan struct{}      // closed when the goroutine has ended
	stop context.CancelFunc // ends sink calls when Close gives up
	// Traffic sees every record that is taken.
	Traffic Traffic

	budget           atomic.Int64 // successes that may be recorded now
	skipped, dropped atomic.Int64

	mu     sync.Mutex
	closed bool
	// vital are those of failed and of asynchronous calls, sampled the others.
	vital, sampled backlog
	// refused counts the refused calls of each function since refusedSince.
	refused      map[string]int
	refusedSince time.Time
}

// backlog is records that wait, in the order in which they came.
type backlog struct {
	list  []hearth.Invocation
	bytes int
}

func (b *backlog) add(v hearth.Invocation) {
	b.list = append(b.list, v)
	b.bytes += sizeOf(&v)
}

// drop removes the newest.
func (b *backlog) drop() {
	last := len(b.list) - 1
	b.bytes -= sizeOf(&b.list[last])
	b.list[last] = hearth.Invocation{}
	b.list = b.list[:last]
}

// take removes the n oldest, or as many as there are.
func (b *backlog) take(n int) []hearth.Invocation {
	n = min(n, len(b.list))
	batch := b.list[:n:n]
	for i := range batch {
		b.bytes -= sizeOf(&batch[i])
	}
	if b.list = b.list[n:]; len(b.list) == 0 {
		b.list = nil // the memory of many is not kept for few
	}
	return batch
}

// putBack makes records the oldest again.
func (b *backlog) putBack(batch []hearth.Invocation) {
	for i := range batch {
		b.bytes += sizeOf(&batch[i])
	}
	b.list = append(batch, b.list...)
}

// sizeOf returns about how much memory a record takes, in bytes.
func sizeOf(v *hearth.Invocation) int {
	return recordSize + len(v.Method) + len(v.Path) + len(v.ErrorMessage)
}

// NewRecorder starts a Recorder; the caller must Close it.
func NewRecorder(sink Sink, opts RecorderOptions, logger *slog.Logger) *Recorder {
	ctx, cancel := context.WithCancel(context.Background())
	r := &Recorder{
		sink: sink, opts: opts.withDefaults(), log: logger,
		kick: make(chan struct{}, 1), jobs: make(chan chan<- error), done: make(chan struct{}), stop: cancel, refused: map[string]int{},
	}
	r.budget.Store(int64(r.opts.SuccessRate))
	go r.run(ctx)
	return r
}

// Refused takes the record of a call that was refused because too many waited:
// there are as many as callers like. It returns false, and records nothing, if there
// were refusalRate of the function within the last second already.
func (r *Recorder) Refused(v hearth.Invocation) bool {
	now := time.Now()
	r.mu.Lock()
	if now.Sub(r.refusedSince) >= time.Second {
		clear(r.refused)
		r.refusedSince = now
	}
	r.refused[v.Function]++
	many := r.refused[v.Function] > refusalRate
	r.mu.Unlock()
	if many {
		r.Traffic.count(&v)
		if !r.opts.Off {
			r.skipped.Add(1)
		}
		v.Sampled = false // no trace is exported of it either
		r.count(&v)
		return false
	}
	r.Record(v)
	return true
}

// Record takes the record of a call that has ended. It never blocks on the
// sink. After Close it drops the record.
func (r *Recorder) Record(v hearth.Invocation) {
	r.Traffic.count(&v)
	r.count(&v)
	if r.opts.Off {
		return
	}
	vital := v.Failed() || v.Attempt > 0
	if !vital && r.opts.SuccessRate > 0 && r.budget.Add(-1) < 0 {
		r.skipped.Add(1)
		return
	}
	own(&v)
	r.mu.Lock()
	n := len(r.vital.list) + len(r.sampled.list)
	switch {
	case r.closed || !r.roomLocked(sizeOf(&v), vital):
		r.dropped.Add(1)
	case vital:
		r.vital.add(v)
	default:
		r.sampled.add(v)
	}
	r.mu.Unlock()
	if n == 0 || n == r.opts.Batch-1 {
		r.wake()
	}
}

// roomLocked tells whether there is room for one more record; for a vital one it makes
// room as long as there are others.
func (r *Recorder) roomLocked(size int, vital bool) bool {
	for len(r.vital.list)+len(r.sampled.list) >= r.opts.Buffer || r.vital.bytes+r.sampled.bytes+size > r.opts.BufferBytes {
		if !vital || len(r.sampled.list) == 0 {
			return false
		}
		r.sampled.drop()
		r.dropped.Add(1)
	}
	return true
}

// own bounds the texts of a record and makes those its own that are parts of longer ones:
// of a request's first line, which would be kept as a whole. What is not stored goes.
func own(v *hearth.Invocation) {
	v.Links, v.Tracestate, v.HTTPRoute, v.Alias, v.Isolation = nil, "", "", "", ""
	method := cut(v.Method)
	both := method + cut(v.Path)
	v.Method, v.Path = both[:len(method)], both[len(method):]
	if len(v.ErrorMessage) > maxText {
		v.ErrorMessage = strings.Clone(cut(v.ErrorMessage))
	}
}

func cut(s string) string { return s[:min(len(s), maxText)] }

func (r *Recorder) count(v *hearth.Invocation) {
	if r.opts.Counter != nil && !r.opts.Off {
		r.opts.Counter.Count(v)
	}
}

func (r *Recorder) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Dropped returns how many records were lost because the sink was too slow or
// failed.
func (r *Recorder) Dropped() int64 { return r.dropped.Load() }

// Skipped returns how many successful or refused calls were not recorded because
// there were too many of them: see RecorderOptions.SuccessRate and Refused.
func (r *Recorder) Skipped() int64 { return r.skipped.Load() }

// Flush returns when everything recorded before the call is with the sink, or
// with the sink's error. Records that failed are tried again later.
func (r *Recorder) Flush(ctx context.Context) error {
	result := make(chan error, 1)
	select {
	case r.jobs <- result:
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctxError(ctx)
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctxError(ctx)
	}
}

// Close gives the sink what is left, for at most two SinkTimeouts, and ends
// the Recorder. It returns the sink's error if records were lost. Close the
// sink after it. A second Close does nothing.
func (r *Recorder) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.opts.SinkTimeout)
	defer cancel()
	err := r.Flush(ctx)
	r.stop()
	<-r.done
	return err
}

// run is the goroutine that talks to the sink.
func (r *Recorder) run(ctx context.Context) {
	defer close(r.done)
	var (
		timer   *time.Timer // runs while there is something to do
		due     <-chan time.Time
		last    = time.Now() // when the budget was filled last
		backoff time.Duration
	)
	arm := func(d time.Duration) {
		if timer == nil {
			timer = time.NewTimer(d)
		} else {
			timer.Reset(d)
		}
		due = timer.C
	}
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		var result chan<- error
		select {
		case <-ctx.Done():
			r.dropRest()
			return
		case result = <-r.jobs:
		case <-r.kick:
			if backoff > 0 || !r.full() {
				if due == nil {
					arm(r.opts.Interval)
				}
				continue
			}
		case <-due:
		}
		due = nil
		if timer != nil {
			timer.Stop()
		}
		err := r.drain(ctx)
		if result != nil {
			result <- err
		}
		now := time.Now()
		budgetFull := r.refill(now.Sub(last))
		last = now
		switch {
		case err != nil:
			backoff = min(max(2*backoff, r.opts.Interval), maxBackoff)
			arm(backoff)
		case !budgetFull || !r.empty():
			// Whoever used the budget left a record, and so woke us: it is full
			// again before we sleep.
			backoff = 0
			arm(r.opts.Interval)
		default:
			backoff = 0
		}
	}
}

// refill grows the budget of successes by what the elapsed time allows and
// tells whether it is full.
func (r *Recorder) refill(elapsed time.Duration) bool {
	if r.opts.SuccessRate < 0 {
		return true
	}
	limit := int64(r.opts.SuccessRate)
	add := max(1, int64(min(elapsed, time.Second))*limit/int64(time.Second))
	for {
		old := r.budget.Load()
		fresh := min(limit, max(old, 0)+add)
		if r.budget.CompareAndSwap(old, fresh) {
			return fresh == limit
		}
	}
}

func (r *Recorder) full() bool { return r.waiting() >= r.opts.Batch }

func (r *Recorder) empty() bool { return r.waiting() == 0 }

// waiting returns how many records there are.
func (r *Recorder) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.vital.list) + len(r.sampled.list)
}

// drain gives the sink what was recorded up to now, the vital records first.
func (r *Recorder) drain(ctx context.Context) error {
	r.mu.Lock()
	vital, sampled := len(r.vital.list), len(r.sampled.list)
	r.mu.Unlock()
	err := r.drainOne(ctx, &r.vital, vital)
	if err == nil {
		err = r.drainOne(ctx, &r.sampled, sampled)
	}
	return err
}

// drainOne gives the sink the n oldest records of a backlog, as far as they do not have
// to make room meanwhile.
func (r *Recorder) drainOne(ctx context.Context, b *backlog, n int) error {
	for n > 0 {
		r.mu.Lock()
		batch := b.take(min(n, r.opts.Batch))
		r.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		n -= len(batch)
		if err := r.send(ctx, batch); err != nil {
			r.mu.Lock()
			b.putBack(batch) // there may be as much more than there is room for
			r.mu.Unlock()
			return err
		}
	}
	return nil
}

// send gives one batch to the sink. It returns an error only if trying again
// may help; otherwise the batch is lost.
func (r *Recorder) send(ctx context.Context, batch []hearth.Invocation) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.SinkTimeout)
	defer cancel()
	err := r.sink.AppendInvocations(ctx, batch)
	switch hearth.ErrorCode(err) {
	case "":
		return nil
	case hearth.CodeInvalid, hearth.CodeInternal:
		r.dropped.Add(int64(len(batch)))
		r.log.Error("invocation records are lost", "records", len(batch), "error", err)
		return nil
	default:
		r.log.Warn("invocation records wait for the store", "records", len(batch), "error", err)
		return err
	}
}

// dropRest counts what Close could not bring to the sink.
func (r *Recorder) dropRest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped.Add(int64(len(r.vital.list) + len(r.sampled.list)))
	r.vital, r.sampled = backlog{}, backlog{}
}
