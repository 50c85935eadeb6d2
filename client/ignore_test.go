package client

import (
	"testing"
)

func TestIgnored(t *testing.T) {
	for _, c := range []struct {
		patterns, name string
		dir, want      bool
	}{
		{"a", "a", false, true},
		{"a", "x/a", false, true},
		{"/a", "x/a", false, false},
		{"x/a", "y/x/a", false, false},
		{"a/", "a", false, false},
		{"a/", "a", true, true},
		{"*.py", "x/y/a.py", false, true},
		{"a?c", "abc", false, true},
		{"[ab]", "b", false, true},
		{"**/a", "a", false, true},
		{"**/a", "x/y/a", false, true},
		{"a/**", "a", true, false},
		{"a/**", "a/b/c", false, true},
		{"a/**/b", "a/b", false, true},
		{"a/**/b", "a/x/y/b", false, true},
		{"a/**/b", "a/x/y/c", false, false},
		{"a/*", "a/x/y", false, false},
		{"*\n!b", "b", false, false},
		{"!b\n*", "b", false, true},
		{`\!b`, "!b", false, true},
		{"# a", "# a", false, false},
	} {
		p, err := parseIgnore("f", c.patterns)
		if err != nil {
			t.Fatal(err)
		}
		if got := ignored(p, c.name, c.dir); got != c.want {
			t.Errorf("%q, %q (directory: %v): %v, want %v", c.patterns, c.name, c.dir, got, c.want)
		}
	}
}

// FuzzIgnore looks for panics and endless matching.
func FuzzIgnore(f *testing.F) {
	f.Add("**/a/**/b*\n!x/\n[", "a/b/c")
	f.Fuzz(func(_ *testing.T, patterns, name string) {
		if p, err := parseIgnore("f", patterns); err == nil {
			ignored(p, name, false)
		}
	})
}
