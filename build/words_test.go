package build

import "testing"

// TestLastWords takes from an installer's output what tells people most.
func TestLastWords(t *testing.T) {
	for name, c := range map[string]struct {
		tail []string
		want string
	}{
		"npm explains its usage": {
			[]string{
				"npm error code EUSAGE", "npm error", "npm error Missing: tool@1.0.0 from lock file", "npm error", "npm error Usage:", "npm error npm ci",
				"npm error A complete log of this run can be found in: /tmp/x-debug-0.log",
			},
			"code EUSAGE; Missing: tool@1.0.0 from lock file",
		},
		"pip says it last": {
			[]string{"Collecting nosuch", "ERROR: Could not find a version", "ERROR: No matching distribution found for nosuch"},
			"Could not find a version; No matching distribution found for nosuch",
		},
		"pip disclaims": {
			[]string{"error: subprocess-exited-with-error", "ValueError: no compiler", "[end of output]", "note: This error originates from a subprocess, and is likely not a problem with pip."},
			"ValueError: no compiler",
		},
		"nothing": {nil, ""},
	} {
		if got := lastWords(c.tail); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
