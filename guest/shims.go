package guest

import (
	"embed"
	"io/fs"
	"path"
	"strings"
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

// ForkCommand returns the command line that starts a fork server: a process that
// forks the guests of many sandboxes (python/hearth_zygote.py). It is to be run
// in the directory of Shims. It is as long as that of Command for the same dir,
// which its forks take its place with. It returns nil for a language without one.
func ForkCommand(language, interpreter, dir string) []string {
	if language != "python" {
		return nil
	}
	argv := Command(language, interpreter, dir)
	last := &argv[len(argv)-1]
	const script = "python/hearth_zygote.py"
	*last = "." + strings.Repeat("/", len(*last)-len(script)-1) + script
	return argv
}

// BuildCommand is Command for the language's builder, which installs a
// function's dependencies and sends them out (package build).
func BuildCommand(language, interpreter, dir string) []string {
	switch language {
	case "python":
		return []string{interpreter, "-I", "-B", "-X", "utf8", path.Join(dir, "python/hearth_build.py")}
	case "nodejs":
		return []string{interpreter, path.Join(dir, "nodejs/hearth_build.cjs")}
	}
	return nil
}

// CommandFor is BuildCommand if build is set, else Command: what a driver runs
// for a spec without a command of its own (driver.Spec.Build).
func CommandFor(build bool, language, interpreter, dir string) []string {
	if build {
		return BuildCommand(language, interpreter, dir)
	}
	return Command(language, interpreter, dir)
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
