package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"github.com/hearthrun/hearth"
)

const (
	// webhookSecretPrefix is that of Standard Webhooks' secrets.
	webhookSecretPrefix = "whsec_"
	// deduplicationWindow is how long after its acceptance a call that has ended
	// still answers for its deduplication key.
	deduplicationWindow = 24 * time.Hour
	// maxFailures of a call are kept.
	maxFailures = 10
	// queueBatch rows are changed in one transaction where there may be any number,
	// so that others get their turn.
	queueBatch = 500
)

// States as they are stored.
const (
	stateQueued = iota
	stateRunning
	stateSucceeded
	stateFailed
	stateCanceled
)

var states = []hearth.AsyncState{hearth.AsyncQueued, hearth.AsyncRunning, hearth.AsyncSucceeded, hearth.AsyncFailed, hearth.AsyncCanceled}

// QueueLimits bound what a Queue stores; zero fields take the default.
type QueueLimits struct {
	// Calls bounds those that have not ended, and dead letters; default 1,000,000.
	// Bytes bounds all payloads and results; default 1 GiB. How much of each a
	// function can use depends on what others use; see share.
	Calls, Bytes int64
	// Finished bounds the calls that are kept after they succeeded or were canceled,
	// whatever keep_result says; default 200,000.
	Finished int64
}

func (l QueueLimits) withDefaults() QueueLimits {
	if l.Calls == 0 {
		l.Calls = 1_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 1 << 30
	}
	if l.Finished == 0 {
		l.Finished = 200_000
	}
	return l
}

// Queue is the asynchronous calls of a Store. A method that returned without an
// error has reached the disk, but for Started. Its methods may be called from many
// goroutines.
type Queue struct {
	// Constant after construction.
	db     *database
	w      *queueWriter
	limits QueueLimits
	secret string
	now    func() time.Time
}

// Queue returns the asynchronous calls, bounded by limits. Call it once, before
// they are used.
func (s *Store) Queue(limits QueueLimits) *Queue {
	s.queue.limits = limits.withDefaults()
	return s.queue
}

// WebhookSecret is with what webhooks are signed: "whsec_" and base64.
func (q *Queue) WebhookSecret() string { return q.secret }

func randomSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

// Accept stores calls of one function, each with another deduplication key or none:
// all, or none with an error. In place of those whose key is that of an earlier call it
// returns that one. Errors: CodeExhausted if there is no room for all, CodeInvalid with
// hearth.ErrKeyReused if the fingerprint of an earlier call is another.
func (q *Queue) Accept(ctx context.Context, list []hearth.AsyncEntry) ([]hearth.AsyncCall, error) {
	calls := make([]hearth.AsyncCall, len(list))
	err := q.w.do(ctx, "store calls", func(tx *queueTx) error {
		var n, bytes int64
		for i, e := range list {
			calls[i] = e.AsyncCall
			if e.DeduplicationKey != "" {
				old, err := q.deduplicate(tx, e)
				if err != nil {
					return err
				}
				if old.ID != "" {
					if err := sameRequest(tx, old.ID, e.Fingerprint); err != nil {
						return err
					}
					calls[i] = old
					continue
				}
			}
			n++
			bytes += e.Bytes
		}
		if n == 0 {
			return nil
		}
		part := shareCalls
		if list[0].Public {
			part = sharePublic
		}
		if err := q.room(tx, list[0].Payer, n, bytes, part); err != nil {
			return err
		}
		for i, e := range list {
			if calls[i].ID != e.ID {
				continue
			}
			if err := q.insert(tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	return calls, err
}

// keyScope is between a deduplication key and its scope where they are stored.
const keyScope = "\x00"

// storedKey returns the deduplication key of a call as it is stored, nil for none.
func storedKey(e hearth.AsyncEntry) any {
	switch {
	case e.DeduplicationKey == "":
		return nil
	case e.KeyScope == "":
		return e.DeduplicationKey
	}
	return e.DeduplicationKey + keyScope + e.KeyScope
}

// deduplicate returns the call that answers for the key of another, none if there is
// none.
func (q *Queue) deduplicate(tx *queueTx, e hearth.AsyncEntry) (hearth.AsyncCall, error) {
	old, err := scanCall(tx.row(selectCall+` WHERE function = ? AND dedup = ?`, e.Function, storedKey(e)))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return hearth.AsyncCall{}, nil
	case err != nil:
		return old, err
	case old.State == hearth.AsyncCanceled, old.State.Ended() && e.AcceptedAt.Sub(old.AcceptedAt) > deduplicationWindow:
		_, err := tx.exec(`UPDATE calls SET dedup = NULL WHERE id = ?`, old.ID)
		return hearth.AsyncCall{}, err
	}
	return old, nil
}

// sameRequest tells whether a stored call has come of the same request. Errors:
// CodeInvalid.
func sameRequest(tx *queueTx, id, fingerprint string) error {
	var was string
	if err := tx.row(`SELECT fingerprint FROM calls WHERE id = ?`, id).Scan(&was); err != nil {
		return err
	}
	if was != fingerprint && was != "" && fingerprint != "" {
		return hearth.KeyReused("deduplication key")
	}
	return nil
}

// share is how much of the room a payer may use, as a multiple of what it leaves free.
// This is the dynamic threshold of A. Choudhury and E. Hahne, "Dynamic Queue Length
// Thresholds for Shared-Memory Packet Switches", 1998: however many flood the queue,
// others find room. One alone gets share/(share+1) of the whole.
type share float64

const (
	sharePublic share = 0.5 // what anybody may send over HTTP
	shareCalls  share = 1   // what the management API and schedules store
	shareFollow share = 2   // what tells of calls that were accepted before
)

// room tells whether n calls with bytes together can be stored. It makes room of what is
// kept only as long as there is enough. Errors: CodeExhausted.
func (q *Queue) room(tx *queueTx, payer string, n, bytes int64, part share) error {
	var all, own usage
	err := tx.row(`SELECT calls, bytes, kept_bytes FROM usage WHERE payer = ''`).Scan(&all.calls, &all.bytes, &all.kept)
	if err == nil {
		err = tx.row(`SELECT COALESCE(SUM(calls), 0), COALESCE(SUM(bytes), 0) FROM usage WHERE payer = ?`, payer).Scan(&own.calls, &own.bytes)
	}
	if err != nil {
		return err
	}
	fits := func(own, all, limit int64) bool { return float64(own) <= float64(part)*float64(limit-all) }
	if !fits(own.calls+n, all.calls+n, q.limits.Calls) || !fits(own.bytes+bytes, all.bytes+bytes, q.limits.Bytes) {
		return queueFull(payer, own, all, q.limits)
	}
	// What is kept only as long as there is room takes none from it.
	for all.bytes+all.kept+bytes > q.limits.Bytes {
		n, err := q.dropKept(tx, queueBatch, "bytes")
		if err == nil && n == 0 {
			err = queueFull(payer, own, all, q.limits)
		}
		if err == nil {
			err = tx.row(`SELECT kept_bytes FROM usage WHERE payer = ''`).Scan(&all.kept)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// usage is what takes room: calls that have not ended and dead letters, and the bytes of
// those that are kept as long as there is room.
type usage struct{ calls, bytes, kept int64 }

func queueFull(payer string, own, all usage, limits QueueLimits) error {
	e := hearth.Errorf(hearth.CodeExhausted, "the queue has no room for more of %s: its calls, with all that came of them by destinations, are %d with %s; of %d calls and %s all use %d and %s",
		payer, own.calls, hearth.Bytes(own.bytes), limits.Calls, hearth.Bytes(limits.Bytes), all.calls, hearth.Bytes(all.bytes+all.kept)).
		WithHint("try again later; hearth queue shows what is in it, and hearth queue purge removes dead letters")
	e.RetryAfter = 5 * time.Second
	return e
}

// dropKept deletes at most n of the oldest calls that are kept as long as there is room,
// of the function that has most of them, by "calls" or "bytes", and returns how many.
func (q *Queue) dropKept(tx *queueTx, n int64, by string) (int64, error) {
	return tx.exec(`DELETE FROM calls WHERE seq IN (SELECT seq FROM calls WHERE (function, state) =
		(SELECT function, state FROM totals WHERE state IN (2, 4) ORDER BY `+by+` DESC LIMIT 1) ORDER BY seq LIMIT ?)`, n)
}

func (q *Queue) insert(tx *queueTx, e hearth.AsyncEntry) error {
	var seq int64
	err := tx.row(`INSERT INTO calls (id, function, lane, target, kind, state, accepted_at, due_at, expires_at, dedup, fingerprint, source, depth, payer, budget, bytes, trace_id, span_id, parent_id, sampled, tracestate)
		VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq`,
		e.ID, e.Function, e.Lane(), e.Target, string(e.Kind), e.AcceptedAt.UnixMicro(), e.DueAt.UnixMicro(), e.ExpiresAt.UnixMicro(),
		storedKey(e), e.Fingerprint, e.Source, e.Depth, e.Payer, e.Budget, e.Bytes,
		idColumn(e.TraceID[:]), idColumn(e.SpanID[:]), idColumn(e.ParentID[:]), e.Sampled, e.Tracestate).Scan(&seq)
	if err != nil || len(e.Head) == 0 && len(e.Body) == 0 {
		return err
	}
	_, err = tx.exec(`INSERT INTO payloads (seq, head, body, url) VALUES (?, ?, ?, ?)`, seq, e.Head, e.Body, e.URL)
	return err
}

// Begin reads calls and what they pass, in the order of their ids. The entry of one that
// is not there has no id.
func (q *Queue) Begin(ctx context.Context, ids []string) ([]hearth.AsyncEntry, error) {
	entries := make([]hearth.AsyncEntry, len(ids))
	err := q.db.view(ctx, "read calls", func(tx *sql.Tx) error {
		for i, id := range ids {
			e := &entries[i]
			var err error
			if e.AsyncCall, err = scanCall(tx.QueryRowContext(ctx, selectCall+` WHERE id = ?`, id)); err == nil {
				err = tx.QueryRowContext(ctx, `SELECT head, body, url FROM payloads WHERE seq = (SELECT seq FROM calls WHERE id = ?)`, id).Scan(&e.Head, &e.Body, &e.URL)
			}
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		return nil
	})
	return entries, err
}

// Started stores that an attempt is under way. It does not wait for the disk: what
// is lost with the machine's power is at worst that the attempt counts.
func (q *Queue) Started(id string, attempt int) {
	q.w.later(func(tx *queueTx) error {
		_, err := tx.exec(`UPDATE calls SET state = 1, attempts = ? WHERE id = ? AND state < 2`, attempt, id)
		return err
	})
}

// Retry puts a call back whose attempt is over: its attempts, failures and due time
// are those of c. queued is false if it has ended meanwhile, because it was canceled.
func (q *Queue) Retry(ctx context.Context, c hearth.AsyncCall) (queued bool, err error) {
	failures, err := marshalFailures(c.Failures)
	if err != nil {
		return false, err
	}
	err = q.w.do(ctx, "put a call back", func(tx *queueTx) error {
		n, err := tx.exec(`UPDATE calls SET state = 0, attempts = ?, failures = ?, due_at = ? WHERE id = ? AND state < 2`,
			c.Attempts, failures, c.DueAt.UnixMicro(), c.ID)
		queued = n > 0
		return err
	})
	return queued, err
}

// Finish ends a call: its state, attempts, failures, result and times are those of
// c. The payload is removed, but for dead letters. ended is false, and nothing is
// stored, if the call had ended before, because it was canceled. It is deleted
// after purge.
//
// In the same transaction follow is accepted, into more room than calls get: it must not
// wait for any. refused are those of follow that found none.
func (q *Queue) Finish(ctx context.Context, c hearth.AsyncCall, purge time.Time, follow []hearth.AsyncEntry) (ended bool, refused []hearth.AsyncEntry, err error) {
	failures, err := marshalFailures(c.Failures)
	if err != nil {
		return false, nil, err
	}
	var headers []byte
	if c.Result != nil {
		if headers, err = json.Marshal(c.Result.Headers); err != nil {
			return false, nil, err
		}
	}
	state := stateOf(c.State)
	err = q.w.do(ctx, "store the end of a call", func(tx *queueTx) error {
		ended, refused = false, nil
		var status, cut int
		var size any // unchanged
		if state == stateSucceeded {
			size = 0
		}
		if c.Result != nil {
			status = c.Result.Status
			size = int64(len(c.Result.Body) + len(headers))
			if c.Result.Cut {
				cut = 1
			}
		}
		var seq int64
		err := tx.row(`UPDATE calls SET state = ?, attempts = ?, failures = ?, finished_at = ?, purge_at = ?, status = ?, cut = ?, bytes = COALESCE(?, bytes)
			WHERE id = ? AND state < 2 RETURNING seq`,
			state, c.Attempts, failures, c.FinishedAt.UnixMicro(), purge.UnixMicro(), status, cut, size, c.ID).Scan(&seq)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}
		ended = true
		if state == stateSucceeded {
			if _, err := tx.exec(`DELETE FROM payloads WHERE seq = ?`, seq); err != nil {
				return err
			}
		}
		if c.Result != nil {
			if _, err := tx.exec(`INSERT OR REPLACE INTO results (seq, headers, body) VALUES (?, ?, ?)`, seq, string(headers), c.Result.Body); err != nil {
				return err
			}
		}
		for _, e := range follow {
			if err := q.room(tx, e.Payer, 1, e.Bytes, shareFollow); hearth.ErrorCode(err) == hearth.CodeExhausted {
				refused = append(refused, e)
				continue
			} else if err != nil {
				return err
			}
			if err := q.insert(tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	return ended, refused, err
}

// Cancel ends a call that has not ended, and returns it as it is then. canceled is
// false if it had ended before. Errors: CodeNotFound.
func (q *Queue) Cancel(ctx context.Context, id string, reason hearth.AsyncFailure, purge time.Time) (call hearth.AsyncCall, canceled bool, err error) {
	err = q.w.do(ctx, "cancel a call", func(tx *queueTx) error {
		canceled = false
		var err error
		if call, err = scanCall(tx.row(selectCall+` WHERE id = ?`, id)); err != nil {
			return noCall(err, id)
		}
		if call.State.Ended() {
			return nil
		}
		call.Failures = append(call.Failures, reason)
		failures, err := marshalFailures(call.Failures)
		if err != nil {
			return err
		}
		call.State, call.FinishedAt, call.Bytes, call.DeduplicationKey = hearth.AsyncCanceled, reason.EndedAt, 0, ""
		canceled = true
		if _, err := tx.exec(`DELETE FROM payloads WHERE seq = (SELECT seq FROM calls WHERE id = ?)`, id); err != nil {
			return err
		}
		_, err = tx.exec(`UPDATE calls SET state = 4, failures = ?, finished_at = ?, purge_at = ?, bytes = 0, dedup = NULL WHERE id = ?`,
			failures, reason.EndedAt.UnixMicro(), purge.UnixMicro(), id)
		return err
	})
	return call, canceled, err
}

// Forget takes all calls and kept responses from a function that was deleted: those that
// have not ended are canceled, for the reason, and so are dead letters, which nobody could
// redrive. They can still be read by their id, as long as there is room.
func (q *Queue) Forget(ctx context.Context, function string, reason hearth.AsyncFailure, purge time.Time) error {
	failures, err := marshalFailures([]hearth.AsyncFailure{reason})
	if err != nil {
		return err
	}
	_, err = q.batches(ctx, "cancel the calls of a deleted function", func(tx *queueTx) (int64, error) {
		const some = ` WHERE seq IN (SELECT seq FROM calls WHERE function = ? LIMIT ?)`
		// The payloads first: the update takes away by what they are found.
		if _, err := tx.exec(`DELETE FROM payloads`+some, function, queueBatch); err != nil {
			return 0, err
		}
		return tx.exec(`UPDATE calls SET function = '', payer = '', dedup = NULL,
			bytes = (SELECT COALESCE(SUM(LENGTH(body) + LENGTH(headers)), 0) FROM results WHERE results.seq = calls.seq),
			failures = CASE WHEN state < 2 THEN ?3 ELSE failures END,
			finished_at = CASE WHEN state < 2 THEN ?4 ELSE finished_at END,
			purge_at = MIN(COALESCE(purge_at, ?5), ?5),
			state = CASE WHEN state = 2 THEN 2 ELSE 4 END`+
			` WHERE seq IN (SELECT seq FROM calls WHERE function = ?1 LIMIT ?2)`,
			function, queueBatch, failures, reason.EndedAt.UnixMicro(), purge.UnixMicro())
	})
	if err != nil {
		return err
	}
	return q.forgetKept(ctx, function)
}

// Redrive queues dead letters of a function anew, all that ended before now or those
// with the given ids: as if they were accepted now, with the same payload. It
// returns how many.
func (q *Queue) Redrive(ctx context.Context, function string, ids []string, now, expires time.Time) (int64, error) {
	const set = `UPDATE calls SET state = 0, redriven = redriven + attempts, attempts = 0, due_at = ?1, expires_at = ?2, finished_at = NULL, purge_at = NULL`
	if len(ids) > 0 {
		var total int64
		err := q.w.do(ctx, "redrive dead letters", func(tx *queueTx) error {
			total = 0
			for _, id := range ids {
				n, err := tx.exec(set+` WHERE id = ?3 AND function = ?4 AND state = 3`, now.UnixMicro(), expires.UnixMicro(), id, function)
				if err != nil {
					return err
				}
				total += n
			}
			return nil
		})
		return total, err
	}
	return q.batches(ctx, "redrive dead letters", func(tx *queueTx) (int64, error) {
		return tx.exec(set+` WHERE seq IN (SELECT seq FROM calls WHERE function = ?3 AND state = 3 AND finished_at <= ?1 LIMIT ?4)`,
			now.UnixMicro(), expires.UnixMicro(), function, queueBatch)
	})
}

// Purge deletes the dead letters of a function and returns how many there were.
func (q *Queue) Purge(ctx context.Context, function string) (int64, error) {
	return q.batches(ctx, "delete dead letters", func(tx *queueTx) (int64, error) {
		return tx.exec(`DELETE FROM calls WHERE seq IN (SELECT seq FROM calls WHERE function = ? AND state = 3 LIMIT ?)`, function, queueBatch)
	})
}

// Prune deletes what was to be kept until now only, and calls that succeeded or were
// canceled if there are too many or they take too much room: the oldest of the functions
// that have most.
func (q *Queue) Prune(ctx context.Context, now time.Time) error {
	var old, oldKept bool
	// Nothing is written while there is nothing to do.
	err := q.db.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM calls WHERE purge_at <= ?), EXISTS (SELECT 1 FROM kept WHERE created_at <= ?)`,
		now.UnixMicro(), now.Add(-keptFor).UnixMicro()).Scan(&old, &oldKept)
	if err != nil {
		return dbError(ctx, err, "look for old calls")
	}
	if old {
		_, err := q.batches(ctx, "delete old calls", func(tx *queueTx) (int64, error) {
			return tx.exec(`DELETE FROM calls WHERE seq IN (SELECT seq FROM calls WHERE purge_at <= ? LIMIT ?)`, now.UnixMicro(), queueBatch)
		})
		if err != nil {
			return err
		}
	}
	if oldKept {
		if err := q.pruneKept(ctx, now); err != nil {
			return err
		}
	}
	for {
		var all, kept, keptBytes int64
		err := q.db.read.QueryRowContext(ctx, `SELECT bytes + kept_bytes, kept, kept_bytes FROM usage WHERE payer = ''`).Scan(&all, &kept, &keptBytes)
		if err != nil {
			return dbError(ctx, err, "count old calls")
		}
		over, by := kept-q.limits.Finished, "calls"
		// Half of what others leave is theirs while the queue is nearly full.
		half := (q.limits.Bytes - (all - keptBytes)) / 2
		if over <= 0 && all > q.limits.Bytes/4*3 && keptBytes > max(half, 0) {
			over, by = (keptBytes-max(half, 0))*kept/keptBytes+1, "bytes" // by their mean size
		}
		if over <= 0 {
			return nil
		}
		var dropped int64
		err = q.w.do(ctx, "delete old calls", func(tx *queueTx) (err error) {
			dropped, err = q.dropKept(tx, min(over, queueBatch), by)
			return err
		})
		if err != nil || dropped == 0 {
			return err
		}
	}
}

// batches repeats a change of at most queueBatch rows until it has no more to do.
func (q *Queue) batches(ctx context.Context, what string, run func(tx *queueTx) (int64, error)) (total int64, err error) {
	for {
		var n int64
		err := q.w.do(ctx, what, func(tx *queueTx) (err error) {
			n, err = run(tx)
			return err
		})
		if err != nil {
			return total, err
		}
		if total += n; n < queueBatch {
			return total, nil
		}
	}
}

// marshalFailures keeps the latest ones.
func marshalFailures(list []hearth.AsyncFailure) (string, error) {
	if len(list) == 0 {
		return "", nil
	}
	list = append([]hearth.AsyncFailure(nil), list[max(0, len(list)-maxFailures):]...)
	for i := range list {
		list[i].Type, list[i].Message = cut(list[i].Type, 200), cut(list[i].Message, maxMessage)
	}
	b, err := json.Marshal(list)
	return string(b), err
}

func stateOf(s hearth.AsyncState) int {
	for i, other := range states {
		if other == s {
			return i
		}
	}
	return stateFailed
}
