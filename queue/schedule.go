package queue

import (
	"container/heap"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// ScheduleStore keeps what schedules have done; package store has one. A method that
// returned without an error has reached the disk.
type ScheduleStore interface {
	Schedules(ctx context.Context, function string) ([]hearth.ScheduleState, error)
	SetSchedules(ctx context.Context, set, gone []hearth.ScheduleState) error
	PauseSchedule(ctx context.Context, function, name string, paused bool, done time.Time) (hearth.ScheduleState, error)
	FireSchedule(ctx context.Context, f hearth.ScheduleFiring) (s hearth.ScheduleState, accepted bool, err error)
}

const (
	// onTime is how late a call may be before its time counts as missed.
	onTime = 10 * time.Second
	// lookAgain is for how long the engine sleeps at most: timers do not notice that
	// the clock was set.
	lookAgain = time.Minute
	// fireTimeout bounds the storing of a call of a schedule.
	fireTimeout = 30 * time.Second
	// scheduleRetry is the pause after a call could not be stored.
	scheduleRetry = 5 * time.Second
	// maxFiring is how many calls of schedules are stored at the same time; they
	// share the cost of reaching the disk.
	maxFiring = 64
	// maxAhead is how far ahead of the clock times can have been dealt with. If it is
	// more, the clock was wrong, and the schedule would be silent until then.
	maxAhead = 24 * time.Hour
	// nextTimes is how many coming times of a schedule are shown.
	nextTimes = 5
)

// schedules calls functions at their times. It sleeps until the next of all.
//
// What is in memory is what is configured and a copy of what is stored. A time is
// dealt with by one transaction that stores the call and until when times have been
// dealt with, so it is not dealt with again, whatever ends the server.
type schedules struct {
	q    *Queue
	wake chan struct{} // something is due earlier; capacity 1

	// work is held by who changes what is stored, not for long. It comes before mu.
	work sync.Mutex

	mu      sync.Mutex
	started bool
	all     map[scheduleKey]*schedule
	due     scheduleHeap
	// behind are those with a call that waits for another to end, by function and name.
	// They are looked at when a call of one of the functions in check has ended.
	behind map[string]map[string]*schedule
	check  map[string]bool
	// unknown are functions whose schedules are not known now.
	unknown map[string]bool
	// clockAt is when it was looked last for times that are far ahead of the clock.
	clockAt time.Time
	// unsaved is true if the store lacks a change.
	unsaved bool
	stored  map[scheduleKey]hearth.ScheduleState
}

type scheduleKey struct{ function, name string }

// schedule is one that is configured.
type schedule struct {
	key scheduleKey
	cfg hearth.Schedule
	times
	state hearth.ScheduleState
	since time.Time // when it became known
	next  time.Time // when it is to be looked at; zero is never
	tried time.Time // a time that came in time and whose call could not be stored
	at    int       // in the heap; -1 outside
}

type scheduleHeap []*schedule

func (h scheduleHeap) Len() int           { return len(h) }
func (h scheduleHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h scheduleHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

// Push implements heap.Interface.
func (h *scheduleHeap) Push(v any) { e := v.(*schedule); e.at = len(*h); *h = append(*h, e) }

// Pop implements heap.Interface.
func (h *scheduleHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h, e.at = old[:len(old)-1], -1
	return e
}

func newSchedules(q *Queue) *schedules {
	return &schedules{
		q: q, wake: make(chan struct{}, 1), all: map[scheduleKey]*schedule{}, behind: map[string]map[string]*schedule{},
		check: map[string]bool{}, stored: map[scheduleKey]hearth.ScheduleState{},
	}
}

// wallClock is the time without the monotonic clock, which does not notice that the
// clock was set.
func wallClock() time.Time { return time.Now().Round(0).UTC() }

// SetSchedules makes these the schedules of all functions. One that is new or has
// other times is not called for the time before. What it cannot store it tries again.
func (q *Queue) SetSchedules(list []hearth.FunctionSchedules) {
	s := q.schedules
	now := wallClock()
	s.mu.Lock()
	old, functions := s.all, map[string]bool{}
	s.all, s.due, s.unknown = map[scheduleKey]*schedule{}, nil, map[string]bool{}
	clear(s.behind)
	for _, f := range list {
		functions[f.Function] = true
		if f.Unknown {
			s.unknown[f.Function] = true
		}
		for name, cfg := range f.Schedules {
			key := scheduleKey{f.Function, name}
			o := old[key]
			e := &schedule{key: key, cfg: cfg.WithDefaults(), since: now, at: -1}
			if o != nil && o.cfg.Cron == cfg.Cron && o.cfg.At == cfg.At && o.cfg.TimeZone == e.cfg.TimeZone {
				e.times = o.times
			} else {
				var err error
				if e.times, err = parseTimes(cfg); err != nil { // it was refused, unless an older Hearth deployed it
					q.cfg.Logger.Error("a schedule cannot be kept", "function", f.Function, "schedule", name, "err", err)
					continue
				}
			}
			if o != nil && o.spec == e.spec {
				e.since, e.state, e.tried = o.since, o.state, o.tried
			}
			s.all[key] = e
		}
	}
	for key, st := range s.stored {
		if !functions[key.function] {
			st.Spec, st.Paused = "", false // nothing of it is kept
			s.stored[key] = st
		}
	}
	s.unsaved = true
	started := s.started
	s.mu.Unlock()
	if !started {
		return
	}
	// If work is under way, the loop does it after that: a deploy does not wait for it.
	if s.work.TryLock() {
		s.save()
		s.work.Unlock()
	}
	s.wakeUp()
}

// start reads what is stored. SetSchedules has been called.
func (s *schedules) start(ctx context.Context) error {
	list, err := s.q.cfg.Store.Schedules(ctx, "")
	if err != nil {
		return err
	}
	s.work.Lock()
	defer s.work.Unlock()
	s.mu.Lock()
	functions := map[string]bool{}
	for key := range s.all {
		functions[key.function] = true
	}
	for _, st := range list {
		key := scheduleKey{st.Function, st.Name}
		if !functions[st.Function] {
			if _, err := s.q.runner.AsyncConfig(st.Function); hearth.ErrorCode(err) == hearth.CodeNotFound {
				st.Spec, st.Paused = "", false
			}
		}
		s.stored[key] = st
	}
	s.started, s.unsaved = true, true
	s.mu.Unlock()
	s.checkClock()
	s.save()
	s.q.wg.Go(s.loop)
	return nil
}

func (s *schedules) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// checkClock lets those schedules begin anew that would be silent for long because the
// clock was set back. Times until the mark have been dealt with: they are not missed when
// the clock leaps forward again. s.work is held.
func (s *schedules) checkClock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	if !s.clockAt.IsZero() && now.Sub(s.clockAt).Abs() < lookAgain {
		return
	}
	s.clockAt = now
	for key, st := range s.stored {
		if st.Spec == "" || st.Done.Sub(now) <= maxAhead {
			continue
		}
		s.q.cfg.Logger.Warn("the clock was set back: the schedule begins anew",
			"function", key.function, "schedule", key.name, "was_at", st.Done, "now", now)
		if st.Done.After(st.Mark) {
			st.Mark = st.Done
		}
		st.Spec, st.Done = specReset, now
		s.stored[key] = st
		if e := s.all[key]; e != nil {
			e.since = now
		}
		s.unsaved = true
	}
}

// specReset is that of a schedule that is to begin anew, until this is stored.
const specReset = "reset"

// save brings what is stored to what is configured, and tells whether it could.
// s.work is held.
func (s *schedules) save() bool {
	s.mu.Lock()
	var set, gone []hearth.ScheduleState
	for key, e := range s.all {
		st, ok := s.stored[key]
		if !ok || st.Spec != e.spec {
			st = hearth.ScheduleState{Function: key.function, Name: key.name, Spec: e.spec, Done: e.since, Mark: st.Mark, Paused: st.Paused, Last: st.Last, Skipped: st.Skipped}
			set = append(set, st)
		}
		e.state = st
		s.placeLocked(e)
	}
	for key, st := range s.stored {
		if s.all[key] == nil && !s.unknown[key.function] && (st.Spec != "" || !st.Paused) {
			gone = append(gone, st)
		}
	}
	s.mu.Unlock()
	if len(set) > 0 || len(gone) > 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.q.ctx), 10*time.Second)
		defer cancel()
		if err := s.q.cfg.Store.SetSchedules(ctx, set, gone); err != nil {
			s.q.cfg.Logger.Error("storing schedules", "err", err)
			return false // the loop tries again
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range gone {
		delete(s.stored, scheduleKey{st.Function, st.Name})
		if st.Paused && st.Spec != "" {
			st.Spec = ""
			s.stored[scheduleKey{st.Function, st.Name}] = st
		}
	}
	for _, st := range set {
		s.stored[scheduleKey{st.Function, st.Name}] = st
	}
	s.unsaved = false
	return true
}

// placeLocked puts a schedule where it is looked at.
func (s *schedules) placeLocked(e *schedule) {
	if e.at >= 0 {
		heap.Remove(&s.due, e.at)
	}
	e.next = time.Time{}
	if !e.state.Paused {
		e.next = e.after(e.state.Done)
	}
	if !e.next.IsZero() {
		heap.Push(&s.due, e)
	}
	function := e.key.function
	switch {
	case e.state.Waiting.IsZero():
		if delete(s.behind[function], e.key.name); len(s.behind[function]) == 0 {
			delete(s.behind, function)
		}
	case s.behind[function][e.key.name] != e:
		if s.behind[function] == nil {
			s.behind[function] = map[string]*schedule{}
		}
		s.behind[function][e.key.name] = e
		// What it waits for may have ended before this was noted.
		s.check[function] = true
		s.wakeUp()
	}
}

// ended is told that a call of a function has ended. q.mu is held.
func (s *schedules) ended(function string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.behind[function] != nil {
		s.check[function] = true
		s.wakeUp()
	}
}

func (s *schedules) find(function, name string) (*schedule, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.all[scheduleKey{function, name}]
	if e == nil {
		return nil, hearth.Errorf(hearth.CodeNotFound, "function %s has no schedule %q", function, clip(name)).
			WithHint("hearth schedules %s shows them", function)
	}
	return e, nil
}

// RunSchedule makes the call of a schedule now, whatever else runs and even if it is
// paused; its times stay as they are. If the same was asked for before under the key,
// which may be empty, no other is made. Errors: CodeNotFound, CodeExhausted.
func (q *Queue) RunSchedule(_ context.Context, function, name, key string) (hearth.ScheduleStatus, error) {
	if err := checkKey(key); err != nil {
		return hearth.ScheduleStatus{}, err
	}
	return q.schedules.change(function, name, func(e *schedule) (hearth.ScheduleState, error) {
		now := wallClock()
		return q.schedules.fire(e, hearth.ScheduleState{}, hearth.ScheduleFiring{Due: now.Truncate(time.Microsecond), Manual: true, Key: key}, now)
	})
}

// PauseSchedule pauses or resumes a schedule. Times that pass while it is paused are
// not made up for. Errors: CodeNotFound.
func (q *Queue) PauseSchedule(ctx context.Context, function, name string, paused bool) (hearth.ScheduleStatus, error) {
	return q.schedules.change(function, name, func(*schedule) (hearth.ScheduleState, error) {
		return q.cfg.Store.PauseSchedule(ctx, function, name, paused, wallClock())
	})
}

func (s *schedules) change(function, name string, change func(e *schedule) (hearth.ScheduleState, error)) (st hearth.ScheduleStatus, err error) {
	s.work.Lock()
	defer s.work.Unlock()
	e, err := s.find(function, name)
	if err != nil {
		return st, err
	}
	s.mu.Lock()
	unsaved := s.unsaved
	s.mu.Unlock()
	if unsaved && !s.save() {
		return st, hearth.Errorf(hearth.CodeUnavailable, "the schedules could not be stored").WithHint("try again in a moment")
	}
	state, err := change(e)
	if err != nil {
		return st, err
	}
	s.mu.Lock()
	s.keepLocked(e, state)
	s.mu.Unlock()
	s.wakeUp()
	return e.status(state, wallClock()), nil
}

// Schedules returns the schedules of a function or, if it is empty, of all, sorted by
// function and name.
func (q *Queue) Schedules(ctx context.Context, function string) ([]hearth.ScheduleStatus, error) {
	states, err := q.cfg.Store.Schedules(ctx, function)
	if err != nil {
		return nil, err
	}
	stored := map[scheduleKey]hearth.ScheduleState{}
	for _, st := range states {
		stored[scheduleKey{st.Function, st.Name}] = st
	}
	s, now := q.schedules, wallClock()
	s.mu.Lock()
	list := []*schedule{}
	for _, e := range s.all {
		if function == "" || e.key.function == function {
			list = append(list, e)
		}
	}
	s.mu.Unlock()
	out := make([]hearth.ScheduleStatus, len(list))
	for i, e := range list {
		out[i] = e.status(stored[e.key], now)
	}
	slices.SortFunc(out, func(a, b hearth.ScheduleStatus) int {
		if c := strings.Compare(a.Function, b.Function); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

// status reads what does not change in e only.
func (e *schedule) status(st hearth.ScheduleState, now time.Time) hearth.ScheduleStatus {
	out := hearth.ScheduleStatus{Function: e.key.function, Name: e.key.name, Schedule: e.cfg, Paused: st.Paused, Next: []time.Time{}, Waiting: st.Waiting}
	if !st.Paused {
		out.Next = e.times.next(st.Done, now, nextTimes)
	}
	if !st.Last.Due.IsZero() {
		out.Last = &st.Last
	}
	if !st.Skipped.Due.IsZero() {
		out.Skipped = &st.Skipped
	}
	return out
}
