package queue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/queue"
)

// takes lets the function of a bed take the messages of the queue orders.
func (b *bed) takes(t hearth.QueueTrigger, a hearth.Async) {
	c := config(a)
	c.Queues = map[string]hearth.QueueTrigger{"orders": t}
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.f.configs["queue:orders"] = c
}

func (b *bed) send(bodies ...string) (ids []string) {
	b.t.Helper()
	var list []hearth.Message
	for _, body := range bodies {
		list = append(list, hearth.Message{Body: body})
	}
	sent, err := b.Send(context.Background(), "orders", list)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range sent {
		ids = append(ids, m.ID)
	}
	return ids
}

// batches returns the bodies of the messages of each batch.
func (b *bed) batches() (list [][]string) {
	for _, r := range b.f.list() {
		list = append(list, bodies(b.t, r.body))
	}
	return list
}

func bodies(t *testing.T, event string) (list []string) {
	t.Helper()
	var e hearth.QueueEvent
	if err := json.Unmarshal([]byte(event), &e); err != nil {
		t.Fatal(err)
	}
	for _, r := range e.Records {
		list = append(list, r.Body)
	}
	return list
}

func numbers(n int) (list []string) {
	for i := range n {
		list = append(list, strconv.Itoa(i))
	}
	return list
}

// refusing handles all messages but those that reject says, which it reports.
func refusing(t *testing.T, reject func(body string) bool) func(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
	return func(_ context.Context, e hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
		var event hearth.QueueEvent
		if err := json.Unmarshal(e.Body, &event); err != nil {
			t.Error(err)
		}
		type item struct {
			ID string `json:"itemIdentifier"`
		}
		failed := []item{}
		for _, r := range event.Records {
			if reject(r.Body) {
				failed = append(failed, item{r.MessageID})
			}
		}
		answer, err := json.Marshal(map[string]any{"batchItemFailures": failed})
		if err != nil {
			t.Error(err)
		}
		return hearth.AsyncResult{Status: 200, Body: answer}, true, nil
	}
}

// TestBatches: messages come in batches of the size that was asked for, in their order.
func TestBatches(t *testing.T) {
	for _, size := range []int{1, 7, 200} {
		inBubble(t, func(b *bed) {
			b.takes(hearth.QueueTrigger{BatchSize: size, BatchWindow: hearth.Duration(time.Second), Concurrency: 1}, hearth.Async{})
			want := numbers(401)
			ids := b.send(want...)
			for _, id := range ids {
				if c := b.ended(id); c.State != hearth.AsyncSucceeded || c.Attempts != 1 || c.Kind != hearth.KindQueue || c.Bytes != 0 {
					t.Fatalf("%+v", c)
				}
			}
			var got []string
			for i, batch := range b.batches() {
				if len(batch) != size && i != len(want)/size {
					t.Errorf("batch %d has %d messages, want %d", i, len(batch), size)
				}
				got = append(got, batch...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d messages, in the order %v", len(got), got)
			}
			if r := b.f.list()[0]; r.function != "queue:orders" || slices.Contains(ids, r.id) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestBatchWindow: messages wait for others, but not for longer than the window.
func TestBatchWindow(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{BatchSize: 3, BatchWindow: hearth.Duration(10 * time.Second)}, hearth.Async{})
		began := time.Now()
		b.send("a")
		time.Sleep(4 * time.Second)
		last := b.send("b")[0]
		b.ended(last)
		if d := time.Since(began); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("the window ended after %s", d)
		}
		began = time.Now()
		b.send("c", "d")
		b.ended(b.send("e")[0])
		if d := time.Since(began); d > time.Second {
			t.Errorf("a full batch waited for %s", d)
		}
		if got := fmt.Sprint(b.batches()); got != "[[a b] [c d e]]" {
			t.Error(got)
		}
	})
}

// TestBatchBytes: a batch is full when its messages are too large together.
func TestBatchBytes(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{BatchSize: 100, BatchWindow: hearth.Duration(time.Minute), Concurrency: 1}, hearth.Async{})
		body := strings.Repeat("x", hearth.MaxQueueMessage)
		var ids []string
		for range 8 {
			ids = append(ids, b.send(body)...)
		}
		for _, id := range ids {
			b.ended(id)
		}
		var sizes []int
		for _, batch := range b.batches() {
			sizes = append(sizes, len(batch))
		}
		if !slices.Equal(sizes, []int{6, 2}) {
			t.Error(sizes)
		}
	})
}

// TestPartialFailure: only what the function reports is tried again.
func TestPartialFailure(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{MaxAttempts: 3})
		b.f.run = refusing(t, func(body string) bool { return body == "bad" })
		ids := b.send("a", "bad", "b")
		for i, id := range ids {
			c := b.ended(id)
			if i != 1 {
				if c.State != hearth.AsyncSucceeded || c.Attempts != 1 {
					t.Errorf("%+v", c)
				}
				continue
			}
			if c.State != hearth.AsyncFailed || c.Attempts != 3 || len(c.Failures) != 3 || c.Failures[0].Type != "Response.BatchItemFailures" || c.Failures[0].Invocation != b.f.list()[0].id {
				t.Errorf("%+v", c)
			}
		}
		if got := fmt.Sprint(b.batches()); got != "[[a bad b] [bad] [bad]]" {
			t.Error(got)
		}
		// It is a dead letter, which can be queued anew.
		b.f.mu.Lock()
		b.f.run = ok
		b.f.mu.Unlock()
		if n, err := b.Redrive(context.Background(), "queue:orders", nil); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if c := b.ended(ids[1]); c.State != hearth.AsyncSucceeded || c.Attempts != 1 {
			t.Errorf("%+v", c)
		}
	})
}

// TestPoisonedBatch: a message that makes the function fail takes no other with it.
func TestPoisonedBatch(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{MaxAttempts: 2})
		b.f.run = func(ctx context.Context, e hearth.AsyncEntry, n int) (hearth.AsyncResult, bool, error) {
			if slices.Contains(bodies(t, string(e.Body)), "poison") {
				return hearth.AsyncResult{}, true, hearth.Errorf(hearth.CodeInvalid, "the process died")
			}
			return ok(ctx, e, n)
		}
		ids := b.send("a", "poison", "b")
		for i, id := range ids {
			want := hearth.AsyncSucceeded
			if i == 1 {
				want = hearth.AsyncFailed
			}
			if c := b.ended(id); c.State != want || c.Attempts != 2 {
				t.Errorf("%+v", c)
			}
		}
	})
}

// TestUnclearAnswer: an answer that cannot be understood fails the batch, one that says
// nothing about messages does not.
func TestUnclearAnswer(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{MaxAttempts: 1})
		for answer, want := range map[string]hearth.AsyncState{
			"":                           hearth.AsyncSucceeded,
			"null":                       hearth.AsyncSucceeded,
			`"done"`:                     hearth.AsyncSucceeded,
			`{"handled":2}`:              hearth.AsyncSucceeded,
			`{"batchItemFailures":null}`: hearth.AsyncSucceeded,
			`{"batchItemFailures":[]}`:   hearth.AsyncSucceeded,
			`{"statusCode":500}`:         hearth.AsyncSucceeded,
			`{"batchItemFailures":`:      hearth.AsyncFailed,
			`{"BatchItemFailures":[]}`:   hearth.AsyncFailed,
			`{"batchItemFailures":{}}`:   hearth.AsyncFailed,
			`{"batchItemFailures":[1]}`:  hearth.AsyncFailed,
			`{"batchItemFailures":[{}]}`: hearth.AsyncFailed,
			`{"batchItemFailures":[{"itemIdentifier":""}]}`:      hearth.AsyncFailed,
			`{"batchItemFailures":[{"itemIdentifier":"other"}]}`: hearth.AsyncFailed,
			`{"batchItemFailures":[{"itemidentifer":"x"}]}`:      hearth.AsyncFailed,
		} {
			b.f.mu.Lock()
			b.f.run = func(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
				return hearth.AsyncResult{Status: 200, Body: []byte(answer)}, true, nil
			}
			b.f.mu.Unlock()
			c := b.ended(b.send("a")[0])
			if c.State != want {
				t.Errorf("%s: %s, %+v", answer, c.State, c.Failures)
			}
			if c.State == hearth.AsyncFailed && (c.Failures[0].Type != "Response.BatchItemFailures" || !strings.Contains(c.Failures[0].Message, "not clear")) {
				t.Errorf("%s: %+v", answer, c.Failures)
			}
		}
	})
}

// TestNobodyTakesThem: messages wait for a function that takes them, also across a
// restart, and nothing can be sent meanwhile.
func TestNobodyTakesThem(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{}})
		if _, err := b.Send(context.Background(), "orders", []hearth.Message{{Body: "x"}}); hearth.ErrorCode(err) != hearth.CodeNotFound {
			t.Error(err)
		}
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		room := false
		b.f.run = func(ctx context.Context, e hearth.AsyncEntry, n int) (hearth.AsyncResult, bool, error) {
			if !room {
				return hearth.AsyncResult{}, false, hearth.Errorf(hearth.CodeExhausted, "full")
			}
			return ok(ctx, e, n)
		}
		ids := b.send("a", "b")
		time.Sleep(time.Second)
		b.f.mu.Lock()
		delete(b.f.configs, "queue:orders")
		room = true
		b.f.mu.Unlock()
		time.Sleep(time.Hour)
		b.close()
		b = newBed(t, dir, b.f)
		time.Sleep(time.Hour)
		if c, err := b.Call(context.Background(), ids[0]); err != nil || c.State != hearth.AsyncQueued || c.Attempts != 0 {
			t.Errorf("%+v, %v", c, err)
		}
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		for _, id := range ids {
			if c := b.ended(id); c.State != hearth.AsyncSucceeded || c.Attempts != 1 {
				t.Errorf("%+v", c)
			}
		}
		b.close()
	})
}

// TestSendOnce: a message with a key that was used is not there twice, and a request
// that is not valid as a whole leaves nothing.
func TestSendOnce(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		send := func(list ...hearth.Message) ([]hearth.SentMessage, error) {
			return b.Send(context.Background(), "orders", list)
		}
		first, err := send(hearth.Message{Body: "a", DeduplicationKey: "1"})
		if err != nil || first[0].Duplicate {
			t.Fatalf("%+v, %v", first, err)
		}
		again, err := send(hearth.Message{Body: "a", DeduplicationKey: "1"}, hearth.Message{Body: "b", DeduplicationKey: "2"})
		if err != nil || again[0] != (hearth.SentMessage{ID: first[0].ID, Duplicate: true}) || again[1].Duplicate {
			t.Errorf("%+v, %v", again, err)
		}
		if _, err := send(hearth.Message{Body: "c"}, hearth.Message{Body: "other", DeduplicationKey: "1"}); !errors.Is(err, hearth.ErrKeyReused) {
			t.Errorf("another message with the same key: %v", err)
		}
		b.ended(again[1].ID)
		b.ended(first[0].ID)
		for name, list := range map[string][]hearth.Message{
			"twice":   {{Body: "x", DeduplicationKey: "3"}, {Body: "y", DeduplicationKey: "3"}},
			"empty":   {{Body: "x"}, {}},
			"binary":  {{Body: "x"}, {Body: "\xff"}},
			"large":   {{Body: "x"}, {Body: strings.Repeat("x", hearth.MaxQueueMessage+1)}},
			"late":    {{Body: "x"}, {Body: "y", NotBefore: time.Now().Add(hearth.MaxDelay + time.Hour)}},
			"reserve": {{Body: "x", DeduplicationKey: "schedule/x"}},
		} {
			if _, err := send(list...); hearth.ErrorCode(err) != hearth.CodeInvalid {
				t.Errorf("%s: %v", name, err)
			}
		}
		st, err := b.Status(context.Background(), "queue:orders")
		if err != nil || len(st.Functions) != 1 || st.Functions[0].Succeeded != 2 || st.Functions[0].Queued != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		// A queue is no function.
		_, _, err = b.Accept(context.Background(), hearth.AsyncRequest{ID: queue.NewID(), Target: "queue:orders", Kind: hearth.KindEvent})
		if hearth.ErrorCode(err) != hearth.CodeNotFound {
			t.Error(err)
		}
	})
}

// TestStopDuringBatch: what a batch has when the server ends is tried again after the
// next start, and the attempt does not count.
func TestStopDuringBatch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &functions{configs: map[string]hearth.Config{}}
		f.run = func(ctx context.Context, _ hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			<-ctx.Done()
			return hearth.AsyncResult{}, true, ctx.Err()
		}
		b := newBed(t, dir, f)
		b.takes(hearth.QueueTrigger{}, hearth.Async{MaxAttempts: 1})
		ids := b.send(numbers(25)...)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if n := b.Close(ctx); n != 3 {
			t.Errorf("%d batches were broken off, want 3", n)
		}
		b.close()
		f.run = ok
		b = newBed(t, dir, f)
		for _, id := range ids {
			if c := b.ended(id); c.State != hearth.AsyncSucceeded || c.Attempts != 1 {
				t.Errorf("%+v", c)
			}
		}
		b.close()
	})
}

// TestCancelMessage: a message that waits does not come, one that is with the function
// does not come again, and the others of its batch are not broken off.
func TestCancelMessage(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		b.f.run = func(ctx context.Context, _ hearth.AsyncEntry, n int) (hearth.AsyncResult, bool, error) {
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
				t.Error("the batch was broken off")
			}
			if n := len(b.f.list()); n > 1 {
				return hearth.AsyncResult{Status: 200}, true, nil
			}
			return hearth.AsyncResult{}, true, hearth.Errorf(hearth.CodeFunction, "no")
		}
		ids := b.send("a", "b")
		time.Sleep(time.Second)
		if _, canceled, err := b.Cancel(context.Background(), ids[0]); err != nil || !canceled {
			t.Errorf("%v, %v", canceled, err)
		}
		if c := b.ended(ids[1]); c.State != hearth.AsyncSucceeded || c.Attempts != 2 {
			t.Errorf("%+v", c)
		}
		if c := b.ended(ids[0]); c.State != hearth.AsyncCanceled {
			t.Errorf("%+v", c)
		}
		if got := fmt.Sprint(b.batches()); got != "[[a b] [b]]" {
			t.Error(got)
		}
	})
}

// TestQueueAsDestination: what became of a call is a message of a queue.
func TestQueueAsDestination(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		b.f.mu.Lock()
		b.f.configs["hello"] = config(hearth.Async{OnSuccess: []hearth.Destination{"queue:orders"}})
		b.f.mu.Unlock()
		id := b.ended(b.accept("hello", `{"n":1}`).ID).ID
		time.Sleep(time.Second)
		list := b.f.list()
		if len(list) != 2 || list[1].function != "queue:orders" {
			t.Fatalf("%+v", list)
		}
		var told struct {
			Type, Subject string
			Data          struct{ Event struct{ N int } }
		}
		if err := json.Unmarshal([]byte(bodies(t, list[1].body)[0]), &told); err != nil || told.Type != "run.hearth.invocation.succeeded" || told.Subject != id || told.Data.Event.N != 1 {
			t.Errorf("%+v, %v", told, err)
		}
	})
}

// TestMessageDestinations: a webhook is told of each message that became a dead letter.
func TestMessageDestinations(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hooks := &webhooks{status: 204}
		f := &functions{configs: map[string]hearth.Config{}}
		b := newBed(t, dir, f, func(c *queue.Config) { c.Webhooks = hooks })
		defer b.close()
		b.takes(hearth.QueueTrigger{}, hearth.Async{MaxAttempts: 1, OnFailure: []hearth.Destination{"https://example.com/hook"}})
		f.run = refusing(t, func(body string) bool { return strings.HasPrefix(body, "bad") })
		b.send("a", "bad one", `"bad two"`)
		time.Sleep(time.Minute)
		var told []string
		for _, h := range hooks.list() {
			told = append(told, h.body)
		}
		slices.Sort(told)
		if len(told) != 1 || !strings.Contains(told[0], `"event":"bad one"`) || !strings.Contains(told[0], `"source":"/v1/queues/orders"`) {
			t.Errorf("%q", told)
		}
		if n := len(b.batches()); n != 1 {
			t.Errorf("the function was called %d times", n)
		}
	})
}

// TestLastAttempts: the last attempts of messages are runs like others: they are bounded
// by the concurrency and keep no other message waiting, none begins for what was canceled
// or is too old, and none after Close.
func TestLastAttempts(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{Concurrency: 2}, hearth.Async{MaxAttempts: 2, MaxAge: hearth.Duration(2 * time.Minute)})
		running, most := 0, 0
		b.f.run = func(_ context.Context, e hearth.AsyncEntry, _ int) (hearth.AsyncResult, bool, error) {
			if slices.Equal(bodies(t, string(e.Body)), []string{"good"}) {
				return hearth.AsyncResult{Status: 200}, true, nil
			}
			b.f.mu.Lock()
			running++
			most = max(most, running)
			b.f.mu.Unlock()
			time.Sleep(30 * time.Second)
			b.f.mu.Lock()
			running--
			b.f.mu.Unlock()
			return hearth.AsyncResult{}, true, hearth.Errorf(hearth.CodeTimeout, "too slow")
		}
		ids := b.send(numbers(10)...)
		time.Sleep(35 * time.Second) // the first attempt was for all; two last ones run
		good := b.send("good")[0]
		waits := slices.IndexFunc(numbers(10), func(n string) bool {
			return !slices.ContainsFunc(b.batches()[1:], func(batch []string) bool { return batch[0] == n })
		})
		if _, canceled, err := b.Cancel(context.Background(), ids[waits]); err != nil || !canceled {
			t.Errorf("%v, %v", canceled, err)
		}
		if c := b.ended(good); c.State != hearth.AsyncSucceeded {
			t.Errorf("%+v", c)
		} else if waited := c.FinishedAt.Sub(c.AcceptedAt); waited > 2*time.Minute {
			t.Errorf("it waited for %s behind the last attempts of others", waited)
		}
		for _, id := range ids {
			b.ended(id)
		}
		if most > 2 {
			t.Errorf("%d calls at once, want 2", most)
		}
		end := b.f.list()[0].at.Add(2 * time.Minute)
		for i, r := range b.f.list() {
			list := bodies(t, r.body)
			if i == 0 && len(list) != 10 || i > 0 && len(list) != 1 {
				t.Errorf("call %d has %v", i, list)
			}
			if i > 0 && list[0] == strconv.Itoa(waits) {
				t.Error("a message was passed that had been canceled")
			}
			if list[0] != "good" && r.at.After(end) {
				t.Errorf("an attempt began %s after its max_age", r.at.Sub(end))
			}
		}
	})
}

// TestLastAttemptsAfterClose: none of them begins then.
func TestLastAttemptsAfterClose(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{Concurrency: 1}, hearth.Async{MaxAttempts: 2})
		b.f.run = func(context.Context, hearth.AsyncEntry, int) (hearth.AsyncResult, bool, error) {
			time.Sleep(30 * time.Second)
			return hearth.AsyncResult{}, true, hearth.Errorf(hearth.CodeTimeout, "too slow")
		}
		b.send(numbers(10)...)
		time.Sleep(45 * time.Second)
		began := time.Now()
		b.Close(context.Background())
		if d, n := time.Since(began), len(b.f.list()); d > 30*time.Second || n != 2 {
			t.Errorf("Close took %s, %d calls", d, n)
		}
	})
}

// TestShorterWindow: a deploy without the window lets messages begin that wait for it.
func TestShorterWindow(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.takes(hearth.QueueTrigger{BatchWindow: hearth.Duration(5 * time.Minute)}, hearth.Async{})
		id := b.send("a")[0]
		time.Sleep(time.Second)
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		b.Reloaded()
		if c := b.ended(id); c.FinishedAt.Sub(c.AcceptedAt) > 2*time.Second {
			t.Errorf("it waited for %s", c.FinishedAt.Sub(c.AcceptedAt))
		}
	})
}

// TestUnreadableBatch: messages that cannot be read wait, and none is lost.
func TestUnreadableBatch(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &unreadable{}
		b := newBed(t, dir, &functions{run: ok, configs: map[string]hearth.Config{}}, func(c *queue.Config) { s.Store, c.Store = c.Store, s })
		defer b.close()
		b.takes(hearth.QueueTrigger{}, hearth.Async{})
		s.fails.Store(3)
		began := time.Now()
		for _, id := range b.send(numbers(5)...) {
			if c := b.ended(id); c.State != hearth.AsyncSucceeded || c.Attempts != 1 {
				t.Errorf("%+v", c)
			}
		}
		if d := time.Since(began); d < 3*time.Second || d > 4*time.Second {
			t.Errorf("it took %s", d)
		}
	})
}

// unreadable is a store that cannot be read for some times.
type unreadable struct {
	queue.Store
	fails atomic.Int64
}

func (s *unreadable) Begin(ctx context.Context, ids []string) ([]hearth.AsyncEntry, error) {
	if s.fails.Add(-1) >= 0 {
		return nil, errors.New("the disk is away")
	}
	return s.Store.Begin(ctx, ids)
}
