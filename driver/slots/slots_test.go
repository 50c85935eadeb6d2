package slots

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// newSlots returns slots with one target, /slot, whose directory is on the same
// file system as source.
func newSlots(t testing.TB) (s *Slots, source string) {
	t.Helper()
	dir := t.TempDir()
	s, source = New(filepath.Join(dir, "slots"), []string{"/slot"}), filepath.Join(dir, "source")
	if err := errors.Join(s.Make(), os.Mkdir(source, 0o755)); err != nil {
		t.Fatal(err)
	}
	return s, source
}

// inSlot is the path of a file of the slot on the host.
func inSlot(s *Slots, name string) string { return filepath.Join(s.Mounts()[0].Source, name) }

// fill fills the slot and returns the error.
func fill(t testing.TB, s *Slots, source string) error {
	t.Helper()
	return s.Fill(t.Context(), driver.Mount{Source: source, Target: "/slot"})
}

// TestModes: what sandboxes see does not depend on the umask, and what they
// cannot write to can be removed nevertheless.
func TestModes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s, source := newSlots(t)
	for _, err := range []error{
		os.Chmod(source, 0o555|os.ModeDir), os.Chmod(source, 0o755),
		os.Mkdir(filepath.Join(source, "closed"), 0o700),
		os.WriteFile(filepath.Join(source, "closed", "file"), nil, 0o600),
		os.Chmod(filepath.Join(source, "closed", "file"), 0o444),
		os.Chmod(filepath.Join(source, "closed"), 0o555),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(t, s, source); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{".": 0o755, "..": 0o755, "closed": 0o755, "closed/file": 0o444} {
		if info, err := os.Stat(inSlot(s, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
		}
	}
	if err := s.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(inSlot(s, "."))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	if err := s.Remove(); err != nil {
		t.Errorf("a second Remove: %v", err)
	}
	if err := fill(t, s, source); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("Fill after Remove: %v", err)
	}
}

// TestLinksStayLinks: what a link leads to is not looked at, be it outside, a
// loop, or nothing.
func TestLinksStayLinks(t *testing.T) {
	s, source := newSlots(t)
	links := map[string]string{"out": "../..", "root": "/", "loop": "loop", "none": "/no/such", "file": "/etc/passwd"}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(source, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := fill(t, s, source); err != nil {
		t.Fatal(err)
	}
	for name, to := range links {
		if got, err := os.Readlink(inSlot(s, name)); err != nil || got != to {
			t.Errorf("%s leads to %q, %v; want %q", name, got, err, to)
		}
	}
}

// TestRefusesSpecialFiles: an artifact has none.
func TestRefusesSpecialFiles(t *testing.T) {
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "device": unix.S_IFCHR} {
		s, source := newSlots(t)
		file := filepath.Join(source, name)
		if err := unix.Mknod(file, mode|0o644, int(unix.Mkdev(1, 3))); errors.Is(err, unix.EPERM) {
			continue // devices need root
		} else if err != nil {
			t.Fatal(err)
		}
		if err := fill(t, s, source); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%s: error %v, want code invalid", name, err)
		}
		if err := fill(t, s, source); hearth.ErrorCode(err) != hearth.CodeConflict {
			t.Errorf("%s: a second Fill after an error: %v, want code conflict", name, err)
		}
	}
}

// TestOtherFileSystem: there is another way to start the sandbox, so the caller
// must be able to tell.
func TestOtherFileSystem(t *testing.T) {
	s, source := newSlots(t)
	other, err := os.MkdirTemp("/dev/shm", "hearth-slots-")
	if err != nil {
		t.Skipf("no other file system: %v", err)
	}
	defer os.RemoveAll(other)
	var a, b unix.Stat_t
	if unix.Stat(other, &a) != nil || unix.Stat(source, &b) != nil || a.Dev == b.Dev {
		t.Skip("no other file system")
	}
	if err := os.WriteFile(filepath.Join(other, "file"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := fill(t, s, other); hearth.ErrorCode(err) != hearth.CodeUnsupported || hearth.AsError(err).Hint == "" {
		t.Errorf("error %v, want code unsupported and a hint", err)
	}
}

// TestExplain tells which errors mean that the files can never be linked.
func TestExplain(t *testing.T) {
	for errno, want := range map[syscall.Errno]hearth.Code{
		unix.EXDEV: hearth.CodeUnsupported, unix.EMLINK: hearth.CodeUnsupported, unix.EPERM: hearth.CodeUnsupported,
		unix.EOPNOTSUPP: hearth.CodeUnsupported, unix.ENOSPC: hearth.CodeUnavailable, unix.EIO: hearth.CodeUnavailable,
	} {
		err := explain(&os.LinkError{Op: "link", Old: "a", New: "b", Err: errno}, driver.Mount{})
		if hearth.ErrorCode(err) != want {
			t.Errorf("%v has code %q, want %q", errno, hearth.ErrorCode(err), want)
		}
	}
}

// TestCanceled leaves the rest of a large tree.
func TestCanceled(t *testing.T) {
	s, source := newSlots(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := s.Fill(ctx, driver.Mount{Source: source, Target: "/slot"}); !errors.Is(err, why) {
		t.Errorf("error %v, want that of the context", err)
	}
	if err := fill(t, s, source); err != nil {
		t.Errorf("Fill after one that did not begin: %v", err)
	}
}

// TestMakeLeavesOthers: what is there belongs to another sandbox.
func TestMakeLeavesOthers(t *testing.T) {
	s, _ := newSlots(t)
	if err := os.WriteFile(inSlot(s, "file"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := s.Make(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Make: %v", err)
	}
	if _, err := os.Stat(inSlot(s, "file")); err != nil {
		t.Error(err)
	}
}

// BenchmarkFill measures what a specialised stem cell and its end cost.
func BenchmarkFill(b *testing.B) {
	for _, files := range []int{3, 2000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			source := filepath.Join(b.TempDir(), "source")
			for i := range files {
				dir := filepath.Join(source, fmt.Sprintf("package%d", i/20))
				if files == 3 {
					dir = source
				}
				if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o444)); err != nil {
					b.Fatal(err)
				}
			}
			all := make([]*Slots, b.N)
			dir := b.TempDir()
			for i := range all {
				all[i] = New(filepath.Join(dir, fmt.Sprint(i)), []string{"/slot"})
				if err := all[i].Make(); err != nil {
					b.Fatal(err)
				}
			}
			b.ResetTimer()
			for _, s := range all {
				if err := s.Fill(b.Context(), driver.Mount{Source: source, Target: "/slot"}); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			begun := time.Now()
			for _, s := range all {
				if err := s.Remove(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(time.Since(begun).Nanoseconds())/float64(b.N), "remove-ns/op")
		})
	}
}
