package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

const (
	// maxPath and maxMessage bound what callers and functions can make us
	// keep; longer texts are cut, in bytes.
	maxPath    = 2 << 10
	maxMessage = 4 << 10
	// pruneBatch rows are deleted in one transaction, so that records can be
	// appended in between.
	pruneBatch = 2000
)

const invocationColumns = `id, function, version, kind, method, path, status, error_code, error_message,
	cold, started_at, queue_ns, start_ns, init_ns, run_ns, bytes_in, bytes_out, cold_reason, cached, instance, trace_id, span_id, parent_id, route_ns`

// AppendInvocations stores records, all or none. A record whose ID is stored
// already is skipped, so a failed call may be repeated. Path and ErrorMessage
// are cut to 2 KiB and 4 KiB. See the package comment for what a crash can lose.
func (s *Store) AppendInvocations(ctx context.Context, records []hearth.Invocation) error {
	if len(records) == 0 {
		return nil
	}
	return s.invocations.update(ctx, "store invocation records", func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO invocations (`+invocationColumns+`)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`)
		if err != nil {
			return err
		}
		defer func() { _ = stmt.Close() }()
		for i := range records {
			r := &records[i]
			_, err := stmt.ExecContext(ctx, r.ID, r.Function, r.Version, string(r.Kind), r.Method, cut(r.Path, maxPath),
				r.Status, string(r.ErrorCode), cut(r.ErrorMessage, maxMessage), r.Cold, r.StartedAt.UnixMicro(),
				int64(r.Timings.Queue), int64(r.Timings.Start), int64(r.Timings.Init), int64(r.Timings.Run), r.BytesIn, r.BytesOut, string(r.ColdReason), r.Cached, r.Instance,
				idColumn(r.TraceID[:]), idColumn(r.SpanID[:]), idColumn(r.ParentID[:]), int64(r.Timings.Route))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Invocation returns the record of one call. Errors: CodeNotFound.
func (s *Store) Invocation(ctx context.Context, id string) (hearth.Invocation, error) {
	r, err := scanInvocation(s.invocations.read.QueryRowContext(ctx, `SELECT `+invocationColumns+` FROM invocations WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return hearth.Invocation{}, hearth.Errorf(hearth.CodeNotFound, "there is no record of invocation %q", cut(id, 80)).
			WithHint("records are kept for a limited time, and under heavy load not every successful call gets one")
	}
	return r, dbError(ctx, err, "read an invocation record")
}

// Invocations returns records, newest first by ID (IDs sort by time), at most
// limit of them (1 to 1000; 0 means 1000), those before the given ID only
// unless it is empty. An empty function means all; otherwise the records are
// those of the function that has the name now, not of a deleted one that had
// it earlier. Errors: CodeNotFound if there is no such function.
func (s *Store) Invocations(ctx context.Context, function string, before string, limit int) ([]hearth.Invocation, error) {
	query := `SELECT ` + invocationColumns + ` FROM invocations WHERE (?1 = '' OR id < ?1)`
	args := []any{before}
	if function != "" {
		// Version numbers are not used again, so the first one of the present
		// function tells its records from those of its predecessors, even when
		// they were written after the delete.
		var first int
		err := s.catalog.read.QueryRowContext(ctx, `SELECT first FROM functions WHERE name = ?`, function).Scan(&first)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, noFunction(function)
		} else if err != nil {
			return nil, dbError(ctx, err, "read a function")
		}
		query += ` AND function = ?3 AND version >= ?4`
		args = append(args, page(limit), function, first)
	} else {
		args = append(args, page(limit))
	}
	rows, err := s.invocations.read.QueryContext(ctx, query+` ORDER BY id DESC LIMIT ?2`, args...)
	return collect(ctx, rows, err, "list invocation records", scanInvocation)
}

// PruneInvocations deletes the records of calls that started before olderThan
// and, if keep is greater than 0, all but the newest keep of the rest. It
// returns how many it deleted, also beside an error.
func (s *Store) PruneInvocations(ctx context.Context, olderThan time.Time, keep int) (int64, error) {
	n, err := s.pruneWhere(ctx, `started_at < ?`, olderThan.UnixMicro())
	if err != nil || keep <= 0 {
		return n, err
	}
	var oldest string
	err = s.invocations.read.QueryRowContext(ctx, `SELECT id FROM invocations ORDER BY id DESC LIMIT 1 OFFSET ?`, keep-1).Scan(&oldest)
	if errors.Is(err, sql.ErrNoRows) {
		return n, nil
	} else if err != nil {
		return n, dbError(ctx, err, "count invocation records")
	}
	m, err := s.pruneWhere(ctx, `id < ?`, oldest)
	return n + m, err
}

// deleteInvocations removes a deleted function's records.
func (s *Store) deleteInvocations(ctx context.Context, function string) error {
	// A function made anew meanwhile keeps its own.
	var last int64
	err := s.catalog.read.QueryRowContext(ctx, `SELECT COALESCE((SELECT first - 1 FROM functions WHERE name = ?1),
		(SELECT last FROM counters WHERE function = ?1), 0)`, function).Scan(&last)
	if err != nil {
		return dbError(ctx, err, "read a counter")
	}
	_, err = s.pruneWhere(ctx, `function = ? AND version <= ?`, function, last)
	return err
}

// pruneWhere deletes in batches, so that writers of records get their turn.
func (s *Store) pruneWhere(ctx context.Context, where string, args ...any) (total int64, err error) {
	query := `DELETE FROM invocations WHERE id IN (SELECT id FROM invocations WHERE ` + where + ` LIMIT ?)`
	args = append(args, pruneBatch)
	for {
		res, err := s.invocations.write.ExecContext(ctx, query, args...)
		if err != nil {
			return total, dbError(ctx, err, "delete invocation records")
		}
		n, err := res.RowsAffected()
		if err != nil {
			return total, dbError(ctx, err, "delete invocation records")
		}
		if total += n; n < pruneBatch {
			return total, nil
		}
	}
}

func scanInvocation(row row) (r hearth.Invocation, err error) {
	var started int64
	err = row.Scan(&r.ID, &r.Function, &r.Version, &r.Kind, &r.Method, &r.Path, &r.Status, &r.ErrorCode, &r.ErrorMessage,
		&r.Cold, &started, &r.Timings.Queue, &r.Timings.Start, &r.Timings.Init, &r.Timings.Run, &r.BytesIn, &r.BytesOut, &r.ColdReason, &r.Cached, &r.Instance,
		idColumn(r.TraceID[:]), idColumn(r.SpanID[:]), idColumn(r.ParentID[:]), &r.Timings.Route)
	r.StartedAt = fromMicros(started)
	return r, err
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
