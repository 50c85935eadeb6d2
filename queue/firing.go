package queue

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// This file is about schedules whose time has come.

// loop deals with times as they come.
func (s *schedules) loop() {
	timer := time.NewTimer(lookAgain)
	defer timer.Stop()
	for {
		timer.Reset(s.look())
		select {
		case <-timer.C:
		case <-s.wake:
		case <-s.q.ctx.Done():
			return
		}
	}
}

// look deals with all that is due and returns for how long to sleep.
func (s *schedules) look() time.Duration {
	s.work.Lock()
	if s.q.stopped() {
		s.work.Unlock()
		return lookAgain // what is due is missed, and the next start sees to it
	}
	s.checkClock()
	s.mu.Lock()
	unsaved := s.unsaved
	s.mu.Unlock()
	saved := !unsaved || s.save()
	s.work.Unlock()
	if !saved {
		return scheduleRetry
	}
	now := wallClock()
	s.mu.Lock()
	var list []*schedule
	for len(s.due) > 0 && !s.due[0].next.After(now) {
		list = append(list, heap.Pop(&s.due).(*schedule))
	}
	for function := range s.check {
		for _, e := range s.behind[function] {
			if e.next.IsZero() || e.next.After(now) { // else it is in the list
				list = append(list, e)
			}
		}
	}
	clear(s.check)
	s.mu.Unlock()
	for portion := range slices.Chunk(list, maxFiring) {
		if s.q.stopped() {
			return lookAgain
		}
		s.bringAll(portion, now)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) > 0 {
		return max(0, min(s.due[0].next.Sub(wallClock()), lookAgain))
	}
	return lookAgain
}

// bringAll deals with the times of some schedules until now. Those that are not what is
// configured any more have others in their places.
func (s *schedules) bringAll(list []*schedule, now time.Time) {
	s.work.Lock()
	defer s.work.Unlock()
	var wg sync.WaitGroup
	for _, e := range list {
		s.mu.Lock()
		current := s.all[e.key] == e
		s.mu.Unlock()
		if current {
			wg.Go(func() { s.bring(e, now) })
		}
	}
	wg.Wait()
}

// bring deals with the times of a schedule until now. s.work is held.
func (s *schedules) bring(e *schedule, now time.Time) {
	s.mu.Lock()
	state, tried := e.state, e.tried
	s.mu.Unlock()
	var err error
	if !state.Waiting.IsZero() {
		state, err = s.fire(e, state, hearth.ScheduleFiring{Due: state.Waiting, Waiting: true}, now)
	}
	late := func(t time.Time) bool { return now.Sub(t) > onTime && !t.Equal(tried) }
	list := e.between(state.Done, now, hearth.MaxMissed)
	known := 0
	for known < len(list) && late(list[known]) && !list[known].After(state.Mark) {
		known++
	}
	if known > 0 && err == nil {
		state, err = s.fire(e, state, hearth.ScheduleFiring{Due: list[known-1], Skip: "it was dealt with before the clock was set back"}, now)
	}
	list = list[known:]
	switch {
	case len(list) == 0:
	case e.cfg.Missed == hearth.MissedOnce:
		list = list[len(list)-1:]
	case e.cfg.Missed == hearth.MissedSkip:
		// Of those that were missed the latest is noted, which is for all before.
		for len(list) > 1 && late(list[0]) && late(list[1]) {
			list = list[1:]
		}
	}
	for _, due := range list {
		if err != nil {
			break
		}
		f := hearth.ScheduleFiring{Due: due}
		if e.cfg.Missed == hearth.MissedSkip && late(due) {
			f.Skip = fmt.Sprintf("it was missed: Hearth came to it %s late", hearth.Duration(now.Sub(due).Round(time.Second)))
		}
		if state, err = s.fire(e, state, f, now); err != nil && !late(due) {
			tried = due
		}
	}
	if err != nil && s.q.ctx.Err() == nil {
		s.q.cfg.Logger.Warn("the call of a schedule could not be stored; it is tried again", "function", e.key.function, "schedule", e.key.name, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.tried = tried
	s.keepLocked(e, state)
	if err != nil && s.all[e.key] == e {
		if e.at >= 0 {
			heap.Remove(&s.due, e.at)
		}
		e.next = now.Add(scheduleRetry)
		heap.Push(&s.due, e)
	}
}

// keepLocked takes what is stored of a schedule, which may have got another one in its
// place meanwhile.
func (s *schedules) keepLocked(e *schedule, state hearth.ScheduleState) {
	s.stored[e.key] = state
	if now := s.all[e.key]; now != nil && now.spec == state.Spec {
		now.state = state
		s.placeLocked(now)
	}
}

// fire stores the call for a time of a schedule.
func (s *schedules) fire(e *schedule, state hearth.ScheduleState, f hearth.ScheduleFiring, now time.Time) (hearth.ScheduleState, error) {
	f.Function, f.Name, f.Spec, f.Overlap = e.key.function, e.key.name, e.spec, e.cfg.Overlap
	if f.Skip == "" {
		var err error
		if f.Entry, err = s.entry(e, f, now); hearth.ErrorCode(err) == hearth.CodeNotFound && !f.Manual {
			f.Skip = hearth.AsError(err).Message
		} else if err != nil {
			return state, err
		}
	}
	ctx, cancel := context.WithTimeout(s.q.ctx, fireTimeout)
	defer cancel()
	began := time.Now()
	next, accepted, err := s.q.cfg.Store.FireSchedule(ctx, f)
	if err != nil {
		return state, err
	}
	if accepted {
		s.q.accepted(f.Entry.AsyncCall, time.Since(began))
		s.q.mu.Lock()
		s.q.addLocked(f.Entry.AsyncCall)
		s.q.mu.Unlock()
	}
	return next, nil
}

// entry makes the call for a time of a schedule.
func (s *schedules) entry(e *schedule, f hearth.ScheduleFiring, now time.Time) (hearth.AsyncEntry, error) {
	target := e.key.function
	if e.cfg.Alias != hearth.Live {
		target += "@" + e.cfg.Alias
	}
	cfg, err := s.q.runner.AsyncConfig(target)
	if err != nil {
		return hearth.AsyncEntry{}, err
	}
	id := NewID()
	event := e.cfg.Event
	if event == nil {
		event = hearth.NewScheduleEvent(id, e.key.function, e.key.name, f.Due, f.Manual)
	}
	body, err := json.Marshal(event)
	if err != nil {
		return hearth.AsyncEntry{}, err
	}
	entry := entry(id, e.key.function, target, hearth.KindEvent, now, now, cfg.AsyncOrDefault().MaxAge, hearth.AsyncPayload{Body: body})
	of := f.Due.UTC().Format(time.RFC3339)
	if f.Manual {
		of = "run/" + cmp.Or(f.Key, id)
	}
	entry.Trace = s.q.runner.NewTrace()
	entry.DeduplicationKey = hearth.ScheduleKey(e.key.function, e.key.name, of)
	return entry, nil
}
