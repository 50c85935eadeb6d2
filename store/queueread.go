package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

const selectCall = `SELECT id, function, target, kind, state, accepted_at, due_at, expires_at, finished_at, attempts, redriven, failures, dedup, source, depth, payer, budget, bytes, trace_id, span_id, parent_id, sampled, tracestate FROM calls`

func scanCall(r row) (c hearth.AsyncCall, err error) {
	var state int
	var accepted, due, expires int64
	var finished sql.NullInt64
	var failures string
	var dedup sql.NullString
	err = r.Scan(&c.ID, &c.Function, &c.Target, &c.Kind, &state, &accepted, &due, &expires, &finished, &c.Attempts, &c.Redriven, &failures, &dedup, &c.Source, &c.Depth, &c.Payer, &c.Budget, &c.Bytes,
		idColumn(c.TraceID[:]), idColumn(c.SpanID[:]), idColumn(c.ParentID[:]), &c.Sampled, &c.Tracestate)
	if err != nil {
		return hearth.AsyncCall{}, err
	}
	if state < 0 || state >= len(states) {
		return hearth.AsyncCall{}, fmt.Errorf("call %s has the state %d", c.ID, state)
	}
	c.State = states[state]
	c.DeduplicationKey, _, _ = strings.Cut(dedup.String, keyScope)
	c.AcceptedAt, c.DueAt, c.ExpiresAt = fromMicros(accepted), fromMicros(due), fromMicros(expires)
	if finished.Valid {
		c.FinishedAt = fromMicros(finished.Int64)
	}
	if failures != "" {
		if err := json.Unmarshal([]byte(failures), &c.Failures); err != nil {
			return c, fmt.Errorf("failures of call %s: %w", c.ID, err)
		}
	}
	return c, nil
}

func noCall(err error, id string) error {
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return hearth.Errorf(hearth.CodeNotFound, "there is no asynchronous call %q", cut(id, 80)).
		WithHint("calls are kept for a limited time after they ended; hearth queue list NAME shows those of a function")
}

// Call returns a call with its result, if it has one. Errors: CodeNotFound.
func (q *Queue) Call(ctx context.Context, id string) (c hearth.AsyncCall, err error) {
	err = q.db.view(ctx, "read a call", func(tx *sql.Tx) error {
		var err error
		if c, err = scanCall(tx.QueryRowContext(ctx, selectCall+` WHERE id = ?`, id)); err != nil {
			return noCall(err, id)
		}
		var res hearth.AsyncResult
		var headers string
		err = tx.QueryRowContext(ctx, `SELECT c.status, c.cut, r.headers, r.body FROM calls c JOIN results r ON r.seq = c.seq WHERE c.id = ?`, id).
			Scan(&res.Status, &res.Cut, &headers, &res.Body)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}
		c.Result = &res
		return json.Unmarshal([]byte(headers), &res.Headers)
	})
	return c, err
}

// Calls returns calls of a function, newest first, at most limit of them (1 to 1000;
// 0 means 1000), those before the given id only unless it is empty, and those in
// one state only unless that is empty. They have no results.
func (q *Queue) Calls(ctx context.Context, function string, state hearth.AsyncState, before string, limit int) ([]hearth.AsyncCall, error) {
	query := selectCall + ` WHERE function = ?1 AND (?2 = '' OR seq < (SELECT seq FROM calls WHERE id = ?2))`
	args := []any{function, before, page(limit)}
	if state != "" {
		query += ` AND state = ?4`
		args = append(args, stateOf(state))
	}
	rows, err := q.db.read.QueryContext(ctx, query+` ORDER BY seq DESC LIMIT ?3`, args...)
	return collect(ctx, rows, err, "list calls", scanCall)
}

// Waiting returns the calls of a lane that wait, in their turn: by when they are due.
// They have no more than an id, that time, their size and their attempts.
func (q *Queue) Waiting(ctx context.Context, lane string, limit int) ([]hearth.AsyncCall, error) {
	rows, err := q.db.read.QueryContext(ctx, `SELECT id, due_at, bytes, attempts FROM calls WHERE lane = ? AND state = 0 AND state < 2 ORDER BY due_at, seq LIMIT ?`, lane, limit)
	return collect(ctx, rows, err, "list waiting calls", func(r row) (c hearth.AsyncCall, err error) {
		var due int64
		err = r.Scan(&c.ID, &due, &c.Bytes, &c.Attempts)
		c.DueAt = fromMicros(due)
		return c, err
	})
}

// Lanes returns the lanes in which calls wait.
func (q *Queue) Lanes(ctx context.Context) ([]string, error) {
	// From one to the next, rather than over all calls.
	rows, err := q.db.read.QueryContext(ctx, `WITH RECURSIVE l(lane) AS (
		SELECT MIN(lane) FROM calls WHERE state < 2
		UNION ALL SELECT (SELECT MIN(lane) FROM calls WHERE state < 2 AND lane > l.lane) FROM l WHERE l.lane IS NOT NULL
		) SELECT lane FROM l WHERE lane IS NOT NULL`)
	return collect(ctx, rows, err, "list lanes", scanString)
}

// Functions returns the functions that have calls.
func (q *Queue) Functions(ctx context.Context) ([]string, error) {
	rows, err := q.db.read.QueryContext(ctx, `SELECT DISTINCT function FROM totals WHERE calls > 0 AND function <> ''`)
	return collect(ctx, rows, err, "list queues", scanString)
}

// Status counts what is stored, of one function or, if it is empty, of all.
func (q *Queue) Status(ctx context.Context, function string, now time.Time) (hearth.QueueStatus, error) {
	st := hearth.QueueStatus{Time: now, MaxCalls: q.limits.Calls, MaxBytes: q.limits.Bytes, Functions: []hearth.FunctionQueue{}}
	err := q.db.view(ctx, "count calls", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT function, state, calls, bytes FROM totals WHERE calls > 0 ORDER BY function`)
		type total struct {
			function     string
			state        int
			calls, bytes int64
		}
		totals, err := collect(ctx, rows, err, "count calls", func(r row) (t total, err error) {
			return t, r.Scan(&t.function, &t.state, &t.calls, &t.bytes)
		})
		if err != nil {
			return err
		}
		for _, t := range totals {
			st.Calls += t.calls
			st.Bytes += t.bytes
			if t.function == "" || function != "" && t.function != function {
				continue
			}
			if n := len(st.Functions); n == 0 || st.Functions[n-1].Function != t.function {
				st.Functions = append(st.Functions, hearth.FunctionQueue{Function: t.function})
			}
			f := &st.Functions[len(st.Functions)-1]
			f.Bytes += t.bytes
			*[]*int64{&f.Queued, &f.Running, &f.Succeeded, &f.Dead, &f.Canceled}[t.state] = t.calls
		}
		for i := range st.Functions {
			f := &st.Functions[i]
			if f.Queued == 0 {
				continue
			}
			var oldest sql.NullInt64
			err := tx.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM calls WHERE lane IN (?1, ?2) AND state < 2 AND state = 0 AND due_at > ?3),
				(SELECT MIN(due_at) FROM calls WHERE lane IN (?1, ?2) AND state < 2 AND state = 0)`,
				f.Function, hearth.WebhookLane(f.Function), now.UnixMicro()).Scan(&f.Delayed, &oldest)
			if err != nil {
				return err
			}
			if oldest.Valid {
				f.OldestDue = fromMicros(oldest.Int64)
			}
		}
		return nil
	})
	return st, err
}
