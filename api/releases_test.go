package api_test

import (
	"context"
	"slices"
	"strconv"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
)

// A deploy tries what it makes live with the environment with which it is called then,
// and a preview without.
func TestDeployTriesTheEnvironmentOfLive(t *testing.T) {
	h := newHost(t)
	h.do("POST", "/v1/functions", hello(set("env", map[string]string{"A": "1", "STAGE": "none"}))).json(201, &function{})
	live := map[string]any{"versions": map[string]int{"1": 100}, "env": map[string]string{"STAGE": "live"}}
	h.do("PUT", "/v1/functions/hello/aliases/live", live).json(200, &hearth.Alias{})
	for i, c := range []struct{ query, stage string }{{"", "live"}, {"?preview=true", "none"}} {
		number := 2 + i
		h.do("PUT", "/v1/functions/hello"+c.query, nameless(set("env", map[string]string{"A": strconv.Itoa(number), "STAGE": "none"}))).json(200, &function{})
		tried := h.verified[len(h.verified)-1]
		stored, err := h.store.Version(t.Context(), "hello", number)
		if err != nil || stored.Config.Env["STAGE"] != "none" {
			t.Fatalf("stored is %+v, %v", stored, err)
		}
		served := stored
		if c.stage == "live" {
			served = stored.WithEnv(map[string]string{"STAGE": "live"})
		}
		if tried.Number != number || tried.Config.Env["STAGE"] != c.stage || tried.Incarnation != served.Incarnation {
			t.Errorf("tried was %+v, which is not what is called: %+v", tried, served)
		}
	}
	// A version that does not start with it changes nothing.
	h.verify = func(_ context.Context, v *hearth.Version) error {
		if v.Config.Env["STAGE"] == "live" {
			return hearth.Errorf(hearth.CodeFunction, "it does not start on this stage")
		}
		return nil
	}
	h.do("PUT", "/v1/functions/hello", nameless(set("env", map[string]string{"A": "4"}))).problem(502, hearth.CodeFunction, "does not start")
	var f function
	h.do("GET", "/v1/functions/hello", nil).json(200, &f)
	if f.Live != 2 {
		t.Errorf("live is %d", f.Live)
	}
	// One that was tried with an environment that is another by now ends.
	h.verify = func(_ context.Context, v *hearth.Version) error {
		if v.Number == 4 {
			h.do("PUT", "/v1/functions/hello/aliases/live", map[string]any{"versions": map[string]int{"1": 100}}).json(200, &hearth.Alias{})
		}
		return nil
	}
	h.do("PUT", "/v1/functions/hello", nameless(set("env", map[string]string{"A": "4"}))).json(200, &f)
	var four string
	for _, v := range h.verified {
		if v.Number == 4 {
			four = v.Incarnation
		}
	}
	if f.Live != 4 || !slices.Contains(h.retired, four) {
		t.Errorf("live is %d; retired are %v, not %s", f.Live, h.retired, four)
	}
}

// What a rollback goes to is never removed, however many versions come after it, nor
// what an alias or a release that runs needs.
func TestPruningLeavesWhatARollbackNeeds(t *testing.T) {
	h := newHost(t, func(d *api.Deps) { d.KeepVersions = 1 })
	n := 0
	deploy := func(query string) {
		t.Helper()
		n++
		h.do("PUT", "/v1/functions/hello"+query, nameless(set("env", map[string]string{"N": strconv.Itoa(n)}))).json(200, &function{})
	}
	there := func(when string, want ...int) {
		t.Helper()
		list, err := h.store.Versions(t.Context(), "hello", 0, 0)
		var got []int
		for _, v := range list {
			got = append(got, v.Number)
		}
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s there are %v, %v, want %v", when, got, err, want)
		}
	}
	rollback := func(to int) {
		t.Helper()
		var r hearth.Release
		if h.do("POST", "/v1/functions/hello/rollback", nil).json(200, &r); r.To != to && r.From != to {
			t.Errorf("back is to %+v, want %d", r, to)
		}
		var f function
		if h.do("GET", "/v1/functions/hello", nil).json(200, &f); f.Live != to {
			t.Errorf("live is %d, want %d", f.Live, to)
		}
	}
	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	deploy("")
	deploy("")
	there("after three deploys", 2, 3)

	rollback(2)
	deploy("")
	deploy("")
	there("after a rollback and two deploys", 4, 5)
	rollback(4)
	deploy("?preview=true")
	deploy("?preview=true")
	there("after previews", 4, 7)

	// Back from 8 is to 4, also after it went to 7 and back.
	h.do("PUT", "/v1/functions/hello/aliases/beta", map[string]any{"versions": map[string]int{"7": 100}}).json(200, &hearth.Alias{})
	deploy("")
	h.do("POST", "/v1/functions/hello/releases", map[string]any{"version": 7}).json(201, &hearth.Release{})
	rollback(8)
	deploy("?preview=true")
	deploy("?preview=true")
	there("after another release and a rollback", 4, 7, 8, 10)
	rollback(4)

	// A release by steps needs its versions, and going on back once it has ended.
	deploy("")
	deploy("")
	deploy("?preview=true")
	there("before the release", 7, 11, 12, 13)
	h.do("POST", "/v1/functions/hello/releases", map[string]any{"version": 13, "canary": map[string]any{"shares": []int{60}}}).json(201, &hearth.Release{})
	deploy("?preview=true")
	deploy("?preview=true")
	there("while a release runs", 7, 11, 12, 13, 15)
	rollback(12)
	deploy("?preview=true")
	there("after it was ended", 7, 11, 12, 16)
	rollback(11)
	// From a split back is to what was live before.
	h.do("PUT", "/v1/functions/hello/aliases/live", map[string]any{"versions": map[string]int{"7": 50, "16": 50}}).json(200, &hearth.Alias{})
	deploy("?preview=true")
	deploy("?preview=true")
	there("after a split", 7, 11, 16, 18)
	rollback(11)
}

// Going back does not wait for a deploy that is under way, which in turn does not
// fail for it, unless its client said that nothing else may have changed.
func TestRollbackDuringADeploy(t *testing.T) {
	for name, c := range map[string]struct {
		headers []string
		status  int
		live    int
	}{
		"whatever else": {nil, 200, 3},
		"If-Match":      {[]string{"If-Match", `"2"`}, 412, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			var f function
			h.do("POST", "/v1/functions", hello()).json(201, &f)
			h.do("PUT", "/v1/functions/hello", nameless(set("env", map[string]string{"A": "2"}))).json(200, &f)
			started, goOn := make(chan struct{}), make(chan struct{})
			h.verify = func(_ context.Context, v *hearth.Version) error {
				if v.Number == 3 {
					close(started)
					<-goOn
				}
				return nil
			}
			deployed := make(chan answer)
			go func() {
				deployed <- h.do("PUT", "/v1/functions/hello", nameless(set("env", map[string]string{"A": "3"})), c.headers...)
			}()
			<-started
			var r hearth.Release
			h.do("POST", "/v1/functions/hello/rollback", nil).json(200, &r)
			if r.From != 2 || r.To != 1 || r.State != hearth.ReleaseDone {
				t.Errorf("%+v", r)
			}
			close(goOn)
			if a := <-deployed; a.Code != c.status {
				t.Errorf("the deploy ended with %d %s", a.Code, a.Body)
			}
			h.do("GET", "/v1/functions/hello", nil).json(200, &f)
			if f.Live != c.live {
				t.Errorf("live is %d, want %d", f.Live, c.live)
			}
		})
	}
}
