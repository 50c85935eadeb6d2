package e2e

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"
)

// TestRecordsKill kills the server under load. What was answered more than a second
// before has its record after the restart, and was counted.
func TestRecordsKill(t *testing.T) {
	dir := t.TempDir()
	answered := map[string]time.Time{} // by the id of the call
	var ended time.Time                // of the latest server
	all := 0
	const rounds = 3
	for round := range rounds {
		in, cmd := spawn(t, dir)
		if round == 0 {
			in.deploy("recorded", "python", "def handler(event, context):\n    return event\n", fields{"concurrency": 4})
		}
		var mu sync.Mutex
		mine := map[string]time.Time{}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					a := in.doContext(ctx, "POST", "/v1/functions/recorded/invocations", `"x"`, "Content-Type", "application/json")
					if a.status == 200 {
						mu.Lock()
						mine[a.header.Get("Hearth-Invocation-Id")] = time.Now()
						mu.Unlock()
					}
				}
			})
		}
		began := time.Now()
		waitFor(t, "load", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(mine) > 500 && time.Since(began) > 2*time.Second+time.Duration(round)*130*time.Millisecond
		})
		ended = time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // killed
		cancel()
		wg.Wait()
		all += len(mine)
		maps.DeleteFunc(mine, func(_ string, at time.Time) bool { return at.After(ended.Add(-time.Second)) })
		maps.Copy(answered, mine)
	}

	in, _ := spawn(t, dir)
	records := map[string]bool{}
	for before := ""; ; {
		var page struct {
			Invocations []struct{ ID string }
			Next        string
		}
		decode(t, in.do("GET", "/v1/invocations?function=recorded&code=ok&limit=500&before="+before, nil), &page)
		for _, v := range page.Invocations {
			records[v.ID] = true
		}
		if before = page.Next; before == "" {
			break
		}
	}
	lost := 0
	for id, at := range answered {
		if !records[id] {
			if lost++; lost <= 5 {
				t.Errorf("no record of the call %s, answered %s before the last kill", id, ended.Sub(at))
			}
		}
	}
	t.Logf("%d kills, %d calls answered more than a second before, %d lost; %d records", rounds, len(answered), lost, len(records))
	var st struct{ Calls int }
	eventually(t, "the counts", func() bool {
		decode(t, in.do("GET", "/v1/functions/recorded/stats?range=1h", nil), &st)
		return st.Calls > 0
	})
	// The calls of those that called when a server was killed may have been counted.
	if st.Calls < len(answered) || st.Calls > all+4*rounds {
		t.Errorf("%d calls were counted, of %d that were answered more than a second before a kill, and %d in all", st.Calls, len(answered), all)
	}
}
