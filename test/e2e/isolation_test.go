package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestChangeIsolation moves a function from one isolation to another under load:
// each change is a new version, and no call is lost.
func TestChangeIsolation(t *testing.T) {
	in := start(t, "")
	var v struct {
		Drivers []struct {
			Name     string
			Works    bool
			Missing  []struct{ What, Remedy string }
			Runtimes []struct{ Language string }
		}
	}
	decode(t, in.do("GET", "/v1/drivers?refresh=true", nil), &v)
	each(t, map[string]string{
		"python": "def handler(event, context):\n    return 'fine'\n",
		"nodejs": "export const handler = async () => 'fine';\n",
	}, func(t *testing.T, runtime, code string) {
		in.t = t
		var others, why []string
		for _, d := range v.Drivers {
			has := false
			for _, r := range d.Runtimes {
				has = has || r.Language == runtime
			}
			switch {
			case d.Name == "native":
			case d.Works && has:
				others = append(others, d.Name)
			case d.Works:
				why = append(why, d.Name+" has no runtime for "+runtime)
			default:
				for _, p := range d.Missing {
					why = append(why, d.Name+": "+p.What)
				}
			}
		}
		if len(others) == 0 {
			t.Skipf("only native works here: %s", strings.Join(why, "; "))
		}
		name := "moves-" + runtime
		in.deploy(name, runtime, code, fields{"concurrency": 4})
		var done atomic.Bool
		var calls atomic.Int64
		var wg sync.WaitGroup
		defer wg.Wait()
		defer done.Store(true)
		for range 4 {
			wg.Go(func() {
				for !done.Load() {
					if a := in.do("GET", "/fn/"+name+"/", nil); a.status != 200 || string(a.body) != "fine" {
						t.Errorf("a call was lost: %v", a)
						return
					}
					calls.Add(1)
				}
			})
		}
		for i, driver := range append(others, "native") {
			before := calls.Load()
			a := in.do("PUT", "/v1/functions/"+name, fields{"runtime": runtime, "isolation": driver, "concurrency": 4})
			if a.status != 200 {
				t.Fatalf("to %s: %v", driver, a)
			}
			f := a.json(t)
			if f["live"] != float64(i+2) || f["config"].(fields)["isolation"] != driver {
				t.Errorf("to %s: %v", driver, f)
			}
			waitFor(t, "calls to go on with "+driver, func() bool { return calls.Load() > before+20 })
		}
		t.Logf("%d calls through native, %s, native", calls.Load(), strings.Join(others, ", "))
	})
}
