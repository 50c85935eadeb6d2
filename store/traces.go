package store

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/hearthrun/hearth"
)

// TraceInvocations returns the records of calls of a trace, at most limit of them (1 to
// 1000; 0 means 1000), the oldest first.
func (s *Store) TraceInvocations(ctx context.Context, id hearth.TraceID, limit int) ([]hearth.Invocation, error) {
	rows, err := s.invocations.read.QueryContext(ctx, `SELECT `+invocationColumns+` FROM invocations WHERE trace_id = ? ORDER BY id LIMIT ?`, id[:], page(limit))
	return collect(ctx, rows, err, "list invocation records", scanInvocation)
}

// TraceCalls returns the asynchronous calls of a trace, at most limit of them (1 to 1000;
// 0 means 1000), those that were accepted first at the beginning. They have no results.
func (q *Queue) TraceCalls(ctx context.Context, id hearth.TraceID, limit int) ([]hearth.AsyncCall, error) {
	rows, err := q.db.read.QueryContext(ctx, selectCall+` WHERE trace_id = ? ORDER BY seq LIMIT ?`, id[:], page(limit))
	return collect(ctx, rows, err, "list calls", scanCall)
}

// idColumn is an id as a database has it: NULL for zero, else its bytes.
type idColumn []byte // of the id

// Value implements driver.Valuer.
func (c idColumn) Value() (driver.Value, error) {
	for _, b := range c {
		if b != 0 {
			return []byte(c), nil
		}
	}
	return nil, nil
}

// Scan implements sql.Scanner.
func (c idColumn) Scan(v any) error {
	switch b, ok := v.([]byte); {
	case v == nil:
		clear(c)
	case !ok || len(b) != len(c):
		return fmt.Errorf("an id of a trace has not %d bytes", len(c))
	default:
		copy(c, b)
	}
	return nil
}
