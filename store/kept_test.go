package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// keep keeps a response of a function.
func keep(t *testing.T, q *store.Queue, function string, i int, header map[string][]string, body []byte) {
	t.Helper()
	k := hearth.KeptResponse{Key: fmt.Sprint(function, i), Function: function, State: hearth.KeptDone, Status: 200}
	if _, began, err := q.BeginKept(t.Context(), k); err != nil || !began {
		t.Errorf("%s: %v, %v", k.Key, began, err)
	}
	k.Header, k.Body = header, body
	if err := q.EndKept(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// isKept tells whether the response is still there. If not, its key is taken.
func isKept(t *testing.T, q *store.Queue, function string, i int) bool {
	t.Helper()
	before, began, err := q.BeginKept(t.Context(), hearth.KeptResponse{Key: fmt.Sprint(function, i), Function: function})
	if err != nil {
		t.Fatal(err)
	}
	return !began && before.State == hearth.KeptDone
}

// What a function may keep is bounded in bytes, of headers too. It takes nothing away
// from others, and what was deleted counts no more.
func TestKeptBytes(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	header, body := map[string][]string{"X": {strings.Repeat("h", 1<<20)}}, make([]byte, 1<<20)
	keep(t, q, "other", 0, header, body)
	running := hearth.KeptResponse{Key: "running", Function: "f"}
	if _, began, err := q.BeginKept(t.Context(), running); err != nil || !began {
		t.Fatal(began, err)
	}
	for i := range 31 {
		keep(t, q, "f", i, header, body)
	}
	if !isKept(t, q, "f", 0) {
		t.Fatal("less than 64 MiB are kept")
	}
	for i := range 9 {
		keep(t, q, "f", 31+i, header, body)
	}
	if isKept(t, q, "f", 0) || !isKept(t, q, "f", 39) || !isKept(t, q, "f", 15) {
		t.Error("of 80 MiB not the newest are kept")
	}
	if before, began, err := q.BeginKept(t.Context(), running); began || before.State != hearth.KeptRunning || err != nil {
		t.Errorf("a call that runs was forgotten: %v, %v", began, err)
	}
	if !isKept(t, q, "other", 0) {
		t.Error("a response of another function was forgotten")
	}
	// Its name is given to another function, which begins with nothing.
	if err := q.Forget(t.Context(), "f", hearth.AsyncFailure{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i := range 31 {
		keep(t, q, "f", i, header, body)
	}
	if !isKept(t, q, "f", 0) {
		t.Error("what was deleted counts")
	}
}

// Who floods a function takes nothing away from its other callers.
func TestKeptCallers(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	body := make([]byte, 1<<20)
	for i := range 200 {
		k := hearth.KeptResponse{Key: fmt.Sprint("f", i), Function: "f", Caller: "192.0.2.1", State: hearth.KeptDone, Status: 200, Body: body}
		if i%50 == 0 {
			k.Caller = "2001:db8::/64"
		}
		if _, began, err := q.BeginKept(t.Context(), k); err != nil || !began {
			t.Fatal(began, err)
		}
		if err := q.EndKept(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range map[int]bool{0: true, 50: true, 100: true, 150: true, 199: true, 1: false, 101: false} {
		if kept := isKept(t, q, "f", i); kept != want {
			t.Errorf("response %d is kept: %v", i, kept)
		}
	}
}

// Calls are bounded in number, too.
func TestKeptCalls(t *testing.T) {
	q := open(t, t.TempDir()).Queue(store.QueueLimits{})
	keep(t, q, "f", 0, nil, nil)
	var wg sync.WaitGroup
	for w := range 100 {
		wg.Go(func() {
			for i := range 100 {
				keep(t, q, "f", 1+100*w+i, nil, nil)
			}
		})
	}
	wg.Wait()
	if isKept(t, q, "f", 0) {
		t.Error("the oldest of 10,001 is kept")
	}
}
