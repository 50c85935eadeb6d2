package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

type scheduleStatus struct {
	Function, Name string
	Paused         bool
	Next           []time.Time
	Last           *struct {
		Due               time.Time
		Invocation, State string
	}
	Skipped *struct{ Reason string }
}

func (in *installation) schedule(function, name string) scheduleStatus {
	in.t.Helper()
	var list struct{ Schedules []scheduleStatus }
	decode(in.t, in.do("GET", "/v1/functions/"+function+"/schedules", nil), &list)
	for _, s := range list.Schedules {
		if s.Name == name {
			return s
		}
	}
	return scheduleStatus{}
}

const scheduleCode = `def handler(event, context):
    return event
`

// TestSchedules: a time that comes makes a call, also one that passed while the
// server was down, and none twice; a release takes schedules away and brings others.
func TestSchedules(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir)
	var due time.Time // of down
	for wait := 2 * time.Second; ; wait *= 2 {
		soon := time.Now().Add(wait)
		due = soon.Add(4 * time.Second).Truncate(time.Second)
		in.deploy("timed", "python", scheduleCode, fields{"schedules": fields{
			"soon":    fields{"at": soon.UTC().Format(time.RFC3339)},
			"down":    fields{"at": due.UTC().Format(time.RFC3339), "event": fields{"n": 7}},
			"nightly": fields{"cron": "0 3 * * *", "time_zone": "Europe/Berlin"},
		}})
		if time.Now().Before(soon.Truncate(time.Second)) {
			break // else it was deployed too late, and makes no call
		}
	}
	waitFor(t, "the call of a schedule", func() bool { return in.schedule("timed", "soon").Last != nil })
	soon := in.schedule("timed", "soon").Last.Invocation
	c := in.ended(soon)
	if c.State != "succeeded" || !strings.Contains(string(c.Result.Value), `"schedule":"soon"`) && !strings.Contains(string(c.Result.Value), `"schedule": "soon"`) {
		t.Errorf("%+v %s", c, c.Result.Value)
	}
	in.stop()
	waitFor(t, "the time that is missed", func() bool { return time.Now().After(due) })
	for range 2 {
		in = start(t, dir)
		waitFor(t, "the call that was missed", func() bool { return in.schedule("timed", "down").Last != nil })
		c = in.ended(in.schedule("timed", "down").Last.Invocation)
		if c.State != "succeeded" || string(c.Result.Value) != `{"n":7}` && string(c.Result.Value) != `{"n": 7}` {
			t.Errorf("%+v", c)
		}
		var list struct{ Calls []asyncCall }
		decode(t, in.do("GET", "/v1/functions/timed/queue", nil), &list)
		if len(list.Calls) != 2 {
			t.Errorf("%d calls for two times: %+v", len(list.Calls), list.Calls)
		}
		if s := in.schedule("timed", "soon"); s.Last == nil || s.Last.Invocation != soon || s.Last.State != "succeeded" {
			t.Errorf("%+v", s)
		}
		in.stop()
	}
	in = start(t, dir)
	if s := in.schedule("timed", "nightly"); len(s.Next) != 5 || s.Last != nil {
		t.Errorf("%+v", s)
	}
	want(t, in.do("PUT", "/v1/functions/timed/schedules/nosuch/paused", fields{"paused": true}), 404, "not_found")
	if a := in.do("PUT", "/v1/functions/timed/schedules/nightly/paused", fields{"paused": true}); a.status != 200 {
		t.Errorf("%v", a)
	}
	var ran scheduleStatus
	a := in.do("POST", "/v1/functions/timed/schedules/nightly/run", nil)
	if err := json.Unmarshal(a.body, &ran); err != nil || a.status != 200 || ran.Last == nil || !ran.Paused {
		t.Fatalf("%v", a)
	}
	if c := in.ended(ran.Last.Invocation); c.State != "succeeded" || !strings.Contains(string(c.Result.Value), `"manual"`) {
		t.Errorf("%+v", c)
	}
	want(t, in.try("timed", "python", scheduleCode, fields{"schedules": fields{"x": fields{"cron": "sometimes"}}}), 400, "invalid")
	want(t, in.try("timed", "python", scheduleCode, fields{"schedules": fields{"x": fields{"cron": "0 3 * * *", "missed": "all"}}}), 400, "invalid")
	in.deploy("timed", "python", scheduleCode, fields{"schedules": fields{"other": fields{"cron": "@every 1h"}}})
	if s, o := in.schedule("timed", "nightly"), in.schedule("timed", "other"); s.Name != "" || o.Name == "" {
		t.Errorf("after a deploy: %+v %+v", s, o)
	}
}
