package metrics

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/prometheus/rules"

	"github.com/hearthrun/hearth"
)

// history is a database with a sample of each of some functions each 15 seconds, as if
// all were called all the time.
func history(b *testing.B, functions int, span time.Duration) (db *DB, calls *Calls) {
	b.Helper()
	calls = &Calls{}
	end := time.Now()
	at := end.Add(-span)
	db = newDB(Options{Dir: b.TempDir(), Calls: calls, Logger: slog.New(slog.DiscardHandler)}, at)
	close(db.done) // nobody stores but this function
	if err := db.openAll(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		db.open.Load().Close() //nolint:errcheck // the end of the benchmark
		db.journal.close()     //nolint:errcheck // as above
	})
	random := rand.New(rand.NewPCG(1, 2))
	m, err := db.newRules(context.Background(), db.open.Load())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(m.Stop)
	last := map[*rules.Group]time.Time{}
	for compact := at.Add(2 * time.Hour); at.Before(end); {
		at = at.Add(db.opts.Interval)
		for f := range functions {
			took := time.Duration(random.ExpFloat64() * 1e7)
			calls.Count(call(fmt.Sprintf("f%d", f), took, func(v *hearth.Invocation) { v.StartedAt = at.Add(-took) }))
		}
		db.sample(at)
		for _, g := range m.RuleGroups() {
			if at.Sub(last[g]) >= g.Interval() {
				last[g] = at
				g.Eval(context.Background(), at)
			}
		}
		if at.After(compact) {
			compact = at.Add(2 * time.Hour)
			if err := db.open.Load().Compact(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	}
	return db, calls
}

// BenchmarkDay answers what a page of a dashboard asks about a day of 200 functions.
func BenchmarkDay(b *testing.B) {
	db, _ := history(b, 200, 24*time.Hour)
	var disk int64
	err := filepath.WalkDir(db.opts.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		disk += info.Size()
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d MB on disk for %d calls", disk/1e6, 200*4*60*24)
	now := time.Now()
	for _, query := range []string{
		"sum(rate(hearth_invocations_total[5m]))",
		"sum by (function) (rate(hearth_invocations_total[5m]))",
		`sum by (function) (rate(hearth_invocations_total{fault=~"function|hearth"}[5m]))`,
		"histogram_quantile(0.99, sum(rate(hearth_invocation_duration_seconds[5m])))",
		"histogram_quantile(0.99, sum by (function) (rate(hearth_invocation_duration_seconds[5m])))",
		"histogram_quantile(0.99, hearth_invocation_duration_seconds:rate5m)",
		"histogram_quantile(0.99, function:hearth_invocation_duration_seconds:rate5m)",
		"function_fault:hearth_invocations:rate5m",
		`histogram_quantile(0.99, rate(hearth_invocation_duration_seconds{function="f7"}[5m]))`,
	} {
		b.Run(query, func(b *testing.B) {
			for b.Loop() {
				r := url.Values{"query": {query}, "start": {fmt.Sprint(now.Add(-24 * time.Hour).Unix())}, "end": {fmt.Sprint(now.Unix())}, "step": {"300"}}
				if status, data := ask(b, db, "query_range", r); status != 200 || len(data) < 100 && query[0] != 's' {
					b.Fatal(status, string(data))
				}
			}
		})
	}
	for _, function := range []string{"", "f7"} {
		b.Run("stats of "+function, func(b *testing.B) {
			for b.Loop() {
				if s, err := db.Stats(context.Background(), function, 0, now.Add(-24*time.Hour), now); err != nil || s.Calls == 0 {
					b.Fatal(s.Calls, err)
				}
			}
		})
	}
}

// BenchmarkMemory reports what the series of 10,000 functions take.
func BenchmarkMemory(b *testing.B) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		db, calls := history(b, 10_000, 30*time.Second)
		all := heap() - before
		begun := time.Now()
		db.sample(time.Now())
		took := time.Since(begun)
		b.ReportMetric(float64(all)/10_000, "B/function")
		b.ReportMetric(float64(took.Milliseconds()), "ms/sample")
		runtime.KeepAlive(calls)
	}
}
