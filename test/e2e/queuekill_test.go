package e2e

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// killFor is how long TestQueueKill kills servers unless HEARTH_TEST_KILLS says how
// often it is to do so.
const killFor = 20 * time.Second

// TestQueueKill kills the server at random moments while calls are accepted and run.
// After each restart what was accepted goes on. In the end every accepted call has
// succeeded, and has run no more often than once for each time that it was in flight
// at a kill, plus once.
func TestQueueKill(t *testing.T) {
	kills, _ := strconv.Atoi(os.Getenv("HEARTH_TEST_KILLS")) //nolint:errcheck // 0 means for how long
	began := time.Now()
	dir := t.TempDir()
	var mu sync.Mutex
	accepted := map[string]bool{}
	rejected, unknown := 0, 0
	round := 0
	for ; round < kills || kills == 0 && time.Since(began) < killFor; round++ {
		in, cmd := spawn(t, dir)
		if round == 0 {
			in.deploy("count", "python", "def handler(event, context):\n    return event\n", fields{
				"async":       fields{"max_attempts": 100, "min_backoff": "1ms", "max_backoff": "5ms"},
				"concurrency": 4,
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					a := in.doContext(ctx, "POST", "/v1/functions/count/invocations", `"x"`, "Content-Type", "application/json", "Hearth-Invocation-Type", "async")
					mu.Lock()
					switch {
					case a.status == http.StatusAccepted && a.header.Get("Hearth-Invocation-Id") != "":
						// The head of the answer is the promise.
						accepted[a.header.Get("Hearth-Invocation-Id")] = true
					case a.status != 0:
						rejected++
					default:
						unknown++
					}
					mu.Unlock()
				}
			})
		}
		select {
		case <-time.After(time.Duration(20+rand.IntN(280)) * time.Millisecond):
		case <-t.Context().Done():
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // killed
		cancel()
		wg.Wait()
	}
	in, _ := spawn(t, dir)
	t.Logf("%d kills, %d calls accepted, %d refused, %d without an answer", round, len(accepted), rejected, unknown)
	if len(accepted) < round {
		t.Fatalf("only %d calls were accepted", len(accepted))
	}
	for left, end := -1, time.Now().Add(5*time.Minute); left != 0; {
		var st struct {
			Functions []struct{ Queued, Running int }
		}
		decode(t, in.do("GET", "/v1/queue", nil), &st)
		if left = st.Functions[0].Queued + st.Functions[0].Running; time.Now().After(end) {
			t.Fatalf("%d calls did not end", left)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	// Every accepted call is there and has succeeded. A second attempt means that the
	// first was in flight at a kill.
	lost, failed, attempts, twice := 0, 0, 0, 0
	seen := map[string]asyncCall{}
	for before := ""; ; {
		var list struct {
			Calls []asyncCall
			Next  string
		}
		decode(t, in.do("GET", "/v1/functions/count/queue?limit=500&before="+before, nil), &list)
		for _, c := range list.Calls {
			seen[c.ID] = c
		}
		if before = list.Next; before == "" {
			break
		}
	}
	for id := range accepted {
		c, ok := seen[id]
		switch {
		case !ok:
			lost++
		case c.State != "succeeded":
			failed++
			t.Logf("%+v", c)
		}
	}
	for _, c := range seen {
		attempts += c.Attempts
		twice += c.Attempts - 1
	}
	// At most the function's share of concurrency was in flight at each kill.
	inFlight := round * 3
	t.Logf("%d calls stored, %d attempts: %d were begun again, at most %d were in flight at the kills; %d lost, %d failed", len(seen), attempts, twice, inFlight, lost, failed)
	if lost > 0 || failed > 0 || twice > inFlight {
		t.Errorf("%d accepted calls were lost, %d failed, %d ran again", lost, failed, twice)
	}
}
