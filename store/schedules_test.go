package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// firing is the call of a schedule of hello for a time.
func firing(name string, due time.Time) hearth.ScheduleFiring {
	e := queued("hello", due.Format(time.RFC3339))
	e.DeduplicationKey = hearth.ScheduleKey("hello", name, due.Format(time.RFC3339))
	return hearth.ScheduleFiring{Function: "hello", Name: name, Spec: "s", Due: due, Overlap: hearth.OverlapAllow, Entry: e}
}

// scheduleCrashEnv makes this test binary one that fires schedules until it is killed.
const scheduleCrashEnv = "HEARTH_TEST_CRASH_SCHEDULES"

var scheduleEpoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func scheduleCrashChild(dir string) {
	ctx := context.Background()
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fail(err)
	}
	q := s.Queue(store.QueueLimits{})
	names := []string{"a", "b", "c", "d"}
	states := map[string]hearth.ScheduleState{}
	list, err := q.Schedules(ctx, "")
	if err != nil {
		fail(err)
	}
	for _, st := range list {
		states[st.Name] = st
	}
	for _, name := range names {
		if _, ok := states[name]; !ok {
			st := hearth.ScheduleState{Function: "hello", Name: name, Spec: "s", Done: scheduleEpoch}
			if err := q.SetSchedules(ctx, []hearth.ScheduleState{st}, nil); err != nil {
				fail(err)
			}
			states[name] = st
		}
	}
	errs := make(chan error)
	for _, name := range names {
		st := states[name]
		go func() {
			for {
				var err error
				if st, _, err = q.FireSchedule(ctx, firing(name, st.Done.Add(time.Second))); err != nil {
					errs <- err
				}
				fmt.Println("fired", name, st.Done.Unix())
			}
		}()
	}
	fail(<-errs)
}

// TestKilledSchedules: whenever the server is killed, each time of a schedule has one
// call, up to the one that is noted as dealt with.
func TestKilledSchedules(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]int64{}
	for range 6 {
		seen, killAt := 0, 1+rand.IntN(300)
		untilKilled(t, scheduleCrashEnv+"="+dir, func(line string, kill func(time.Duration)) {
			if seen++; seen == killAt {
				kill(5 * time.Millisecond)
			}
			var name string
			var due int64
			if _, err := fmt.Sscanf(line, "fired %s %d", &name, &due); err != nil {
				t.Fatal(line)
			}
			acked[name] = due
		})
	}
	s := open(t, dir)
	q := s.Queue(store.QueueLimits{})
	calls := map[string]int{}
	for before := ""; ; {
		list, err := q.Calls(t.Context(), "hello", "", before, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			calls[c.DeduplicationKey]++
			before = c.ID
		}
		if len(list) < 1000 {
			break
		}
	}
	states, err := q.Schedules(t.Context(), "hello")
	if err != nil || len(states) != 4 {
		t.Fatal(states, err)
	}
	total := 0
	for _, st := range states {
		if st.Done.Unix() < acked[st.Name] {
			t.Errorf("%s was noted until %d, but %d was acknowledged", st.Name, st.Done.Unix(), acked[st.Name])
		}
		for due := scheduleEpoch.Add(time.Second); !due.After(st.Done); due = due.Add(time.Second) {
			total++
			if n := calls[hearth.ScheduleKey("hello", st.Name, due.Format(time.RFC3339))]; n != 1 {
				t.Fatalf("%s has %d calls for %s", st.Name, n, due)
			}
		}
	}
	if total != len(calls) || total == 0 {
		t.Errorf("%d times and %d calls", total, len(calls))
	}
	t.Logf("%d times were called for", total)
}

// TestScheduleFull: a time for which there is no room is not noted as dealt with; of
// calls that are accepted together all are, or none.
func TestScheduleFull(t *testing.T) {
	s := open(t, t.TempDir())
	q := s.Queue(store.QueueLimits{Calls: 10}) // 5 for a function
	st := hearth.ScheduleState{Function: "hello", Name: "x", Spec: "s", Done: scheduleEpoch}
	if err := q.SetSchedules(t.Context(), []hearth.ScheduleState{st}, nil); err != nil {
		t.Fatal(err)
	}
	batch := func(n int) error {
		var list []hearth.AsyncEntry
		for range n {
			list = append(list, queued("hello", "1"))
		}
		_, err := q.Accept(t.Context(), list)
		return err
	}
	if err := batch(6); hearth.ErrorCode(err) != hearth.CodeExhausted || status(t, q, "hello").Queued != 0 {
		t.Errorf("%v, %+v", err, status(t, q, "hello"))
	}
	if err := batch(5); err != nil || status(t, q, "hello").Queued != 5 {
		t.Errorf("%v, %+v", err, status(t, q, "hello"))
	}
	if _, _, err := q.FireSchedule(t.Context(), firing("x", scheduleEpoch.Add(time.Second))); hearth.ErrorCode(err) != hearth.CodeExhausted {
		t.Error(err)
	}
	list, err := q.Schedules(t.Context(), "hello")
	if err != nil || !list[0].Done.Equal(scheduleEpoch) || !list[0].Last.Due.IsZero() {
		t.Errorf("%+v %v", list, err)
	}
}

// TestScheduleOnce: a time is called for once, also when the mark that it was is lost
// with the schedule, and not at all once the schedule is another one or paused.
func TestScheduleOnce(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	st := hearth.ScheduleState{Function: "hello", Name: "x", Spec: "s", Done: scheduleEpoch}
	set := func(set, gone []hearth.ScheduleState) {
		t.Helper()
		if err := q.SetSchedules(t.Context(), set, gone); err != nil {
			t.Fatal(err)
		}
	}
	fire := func(f hearth.ScheduleFiring) bool {
		t.Helper()
		_, accepted, err := q.FireSchedule(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return accepted
	}
	set([]hearth.ScheduleState{st}, nil)
	due := scheduleEpoch.Add(time.Minute)
	if !fire(firing("x", due)) || fire(firing("x", due)) || fire(firing("x", due.Add(-time.Second))) {
		t.Error("a time was called for twice, or not at all")
	}
	set(nil, []hearth.ScheduleState{st})
	if _, _, err := q.FireSchedule(t.Context(), firing("x", due)); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Error(err)
	}
	set([]hearth.ScheduleState{st}, nil)
	if fire(firing("x", due)) {
		t.Error("a schedule that came back called for a time again")
	}
	other := firing("x", due.Add(time.Minute))
	other.Spec = "another"
	if fire(other) {
		t.Error("a schedule was called for with another one's time")
	}
	if _, err := q.PauseSchedule(t.Context(), "hello", "x", true, due); err != nil {
		t.Fatal(err)
	}
	if fire(firing("x", due.Add(time.Minute))) {
		t.Error("a schedule that is paused made a call")
	}
	if n := status(t, q, "hello").Queued; n != 1 {
		t.Errorf("%d calls", n)
	}
}
