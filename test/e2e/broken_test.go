package e2e

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
)

// A row that cannot be read stops neither the start nor a deploy: the others answer.
func TestABrokenFunctionAtStart(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir)
	in.deploy("broken", "python", telling(1, "pass"), fields{"routes": []string{"/broken"}})
	in.deploy("fine", "python", telling(1, "pass"), fields{"routes": []string{"/fine"}})
	in.stop()
	db, err := sql.Open("sqlite", filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range []string{
		`UPDATE versions SET config = '{"timeout": 1' WHERE function = 'broken'`,
		`UPDATE aliases SET versions = '{"7": 100}' WHERE function = 'broken'`,
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		in = start(t, dir)
		in.deploy("fine", "python", telling(2, "pass # "+statement), fields{"routes": []string{"/fine"}})
		if a := in.do("GET", "/fine", nil); a.status != 200 {
			t.Error(a)
		}
		a := in.do("GET", "/fn/broken/", nil)
		if want(t, a, 503, "unavailable"); !strings.Contains(string(a.body), "function broken cannot be served: ") {
			t.Error(a)
		}
		in.stop()
	}
}
