package images

import (
	"debug/elf"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/hearthrun/hearth"
)

// defaultPath is PATH where the base sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// found is an interpreter in a root file system.
type found struct{ path, version string }

var (
	pythonFile    = regexp.MustCompile(`^python(3\.\d+)$`)
	pythonVersion = regexp.MustCompile(`(?m)^#define\s+PY_VERSION\s+"(\d+\.\d+\.\d+)`)
	nodeNumbers   = regexp.MustCompile(`(?m)^#define\s+NODE_(?:MAJOR|MINOR|PATCH)_VERSION\s+(\d+)`)
	release       = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)`)
)

// inspect finds the interpreter of a language and its version, by looking:
// nothing of the image runs here. env is the base's. Errors: CodeInvalid if
// there is none, CodeUnsupported if it is too old.
func inspect(root *os.Root, language string, env map[string]string) (found, error) {
	name, file, oldest := "python3", "Python 3", "3.9"
	switch language {
	case "nodejs":
		name, file, oldest = "node", "Node.js", "18"
	case Provided:
		return found{}, nil
	}
	var f found
	for dir := range strings.SplitSeq(env["PATH"], ":") {
		p, err := resolve(root, path.Join(dir, name), true)
		if path.IsAbs(dir) && err == nil && isProgram(root, p) {
			f.path = "/" + p
			break
		}
	}
	if f.path == "" {
		return found{}, hearth.Errorf(hearth.CodeInvalid, "the base has no %s on its PATH (%s)", file, env["PATH"]).
			WithHint("name a base with %s: hearth images build %s --base IMAGE", file, language)
	}
	if language == "python" {
		f.version = pythonRelease(root, f.path, env["PYTHON_VERSION"])
	} else {
		f.version = nodeRelease(root, f.path, env["NODE_VERSION"])
	}
	if f.version == "" {
		return found{}, hearth.Errorf(hearth.CodeInvalid, "the version of %s in the base cannot be told", f.path).
			WithHint("set it in the base, for example ENV PYTHON_VERSION=3.13.1 or ENV NODE_VERSION=22.1.0")
	}
	if compareVersions(f.version, oldest) < 0 {
		return found{}, hearth.Errorf(hearth.CodeUnsupported, "the base has %s %s; %s is the oldest that works", file, f.version, oldest)
	}
	return f, nil
}

func isProgram(root *os.Root, p string) bool {
	info, err := root.Lstat(p)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return false
	}
	f, err := root.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 4)
	_, err = f.ReadAt(magic, 0)
	return err == nil && string(magic) == elf.ELFMAG
}

// pythonRelease trusts the name of the program for the minor version, and
// others for the rest only if they agree with it.
func pythonRelease(root *os.Root, exe, told string) string {
	m := pythonFile.FindStringSubmatch(path.Base(exe))
	if m == nil {
		return firstRelease(told)
	}
	minor := m[1]
	candidates := []string{told, dpkgVersion(root, "python"+minor)}
	header := path.Join(path.Dir(path.Dir(exe)), "include/python"+minor, "patchlevel.h")
	if b, err := readFile(root, header, 1<<20); err == nil {
		if m := pythonVersion.FindSubmatch(b); m != nil {
			candidates = append([]string{string(m[1])}, candidates...)
		}
	}
	for _, c := range candidates {
		if v := firstRelease(c); strings.HasPrefix(v, minor+".") {
			return v
		}
	}
	return minor
}

func nodeRelease(root *os.Root, exe, told string) string {
	header := path.Join(path.Dir(path.Dir(exe)), "include/node/node_version.h")
	if b, err := readFile(root, header, 1<<20); err == nil {
		if m := nodeNumbers.FindAllSubmatch(b, 3); len(m) == 3 {
			return string(m[0][1]) + "." + string(m[1][1]) + "." + string(m[2][1])
		}
	}
	if v := firstRelease(told); v != "" {
		return v
	}
	return firstRelease(dpkgVersion(root, "nodejs"))
}

func firstRelease(s string) string {
	if m := release.FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return ""
}

// dpkgVersion is the version of an installed Debian package.
func dpkgVersion(root *os.Root, name string) string {
	b, err := readFile(root, "/var/lib/dpkg/status", 64<<20)
	if err != nil {
		return ""
	}
	for p := range strings.SplitSeq(string(b), "\n\n") {
		if !strings.HasPrefix(p, "Package: "+name+"\n") {
			continue
		}
		for line := range strings.SplitSeq(p, "\n") {
			if v, ok := strings.CutPrefix(line, "Version: "); ok {
				if _, after, ok := strings.Cut(v, ":"); ok { // an epoch
					v = after
				}
				return v
			}
		}
	}
	return ""
}
