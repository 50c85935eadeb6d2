package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/hearthrun/hearth"
)

// What a schedule has done is stored beside the calls, so that a call and the mark
// that it was made are one transaction: a crash neither loses nor doubles it.

const selectSchedule = `SELECT s.function, s.name, s.spec, s.done, s.mark, s.waiting, s.paused, s.last_due, s.last_at, s.last_call, s.skipped_due, s.skipped_why,
	COALESCE((SELECT state FROM calls WHERE id = s.last_call), -1) FROM schedules s`

func scanSchedule(r row) (s hearth.ScheduleState, err error) {
	var done, mark, waiting, due, at, skipped int64
	var state int
	err = r.Scan(&s.Function, &s.Name, &s.Spec, &done, &mark, &waiting, &s.Paused, &due, &at, &s.Last.Invocation, &skipped, &s.Skipped.Reason, &state)
	for _, t := range []struct {
		to *time.Time
		us int64
	}{{&s.Done, done}, {&s.Mark, mark}, {&s.Waiting, waiting}, {&s.Last.Due, due}, {&s.Last.At, at}, {&s.Skipped.Due, skipped}} {
		if t.us != 0 {
			*t.to = fromMicros(t.us)
		}
	}
	if state >= 0 && state < len(states) {
		s.Last.State = states[state]
	}
	return s, err
}

// toMicros is the opposite of fromMicros, with 0 for the zero time.
func toMicros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Schedules returns what is stored of the schedules of a function or, if it is empty,
// of all, sorted by function and name.
func (q *Queue) Schedules(ctx context.Context, function string) ([]hearth.ScheduleState, error) {
	rows, err := q.db.read.QueryContext(ctx, selectSchedule+` WHERE ?1 = '' OR s.function = ?1 ORDER BY s.function, s.name`, function)
	return collect(ctx, rows, err, "list schedules", scanSchedule)
}

// SetSchedules stores which schedules there are: set are those that are new or have
// another Spec, of which Function, Name, Spec, Done and Mark are taken; gone are those that
// are not configured any more. One that is paused is kept, as it is to be paused when
// it comes back, unless its Spec in gone is empty: then its function was deleted.
func (q *Queue) SetSchedules(ctx context.Context, set, gone []hearth.ScheduleState) error {
	return q.w.do(ctx, "store schedules", func(tx *queueTx) error {
		for _, s := range gone {
			if _, err := tx.exec(`DELETE FROM schedules WHERE function = ? AND name = ? AND (paused = 0 OR ? = '')`, s.Function, s.Name, s.Spec); err != nil {
				return err
			}
			if _, err := tx.exec(`UPDATE schedules SET spec = '', waiting = 0 WHERE function = ? AND name = ?`, s.Function, s.Name); err != nil {
				return err
			}
		}
		for _, s := range set {
			_, err := tx.exec(`INSERT INTO schedules (function, name, spec, done, mark) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (function, name) DO UPDATE SET spec = excluded.spec, done = excluded.done, mark = excluded.mark, waiting = 0`,
				s.Function, s.Name, s.Spec, toMicros(s.Done), toMicros(s.Mark))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// PauseSchedule pauses or resumes a schedule. Its times until done count as dealt
// with when it is resumed. Errors: CodeNotFound.
func (q *Queue) PauseSchedule(ctx context.Context, function, name string, paused bool, done time.Time) (s hearth.ScheduleState, err error) {
	err = q.w.do(ctx, "pause a schedule", func(tx *queueTx) error {
		_, err := tx.exec(`UPDATE schedules SET done = CASE WHEN paused > ?1 THEN MAX(done, ?2) ELSE done END, waiting = CASE WHEN ?1 THEN 0 ELSE waiting END, paused = ?1
			WHERE function = ?3 AND name = ?4`, paused, toMicros(done), function, name)
		if err != nil {
			return err
		}
		s, err = scanSchedule(tx.row(selectSchedule+` WHERE s.function = ? AND s.name = ?`, function, name))
		return noSchedule(err, function, name)
	})
	return s, err
}

func noSchedule(err error, function, name string) error {
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return hearth.Errorf(hearth.CodeNotFound, "function %s has no schedule %q", function, cut(name, 80)).
		WithHint("hearth schedules %s shows them", function)
}

// What is stored of a time at which the call before had not ended, by what overlap says.
const (
	overlaps = "the call before had not ended (overlap: skip)"
	waits    = "the call before had not ended, and another waited for that (overlap: queue)"
)

// FireSchedule deals with a time of a schedule: it stores the call, or that there is
// none, with the mark that it has. Nothing happens if that was done before, or the
// schedule has been changed or paused meanwhile. It returns how the schedule is then;
// accepted tells whether the call was stored. Errors: CodeExhausted if there is no
// room for it; CodeNotFound.
func (q *Queue) FireSchedule(ctx context.Context, f hearth.ScheduleFiring) (s hearth.ScheduleState, accepted bool, err error) {
	err = q.w.do(ctx, "store the call of a schedule", func(tx *queueTx) error {
		accepted = false
		var err error
		if s, err = scanSchedule(tx.row(selectSchedule+` WHERE s.function = ? AND s.name = ?`, f.Function, f.Name)); err != nil {
			return noSchedule(err, f.Function, f.Name)
		}
		switch {
		case f.Manual:
		case s.Spec != f.Spec, s.Paused, f.Waiting && !s.Waiting.Equal(f.Due), !f.Waiting && !s.Done.Before(f.Due):
			return nil
		}
		next := s
		if !f.Manual && !f.Waiting {
			next.Done = f.Due
		}
		why := f.Skip
		if why == "" && !f.Manual && f.Overlap != hearth.OverlapAllow {
			switch busy, err := q.scheduleBusy(tx, f); {
			case err != nil:
				return err
			case busy && f.Waiting:
				return nil
			case busy && f.Overlap == hearth.OverlapQueue && s.Waiting.IsZero():
				next.Waiting = f.Due
				s = next
				return updateSchedule(tx, s)
			case busy, !f.Waiting && !s.Waiting.IsZero():
				why = overlaps
				if f.Overlap == hearth.OverlapQueue {
					why = waits
				}
			}
		}
		if f.Waiting {
			next.Waiting = time.Time{}
		}
		if why != "" {
			next.Skipped = hearth.ScheduleSkip{Due: f.Due, Reason: cut(why, maxMessage)}
			s = next
			return updateSchedule(tx, s)
		}
		call, err := q.deduplicate(tx, f.Entry)
		if err != nil {
			return err
		}
		if call.ID == "" {
			if err := q.room(tx, f.Entry.Payer, 1, f.Entry.Bytes, shareCalls); err != nil {
				return err
			}
			if err := q.insert(tx, f.Entry); err != nil {
				return err
			}
			call, accepted = f.Entry.AsyncCall, true
		}
		next.Last = hearth.ScheduleLast{Due: f.Due, At: call.AcceptedAt, Invocation: call.ID, State: call.State}
		s = next
		return updateSchedule(tx, s)
	})
	return s, accepted && err == nil, err
}

// scheduleBusy tells whether a call of the schedule has not ended.
func (q *Queue) scheduleBusy(tx *queueTx, f hearth.ScheduleFiring) (busy bool, err error) {
	// All keys that begin with that of the schedule; 0 follows the slash.
	from := hearth.ScheduleKey(f.Function, f.Name, "")
	to := from[:len(from)-1] + "0"
	err = tx.row(`SELECT EXISTS (SELECT 1 FROM calls WHERE function = ? AND dedup >= ? AND dedup < ? AND dedup IS NOT NULL AND state < 2)`, f.Function, from, to).Scan(&busy)
	return busy, err
}

func updateSchedule(tx *queueTx, s hearth.ScheduleState) error {
	_, err := tx.exec(`UPDATE schedules SET done = ?, waiting = ?, last_due = ?, last_at = ?, last_call = ?, skipped_due = ?, skipped_why = ? WHERE function = ? AND name = ?`,
		toMicros(s.Done), toMicros(s.Waiting), toMicros(s.Last.Due), toMicros(s.Last.At), s.Last.Invocation,
		toMicros(s.Skipped.Due), s.Skipped.Reason, s.Function, s.Name)
	return err
}
