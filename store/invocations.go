package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

const (
	// maxMethod, maxPath and maxMessage bound what callers and functions can make
	// us keep; longer texts are cut, in bytes.
	maxMethod  = 64
	maxPath    = 2 << 10
	maxMessage = 4 << 10
	// pruneBatch rows are deleted in one transaction, so that records can be
	// appended in between.
	pruneBatch = 2000
)

// invocationPragmas let the file become smaller again, and so its write-ahead log, which
// grows while somebody reads.
var invocationPragmas = []string{"auto_vacuum(INCREMENTAL)", "journal_size_limit(16777216)"}

const invocationColumns = `id, function, version, kind, method, path, status, error_code, error_message,
	cold, started_at, queue_ns, start_ns, init_ns, run_ns, bytes_in, bytes_out, cold_reason, cached, instance, attempt, trace_id, span_id, parent_id, route_ns`

// AppendInvocations stores records, all or none. A record whose ID is stored
// already is skipped, so a failed call may be repeated. Method, Path and ErrorMessage
// are cut to 64 bytes, 2 KiB and 4 KiB. See the package comment for what a crash can lose.
func (s *Store) AppendInvocations(ctx context.Context, records []hearth.Invocation) error {
	if len(records) == 0 {
		return nil
	}
	return s.invocations.update(ctx, "store invocation records", func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO invocations (`+invocationColumns+`)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`)
		if err != nil {
			return err
		}
		defer func() { _ = stmt.Close() }()
		for i := range records {
			r := &records[i]
			_, err := stmt.ExecContext(ctx, r.ID, r.Function, r.Version, string(r.Kind), cut(r.Method, maxMethod), cut(r.Path, maxPath),
				r.Status, string(r.ErrorCode), cut(r.ErrorMessage, maxMessage), r.Cold, r.StartedAt.UnixMicro(),
				int64(r.Timings.Queue), int64(r.Timings.Start), int64(r.Timings.Init), int64(r.Timings.Run), r.BytesIn, r.BytesOut, string(r.ColdReason), r.Cached, r.Instance, r.Attempt,
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

// PruneInvocations deletes the records of calls that started before olderThan
// and, if keep is greater than 0, all but the newest keep of the rest. It
// returns how many it deleted, also beside an error.
func (s *Store) PruneInvocations(ctx context.Context, olderThan time.Time, keep int) (int64, error) {
	n, err := s.pruneWhere(ctx, `started_at < ?`, olderThan.UnixMicro())
	if err != nil || keep <= 0 {
		return n, err
	}
	var oldest position
	err = s.invocations.read.QueryRowContext(ctx, `SELECT started_at, id FROM invocations ORDER BY started_at DESC, id DESC LIMIT 1 OFFSET ?`, keep-1).Scan(&oldest.started, &oldest.id)
	if errors.Is(err, sql.ErrNoRows) {
		return n, nil
	} else if err != nil {
		return n, dbError(ctx, err, "count invocation records")
	}
	m, err := s.pruneWhere(ctx, `(started_at, id) < (?, ?)`, oldest.started, oldest.id)
	return n + m, err
}

// BoundInvocations deletes the oldest records while all need nearly limit bytes of the
// disk, until there is some room again, and gives back what the file has beyond limit. It
// returns how many it deleted, also beside an error.
func (s *Store) BoundInvocations(ctx context.Context, limit int64) (deleted int64, err error) {
	used, _, err := s.invocationPages(ctx)
	if err != nil || used <= limit/16*15 {
		return 0, err
	}
	for err == nil && used > limit/8*7 {
		var n int64
		if n, err = s.pruneSome(ctx, `1 ORDER BY started_at, id`); err != nil || n == 0 {
			break
		}
		deleted += n
		used, _, err = s.invocationPages(ctx)
	}
	const pagesAtOnce = 1000 // so that records can be appended in between
	for err == nil {
		var all, after int64
		if _, all, err = s.invocationPages(ctx); err != nil || all <= limit {
			break
		}
		if _, err = s.invocations.exec(ctx, "make the file of invocation records smaller", fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, pagesAtOnce)); err != nil {
			return deleted, err
		}
		if _, after, err = s.invocationPages(ctx); after >= all {
			break // an earlier version made the file: it is used again, but not smaller
		}
	}
	return deleted, err
}

// invocationPages returns how many bytes of the file are in use, and how many it has.
func (s *Store) invocationPages(ctx context.Context) (used, all int64, err error) {
	err = s.invocations.write.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size, page_count * page_size
		FROM pragma_page_count, pragma_freelist_count, pragma_page_size`).Scan(&used, &all)
	return used, all, dbError(ctx, err, "measure the invocation records")
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
	for {
		n, err := s.pruneSome(ctx, where, args...)
		if total += n; err != nil || n < pruneBatch {
			return total, err
		}
	}
}

// pruneSome deletes one batch.
func (s *Store) pruneSome(ctx context.Context, where string, args ...any) (int64, error) {
	res, err := s.invocations.exec(ctx, "delete invocation records",
		`DELETE FROM invocations WHERE id IN (SELECT id FROM invocations WHERE `+where+` LIMIT ?)`, append(args, pruneBatch)...)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return n, dbError(ctx, err, "delete invocation records")
}

func scanInvocation(row row) (r hearth.Invocation, err error) {
	var started int64
	err = row.Scan(&r.ID, &r.Function, &r.Version, &r.Kind, &r.Method, &r.Path, &r.Status, &r.ErrorCode, &r.ErrorMessage,
		&r.Cold, &started, &r.Timings.Queue, &r.Timings.Start, &r.Timings.Init, &r.Timings.Run, &r.BytesIn, &r.BytesOut, &r.ColdReason, &r.Cached, &r.Instance, &r.Attempt,
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
