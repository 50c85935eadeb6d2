package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hearthrun/hearth"
)

const (
	// keptFor is how long a response is kept for its idempotency key.
	keptFor = 24 * time.Hour
	// maxKept and maxKeptBytes, of headers and bodies, bound what is kept of one
	// function. The oldest of the caller go who has most of them, so that one who floods
	// a function takes nothing away from others.
	maxKept      = 10_000
	maxKeptBytes = 64 << 20
)

// BeginKept begins a call with an idempotency key. If one with the same key has
// begun before, that is returned and began is false. It returns when the call has
// reached the disk.
func (q *Queue) BeginKept(ctx context.Context, k hearth.KeptResponse) (before hearth.KeptResponse, began bool, err error) {
	err = q.w.do(ctx, "begin a call with an idempotency key", func(tx *queueTx) error {
		now := q.now()
		n, err := tx.exec(`INSERT INTO kept (key, function, caller, fingerprint, state, created_at) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (key) DO UPDATE SET function = excluded.function, caller = excluded.caller, fingerprint = excluded.fingerprint, state = excluded.state,
				status = 0, header = '{}', body = x'', bytes = 0, created_at = excluded.created_at
			WHERE created_at <= ?`, // no call runs for so long
			k.Key, k.Function, k.Caller, k.Fingerprint, string(hearth.KeptRunning), now.UnixMicro(), now.Add(-keptFor).UnixMicro())
		if err != nil {
			return err
		}
		if began = n > 0; began {
			return nil
		}
		var header []byte
		before = hearth.KeptResponse{Key: k.Key}
		err = tx.row(`SELECT function, fingerprint, state, status, header, body FROM kept WHERE key = ?`, k.Key).
			Scan(&before.Function, &before.Fingerprint, &before.State, &before.Status, &header, &before.Body)
		if err != nil {
			return err
		}
		return json.Unmarshal(header, &before.Header)
	})
	return before, began, err
}

// EndKept stores the response of a call that BeginKept began, and forgets older
// ones of the function if they are too many or too large.
func (q *Queue) EndKept(ctx context.Context, k hearth.KeptResponse) error {
	header, err := json.Marshal(k.Header)
	if err != nil {
		return err
	}
	if k.Body == nil {
		k.Body = []byte{}
	}
	return q.w.do(ctx, "keep a response", func(tx *queueTx) error {
		_, err := tx.exec(`UPDATE kept SET state = ?, status = ?, header = ?, body = ?, bytes = ? WHERE key = ?`,
			string(k.State), k.Status, string(header), k.Body, len(header)+len(k.Body), k.Key)
		if err != nil {
			return err
		}
		var count, bytes int64
		if err := tx.row(`SELECT COALESCE(SUM(calls), 0), COALESCE(SUM(bytes), 0) FROM kept_totals WHERE function = ?`, k.Function).Scan(&count, &bytes); err != nil {
			return err
		}
		by := "calls"
		switch {
		case bytes > maxKeptBytes:
			by = "bytes"
		case count <= maxKept:
			return nil
		}
		var caller string
		if err := tx.row(`SELECT caller, calls FROM kept_callers WHERE function = ? ORDER BY `+by+` DESC LIMIT 1`, k.Function).Scan(&caller, &count); err != nil {
			return err
		}
		_, err = tx.exec(`DELETE FROM kept WHERE key IN (SELECT key FROM kept WHERE function = ? AND caller = ? AND state <> 'running' ORDER BY created_at LIMIT ?)`,
			k.Function, caller, max(1, count/10))
		return err
	})
}

// DropKept forgets a call that BeginKept began and that its function did not get.
func (q *Queue) DropKept(ctx context.Context, key string) error {
	return q.w.do(ctx, "forget a call", func(tx *queueTx) error {
		_, err := tx.exec(`DELETE FROM kept WHERE key = ?`, key)
		return err
	})
}

// forgetKept forgets the responses of a function that was deleted.
func (q *Queue) forgetKept(ctx context.Context, function string) error {
	_, err := q.batches(ctx, "forget kept responses", func(tx *queueTx) (int64, error) {
		return tx.exec(`DELETE FROM kept WHERE key IN (SELECT key FROM kept WHERE function = ? LIMIT ?)`, function, queueBatch)
	})
	return err
}

// pruneKept forgets what is too old.
func (q *Queue) pruneKept(ctx context.Context, now time.Time) error {
	_, err := q.batches(ctx, "forget kept responses", func(tx *queueTx) (int64, error) {
		return tx.exec(`DELETE FROM kept WHERE key IN (SELECT key FROM kept WHERE created_at <= ? LIMIT ?)`,
			now.Add(-keptFor).UnixMicro(), queueBatch)
	})
	return err
}
