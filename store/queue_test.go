package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// queued makes an entry that is due now.
func queued(function, body string) hearth.AsyncEntry {
	now := time.Now().Truncate(time.Microsecond).UTC()
	return hearth.AsyncEntry{
		AsyncCall: hearth.AsyncCall{
			ID: uuid.Must(uuid.NewV7()).String(), Function: function, Target: function, Kind: hearth.KindEvent, State: hearth.AsyncQueued,
			AcceptedAt: now, DueAt: now, ExpiresAt: now.Add(time.Hour), Bytes: int64(len(body)), Payer: function, Budget: 3,
		},
		AsyncPayload: hearth.AsyncPayload{Body: []byte(body)},
	}
}

func accept(t testing.TB, q *store.Queue, e hearth.AsyncEntry) hearth.AsyncCall {
	t.Helper()
	c, first, err := acceptOne(t.Context(), q, e)
	if err != nil || !first {
		t.Fatalf("accept: %v %v", first, err)
	}
	return c
}

// status returns the counts of one function.
func status(t testing.TB, q *store.Queue, function string) hearth.FunctionQueue {
	t.Helper()
	st, err := q.Status(t.Context(), function, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Functions) == 0 {
		return hearth.FunctionQueue{Function: function}
	}
	return st.Functions[0]
}

func end(c hearth.AsyncCall, state hearth.AsyncState) hearth.AsyncCall {
	c.State, c.Attempts, c.FinishedAt = state, c.Attempts+1, time.Now().Truncate(time.Microsecond).UTC()
	return c
}

func TestQueueCallFromAcceptanceToEnd(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	q := s.Queue(store.QueueLimits{})
	e := queued("hello", `{"n":1}`)
	e.Head, e.URL = []byte(`{}`), "http://example.com/a%2Fb"
	accept(t, q, e)

	got, err := beginOne(t, q, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, got); diff != "" {
		t.Errorf("what was accepted and what is begun differ: %s", diff)
	}
	q.Started(e.ID, 1)
	c := end(got.AsyncCall, hearth.AsyncSucceeded)
	c.Result = &hearth.AsyncResult{Status: 200, Headers: [][2]string{{"content-type", "text/plain"}}, Body: []byte("\x00done"), Cut: true}
	follow := queued("next", `{"from":"hello"}`)
	follow.Source, follow.Depth = e.ID, 1
	if ok, _, err := q.Finish(t.Context(), c, time.Now().Add(time.Hour), []hearth.AsyncEntry{follow}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := q.Finish(t.Context(), c, time.Now().Add(time.Hour), []hearth.AsyncEntry{queued("next", "")}); ok || err != nil {
		t.Errorf("a second end: %v %v", ok, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, dir).Queue(store.QueueLimits{})
	done, err := q.Call(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.Bytes = done.Bytes
	if diff := cmp.Diff(c, done); diff != "" {
		t.Errorf("after the end: %s", diff)
	}
	if b, err := beginOne(t, q, e.ID); err != nil || b.Body != nil {
		t.Errorf("the payload of a call that succeeded is still there: %v %v", b, err)
	}
	if b, err := beginOne(t, q, follow.ID); err != nil || string(b.Body) != `{"from":"hello"}` || b.Depth != 1 || b.Source != e.ID {
		t.Errorf("what follows: %+v %v", b, err)
	}
	if lanes, err := q.Lanes(t.Context()); err != nil || len(lanes) != 1 || lanes[0] != "next" {
		t.Errorf("lanes: %v %v", lanes, err)
	}
}

// TestQueueReopen: what was running when the server was killed waits again, and its
// attempt counts.
func TestQueueReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	q := s.Queue(store.QueueLimits{})
	e := queued("hello", "1")
	accept(t, q, e)
	q.Started(e.ID, 1)
	s.Close() //nolint:errcheck // the next one tells
	q = open(t, dir).Queue(store.QueueLimits{})
	c, err := q.Call(t.Context(), e.ID)
	if err != nil || c.State != hearth.AsyncQueued || c.Attempts != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	if f := status(t, q, "hello"); f.Queued != 1 || f.Running != 0 {
		t.Errorf("%+v", f)
	}
}

func TestQueueDeduplication(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	request := func(function string, at time.Time) hearth.AsyncEntry {
		e := queued(function, "1")
		e.DeduplicationKey, e.AcceptedAt = "order-7", at
		return e
	}
	now := time.Now()
	first := accept(t, q, request("a", now))
	same, fresh, err := acceptOne(t.Context(), q, request("a", now))
	if err != nil || fresh || same.ID != first.ID {
		t.Errorf("the same key again: %v %v %v", same, fresh, err)
	}
	if f := status(t, q, "a"); f.Queued != 1 {
		t.Errorf("stored twice: %+v", f)
	}
	accept(t, q, request("b", now)) // of another function

	// One that has not ended answers for its key for ever, one that has for a day.
	if same, fresh, err = acceptOne(t.Context(), q, request("a", now.Add(48*time.Hour))); err != nil || fresh {
		t.Errorf("after two days: %v %v", fresh, err)
	}
	if _, _, err := q.Finish(t.Context(), end(same, hearth.AsyncSucceeded), now.Add(99*time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	if _, fresh, _ = acceptOne(t.Context(), q, request("a", now.Add(23*time.Hour))); fresh {
		t.Error("the key of a call that ended counted for less than a day")
	}
	second := accept(t, q, request("a", now.Add(25*time.Hour)))
	if second.ID == first.ID {
		t.Error("the key counted for more than a day")
	}
	if _, ok, err := q.Cancel(t.Context(), second.ID, hearth.AsyncFailure{}, now.Add(time.Hour)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	accept(t, q, request("a", now.Add(25*time.Hour)))

	// A key belongs to the request with which it came first; one without a
	// fingerprint, as of an older Hearth, to all.
	print := func(key, fingerprint string) hearth.AsyncEntry {
		e := request("c", now)
		e.DeduplicationKey, e.Fingerprint = key, fingerprint
		return e
	}
	for _, c := range []struct {
		key, first, second string
		same               bool
	}{{"same", "x", "x", true}, {"other", "x", "y", false}, {"old", "", "y", true}, {"schedule", "x", "", true}} {
		first := accept(t, q, print(c.key, c.first))
		again, fresh, err := acceptOne(t.Context(), q, print(c.key, c.second))
		if c.same && (err != nil || fresh || again.ID != first.ID) {
			t.Errorf("%+v: %v %v %v", c, again, fresh, err)
		}
		if !c.same && (!errors.Is(err, hearth.ErrKeyReused) || hearth.ErrorCode(err) != hearth.CodeInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// fill stores calls like e until there is no room for more, and returns those stored.
func fill(t *testing.T, q *store.Queue, e hearth.AsyncEntry) (calls []hearth.AsyncCall) {
	t.Helper()
	for {
		e.ID = uuid.Must(uuid.NewV7()).String()
		c, _, err := acceptOne(t.Context(), q, e)
		if hearth.ErrorCode(err) == hearth.CodeExhausted && hearth.AsError(err).RetryAfter > 0 {
			return calls
		} else if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
}

// However many calls some have, others find room.
func TestQueueShares(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Calls: 60, Bytes: 6000})
	public := queued("a", "x")
	public.Public = true
	if n := len(fill(t, q, public)); n != 20 {
		t.Errorf("%d calls from anybody, want a third", n)
	}
	calls := fill(t, q, queued("a", "x"))
	if n := len(calls); n != 10 {
		t.Errorf("%d more from the management API, want half together", n)
	}
	// All that is told of the end of calls of a takes room of a, whatever is told.
	told := 0
	for i := range calls {
		var follow []hearth.AsyncEntry
		for j := range 3 {
			f := queued(fmt.Sprintf("ghost%d-%d", i, j), "x")
			f.Payer = "a"
			follow = append(follow, f)
		}
		_, refused, err := q.Finish(t.Context(), end(calls[i], hearth.AsyncFailed), time.Now().Add(time.Hour), follow)
		if err != nil {
			t.Fatal(err)
		}
		told += len(follow) - len(refused)
	}
	if told != 10 {
		t.Errorf("%d were told, want two thirds together", told)
	}
	for _, f := range []struct {
		function string
		want     int
	}{{"b", 10}, {"c", 5}, {"d", 2}} {
		if n := len(fill(t, q, queued(f.function, "x"))); n != f.want {
			t.Errorf("%d calls of %s, want as many as are free then, %d", n, f.function, f.want)
		}
	}
	big := open(t, t.TempDir()).Queue(store.QueueLimits{Bytes: 1000})
	for size, want := range map[int]hearth.Code{501: hearth.CodeExhausted, 500: ""} {
		if _, _, err := acceptOne(t.Context(), big, queued("a", strings.Repeat("x", size))); hearth.ErrorCode(err) != want {
			t.Errorf("%d of 1000 bytes: %v", size, err)
		}
	}
}

// What calls used is free again, however they end.
func TestQueueRoomComesBack(t *testing.T) {
	ctx := t.Context()
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Calls: 12, Bytes: 1200})
	now := time.Now()
	for range 3 {
		calls := fill(t, q, queued("a", "x"))
		if len(calls) != 6 {
			t.Fatalf("%d calls, want half", len(calls))
		}
		for i, c := range calls {
			q.Started(c.ID, 1)
			var err error
			switch i {
			case 0, 1, 2:
				c = end(c, hearth.AsyncSucceeded)
				c.Result = &hearth.AsyncResult{Body: make([]byte, 100)}
				_, _, err = q.Finish(ctx, c, now.Add(time.Hour), nil)
			case 3:
				_, _, err = q.Cancel(ctx, c.ID, hearth.AsyncFailure{EndedAt: now}, now.Add(time.Hour))
			default:
				_, _, err = q.Finish(ctx, end(c, hearth.AsyncFailed), now.Add(time.Hour), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if n, err := q.Redrive(ctx, "a", nil, now.Add(time.Hour), now.Add(2*time.Hour)); err != nil || n != 2 {
			t.Fatal(n, err)
		}
		if err := q.Forget(ctx, "a", hearth.AsyncFailure{EndedAt: now}, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	// Results are kept as long as there is room, and no longer.
	for range 4 {
		c := end(accept(t, q, queued("b", strings.Repeat("y", 550))), hearth.AsyncSucceeded)
		c.Result = &hearth.AsyncResult{Body: make([]byte, 550)}
		if _, _, err := q.Finish(ctx, c, now.Add(time.Hour), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Prune(ctx, now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if st, err := q.Status(ctx, "", now); err != nil || st.Calls != 0 || st.Bytes != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if n := len(fill(t, q, queued("a", strings.Repeat("z", 100)))); n != 6 {
		t.Errorf("%d calls, want half", n)
	}
}

// A call is told of although much that is kept must go for it, and a refusal takes nothing.
func TestQueueKeptGivesWay(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Bytes: 1 << 20})
	keep := func(n, size int) {
		t.Helper()
		for range n {
			c := end(accept(t, q, queued("a", "x")), hearth.AsyncSucceeded)
			c.Result = &hearth.AsyncResult{Body: make([]byte, size)}
			if _, _, err := q.Finish(ctx, c, now.Add(time.Hour), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	keep(600, 1)
	keep(9, 100<<10)
	before := status(t, q, "a").Succeeded
	if _, _, err := acceptOne(ctx, q, queued("b", strings.Repeat("x", 600<<10))); hearth.ErrorCode(err) != hearth.CodeExhausted {
		t.Errorf("more than half: %v", err)
	}
	if after := status(t, q, "a").Succeeded; after != before {
		t.Errorf("a refusal took %d results", before-after)
	}
	b := accept(t, q, queued("b", "x"))
	told := queued("c", strings.Repeat("x", 200<<10))
	told.Payer = "b"
	if _, refused, err := q.Finish(ctx, end(b, hearth.AsyncSucceeded), now.Add(time.Hour), []hearth.AsyncEntry{told}); err != nil || len(refused) > 0 {
		t.Errorf("%d were not told, %v", len(refused), err)
	}
}

// Pruning ends, also when what takes room must stay.
func TestQueuePruneEnds(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Bytes: 100_000})
	for i := range 10 { // a backlog of 80 %
		accept(t, q, queued(fmt.Sprint("f", i), strings.Repeat("x", 8000)))
	}
	for range 600 {
		c := accept(t, q, queued("gone", ""))
		if _, _, err := q.Cancel(ctx, c.ID, hearth.AsyncFailure{EndedAt: now}, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	c := end(accept(t, q, queued("a", "")), hearth.AsyncSucceeded)
	c.Result = &hearth.AsyncResult{Body: []byte("xx")}
	if _, _, err := q.Finish(ctx, c, now.Add(time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := q.Prune(ctx, now); err != nil {
		t.Error(err)
	}
	if n := status(t, q, "f0").Queued; n != 1 {
		t.Errorf("%d calls of the backlog are left", n)
	}
}

// A function that gets the name of a deleted one begins with nothing, whatever that left.
func TestQueueForgetFreesRoom(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Calls: 12})
	for _, c := range fill(t, q, queued("a", "x")) {
		if _, _, err := q.Finish(ctx, end(c, hearth.AsyncFailed), now.Add(time.Hour), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Forget(ctx, "a", hearth.AsyncFailure{EndedAt: now}, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := len(fill(t, q, queued("a", "x"))); n != 6 {
		t.Errorf("%d calls of a, want half of the whole", n)
	}
}

func TestQueueDeadLetters(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	now := time.Now()
	var dead []hearth.AsyncCall
	for i := range 3 {
		c := end(accept(t, q, queued("a", fmt.Sprint(i))), hearth.AsyncFailed)
		c.Failures = []hearth.AsyncFailure{{Attempt: 1, Code: hearth.CodeFunction, Type: "ValueError", Message: "no"}}
		if _, _, err := q.Finish(t.Context(), c, now.Add(time.Hour), nil); err != nil {
			t.Fatal(err)
		}
		dead = append(dead, c)
	}
	list, err := q.Calls(t.Context(), "a", hearth.AsyncFailed, "", 2)
	if err != nil || len(list) != 2 || list[0].ID != dead[2].ID || list[0].Failures[0].Type != "ValueError" {
		t.Fatalf("%+v %v", list, err)
	}
	list, err = q.Calls(t.Context(), "a", hearth.AsyncFailed, list[1].ID, 2)
	if err != nil || len(list) != 1 || list[0].ID != dead[0].ID {
		t.Fatalf("the second page: %+v %v", list, err)
	}
	due := time.Now()
	if n, err := q.Redrive(t.Context(), "b", []string{dead[0].ID}, due, due.Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("the dead letter of another function: %v %v", n, err)
	}
	if n, err := q.Redrive(t.Context(), "a", []string{dead[0].ID, "unknown"}, due, due.Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("redrive one: %v %v", n, err)
	}
	again, err := beginOne(t, q, dead[0].ID)
	if err != nil || again.State != hearth.AsyncQueued || again.Attempts != 0 || string(again.Body) != "0" || !again.FinishedAt.IsZero() {
		t.Errorf("redriven: %+v %v", again, err)
	}
	if n, err := q.Redrive(t.Context(), "a", nil, due, due.Add(time.Hour)); n != 2 || err != nil {
		t.Errorf("redrive all: %v %v", n, err)
	}
	for _, c := range dead {
		if _, _, err := q.Finish(t.Context(), c, now.Add(time.Hour), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := q.Purge(t.Context(), "a"); n != 3 || err != nil {
		t.Errorf("purge: %v %v", n, err)
	}
	if _, err := q.Call(t.Context(), dead[0].ID); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("after the purge: %v", err)
	}
}

// TestQueueForget: the calls of a deleted function are canceled and do not come
// back with a new one of the same name.
func TestQueueForget(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	waits := accept(t, q, queued("a", "secret"))
	gone := end(accept(t, q, queued("a", "1")), hearth.AsyncSucceeded)
	gone.Result = &hearth.AsyncResult{Status: 200, Body: []byte("7")}
	if _, _, err := q.Finish(t.Context(), gone, time.Now().Add(time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	reason := hearth.AsyncFailure{EndedAt: time.Now(), Code: hearth.CodeCanceled, Message: "function a was deleted"}
	if err := q.Forget(t.Context(), "a", reason, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	c, err := beginOne(t, q, waits.ID)
	if err != nil || c.State != hearth.AsyncCanceled || c.Failures[0].Message != reason.Message || c.Body != nil || c.Function != "" || c.Target != "a" {
		t.Errorf("%+v %v", c, err)
	}
	if c, err := q.Call(t.Context(), gone.ID); err != nil || c.State != hearth.AsyncSucceeded || c.Result == nil {
		t.Errorf("%+v %v", c, err)
	}
	if list, err := q.Calls(t.Context(), "a", "", "", 0); err != nil || len(list) != 0 {
		t.Errorf("they are still listed: %v %v", list, err)
	}
	if lanes, err := q.Lanes(t.Context()); err != nil || len(lanes) != 0 {
		t.Errorf("lanes: %v %v", lanes, err)
	}
}

func TestQueuePrune(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{Finished: 2})
	now := time.Now()
	var ids []string
	for i := range 5 {
		c := end(accept(t, q, queued("a", "x")), hearth.AsyncSucceeded)
		ids = append(ids, c.ID)
		if _, _, err := q.Finish(t.Context(), c, now.Add(time.Duration(i)*time.Minute), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Prune(t.Context(), now.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		_, err := q.Call(t.Context(), id)
		if kept := err == nil; kept != (i >= 3) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if f := status(t, q, "a"); f.Succeeded != 2 {
		t.Errorf("%+v", f)
	}
}

// TestQueueTotals: the totals are what counting would find, whatever happens.
func TestQueueTotals(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			ctx := t.Context()
			for i := range 40 {
				c, _, err := acceptOne(ctx, q, queued([]string{"a", "b"}[w%2], strings.Repeat("x", i)))
				if err != nil {
					t.Error(err)
					return
				}
				q.Started(c.ID, 1)
				switch i % 4 {
				case 0:
					_, _, err = q.Finish(ctx, end(c, hearth.AsyncSucceeded), time.Now(), nil)
				case 1:
					_, _, err = q.Finish(ctx, end(c, hearth.AsyncFailed), time.Now().Add(time.Hour), nil)
				case 2:
					_, _, err = q.Cancel(ctx, c.ID, hearth.AsyncFailure{EndedAt: time.Now()}, time.Now().Add(time.Hour))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := q.Prune(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"a", "b"} {
		list, err := q.Calls(t.Context(), f, "", "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		want := hearth.FunctionQueue{Function: f}
		for _, c := range list {
			want.Bytes += c.Bytes
			switch c.State {
			case hearth.AsyncQueued:
				want.Queued++
			case hearth.AsyncRunning:
				want.Running++
			case hearth.AsyncFailed:
				want.Dead++
			case hearth.AsyncCanceled:
				want.Canceled++
			}
		}
		got := status(t, q, f)
		got.OldestDue = time.Time{}
		if got != want || want.Running != 40 || want.Dead != 40 || want.Canceled != 40 {
			t.Errorf("got %+v, counted %+v", got, want)
		}
	}
}

// BenchmarkQueueAccept has 64 callers that each wait for the disk.
func BenchmarkQueueAccept(b *testing.B) {
	q := open(b, b.TempDir()).Queue(store.QueueLimits{Bytes: 1 << 40, Calls: 1 << 40})
	body := strings.Repeat("x", 200)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 64 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, _, err := acceptOne(context.Background(), q, queued("hello", body)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepted/s")
}

// acceptOne stores one call. first is false if it was stored before.
func acceptOne(ctx context.Context, q *store.Queue, e hearth.AsyncEntry) (call hearth.AsyncCall, first bool, err error) {
	calls, err := q.Accept(ctx, []hearth.AsyncEntry{e})
	if err != nil {
		return call, false, err
	}
	return calls[0], calls[0].ID == e.ID, nil
}

// beginOne reads one call, which must be there.
func beginOne(t *testing.T, q *store.Queue, id string) (hearth.AsyncEntry, error) {
	t.Helper()
	entries, err := q.Begin(t.Context(), []string{id, "nosuch"})
	if err == nil && (entries[0].ID != id || entries[1].ID != "") {
		t.Fatalf("%+v", entries)
	}
	return entries[0], err
}
