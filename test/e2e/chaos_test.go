package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// chaosDuration is how long TestChaos goes on; HEARTH_TEST_CHAOS sets another,
// HEARTH_TEST_SEED repeats the choices of an earlier run.
const chaosDuration = 15 * time.Second

// A chaosFunction answers with the number of its deploy and what it was sent.
type chaosFunction struct {
	name, runtime, code string
	// deleted: it is deleted and made anew now and then, and the records of its calls
	// with it; so none of its instances is killed.
	deleted bool
	callers int

	// attempted is the newest deploy that was sent, acknowledged the newest that was
	// answered.
	attempted, acknowledged atomic.Int64
	// absent is odd while the function may not exist.
	absent atomic.Int64
}

func chaosFunctions() []*chaosFunction {
	return []*chaosFunction{
		{ // so many that some wait while all cores are busy
			name: "computes", runtime: "python", callers: 4*runtime.NumCPU() + 2,
			code: "import time\ndef handler(event, context):\n    end = time.process_time() + 0.005\n    while time.process_time() < end:\n        pass\n    return {'deploy': %d, 'nonce': event['nonce']}\n",
		},
		{name: "fast", runtime: "python", callers: 2, code: "def handler(event, context):\n    return {'deploy': %d, 'nonce': event['nonce']}\n"},
		{
			name: "waits", runtime: "nodejs", callers: 2,
			code: "export const handler = async (event) => { await new Promise((r) => setTimeout(r, 20 + event.nonce %% 30)); return { deploy: %d, nonce: event.nonce }; };\n",
		},
		{
			name: "streams", runtime: "python", callers: 2,
			code: "import json, time\ndef handler(event, context):\n    text = json.dumps({'deploy': %d, 'nonce': event['nonce']}).encode()\n    def parts():\n        for c in text:\n            time.sleep(0.0005)\n            yield bytes([c])\n    return parts()\n",
		},
		{
			name: "gone", runtime: "nodejs", deleted: true, callers: 2,
			code: "export const handler = async (event) => ({ deploy: %d, nonce: event.nonce });\n",
		},
	}
}

// chaos is one run of TestChaos.
type chaos struct {
	t         *testing.T
	functions []*chaosFunction
	socket    *net.TCPListener // what a service manager holds
	dir       string
	rand      *rand.Rand
	in        *installation

	killed map[string]bool // instances

	mu       sync.Mutex
	failures []string // ids of calls that ended with their instances; guarded by mu

	updates, scaleDowns, deletes, restarts int64
}

// TestChaos updates, deletes, scales down, kills and restarts under load. No call
// fails but those whose own instance was killed, none is answered by a version that
// was not live meanwhile, and none gets the answer of another.
func TestChaos(t *testing.T) {
	duration := chaosDuration
	if s := os.Getenv("HEARTH_TEST_CHAOS"); s != "" {
		var err error
		if duration, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("HEARTH_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HEARTH_TEST_SEED=%d", seed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &chaos{t: t, functions: chaosFunctions(), socket: l.(*net.TCPListener), dir: t.TempDir(), killed: map[string]bool{}, rand: rand.New(rand.NewPCG(seed, 0))}
	c.serve()
	for _, f := range c.functions {
		c.deploy(f, 16)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var calls, absent atomic.Int64
	nonce := uint64(0)
	for _, f := range c.functions {
		for range f.callers {
			nonce += 1 << 32
			first := nonce
			wg.Go(func() { c.call(ctx, f, first, &calls, &absent) })
		}
	}
	end := time.Now().Add(duration)
	// Each kind in turn, so that a short run has all of them, in random order.
	kinds := []func(){c.update, c.update, c.scaleDown, c.kill, c.kill, c.remove, c.restart}
	for time.Now().Before(end) && !t.Failed() {
		c.rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for _, happen := range kinds {
			happen()
			before := calls.Load()
			want := before + 5 + c.rand.Int64N(100)
			waitFor(t, "more calls", func() bool { return calls.Load() >= want })
		}
	}
	cancel()
	wg.Wait()
	c.attribute()
	c.in.stop()
	t.Logf("%d calls, %d of a function that did not exist; %d updates, %d scale-downs, %d deletes, %d restarts; %d instances killed, and %d calls with them",
		calls.Load(), absent.Load(), c.updates, c.scaleDowns, c.deletes, c.restarts, len(c.killed), len(c.failures))
	if min(c.updates, c.scaleDowns, c.deletes, c.restarts, int64(len(c.killed))) == 0 {
		t.Error("some kind of chaos did not happen")
	}
	waitFor(t, "the last sandboxes to end", func() bool { return len(sandboxProcesses(c.dir)) == 0 })
}

// serve starts a server on the socket, which stays open when it ends.
func (c *chaos) serve() {
	f, err := c.socket.File()
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		c.t.Fatal(err)
	}
	c.in = start(c.t, c.dir, func(cfg *server.Config) { cfg.Listener = l.(*net.TCPListener) })
}

func (c *chaos) restart() {
	c.in.stop()
	c.serve()
	c.restarts++
}

func (c *chaos) deploy(f *chaosFunction, concurrency int) {
	n := f.attempted.Add(1)
	c.in.deploy(f.name, f.runtime, fmt.Sprintf(f.code, n), fields{"concurrency": concurrency})
	f.acknowledged.Store(n)
}

func (c *chaos) update() {
	c.deploy(c.functions[c.rand.IntN(len(c.functions))], 16)
	c.updates++
}

// scaleDown leaves a function fewer instances, or none that is idle.
func (c *chaos) scaleDown() {
	f := c.functions[c.rand.IntN(len(c.functions))]
	if c.rand.IntN(2) == 0 {
		c.deploy(f, 1)
	} else if a := c.in.do("DELETE", "/v1/functions/"+f.name+"/instances", nil); a.status/100 != 2 {
		c.t.Errorf("eviction: %v", a)
	}
	c.scaleDowns++
}

// remove deletes a function that has calls and makes it anew.
func (c *chaos) remove() {
	i := slices.IndexFunc(c.functions, func(f *chaosFunction) bool { return f.deleted })
	f := c.functions[i]
	f.absent.Add(1)
	if a := c.in.do("DELETE", "/v1/functions/"+f.name, nil); a.status/100 != 2 {
		c.t.Errorf("deletion: %v", a)
	}
	c.deploy(f, 16)
	f.absent.Add(1)
	c.deletes++
}

// kill ends the processes of an instance, of one that has a call if there is one.
func (c *chaos) kill() {
	var pool struct {
		Instances []struct{ ID, Function, State string }
	}
	decode(c.t, c.in.do("GET", "/v1/pool", nil), &pool)
	c.rand.Shuffle(len(pool.Instances), func(i, j int) {
		pool.Instances[i], pool.Instances[j] = pool.Instances[j], pool.Instances[i]
	})
	slices.SortStableFunc(pool.Instances, func(a, b struct{ ID, Function, State string }) int {
		return strings.Compare(a.State, b.State) // busy before idle
	})
	for _, inst := range pool.Instances {
		ours := slices.ContainsFunc(c.functions, func(f *chaosFunction) bool { return f.name == inst.Function && !f.deleted })
		if !ours || inst.State != "busy" && inst.State != "idle" {
			continue
		}
		if killInstance(inst.ID) { // else it ended by itself
			c.killed[inst.ID] = true
			return
		}
	}
}

// attribute fails the test unless each call that ended with its instance had one
// that was killed, and no other call had that.
func (c *chaos) attribute() {
	blamed := map[string]string{}
	for _, id := range c.failures {
		var record struct{ Instance string }
		waitFor(c.t, "the record of "+id, func() bool {
			a := c.in.do("GET", "/v1/invocations/"+id, nil)
			return a.status == 200 && json.Unmarshal(a.body, &record) == nil
		})
		switch other := blamed[record.Instance]; {
		case !c.killed[record.Instance]:
			c.t.Errorf("the instance %q of call %s was not killed", record.Instance, id)
		case other != "":
			c.t.Errorf("the calls %s and %s ended with the instance %s", other, id, record.Instance)
		}
		blamed[record.Instance] = id
	}
}

// killInstance kills the processes in the control group of an instance.
func killInstance(id string) (killed bool) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cgroup") //nolint:errcheck // the pattern is fine
	for _, p := range paths {
		groups, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(groups), "/"+id+"\n") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed = true
		}
	}
	return killed
}

// call calls a function until ctx ends, and checks each answer.
func (c *chaos) call(ctx context.Context, f *chaosFunction, nonce uint64, calls, absent *atomic.Int64) {
	// As impatient as clients are that send no request twice.
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	url := "http://" + c.socket.Addr().String() + "/v1/functions/" + f.name + "/invocations"
	for ; ctx.Err() == nil; nonce++ {
		oldest, away := f.acknowledged.Load(), f.absent.Load()
		body := fmt.Sprintf(`{"nonce":%d}`, nonce)
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), "POST", url, io.NopCloser(strings.NewReader(body)))
		if err != nil {
			c.t.Error(err)
			return
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			c.t.Errorf("%s: %v", f.name, err)
			return
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		calls.Add(1)
		var answer struct {
			Deploy int64
			Nonce  uint64
		}
		switch {
		case err == nil && resp.StatusCode == 200:
			err := json.Unmarshal(data, &answer)
			if err != nil || answer.Nonce != nonce || answer.Deploy < oldest || answer.Deploy > f.attempted.Load() {
				c.t.Errorf("%s: the call %d, when %d was live, was answered %s (%v)", f.name, nonce, oldest, data, err)
			}
		case resp.StatusCode == 404 && (away%2 == 1 || f.absent.Load() != away):
			absent.Add(1)
		case err != nil && resp.StatusCode == 200, bytes.Contains(data, []byte("Runtime.ExitError")):
			// The stream broke off, or never began.
			c.mu.Lock()
			c.failures = append(c.failures, resp.Header.Get("Hearth-Invocation-Id"))
			c.mu.Unlock()
		default:
			c.t.Errorf("%s: %d %v %s (%v)", f.name, resp.StatusCode, resp.Header, data, err)
		}
	}
}
