package store

import (
	"context"

	"github.com/hearthrun/hearth"
)

// AcceptAll stores calls of one function, which have no deduplication keys: all, or none
// with an error. Errors: CodeExhausted if there is no room for all.
func (q *Queue) AcceptAll(ctx context.Context, list []hearth.AsyncEntry) error {
	var bytes int64
	for _, e := range list {
		bytes += e.Bytes
	}
	if len(list) == 0 {
		return nil
	}
	return q.w.do(ctx, "store calls", func(tx *queueTx) error {
		if err := q.roomFor(tx, list[0].Function, int64(len(list)), bytes, 1); err != nil {
			return err
		}
		for _, e := range list {
			if err := q.insert(tx, e); err != nil {
				return err
			}
		}
		return nil
	})
}
