package build

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

const (
	requirementsFile = "requirements.txt"
	packageFile      = "package.json"
	shrinkwrapFile   = "npm-shrinkwrap.json"
	lockFile         = "package-lock.json"
	npmrcFile        = ".npmrc"
	modulesDir       = "node_modules"
	// ownDir is where Hearth puts what it adds to an artifact.
	ownDir = ".hearth"
)

// Bounds of what is read to find out what to install.
const (
	maxManifest = 32 << 20 // bytes of one file; lock files are long
	maxIncludes = 100      // requirements files
)

// Manifest tells which file of the source in dir names dependencies to install,
// "" if none does: requirements.txt with at least one requirement for python;
// package.json with dependencies, other than those for development, for nodejs,
// unless node_modules lies beside it. Errors: CodeInvalid for a file that cannot
// be read as what it should be, CodeUnavailable when dir cannot be read.
func Manifest(dir, language string) (string, error) {
	in, err := scan(dir, language)
	return in.manifest, err
}

// inputs is what an installer reads of a source.
type inputs struct {
	manifest string            // "" if there is nothing to install
	files    map[string][]byte // by path; all that counts unless local is set
	local    bool              // the installer may read any file of the source
	notes    []string          // lines for the build's log
}

// scan finds out what is to be installed for the source in dir.
func scan(dir, language string) (inputs, error) {
	s := scanner{in: inputs{files: map[string][]byte{}}}
	var find func() error
	switch language {
	case "python":
		find = s.python
	case "nodejs":
		find = s.nodejs
	default:
		return inputs{}, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return inputs{}, sourceError(err)
	}
	defer root.Close()
	s.root = root
	if err := find(); err != nil || s.in.manifest == "" {
		return inputs{}, err
	}
	if _, err := root.Lstat(ownDir); err == nil {
		return inputs{}, hearth.Errorf(hearth.CodeInvalid, "the code has a %s of its own, which is the place of installed dependencies", ownDir).
			WithHint("remove %s from the code; Hearth makes it", ownDir)
	}
	return s.in, nil
}

// scanner reads what names dependencies.
type scanner struct {
	root *os.Root
	in   inputs
}

// read returns a file of the source, nil if there is none.
func (s *scanner) read(name string) ([]byte, error) {
	f, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, sourceError(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%s is not a file", name).WithHint("rename it")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, sourceError(err)
	}
	if len(b) > maxManifest {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%s is larger than %s", name, hearth.Bytes(maxManifest)).
			WithHint("check what is in it: it should only name dependencies")
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// python follows requirements.txt and the files that it includes.
func (s *scanner) python() error {
	todo := []string{requirementsFile}
	wanted := false
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if _, ok := s.in.files[name]; ok {
			continue
		}
		if len(s.in.files) == maxIncludes {
			return hearth.Errorf(hearth.CodeInvalid, "%s includes more than %d files", requirementsFile, maxIncludes).
				WithHint("put the requirements into fewer files")
		}
		b, err := s.read(name)
		if err != nil {
			return err
		}
		if b == nil && name == requirementsFile {
			return nil
		}
		if b == nil {
			return hearth.Errorf(hearth.CodeInvalid, "a requirements file includes %s, which is not in the code", name).
				WithHint("add the file, or remove the line that includes it")
		}
		s.in.files[name] = b
		r, bad := parseRequirements(b)
		if bad != nil {
			return hearth.Errorf(hearth.CodeInvalid, "%s: %s", name, bad.Message).WithHint("%s", bad.Hint)
		}
		for _, inc := range r.includes {
			p := path.Join(path.Dir(name), inc)
			if path.IsAbs(inc) || !within(p) {
				return hearth.Errorf(hearth.CodeInvalid, "%s includes %s, which lies outside of the code", name, inc).
					WithHint("put that file into the function's directory")
			}
			todo = append(todo, p)
		}
		s.in.local = s.in.local || r.local
		wanted = wanted || r.wanted
	}
	if wanted {
		s.in.manifest = requirementsFile
	}
	return nil
}

// requirements is what Hearth must know of a requirements file; pip reads the
// rest.
type requirements struct {
	wanted   bool     // something is to be installed
	local    bool     // a line may refer to files beside it
	includes []string // as written
}

var (
	// requirementRE matches what names a package of an index; other lines may
	// be paths.
	requirementRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\s*(\[[^\]]*\])?\s*(@\s*(https?|git\+https?)://\S+)?\s*(\(?\s*(===|[<>=!~]=|[<>])[^;/]*)?(;.*|--.*)?$`)
	remoteRE      = regexp.MustCompile(`^(https?|git\+https?)://`)
	archiveRE     = regexp.MustCompile(`(?i)\.(zip|whl|tar|tgz|tbz|txz|tlz|tar\.(gz|bz2|xz|lz|lzma))$`)
	commentRE     = regexp.MustCompile(`(^|\s+)#.*$`)
	shortRE       = regexp.MustCompile(`^-[a-zA-Z]`)
)

// parseRequirements reads a requirements file as far as needed. A line that it
// does not understand counts as one that refers to files.
func parseRequirements(b []byte) (requirements, *hearth.Error) {
	var r requirements
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(decodeText(b))
	var logical strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		// As pip does: a comment line ends a continued one, comments end lines.
		comment := strings.HasPrefix(strings.TrimLeft(line, " \t"), "#")
		if rest, ok := strings.CutSuffix(line, `\`); ok && !comment {
			logical.WriteString(rest)
			continue
		}
		logical.WriteString(line)
		whole := strings.TrimSpace(commentRE.ReplaceAllString(logical.String(), ""))
		logical.Reset()
		if err := r.line(whole); err != nil {
			return r, err
		}
	}
	return r, r.line(strings.TrimSpace(commentRE.ReplaceAllString(logical.String(), "")))
}

func (r *requirements) line(line string) *hearth.Error {
	if line == "" {
		return nil
	}
	if !strings.HasPrefix(line, "-") {
		r.wanted = true
		first, _, _ := strings.Cut(line, " ")
		remote := remoteRE.MatchString(line)
		if !remote && (archiveRE.MatchString(first) || !requirementRE.MatchString(line)) {
			r.local = true
		}
		return nil
	}
	option, value := line, ""
	if i := strings.IndexAny(line, " \t="); i >= 0 {
		option, value = line[:i], strings.Trim(strings.TrimLeft(line[i+1:], " \t="), `"'`)
	}
	if shortRE.MatchString(option) && len(option) > 2 { // -rother.txt
		option, value = line[:2], strings.TrimSpace(line[2:])
	}
	switch option {
	case "-r", "--requirement", "-c", "--constraint":
		if strings.Contains(value, "://") {
			return hearth.Errorf(hearth.CodeInvalid, "%s cannot be read from %s", option, value).
				WithHint("put the file into the function's directory")
		}
		if strings.Contains(value, "${") {
			return hearth.Errorf(hearth.CodeInvalid, "%s %s depends on the environment", option, value).
				WithHint("write the name of the file")
		}
		r.includes = append(r.includes, value)
	case "-e", "--editable":
		return hearth.Errorf(hearth.CodeInvalid, "%s %s cannot be part of a function: it would refer to files that may change", option, value).
			WithHint("write %s without %s, to install it as it is", value, option)
	case "-f", "--find-links", "-i", "--index-url", "--pypi-url", "--extra-index-url":
		if !remoteRE.MatchString(value) {
			r.local = true
		}
	case "--no-index", "--no-binary", "--only-binary", "--prefer-binary", "--require-hashes", "--pre", "--trusted-host", "--use-feature":
	default:
		r.local = true
	}
	return nil
}

// decodeText returns text that may start with a byte order mark, as some
// editors and shells write it.
func decodeText(b []byte) string {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		return string(b[3:])
	case bytes.HasPrefix(b, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(b, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return string(b)
	}
	units := make([]uint16, 0, len(b)/2)
	for b = b[2:]; len(b) >= 2; b = b[2:] {
		units = append(units, order.Uint16(b))
	}
	return string(utf16.Decode(units))
}

// manifestJSON is what matters of a package.json.
type manifestJSON struct {
	Dependencies         map[string]string `json:"dependencies"`
	OptionalDependencies map[string]string `json:"optionalDependencies"`
	PeerDependencies     map[string]string `json:"peerDependencies"`
	Workspaces           json.RawMessage   `json:"workspaces"`
}

// position returns the line and the column, in characters and from 1, of the
// byte at offset.
func position(text string, offset int) (line, column int) {
	before := text[:min(max(offset, 0), len(text))]
	line = strings.Count(before, "\n") + 1
	return line, utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
}

// nodejs reads package.json and its lock file.
func (s *scanner) nodejs() error {
	b, err := s.read(packageFile)
	if b == nil || err != nil {
		return err
	}
	if info, err := s.root.Stat(modulesDir); err == nil && info.IsDir() {
		return nil
	}
	var m manifestJSON
	text := strings.TrimPrefix(string(b), "\ufeff")
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line, column := position(text, int(syntax.Offset)-1)
			return &hearth.Error{
				Code: hearth.CodeInvalid, Message: fmt.Sprintf("%s is not JSON: line %d, column %d: %v", packageFile, line, column, err),
				Hint: "correct it there and deploy again", Err: err,
			}
		}
		return &hearth.Error{
			Code: hearth.CodeInvalid, Message: fmt.Sprintf("%s is not valid: %v", packageFile, err),
			Hint: "npm pkg fix shows and mends most mistakes", Err: err,
		}
	}
	if len(m.Dependencies)+len(m.OptionalDependencies)+len(m.PeerDependencies) == 0 {
		return nil
	}
	s.in.manifest = packageFile
	s.in.files[packageFile] = b
	s.in.local = len(m.Workspaces) > 0
	for _, deps := range []map[string]string{m.Dependencies, m.OptionalDependencies, m.PeerDependencies} {
		for _, v := range deps {
			if v != "" && strings.ContainsRune("./~", rune(v[0])) && !isRange(v) {
				s.in.local = true
			}
		}
	}
	locked := false
	for _, name := range []string{shrinkwrapFile, lockFile, npmrcFile} {
		b, err := s.read(name)
		if err != nil {
			return err
		}
		if b != nil {
			s.in.files[name] = b
			locked = locked || name != npmrcFile
		}
	}
	for _, b := range s.in.files {
		// Texts that only look like references cost a fuller key, no more.
		for _, ref := range []string{`"file:`, `"link:`, `"link": true`, `"link":true`} {
			s.in.local = s.in.local || bytes.Contains(b, []byte(ref))
		}
	}
	if locked {
		return nil
	}
	s.in.notes = append(s.in.notes, "hearth: there is no "+lockFile+": npm chooses the versions (npm install --package-lock-only makes one)")
	for _, other := range []string{"yarn.lock", "pnpm-lock.yaml", "bun.lock"} {
		if _, err := s.root.Stat(other); err == nil {
			s.in.notes = append(s.in.notes, "hearth: "+other+" is not read")
		}
	}
	return nil
}

// isRange tells a range such as "~1.2" from a path such as "~/lib".
func isRange(v string) bool { return len(v) > 1 && v[0] == '~' && v[1] != '/' }

// names returns the paths of the files in order.
func (in inputs) names() []string {
	names := make([]string, 0, len(in.files))
	for name := range in.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// printable makes a line of an installer safe for terminals and one line long.
func printable(line string) string {
	line = ansiRE.ReplaceAllString(line, "")
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}

var ansiRE = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

func sourceError(err error) error {
	return &hearth.Error{
		Code: hearth.CodeUnavailable, Message: "the code cannot be read on the host",
		Hint: "check the permissions of the data directory and that links in the code lead to files of it", Err: err,
	}
}
