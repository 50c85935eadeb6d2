package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hearthrun/hearth"
)

// maxPage is the greatest number of rows one list call returns.
const maxPage = 1000

// CreateFunction makes the function v.Function with v as its first version,
// which becomes live. The store sets v's Number and, if they are empty, its
// CreatedAt and Incarnation; it returns the version as stored. Its Artifact and
// its Source, if it has one, must have been committed (see Stage).
//
// Errors: CodeInvalid for a bad name or digest or a missing secret, CodeNotFound for an artifact
// that is not there, CodeConflict if the name or a route is taken.
func (s *Store) CreateFunction(ctx context.Context, v hearth.Version) (hearth.Function, hearth.Version, error) {
	return s.addVersion(ctx, v, true, func(tx *sql.Tx) (int64, error) {
		if _, err := readGeneration(ctx, tx, v.Function); err == nil {
			return 0, hearth.Errorf(hearth.CodeConflict, "function %s exists already", v.Function).
				WithHint("update it, or choose another name")
		} else if hearth.ErrorCode(err) != hearth.CodeNotFound {
			return 0, err
		}
		return 0, nil
	})
}

// AddVersion adds v to the function v.Function and, if live is true, gives it all
// calls of hearth.Live. The function must be at ifGeneration, unless that is 0. It
// sets and returns the same as CreateFunction.
//
// Errors: CodeInvalid for a bad name or digest or a missing secret, CodeNotFound for a missing
// function or artifact, CodeConflict if the generation is another or a route
// is taken.
func (s *Store) AddVersion(ctx context.Context, v hearth.Version, live bool, ifGeneration int64) (hearth.Function, hearth.Version, error) {
	return s.addVersion(ctx, v, live, func(tx *sql.Tx) (int64, error) {
		return checkGeneration(ctx, tx, v.Function, ifGeneration)
	})
}

// addVersion inserts a version and makes it live if that is asked for. check
// returns the current generation, 0 to create the function.
func (s *Store) addVersion(ctx context.Context, v hearth.Version, live bool, check func(tx *sql.Tx) (int64, error)) (f hearth.Function, _ hearth.Version, err error) {
	fail := func(err error) (hearth.Function, hearth.Version, error) {
		return hearth.Function{}, hearth.Version{}, err
	}
	if err := hearth.ValidateName(v.Function); err != nil {
		return fail(err)
	}
	if err := s.hold(v.Artifact); err != nil {
		return fail(err)
	}
	defer s.release(v.Artifact)
	if v.Source != "" {
		if err := s.hold(v.Source); err != nil {
			return fail(err)
		}
		defer s.release(v.Source)
	}
	v.Config = v.Config.Clone()
	v.Warnings = append([]string(nil), v.Warnings...)
	if v.Incarnation == "" {
		v.Incarnation = randomID()
	}
	if v.CreatedAt.IsZero() {
		v.CreatedAt = time.Now()
	}
	v.CreatedAt = fromMicros(v.CreatedAt.UnixMicro())
	config, err := json.Marshal(v.Config)
	if err != nil {
		return fail(hearth.Errorf(hearth.CodeInvalid, "the configuration cannot be stored: %w", err))
	}
	warnings, err := json.Marshal(v.Warnings)
	if err != nil {
		return fail(err)
	}
	err = s.catalog.update(ctx, "store a version", func(tx *sql.Tx) error {
		generation, err := check(tx)
		if err != nil {
			return err
		}
		if err := checkSecrets(ctx, tx, v.Config); err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, `INSERT INTO counters (function, last) VALUES (?, 1)
			ON CONFLICT (function) DO UPDATE SET last = last + 1 RETURNING last`, v.Function).Scan(&v.Number)
		if err != nil {
			return err
		}
		now := v.CreatedAt.UnixMicro()
		if generation == 0 { // what follows makes it 1
			_, err = tx.ExecContext(ctx, `INSERT INTO functions (name, first, live, generation, created_at, updated_at)
				VALUES (?, ?, ?, 0, ?, ?)`, v.Function, v.Number, v.Number, now, now)
		} else if !live {
			_, err = tx.ExecContext(ctx, `UPDATE functions SET generation = generation + 1, updated_at = ? WHERE name = ?`, now, v.Function)
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO versions (function, number, incarnation, config, artifact, warnings, created_at, request_stream, source, websocket)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, v.Function, v.Number, v.Incarnation, string(config), v.Artifact, string(warnings), now, v.RequestStream, v.Source, v.Websocket)
		if err != nil {
			return err
		}
		if live {
			if err := makeLive(ctx, tx, v); err != nil {
				return err
			}
		}
		f, err = scanFunction(tx.QueryRowContext(ctx, selectFunction+` WHERE f.name = ?`, v.Function))
		return err
	})
	if err != nil {
		return fail(err)
	}
	return f, v, nil
}

// makeLive gives a new version all calls of hearth.Live.
func makeLive(ctx context.Context, tx *sql.Tx, v hearth.Version) error {
	a, err := scanAlias(tx.QueryRowContext(ctx, selectAlias+` WHERE function = ? AND name = ?`, v.Function, hearth.Live))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	r := hearth.Release{
		Function: v.Function, Kind: hearth.ReleaseDeploy, State: hearth.ReleaseDone,
		To: v.Number, StartedAt: v.CreatedAt, StepAt: v.CreatedAt, EndedAt: &v.CreatedAt,
	}
	if err == nil {
		r.From = a.Main()
	}
	// The version of a release that was not finished is none to go back to.
	err = tx.QueryRowContext(ctx, `SELECT "from" FROM releases WHERE function = ? AND state = ?`, v.Function, string(hearth.ReleaseRunning)).Scan(&r.From)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	a.Name, a.Versions, a.UpdatedAt = hearth.Live, hearth.Weights{v.Number: 100}, v.CreatedAt
	if err := putAlias(ctx, tx, v.Function, a); err != nil {
		return err
	}
	return putRelease(ctx, tx, &r)
}

// replaceRoutes gives an alias exactly these routes.
func replaceRoutes(ctx context.Context, tx *sql.Tx, function, alias string, routes []hearth.Route) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM routes WHERE function = ? AND alias = ?`, function, alias); err != nil {
		return err
	}
	for _, r := range routes {
		text := canonicalRoute(r)
		var other, otherAlias string
		err := tx.QueryRowContext(ctx, `INSERT INTO routes (route, function, alias) VALUES (?, ?, ?)
			ON CONFLICT (route) DO UPDATE SET function = function RETURNING function, alias`, text, function, alias).Scan(&other, &otherAlias)
		if err != nil {
			return err
		}
		if other != function || otherAlias != alias {
			owner := "function " + other
			if otherAlias != hearth.Live {
				owner = "alias " + otherAlias + " of " + owner
			}
			return hearth.Errorf(hearth.CodeConflict, "route %q belongs to %s", text, owner).
				WithHint("remove the route from one of the two")
		}
	}
	return nil
}

// canonicalRoute writes a route in the one way in which it is compared.
func canonicalRoute(r hearth.Route) string {
	method, host, path := r.Parts()
	if method == "" {
		return host + path
	}
	return method + " " + host + path
}

// Function returns a function. Errors: CodeNotFound.
func (s *Store) Function(ctx context.Context, name string) (hearth.Function, error) {
	f, err := scanFunction(s.catalog.read.QueryRowContext(ctx, selectFunction+` WHERE f.name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return hearth.Function{}, noFunction(name)
	}
	return f, dbError(ctx, err, "read a function")
}

// Functions returns the functions whose names come after the given one, by
// name, at most limit of them (1 to 1000; 0 means 1000).
func (s *Store) Functions(ctx context.Context, after string, limit int) ([]hearth.Function, error) {
	rows, err := s.catalog.read.QueryContext(ctx, selectFunction+` WHERE f.name > ? ORDER BY f.name LIMIT ?`, after, page(limit))
	return collect(ctx, rows, err, "list functions", scanFunction)
}

// DeleteFunction removes a function with its versions, routes and invocation
// records. It must be at ifGeneration, unless that is 0. Its artifacts stay
// until PruneArtifacts, since instances may still be running them.
// Errors: CodeNotFound, CodeConflict if the generation is another.
func (s *Store) DeleteFunction(ctx context.Context, name string, ifGeneration int64) error {
	var artifacts []string
	err := s.catalog.update(ctx, "delete a function", func(tx *sql.Tx) error {
		if _, err := checkGeneration(ctx, tx, name, ifGeneration); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT artifact FROM versions WHERE function = ?1
			UNION SELECT source FROM versions WHERE function = ?1 AND source <> ''`, name)
		artifacts, err = collect(ctx, rows, err, "list artifacts", scanString)
		if err != nil {
			return err
		}
		// Before the commit: from here on their age counts from now.
		s.touchArtifacts(artifacts)
		_, err = tx.ExecContext(ctx, `DELETE FROM functions WHERE name = ?`, name)
		return err
	})
	if err != nil {
		return err
	}
	// The function is gone; what is left of its records cannot be seen any more
	// (see Invocations), so failing to remove them is no failure of the delete.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := s.deleteInvocations(ctx, name); err != nil {
		s.log.Warn("invocation records of a deleted function stay until they are pruned", "function", name, "error", err)
	}
	return nil
}

const cleanupTimeout = 30 * time.Second

// Version returns one version. Errors: CodeNotFound.
func (s *Store) Version(ctx context.Context, name string, number int) (hearth.Version, error) {
	v, err := scanVersion(s.catalog.read.QueryRowContext(ctx, selectVersion+` WHERE v.function = ? AND v.number = ?`, name, number))
	if errors.Is(err, sql.ErrNoRows) {
		return hearth.Version{}, noVersion(name, number)
	}
	if err != nil {
		return hearth.Version{}, dbError(ctx, err, "read a version")
	}
	list := []hearth.Version{v}
	err = useSecrets(ctx, s.catalog.read, list)
	return list[0], err
}

// VersionNumbers returns the numbers of all versions there are, by function.
func (s *Store) VersionNumbers(ctx context.Context) (out map[string][]int, err error) {
	out = map[string][]int{}
	err = s.catalog.view(ctx, "list all versions", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT function, number FROM versions`)
		list, err := collect(ctx, rows, err, "list all versions", func(r row) (v hearth.Version, err error) {
			err = r.Scan(&v.Function, &v.Number)
			return v, err
		})
		for _, v := range list {
			out[v.Function] = append(out[v.Function], v.Number)
		}
		return err
	})
	return out, err
}

// Versions returns a function's versions, newest first, at most limit of them
// (1 to 1000; 0 means 1000), those below before only unless before is 0.
// Errors: CodeNotFound if there is no such function.
func (s *Store) Versions(ctx context.Context, name string, before, limit int) (out []hearth.Version, err error) {
	err = s.catalog.view(ctx, "list versions", func(tx *sql.Tx) error {
		if _, err := readGeneration(ctx, tx, name); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, selectVersion+` WHERE v.function = ?1 AND (?2 = 0 OR v.number < ?2)
			ORDER BY v.number DESC LIMIT ?3`, name, before, page(limit))
		if out, err = collect(ctx, rows, err, "list versions", scanVersion); err != nil {
			return err
		}
		return useSecrets(ctx, tx, out)
	})
	return out, err
}

const (
	selectFunction = `SELECT f.name, f.live, f.generation, f.created_at, f.updated_at, v.config, v.artifact, a.versions
		FROM functions f JOIN versions v ON v.function = f.name AND v.number = f.live
		JOIN aliases a ON a.function = f.name AND a.name = 'live'`
	selectVersion = `SELECT v.function, v.number, v.incarnation, v.config, v.artifact, v.warnings, v.created_at, v.request_stream, v.source, v.websocket FROM versions v`
)

// row is what *sql.Row and *sql.Rows have in common.
type row interface{ Scan(dest ...any) error }

func scanFunction(r row) (f hearth.Function, err error) {
	var created, updated int64
	var config, versions []byte
	if err := r.Scan(&f.Name, &f.Live, &f.Generation, &created, &updated, &config, &f.Artifact, &versions); err != nil {
		return hearth.Function{}, err
	}
	f.CreatedAt, f.UpdatedAt = fromMicros(created), fromMicros(updated)
	if err := errors.Join(json.Unmarshal(config, &f.Config), json.Unmarshal(versions, &f.Split)); err != nil {
		return hearth.Function{}, fmt.Errorf("configuration of function %s: %w", f.Name, err)
	}
	if len(f.Split) == 1 {
		f.Split = nil
	}
	return f, nil
}

func scanVersion(r row) (v hearth.Version, err error) {
	var created int64
	var config, warnings []byte
	if err := r.Scan(&v.Function, &v.Number, &v.Incarnation, &config, &v.Artifact, &warnings, &created, &v.RequestStream, &v.Source, &v.Websocket); err != nil {
		return hearth.Version{}, err
	}
	v.CreatedAt = fromMicros(created)
	if err := errors.Join(json.Unmarshal(config, &v.Config), json.Unmarshal(warnings, &v.Warnings)); err != nil {
		return v, fmt.Errorf("version %d of function %s: %w", v.Number, v.Function, err)
	}
	return v, nil
}

func scanString(r row) (s string, err error) {
	err = r.Scan(&s)
	return s, err
}

// collect scans all rows and closes them; err is that of the query.
func collect[T any](ctx context.Context, rows *sql.Rows, err error, what string, scan func(row) (T, error)) ([]T, error) {
	if err != nil {
		return nil, dbError(ctx, err, what)
	}
	defer func() { _ = rows.Close() }()
	out := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, dbError(ctx, err, what)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, dbError(ctx, err, what)
	}
	return out, nil
}

// readGeneration returns the generation of a function. Errors: CodeNotFound.
func readGeneration(ctx context.Context, tx *sql.Tx, name string) (g int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT generation FROM functions WHERE name = ?`, name).Scan(&g)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, noFunction(name)
	}
	return g, err
}

// checkGeneration returns the generation of a function and fails with
// CodeConflict if it is not want, unless want is 0.
func checkGeneration(ctx context.Context, tx *sql.Tx, name string, want int64) (int64, error) {
	g, err := readGeneration(ctx, tx, name)
	if err == nil && want != 0 && want != g {
		return 0, hearth.Errorf(hearth.CodeConflict, "function %s has changed: it is at generation %d, not %d", name, g, want).
			WithHint("read it again and repeat your change")
	}
	return g, err
}

func noFunction(name string) error {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return hearth.Errorf(hearth.CodeNotFound, "there is no function %q", name).
		WithHint("hearth list shows the functions")
}

// page bounds the length of a list.
func page(limit int) int {
	if limit <= 0 || limit > maxPage {
		return maxPage
	}
	return limit
}

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }
