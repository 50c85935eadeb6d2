package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// pool returns what the pool has of a function.
func (in *installation) pool(function string) hearth.PoolStatus {
	in.t.Helper()
	c, err := client.New(in.url)
	if err != nil {
		in.t.Fatal(err)
	}
	defer c.Close()
	st, err := c.Pool(in.t.Context(), function)
	if err != nil {
		in.t.Fatal(err)
	}
	return st
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen that %s", what)
		}
	}
}

// TestWarm: instances are kept ready whatever happens to them, warmed up by the
// function's own warmup and with the event of its configuration, before any call.
func TestWarm(t *testing.T) {
	each(t, map[string]string{
		"python": `
log = []
def warmup():
    log.append("warmup")
def handler(event, context):
    log.append(event)
    return log
`,
		"nodejs": `
const log = []
export function warmup() { log.push("warmup") }
export async function handler(event) { log.push(event); return log }
`,
	}, func(t *testing.T, runtime, code string) {
		in := start(t, "")
		in.deploy("f", runtime, code, fields{"warm": fields{"min": 2, "call": "event"}})
		ready := func() int {
			n := 0
			for _, i := range in.pool("f").Instances {
				if i.State == hearth.InstanceIdle {
					n++
				}
			}
			return n
		}
		eventually(t, "two instances are ready", func() bool { return ready() == 2 })
		if a := in.invoke("f", "call"); a.header.Get("Hearth-Start") != "warm" || string(a.body) != `["warmup", "event", "call"]` && string(a.body) != `["warmup","event","call"]` {
			t.Errorf("%s: %v", a.header.Get("Hearth-Start"), a)
		}
		if a := in.do("DELETE", "/v1/functions/f/instances", nil); a.status != 200 {
			t.Fatal(a)
		}
		eventually(t, "two others are ready", func() bool { return ready() == 2 })
		if a := in.try("f", runtime, strings.Replace(code, "log.", "los.", 1), fields{"warm": fields{"min": 2}}); a.status < 400 || a.header.Get("Hearth-Error") != "function_error" {
			t.Errorf("a version whose warm-up fails was deployed: %v", a)
		}
		if a := in.try("f", runtime, code, fields{"warm": fields{"min": 1, "schedule": "at noon"}}); a.status != 422 && a.status != 400 {
			t.Errorf("a schedule that cannot be read: %v", a)
		}
	})
}

// TestInstanceConcurrency: one instance of an async handler runs several calls at
// the same time; a sync one is told that it cannot.
func TestInstanceConcurrency(t *testing.T) {
	each(t, map[string]string{
		"python": `
import asyncio, os
now = most = 0
async def handler(event, context):
    global now, most
    now += 1
    most = max(most, now)
    await asyncio.sleep(0.3)
    now -= 1
    return most
`,
		"nodejs": `
let now = 0, most = 0
export async function handler() {
  most = Math.max(most, ++now)
  await new Promise(r => setTimeout(r, 300))
  now--
  return most
}
`,
	}, func(t *testing.T, runtime, code string) {
		in := start(t, "")
		in.deploy("f", runtime, code, fields{"concurrency": 8, "instance_concurrency": 4})
		var mu sync.Mutex
		most := 0
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				a := in.invoke("f", nil)
				var n int
				if err := json.Unmarshal(a.body, &n); err != nil || a.status != 200 {
					t.Error(a)
				}
				mu.Lock()
				defer mu.Unlock()
				most = max(most, n)
			})
		}
		wg.Wait()
		if most < 2 || most > 4 {
			t.Errorf("an instance ran %d calls at once, want 2 to 4", most)
		}
		if n := len(in.pool("f").Instances); n > 2 {
			t.Errorf("%d instances for 8 calls at a time", n)
		}
	})
	in := start(t, "")
	a := in.try("g", "python", "def handler(event, context):\n    return 1\n", fields{"instance_concurrency": 2})
	if !strings.Contains(string(a.body), "instance_concurrency has no effect") {
		t.Errorf("a sync handler was not told: %v", a)
	}
}

// TestStemCells: after a deploy the next cold start of any function of its kind
// loads only the code.
func TestStemCells(t *testing.T) {
	in := start(t, "")
	const code = "import os\ndef handler(event, context):\n    return os.listdir('/function')\n"
	in.deploy("f", "python", code, nil)
	stems := func() (n int) {
		for _, s := range in.pool("").Stems {
			n += s.Ready
		}
		return n
	}
	eventually(t, "there is a stem cell", func() bool { return stems() > 0 })
	for _, name := range []string{"f", "g"} {
		in.deploy(name, "python", code+"# "+name, nil)
		in.do("DELETE", "/v1/functions/"+name+"/instances", nil)
		eventually(t, "there is a stem cell", func() bool { return stems() > 0 && len(in.pool(name).Instances) == 0 })
		a := in.invoke(name, nil)
		if a.status != 200 || string(a.body) != `["main.py"]` || a.header.Get("Hearth-Start") != "cold" {
			t.Errorf("%s: %v", a.header.Get("Hearth-Start"), a)
		}
	}
}
