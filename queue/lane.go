package queue

import (
	"cmp"
	"container/heap"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

const (
	// maxLoads bounds how many lanes are read from the store at the same time.
	maxLoads = 2
	// webhookLimit is how many webhooks of a function are delivered at once.
	webhookLimit = 4
	// minHold and maxHold are the pauses of a lane for which there is no instance.
	minHold = 20 * time.Millisecond
	maxHold = 5 * time.Second
)

// item is a call that waits, as far as it is in memory.
type item struct {
	id       string
	due      time.Time
	bytes    int64
	attempts int // before
}

func itemOf(c hearth.AsyncCall) item { return item{c.ID, c.DueAt, c.Bytes, c.Attempts} }

// lane is the calls of one function, the messages of a queue, or the deliveries of the
// webhooks of one of them. It is in one of these places: the list ready, the heap later,
// being loaded, waiting for one of its own calls to end, or nowhere because it is empty.
// placeLocked puts it there.
type lane struct {
	key     string
	queue   string // whose messages they are; empty for others
	head    []item // by when they are due; the store has those that follow
	more    bool   // the store may have more
	running int    // calls with an attempt under way
	runs    int    // what is under way: attempts, or batches of them

	ready    bool
	at       int       // in the heap; -1 outside
	wake     time.Time // when it is to leave the heap
	loading  bool
	stale    bool          // what is being loaded is to be loaded again
	arrived  []item        // while it is being loaded
	overflow bool          // and more than are kept in mind
	hold     time.Time     // nothing begins before
	pause    time.Duration // the latest
}

// laneHeap is lanes by when they are to be looked at.
type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].wake.Before(h[j].wake) }
func (h laneHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *laneHeap) Push(v any) { l := v.(*lane); l.at = len(*h); *h = append(*h, l) }

// Pop implements heap.Interface.
func (h *laneHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h, l.at = old[:len(old)-1], -1
	return l
}

func (q *Queue) laneLocked(key string) *lane {
	l := q.lanes[key]
	if l == nil {
		l = &lane{key: key, at: -1}
		if !l.webhooks() {
			l.queue = hearth.QueueOf(key)
		}
		q.lanes[key] = l
	}
	return l
}

// webhooks tells whether its calls are deliveries.
func (l *lane) webhooks() bool { return strings.HasSuffix(l.key, hearth.WebhookLane("")) }

// rule is how the calls of a lane begin.
type rule struct {
	limit    int           // how many runs there may be at once
	batch    int           // calls of a run
	window   time.Duration // for how long the first waits for a full batch
	attempts int           // how many a call has
}

// alone tells whether a call makes a run of its own: the last attempt of a message does,
// so that it becomes no dead letter for what is wrong with another.
func (r rule) alone(it item) bool { return it.attempts > 0 && it.attempts+1 >= r.attempts }

// ruleOf returns the rule of a lane as it is now. Of a function's concurrency a quarter
// is left to those who wait for their answers.
func (q *Queue) ruleOf(l *lane) rule {
	if l.webhooks() {
		return rule{limit: webhookLimit, batch: 1}
	}
	cfg, err := q.runner.AsyncConfig(l.key)
	if err != nil {
		return rule{limit: 1, batch: 1} // to find out
	}
	r := rule{limit: max(1, cfg.Concurrency-max(1, cfg.Concurrency/4)), batch: 1}
	if l.queue != "" {
		t := cfg.Queues[l.queue]
		r.limit, r.attempts = cmp.Or(t.Concurrency, r.limit), cfg.AsyncOrDefault().MaxAttempts
		r.batch, r.window = cmp.Or(t.BatchSize, hearth.DefaultBatch), time.Duration(t.BatchWindow)
	}
	return r
}

// begin is when the next run may begin: when the first call is due and, after that, its
// batch is full or the window has passed.
func (l *lane) begin(r rule) time.Time {
	at := l.head[0].due
	if r.window > 0 {
		n, full := l.batch(r, at.Add(r.window))
		if at = at.Add(r.window); full && l.head[n-1].due.Before(at) {
			at = l.head[n-1].due
		}
	}
	if l.hold.After(at) {
		at = l.hold
	}
	return at
}

// batch returns how many calls of the head make a batch of those that are due at a
// time, and whether no other can join them.
func (l *lane) batch(r rule, at time.Time) (n int, full bool) {
	size := int64(0)
	for n < len(l.head) && n < r.batch && !l.head[n].due.After(at) {
		it := l.head[n]
		if size += it.bytes; n > 0 && (size > hearth.MaxBatchBytes || r.alone(it)) {
			return n, true
		}
		if n++; r.alone(it) {
			return n, true
		}
	}
	return n, n == r.batch
}

// room is how many calls of a lane are in memory.
func (r rule) room() int { return max(headSize, r.batch) }

// add keeps a call in mind if it is one of the next, of which there is room for some.
// The list stays sorted.
func (l *lane) add(it item, room int) {
	if l.loading {
		// What is being read may or may not have it.
		if len(l.arrived) < room {
			l.arrived = append(l.arrived, it)
		} else {
			l.overflow = true
		}
		return
	}
	i := len(l.head)
	for i > 0 && it.due.Before(l.head[i-1].due) {
		i--
	}
	if i == len(l.head) && l.more || i >= room {
		l.more = true // in the store it follows
		return
	}
	if slices.ContainsFunc(l.head, func(o item) bool { return o.id == it.id }) {
		return
	}
	l.head = slices.Insert(l.head, i, it)
	if len(l.head) > room {
		l.head, l.more = l.head[:room], true
	}
}

func (l *lane) remove(id string) {
	l.head = slices.DeleteFunc(l.head, func(it item) bool { return it.id == id })
}

// addLocked takes calls that have just been stored as queued.
func (q *Queue) addLocked(calls ...hearth.AsyncCall) {
	room := 0
	for i, c := range calls {
		l := q.laneLocked(c.Lane())
		if i == 0 || c.Lane() != calls[i-1].Lane() {
			room = q.ruleOf(l).room()
		}
		l.add(itemOf(c), room)
	}
	for i, c := range calls { // when all are there, so that they make full batches
		if i == 0 || c.Lane() != calls[i-1].Lane() {
			q.placeLocked(q.laneLocked(c.Lane()))
		}
	}
	q.dispatchLocked()
}

// Reloaded tells that functions may have other configurations than before: what waits
// for a batch to fill may begin.
func (q *Queue) Reloaded() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range q.lanes {
		if l.queue != "" {
			q.placeLocked(l)
		}
	}
	q.dispatchLocked()
}

// reloadLocked forgets what is known of a lane, of which the store has more.
func (q *Queue) reloadLocked(l *lane) {
	l.head, l.more = nil, true
	l.stale = l.loading
	q.placeLocked(l)
}

// placeLocked puts a lane where it belongs.
func (q *Queue) placeLocked(l *lane) {
	if !q.started || q.stopping || l.ready || l.loading {
		return
	}
	if l.at >= 0 {
		heap.Remove(&q.later, l.at)
	}
	rule := q.ruleOf(l)
	switch {
	case l.more && (len(l.head) == 0 || len(l.head) < rule.batch):
		l.loading = true
		q.loadNext = append(q.loadNext, l)
		q.loadLocked()
	case len(l.head) == 0:
		if l.running == 0 {
			delete(q.lanes, l.key)
		}
	case l.runs >= rule.limit: // one that ends brings it back
	default:
		if l.wake = l.begin(rule); !l.wake.After(time.Now()) {
			l.ready = true
			q.ready = append(q.ready, l)
			return
		}
		heap.Push(&q.later, l)
		if l.at == 0 {
			select {
			case q.wake <- struct{}{}:
			default:
			}
		}
	}
}

// loadLocked reads lanes from the store, a few at the same time.
func (q *Queue) loadLocked() {
	for q.loads < maxLoads && len(q.loadNext) > 0 && !q.stopping {
		l := q.loadNext[0]
		q.loadNext = q.loadNext[1:]
		q.loads++
		q.wg.Go(func() { q.load(l) })
	}
}

func (q *Queue) load(l *lane) {
	q.mu.Lock()
	// Those that run may still be stored as waiting.
	room := q.ruleOf(l).room()
	limit := room + l.running
	l.stale = false
	q.mu.Unlock()
	list, err := q.cfg.Store.Waiting(q.ctx, l.key, limit)
	if err != nil && q.ctx.Err() == nil {
		q.cfg.Logger.Error("reading the queue", "lane", l.key, "err", err)
		wait(q.ctx, time.Second)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.loads--
	l.loading = false
	l.head = nil
	for _, c := range list {
		if r := q.running[c.ID]; r != nil {
			r.seen = true
		} else if len(l.head) < room {
			l.head = append(l.head, itemOf(c))
		}
	}
	l.more = l.stale || l.overflow || err != nil || len(list) == limit
	if l.stale {
		l.head = nil
	} else {
		for _, it := range l.arrived {
			l.add(it, room)
		}
	}
	l.arrived, l.overflow = nil, false
	q.placeLocked(l)
	q.loadLocked()
	q.dispatchLocked()
}

// dispatchLocked begins what may begin: one call of each lane in turn.
func (q *Queue) dispatchLocked() {
	for len(q.ready) > 0 && !q.stopping && q.runs < q.cfg.MaxRunning && (q.bytes < q.cfg.MaxRunningBytes || q.runs == 0) {
		l := q.ready[0]
		q.ready[0] = nil
		q.ready = q.ready[1:]
		l.ready = false
		now := time.Now()
		if rule := q.ruleOf(l); len(l.head) > 0 && l.runs < rule.limit && !l.begin(rule).After(now) {
			n, _ := l.batch(rule, now)
			q.beginLocked(l, n)
		}
		q.placeLocked(l)
	}
	if len(q.ready) == 0 {
		q.ready = nil
	}
}

// beginLocked begins an attempt of each of the next n calls of a lane.
func (q *Queue) beginLocked(l *lane, n int) {
	ctx, cancel := context.WithCancelCause(q.ctx)
	r := &run{lane: l, cancel: cancel}
	for _, it := range l.head[:n] {
		if known := q.running[it.id]; known != nil {
			known.seen = true // twice
			continue
		}
		q.running[it.id] = r
		r.items = append(r.items, it)
		r.bytes += it.bytes
	}
	l.head = l.head[n:]
	if len(r.items) == 0 {
		cancel(nil)
		return
	}
	q.runs++
	q.bytes += r.bytes
	l.runs++
	l.running += len(r.items)
	q.wg.Go(func() {
		defer cancel(nil)
		outcomes := make([]outcome, len(r.items))
		if l.queue != "" {
			q.attemptBatch(ctx, l.queue, r.items, outcomes)
		} else {
			outcomes[0] = q.attempt(ctx, r.items[0])
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.endLocked(r, outcomes)
	})
}

// outcome is what is to happen after an attempt.
type outcome struct {
	again *item // it is queued again
	ended bool
	// busy: there was no instance, so that the lane pauses, for wait if that is known.
	busy bool
	wait time.Duration
	// follow were queued with the end of the call.
	follow []hearth.AsyncCall
}

// endLocked takes what became of each call of a run.
func (q *Queue) endLocked(r *run, outcomes []outcome) {
	l := r.lane
	q.runs--
	q.bytes -= r.bytes
	l.runs--
	l.running -= len(r.items)
	busy, pause := false, time.Duration(0)
	for i, o := range outcomes {
		delete(q.running, r.items[i].id)
		busy, pause = busy || o.busy, max(pause, o.wait)
	}
	if busy {
		l.pause = min(max(2*l.pause, minHold), maxHold)
		if pause > 0 {
			l.pause = min(max(l.pause, pause/2), maxHold)
		}
		l.hold = time.Now().Add(l.pause)
	} else {
		l.pause, l.hold = 0, time.Time{}
	}
	if q.lanes[l.key] == nil {
		q.lanes[l.key] = l // it was empty, but for these calls
	}
	room, ended := q.ruleOf(l).room(), false
	for i, o := range outcomes {
		if o.again != nil {
			l.add(*o.again, room)
		}
		if o.ended {
			q.endedLocked(r.items[i].id)
			ended = true
		}
	}
	if r.seen {
		// It may have been redriven the moment after its end was stored.
		l.more = true
	}
	if ended {
		q.schedules.ended(l.key)
	}
	q.placeLocked(l)
	var follow []hearth.AsyncCall
	for _, o := range outcomes {
		follow = append(follow, o.follow...)
	}
	q.addLocked(follow...)
	if q.stopping && q.runs == 0 {
		select {
		case <-q.idle:
		default:
			close(q.idle)
		}
	}
}

// timer moves lanes from the heap when their time has come.
func (q *Queue) timer() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		q.mu.Lock()
		now := time.Now()
		for !q.stopping && len(q.later) > 0 && !q.later[0].wake.After(now) {
			q.placeLocked(q.later[0])
		}
		q.dispatchLocked()
		next := time.Hour
		if len(q.later) > 0 {
			next = q.later[0].wake.Sub(now)
		}
		q.mu.Unlock()
		t.Reset(next)
		select {
		case <-t.C:
		case <-q.wake:
		case <-q.ctx.Done():
			return
		}
	}
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
