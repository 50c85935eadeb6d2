package store

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// DatabaseHealth is how a database of the store does.
type DatabaseHealth struct {
	Name   string // catalog, invocations or queue
	Bytes  int64  // of its file and its write-ahead log
	Writes int64  // transactions that were to change something, since Open
	// Failures are those that the database could not do, WriteTime is how long all of
	// them took together.
	Failures  int64
	WriteTime time.Duration
}

// writes counts transactions that write. Its methods may be called from many goroutines.
type writes struct{ done, failed, nanos atomic.Int64 }

// count notes the end of a transaction that began at a time; failed is whether that was the
// database's fault.
func (w *writes) count(began time.Time, failed bool) {
	w.nanos.Add(int64(time.Since(began)))
	if w.done.Add(1); failed {
		w.failed.Add(1)
	}
}

// exec changes something in a transaction of its own.
func (d *database) exec(ctx context.Context, what, query string, args ...any) (sql.Result, error) {
	began := time.Now()
	res, err := d.write.ExecContext(ctx, query, args...)
	err = dbError(ctx, err, what)
	d.writes.count(began, broken(err))
	return res, err
}

// broken tells whether an error is the database's fault.
func broken(err error) bool {
	code := hearth.ErrorCode(err)
	return code == hearth.CodeUnavailable || code == hearth.CodeInternal
}

// Health tells how the databases do.
func (s *Store) Health() []DatabaseHealth {
	var list []DatabaseHealth
	for _, d := range []struct {
		name, file string
		*database
	}{{"catalog", catalogFile, s.catalog}, {"invocations", invocationsFile, s.invocations}, {"queue", queueFile, s.queueDB}} {
		h := DatabaseHealth{Name: d.name, Writes: d.writes.done.Load(), Failures: d.writes.failed.Load(), WriteTime: time.Duration(d.writes.nanos.Load())}
		for _, suffix := range []string{"", "-wal"} {
			if info, err := os.Stat(filepath.Join(s.dir, d.file+suffix)); err == nil {
				h.Bytes += info.Size()
			}
		}
		list = append(list, h)
	}
	return list
}
