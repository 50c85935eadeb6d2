package pool

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// snapshotTimeout bounds the saving of an instance.
const snapshotTimeout = 30 * time.Second

// snapshot is a saved instance: its function was loaded, and had no call yet.
// Its files hold the function's memory.
type snapshot struct {
	dir    string
	bytes  int64
	secret string      // of the saved guest
	ready  guest.Ready // what it said when it had loaded the function
	// slower is true if a stem cell loads the function in less time. Set by judge.
	slower bool // guarded by Pool.mu
}

// save takes a snapshot of a fresh instance that its caller has. It tells
// whether the instance has ended with that, whatever came of it. One with secrets
// in its memory is not saved: they must not reach a disk.
func (p *Pool) save(ctx context.Context, i *instance) (ended bool) {
	v := i.version.Load()
	_, restorer := p.cfg.Drivers[v.Config.Isolation].(driver.Restorer)
	sandbox, snapshotter := i.sandbox.(driver.Snapshotter)
	if p.cfg.SnapshotDir == "" || !restorer || !snapshotter || !i.ready.Snapshot || len(v.Secrets) > 0 {
		return false
	}
	log := p.cfg.Logger.With("function", v.Function, "version", v.Number)
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	promise, err := p.promise(ctx, i)
	if err != nil {
		log.Info("no snapshot is taken", "err", err)
		return false
	}
	defer p.withdraw(promise)
	if err := i.conn.PrepareSnapshot(ctx); err != nil {
		if hearth.ErrorCode(err) == hearth.CodeUnsupported {
			log.Info("no snapshot is taken", "err", err)
			return false
		}
		log.Warn("no snapshot could be taken", "err", err)
		i.conn.Close()
		return true
	}
	// Whether or not it can be saved, the guest waits for its restoration now.
	defer i.conn.Close()
	begun := time.Now()
	s, err := p.write(ctx, sandbox)
	if err != nil {
		log.Warn("no snapshot could be taken", "err", err)
		return true
	}
	s.secret, s.ready = i.secret, i.ready
	if err := p.keep(v.Incarnation, s, promise); err != nil {
		log.Info("no snapshot is kept", "bytes", s.bytes, "err", err)
		p.remove(s)
		return true
	}
	log.Info("a snapshot was taken", "bytes", s.bytes, "took", time.Since(begun))
	return true
}

// promise sets room aside for a snapshot of i, before it is written: for as much
// as its memory holds now, and no more than it may hold. Until withdraw others
// do not get that room. Errors: CodeExhausted if there is not as much left.
func (p *Pool) promise(ctx context.Context, i *instance) (int64, error) {
	bytes := int64(i.version.Load().Config.Memory)
	if stats, err := i.sandbox.Stats(ctx); err == nil && stats.Memory > 0 { // else it is unknown
		bytes = min(bytes, stats.Memory)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.storableLocked(bytes); err != nil {
		return 0, err
	}
	p.promised += bytes
	return bytes, nil
}

func (p *Pool) withdraw(promise int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.promised -= promise
}

// storableLocked returns an error unless there is room for a snapshot of that size.
func (p *Pool) storableLocked(bytes int64) error {
	total := p.promised + bytes
	for _, s := range p.snapshots {
		total += s.bytes
	}
	if total > p.cfg.MaxSnapshotBytes {
		return hearth.Errorf(hearth.CodeExhausted, "the snapshots of all functions may have %d bytes, and with this one they had %d", p.cfg.MaxSnapshotBytes, total)
	}
	return nil
}

// write saves a sandbox to a directory of its own. After an error nothing
// remains.
func (p *Pool) write(ctx context.Context, sandbox driver.Snapshotter) (*snapshot, error) {
	dir, err := os.MkdirTemp(p.cfg.SnapshotDir, "snapshot-") // 0700
	if err != nil {
		return nil, err
	}
	s := &snapshot{dir: dir}
	err = sandbox.Snapshot(ctx, dir)
	if err == nil {
		s.bytes, err = secure(dir)
	}
	if err != nil {
		p.remove(s)
		return nil, err
	}
	return s, nil
}

// secure lets nobody else read the files below dir, and returns their size.
func secure(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		bytes += info.Size()
		return os.Chmod(path, 0o600)
	})
	return bytes, err
}

// keep makes s, for which room was promised, the snapshot of a version.
func (p *Pool) keep(incarnation string, s *snapshot, promise int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, retired := p.retired[incarnation]; retired || p.closed {
		return hearth.Errorf(hearth.CodeConflict, "the version was retired meanwhile")
	}
	if err := p.storableLocked(s.bytes - promise); err != nil {
		return err
	}
	p.dropLocked(incarnation)
	p.snapshots[incarnation] = s
	return nil
}

// snapshotOf returns the snapshot of a version, nil if it has none.
func (p *Pool) snapshotOf(incarnation string) *snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshots[incarnation]
}

// dropLocked removes the snapshot of a version, if it has one.
func (p *Pool) dropLocked(incarnation string) {
	s := p.snapshots[incarnation]
	delete(p.snapshots, incarnation)
	if s != nil && !p.closed { // Close removes what is left
		p.wg.Go(func() { p.remove(s) })
	}
}

// drop removes s, unless another has taken its place already.
func (p *Pool) drop(incarnation string, s *snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snapshots[incarnation] == s {
		p.dropLocked(incarnation)
	}
}

func (p *Pool) remove(s *snapshot) {
	if err := os.RemoveAll(s.dir); err != nil {
		p.cfg.Logger.Warn("a snapshot could not be removed", "dir", s.dir, "err", err)
	}
}

// clearSnapshots empties the directory of snapshots; those of an earlier process
// may have been written by another version of the driver's programs.
func (p *Pool) clearSnapshots() {
	dir := p.cfg.SnapshotDir
	if dir == "" {
		return
	}
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		p.cfg.Logger.Warn("the directory of snapshots could not be cleared", "dir", dir, "err", err)
	}
}

// restore starts the instance from s, which no code of the function notices. If
// that fails nothing remains, s neither, and the instance is to be started in
// the ordinary way.
func (i *instance) restore(ctx context.Context, d driver.Driver, spec driver.Spec, s *snapshot) bool {
	restorer, ok := d.(driver.Restorer)
	if !ok {
		return false
	}
	i.begun = time.Now()
	i.secret, i.ready, i.restored = s.secret, s.ready, s
	spec.Env = secretEnv(s.secret)
	startCtx, cancel := context.WithTimeout(ctx, i.pool.cfg.StartTimeout)
	defer cancel()
	err := i.resume(startCtx, restorer, spec, s)
	if err == nil {
		i.started = time.Now()
		i.inited = i.started
		return true
	}
	i.reset()
	v := i.version.Load()
	if ctx.Err() == nil && i.pool.snapshotOf(v.Incarnation) == s { // else it was given up, or s is gone already
		i.pool.cfg.Logger.Warn("a snapshot could not be restored and is removed; the function starts without it",
			"function", v.Function, "version", v.Number, "instance", i.id, "err", err)
		i.pool.drop(v.Incarnation, s)
	}
	return false
}

func (i *instance) resume(ctx context.Context, d driver.Restorer, spec driver.Spec, s *snapshot) (err error) {
	i.sandbox, err = d.Restore(ctx, spec, s.dir)
	if err != nil {
		return err
	}
	nc, err := i.sandbox.Dial(ctx)
	if err != nil {
		return err
	}
	i.conn, err = guest.Resume(ctx, nc, i.options())
	return err
}

// judge drops the snapshot that an instance was restored from if that took
// longer than cold, the time of a start without. init is the part of cold that a
// stem cell does not save.
func (p *Pool) judge(i *instance, cold, init time.Duration) {
	if i.restored == nil {
		return
	}
	v, took := i.version.Load(), i.inited.Sub(i.begun)
	log := p.cfg.Logger.With("function", v.Function, "version", v.Number, "cold", cold, "restored", took)
	if took >= cold {
		log.Info("a snapshot is removed: a start without it is faster")
		p.drop(v.Incarnation, i.restored)
		return
	}
	p.mu.Lock()
	i.restored.slower = took > init
	p.mu.Unlock()
	log.Info("starts are restored from a snapshot", "bytes", i.restored.bytes)
}
