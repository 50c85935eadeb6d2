// Package store keeps what must survive a restart: the catalog of functions
// and versions, the records of invocations, and the artifacts that versions
// run. It owns one data directory:
//
//	lock             held by the server that uses the directory
//	hearth.db        the catalog (SQLite, WAL, synchronous=FULL)
//	invocations.db   the invocation records (SQLite, WAL, synchronous=NORMAL)
//	queue.db         the asynchronous calls (SQLite, WAL, synchronous=FULL)
//	artifacts/<hex>  one directory of read-only files for each artifact
//
// The databases are several because they make different promises. A catalog method
// that returned without an error has reached the disk. Invocation records come
// by the hundred each second and are written without waiting for the disk: a
// crash of Hearth loses none that AppendInvocations acknowledged, a crash of
// the machine may lose the last ones. In one file either each batch of records
// would wait for the disk or a deploy might be lost.
//
// The queue is a third one because SQLite has one writer for each file. A call is
// accepted when it has reached the disk, thousands of times a second, and one
// goroutine commits what has come meanwhile in one transaction (see queueWriter).
// A deploy would wait for that, and the calls for the deploy. It is also the file that
// grows and shrinks with other people's data, and it can be deleted without
// touching the functions.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/hearthrun/hearth"
)

//go:embed migrations
var migrations embed.FS

const (
	catalogFile     = "hearth.db"
	invocationsFile = "invocations.db"
	queueFile       = "queue.db"
	readers         = 4
)

// Store is an open data directory. Its methods may be called from many
// goroutines. Besides the codes they name, all return CodeCanceled or
// CodeTimeout when ctx ends first, CodeUnavailable when the disk fails, and
// CodeInternal for a defect.
type Store struct {
	// Constant after Open.
	dir         string
	log         *slog.Logger
	lock        *os.File
	owner       string
	catalog     *database
	invocations *database
	queueDB     *database
	queue       *Queue
	scan        int // maxScan, but in tests

	mu    sync.Mutex     // guards what follows and the removal of artifacts
	holds map[string]int // by digest: how many stages and new versions need it
}

// database is one SQLite file: one connection that writes and a few that read
// beside it.
type database struct {
	write, read *sql.DB
	writes      writes
}

// Open opens the data directory dir, which it creates with mode 0700 if need
// be, and brings its databases to the schema of this program. It removes what
// a killed server left unfinished. The caller must Close the Store.
//
// Errors: CodeConflict if another server uses dir; CodeInvalid if dir is no
// directory for data or was written by a newer Hearth; CodeUnavailable if it
// cannot be read and written.
func Open(ctx context.Context, dir string, logger *slog.Logger) (_ *Store, err error) {
	dir, err = prepareDir(dir)
	if err != nil {
		return nil, err
	}
	lock, err := acquire(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, log: logger, lock: lock, holds: map[string]int{}, scan: maxScan}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	// secure_delete: what a value of a secret was encrypted to goes with it.
	if s.catalog, err = openDatabase(ctx, filepath.Join(dir, catalogFile), "catalog", "FULL", "secure_delete(ON)"); err != nil {
		return nil, err
	}
	if s.invocations, err = openDatabase(ctx, filepath.Join(dir, invocationsFile), "invocations", "NORMAL", invocationPragmas...); err != nil {
		return nil, err
	}
	if err = s.openQueue(ctx, filepath.Join(dir, queueFile)); err != nil {
		return nil, err
	}
	if s.owner, err = s.loadOwner(ctx); err != nil {
		return nil, err
	}
	if err = s.openArtifacts(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close closes the databases and lets another server use the directory. It
// does not wait for calls in progress, which fail. A second Close does nothing.
func (s *Store) Close() error {
	var errs []error
	if s.queue != nil {
		errs = append(errs, s.queue.w.close())
	}
	for _, d := range []*database{s.queueDB, s.invocations, s.catalog} {
		if d != nil {
			errs = append(errs, d.read.Close(), d.write.Close())
		}
	}
	// Last: until here nobody else may open the databases.
	if err := s.lock.Close(); !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Owner returns the random id of this data directory, made when it was
// created: 32 hexadecimal digits. Drivers mark their sandboxes with it.
func (s *Store) Owner() string { return s.owner }

// Dir returns the absolute path of the data directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) loadOwner(ctx context.Context) (string, error) {
	const get = `SELECT value FROM settings WHERE key = 'owner'`
	var owner string
	err := s.catalog.read.QueryRowContext(ctx, get).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) {
		owner = randomID()
		_, err = s.catalog.write.ExecContext(ctx, `INSERT INTO settings (key, value) VALUES ('owner', ?)`, owner)
	}
	return owner, dbError(ctx, err, "read the owner id")
}

// openDatabase opens one file and migrates it.
func openDatabase(ctx context.Context, path, schema, synchronous string, pragmas ...string) (_ *database, err error) {
	// Created here so that its mode does not depend on the umask.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dirError(err, path)
	}
	if err := f.Close(); err != nil {
		return nil, dirError(err, path)
	}
	open := func(conns int, pragmas ...string) (*sql.DB, error) {
		u := url.URL{Scheme: "file", Path: path}
		u.RawQuery = url.Values{
			"_txlock": {"immediate"},
			// The given ones first: auto_vacuum counts only before the file is made.
			"_pragma": append(pragmas, "busy_timeout(10000)", "journal_mode(WAL)", "foreign_keys(ON)", "trusted_schema(OFF)",
				"synchronous("+synchronous+")"),
		}.Encode()
		db, err := sql.Open("sqlite", u.String())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db, nil
	}
	d := &database{}
	if d.write, err = open(1, pragmas...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = d.write.Close()
		}
	}()
	if err := migrate(ctx, d.write, path, schema); err != nil {
		return nil, err
	}
	if d.read, err = open(readers, "query_only(ON)"); err != nil {
		return nil, err
	}
	return d, nil
}

// migrate brings a database to the newest schema and refuses one that is newer.
func migrate(ctx context.Context, db *sql.DB, path, schema string) error {
	files, err := fs.Sub(migrations, "migrations/"+schema)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return dbError(ctx, err, "prepare the schema of "+path)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return dbError(ctx, err, "read the schema of "+path)
	}
	if current > target {
		return hearth.Errorf(hearth.CodeInvalid, "%s has schema %d, but this Hearth knows only schemas up to %d", path, current, target).
			WithHint("a newer Hearth has used this data directory: start that version or a later one, or restore a backup made before the upgrade")
	}
	if _, err := p.Up(ctx); err != nil {
		return dbError(ctx, err, fmt.Sprintf("bring %s from schema %d to %d", path, current, target))
	}
	return nil
}

// update runs fn in a transaction that writes.
func (d *database) update(ctx context.Context, what string, fn func(tx *sql.Tx) error) (err error) {
	began := time.Now()
	defer func() { d.writes.count(began, broken(err)) }()
	tx, err := d.write.BeginTx(ctx, nil)
	if err != nil {
		return dbError(ctx, err, what)
	}
	defer func() { _ = tx.Rollback() }()
	if err := fn(tx); err != nil {
		return dbError(ctx, err, what)
	}
	return dbError(ctx, tx.Commit(), what)
}

// view runs fn in a transaction that reads one consistent state.
func (d *database) view(ctx context.Context, what string, fn func(tx *sql.Tx) error) error {
	tx, err := d.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return dbError(ctx, err, what)
	}
	defer func() { _ = tx.Rollback() }()
	return dbError(ctx, fn(tx), what)
}

// dbError gives an error of the database a code; errors that have one pass.
func dbError(ctx context.Context, err error, what string) error {
	var coded *hearth.Error
	var db *sqlite.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "the deadline passed while the store had to " + what, Err: ctx.Err()}
	case ctx.Err() != nil:
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "canceled while the store had to " + what, Err: ctx.Err()}
	case errors.As(err, &db):
		unavailable := &hearth.Error{Code: hearth.CodeUnavailable, Message: "the store could not " + what, Err: err}
		switch db.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return unavailable.WithHint("free space on the disk of the data directory")
		case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
			return unavailable.WithHint("check the disk of the data directory and the permissions of its files")
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return unavailable.WithHint("the database is damaged: check the disk and restore a backup, see docs/operations.md")
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return unavailable.WithHint("another program holds the database; stop it")
		}
	}
	return &hearth.Error{Code: hearth.CodeInternal, Message: "the store could not " + what, Err: err}
}

// dirError explains why a file of the data directory cannot be used.
func dirError(err error, path string) error {
	e := &hearth.Error{Code: hearth.CodeUnavailable, Message: "cannot use " + path, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return e.WithHint("let this user write there, or choose another directory with --data-dir")
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		e.Code = hearth.CodeInvalid
		return e.WithHint("a part of the path is not a directory; choose another with --data-dir")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return e.WithHint("free space on the disk of the data directory")
	}
	return e.WithHint("check the disk, or choose another directory with --data-dir")
}

// randomID returns 128 random bits as 32 hexadecimal digits.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
