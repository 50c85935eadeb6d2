package e2e

import (
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

// records returns those that a search finds, up to 500.
func (in *installation) records(query string) []hearth.Invocation {
	in.t.Helper()
	var page struct{ Invocations []hearth.Invocation }
	decode(in.t, in.do("GET", "/v1/invocations?limit=500&"+query, nil), &page)
	return page.Invocations
}

// TestRecords: every failed and every asynchronous call has a record, however few
// successes are recorded; they are found, and go when there is no room for them.
func TestRecords(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.RecordSuccesses = 1 })
	in.deploy("kept", "python", `def handler(event, context):
    if "requestContext" in (event or {}):
        return {"statusCode": 503}
    if event and event.get("fail"):
        raise ValueError("no")
    return "done"
`, fields{"async": fields{"max_attempts": 2, "min_backoff": "1ms"}})
	const n = 15
	var failed string
	for range n {
		in.do("POST", "/v1/functions/kept/invocations", fields{"fail": true})
		in.do("GET", "/fn/kept/", nil)
		in.ended(in.later("kept", nil))
		failed = in.later("kept", fields{"fail": true})
		in.ended(failed)
	}
	const successes = 100
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range successes / 10 {
				in.do("POST", "/v1/functions/kept/invocations", nil)
			}
		})
	}
	wg.Wait()
	for query, want := range map[string]int{
		"code=function_error&async=false":               n,
		"code=http_5xx&kind=http":                       n,
		"status=503&function=kept":                      n,
		"async=true&code=ok":                            n,
		"async=true&code=function_error":                2 * n, // two attempts each
		"id=" + failed:                                  2,
		"code=error&since=1h":                           4 * n,
		"code=error&until=1h":                           0,
		"version=2":                                     0,
		"code=error&min_duration=1ns&max_duration=100s": 4 * n,
	} {
		if got := in.records(query); len(got) != want {
			t.Errorf("%s: %d records, want %d", query, len(got), want)
		}
	}
	if got := len(in.records("async=false&code=ok")); got == 0 || got >= successes {
		t.Errorf("%d of %d successes are recorded, and one a second is meant to be", got, successes)
	}
	var st struct{ Calls int }
	decode(t, in.do("GET", "/v1/stats?range=1h", nil), &st)
	if st.Calls != successes+5*n {
		t.Errorf("%d calls were counted, want %d", st.Calls, successes+5*n)
	}

	in.stop()
	in = start(t, in.dir, func(c *server.Config) { c.InvocationsSize = 1 })
	eventually(t, "the records to go", func() bool { return len(in.records("")) == 0 })
}

// TestNoTelemetry: functions do as ever, and the rest says why there is nothing.
func TestNoTelemetry(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.NoTelemetry = true })
	in.deploy("unseen", "python", "def handler(event, context):\n    raise ValueError('no')\n", nil)
	if a := in.do("POST", "/v1/functions/unseen/invocations", nil); a.status != 502 {
		t.Errorf("the call: %v", a)
	}
	if c := in.ended(in.later("unseen", nil)); c.State != "failed" {
		t.Errorf("the call is %s", c.State)
	}
	if got := in.records(""); len(got) != 0 {
		t.Errorf("there are records: %+v", got)
	}
	for _, path := range []string{"/v1/stats", "/v1/functions/unseen/stats", "/metrics/api/v1/query?query=" + url.QueryEscape("up")} {
		if a := in.do("GET", path, nil); a.status != 501 || !strings.Contains(string(a.body), "--telemetry=false") {
			t.Errorf("%s: %v", path, a)
		}
	}
	if a := in.do("GET", "/metrics", nil); a.status != 200 || strings.Contains(string(a.body), "hearth_invocations_total{") {
		t.Errorf("/metrics: %v", a)
	}
}
