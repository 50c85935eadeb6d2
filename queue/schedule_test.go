package queue_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/queue"
	"github.com/hearthrun/hearth/store"
)

// scheduled makes these the schedules of hello.
func (b *bed) scheduled(list map[string]hearth.Schedule) {
	b.SetSchedules([]hearth.FunctionSchedules{{Function: "hello", Schedules: list}})
}

// dues are the times of the schedules of the calls that began.
func (b *bed) dues() (list []string) {
	b.t.Helper()
	for _, c := range b.f.list() {
		var e hearth.ScheduleEvent
		if err := json.Unmarshal([]byte(c.body), &e); err != nil {
			b.t.Fatalf("%s: %v", c.body, err)
		}
		list = append(list, e.Time.Format("01-02T15:04"))
	}
	return list
}

func (b *bed) status(name string) hearth.ScheduleStatus {
	b.t.Helper()
	list, err := b.Schedules(context.Background(), "hello")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s
		}
	}
	b.t.Fatalf("there is no schedule %s: %+v", name, list)
	return hearth.ScheduleStatus{}
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// restarted ends a queue, lets time pass, and starts another on the same store with
// the same schedules.
func (b *bed) restarted(dir string, pause time.Duration, list map[string]hearth.Schedule) *bed {
	b.close()
	time.Sleep(pause)
	b.f.began, b.f.schedules = nil, list
	return newBed(b.t, dir, b.f)
}

// TestScheduleTimes: calls come at their times, in their zone, and tell them.
func TestScheduleTimes(t *testing.T) {
	inBubble(t, func(b *bed) {
		time.Sleep(30 * time.Second) // 2000-01-01T00:00:30Z
		b.scheduled(map[string]hearth.Schedule{
			"hourly": {Cron: "0 * * * *"},
			"zoned":  {Cron: "30 2 * * *", TimeZone: "Europe/Berlin"},
			"prefix": {Cron: "CRON_TZ=Asia/Kolkata 0 8 * * *", Event: map[string]any{"time": "2000-12-24T00:00:00Z"}},
			"once":   {At: "2000-01-01T03:00:00+01:00"},
		})
		time.Sleep(3 * time.Hour)
		same(t, b.dues(), "01-01T01:00", "01-01T01:30", "01-01T02:00", "01-01T02:00", "12-24T00:00", "01-01T03:00")
		for _, c := range b.f.list() {
			if late := c.at.Second(); late != 0 {
				t.Errorf("a call came %d s late", late)
			}
		}
		if s := b.status("hourly"); s.Last == nil || s.Last.State != hearth.AsyncSucceeded || s.Last.Due.Hour() != 3 || len(s.Next) != 5 || s.Next[0].Hour() != 4 {
			t.Errorf("%+v", s)
		}
		if s := b.status("once"); s.Last == nil || len(s.Next) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestScheduleMissed: what was missed while the server did not run is made up for as
// the schedule says, once only.
func TestScheduleMissed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		const hourly = "0 * * * *"
		list := map[string]hearth.Schedule{
			"skip": {Cron: hourly, Missed: hearth.MissedSkip},
			"once": {Cron: hourly},
			"all":  {Cron: hourly, Missed: hearth.MissedAll, Overlap: hearth.OverlapAllow},
			"at":   {At: "2000-01-01T02:30:00Z"},
			"past": {At: "1999-12-31T23:00:00Z"},
		}
		b.scheduled(list)
		time.Sleep(90 * time.Minute)
		if n := len(b.f.list()); n != 3 {
			t.Errorf("%d calls in the first hour", n)
		}
		b = b.restarted(dir, 3*time.Hour, list) // 4:30
		synctest.Wait()
		time.Sleep(time.Second)
		got := map[string][]string{}
		for _, c := range b.f.list() {
			var e hearth.ScheduleEvent
			if err := json.Unmarshal([]byte(c.body), &e); err != nil {
				t.Fatal(err)
			}
			got[e.Detail.Schedule] = append(got[e.Detail.Schedule], e.Time.Format("15:04"))
		}
		slices.Sort(got["all"]) // they begin together
		if text := fmt.Sprint(got); text != "map[all:[02:00 03:00 04:00] at:[02:30] once:[04:00]]" {
			t.Error(text)
		}
		if s := b.status("skip"); s.Skipped == nil || s.Skipped.Due.Hour() != 4 || !strings.Contains(s.Skipped.Reason, "missed") {
			t.Errorf("%+v", s.Skipped)
		}
		b = b.restarted(dir, time.Minute, list)
		time.Sleep(time.Second)
		same(t, b.dues())
		b = b.restarted(dir, 1000*time.Hour, list)
		time.Sleep(time.Second)
		if n := len(b.dues()); n != hearth.MaxMissed+1 {
			t.Errorf("%d calls were made up for", n)
		}
		b.close()
	})
}

// TestScheduleOverlap: what comes while the call before has not ended is skipped,
// waits, or runs beside it.
func TestScheduleOverlap(t *testing.T) {
	inBubble(t, func(b *bed) {
		slow := 35 * time.Minute
		b.f.run = func(ctx context.Context, _ hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			select {
			case <-time.After(slow):
			case <-ctx.Done():
			}
			return hearth.AsyncResult{Status: 200}, true, ctx.Err()
		}
		for _, c := range []struct {
			overlap string
			want    []string
		}{
			{hearth.OverlapSkip, []string{":10", ":50"}},
			{hearth.OverlapQueue, []string{":10", ":45"}},
			{hearth.OverlapAllow, []string{":10", ":20", ":30", ":40", ":50"}},
		} {
			began := time.Now().Truncate(time.Hour).Add(time.Hour)
			time.Sleep(time.Until(began))
			b.f.mu.Lock()
			b.f.began = nil
			b.f.mu.Unlock()
			b.scheduled(map[string]hearth.Schedule{"slow": {Cron: "*/10 * * * *", Overlap: c.overlap}})
			time.Sleep(51 * time.Minute)
			var got []string
			for _, c := range b.f.list() {
				if c.at.Before(began.Add(time.Minute)) {
					continue // of the full hour
				}
				got = append(got, c.at.UTC().Format(":04"))
			}
			same(t, got, c.want...)
			s := b.status("slow")
			if skipped := s.Skipped != nil && s.Skipped.Due.After(began); skipped == (c.overlap == hearth.OverlapAllow) {
				t.Errorf("%s: skipped %+v", c.overlap, s.Skipped)
			}
			if c.overlap == hearth.OverlapQueue && s.Waiting.Minute() != 50 {
				t.Errorf("%s waits", s.Waiting)
			}
			b.scheduled(nil)
			time.Sleep(2 * time.Hour)
		}
	})
}

// TestSchedulePause: a schedule that is paused calls nothing but by hand, and does not
// make up for it; neither does one whose times were changed.
func TestSchedulePause(t *testing.T) {
	ctx := context.Background()
	inBubble(t, func(b *bed) {
		list := map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *"}}
		b.scheduled(list)
		if _, err := b.PauseSchedule(ctx, "hello", "hourly", true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Minute)
		same(t, b.dues())
		if s := b.status("hourly"); !s.Paused || len(s.Next) != 0 {
			t.Errorf("%+v", s)
		}
		b.scheduled(nil)
		b.scheduled(list) // it stays paused
		time.Sleep(time.Hour)
		same(t, b.dues())
		s, err := b.RunSchedule(ctx, "hello", "hourly", "now")
		if err != nil || s.Last == nil {
			t.Fatalf("%+v, %v", s, err)
		}
		b.ended(s.Last.Invocation)
		if again, err := b.RunSchedule(ctx, "hello", "hourly", "now"); err != nil || again.Last.Invocation != s.Last.Invocation {
			t.Errorf("under the same key: %+v, %v", again, err)
		}
		same(t, b.dues(), "01-01T03:30")
		if !strings.Contains(b.f.list()[0].body, `"manual":true`) {
			t.Error(b.f.list()[0].body)
		}
		if _, err := b.PauseSchedule(ctx, "hello", "hourly", false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		same(t, b.dues(), "01-01T03:30", "01-01T04:00")
		b.scheduled(map[string]hearth.Schedule{"hourly": {Cron: "15 * * * *"}})
		time.Sleep(time.Minute)
		same(t, b.dues(), "01-01T03:30", "01-01T04:00")
		if _, err := b.RunSchedule(ctx, "hello", "daily", ""); hearth.ErrorCode(err) != hearth.CodeNotFound {
			t.Error(err)
		}
		if _, _, err := b.Accept(ctx, hearth.AsyncRequest{ID: queue.NewID(), Target: "hello", Kind: hearth.KindEvent, DeduplicationKey: "schedule/hello/hourly/x"}); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("a caller took a key of schedules: %v", err)
		}
	})
}

// TestScheduleAlias: another alias can be called; one that does not exist is told.
func TestScheduleAlias(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.f.configs["hello@beta"] = config(hearth.Async{})
		b.scheduled(map[string]hearth.Schedule{"beta": {Cron: "0 * * * *", Alias: "beta"}, "gone": {Cron: "0 * * * *", Alias: "gone"}})
		time.Sleep(61 * time.Minute)
		same(t, b.dues(), "01-01T01:00")
		if s := b.status("gone"); s.Skipped == nil || !strings.Contains(s.Skipped.Reason, "hello@gone") {
			t.Errorf("%+v", s)
		}
	})
}

// TestScheduleClock: a schedule does not stay silent because the clock was far ahead
// once.
func TestScheduleClock(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		list := map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *"}}
		b := newBed(t, dir, &functions{run: ok, schedules: list, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		if _, _, err := b.store.Queue(store.QueueLimits{}).FireSchedule(context.Background(), hearth.ScheduleFiring{
			Function: "hello", Name: "hourly", Spec: "CRON_TZ=UTC 0 * * * *", Due: time.Now().AddDate(10, 0, 0), Skip: "a wrong clock",
		}); err != nil {
			t.Fatal(err)
		}
		b = b.restarted(dir, time.Minute, list)
		time.Sleep(2 * time.Hour)
		same(t, b.dues(), "01-01T01:00", "01-01T02:00")
		b.close()
	})
}

// TestScheduleClockLeaps: what was dealt with before the clock was set back is not missed
// when it leaps forward again.
func TestScheduleClockLeaps(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		list := map[string]hearth.Schedule{"daily": {Cron: "0 12 * * *", Missed: hearth.MissedAll, Overlap: hearth.OverlapAllow}}
		b := newBed(t, dir, &functions{run: ok, schedules: list, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		if _, _, err := b.store.Queue(store.QueueLimits{}).FireSchedule(context.Background(), hearth.ScheduleFiring{
			Function: "hello", Name: "daily", Spec: "CRON_TZ=UTC 0 12 * * *", Due: time.Date(2000, 1, 9, 12, 0, 0, 0, time.UTC), Skip: "done before",
		}); err != nil {
			t.Fatal(err)
		}
		b = b.restarted(dir, time.Minute, list)
		time.Sleep(time.Second)
		b = b.restarted(dir, 10*24*time.Hour, list) // 01-11
		time.Sleep(time.Second)
		same(t, b.dues(), "01-10T12:00")
		b.close()
	})
}

// TestScheduleAtFraction: a time with a fraction of a second comes once, however often
// the server is started.
func TestScheduleAtFraction(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		list := map[string]hearth.Schedule{"at": {At: "2000-01-01T00:00:10.123456789Z"}}
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		b.scheduled(list)
		time.Sleep(time.Minute)
		same(t, b.dues(), "01-01T00:00")
		for range 2 {
			b = b.restarted(dir, 30*time.Hour, list)
			time.Sleep(time.Minute)
			same(t, b.dues())
		}
		b.close()
	})
}

// TestScheduleUnknown: the schedules of a function that cannot be served rest, and nothing
// of them is forgotten.
func TestScheduleUnknown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		list := map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *", Missed: hearth.MissedAll, Overlap: hearth.OverlapAllow}}
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		b.scheduled(list)
		time.Sleep(90 * time.Minute)
		b.SetSchedules([]hearth.FunctionSchedules{{Function: "hello", Unknown: true}})
		time.Sleep(2 * time.Hour)
		same(t, b.dues(), "01-01T01:00")
		b.scheduled(list) // 3:30
		time.Sleep(time.Second)
		// The two that were missed begin together.
		same(t, slices.Sorted(slices.Values(b.dues())), "01-01T01:00", "01-01T02:00", "01-01T03:00")
		b.close()
	})
}

// slowFirings is a store that takes its time for the calls of schedules.
type slowFirings struct {
	queue.Store
	stored chan struct{} // a token lets one be stored
	full   atomic.Bool   // they cannot be stored
}

func (s *slowFirings) FireSchedule(ctx context.Context, f hearth.ScheduleFiring) (hearth.ScheduleState, bool, error) {
	if s.stored != nil {
		<-s.stored
	}
	if s.full.Load() {
		return hearth.ScheduleState{}, false, hearth.Errorf(hearth.CodeExhausted, "the queue is full")
	}
	return s.Store.FireSchedule(ctx, f)
}

// TestScheduleDeployWaitsForNoCall: a deploy does not wait for what is made up for.
func TestScheduleDeployWaitsForNoCall(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &slowFirings{stored: make(chan struct{})}
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}}, func(c *queue.Config) { s.Store, c.Store = c.Store, s })
		b.scheduled(map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *"}})
		time.Sleep(61 * time.Minute) // its call is being stored
		done := make(chan struct{})
		go func() {
			b.scheduled(map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *"}, "other": {Cron: "30 * * * *"}})
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("the deploy waits")
		}
		close(s.stored)
		<-done
		time.Sleep(time.Hour)
		same(t, b.dues(), "01-01T01:00", "01-01T01:30", "01-01T02:00")
		b.close()
	})
}

// TestScheduleWaitsForRoom: a time that came in time is not missed because its call could
// not be stored.
func TestScheduleWaitsForRoom(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &slowFirings{}
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}}, func(c *queue.Config) { s.Store, c.Store = c.Store, s })
		b.scheduled(map[string]hearth.Schedule{"hourly": {Cron: "0 * * * *", Missed: hearth.MissedSkip}})
		time.Sleep(59 * time.Minute)
		s.full.Store(true)
		time.Sleep(5 * time.Minute)
		s.full.Store(false)
		time.Sleep(time.Minute)
		same(t, b.dues(), "01-01T01:00")
		b.close()
	})
}

// TestManySchedules: hundreds that are due at once are all called for, each once.
func TestManySchedules(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{run: ok, configs: map[string]hearth.Config{}}
		var list []hearth.FunctionSchedules
		for i := range 5 {
			fs := hearth.FunctionSchedules{Function: fmt.Sprint("f", i), Schedules: map[string]hearth.Schedule{}}
			for j := range hearth.MaxSchedules {
				fs.Schedules[fmt.Sprint("s", j)] = hearth.Schedule{At: "2000-01-01T00:00:30Z"}
			}
			list = append(list, fs)
			f.configs[fs.Function] = config(hearth.Async{})
		}
		b := newBed(t, dir, f)
		b.SetSchedules(list)
		time.Sleep(time.Minute)
		seen := map[string]bool{}
		for _, c := range f.list() {
			seen[c.id] = true
		}
		if n := len(f.list()); n != 5*hearth.MaxSchedules || len(seen) != n {
			t.Errorf("%d calls, %d different ones", n, len(seen))
		}
		b.close()
	})
}
