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

// PrepareCommand returns a command that makes later starts of the shim with the
// interpreter faster, nil where there is nothing to prepare. It is to be run
// once, where dir is writable and outside of any sandbox.
func PrepareCommand(language, interpreter, dir string) []string {
	if language != "python" {
		return nil
	}
	return []string{interpreter, "-I", "-S", "-B", path.Join(dir, "python/hearth_guest.py"), "--compile"}
}
