package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

const (
	// maxGroup is how many operations are committed in one transaction at most, and
	// how many wait for the next.
	maxGroup = 512
)

// queueWriter commits operations in groups: whatever has come while the disk
// was busy with one transaction makes the next. So the cost of reaching the disk is
// shared by all who wait for it, and one who comes alone does not wait for others.
type queueWriter struct {
	conn   *sql.Conn
	writes *writes
	stmts  map[string]*sql.Stmt // of conn; only the goroutine uses it
	ops    chan *queueOp
	stop   chan struct{}
	once   sync.Once
	done   chan struct{}
}

// queueOp is one change.
type queueOp struct {
	// run makes it. It may be run again, after a rollback. An error with a code of
	// its own means that it has changed nothing, and fails nobody else.
	run  func(tx *queueTx) error
	err  error
	done chan struct{} // closed after the commit; nil if nobody waits
	// claimed is set by who decides what becomes of it: the writer, which makes it, or
	// who waits, who leaves.
	claimed atomic.Bool
}

// queueTx is the transaction of a group.
type queueTx struct{ w *queueWriter }

// The context of statements is none: one that ends would fail the whole group.
var background = context.Background()

func (tx *queueTx) stmt(query string) (*sql.Stmt, error) {
	if s := tx.w.stmts[query]; s != nil {
		return s, nil
	}
	s, err := tx.w.conn.PrepareContext(background, query)
	if err == nil {
		tx.w.stmts[query] = s
	}
	return s, err
}

// exec runs one of the constant statements of this package and returns how many
// rows it changed.
func (tx *queueTx) exec(query string, args ...any) (int64, error) {
	s, err := tx.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(background, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (tx *queueTx) row(query string, args ...any) row {
	s, err := tx.stmt(query)
	if err != nil {
		return failedRow{err}
	}
	return s.QueryRowContext(background, args...)
}

type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

func startQueueWriter(conn *sql.Conn, count *writes) *queueWriter {
	w := &queueWriter{
		conn: conn, writes: count, stmts: map[string]*sql.Stmt{},
		ops: make(chan *queueOp, maxGroup), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go w.loop()
	return w
}

// close commits what was given to it before and ends. A second call does nothing.
func (w *queueWriter) close() (err error) {
	w.once.Do(func() {
		close(w.stop)
		<-w.done
		err = w.conn.Close()
	})
	return err
}

// do makes a change and returns when it has reached the disk. If ctx ends before the
// change has begun, it is not made; else its end is waited for.
func (w *queueWriter) do(ctx context.Context, what string, run func(tx *queueTx) error) error {
	op := &queueOp{run: run, done: make(chan struct{})}
	if err := w.send(ctx, op); err != nil {
		return dbError(ctx, err, what)
	}
	select {
	case <-op.done:
		return dbError(background, op.err, what)
	case <-ctx.Done():
		if op.claimed.CompareAndSwap(false, true) {
			return dbError(ctx, ctx.Err(), what)
		}
	case <-w.done:
		if op.claimed.CompareAndSwap(false, true) {
			return errQueueClosed()
		}
	}
	<-op.done
	return dbError(background, op.err, what)
}

// later makes a change that nobody waits for. What is given to the writer after it
// is committed with it or after it.
func (w *queueWriter) later(run func(tx *queueTx) error) {
	_ = w.send(background, &queueOp{run: run})
}

func (w *queueWriter) send(ctx context.Context, op *queueOp) error {
	select {
	case <-w.stop:
		return errQueueClosed()
	default:
	}
	select {
	case w.ops <- op:
		return nil
	case <-w.stop:
		return errQueueClosed()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func errQueueClosed() error {
	return hearth.Errorf(hearth.CodeUnavailable, "the server is shutting down").WithHint("try again in a moment")
}

func (w *queueWriter) loop() {
	defer close(w.done)
	group := make([]*queueOp, 0, maxGroup)
	for {
		select {
		case op := <-w.ops:
			group = claim(group[:0], op)
		case <-w.stop:
			// Who sends now may or may not be served; who has sent is.
			if len(w.ops) == 0 {
				return
			}
			group = group[:0]
		}
		for len(group) < maxGroup {
			select {
			case op := <-w.ops:
				group = claim(group, op)
				continue
			default:
			}
			break
		}
		if len(group) > 0 {
			w.commit(group)
		}
	}
}

// claim adds an operation to a group unless who waited for it has left.
func claim(group []*queueOp, op *queueOp) []*queueOp {
	if op.claimed.CompareAndSwap(false, true) {
		return append(group, op)
	}
	return group
}

// commit makes the changes of a group in one transaction. If one of them cannot be
// made, each gets a transaction of its own.
func (w *queueWriter) commit(group []*queueOp) {
	err := w.transact(group)
	if err != nil && len(group) > 1 {
		for i := range group {
			if one := w.transact(group[i : i+1]); one != nil {
				group[i].err = one
			}
		}
	} else if err != nil {
		group[0].err = err
	}
	for _, op := range group {
		if op.done != nil {
			close(op.done)
		}
	}
	clear(group)
}

func (w *queueWriter) transact(group []*queueOp) (err error) {
	began := time.Now()
	defer func() { w.writes.count(began, err != nil) }()
	if _, err := w.conn.ExecContext(background, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, _ = w.conn.ExecContext(background, "ROLLBACK") // there may be none any more
		}
	}()
	tx := &queueTx{w}
	for _, op := range group {
		op.err = nil
		var coded *hearth.Error
		if err := op.run(tx); errors.As(err, &coded) {
			op.err = err
		} else if err != nil {
			return err
		}
	}
	_, err = w.conn.ExecContext(background, "COMMIT")
	return err
}

// openQueue opens the queue's database, in which nothing runs any more.
func (s *Store) openQueue(ctx context.Context, path string) (err error) {
	if s.queueDB, err = openDatabase(ctx, path, "queue", "FULL"); err != nil {
		return err
	}
	conn, err := s.queueDB.write.Conn(ctx)
	if err != nil {
		return dbError(ctx, err, "open the queue")
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	secret := webhookSecretPrefix + randomSecret()
	for _, q := range []string{
		`UPDATE calls SET state = 0 WHERE state = 1`,
		`UPDATE kept SET state = 'unknown' WHERE state = 'running'`,
		`DELETE FROM totals WHERE calls = 0`,
		`DELETE FROM kept_totals WHERE calls = 0`,
		`DELETE FROM usage WHERE payer <> '' AND calls = 0 AND kept = 0`,
		fmt.Sprintf(`INSERT INTO settings (key, value) VALUES ('webhook_secret', '%s') ON CONFLICT DO NOTHING`, secret),
	} {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return dbError(ctx, err, "open the queue")
		}
	}
	q := &Queue{db: s.queueDB, now: time.Now}
	err = s.queueDB.read.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = 'webhook_secret'`).Scan(&q.secret)
	if err != nil {
		return dbError(ctx, err, "read the webhook secret")
	}
	q.w = startQueueWriter(conn, &s.queueDB.writes)
	s.queue = q
	return nil
}
