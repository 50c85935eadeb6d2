package guesttest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearthrun/hearth/guest/guesttest"
)

// find returns the real executables of the wanted interpreters: from PATH, and
// from pyenv, whose shims on PATH would start slowly.
func find(name string) string {
	version := strings.TrimPrefix(name, "python")
	root := os.Getenv("PYENV_ROOT")
	if root == "" {
		home, _ := os.UserHomeDir()
		root = filepath.Join(home, ".pyenv")
	}
	candidates, _ := filepath.Glob(filepath.Join(root, "versions", version+".*", "bin", name))
	if path, err := exec.LookPath(name); err == nil {
		candidates = append(candidates, path)
	}
	for _, c := range candidates {
		if out, err := exec.Command(c, "-c", "import sys; print(sys.executable)").Output(); err == nil {
			return strings.TrimSpace(string(out))
		}
	}
	return ""
}

func TestPython(t *testing.T) {
	for _, name := range []string{"python3.9", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14"} {
		t.Run(name, func(t *testing.T) {
			python := find(name)
			if python == "" {
				t.Skipf("%s is not installed", name)
			}
			t.Parallel()
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS("../python")); err != nil {
				t.Fatal(err)
			}
			shim := filepath.Join(dir, "hearth_guest.py")
			if name != "python3.10" { // which runs without the cache
				if out, err := exec.Command(python, "-I", "-S", "-B", shim, "--compile").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			guesttest.Run(t, guesttest.Guest{Language: "python", Command: []string{python, "-I", "-S", "-B", "-X", "utf8", shim}})
		})
	}
}

func TestNode(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	shim, err := filepath.Abs("../nodejs/hearth_guest.cjs")
	if err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	guesttest.Run(t, guesttest.Guest{Language: "nodejs", Command: []string{node, shim}})
}
