// Package metrics counts what happens, keeps the counts as time series in a Prometheus
// database of its own, and answers PromQL.
//
// Calls are counted where they end, exactly, whatever becomes of their records. Twice a
// second what has changed goes to a journal, and every 15 seconds (Options.Interval) to the
// database, together with what others tell of their state; the journal is for what a
// killed server had no time to store.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hearthrun/hearth"
)

// Options of a DB. Dir, Calls and Logger are required; other zero fields take the default.
type Options struct {
	// Dir is where the database is; it is made if it is not there.
	Dir string
	// Calls are stored.
	Calls *Calls
	// Gatherer has what else is stored, beside Calls.
	Gatherer prometheus.Gatherer
	Logger   *slog.Logger
	// Interval is between two samples of a series; default 15 s, also if it is negative.
	Interval time.Duration
	// Retention is how long samples are kept, default 15 days, and MaxBytes how much of
	// the disk they may take, default 2 GiB.
	Retention time.Duration
	MaxBytes  hearth.Bytes
	// Rules are files with rules of Prometheus, which CheckRules accepts, besides those
	// that are shipped. Notify is told of the alerts that they raise; nil tells nobody.
	Rules  []string
	Notify Notify
}

func (o Options) withDefaults() Options {
	if o.Interval <= 0 {
		o.Interval = 15 * time.Second
	}
	if o.Retention == 0 {
		o.Retention = 15 * 24 * time.Hour
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 2 << 30
	}
	return o
}

const (
	// journalEvery is after which time what was counted is in the journal: what a killed
	// server loses is less than a second of it.
	journalEvery = 500 * time.Millisecond
	// flushEvery bounds how often samples are stored because somebody asks.
	flushEvery = 100 * time.Millisecond
	// repeatAfter is after which time a value is stored again though it is the same, so
	// that queries, which look back for five minutes, still find it.
	repeatAfter = 2 * time.Minute
)

// DB stores series. Its methods may be called from many goroutines.
type DB struct {
	opts    Options
	queries *queries
	open    atomic.Pointer[tsdb.DB] // nil until it is open
	manager atomic.Pointer[rules.Manager]
	cancel  context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended
	flushes chan chan struct{}
	since   time.Time // when this process began
	started point     // of startedMetric

	// Of the goroutine.
	journal    *journal
	looked     time.Time // when what was counted was noted or stored last
	sampled    time.Time // when it was stored last
	complained time.Time // when an error was logged last
	gathered   gathered
}

// series is what is known of one value of a version.
type series struct {
	labels labels.Labels
	ref    storage.SeriesRef
	stored float64 // what the database has, since at
	at     time.Time
	noted  float64 // what the journal has, or the database
}

// Start opens the database, behind the caller's back since that can take seconds, and
// begins to store. Close must be called.
func Start(opts Options) *DB {
	db := newDB(opts, time.Now())
	ctx, cancel := context.WithCancel(context.Background())
	db.cancel = cancel
	go db.run(ctx)
	return db
}

// newDB returns a database that is not open and stores nothing by itself. All that is
// stored already is older than now.
func newDB(opts Options, now time.Time) *DB {
	db := &DB{opts: opts.withDefaults(), done: make(chan struct{}), since: now, looked: now, sampled: now, flushes: make(chan chan struct{})}
	db.started = point{labels: labels.FromStrings(model.MetricNameLabel, startedMetric), n: float64(now.UnixMilli()) / 1000}
	db.queries = newQueries(db, opts.Logger)
	return db
}

// Close stores what was counted until now and closes the database.
func (db *DB) Close() error {
	db.cancel()
	<-db.done
	if t := db.open.Load(); t != nil {
		if err := t.Close(); err != nil {
			return hearth.Errorf(hearth.CodeUnavailable, "the database of metrics cannot be closed: %w", err)
		}
	}
	return nil
}

// run is the goroutine that stores.
func (db *DB) run(ctx context.Context) {
	defer close(db.done)
	if err := db.openAll(); err != nil {
		db.opts.Logger.Error("metrics are not stored; they are counted", "dir", db.opts.Dir, "err", err)
		return
	}
	defer db.journal.close() //nolint:errcheck // what it has is stored
	var fired []labels.Labels
	if db.opts.Notify != nil {
		fired = db.fired(db.since)
	}
	if m, err := db.newRules(ctx, db.open.Load()); err != nil {
		db.opts.Logger.Error("rules are not evaluated", "err", err)
	} else {
		db.manager.Store(m)
		go m.Run()
		defer m.Stop()
	}
	note := time.NewTicker(journalEvery)
	defer note.Stop()
	sample := time.NewTicker(db.opts.Interval)
	defer sample.Stop()
	for {
		select {
		case <-ctx.Done():
			db.sample(time.Now())
			return
		case <-sample.C:
			db.sample(time.Now())
			fired = db.tellEnded(ctx, fired, time.Now())
		case <-note.C:
			db.note()
		case done := <-db.flushes:
			if time.Since(db.sampled) > flushEvery {
				db.sample(time.Now())
			}
			close(done)
		}
	}
}

// openAll opens the database and the journal, whose samples it stores. A database that
// cannot be opened is put aside.
func (db *DB) openAll() error {
	dir := filepath.Join(db.opts.Dir, "tsdb")
	t, err := db.openTSDB(dir)
	if err != nil {
		aside := fmt.Sprintf("%s.broken-%d", dir, time.Now().Unix())
		if err := errors.Join(err, os.Rename(dir, aside)); err != nil {
			db.opts.Logger.Error("the database of metrics is broken: it is put aside, and another begins", "dir", aside, "err", err)
		}
		if t, err = db.openTSDB(dir); err != nil {
			return err
		}
	}
	// What the database has already is refused, which is as it should be.
	err = replay(filepath.Join(db.opts.Dir, "journal"), func(list []point) error {
		a := t.Appender(context.Background())
		for _, p := range list {
			if p.histogram != nil {
				a.AppendHistogram(0, p.labels, p.t, p.histogram, nil) //nolint:errcheck // as said
			} else {
				a.Append(0, p.labels, p.t, p.n) //nolint:errcheck // as said
			}
		}
		return a.Commit()
	})
	if err != nil {
		db.opts.Logger.Warn("what was counted in the last seconds before the server ended is lost", "err", err)
	}
	if db.journal, err = newJournal(filepath.Join(db.opts.Dir, "journal")); err != nil {
		return errors.Join(err, t.Close())
	}
	db.open.Store(t)
	return nil
}

func (db *DB) openTSDB(dir string) (*tsdb.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	o := tsdb.DefaultOptions()
	o.RetentionDuration, o.MaxBytes = db.opts.Retention.Milliseconds(), int64(db.opts.MaxBytes)
	o.NoLockfile = true                               // the data directory has one
	o.OutOfOrderTimeWindow = time.Hour.Milliseconds() // by which the clock may be set back
	o.EnableMemorySnapshotOnShutdown = true
	log := slog.New(warnings{db.opts.Logger.Handler()}).With("part", "metrics")
	return tsdb.Open(dir, log, nil, o, nil)
}

// warnings leaves out what the database says of its everyday work.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }

// seriesOf returns what is known of value i of a version.
func (n *counts) seriesOf(i int, v value) *series {
	if n.series == nil {
		n.series = make([]series, valuesOf)
	}
	s := &n.series[i]
	if s.labels.IsEmpty() {
		pairs := []string{model.MetricNameLabel, v.name, "function", n.function, "version", strconv.Itoa(n.number), "isolation", n.isolation}
		for k, name := range v.family.labels {
			pairs = append(pairs, name, v.labels[k])
		}
		s.labels = labels.FromStrings(pairs...)
	}
	return s
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// zeroAt returns when a value was 0 that is not now: when the others were looked at last,
// or its version had not been called yet.
func (n *counts) zeroAt(looked, now time.Time) time.Time {
	t, latest := later(n.since, looked), now.Add(-time.Millisecond)
	if t.After(latest) { // the clock was set back, perhaps
		return latest
	}
	return t
}

// point returns the value as it is at a time.
func (v value) point(l labels.Labels, t time.Time) point {
	p := point{labels: l, t: t.UnixMilli(), n: v.n}
	if v.histogram != nil {
		p.histogram = v.histogram.Snapshot()
	}
	return p
}

// zero returns the value as it was before the first call.
func (v value) zero(l labels.Labels, t time.Time) point {
	p := point{labels: l, t: t.UnixMilli()}
	if v.histogram != nil {
		p.histogram = new(Histogram).Snapshot()
	}
	return p
}

// note puts what has changed into the journal.
func (db *DB) note() {
	now := time.Now()
	defer func() { db.looked = now }()
	var points []point
	for _, n := range db.opts.Calls.all() {
		if !n.touched.Swap(false) {
			continue
		}
		n.pending = true
		n.each(func(i int, v value) {
			s := n.seriesOf(i, v)
			if s.noted == v.n {
				return
			}
			if s.noted == 0 {
				points = append(points, v.zero(s.labels, n.zeroAt(db.looked, now)))
			}
			s.noted = v.n
			points = append(points, v.point(s.labels, now))
		})
	}
	if len(points) == 0 {
		return
	}
	db.started.t = now.UnixMilli()
	points = append(points, db.started)
	if err := db.journal.add(points); err != nil {
		db.failed("noting what was counted", err)
	}
}

// sample stores what has changed, and what else there is, as that of a time.
func (db *DB) sample(now time.Time) {
	a := db.open.Load().Appender(context.Background())
	var failed error
	var stored []func()
	for _, n := range db.opts.Calls.all() {
		if n.touched.Swap(false) {
			n.pending = true
		}
		if n.gone.Load() && !n.pending {
			db.opts.Calls.forget(n)
			continue
		}
		if !n.pending && now.Sub(n.stored) < repeatAfter {
			continue
		}
		n.each(func(i int, v value) {
			s := n.seriesOf(i, v)
			if s.stored == v.n && now.Sub(s.at) < repeatAfter {
				return
			}
			if s.stored == 0 {
				failed = cmp.Or(failed, add(a, s, v.zero(s.labels, n.zeroAt(db.sampled, now))))
			}
			if err := add(a, s, v.point(s.labels, now)); err != nil {
				failed = cmp.Or(failed, err)
				return
			}
			stored = append(stored, func() { s.stored, s.noted, s.at = v.n, v.n, now })
		})
		stored = append(stored, func() { n.pending, n.stored = false, now })
	}
	db.started.t = now.UnixMilli()
	_, err := a.Append(0, db.started.labels, db.started.t, db.started.n)
	failed = cmp.Or(failed, err, db.gathered.store(db, a, now))
	if err = a.Commit(); err != nil {
		db.failed("storing metrics", err)
		return
	}
	for _, fn := range stored {
		fn()
	}
	db.looked, db.sampled = now, now
	if failed != nil {
		db.failed("storing metrics", failed)
	}
	if err := db.journal.clear(); err != nil {
		db.failed("clearing the journal of metrics", err)
	}
}

// add appends a point of a series.
func add(a storage.Appender, s *series, p point) (err error) {
	if p.histogram != nil {
		s.ref, err = a.AppendHistogram(s.ref, p.labels, p.t, p.histogram, nil)
	} else {
		s.ref, err = a.Append(s.ref, p.labels, p.t, p.n)
	}
	return err
}

// failed logs an error, not more than one a minute.
func (db *DB) failed(what string, err error) {
	if now := time.Now(); now.Sub(db.complained) > time.Minute {
		db.complained = now
		db.opts.Logger.Error(what, "err", err)
	}
}
