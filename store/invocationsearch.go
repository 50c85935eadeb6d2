package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hearthrun/hearth"
)

// maxScan bounds how many records one page of a search looks at: a filter that fits few
// of a million must not keep a reader busy for long. The page tells where it stopped.
const maxScan = 200_000

// Invocations returns records that fit a filter, by when their calls started, newest
// first: at most limit of them (1 to 1000; 0 means 1000), and only those behind the one
// with the id before unless that is empty. next is the before of the next page, empty if
// there is none; a before may be the id of a call as well. A page can have fewer than limit records, or none, and a next, if much was
// looked at in vain.
//
// Records are those of the functions that have the names now, not of deleted ones that
// had them earlier. Errors: CodeNotFound if there is no such function; CodeInvalid for
// the filter, and for a before of which nothing is known.
func (s *Store) Invocations(ctx context.Context, f hearth.InvocationFilter, before string, limit int) (list []hearth.Invocation, next string, err error) {
	if err := f.Validate(); err != nil {
		return nil, "", err
	}
	first := 0
	if f.Function != "" {
		if first, err = s.firstVersion(ctx, f.Function); err != nil {
			return nil, "", err
		}
		if first == gone {
			return nil, "", noFunction(f.Function)
		}
	}
	end := position{started: math.MaxInt64}
	if before != "" {
		if end, err = s.position(ctx, before); err != nil {
			return nil, "", err
		}
	}
	q := newSearch(f, first, end, s.scan)
	limit = page(limit)
	err = s.invocations.view(ctx, "search invocation records", func(tx *sql.Tx) error {
		var err error
		if list, err = s.search(ctx, tx, q, limit+1); err != nil {
			return err
		}
		if len(list) > limit {
			v := &list[limit-1]
			list, next = list[:limit], position{v.StartedAt.UnixMicro(), v.ID}.String()
			return nil
		}
		// There was nothing more, or the search stopped.
		var last position
		err = tx.QueryRowContext(ctx, q.last(), q.look.args...).Scan(&last.id, &last.started)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		next = last.String()
		return err
	})
	return list, next, err
}

// search returns at most limit records.
func (s *Store) search(ctx context.Context, tx *sql.Tx, q search, limit int) ([]hearth.Invocation, error) {
	rows, err := tx.QueryContext(ctx, q.query(), append(q.look.args, q.pick.args...)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	list, firsts := []hearth.Invocation{}, map[string]int{}
	for len(list) < limit && rows.Next() {
		v, err := scanInvocation(rows)
		if err != nil {
			return nil, err
		}
		first, ok := firsts[v.Function]
		if !ok {
			if first, err = s.firstVersion(ctx, v.Function); err != nil {
				return nil, err
			}
			firsts[v.Function] = first
		}
		if v.Version >= first {
			list = append(list, v)
		}
	}
	return list, rows.Err()
}

// gone is the first version of a function that does not exist.
const gone = math.MaxInt

// FirstVersion returns the number of the first version of a function that exists: what is
// known of lower ones is of deleted functions that had its name. Errors: CodeNotFound.
func (s *Store) FirstVersion(ctx context.Context, function string) (int, error) {
	first, err := s.firstVersion(ctx, function)
	if first == gone {
		return 0, noFunction(function)
	}
	return first, err
}

// firstVersion returns the first version of the function that has a name now. Numbers are
// not used again, so it tells the records of a function from those of its predecessors,
// even from those that were written after the delete.
func (s *Store) firstVersion(ctx context.Context, function string) (first int, err error) {
	err = s.catalog.read.QueryRowContext(ctx, `SELECT first FROM functions WHERE name = ?`, function).Scan(&first)
	if errors.Is(err, sql.ErrNoRows) {
		return gone, nil
	}
	return first, dbError(ctx, err, "read a function")
}

// position is a place in the order of records.
type position struct {
	started int64
	id      string
}

// String writes p such that it can be read when the record is gone.
func (p position) String() string { return p.id + "@" + strconv.FormatInt(p.started, 36) }

// position returns what String wrote, or that of a record. Errors: CodeInvalid.
func (s *Store) position(ctx context.Context, text string) (p position, err error) {
	id, started, ok := strings.Cut(text, "@")
	if p.id = id; ok {
		if p.started, err = strconv.ParseInt(started, 36, 64); err == nil {
			return p, nil
		}
	}
	err = s.invocations.read.QueryRowContext(ctx, `SELECT started_at FROM invocations WHERE id = ?`, id).Scan(&p.started)
	if !errors.Is(err, sql.ErrNoRows) {
		return p, dbError(ctx, err, "read an invocation record")
	}
	// It was removed meanwhile, or was never kept; but an id tells about when it was.
	name, _, _ := strings.Cut(id, ".")
	u, err := uuid.Parse(name)
	if err != nil || u.Version() != 7 {
		return p, hearth.Errorf(hearth.CodeInvalid, "nothing is known of the call %q, behind which the page is to begin", cut(id, 80)).
			WithHint("take the next of the page before it, or the id of a call")
	}
	p.started = time.Unix(u.Time().UnixTime()).UnixMicro()
	return p, nil
}

// search is a query for records. It looks at a bounded number of them, in the order of an
// index, and picks those that fit the rest of the filter.
type search struct {
	index, order string
	look, pick   conditions
	scan         int
}

// conditions are joined by AND.
type conditions struct {
	terms []string
	args  []any
}

func (c *conditions) add(term string, args ...any) {
	c.terms, c.args = append(c.terms, term), append(c.args, args...)
}

func (c *conditions) String() string {
	return strings.Join(c.terms, " AND ")
}

// newSearch returns the query for records of versions from first on that are behind end.
func newSearch(f hearth.InvocationFilter, first int, end position, scan int) search {
	q := search{scan: scan}
	q.looksAt(f, end)
	q.picks(f, first)
	return q
}

// looksAt chooses an index and the part of it.
func (q *search) looksAt(f hearth.InvocationFilter, end position) {
	// Indexes are named, as SQLite does not know how much is in them.
	status, _, _ := f.StatusRange() //nolint:errcheck // f is valid
	failed := status >= 500 || f.Code != "" && f.Code != hearth.FilterOK
	switch {
	case f.ID != "":
		// In the order of ids, which is about that of their starts.
		q.look.add("id >= ? AND id < ?", f.ID, cmp.Or(end.id, f.ID+"\U0010FFFF"))
		q.order = "id DESC"
		if f.Function != "" {
			q.pick.add("function = ?", f.Function)
		}
		if failed {
			q.pick.add("(error_code <> '' OR status >= 500)")
		}
		if !f.Until.IsZero() {
			q.pick.add("started_at < ?", f.Until.UnixMicro())
		}
		if !f.Since.IsZero() {
			q.pick.add("started_at >= ?", f.Since.UnixMicro())
		}
		return
	case failed && f.Function != "":
		q.index = "INDEXED BY invocations_function_failed"
	case failed:
		q.index = "INDEXED BY invocations_failed"
	case f.Function != "":
		q.index = "INDEXED BY invocations_function"
	default:
		q.index = "INDEXED BY invocations_started_at"
	}
	if f.Function != "" {
		q.look.add("function = ?", f.Function)
	}
	if failed { // in the words of the indexes, so that SQLite sees that they have all
		q.look.add("(error_code <> '' OR status >= 500)")
	}
	if until := f.Until.UnixMicro(); !f.Until.IsZero() && until < end.started {
		end = position{started: until}
	}
	q.look.add("(started_at, id) < (?, ?)", end.started, end.id)
	if !f.Since.IsZero() {
		q.look.add("started_at >= ?", f.Since.UnixMicro())
	}
	q.order = "started_at DESC, id DESC"
}

// picks adds what no index has.
func (q *search) picks(f hearth.InvocationFilter, first int) {
	q.pick.add("version >= ?", first)
	if f.Version != 0 {
		q.pick.add("version = ?", f.Version)
	}
	if from, to, _ := f.StatusRange(); from != 0 { //nolint:errcheck // f is valid
		q.pick.add("status BETWEEN ? AND ?", from, to)
	}
	switch f.Code {
	case "", hearth.FilterError: // whose index has no others
	case hearth.FilterOK:
		q.pick.add("error_code = '' AND status < 500")
	case hearth.FilterHTTP5xx:
		q.pick.add("error_code = ''")
	default:
		q.pick.add("error_code = ?", f.Code)
	}
	if f.Kind != "" {
		q.pick.add("kind = ?", string(f.Kind))
	}
	if f.Async != nil {
		q.pick.add("(attempt > 0) = ?", *f.Async)
	}
	if f.Cold != nil {
		q.pick.add("cold = ?", *f.Cold)
	}
	const duration = "queue_ns + start_ns + init_ns + run_ns"
	if f.MinDuration != 0 {
		q.pick.add(duration+" >= ?", int64(f.MinDuration))
	}
	if f.MaxDuration != 0 {
		q.pick.add(duration+" <= ?", int64(f.MaxDuration))
	}
}

// from is what is looked at, in order.
func (q *search) from() string {
	return fmt.Sprintf("FROM invocations %s WHERE %s ORDER BY %s", q.index, &q.look, q.order)
}

// query selects the records that fit. The inner LIMIT keeps SQLite from looking at more,
// and has it go through them one by one, as far as the rows are read.
func (q *search) query() string {
	return fmt.Sprintf("SELECT %s FROM (SELECT %s %s LIMIT %d) WHERE %s", invocationColumns, invocationColumns, q.from(), q.scan, &q.pick)
}

// last selects the id and the start of the last record that query looks at, if there may be more.
func (q *search) last() string {
	return fmt.Sprintf("SELECT id, started_at %s LIMIT 1 OFFSET %d", q.from(), q.scan-1)
}
