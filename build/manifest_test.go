package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hearthrun/hearth"
)

// TestPackageSyntax: a slip in package.json is told with its place.
func TestPackageSyntax(t *testing.T) {
	for text, want := range map[string]string{
		"{\n  \"private\": true,,\n}":        `package.json is not JSON: line 2, column 19: invalid character ',' looking for beginning of object key string`,
		"\ufeff{\"description\": \"ünï\" 1}": `package.json is not JSON: line 1, column 23: invalid character '1' after object key:value pair`,
		"{\n":                                `package.json is not JSON: line 1, column 2: unexpected end of JSON input`,
		"":                                   `package.json is not JSON: line 1, column 1: unexpected end of JSON input`,
		"{\"dependencies\": {\"a\": 1}}":     `package.json is not valid: json: cannot unmarshal number into Go struct field manifestJSON.dependencies of type string`,
		"# comment\n{}":                      `package.json is not JSON: line 1, column 1: invalid character '#' looking for beginning of value`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Manifest(dir, "nodejs")
		if e := hearth.AsError(err); err == nil || e.Code != hearth.CodeInvalid || e.Error() != want || e.Hint == "" {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
