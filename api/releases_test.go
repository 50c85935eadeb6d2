package api_test

import (
	"context"
	"slices"
	"strconv"
	"testing"

	"github.com/hearthrun/hearth"
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
