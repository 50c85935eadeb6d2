package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

const (
	// keepSecrets is how many versions of a secret are kept.
	keepSecrets = 10
	// maxSecrets is how many secrets an installation has.
	maxSecrets = 1000
)

// Secrets keeps the secrets of an installation: in the catalog, but encrypted
// with a key that is not in it. Its methods may be called from many goroutines.
type Secrets struct {
	store   *Store
	keyFile string

	mu   sync.Mutex
	keys keyring // guarded by mu; nil until they were read

	// reading is held by those who read values, so that no key goes away under
	// them.
	reading sync.RWMutex
	// rekeying is held by the one that changes the key.
	rekeying sync.Mutex
}

// Secrets returns the secrets, whose key is in keyFile. The key is made with the
// first secret.
func (s *Store) Secrets(keyFile string) *Secrets { return &Secrets{store: s, keyFile: keyFile} }

// theKeys returns the keys. Without a key file it makes one if mayMake, which is
// asked only then, allows it. Errors: CodeInvalid, CodeUnavailable.
func (s *Secrets) theKeys(mayMake func() (bool, error)) (keyring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys != nil {
		return s.keys, nil
	}
	ring, err := loadKeys(s.keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		may, merr := mayMake()
		switch {
		case merr != nil:
			return nil, merr
		case !may:
			return nil, keyError(hearth.CodeUnavailable, "is missing", s.keyFile, err).
				WithHint("restore it from your backup; if it is lost, make a new one with openssl rand -base64 %d and set each secret again", keySize)
		}
		ring, err = makeKey(s.keyFile)
	}
	if err != nil {
		return nil, err
	}
	s.keys = ring
	return ring, nil
}

// CheckKeyFile tells whether the key file still holds the key that the server has
// read from it and works with until it ends: else all secrets are lost then. Errors:
// CodeInvalid, CodeUnavailable.
func (s *Secrets) CheckKeyFile() error {
	s.rekeying.Lock()
	defer s.rekeying.Unlock()
	s.mu.Lock()
	ring := s.keys
	s.mu.Unlock()
	if ring == nil {
		return nil
	}
	saved, err := loadKeys(s.keyFile)
	hint := "restore it from your backup before the server ends, or let hearth secret rekey write it with a new key"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return keyError(hearth.CodeUnavailable, "is missing", s.keyFile, err).WithHint("%s", hint)
	case err == nil && saved.find(ring[0].id) == nil:
		return keyError(hearth.CodeInvalid, "does not hold the key that the server works with", s.keyFile, errors.New("it was replaced")).WithHint("%s", hint)
	}
	return err
}

// noKey makes no key where there is none.
func noKey() (bool, error) { return false, nil }

// Secrets returns what there is to know of each secret but its value, by name.
func (s *Secrets) Secrets(ctx context.Context) (out []hearth.Secret, err error) {
	s.reading.RLock()
	defer s.reading.RUnlock()
	ring, _ := s.theKeys(noKey) // without, all are locked
	err = s.store.catalog.view(ctx, "list secrets", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, selectSecret+` ORDER BY s.name`)
		list, err := collect(ctx, rows, err, "list secrets", scanSecret)
		if err != nil {
			return err
		}
		users, err := secretUsers(ctx, tx)
		if err != nil {
			return err
		}
		out = make([]hearth.Secret, 0, len(list))
		for _, f := range list {
			out = append(out, f.public(ring, users))
		}
		return nil
	})
	return out, err
}

// selectSecret has a secret with the version that counts, and the numbers of all.
const selectSecret = `SELECT s.name, s.number, v.key, v.size, v.text, v.created_at,
	(SELECT json_group_array(number) FROM secret_versions WHERE name = s.name)
	FROM secrets s JOIN secret_versions v ON v.name = s.name AND v.number = s.number`

// secretRow is a secret as it is stored, without its value.
type secretRow struct {
	hearth.Secret
	key  string
	size int
	text bool
}

func scanSecret(r row) (f secretRow, err error) {
	var created int64
	var numbers []byte
	if err := r.Scan(&f.Name, &f.Version, &f.key, &f.size, &f.text, &created, &numbers); err != nil {
		return f, err
	}
	f.CreatedAt = fromMicros(created)
	err = json.Unmarshal(numbers, &f.Versions)
	slices.SortFunc(f.Versions, func(a, b int) int { return b - a })
	return f, err
}

func (f secretRow) public(ring keyring, users []secretUser) hearth.Secret {
	out := f.Secret
	out.Locked = ring.find(f.key) == nil
	out.Functions = []string{}
	for _, u := range users {
		if slices.Contains(u.config.SecretNames(), f.Name) && !slices.Contains(out.Functions, u.function) {
			out.Functions = append(out.Functions, u.function)
		}
	}
	return out
}

// secretUser is a version that an alias leads to and that has secrets.
type secretUser struct {
	function string
	config   hearth.Config
}

// secretUsers returns all of them, by function.
func secretUsers(ctx context.Context, tx *sql.Tx) ([]secretUser, error) {
	rows, err := tx.QueryContext(ctx, selectVersion+` WHERE (v.function, v.number) IN (`+referenced+`)
		AND (json_type(v.config, '$.secrets') IS NOT NULL OR json_type(v.config, '$.secret_files') IS NOT NULL) ORDER BY v.function`)
	return collect(ctx, rows, err, "list versions with secrets", func(r row) (secretUser, error) {
		v, err := scanVersion(r)
		return secretUser{v.Function, v.Config}, err
	})
}

// SetSecret gives a secret a new version with the value, which it copies, and
// makes it if there is none. With the value that it has already nothing changes.
// Errors: CodeInvalid for a bad name, a value that is empty or too large or that
// a function which uses the secret could not get; CodeExhausted; CodeUnavailable
// without the key.
func (s *Secrets) SetSecret(ctx context.Context, name string, value []byte) (out hearth.Secret, err error) {
	if err := hearth.ValidateSecretName(name); err != nil {
		return out, err
	}
	if len(value) == 0 || len(value) > hearth.MaxSecret {
		return out, hearth.Errorf(hearth.CodeInvalid, "the value of secret %s has %d bytes", name, len(value)).
			WithHint("a value has 1 byte to %s", hearth.Bytes(hearth.MaxSecret))
	}
	err = s.store.catalog.update(ctx, "store a secret", func(tx *sql.Tx) error {
		ring, err := s.keysFor(ctx, tx)
		if err != nil {
			return err
		}
		old, err := scanSecret(tx.QueryRowContext(ctx, selectSecret+` WHERE s.name = ?`, name))
		isNew := errors.Is(err, sql.ErrNoRows)
		if err != nil && !isNew {
			return err
		}
		if !isNew {
			// One that cannot be opened any more is set anew.
			if have, err := s.read(ctx, tx, ring, name, old.Version); err == nil && bytes.Equal(have, value) {
				out, err = s.describe(ctx, tx, ring, name)
				return err
			}
		}
		if isNew {
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM secrets`).Scan(&n); err != nil {
				return err
			}
			if n >= maxSecrets {
				return hearth.Errorf(hearth.CodeExhausted, "there are %d secrets already", n).WithHint("delete those that no function uses; hearth secret list shows them")
			}
		}
		out, err = s.put(ctx, tx, ring, name, value)
		return err
	})
	return out, err
}

// RollbackSecret gives a secret a new version with the value of an older one, 0
// for the one before that which counts. Errors: CodeNotFound, CodeConflict if
// there is no older one, CodeUnavailable without the key, and CodeInvalid as
// SetSecret.
func (s *Secrets) RollbackSecret(ctx context.Context, name string, to int) (out hearth.Secret, err error) {
	err = s.store.catalog.update(ctx, "roll a secret back", func(tx *sql.Tx) error {
		old, err := scanSecret(tx.QueryRowContext(ctx, selectSecret+` WHERE s.name = ?`, name))
		if errors.Is(err, sql.ErrNoRows) {
			return noSecret(name)
		} else if err != nil {
			return err
		}
		switch {
		case to == 0 && len(old.Versions) < 2:
			return hearth.Errorf(hearth.CodeConflict, "secret %s has no older version", name).WithHint("give it a new value: hearth secret set %s", name)
		case to == 0:
			to = old.Versions[1]
		case !slices.Contains(old.Versions, to):
			return hearth.Errorf(hearth.CodeNotFound, "secret %s has no version %d", name, to).WithHint("the last %d are kept; hearth secret list shows them", keepSecrets)
		case to == old.Version:
			return hearth.Errorf(hearth.CodeConflict, "version %d of secret %s is the one that counts", to, name)
		}
		ring, err := s.keysFor(ctx, tx)
		if err != nil {
			return err
		}
		value, err := s.read(ctx, tx, ring, name, to)
		if err != nil {
			return err
		}
		out, err = s.put(ctx, tx, ring, name, value)
		return err
	})
	return out, err
}

// keysFor returns the keys to encrypt with. One is made if there is nothing yet
// that another one would have encrypted.
func (s *Secrets) keysFor(ctx context.Context, tx *sql.Tx) (keyring, error) {
	return s.theKeys(func() (bool, error) {
		var n int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM secret_versions`).Scan(&n)
		return n == 0, err
	})
}

// put stores a value as the newest version and drops the oldest ones.
func (s *Secrets) put(ctx context.Context, tx *sql.Tx, ring keyring, name string, value []byte) (hearth.Secret, error) {
	key := ring[0]
	var number int
	err := tx.QueryRowContext(ctx, `INSERT INTO secret_counters (name, last) VALUES (?, 1)
		ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last`, name).Scan(&number)
	if err != nil {
		return hearth.Secret{}, err
	}
	text := utf8.Valid(value) && !bytes.Contains(value, []byte{0})
	for _, q := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO secrets (name, number) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET number = excluded.number`, []any{name, number}},
		{
			`INSERT INTO secret_versions (name, number, key, sealed, size, text, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			[]any{name, number, key.id, key.seal(name, number, value), len(value), text, time.Now().UnixMicro()},
		},
		{`DELETE FROM secret_versions WHERE name = ? AND number NOT IN (SELECT number FROM secret_versions WHERE name = ? ORDER BY number DESC LIMIT ?)`, []any{name, name, keepSecrets}},
	} {
		if _, err := tx.ExecContext(ctx, q.query, q.args...); err != nil {
			return hearth.Secret{}, err
		}
	}
	users, err := secretUsers(ctx, tx)
	if err != nil {
		return hearth.Secret{}, err
	}
	for _, u := range users {
		if !slices.Contains(u.config.SecretNames(), name) {
			continue
		}
		if err := checkSecrets(ctx, tx, u.config); err != nil {
			e := hearth.AsError(err)
			return hearth.Secret{}, (&hearth.Error{Code: e.Code, Message: "function " + u.function + " could not get this value: " + e.Message, Err: e.Err}).WithHint("%s", e.Hint)
		}
	}
	return s.describe(ctx, tx, ring, name)
}

func (s *Secrets) describe(ctx context.Context, tx *sql.Tx, ring keyring, name string) (hearth.Secret, error) {
	f, err := scanSecret(tx.QueryRowContext(ctx, selectSecret+` WHERE s.name = ?`, name))
	if err != nil {
		return hearth.Secret{}, err
	}
	users, err := secretUsers(ctx, tx)
	return f.public(ring, users), err
}

// DeleteSecret removes a secret with all its versions. Errors: CodeNotFound,
// CodeConflict while a version that an alias leads to uses it.
func (s *Secrets) DeleteSecret(ctx context.Context, name string) error {
	return s.store.catalog.update(ctx, "delete a secret", func(tx *sql.Tx) error {
		users, err := secretUsers(ctx, tx)
		if err != nil {
			return err
		}
		var names []string
		for _, u := range users {
			if slices.Contains(u.config.SecretNames(), name) && !slices.Contains(names, u.function) {
				names = append(names, u.function)
			}
		}
		if len(names) > 0 {
			return hearth.Errorf(hearth.CodeConflict, "secret %s is used by %s", name, strings.Join(names, ", ")).
				WithHint("take it out of secrets and secret_files there and deploy")
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, noSecret(name))
		}
		return nil
	})
}

func noSecret(name string) error {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return hearth.Errorf(hearth.CodeNotFound, "there is no secret %q", name).WithHint("hearth secret list shows them")
}

// OpenSecrets returns the values of these versions of secrets, by name. Errors:
// CodeInvalid if one does not exist, CodeUnavailable without its key.
func (s *Secrets) OpenSecrets(ctx context.Context, versions map[string]int) (map[string][]byte, error) {
	s.reading.RLock()
	defer s.reading.RUnlock()
	values := make(map[string][]byte, len(versions))
	err := s.store.catalog.view(ctx, "read secrets", func(tx *sql.Tx) error {
		for name, number := range versions {
			if number == 0 {
				return missingSecret(name)
			}
			ring, err := s.theKeys(noKey)
			if err != nil {
				return err
			}
			if values[name], err = s.read(ctx, tx, ring, name, number); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return values, nil
}

// read decrypts one version.
func (s *Secrets) read(ctx context.Context, tx *sql.Tx, ring keyring, name string, number int) ([]byte, error) {
	var id string
	var sealed []byte
	err := tx.QueryRowContext(ctx, `SELECT key, sealed FROM secret_versions WHERE name = ? AND number = ?`, name, number).Scan(&id, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "version %d of secret %s is gone", number, name).WithHint("try again: calls get the version that counts now")
	} else if err != nil {
		return nil, err
	}
	key := ring.find(id)
	if key == nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "secret %s was encrypted with another key than the server has", name).
			WithHint("restart the server with the key file it was set with, or set it again: hearth secret set %s", name)
	}
	value, err := key.open(name, number, sealed)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "secret %s is damaged in the database: %w", name, err).
			WithHint("set it again: hearth secret set %s", name)
	}
	return value, nil
}

// CheckSecrets tells whether a function with this configuration can get its
// secrets. Errors: CodeInvalid if one does not exist or cannot be what it is to
// be.
func (s *Secrets) CheckSecrets(ctx context.Context, c hearth.Config) error {
	if len(c.SecretNames()) == 0 {
		return nil
	}
	return s.store.catalog.view(ctx, "check secrets", func(tx *sql.Tx) error { return checkSecrets(ctx, tx, c) })
}

func checkSecrets(ctx context.Context, tx *sql.Tx, c hearth.Config) error {
	total := 0
	have := map[string]secretRow{}
	for _, name := range c.SecretNames() {
		f, err := scanSecret(tx.QueryRowContext(ctx, selectSecret+` WHERE s.name = ?`, name))
		if errors.Is(err, sql.ErrNoRows) {
			return missingSecret(name)
		} else if err != nil {
			return err
		}
		have[name] = f
	}
	for k, name := range c.Secrets {
		if !have[name].text {
			return hearth.Errorf(hearth.CodeInvalid, "secret %s cannot be the environment variable %s: it is no text", name, k).
				WithHint("mount it as a file: secret_files: {%s: %s}", name, name)
		}
		total += have[name].size
	}
	for _, name := range c.SecretFiles {
		total += have[name].size
	}
	if total > hearth.MaxSecrets {
		return hearth.Errorf(hearth.CodeInvalid, "its secrets have %s together", hearth.Bytes(total)).
			WithHint("a function gets at most %s of secrets", hearth.Bytes(hearth.MaxSecrets))
	}
	return nil
}

func missingSecret(name string) error {
	return hearth.Errorf(hearth.CodeInvalid, "there is no secret %s", name).WithHint("make it first: hearth secret set %s", name)
}

// querier is what *sql.DB and *sql.Tx have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// useSecrets tells versions which versions of their secrets count.
func useSecrets(ctx context.Context, q querier, versions []hearth.Version) error {
	uses := func(v hearth.Version) bool { return len(v.Config.SecretNames()) > 0 }
	if !slices.ContainsFunc(versions, uses) {
		return nil
	}
	rows, err := q.QueryContext(ctx, `SELECT name, number FROM secrets`)
	latest := map[string]int{}
	_, err = collect(ctx, rows, err, "list the versions of secrets", func(r row) (name string, err error) {
		var number int
		err = r.Scan(&name, &number)
		latest[name] = number
		return name, err
	})
	if err != nil {
		return err
	}
	for i := range versions {
		versions[i] = versions[i].WithSecrets(latest)
	}
	return nil
}

// WithSecrets returns v, which was not stored yet, as a stored version is
// returned: with the versions of its secrets.
func (s *Secrets) WithSecrets(ctx context.Context, v hearth.Version) (hearth.Version, error) {
	list := []hearth.Version{v}
	err := useSecrets(ctx, s.store.catalog.read, list)
	return list[0], err
}
