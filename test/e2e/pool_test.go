package e2e

import (
	"sync"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// TestPoolEvents follows the pool while a function is deployed and called by many
// at once: each change follows the one before, whenever one begins to watch, and
// the end of the server is the end of the stream.
func TestPoolEvents(t *testing.T) {
	in := start(t, "")
	c, err := client.New(in.url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const code = "def handler(event, context):\n    return event\n"
	var watchers sync.WaitGroup
	seen := map[hearth.InstanceState]bool{} // by the first watcher
	watch := func(n int) {
		begun := make(chan struct{})
		first := sync.OnceFunc(func() { close(begun) })
		watchers.Go(func() {
			defer first() // also if it cannot be watched
			states := map[string]hearth.InstanceState{}
			err := c.WatchPool(t.Context(), func(e client.PoolEvent) error {
				if st := e.Status; st != nil {
					clear(states)
					for _, i := range st.Instances {
						states[i.ID] = i.State
					}
					first()
					return nil
				}
				i := e.Instance.Instance
				if states[i.ID] != e.Instance.From {
					t.Errorf("%s of %s was %q and comes from %q to %q", i.ID, i.Function, states[i.ID], e.Instance.From, i.State)
				}
				if i.Why == "" {
					t.Errorf("%s does not say why it is %s", i.ID, i.State)
				}
				states[i.ID] = i.State
				if n == 0 {
					seen[i.State] = true
				}
				return nil
			})
			if err != nil {
				t.Errorf("watcher %d: %v", n, err)
			}
		})
		<-begun
	}
	watch(0)
	in.deploy("first", "python", code, nil)
	var calls sync.WaitGroup
	for n := range 8 {
		if n == 4 {
			watch(1)
		}
		calls.Go(func() {
			for range 5 {
				if a := in.invoke("first", 1); a.status != 200 {
					t.Errorf("call: %v", a)
				}
			}
		})
	}
	calls.Wait()

	st, err := c.Pool(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Functions) != 1 || st.Functions[0].Calls != 40 || len(st.Instances) == 0 || st.Functions[0].Instances != len(st.Instances) || len(st.Stems) != 0 {
		t.Errorf("status %+v", st)
	}
	in.stop()
	watchers.Wait()
	for _, s := range []hearth.InstanceState{hearth.InstanceStarting, hearth.InstanceIdle, hearth.InstanceBusy} {
		if !seen[s] {
			t.Errorf("no instance was seen %s", s)
		}
	}
}
