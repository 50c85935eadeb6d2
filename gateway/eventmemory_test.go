package gateway

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/hearthrun/hearth"
)

// TestHostileEvents: to refuse what is no event takes no more than a few times its size.
func TestHostileEvents(t *testing.T) {
	structured, batch := eventHeader("Content-Type", hearth.StructuredEventType), eventHeader("Content-Type", hearth.BatchedEventsType)
	const ok = `"specversion":"1.0","id":"1","source":"/s","type":"t"`
	zeros := "[" + strings.Repeat("0,", 1<<20) + "0]"
	var members strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&members, `"a%d":1,`, i)
	}
	for _, c := range []struct {
		h          http.Header
		body, want string
		times      int
	}{
		{batch, zeros, "event 1 of the batch", 0},
		{batch, "[" + strings.Repeat(`{`+ok+`},`, 20_000) + `{}]`, "more than 1000 events", 1},
		{structured, `{"a":` + zeros + `}`, "neither text", 0},
		{structured, `{` + members.String() + ok + `}`, "too many", 1},
		{structured, `{` + ok + `,"id":"2"}`, "more than once", 1 << 20},
		{structured, `{` + ok + `,"data_base64":"` + strings.Repeat("A", 2<<20) + `="}`, "base64", 2},
		{structured, zeros, "no JSON object", 0},
		{structured, `{` + ok + `,"data":` + strings.Repeat("[", 2<<20), "no JSON object", 0},
		{binaryHeader("Content-Type", "application/json"), zeros[1:], "no JSON", 0},
		{binaryHeader("Content-Type", "text/plain"), strings.Repeat("\x01", 6<<20), "control characters", 0},
	} {
		var before, after runtime.MemStats
		body := []byte(c.body)
		runtime.ReadMemStats(&before)
		_, _, err := cloudEvents(c.h, body)
		runtime.ReadMemStats(&after)
		took := after.TotalAlloc - before.TotalAlloc
		t.Logf("%.50s…: %d KiB of memory for %d KiB", c.body, took>>10, len(body)>>10)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.50s…: %.100v, want %s", c.body, err, c.want)
		}
		if limit := 1<<20 + c.times*len(body); took > uint64(limit) {
			t.Errorf("%.50s…: %s of memory for %s", c.body, hearth.Bytes(took), hearth.Bytes(len(body)))
		}
	}
}

// waitingPool lends nothing until it is released.
type waitingPool struct {
	fakePool
	arrived chan struct{}
	release chan struct{}
}

func (p *waitingPool) Do(ctx context.Context, _ *hearth.Version, fn func(context.Context, Instance) error) error {
	defer runtime.KeepAlive(fn) // with the call
	p.arrived <- struct{}{}
	select {
	case <-p.release:
	case <-ctx.Done():
	}
	return hearth.Errorf(hearth.CodeExhausted, "there is no room")
}

// TestWaitingEvents: an event that waits for an instance is on the disk but for its
// beginning, and holds up no other large body.
func TestWaitingEvents(t *testing.T) {
	v := versionWith("f")
	v.Config.CloudEvents = true
	catalog := fakeCatalog{v}
	pool := &waitingPool{arrived: make(chan struct{}), release: make(chan struct{})}
	g := New(Config{Pool: pool, Catalog: &catalog, Recorder: &safeRecords{}, Logs: nowhere{}, Logger: discard, SpoolDir: t.TempDir()})
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	const n, size = 2 * maxLargeBodies, 5 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // a pool's are gone with the second
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	post := func(header http.Header, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/fn/f/", strings.NewReader(body))
		for name, values := range header {
			r.Header[name] = values
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w
	}
	text := strings.Repeat("x", size)
	for name, c := range map[string]struct {
		header http.Header
		body   string
	}{
		"structured": {eventHeader("Content-Type", hearth.StructuredEventType), `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"` + text + `"}`},
		"text":       {binaryHeader("Content-Type", "text/plain"), text},
		"base64":     {binaryHeader(), base64.StdEncoding.EncodeToString([]byte(text))[:size]},
	} {
		before := heap()
		var calls sync.WaitGroup
		for range n {
			calls.Go(func() {
				if w := post(c.header, c.body); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
					t.Errorf("%s: %d %s", name, w.Code, w.Body)
				}
			})
		}
		for range n {
			<-pool.arrived
		}
		took := int64(heap()) - int64(before)
		t.Logf("%s: %d MiB of memory for %d events of %d MiB", name, took>>20, n, size>>20)
		if took > n<<19 {
			t.Errorf("%s: %s of memory for %d events of %s", name, hearth.Bytes(took), n, hearth.Bytes(size))
		}
		if used := g.spool.used.Load(); used < n*(size-spooledInMemory) {
			t.Errorf("%s: %s are spooled", name, hearth.Bytes(used))
		}
		for range n {
			pool.release <- struct{}{}
		}
		calls.Wait()
		if used := g.spool.used.Load(); used != 0 || len(g.large) != 0 {
			t.Errorf("%s: %s are spooled, %d tokens are taken at the end", name, hearth.Bytes(used), len(g.large))
		}
	}
	// When there is no room on the disk, an event is refused at once.
	g.spool.limit = size / 2
	if w := post(binaryHeader("Content-Type", "text/plain"), text); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("without room: %d %s", w.Code, w.Body)
	}
}
