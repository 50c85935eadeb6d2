package api_test

import (
	"context"
	"testing"

	"github.com/hearthrun/hearth"
)

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
