package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/server"
)

// telling answers with its number, fails or is slow.
func telling(number int, then string) string {
	return fmt.Sprintf("import os, time\ndef handler(event, context):\n    %s\n    return {\"version\": %d, \"stage\": os.environ.get(\"STAGE\")}\n", then, number)
}

// preview makes a version that is not live.
func (in *installation) preview(name, code string, config fields) {
	in.t.Helper()
	body := fields{"runtime": "python", "code": fields{"files": fields{"main.py": code}}}
	for k, v := range config {
		body[k] = v
	}
	if a := in.do("PUT", "/v1/functions/"+name+"?preview=true", body); a.status != 200 {
		in.t.Fatalf("preview: %v", a)
	}
}

// release returns the newest release of a function.
func (in *installation) release(name string) hearth.Release {
	in.t.Helper()
	var v struct{ Releases []hearth.Release }
	decode(in.t, in.do("GET", "/v1/functions/"+name+"/releases?limit=1", nil), &v)
	return v.Releases[0]
}

// callers call a function until the returned function is called, which tells how
// often which version answered, and what else was answered.
func (in *installation) callers(path string, n int) (stop func() (versions map[string]int, others []answer)) {
	ctx, cancel := context.WithCancel(in.t.Context())
	var mu sync.Mutex
	versions, others := map[string]int{}, []answer{}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := in.do("GET", path, nil)
				mu.Lock()
				if versions[a.header.Get("Hearth-Version")]++; a.err != nil || a.status != http.StatusOK {
					others = append(others, a)
				}
				mu.Unlock()
			}
		})
	}
	return func() (map[string]int, []answer) {
		cancel()
		wg.Wait()
		return versions, others
	}
}

func TestReleaseBySteps(t *testing.T) {
	in := start(t, "")
	const name = "stepped"
	in.deploy(name, "python", telling(1, "pass"), fields{"routes": []string{"GET /stepped-old"}})
	in.preview(name, telling(2, "pass"), fields{"routes": []string{"GET /stepped-new"}})
	canary := fields{"shares": []int{20, 60}, "step": "1s", "min_calls": 5, "rollback_on": "error_rate>2%|p99>10s"}

	// A preview answers, but nobody gets to it who does not ask for it.
	if got := in.do("GET", "/fn/stepped@2/x", nil).json(t); got["version"] != 2.0 {
		t.Errorf("%v", got)
	}
	want(t, in.do("GET", "/stepped-new", nil), 404, "not_found")

	stop := in.callers("/fn/stepped/", 2)
	if a := in.do("POST", "/v1/functions/stepped/releases", fields{"canary": canary}); a.status != 201 {
		t.Fatal(a)
	}
	want(t, in.do("POST", "/v1/functions/stepped/releases/9999/finish", fields{}), 409, "conflict")
	eventually(t, "the second step", func() bool { r := in.release(name); return r.Step == 1 || r.State != "running" })
	eventually(t, "the end of the release", func() bool { return in.release(name).State == hearth.ReleaseDone })
	versions, others := stop()
	if len(others) > 0 || versions["1"] < 10 || versions["2"] < 10 {
		t.Errorf("versions %v, %d failed: %v", versions, len(others), others)
	}
	want(t, in.do("GET", "/stepped-old", nil), 404, "not_found")
	if a := in.do("GET", "/stepped-new", nil); a.status != 200 {
		t.Errorf("%v", a)
	}

	// One that fails is rolled back by itself; its error rate is that of a tenth.
	in.preview(name, telling(3, `raise ValueError("broken")`), nil)
	canary["shares"] = []int{30}
	stop = in.callers("/fn/stepped/", 2)
	in.do("POST", "/v1/functions/stepped/releases", fields{"canary": canary})
	eventually(t, "the rollback", func() bool { return in.release(name).State == hearth.ReleaseRolledBack })
	if _, others = stop(); len(others) < 5 {
		t.Errorf("only %d calls failed", len(others))
	}
	r := in.release(name)
	if !strings.Contains(r.Reason, "error_rate>2%: error_rate is ") || r.To != 3 || r.EndedAt == nil {
		t.Errorf("%+v", r)
	}
	for range 20 {
		if a := in.do("GET", "/fn/stepped/", nil); a.json(t)["version"] != 2.0 {
			t.Fatal(a)
		}
	}

	// One that is slow, too.
	in.preview(name, telling(4, "time.sleep(0.05)"), nil)
	canary["rollback_on"] = "p50>2x"
	stop = in.callers("/fn/stepped/", 2)
	in.do("POST", "/v1/functions/stepped/releases", fields{"canary": canary})
	eventually(t, "the rollback of the slow version", func() bool { return in.release(name).State == hearth.ReleaseRolledBack })
	if _, others = stop(); len(others) > 0 {
		t.Errorf("%v", others)
	}
}

// A version that hangs until its callers give up is rolled back, and one that nobody
// calls says so. Whoever tries it by its number or through another alias has no say.
func TestReleaseOfAVersionThatHangs(t *testing.T) {
	in := start(t, "")
	const name = "hanging"
	in.deploy(name, "python", telling(1, "pass"), fields{"timeout": "60s"})
	in.preview(name, telling(2, "event.get('rawPath') == '/raise' and 1 / 0\n    event.get('rawPath') == '/' and time.sleep(50)"), fields{"timeout": "60s", "concurrency": 4})
	if a := in.do("PUT", "/v1/functions/hanging/aliases/beta", fields{"versions": fields{"2": 100}}); a.status != 200 {
		t.Fatal(a)
	}
	a := in.do("POST", "/v1/functions/hanging/releases", fields{"canary": fields{"shares": []int{50}, "step": "1s", "min_calls": 3, "rollback_on": "error_rate>2%"}})
	if a.status != 201 {
		t.Fatal(a)
	}
	if r := in.release(name); r.State != hearth.ReleaseRunning || r.Reason != "it waits until version 2 has had 3 calls in this step" {
		t.Errorf("%+v", r)
	}
	for range 5 {
		want(t, in.do("GET", "/fn/hanging@2/raise", nil), 502, "function_error")
		want(t, in.do("GET", "/fn/hanging@beta/raise", nil), 502, "function_error")
	}
	if r := in.release(name); r.State != hearth.ReleaseRunning || !strings.Contains(r.Reason, "3 calls") {
		t.Errorf("after failures of the preview: %+v", r)
	}
	eventually(t, "the rollback", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		in.doContext(ctx, "GET", "/fn/hanging/", nil) // it may not be answered
		return in.release(name).State == hearth.ReleaseRolledBack
	})
	if r := in.release(name); !strings.Contains(r.Reason, "error_rate>2%: error_rate is 100.0%") {
		t.Errorf("%+v", r)
	}
}

func TestReleaseGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir)
	in.deploy("resumed", "python", telling(1, "pass"), nil)
	in.preview("resumed", telling(2, "pass"), nil)
	a := in.do("POST", "/v1/functions/resumed/releases", fields{"canary": fields{"shares": []int{50}, "step": "1ms", "min_calls": 5}})
	if a.status != 201 {
		t.Fatal(a)
	}
	in.stop()
	in = start(t, dir)
	if r := in.release("resumed"); r.State != hearth.ReleaseRunning {
		t.Fatalf("%+v", r)
	}
	stop := in.callers("/fn/resumed/", 2)
	eventually(t, "the end of the release", func() bool { return in.release("resumed").State == hearth.ReleaseDone })
	if _, others := stop(); len(others) > 0 {
		t.Errorf("%v", others)
	}
}

// Rollbacks, aborts and changes of aliases under load fail no call.
func TestRollback(t *testing.T) {
	in := start(t, "")
	const name = "back"
	for i := range 3 {
		in.deploy(name, "python", telling(i+1, "pass"), fields{"env": fields{"STAGE": "live"}})
	}
	version := func(path string) float64 { return in.do("GET", path, nil).json(t)["version"].(float64) }
	stop := in.callers("/fn/back/", 2)
	rollback := func(body any) answer { return in.do("POST", "/v1/functions/back/rollback", body) }
	for _, number := range []float64{2, 1} {
		if a := rollback(nil); a.status != 200 || version("/fn/back/") != number {
			t.Errorf("%v; version %v, want %v", a, version("/fn/back/"), number)
		}
	}
	want(t, rollback(nil), 409, "conflict") // there was nothing before
	want(t, rollback(fields{"version": 1}), 409, "conflict")
	want(t, rollback(fields{"version": 99}), 404, "not_found")
	if a := rollback(fields{"version": 3}); a.status != 200 || version("/fn/back/") != 3 {
		t.Errorf("%v", a)
	}
	// While a release runs, going back is ending it.
	in.do("POST", "/v1/functions/back/releases", fields{"version": 1, "canary": fields{"shares": []int{50}}})
	if a := rollback(nil); a.status != 200 || in.release(name).State != hearth.ReleaseAborted || version("/fn/back/") != 3 {
		t.Errorf("%v %+v", a, in.release(name))
	}
	in.do("POST", "/v1/functions/back/releases", fields{"version": 1, "canary": fields{"shares": []int{50}}})
	if a := in.do("POST", fmt.Sprintf("/v1/functions/back/releases/%d/finish", in.release(name).ID), nil); a.status != 200 || version("/fn/back/") != 1 {
		t.Errorf("%v", a)
	}

	// Neither a deploy nor another release makes one that was not finished the one to
	// go back to.
	in.do("POST", "/v1/functions/back/releases", fields{"version": 3, "canary": fields{"shares": []int{60}}})
	in.deploy(name, "python", telling(4, "pass"), fields{"env": fields{"STAGE": "live"}})
	if a := rollback(nil); a.status != 200 || version("/fn/back/") != 1 {
		t.Errorf("%v; version %v", a, version("/fn/back/"))
	}

	// From a split that somebody made, back is to what was live before it.
	for shares, want := range map[[2]int]float64{{90, 10}: 1, {40, 60}: 1} {
		in.do("PUT", "/v1/functions/back/aliases/live", fields{"versions": fields{"1": 100}})
		in.do("PUT", "/v1/functions/back/aliases/live", fields{"versions": fields{"1": shares[0], "3": shares[1]}})
		if a := rollback(nil); a.status != 200 || version("/fn/back/") != want {
			t.Errorf("from %v: %v, version %v", shares, a, version("/fn/back/"))
		}
	}

	// Aliases: an environment of their own needs no version.
	beta := fields{"versions": fields{"2": 100}, "env": fields{"STAGE": "beta"}, "routes": []string{"beta.example.com/"}}
	if a := in.do("PUT", "/v1/functions/back/aliases/beta", beta); a.status != 200 || a.json(t)["url"] != "/fn/back@beta/" {
		t.Fatal(a)
	}
	for _, a := range []answer{in.do("GET", "/fn/back@beta/", nil), in.do("GET", "/any/path", nil, "Host", "beta.example.com"), in.invoke("back@beta", nil)} {
		if got := a.json(t); got["version"] != 2.0 || got["stage"] != "beta" {
			t.Errorf("%v", got)
		}
	}
	if got := in.do("GET", "/fn/back@2/", nil).json(t); got["stage"] != "live" {
		t.Errorf("the version itself has %v", got)
	}
	want(t, in.do("PUT", "/v1/functions/back/aliases/beta", fields{"versions": fields{"2": 50}}), 400, "invalid")
	want(t, in.do("PUT", "/v1/functions/back/aliases/beta", fields{"versions": fields{"99": 100}}), 404, "not_found")
	want(t, in.do("PUT", "/v1/functions/back/aliases/gamma", fields{"versions": fields{"2": 100}, "routes": []string{"beta.example.com/"}}), 409, "conflict")
	want(t, in.do("PUT", "/v1/functions/back/aliases/gamma", fields{"versions": fields{"2": 100}, "routes": []string{"localhost/"}}), 400, "invalid")
	want(t, in.do("DELETE", "/v1/functions/back/versions/2", nil), 409, "conflict")
	in.do("DELETE", "/v1/functions/back/aliases/beta", nil)
	want(t, in.do("GET", "/fn/back@beta/", nil), 404, "not_found")
	if a := in.do("DELETE", "/v1/functions/back/versions/2", nil); a.status != 204 {
		t.Errorf("%v", a)
	}
	want(t, in.do("GET", "/fn/back@2/", nil), 404, "not_found")
	if _, others := stop(); len(others) > 0 {
		t.Errorf("%d calls failed: %v", len(others), others)
	}
}

// A broken version does not become live, however it is asked for.
func TestBrokenVersionIsNotReleased(t *testing.T) {
	in := start(t, "")
	in.deploy("sound", "python", telling(1, "pass"), nil)
	// It can be loaded only as long as it has the variable.
	in.preview("sound", "import os\nos.environ[\"NEEDED\"]\n"+telling(2, "pass"), fields{"env": fields{"NEEDED": "1"}})
	want(t, in.do("PUT", "/v1/functions/sound/aliases/beta", fields{"versions": fields{"9": 100}}), 404, "not_found")
	if a := in.do("POST", "/v1/functions/sound/releases", fields{"version": 2}); a.status != 201 {
		t.Error(a)
	}
	in.preview("sound", "import os, time\nif os.environ.get(\"BREAK\"): raise ValueError(\"told to\")\n"+telling(3, "pass"), nil)
	want(t, in.do("PUT", "/v1/functions/sound/aliases/live", fields{"versions": fields{"3": 100}, "env": fields{"BREAK": "1"}}), 502, "function_error")
	if a := in.do("GET", "/fn/sound/", nil); a.json(t)["version"] != 2.0 {
		t.Error(a)
	}
}

// Old versions that nothing leads to go away with deploys.
func TestOldVersionsGo(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.KeepVersions = 3 })
	for i := range 6 {
		in.deploy("pruned", "python", telling(i+1, "pass"), nil)
	}
	c, err := client.New(in.url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.Versions(t.Context(), "pruned", 0, 0)
	if err != nil || len(list) != 3 || list[2].Number != 4 || list[0].Aliases[hearth.Live] != 100 {
		t.Errorf("%+v, %v", list, err)
	}
	want(t, in.do("GET", "/fn/pruned@2/", nil), 404, "not_found")
}

// Callers of a split function who stay do so over a real connection.
func TestStickySplit(t *testing.T) {
	in := start(t, "")
	in.deploy("sticky", "python", telling(1, "pass"), nil)
	in.deploy("sticky", "python", telling(2, "pass"), nil)
	if a := in.do("PUT", "/v1/functions/sticky/aliases/live", fields{"versions": fields{"1": 50, "2": 50}, "sticky": "cookie"}); a.status != 200 {
		t.Fatal(a)
	}
	var seen [3]atomic.Int64
	for range 30 {
		first := in.do("GET", "/fn/sticky/", nil)
		cookie, _, _ := strings.Cut(first.header.Get("Set-Cookie"), ";")
		v := first.json(t)["version"].(float64)
		seen[int(v)].Add(1)
		for range 3 {
			if a := in.do("GET", "/fn/sticky/", nil, "Cookie", cookie); a.json(t)["version"] != v || a.header.Get("Set-Cookie") != "" {
				t.Fatalf("%v after version %v", a, v)
			}
		}
	}
	if seen[1].Load() == 0 || seen[2].Load() == 0 {
		t.Errorf("30 callers: %d and %d", seen[1].Load(), seen[2].Load())
	}
}
