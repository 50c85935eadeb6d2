package metrics

import (
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// Statistics are exact, also when the server was started anew meanwhile.
func TestStats(t *testing.T) {
	dir := t.TempDir()
	var calls Calls
	rarely := func(o *Options) { o.Interval = time.Hour }
	db := start(t, dir, &calls, rarely)
	stats := func(function string, from, to time.Time) hearth.Stats {
		t.Helper()
		s, err := db.Stats(t.Context(), function, 0, from, to)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// stored waits until all calls of f are known, and returns when they were.
	begin := time.Now().Add(-time.Millisecond)
	stored := func(want int64) time.Time {
		t.Helper()
		eventually(t, fmt.Sprintf("%d calls are known", want), func() bool { return stats("f", begin, time.Now()).Calls == want })
		return time.Now().Truncate(time.Millisecond)
	}
	for i := range 5 {
		calls.Count(call("f", time.Duration(i+1)*time.Second, func(v *hearth.Invocation) {
			v.Cold, v.ColdReason, v.Timings.Start = i == 0, hearth.ColdReason(""), time.Second
			if v.Cold {
				v.ColdReason = hearth.ColdScale
			}
		}))
	}
	calls.Count(call("other", time.Second))
	middle := stored(5)
	fails := func(v *hearth.Invocation) { v.ErrorCode, v.Version = hearth.CodeFunction, 2 }
	for range 3 {
		calls.Count(call("f", 10*time.Second, fails))
	}
	calls.Count(call("f", 10*time.Second))
	stored(9)
	s := stats("f", middle, time.Now())
	if s.Calls != 4 || s.Codes["function_error"] != 3 || s.Errors["function"] != 3 || s.ErrorRatio != 0.75 || s.ColdStarts != 0 || s.Duration.Count != 4 ||
		math.Abs(s.Duration.P50-10) > 0.5 || math.Abs(s.Duration.Mean-10) > 0.01 || s.BytesIn != 40 || s.BytesOut != 80 {
		t.Errorf("%+v", s.StatsNumbers)
	}
	if p := stats("f", middle, middle.Add(middle.Sub(begin))).Previous; p.Calls != 5 || p.ColdStarts != 1 || p.Cold[hearth.ColdScale] != 1 || p.ColdRatio != 0.2 || math.Abs(p.Phases["run"].P50-3) > 0.15 ||
		p.Phases["start"].Count != 1 || p.ErrorRatio != 0 {
		t.Errorf("before: %+v", p)
	}
	if len(s.Versions) != 2 || s.Versions[0].Version != 2 || s.Versions[0].Calls != 3 || s.Versions[1].Calls != 1 || s.Versions[1].Isolation != "native" {
		t.Errorf("versions: %+v", s.Versions)
	}
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		calls = Calls{}
		db = start(t, dir, &calls, rarely)
		for range 20 {
			calls.Count(call("f", time.Second))
		}
	}
	defer func() { db.Close() }() //nolint:errcheck // tested above
	stored(49)
	if s := stats("", begin, time.Now()); s.Calls != 50 || len(s.Versions) != 3 || s.Duration.Count != 50 || math.Abs(s.Duration.Mean-(20+1+40+40)/50.) > 0.01 {
		t.Errorf("all: %+v", s)
	}
	if s, err := db.Stats(t.Context(), "f", 2, begin, time.Now()); err != nil || s.Calls != 3 || len(s.Versions) != 1 {
		t.Errorf("from version 2 on: %+v, %v", s, err)
	}
	if s := stats("nosuch", begin, time.Now()); s.Calls != 0 || s.Duration.P99 != 0 || s.Versions == nil {
		t.Errorf("nothing: %+v", s)
	}
	later := time.Now().Add(time.Hour)
	if s := stats("f", later, later.Add(time.Hour)); s.Calls != 0 {
		t.Errorf("in the future: %+v", s.StatsNumbers)
	}
}

// What instances use is known as exactly, of stem cells too.
func TestStatsOfUsage(t *testing.T) {
	var calls Calls
	db := start(t, t.TempDir(), &calls)
	defer db.Close() //nolint:errcheck // tested elsewhere
	begin := time.Now()
	calls.Use("", 0, "gvisor", hearth.Usage{CPUSeconds: 0.5, Idle: hearth.Occupancy{Seconds: 2, ByteSeconds: 200}})
	u := hearth.Usage{
		CPUSeconds: 0.25, NetworkIn: 1, NetworkOut: 2, DiskRead: 3, DiskWritten: 4,
		Starting: hearth.Occupancy{Seconds: 0.5, ByteSeconds: 5}, Busy: hearth.Occupancy{Seconds: 1, ByteSeconds: 10}, Idle: hearth.Occupancy{Seconds: 3, ByteSeconds: 60},
	}
	for range 2 {
		calls.Use("f", 7, "native", u)
	}
	double := hearth.Usage{
		CPUSeconds: 0.5, NetworkIn: 2, NetworkOut: 4, DiskRead: 6, DiskWritten: 8,
		Starting: hearth.Occupancy{Seconds: 1, ByteSeconds: 10}, Busy: hearth.Occupancy{Seconds: 2, ByteSeconds: 20}, Idle: hearth.Occupancy{Seconds: 6, ByteSeconds: 120},
	}
	eventually(t, "the usage is known", func() bool {
		s, err := db.Stats(t.Context(), "f", 0, begin, time.Now())
		return err == nil && s.Usage == double && len(s.Versions) == 1 && s.Versions[0].Usage == double
	})
	s, err := db.Stats(t.Context(), "", 0, begin, time.Now())
	if err != nil || s.Usage.CPUSeconds != 1 || s.Usage.Total() != (hearth.Occupancy{Seconds: 11, ByteSeconds: 350}) || len(s.Versions) != 2 {
		t.Errorf("%v; all: %+v", err, s)
	}
	if v := s.Versions[0]; v.Function != "" || v.Isolation != "gvisor" || v.Usage.Idle.Seconds != 2 {
		t.Errorf("the stem cells have %+v", v)
	}
	becomes(t, db, `sum(hearth_instance_memory_byte_seconds_total{function="f",state="idle"}) / sum(hearth_instance_seconds_total{function="f",state="idle"})`, 20)
}

// The counts of versions that are no more are let go once they are stored.
func TestPrune(t *testing.T) {
	var calls Calls
	db := start(t, t.TempDir(), &calls)
	defer db.Close() //nolint:errcheck // tested elsewhere
	begin := time.Now()
	for range 5 {
		calls.Count(call("f", time.Second))
		calls.Count(call("g", time.Second))
	}
	calls.Prune(func(function string, _ int) bool { return function == "g" })
	eventually(t, "one version is in memory", func() bool { return len(calls.all()) == 1 })
	if n := calls.all()[0]; n.function != "g" {
		t.Errorf("%s is left", n.function)
	}
	stats := func(from time.Time) int64 {
		t.Helper()
		s, err := db.Stats(t.Context(), "f", 0, from, time.Now())
		if err != nil || s.Duration.Count != s.Calls {
			t.Errorf("%+v, %v", s.StatsNumbers, err)
		}
		return s.Calls
	}
	if n := stats(begin); n != 5 {
		t.Errorf("%d calls are known of what is no more, want 5", n)
	}
	// Whoever calls it all the same begins anew.
	middle := time.Now()
	calls.Count(call("f", time.Second))
	becomes(t, db, `hearth_invocations_total{function="f"}`, 1)
	becomes(t, db, `hearth_invocations_total{function="g"}`, 5)
	if n := stats(middle); n != 1 {
		t.Errorf("%d calls since then, want 1", n)
	}
}

// What is counted after the clock was set back is stored.
func TestClockSetBack(t *testing.T) {
	var calls Calls
	now := time.Now()
	db := newDB(Options{Dir: t.TempDir(), Calls: &calls, Logger: slog.New(slog.DiscardHandler)}, now.Add(-time.Second))
	close(db.done) // nobody stores but this test
	if err := db.openAll(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		db.open.Load().Close() //nolint:errcheck // the end of the test
		db.journal.close()     //nolint:errcheck // as above
	}()
	for _, at := range []time.Duration{0, time.Minute, -30 * time.Minute, -29 * time.Minute} {
		calls.Count(call("f", time.Millisecond))
		db.sample(now.Add(at))
		if db.complained != (time.Time{}) {
			t.Fatalf("a sample at %s is refused", at)
		}
	}
	if n := number(t, db, fmt.Sprintf("max(max_over_time(hearth_invocations_total[2h] @ %d))", now.Unix()+60)); n != 4 {
		t.Errorf("%v calls are stored", n)
	}
}
