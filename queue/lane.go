package queue

import (
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
	id    string
	due   time.Time
	bytes int64
}

// lane is the calls of one function, or the deliveries of its webhooks. It is in
// one of these places: the list ready, the heap later, being loaded, waiting for one
// of its own calls to end, or nowhere because it is empty. placeLocked puts it there.
type lane struct {
	key     string
	head    []item // by when they are due; the store has those that follow
	more    bool   // the store may have more
	running int

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
		q.lanes[key] = l
	}
	return l
}

// limit is how many calls of the lane may run at once. Of a function's concurrency a
// quarter is left to those who wait for their answers.
func (q *Queue) limit(l *lane) int {
	if strings.HasSuffix(l.key, "/webhooks") {
		return webhookLimit
	}
	cfg, err := q.runner.AsyncConfig(l.key)
	if err != nil {
		return 1 // to find out, and end the calls
	}
	return max(1, cfg.Concurrency-max(1, cfg.Concurrency/4))
}

// add keeps a call in mind if it is one of the next. The list stays sorted.
func (l *lane) add(it item) {
	if l.loading {
		// What is being read may or may not have it.
		if len(l.arrived) < headSize {
			l.arrived = append(l.arrived, it)
		} else {
			l.overflow = true
		}
		return
	}
	if slices.ContainsFunc(l.head, func(o item) bool { return o.id == it.id }) {
		return
	}
	i := len(l.head)
	for i > 0 && it.due.Before(l.head[i-1].due) {
		i--
	}
	if i == len(l.head) && l.more || i >= headSize {
		l.more = true // in the store it follows
		return
	}
	l.head = slices.Insert(l.head, i, it)
	if len(l.head) > headSize {
		l.head, l.more = l.head[:headSize], true
	}
}

func (l *lane) remove(id string) {
	l.head = slices.DeleteFunc(l.head, func(it item) bool { return it.id == id })
}

// addLocked takes a call that has just been stored as queued.
func (q *Queue) addLocked(c hearth.AsyncCall) {
	l := q.laneLocked(c.Lane())
	l.add(item{c.ID, c.DueAt, c.Bytes})
	q.placeLocked(l)
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
	switch {
	case len(l.head) == 0 && l.more:
		l.loading = true
		q.loadNext = append(q.loadNext, l)
		q.loadLocked()
	case len(l.head) == 0:
		if l.running == 0 {
			delete(q.lanes, l.key)
		}
	case l.running >= q.limit(l): // a call that ends brings it back
	default:
		now := time.Now()
		l.wake = l.head[0].due
		if l.hold.After(l.wake) {
			l.wake = l.hold
		}
		if !l.wake.After(now) {
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
	limit := headSize + l.running
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
		} else if len(l.head) < headSize {
			l.head = append(l.head, item{c.ID, c.DueAt, c.Bytes})
		}
	}
	l.more = l.stale || l.overflow || err != nil || len(list) == limit
	if l.stale {
		l.head = nil
	} else {
		for _, it := range l.arrived {
			l.add(it)
		}
	}
	l.arrived, l.overflow = nil, false
	q.placeLocked(l)
	q.loadLocked()
	q.dispatchLocked()
}

// dispatchLocked begins what may begin: one call of each lane in turn.
func (q *Queue) dispatchLocked() {
	for len(q.ready) > 0 && !q.stopping && len(q.running) < q.cfg.MaxRunning && (q.bytes < q.cfg.MaxRunningBytes || len(q.running) == 0) {
		l := q.ready[0]
		q.ready[0] = nil
		q.ready = q.ready[1:]
		l.ready = false
		if now := time.Now(); len(l.head) > 0 && l.running < q.limit(l) && !l.head[0].due.After(now) && !l.hold.After(now) {
			q.beginLocked(l)
		}
		q.placeLocked(l)
	}
	if len(q.ready) == 0 {
		q.ready = nil
	}
}

func (q *Queue) beginLocked(l *lane) {
	it := l.head[0]
	l.head = l.head[1:]
	if r := q.running[it.id]; r != nil {
		r.seen = true // known twice
		return
	}
	ctx, cancel := context.WithCancelCause(q.ctx)
	r := &run{lane: l, bytes: it.bytes, cancel: cancel}
	q.running[it.id] = r
	q.bytes += r.bytes
	l.running++
	q.wg.Go(func() {
		defer cancel(nil)
		o := q.attempt(ctx, it.id)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.endLocked(it.id, r, o)
	})
}

// outcome is what is to happen after an attempt.
type outcome struct {
	again *hearth.AsyncCall // it is queued again
	ended bool
	// busy: there was no instance, so that the lane pauses, for wait if that is known.
	busy bool
	wait time.Duration
	// follow were queued with the end of the call.
	follow []hearth.AsyncCall
}

func (q *Queue) endLocked(id string, r *run, o outcome) {
	l := r.lane
	delete(q.running, id)
	q.bytes -= r.bytes
	l.running--
	switch {
	case o.busy:
		l.pause = min(max(2*l.pause, minHold), maxHold)
		if o.wait > 0 {
			l.pause = min(max(l.pause, o.wait/2), maxHold)
		}
		l.hold = time.Now().Add(l.pause)
	default:
		l.pause, l.hold = 0, time.Time{}
	}
	if q.lanes[l.key] == nil {
		q.lanes[l.key] = l // it was empty, but for this call
	}
	if o.again != nil {
		l.add(item{id, o.again.DueAt, o.again.Bytes})
	}
	if r.seen {
		// It may have been redriven the moment after its end was stored.
		l.more = true
	}
	if o.ended {
		q.endedLocked(id)
		q.schedules.ended(l.key)
	}
	q.placeLocked(l)
	for _, c := range o.follow {
		q.addLocked(c)
	}
	q.dispatchLocked()
	if q.stopping && len(q.running) == 0 {
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
