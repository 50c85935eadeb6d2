package guest

import (
	"embed"
	"io/fs"
	"path"
)

//go:embed python/*.py nodejs/*.cjs
var shims embed.FS

// Shims returns the guests for interpreted languages, one directory a
// language. Drivers make it readable inside their sandboxes.
func Shims() fs.FS { return shims }

// Command returns the command line that starts a language's shim with the
// interpreter; dir is where Shims is readable inside the sandbox. It returns
// nil for a language without a shim.
func Command(language, interpreter, dir string) []string {
	switch language {
	case "python":
		return []string{interpreter, "-I", "-S", "-B", "-X", "utf8", path.Join(dir, "python/hearth_guest.py")}
	case "nodejs":
		return []string{interpreter, path.Join(dir, "nodejs/hearth_guest.cjs")}
	}
	return nil
}
