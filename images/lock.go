package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lock is a file lock: it holds against other processes and against other
// locks of this one, and ends with the process.
type lock struct{ f *os.File }

// errLocked is what tryLock returns when somebody else has the lock.
var errLocked = errors.New("locked")

// tryLock takes the named lock, shared or exclusive, or returns errLocked.
func (s *Store) tryLock(name string, exclusive bool) (*lock, error) {
	file := filepath.Join(s.dir, "locks", name)
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, hostError("the store of images cannot be locked", err)
		}
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, hostError("the store of images cannot be locked", err)
		}
		// Prune removes the files of locks it holds: is it still the one?
		mine, err1 := f.Stat()
		now, err2 := os.Stat(file)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return &lock{f}, nil
		}
		_ = f.Close()
	}
}

// lock waits for the named lock until ctx ends.
func (s *Store) lock(ctx context.Context, name string, exclusive bool) (*lock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := s.tryLock(name, exclusive)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// release gives the lock back; a second call does nothing.
func (l *lock) release() { _ = l.f.Close() }

// remove gives the lock back and removes its file. The lock must be exclusive.
func (l *lock) remove() {
	_ = os.Remove(l.f.Name())
	l.release()
}
