package driver

import (
	"slices"
	"testing"
)

// TestGuestEnvironment tells who wins.
func TestGuestEnvironment(t *testing.T) {
	got := GuestEnvironment(
		[]string{"PATH=/image/bin", "LANG=image", "FROM=image", "HEARTH_FD=7", "EMPTY=", "EQUALS=a=b"},
		map[string]string{"FROM": "spec", "HEARTH_FD": "8", "HOME": "/spec"}, "/opt/bin")
	want := []string{
		"EMPTY=", "EQUALS=a=b", "FROM=spec", "HOME=/spec", "LANG=image", "PATH=/image/bin", "TMPDIR=/tmp", "HEARTH_FD=3",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := Environment(map[string]string{"HEARTH_FD": "8"}, ""); slices.Contains(got, "HEARTH_FD=8") {
		t.Errorf("another descriptor gets in: %q", got)
	}
}
