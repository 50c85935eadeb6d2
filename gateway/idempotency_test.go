package gateway

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// memoryKeeper keeps responses.
type memoryKeeper struct {
	mu     sync.Mutex
	kept   map[string]hearth.KeptResponse
	begins int
}

func (m *memoryKeeper) BeginKept(_ context.Context, k hearth.KeptResponse) (hearth.KeptResponse, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begins++
	if before, ok := m.kept[k.Key]; ok {
		return before, false, nil
	}
	if m.kept == nil {
		m.kept = map[string]hearth.KeptResponse{}
	}
	k.State = hearth.KeptRunning
	m.kept[k.Key] = k
	return hearth.KeptResponse{}, true, nil
}

func (m *memoryKeeper) EndKept(_ context.Context, k hearth.KeptResponse) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[k.Key] = k
	return nil
}

func (m *memoryKeeper) DropKept(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.kept, key)
	return nil
}

// A call that is over the limit is refused before its key is stored, and so are those
// that are answered with an earlier response.
func TestKeyedCallsAreLimitedFirst(t *testing.T) {
	v := versionWith("f")
	v.Config.Limits = hearth.Limits{Rate: 1, Burst: 3}
	bubble(t, "", func(t *testing.T) {
		keeper := &memoryKeeper{}
		s := newSite(t, Config{Keeper: keeper}, says(), v)
		statuses := map[int]int{}
		for i := range 20 {
			statuses[s.do(t.Context(), "POST", "/fn/f/", fmt.Sprint("Idempotency-Key: ", i/2)).status]++
		}
		if statuses[200] != 3 || statuses[429] != 17 || keeper.begins != 3 {
			t.Errorf("statuses %v, %d keys stored", statuses, keeper.begins)
		}
		if n := s.origin.calls(); n != 2 { // the third request was the second one again
			t.Errorf("%d calls", n)
		}
	})
}

// Those that wait for a call with the same key are bounded in number and time.
func TestWaitingForAKeyIsBounded(t *testing.T) {
	v := versionWith("f")
	v.Config.Timeout = hearth.Duration(10 * time.Minute)
	bubble(t, "", func(t *testing.T) {
		block := make(chan struct{})
		s := newSite(t, Config{Keeper: &memoryKeeper{}}, func(int, event) reply {
			<-block
			return reply{body: "done"}
		}, v)
		type ended struct {
			answer
			after time.Duration
		}
		answers := make(chan ended, 100)
		begin := time.Now()
		post := func() {
			go func() {
				a := s.do(t.Context(), "POST", "/fn/f/", "Idempotency-Key: k")
				answers <- ended{a, time.Since(begin)}
			}()
			synctest.Wait()
		}
		for range 1 + maxKeyWaiters + 3 {
			post()
		}
		for range 3 {
			if a := <-answers; a.status != 429 || a.header.Get("Retry-After") == "" || a.after > time.Second {
				t.Errorf("one too many: %d after %s", a.status, a.after)
			}
		}
		for range maxKeyWaiters {
			if a := <-answers; a.status != 409 || a.header.Get("Retry-After") == "" || a.after != keyWait {
				t.Errorf("one that waits: %d after %s", a.status, a.after)
			}
		}
		if n := s.gateway.waiters.Load(); n != 0 {
			t.Errorf("%d waiters are counted", n)
		}
		post() // there is room again
		close(block)
		for range 2 {
			if a := <-answers; a.status != 200 || a.body != "done" {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		// And of all keys together.
		s.gateway.waiters.Store(maxWaiters)
		if err := s.gateway.wait(t.Context(), &keyedCall{}); hearth.ErrorCode(err) != hearth.CodeExhausted {
			t.Error(err)
		}
	})
}

// Callers are told apart by what they identify themselves with, and not by what Hearth sets.
func TestCallersAreToldApart(t *testing.T) {
	of := func(header http.Header) string {
		h := sha256.New()
		addCaller(h, header)
		return string(h.Sum(nil))
	}
	nobody := of(http.Header{})
	for name, c := range map[string]struct {
		header http.Header
		same   http.Header
	}{
		"only a cookie of Hearth":  {http.Header{"Cookie": {"hearth_f_live=1"}}, http.Header{}},
		"another cookie of Hearth": {http.Header{"Cookie": {"session=a; hearth_g_live=7"}}, http.Header{"Cookie": {"session=a"}}},
	} {
		if of(c.header) != of(c.same) {
			t.Errorf("%s makes another caller", name)
		}
	}
	for _, header := range []http.Header{{"Cookie": {"session=a"}}, {"Authorization": {"a"}}, {"Cookie": {"session=a", "b=c"}}, {"X-Api-Key": {"a"}}} {
		if of(header) == nobody {
			t.Errorf("%v is nobody", header)
		}
	}
}
