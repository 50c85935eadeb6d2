package store

import (
	"context"
	"database/sql"
	"errors"
)

// NextNumber returns the number that the next version stored for the function
// gets. The function need not exist. It stays true until a version is stored.
func (s *Store) NextNumber(ctx context.Context, function string) (int, error) {
	var last int
	err := s.catalog.read.QueryRowContext(ctx, `SELECT last FROM counters WHERE function = ?`, function).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return 1, nil
	}
	return last + 1, dbError(ctx, err, "read a version number")
}
