package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
)

// prepareDir makes dir a directory that only this user can enter and returns
// its absolute path. A directory that others can enter is closed to them only
// if it is empty or already holds Hearth's data, perhaps only base images built
// before the first start: --data-dir /home/me must not lock anything out of a
// home directory.
func prepareDir(dir string) (string, error) {
	if dir == "" {
		return "", hearth.Errorf(hearth.CodeInvalid, "no data directory is given").
			WithHint("choose one with --data-dir")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", dirError(err, dir)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", dirError(err, abs)
	}
	// Sandboxes and SQLite need the real place, not a link to it.
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", dirError(err, dir)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", dirError(err, abs)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return abs, nil
	}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return "", dirError(err, abs)
	}
	ours := info.Mode()&fs.ModeSticky == 0
	for _, e := range entries {
		if n := e.Name(); n == catalogFile || n == lockFile {
			ours = true
			break
		} else if n != "lost+found" && !isImages(filepath.Join(abs, n)) {
			ours = false
		}
	}
	if !ours {
		return "", hearth.Errorf(hearth.CodeInvalid, "%s is open to other users and holds other files than Hearth's", abs).
			WithHint("chmod 700 %s, or choose another with --data-dir or HEARTH_DATA_DIR", abs)
	}
	if err := os.Chmod(abs, 0o700); err != nil {
		return "", dirError(err, abs)
	}
	return abs, nil
}

// isImages tells whether path is the store of base images, and not something
// else of that name.
func isImages(path string) bool {
	if filepath.Base(path) != "images" {
		return false
	}
	for _, sub := range []string{"blobs/sha256", "rootfs", "locks"} {
		if info, err := os.Lstat(filepath.Join(path, sub)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

const lockFile = "lock"

// acquire takes the lock of the data directory and writes our process id into
// it. The kernel drops the lock when the process ends in whatever way.
func acquire(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, dirError(err, path)
	}
	if err := lockFor(f, orphanTime); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, dirError(err, path)
		}
		who := ""
		if pid := lockedBy(f); pid > 0 {
			who = " (pid " + strconv.Itoa(pid) + ")"
		}
		return nil, hearth.Errorf(hearth.CodeConflict, "data directory %s is in use by another hearth server%s", dir, who).
			WithHint("stop that server, or choose another directory with --data-dir")
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, dirError(err, path)
	}
	return f, nil
}

// orphanTime is how long a server waits for the lock of one that has ended.
const orphanTime = 5 * time.Second

// lockFor takes the lock. If the process that wrote its id into the file has ended,
// it waits a while: one that was killed as it started a sandbox may have left a
// child that still has all its files, and is about to end too.
func lockFor(f *os.File, d time.Duration) error {
	for end := time.Now().Add(d); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
		if pid := lockedBy(f); pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return err
		}
		time.Sleep(5 * time.Millisecond) // nothing tells when it is free, but for a wait that cannot be given up
	}
}

// lockedBy returns the process id in the lock file, 0 if there is none.
func lockedBy(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0) // the end of the file
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0
	}
	return pid
}
