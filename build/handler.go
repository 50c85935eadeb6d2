package build

import (
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/hearthrun/hearth"
)

// CheckHandler checks that the file of handler ("main.handler") exists in the
// artifact at dir, as the language's runtime will look for it: main.py or
// main/__init__.py for python, main.mjs, main.js or main.cjs for nodejs. Of
// other languages it knows nothing and accepts all. It does not read the file;
// running it shows whether it can be loaded. Errors: CodeInvalid with the files
// there are, CodeUnavailable when dir cannot be read.
func CheckHandler(dir, language, handler string) error {
	i := strings.LastIndexByte(handler, '.')
	if i <= 0 {
		return hearth.Errorf(hearth.CodeInvalid, "handler %q is not valid", handler).
			WithHint("write FILE.FUNCTION without the file's ending, for example: handler: main.handler")
	}
	module := handler[:i]
	var want []string
	switch language {
	case "python":
		p := strings.ReplaceAll(module, ".", "/")
		want = []string{p + ".py", p + "/__init__.py"}
	case "nodejs":
		want = []string{module + ".mjs", module + ".js", module + ".cjs"}
	default:
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return hostError(err)
	}
	defer root.Close()
	for _, name := range want {
		// Stat follows links, but never out of the artifact.
		if info, err := root.Stat(path.Clean(name)); err == nil && info.Mode().IsRegular() {
			return nil
		}
	}
	return hearth.Errorf(hearth.CodeInvalid, "the handler %q needs one of these files, which the code does not have: %s", handler, strings.Join(want, ", ")).
		WithHint("the code has at its top: %s; set handler to FILE.FUNCTION, or pack the code from inside of its directory", top(root))
}

// top lists what lies at the top of the artifact.
func top(root *os.Root) string {
	const most = 12
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return "(unreadable)"
	}
	var names []string
	for i, e := range entries {
		if i == most {
			names = append(names, "…")
			break
		}
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
