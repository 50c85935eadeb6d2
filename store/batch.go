package store

import (
	"context"

	"github.com/hearthrun/hearth"
)

// AcceptAll stores calls of one function, each with another deduplication key or none:
// all, or none with an error. In place of those whose key is that of an earlier call it
// returns that one. Errors: CodeExhausted if there is no room for all, CodeInvalid with
// hearth.ErrKeyReused if the fingerprint of an earlier call is another.
func (q *Queue) AcceptAll(ctx context.Context, list []hearth.AsyncEntry) ([]hearth.AsyncCall, error) {
	calls := make([]hearth.AsyncCall, len(list))
	err := q.w.do(ctx, "store calls", func(tx *queueTx) error {
		var n, bytes int64
		for i, e := range list {
			calls[i] = e.AsyncCall
			if e.DeduplicationKey != "" {
				old, err := q.deduplicate(tx, e.Function, e.DeduplicationKey, e.AcceptedAt)
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
		if err := q.roomFor(tx, list[0].Function, n, bytes, 1); err != nil {
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
