package queue_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/queue"
	"github.com/hearthrun/hearth/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// functions are a Runner: what they are and what they do.
type functions struct {
	mu      sync.Mutex
	configs map[string]hearth.Config
	// limits are those of the store.
	limits store.QueueLimits
	// schedules are those of hello from the start.
	schedules map[string]hearth.Schedule
	run       func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error)
	began     []begun
	unsampled bool // what NewTrace returns
}

type begun struct {
	id, function string
	attempt      int
	at           time.Time
	body         string
}

func (f *functions) AsyncConfig(target string) (hearth.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.configs[target]
	if !ok {
		return c, hearth.Errorf(hearth.CodeNotFound, "there is no function %q", target)
	}
	return c, nil
}

func (f *functions) NewTrace() hearth.Trace { return hearth.NewTrace(!f.unsampled) }

func (f *functions) RunAsync(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
	f.mu.Lock()
	f.began = append(f.began, begun{e.ID, e.Function, attempt, time.Now(), string(e.Body)})
	run := f.run
	f.mu.Unlock()
	return run(ctx, e, attempt)
}

func (f *functions) list() []begun {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.began)
}

func ok(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
	return hearth.AsyncResult{Status: 200, Body: []byte(`"done"`)}, true, nil
}

func failing(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
	return hearth.AsyncResult{}, true, &hearth.Error{Code: hearth.CodeFunction, Message: "the function failed", Function: &hearth.FunctionError{Type: "ValueError", Message: "no"}}
}

// bed is a queue on a real store, in a bubble of its own time.
type bed struct {
	*queue.Queue
	t     *testing.T
	f     *functions
	store *store.Store
	close func()
}

// inBubble runs a test with a started queue. The function hello has the defaults.
func inBubble(t *testing.T, test func(b *bed)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}})
		test(b)
		b.close()
	})
}

func config(a hearth.Async) hearth.Config {
	return hearth.Config{Runtime: "python", Async: &a}.WithDefaults()
}

func newBed(t *testing.T, dir string, f *functions, change ...func(*queue.Config)) *bed {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(context.Background(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := queue.Config{Store: s.Queue(f.limits), Logger: log}
	for _, c := range change {
		c(&cfg)
	}
	q := queue.New(cfg)
	if f.schedules != nil {
		q.SetSchedules([]hearth.FunctionSchedules{{Function: "hello", Schedules: f.schedules}})
	}
	if err := q.Start(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	return &bed{Queue: q, t: t, f: f, store: s, close: sync.OnceFunc(func() {
		q.Close(context.Background())
		s.Close() //nolint:errcheck // the test's end
	})}
}

func (b *bed) accept(target, body string, change ...func(*hearth.AsyncRequest)) hearth.AsyncCall {
	b.t.Helper()
	r := hearth.AsyncRequest{ID: queue.NewID(), Target: target, Kind: hearth.KindEvent}
	r.Body = []byte(body)
	for _, c := range change {
		c(&r)
	}
	c, _, err := b.Accept(context.Background(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// ended waits for the end of a call.
func (b *bed) ended(id string) hearth.AsyncCall {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 24*time.Hour)
	defer cancel()
	c, err := b.Wait(ctx, id)
	if err != nil || !c.State.Ended() {
		b.t.Fatalf("%+v, %v", c, err)
	}
	return c
}

func TestSuccess(t *testing.T) {
	inBubble(t, func(b *bed) {
		began := time.Now()
		c := b.ended(b.accept("hello", "1").ID)
		if c.State != hearth.AsyncSucceeded || c.Attempts != 1 || string(c.Result.Body) != `"done"` || c.Result.Status != 200 {
			t.Errorf("%+v", c)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("it waited for %s", d)
		}
	})
}

// TestBackoff: pauses double from min_backoff to max_backoff, half of each random.
func TestBackoff(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.f.configs["hello"] = config(hearth.Async{MaxAttempts: 6, MinBackoff: hearth.Duration(time.Second), MaxBackoff: hearth.Duration(5 * time.Second)})
		b.f.run = failing
		different := map[time.Duration]bool{}
		for range 10 {
			b.f.began = nil
			c := b.ended(b.accept("hello", "1").ID)
			if c.State != hearth.AsyncFailed || c.Attempts != 6 || len(c.Failures) != 6 || c.Failures[0].Type != "ValueError" {
				t.Fatalf("%+v", c)
			}
			list := b.f.list()
			for i, full := range []time.Duration{1, 2, 4, 5, 5} {
				full *= time.Second
				pause := list[i+1].at.Sub(list[i].at)
				if pause < full/2-time.Millisecond || pause > full+time.Millisecond {
					t.Errorf("pause %d is %s, want %s to %s", i+1, pause, full/2, full)
				}
				different[pause] = true
			}
		}
		if len(different) < 25 {
			t.Errorf("the pauses are not random: %v", different)
		}
	})
}

func TestWhatIsTriedAgain(t *testing.T) {
	inBubble(t, func(b *bed) {
		for _, c := range []struct {
			err      error
			status   int
			attempts int
		}{
			{err: hearth.Errorf(hearth.CodeFunction, "x"), attempts: 3},
			{err: hearth.Errorf(hearth.CodeTimeout, "x"), attempts: 3},
			{err: hearth.Errorf(hearth.CodeUnavailable, "x"), attempts: 3},
			{err: hearth.Errorf(hearth.CodeInternal, "x"), attempts: 3},
			{err: hearth.Errorf(hearth.CodeInvalid, "x"), attempts: 1},
			{err: hearth.Errorf(hearth.CodeNotFound, "x"), attempts: 1},
			{err: hearth.Errorf(hearth.CodeDenied, "x"), attempts: 1},
			{status: 500, attempts: 3},
			{status: 429, attempts: 3},
			{status: 404, attempts: 1},
		} {
			b.f.run = func(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
				return hearth.AsyncResult{Status: c.status}, true, c.err
			}
			call := b.ended(b.accept("hello", "1", func(r *hearth.AsyncRequest) { r.Kind = hearth.KindHTTP }).ID)
			if call.State != hearth.AsyncFailed || call.Attempts != c.attempts {
				t.Errorf("%v %d: %s after %d attempts, want %d", c.err, c.status, call.State, call.Attempts, c.attempts)
			}
		}
	})
}

// TestNoRoom: a call for which there is no instance waits without losing an attempt,
// until it is too old.
func TestNoRoom(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.f.configs["hello"] = config(hearth.Async{MaxAge: hearth.Duration(20 * time.Minute)})
		room := time.Now().Add(10 * time.Minute)
		b.f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			if time.Now().Before(room) {
				return hearth.AsyncResult{}, false, hearth.Errorf(hearth.CodeExhausted, "1000 calls wait already")
			}
			return ok(ctx, e, attempt)
		}
		c := b.ended(b.accept("hello", "1").ID)
		if c.State != hearth.AsyncSucceeded || c.Attempts != 1 || len(c.Failures) != 0 {
			t.Errorf("%+v", c)
		}
		if late := c.FinishedAt.Sub(room); late > 6*time.Second {
			t.Errorf("it ran %s after there was room", late)
		}
		if n := len(b.f.list()); n > 200 {
			t.Errorf("it asked for room %d times in ten minutes", n)
		}
		room = time.Now().Add(1000 * time.Hour)
		c = b.ended(b.accept("hello", "1").ID)
		if c.State != hearth.AsyncFailed || c.Attempts != 0 || c.Failures[0].Code != hearth.CodeTimeout || !strings.Contains(c.Failures[0].Message, "max_age") {
			t.Errorf("%+v", c)
		}
		if age := c.FinishedAt.Sub(c.AcceptedAt); age < 20*time.Minute || age > 20*time.Minute+10*time.Second {
			t.Errorf("it was given up after %s", age)
		}
	})
}

func TestDelay(t *testing.T) {
	inBubble(t, func(b *bed) {
		began := time.Now()
		delayed := b.accept("hello", "1", func(r *hearth.AsyncRequest) { r.NotBefore = began.Add(time.Hour) })
		soon := b.accept("hello", "2", func(r *hearth.AsyncRequest) { r.NotBefore = began.Add(time.Minute) })
		if c := b.ended(b.accept("hello", "3").ID); !c.FinishedAt.Before(began.Add(time.Second)) {
			t.Errorf("a call waited behind those that are delayed: %+v", c)
		}
		b.ended(soon.ID)
		if d := time.Since(began); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("after %s instead of a minute", d)
		}
		b.ended(delayed.ID)
		if d := time.Since(began); d < time.Hour || d > time.Hour+time.Second {
			t.Errorf("after %s instead of an hour", d)
		}
	})
}

// TestFair: a function with thousands of calls does not keep those of others waiting.
func TestFair(t *testing.T) {
	inBubble(t, func(b *bed) {
		release := make(chan struct{})
		b.f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			<-release
			time.Sleep(time.Second)
			return ok(ctx, e, attempt)
		}
		cfg := config(hearth.Async{})
		cfg.Concurrency = 8
		b.f.configs["flood"] = cfg
		const flood = 500 // more than are in memory
		var last hearth.AsyncCall
		for i := range flood {
			last = b.accept("flood", fmt.Sprint(i))
		}
		synctest.Wait()
		if n := len(b.f.list()); n != 6 {
			t.Errorf("%d calls run at once, want 6: a quarter of 8 is left to those who wait", n)
		}
		quiet := b.accept("hello", "1")
		close(release)
		if c := b.ended(quiet.ID); c.FinishedAt.Sub(c.AcceptedAt) > 2*time.Second {
			t.Errorf("the quiet function's call took %s", c.FinishedAt.Sub(c.AcceptedAt))
		}
		c := b.ended(last.ID)
		if took := c.FinishedAt.Sub(c.AcceptedAt); took > (flood/6+3)*time.Second {
			t.Errorf("%d calls took %s", flood, took)
		}
		// First come, first served, and each once.
		seen := map[string]bool{}
		n := 0
		for _, r := range b.f.list() {
			if r.function != "flood" {
				continue
			}
			var i int
			fmt.Sscan(r.body, &i) //nolint:errcheck // 0 is noticed
			if seen[r.id] || i > n+6 || i < n-6 {
				t.Errorf("call %d began as number %d", i, n)
			}
			seen[r.id] = true
			n++
		}
		if n != flood {
			t.Errorf("%d of %d began", n, flood)
		}
	})
}

// TestBoundOfAll: the calls of many functions together are bounded, and all take turns.
func TestBoundOfAll(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{configs: map[string]hearth.Config{}}
		running, most := 0, 0
		f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			f.mu.Lock()
			running++
			most = max(most, running)
			f.mu.Unlock()
			time.Sleep(time.Second)
			f.mu.Lock()
			running--
			f.mu.Unlock()
			return ok(ctx, e, attempt)
		}
		for i := range 20 {
			f.configs[fmt.Sprint("f", i)] = config(hearth.Async{})
		}
		b := newBed(t, dir, f, func(c *queue.Config) { c.MaxRunning = 5 })
		defer b.close()
		var ids []string
		for range 3 {
			for i := range 20 {
				ids = append(ids, b.accept(fmt.Sprint("f", i), "1").ID)
			}
		}
		for _, id := range ids {
			b.ended(id)
		}
		if most != 5 {
			t.Errorf("%d calls ran at once, want 5", most)
		}
		// Nobody is served a third time before all were a second time.
		counts := map[string]int{}
		for i, r := range f.list() {
			counts[r.function]++
			if i < 40 && counts[r.function] > 2 {
				t.Errorf("%s has had %d turns of the first %d", r.function, counts[r.function], i+1)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.f.run = func(ctx context.Context, _ hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			<-ctx.Done()
			return hearth.AsyncResult{}, true, &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: ctx.Err()}
		}
		runs := b.accept("hello", "1")
		waits := b.accept("hello", "2", func(r *hearth.AsyncRequest) { r.NotBefore = time.Now().Add(time.Hour) })
		synctest.Wait()
		for _, id := range []string{runs.ID, waits.ID} {
			if _, canceled, err := b.Cancel(context.Background(), id); !canceled || err != nil {
				t.Error(canceled, err)
			}
			if c := b.ended(id); c.State != hearth.AsyncCanceled || c.Failures[len(c.Failures)-1].Code != hearth.CodeCanceled {
				t.Errorf("%+v", c)
			}
			if _, canceled, err := b.Cancel(context.Background(), id); canceled || err != nil {
				t.Errorf("again: %v %v", canceled, err)
			}
		}
		time.Sleep(2 * time.Hour)
		if n := len(b.f.list()); n != 1 {
			t.Errorf("%d attempts", n)
		}
		if _, _, err := b.Cancel(context.Background(), "unknown"); hearth.ErrorCode(err) != hearth.CodeNotFound {
			t.Error(err)
		}
	})
}

// TestCancelRaces: whatever Cancel says is how the call ended, at any moment.
func TestCancelRaces(t *testing.T) {
	inBubble(t, func(b *bed) {
		for i := range 50 {
			c := b.accept("hello", "1")
			for range i {
				// Lets the others go on a little, by what costs no time.
				b.Call(context.Background(), c.ID) //nolint:errcheck // see above
			}
			_, canceled, err := b.Cancel(context.Background(), c.ID)
			if err != nil {
				t.Fatal(err)
			}
			if state := b.ended(c.ID).State; canceled != (state == hearth.AsyncCanceled) {
				t.Errorf("canceled %v, but the call is %s", canceled, state)
			}
		}
	})
}

// TestRestart: calls of a server that ended go on, an orderly end costs no attempt, and
// a call that took the server with it each time is given up.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{configs: map[string]hearth.Config{"hello": config(hearth.Async{})}}
		f.run = func(ctx context.Context, _ hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			<-ctx.Done()
			return hearth.AsyncResult{}, true, &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: ctx.Err()}
		}
		b := newBed(t, dir, f)
		id := b.accept("hello", "1").ID
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if n := b.Queue.Close(ctx); n != 1 {
			t.Errorf("%d calls were broken off", n)
		}
		b.close()

		for range 3 { // begun, and never ended
			s, err := store.Open(context.Background(), dir, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			q := s.Queue(store.QueueLimits{})
			c, err := q.Call(context.Background(), id)
			if err != nil || c.State != hearth.AsyncQueued {
				t.Fatalf("%+v, %v", c, err)
			}
			q.Started(id, c.Attempts+1)
			s.Close() //nolint:errcheck // tested elsewhere
		}
		f.run = ok
		b = newBed(t, dir, f)
		defer b.close()
		c := b.ended(id)
		if c.State != hearth.AsyncFailed || c.Attempts != 3 || !strings.Contains(c.Failures[0].Message, "the server ended") {
			t.Errorf("%+v", c)
		}
		if n, err := b.Redrive(context.Background(), "hello", nil); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if c := b.ended(id); c.State != hearth.AsyncSucceeded {
			t.Errorf("%+v", c)
		}
	})
}

// TestDeletedFunction: at the start, calls of a function that is gone are canceled.
func TestDeletedFunction(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{run: ok, configs: map[string]hearth.Config{"hello": config(hearth.Async{})}}
		b := newBed(t, dir, f)
		id := b.accept("hello", "1", func(r *hearth.AsyncRequest) { r.NotBefore = time.Now().Add(time.Hour) }).ID
		b.close()
		delete(f.configs, "hello")
		b = newBed(t, dir, f)
		defer b.close()
		if c := b.ended(id); c.State != hearth.AsyncCanceled || !strings.Contains(c.Failures[0].Message, "deleted") {
			t.Errorf("%+v", c)
		}
	})
}

// TestDestinations: functions and webhooks are told how calls ended, in chains that
// end.
func TestDestinations(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hooks := &webhooks{status: 500}
		f := &functions{run: ok, configs: map[string]hearth.Config{
			"hello": config(hearth.Async{OnSuccess: []hearth.Destination{"function:next", "https://example.com/hook"}, OnFailure: []hearth.Destination{"function:alarm"}}),
			"next":  config(hearth.Async{}),
			"alarm": config(hearth.Async{}),
			"loop":  config(hearth.Async{OnSuccess: []hearth.Destination{"function:loop"}}),
			"tree":  config(hearth.Async{OnSuccess: []hearth.Destination{"function:tree", "function:twig", "function:leaf"}}),
			"twig":  config(hearth.Async{OnSuccess: []hearth.Destination{"function:tree", "function:twig", "function:leaf"}}),
			"leaf":  config(hearth.Async{}),
		}}
		b := newBed(t, dir, f, func(c *queue.Config) { c.Webhooks = hooks })
		defer b.close()
		first := b.ended(b.accept("hello", `{"n":1}`).ID)
		time.Sleep(time.Minute)
		list, err := b.Calls(context.Background(), "next", "", "", 0)
		if err != nil || len(list) != 1 || list[0].State != hearth.AsyncSucceeded || list[0].Source != first.ID || list[0].Depth != 1 {
			t.Fatalf("%+v %v", list, err)
		}
		var got string
		for _, r := range f.list() {
			if r.function == "next" {
				got = r.body
			}
		}
		for _, part := range []string{`"type":"run.hearth.invocation.succeeded"`, `"event":{"n":1}`, `"value":"done"`, first.ID, `"id":"` + list[0].ID} {
			if !strings.Contains(got, part) {
				t.Errorf("the event lacks %s: %s", part, got)
			}
		}
		hooks.set(204)
		time.Sleep(10 * time.Minute)
		tries := hooks.list()
		if len(tries) < 3 || tries[0].id != tries[len(tries)-1].id || tries[0].url != "https://example.com/hook" {
			t.Errorf("%+v", tries)
		}
		st, err := b.Status(context.Background(), "hello")
		if err != nil || st.Functions[0].Succeeded != 2 || st.Functions[0].Queued != 0 {
			t.Errorf("%+v %v", st, err)
		}

		f.mu.Lock()
		f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			if e.Function == "hello" {
				return failing(ctx, e, attempt)
			}
			return ok(ctx, e, attempt)
		}
		f.mu.Unlock()
		b.ended(b.accept("hello", `{"n":2}`).ID)
		b.ended(b.accept("loop", "1").ID)
		b.ended(b.accept("tree", "1").ID)
		time.Sleep(time.Minute)
		for name, want := range map[string]int{"alarm": 1, "loop": 16, "next": 1} {
			if list, _ := b.Calls(context.Background(), name, "", "", 0); len(list) != want {
				t.Errorf("%s has %d calls, want %d", name, len(list), want)
			}
		}
		st, err = b.Status(context.Background(), "")
		branches := int64(0)
		for _, f := range st.Functions {
			if slices.Contains([]string{"tree", "twig", "leaf"}, f.Function) {
				branches += f.Succeeded
			}
		}
		if err != nil || branches < 100 || branches > 251 {
			t.Errorf("%d calls in the branches, %v; want at most 250 that follow", branches, err)
		}
		for _, r := range f.list() {
			if r.function == "alarm" && (!strings.Contains(r.body, "invocation.failed") || !strings.Contains(r.body, `"ValueError"`)) {
				t.Errorf("the alarm: %s", r.body)
			}
		}
	})
}

// webhooks is a Deliverer.
type webhooks struct {
	mu     sync.Mutex
	status int
	tries  []delivery
}

type delivery struct{ url, id, body string }

func (w *webhooks) Deliver(_ context.Context, url, id string, _ hearth.Trace, body []byte) (int, time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries = append(w.tries, delivery{url, id, string(body)})
	return w.status, 0, nil
}

func (w *webhooks) set(status int) { w.mu.Lock(); w.status = status; w.mu.Unlock() }

func (w *webhooks) list() []delivery {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.tries)
}

// TestRedriveAtOnce: a dead letter that is redriven the moment it is one runs again,
// though the queue has not put its last attempt away yet.
func TestRedriveAtOnce(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.f.configs["hello"] = config(hearth.Async{MaxAttempts: 1})
		b.f.run = func(ctx context.Context, e hearth.AsyncEntry, attempt int) (hearth.AsyncResult, bool, error) {
			if n := len(b.f.list()); n%2 == 1 {
				return failing(ctx, e, attempt)
			}
			return ok(ctx, e, attempt)
		}
		for range 100 {
			id := b.accept("hello", "1").ID
			for {
				n, err := b.Redrive(context.Background(), "hello", []string{id})
				if n == 1 {
					break
				} else if hearth.ErrorCode(err) != hearth.CodeNotFound {
					t.Fatal(err)
				}
			}
			if c := b.ended(id); c.State != hearth.AsyncSucceeded {
				t.Fatalf("%+v", c)
			}
		}
	})
}

// What anybody sends, and what comes of it, does not keep out other calls of a function.
func TestPublicCallsCountApart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{run: failing, limits: store.QueueLimits{Calls: 60}, configs: map[string]hearth.Config{
			"hello": config(hearth.Async{MaxAttempts: 1, OnFailure: []hearth.Destination{"function:a", "function:b", "function:c"}}),
		}}
		b := newBed(t, dir, f)
		defer b.close()
		for range 60 {
			r := hearth.AsyncRequest{ID: queue.NewID(), Target: "hello", Kind: hearth.KindEvent, AsyncPayload: hearth.AsyncPayload{Body: []byte("1")}, Public: true, NotBefore: time.Now().Add(time.Minute)}
			if _, _, err := b.Accept(context.Background(), r); err != nil && hearth.ErrorCode(err) != hearth.CodeExhausted {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Minute) // they fail, and as many are told as there is room for
		b.accept("hello", "2")
	})
}
