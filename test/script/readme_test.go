package script

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestReadme runs the first function of the README word for word, but for the
// port.
func TestReadme(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the sandbox needs root here")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(readme), "## A first function")
	_, text, ok2 := strings.Cut(text, "```sh\n")
	block, _, ok3 := strings.Cut(text, "```")
	if !ok || !ok2 || !ok3 {
		t.Fatal("the README has no first function")
	}
	params := params(t)
	params.Files = nil
	params.Dir = t.TempDir()
	script := "serve\nexec bash -e readme.sh\nstdout '^http://127.0.0.1:[0-9]+/fn/greet/$'\nstdout '{\"message\": ?\"Hello, Ada!\"}'\nexec hearth invoke greet\nstdout 'Hello, world!'\nstop\n-- readme.sh --\n" +
		strings.NewReplacer("../bin/hearth", "hearth", "http://127.0.0.1:8080", "$HEARTH_URL").Replace(block)
	if err := os.WriteFile(params.Dir+"/readme.txtar", []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, params)
}
