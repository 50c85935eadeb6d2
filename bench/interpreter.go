package bench

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// interpreter is a language's program on this host.
type interpreter struct {
	Language string
	Path     string
}

// language returns "python" for "python3.11".
func language(runtime string) string {
	return strings.TrimRight(runtime, "0123456789.")
}

// pickRuntime finds the runtime that a function with this configuration gets:
// the exact one, or the newest of the language. list is the driver's,
// newest first.
func pickRuntime(list []client.Runtime, runtime string) (client.Runtime, bool) {
	for _, r := range list {
		if r.Name == runtime || r.Language == runtime {
			return r, true
		}
	}
	return client.Runtime{}, false
}

// findInterpreter returns the program behind source, which is the program
// itself or the prefix it is installed in. A version manager's shim is resolved
// to the interpreter it starts, or the references would be too slow and Hearth
// look good. Errors: CodeNotFound.
func findInterpreter(ctx context.Context, runtime, source string) (interpreter, error) {
	lang := language(runtime)
	names := map[string][]string{
		"python": {runtime, "python3", "python"},
		"nodejs": {"node", "nodejs"},
	}[lang]
	ask := map[string][]string{
		"python": {"-c", "import sys; print(sys.executable)"},
		"nodejs": {"-p", "process.execPath"},
	}[lang]
	if names == nil {
		return interpreter{}, hearth.Errorf(hearth.CodeUnsupported, "the benchmark knows no interpreter of %q", runtime).
			WithHint("choose a python or nodejs runtime")
	}
	missing := hearth.Errorf(hearth.CodeNotFound, "no interpreter of %s was found for the references", runtime).
		WithHint("put the interpreter on PATH")
	var candidates []string
	info, err := os.Stat(source)
	switch {
	case source == "":
		for _, n := range names {
			if p, err := exec.LookPath(n); err == nil {
				candidates = append(candidates, p)
			}
		}
	case err != nil:
		return interpreter{}, missing
	case !info.IsDir():
		candidates = []string{source}
	default:
		for _, n := range names {
			candidates = append(candidates, filepath.Join(source, "bin", n), filepath.Join(source, n))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, c := range candidates {
		if info, err := os.Stat(c); err != nil || !info.Mode().IsRegular() || info.Mode()&fs.FileMode(0o111) == 0 {
			continue
		}
		out, err := exec.CommandContext(ctx, c, ask...).Output()
		if err != nil {
			continue
		}
		path, err := filepath.EvalSymlinks(strings.TrimSpace(string(out)))
		if err == nil && filepath.IsAbs(path) {
			return interpreter{Language: lang, Path: path}, nil
		}
	}
	if ctx.Err() != nil {
		return interpreter{}, ctx.Err()
	}
	return interpreter{}, missing
}

// bareEnv is the environment of interpreters started for comparison: nothing of
// the user's, which could slow them down.
func bareEnv() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"}
}

// bareStart runs the interpreter with a program that does nothing and returns
// how long that took, from before the fork to after the exit.
func bareStart(ctx context.Context, i interpreter) (time.Duration, error) {
	flag := "-c"
	if i.Language == "nodejs" {
		flag = "-e"
	}
	cmd := exec.CommandContext(ctx, i.Path, flag, "1")
	cmd.Env = bareEnv()
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, hearth.Errorf(hearth.CodeUnavailable, "%s %s 1 failed: %w", i.Path, flag, err)
	}
	return time.Since(start), nil
}
