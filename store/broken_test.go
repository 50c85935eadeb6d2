package store_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

// What cannot be read of one function keeps no other from being served.
func TestDeploymentsOfABrokenFunction(t *testing.T) {
	for name, c := range map[string]struct{ statement, why string }{
		"alias":              {`UPDATE aliases SET versions = '{"1": ' WHERE function = 'broken' AND name = 'beta'`, "alias beta"},
		"alias of no number": {`UPDATE aliases SET versions = '{"x": 100}' WHERE function = 'broken' AND name = 'beta'`, "alias beta"},
		"environment":        {`UPDATE aliases SET env = '[]' WHERE function = 'broken' AND name = 'beta'`, "alias beta"},
		"version":            {`UPDATE versions SET config = '{"timeout": "x"}' WHERE function = 'broken'`, "version 1 of function broken"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			for _, f := range []string{"broken", "fine"} {
				if err := addFunction(t, s, f); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := s.SetAlias(t.Context(), "broken", hearth.Alias{Name: "beta", Versions: hearth.Weights{1: 100}}, 0, nil); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", filepath.Join(dir, "hearth.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.ExecContext(t.Context(), c.statement); err != nil {
				t.Fatal(err)
			}
			list, err := s.Deployments(t.Context())
			if err != nil || len(list) != 2 {
				t.Fatalf("%+v, %v", list, err)
			}
			if b := list[0]; b.Err == nil || !strings.Contains(b.Err.Error(), c.why) {
				t.Errorf("%+v, want what is wrong with %s", b, c.why)
			}
			if f := list[1]; f.Err != nil || f.Versions[1] == nil || len(f.Aliases) != 1 {
				t.Errorf("%+v", f)
			}
		})
	}
}
