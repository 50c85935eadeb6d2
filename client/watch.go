package client

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/hearthrun/hearth"
)

const (
	// quiet is how long nothing may happen in a directory before a change counts
	// as complete: editors save in several steps.
	quiet = 50 * time.Millisecond
	// restless bounds how long a directory in which something always happens is
	// waited for.
	restless = 2 * time.Second
)

// Watcher tells when what Pack would pack of a directory has changed.
type Watcher struct {
	dir     string
	events  *fsnotify.Watcher
	changes chan time.Time
	closing chan struct{}
	wg      sync.WaitGroup
	err     error // set before changes is closed

	// Of the goroutine that reads events:
	patterns []pattern
	watched  map[string]bool // directories, relative and slash-separated
}

// Watch watches dir and what is below it, without what Pack leaves out. Changes
// that come after it has returned are told. Call Close in the end. Errors:
// CodeInvalid if dir or its ignore file cannot be read, CodeExhausted if the
// system watches no more directories for this user.
func Watch(dir string) (*Watcher, error) {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, watchError(err, dir)
	}
	w := &Watcher{
		dir: filepath.Clean(dir), events: events,
		changes: make(chan time.Time, 1), closing: make(chan struct{}),
	}
	if err := w.scan(); err != nil {
		events.Close()
		return nil, err
	}
	w.wg.Go(func() {
		defer close(w.changes)
		w.err = w.run()
	})
	return w, nil
}

// Changes gets, once a change is complete, when it began. Of changes that nobody
// received, it keeps one, with the time of the first. It is closed by Close, and
// when the directory can be watched no longer: see Err.
func (w *Watcher) Changes() <-chan time.Time { return w.changes }

// Err returns why Changes was closed, nil if it was by Close. It may be called
// then only. Errors: as Watch, and CodeNotFound if the directory is gone.
func (w *Watcher) Err() error { return w.err }

// Close ends the watch and waits until it has ended. It may be called again.
func (w *Watcher) Close() error {
	select {
	case <-w.closing:
	default:
		close(w.closing)
	}
	err := w.events.Close()
	w.wg.Wait()
	return err
}

// run reads events until Close or an error.
func (w *Watcher) run() error {
	var first time.Time // of the change that is going on; zero if none is
	var rescan bool
	settled := time.NewTimer(time.Hour)
	settled.Stop()
	defer settled.Stop()
	changed := func() {
		now := time.Now()
		if first.IsZero() {
			first = now
		}
		settled.Reset(min(quiet, max(0, restless-now.Sub(first))))
	}
	for {
		select {
		case <-w.closing:
			return nil
		case e, ok := <-w.events.Events:
			if !ok {
				return nil
			}
			matters, tree := w.matters(e)
			rescan = rescan || tree
			if matters {
				changed()
			}
		case err, ok := <-w.events.Errors:
			if !ok {
				return nil
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return watchError(err, w.dir)
			}
			rescan = true // what was lost may be anything
			changed()
		case <-settled.C:
			if rescan {
				// Before the change is told: what comes into a new directory from
				// now on is seen, and what is in it will be packed.
				if err := w.scan(); err != nil {
					return err
				}
				rescan = false
			}
			select {
			case w.changes <- first:
			default: // the one that waits began earlier
			}
			first = time.Time{}
		}
	}
}

// matters tells whether an event is about something that Pack packs, and whether
// there may be other directories to watch.
func (w *Watcher) matters(e fsnotify.Event) (matters, tree bool) {
	rel, err := filepath.Rel(w.dir, e.Name)
	if err != nil {
		return true, true
	}
	name := filepath.ToSlash(rel)
	if name == "." {
		gone := e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)
		return gone, gone
	}
	if name == IgnoreName {
		return true, true
	}
	info, err := os.Lstat(e.Name)
	dir := w.watched[name] || err == nil && info.IsDir()
	if ignored(w.patterns, name, dir) || err != nil && !dir && ignored(w.patterns, name, true) {
		return false, false
	}
	return true, dir
}

// scan watches the directories that there are now, and no others.
func (w *Watcher) scan() error {
	root, err := os.OpenRoot(w.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return hearth.Errorf(hearth.CodeNotFound, "the directory %s is gone", w.dir)
	} else if err != nil {
		return unreadable(err)
	}
	defer root.Close()
	patterns, err := loadIgnore(root)
	if err != nil {
		if w.watched == nil {
			return err
		}
		patterns = w.patterns // whoever packs says what is wrong with the file
	}
	watched := map[string]bool{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && name == ".":
			return unreadable(err)
		case err != nil:
			return nil // it went meanwhile, or Pack will say that it cannot be read
		case !d.IsDir():
			return nil
		case name != "." && ignored(patterns, name, true):
			return fs.SkipDir
		}
		if err := w.events.Add(filepath.Join(w.dir, filepath.FromSlash(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return watchError(err, w.dir)
		}
		watched[name] = true
		return nil
	})
	if err != nil {
		return err
	}
	for name := range w.watched {
		if !watched[name] {
			// It fails for what does not exist any more, which is as well.
			_ = w.events.Remove(filepath.Join(w.dir, filepath.FromSlash(name)))
		}
	}
	w.patterns, w.watched = patterns, watched
	return nil
}

func watchError(err error, dir string) error {
	e := hearth.Errorf(hearth.CodeUnavailable, "cannot watch %s: %w", dir, err)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		e.Code = hearth.CodeExhausted
		return e.WithHint("list directories that the function does not need in %s, or raise fs.inotify.max_user_watches", IgnoreName)
	case errors.Is(err, syscall.EMFILE):
		e.Code = hearth.CodeExhausted
		return e.WithHint("end other programs that watch files, or raise fs.inotify.max_user_instances")
	}
	return e.WithHint("check that the directory exists and that you may read it")
}
