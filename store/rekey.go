package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/hearthrun/hearth"
)

// Rekey encrypts the values of all secrets with a new key and destroys the old
// one. The values, their versions and the instances that have them stay. Errors:
// CodeConflict if there is no key yet, CodeUnavailable without the key, or if its
// file cannot be replaced. A file that was lost after the keys were read is made anew.
//
// It may be interrupted at any moment:
//
//  1. the key file gets the new key before the old one: either is there for what
//     it encrypted;
//  2. one transaction encrypts all values anew;
//  3. the key file keeps the new key only.
//
// After an error or a crash in between, both keys are in the file and every value
// can be read. The next ResumeRekey, or the next Rekey, comes to the end.
func (s *Secrets) Rekey(ctx context.Context) (out hearth.Rekeyed, err error) {
	s.rekeying.Lock()
	defer s.rekeying.Unlock()
	old, err := s.theKeys(noKey)
	if errors.Is(err, fs.ErrNotExist) {
		if list, lerr := s.Secrets(ctx); lerr == nil && len(list) == 0 {
			return out, hearth.Errorf(hearth.CodeConflict, "there is no key yet that another could replace").
				WithHint("it is made with the first secret: hearth secret set NAME")
		}
	}
	if err != nil {
		return out, err
	}
	fresh, err := randomKey()
	if err != nil {
		return out, err
	}
	ring := keyring{fresh}
	err = s.store.catalog.view(ctx, "list the keys of secrets", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT DISTINCT key FROM secret_versions`)
		used, err := collect(ctx, rows, err, "list the keys of secrets", func(r row) (id string, err error) { return id, r.Scan(&id) })
		for _, k := range old {
			// The first may be used by a value that is being stored.
			if k == old[0] || slices.Contains(used, k.id) {
				ring = append(ring, k)
			}
		}
		return err
	})
	if err != nil {
		return out, err
	}
	if err := replaceKeys(s.keyFile, ring); err != nil {
		return out, err
	}
	s.setKeys(ring)
	return s.reencrypt(ctx, ring)
}

// ResumeRekey comes to the end of what a killed server had begun, or of what was
// begun by hand with a new first line of the key file: it encrypts all values with
// the first key and removes the others. It does nothing where the file has one
// key or is not there. Errors: CodeUnavailable.
func (s *Secrets) ResumeRekey(ctx context.Context) (out hearth.Rekeyed, err error) {
	s.rekeying.Lock()
	defer s.rekeying.Unlock()
	if path, err := filepath.EvalSymlinks(s.keyFile); err == nil {
		if err := eraseKeys(nextKeys(path)); err != nil {
			return out, keyError(hearth.CodeUnavailable, "has a neighbour that cannot be removed", nextKeys(path), err).WithHint("remove it")
		}
	}
	ring, err := s.theKeys(noKey)
	if err != nil || len(ring) == 1 {
		return out, nil //nolint:nilerr // the server's log tells which secrets are locked
	}
	return s.reencrypt(ctx, ring)
}

// setKeys lets nobody use other keys from now on.
func (s *Secrets) setKeys(ring keyring) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = ring
}

// reencrypt encrypts all values with the first key, which the key file has
// already, and removes the others from there.
func (s *Secrets) reencrypt(ctx context.Context, ring keyring) (out hearth.Rekeyed, err error) {
	err = s.store.catalog.update(ctx, "encrypt the secrets with a new key", func(tx *sql.Tx) error {
		out = hearth.Rekeyed{Unreadable: []string{}}
		type version struct {
			name   string
			number int
		}
		rows, err := tx.QueryContext(ctx, `SELECT name, number FROM secret_versions ORDER BY name, number`)
		list, err := collect(ctx, rows, err, "list the versions of secrets", func(r row) (v version, err error) { return v, r.Scan(&v.name, &v.number) })
		if err != nil {
			return err
		}
		for i, v := range list {
			if i == 0 || v.name != list[i-1].name {
				out.Secrets++
			}
			value, err := s.read(ctx, tx, ring, v.name, v.number)
			if err != nil {
				if ctx.Err() != nil || hearth.ErrorCode(err) != hearth.CodeUnavailable {
					return err
				}
				// Encrypted with a key that was lost before, or damaged: no key of
				// this file opens it.
				if !slices.Contains(out.Unreadable, v.name) {
					out.Unreadable = append(out.Unreadable, v.name)
				}
				continue
			}
			_, err = tx.ExecContext(ctx, `UPDATE secret_versions SET key = ?, sealed = ? WHERE name = ? AND number = ?`,
				ring[0].id, ring[0].seal(v.name, v.number, value), v.name, v.number)
			if err != nil {
				return err
			}
			out.Values++
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	if err := replaceKeys(s.keyFile, ring[:1]); err != nil {
		return out, err
	}
	s.setKeys(ring[:1:1])
	// What the old key had encrypted leaves the write-ahead log, too. Without, it
	// does so with the next checkpoint.
	_, _ = s.store.catalog.write.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	return out, nil
}
