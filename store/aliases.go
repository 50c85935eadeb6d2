package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hearthrun/hearth"
)

// Deployments returns every function with its aliases and the versions they
// name, by name: what the gateway serves. What cannot be read of one is its Err, and
// keeps no other from being served.
func (s *Store) Deployments(ctx context.Context) (out []hearth.Deployment, err error) {
	err = s.catalog.view(ctx, "list deployments", func(tx *sql.Tx) error {
		out = nil
		rows, err := tx.QueryContext(ctx, `SELECT name, generation FROM functions ORDER BY name`)
		out, err = collect(ctx, rows, err, "list functions", func(r row) (d hearth.Deployment, err error) {
			err = r.Scan(&d.Function, &d.Generation)
			return d, err
		})
		if err != nil {
			return err
		}
		index := make(map[string]*hearth.Deployment, len(out))
		for i := range out {
			out[i].Versions = map[int]*hearth.Version{}
			index[out[i].Function] = &out[i]
		}
		rows, err = tx.QueryContext(ctx, selectAlias+` ORDER BY function, name`)
		aliases, err := collect(ctx, rows, err, "list aliases", func(r row) (ownedAlias, error) {
			a, err := scanOwnedAlias(r)
			if d := index[a.function]; d != nil && err != nil {
				d.Err = cmp.Or(d.Err, fmt.Errorf("alias %s: %w", a.Name, err))
				return a, nil
			}
			return a, err
		})
		if err != nil {
			return err
		}
		for _, a := range aliases {
			d := index[a.function]
			d.Aliases = append(d.Aliases, a.Alias)
		}
		rows, err = tx.QueryContext(ctx, selectVersion+` WHERE (v.function, v.number) IN (`+readable+`)`)
		versions, err := collect(ctx, rows, err, "list versions of aliases", func(r row) (hearth.Version, error) {
			v, err := scanVersion(r)
			if d := index[v.Function]; d != nil && err != nil {
				d.Err = cmp.Or(d.Err, err)
				return v, nil
			}
			return v, err
		})
		if err != nil {
			return err
		}
		if err := useSecrets(ctx, tx, versions); err != nil {
			return err
		}
		for i := range versions {
			index[versions[i].Function].Versions[versions[i].Number] = &versions[i]
		}
		return nil
	})
	return out, err
}

const (
	selectAlias = `SELECT function, name, versions, sticky, env, routes, updated_at FROM aliases`
	// referenced are the versions that aliases name.
	referenced = `SELECT a.function, CAST(j.key AS INTEGER) FROM aliases a, json_each(a.versions) j`
	// readable are the same without aliases that are not as Hearth writes them, on
	// which referenced fails.
	readable = `SELECT a.function, CAST(j.key AS INTEGER) FROM aliases a, json_each(iif(json_valid(a.versions), a.versions, '{}')) j`
)

type ownedAlias struct {
	function string
	hearth.Alias
}

func scanOwnedAlias(r row) (a ownedAlias, err error) {
	var versions, env, routes []byte
	var updated int64
	if err := r.Scan(&a.function, &a.Name, &versions, &a.Sticky, &env, &routes, &updated); err != nil {
		return a, err
	}
	a.UpdatedAt = fromMicros(updated)
	return a, errors.Join(json.Unmarshal(versions, &a.Versions), json.Unmarshal(env, &a.Env), json.Unmarshal(routes, &a.Routes))
}

func scanAlias(r row) (hearth.Alias, error) {
	a, err := scanOwnedAlias(r)
	return a.Alias, err
}

// Aliases returns the aliases of a function by name. Errors: CodeNotFound if
// there is no such function.
func (s *Store) Aliases(ctx context.Context, function string) (out []hearth.Alias, err error) {
	err = s.catalog.view(ctx, "list aliases", func(tx *sql.Tx) error {
		if _, err := readGeneration(ctx, tx, function); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, selectAlias+` WHERE function = ? ORDER BY name`, function)
		out, err = collect(ctx, rows, err, "list aliases", scanAlias)
		return err
	})
	return out, err
}

// SetAlias makes or replaces an alias of a function, which must be at
// ifGeneration unless that is 0, and stores r with it: a release of the function,
// a new one if its ID is 0; nil stores none. The routes of hearth.Live become
// those of its main version. A release that runs is superseded, unless it is r.
// It returns the function and r as stored.
//
// Errors: CodeNotFound for a missing function or version, CodeInvalid for a missing
// secret, CodeConflict if the generation is another or a route is taken.
func (s *Store) SetAlias(ctx context.Context, function string, a hearth.Alias, ifGeneration int64, r *hearth.Release) (f hearth.Function, stored *hearth.Release, err error) {
	a = a.Clone()
	err = s.catalog.update(ctx, "store an alias", func(tx *sql.Tx) error {
		if _, err := checkGeneration(ctx, tx, function, ifGeneration); err != nil {
			return err
		}
		for n := range a.Versions {
			v, err := scanVersion(tx.QueryRowContext(ctx, selectVersion+` WHERE v.function = ? AND v.number = ?`, function, n))
			if errors.Is(err, sql.ErrNoRows) {
				return noVersion(function, n)
			}
			if err != nil {
				return err
			}
			if err := checkSecrets(ctx, tx, v.Config); err != nil {
				return err
			}
		}
		a.UpdatedAt = time.Now()
		if err := putAlias(ctx, tx, function, a); err != nil {
			return err
		}
		if r != nil {
			c := *r
			c.Function = function
			if err := putRelease(ctx, tx, &c); err != nil {
				return err
			}
			stored = &c
		} else if a.Name == hearth.Live {
			if err := supersede(ctx, tx, function, a.UpdatedAt, "somebody set the alias live"); err != nil {
				return err
			}
		}
		f, err = scanFunction(tx.QueryRowContext(ctx, selectFunction+` WHERE f.name = ?`, function))
		return err
	})
	return f, stored, err
}

// putAlias writes an alias with its routes and gives the function a new
// generation.
func putAlias(ctx context.Context, tx *sql.Tx, function string, a hearth.Alias) error {
	versions, err := json.Marshal(a.Versions)
	if err != nil {
		return err
	}
	env, err := json.Marshal(a.Env)
	if err != nil {
		return err
	}
	routes, err := json.Marshal(a.Routes)
	if err != nil {
		return err
	}
	now := a.UpdatedAt.UnixMicro()
	_, err = tx.ExecContext(ctx, `INSERT INTO aliases (function, name, versions, sticky, env, routes, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (function, name) DO UPDATE SET versions = excluded.versions, sticky = excluded.sticky, env = excluded.env,
			routes = excluded.routes, updated_at = excluded.updated_at`,
		function, a.Name, string(versions), string(a.Sticky), string(env), string(routes), now)
	if err != nil {
		return err
	}
	if a.Name != hearth.Live {
		_, err = tx.ExecContext(ctx, `UPDATE functions SET generation = generation + 1, updated_at = ? WHERE name = ?`, now, function)
		if err != nil {
			return err
		}
		return replaceRoutes(ctx, tx, function, a.Name, a.Routes)
	}
	main := a.Main()
	_, err = tx.ExecContext(ctx, `UPDATE functions SET live = ?, generation = generation + 1, updated_at = ? WHERE name = ?`, main, now, function)
	if err != nil {
		return err
	}
	v, err := scanVersion(tx.QueryRowContext(ctx, selectVersion+` WHERE v.function = ? AND v.number = ?`, function, main))
	if err != nil {
		return err
	}
	return replaceRoutes(ctx, tx, function, a.Name, v.Config.Routes)
}

// DeleteAlias removes an alias other than hearth.Live of a function, which must
// be at ifGeneration unless that is 0. Errors: CodeNotFound, CodeInvalid for
// hearth.Live, CodeConflict if the generation is another.
func (s *Store) DeleteAlias(ctx context.Context, function, name string, ifGeneration int64) (f hearth.Function, err error) {
	if name == hearth.Live {
		return f, hearth.Errorf(hearth.CodeInvalid, "the alias live cannot be removed").WithHint("delete the function, or let live lead to another version")
	}
	err = s.catalog.update(ctx, "delete an alias", func(tx *sql.Tx) error {
		if _, err := checkGeneration(ctx, tx, function, ifGeneration); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM aliases WHERE function = ? AND name = ?`, function, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, noAlias(function, name))
		}
		if err := replaceRoutes(ctx, tx, function, name, nil); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE functions SET generation = generation + 1, updated_at = ? WHERE name = ?`, time.Now().UnixMicro(), function)
		if err != nil {
			return err
		}
		f, err = scanFunction(tx.QueryRowContext(ctx, selectFunction+` WHERE f.name = ?`, function))
		return err
	})
	return f, err
}

func noAlias(function, name string) error {
	return hearth.Errorf(hearth.CodeNotFound, "function %s has no alias %q", function, name).
		WithHint("hearth alias list %s shows them", function)
}

func noVersion(function string, number int) error {
	return hearth.Errorf(hearth.CodeNotFound, "function %s has no version %d", function, number).
		WithHint("hearth versions %s shows them; old ones that no alias names are removed", function)
}

// putRelease writes a release; a new one, whose ID is 0, supersedes the one that
// runs.
func putRelease(ctx context.Context, tx *sql.Tx, r *hearth.Release) error {
	canary, err := json.Marshal(r.Canary)
	if err != nil {
		return err
	}
	var ended int64
	if r.EndedAt != nil {
		ended = r.EndedAt.UnixMicro()
	}
	if r.ID != 0 {
		res, err := tx.ExecContext(ctx, `UPDATE releases SET state = ?, step = ?, reason = ?, step_at = ?, ended_at = ? WHERE id = ? AND state = ?`,
			string(r.State), r.Step, r.Reason, r.StepAt.UnixMicro(), ended, r.ID, string(hearth.ReleaseRunning))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, hearth.Errorf(hearth.CodeConflict, "the release has ended"))
		}
		return nil
	}
	if err := supersede(ctx, tx, r.Function, r.StartedAt, "another release began"); err != nil {
		return err
	}
	return tx.QueryRowContext(ctx, `INSERT INTO releases (function, kind, state, "from", "to", canary, step, reason, started_at, step_at, ended_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
		r.Function, string(r.Kind), string(r.State), r.From, r.To, string(canary), r.Step, r.Reason,
		r.StartedAt.UnixMicro(), r.StepAt.UnixMicro(), ended).Scan(&r.ID)
}

// supersede ends the release of a function that runs, if there is one.
func supersede(ctx context.Context, tx *sql.Tx, function string, now time.Time, why string) error {
	_, err := tx.ExecContext(ctx, `UPDATE releases SET state = ?, reason = ?, ended_at = ? WHERE function = ? AND state = ?`,
		string(hearth.ReleaseSuperseded), why, now.UnixMicro(), function, string(hearth.ReleaseRunning))
	return err
}

const selectRelease = `SELECT id, function, kind, state, "from", "to", canary, step, reason, started_at, step_at, ended_at FROM releases`

func scanRelease(r row) (rel hearth.Release, err error) {
	var canary []byte
	var started, step, ended int64
	err = r.Scan(&rel.ID, &rel.Function, &rel.Kind, &rel.State, &rel.From, &rel.To, &canary, &rel.Step, &rel.Reason, &started, &step, &ended)
	if err != nil {
		return rel, err
	}
	rel.StartedAt, rel.StepAt = fromMicros(started), fromMicros(step)
	if ended != 0 {
		at := fromMicros(ended)
		rel.EndedAt = &at
	}
	return rel, json.Unmarshal(canary, &rel.Canary)
}

// Releases returns a function's releases, newest first, at most limit of them (1
// to 1000; 0 means 1000), those with ids below before only unless before is 0.
// Errors: CodeNotFound if there is no such function.
func (s *Store) Releases(ctx context.Context, function string, before int64, limit int) (out []hearth.Release, err error) {
	err = s.catalog.view(ctx, "list releases", func(tx *sql.Tx) error {
		if _, err := readGeneration(ctx, tx, function); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, selectRelease+` WHERE function = ?1 AND (?2 = 0 OR id < ?2) ORDER BY id DESC LIMIT ?3`, function, before, page(limit))
		out, err = collect(ctx, rows, err, "list releases", scanRelease)
		return err
	})
	return out, err
}

// RunningReleases returns the releases that run, of all functions.
func (s *Store) RunningReleases(ctx context.Context) ([]hearth.Release, error) {
	rows, err := s.catalog.read.QueryContext(ctx, selectRelease+` WHERE state = ? ORDER BY id`, string(hearth.ReleaseRunning))
	return collect(ctx, rows, err, "list running releases", scanRelease)
}

// DeleteVersion removes a version that no alias names and no running release
// needs. Its artifacts stay until PruneArtifacts. Errors: CodeNotFound,
// CodeConflict if it is needed.
func (s *Store) DeleteVersion(ctx context.Context, function string, number int) error {
	return s.catalog.update(ctx, "delete a version", func(tx *sql.Tx) error {
		if _, err := readGeneration(ctx, tx, function); err != nil {
			return err
		}
		gone, err := s.deleteVersions(ctx, tx, function, `number = ?2`, number)
		if err != nil {
			return err
		}
		var used bool
		err = tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM versions WHERE function = ? AND number = ?)`, function, number).Scan(&used)
		switch {
		case err != nil:
			return err
		case used:
			return hearth.Errorf(hearth.CodeConflict, "version %d of function %s is needed by an alias or a release", number, function).
				WithHint("hearth alias list %s shows what leads to it", function)
		case len(gone) == 0:
			return noVersion(function, number)
		}
		_, err = tx.ExecContext(ctx, `UPDATE functions SET generation = generation + 1 WHERE name = ?`, function)
		return err
	})
}

// PruneVersions removes the versions of a function that no alias names, no
// running release needs and that are older than the newest keep ones, except those
// to go back to. It returns those removed.
func (s *Store) PruneVersions(ctx context.Context, function string, keep int, back []int) (gone []hearth.Version, err error) {
	list, err := json.Marshal(append([]int{}, back...)) // null would be a value
	if err != nil {
		return nil, err
	}
	err = s.catalog.update(ctx, "prune versions", func(tx *sql.Tx) error {
		gone, err = s.deleteVersions(ctx, tx, function, `number NOT IN (SELECT number FROM versions WHERE function = ?1 ORDER BY number DESC LIMIT ?2)
			AND v.number NOT IN (SELECT value FROM json_each(?3))`, keep, string(list))
		return err
	})
	return gone, err
}

// deleteVersions removes the versions of a function to which the condition
// applies and that nothing needs. In the condition ?1 is the function.
func (s *Store) deleteVersions(ctx context.Context, tx *sql.Tx, function, condition string, args ...any) ([]hearth.Version, error) {
	rows, err := tx.QueryContext(ctx, selectVersion+` WHERE v.function = ?1 AND v.`+condition+`
		AND (v.function, v.number) NOT IN (`+referenced+`)
		AND NOT EXISTS (SELECT 1 FROM releases WHERE function = ?1 AND state = 'running' AND v.number IN ("from", "to"))`, append([]any{function}, args...)...)
	gone, err := collect(ctx, rows, err, "list versions to remove", scanVersion)
	if err != nil {
		return nil, err
	}
	for _, v := range gone {
		// Before the commit: from here on their age counts from now.
		s.touchArtifacts([]string{v.Artifact, v.Source})
		if _, err := tx.ExecContext(ctx, `DELETE FROM versions WHERE function = ? AND number = ?`, function, v.Number); err != nil {
			return nil, err
		}
	}
	return gone, nil
}
