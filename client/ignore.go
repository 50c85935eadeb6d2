package client

import (
	"path"
	"strings"

	"github.com/hearthrun/hearth"
)

// IgnoreName is the name of the file that lists what Pack leaves out.
const IgnoreName = ".hearthignore"

// maxIgnore bounds the ignore file.
const maxIgnore = 256 << 10

// alwaysIgnored is never part of a function. The last four are what editors keep
// beside a file while it is edited: Vim's swap files, Emacs' locks and copies.
const alwaysIgnored = ".git/\n.hg/\n.svn/\n__pycache__/\n.venv/\n.DS_Store\n.*.sw[a-p]\n.#*\n\\#*#\n*~\n"

// pattern is one line of an ignore file. The rules are those of .gitignore:
// the last pattern that matches decides, "!" takes back, "/" at the end means
// directories only, "/" before that anchors at the top, "**" stands for any
// number of directories.
type pattern struct {
	segments []string
	negate   bool
	dirOnly  bool
}

// parseIgnore reads the lines of an ignore file called name for errors.
func parseIgnore(name, text string) ([]pattern, error) {
	var out []pattern
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var p pattern
		if line, p.negate = strings.CutPrefix(line, "!"); !p.negate {
			line = strings.TrimPrefix(line, `\`) // \# and \! are literal
		}
		line, p.dirOnly = strings.CutSuffix(line, "/")
		anchored := strings.Contains(line, "/")
		p.segments = strings.Split(strings.TrimPrefix(line, "/"), "/")
		if !anchored {
			p.segments = append([]string{"**"}, p.segments...)
		}
		for _, s := range p.segments {
			if _, err := path.Match(s, ""); err != nil || s == "" {
				return nil, hearth.Errorf(hearth.CodeInvalid, "%s:%d: %q is not a pattern", name, number, clip(line)).
					WithHint("the rules are those of .gitignore")
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// ignored tells whether the slash-separated path is left out.
func ignored(patterns []pattern, name string, dir bool) bool {
	segments := strings.Split(name, "/")
	for i := len(patterns) - 1; i >= 0; i-- {
		p := patterns[i]
		if (dir || !p.dirOnly) && match(p.segments, segments) {
			return !p.negate
		}
	}
	return false
}

// match tells whether the pattern's segments match all of a path's.
func match(pattern, name []string) bool {
	// star is where to resume after the last "**", with one more segment of
	// name swallowed: no recursion, so no pattern takes exponential time.
	p, n, star, swallowed := 0, 0, -1, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == "**" {
			star, swallowed = p, n
			p++
			continue
		}
		if p < len(pattern) {
			if ok, _ := path.Match(pattern[p], name[n]); ok {
				p++
				n++
				continue
			}
		}
		if star < 0 {
			return false
		}
		swallowed++
		p, n = star+1, swallowed
	}
	// "dir/**" means what is below dir, not dir itself.
	return p == len(pattern) || p == len(pattern)-1 && pattern[p] == "**" && p > 0 && n > p
}
