package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hearthrun/hearth"
)

// hearthRun runs a command line.
func hearthRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: &bytes.Buffer{}, stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// TestUnknownCommands: no group of commands takes one that it does not have for anything
// but wrong usage.
func TestUnknownCommands(t *testing.T) {
	walk(newTestApp().root(), func(c *cobra.Command) {
		if !c.HasSubCommands() || c.Name() == "pool" || c.Name() == "invocations" { // which take a function, too
			return
		}
		args := append(strings.Fields(c.CommandPath())[1:], "nosuch")
		code, stdout, stderr := hearthRun(t, args...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, `unknown command "nosuch" for "`+c.CommandPath()+`"`) {
			t.Errorf("%s: exit code %d\n%s%s", args, code, stdout, stderr)
		}
	})
	if _, _, stderr := hearthRun(t, "secret", "nosuch"); !strings.Contains(stderr, "hint: it has delete, list, rekey, rollback, set\n") {
		t.Error(stderr)
	}
	if _, _, stderr := hearthRun(t, "functions", "list"); !strings.Contains(stderr, "Did you mean this?\n\tlist") {
		t.Error(stderr)
	}
}

// TestDurationFlags: all of them say what a duration is.
func TestDurationFlags(t *testing.T) {
	for _, text := range []string{"5", "5 minutes", "1d"} {
		code, _, stderr := hearthRun(t, "send", "orders", "--data", "x", "--delay", text)
		if code != exitUsage || !strings.Contains(stderr, `invalid argument "`+text+`" for "--delay" flag: it is no duration`) || !strings.Contains(stderr, "hint: durations need a unit: 500ms, 30s, 2m or 24h\n") {
			t.Errorf("%s: exit code %d\n%s", text, code, stderr)
		}
	}
	walk(newTestApp().root(), func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if _, ok := f.Value.(*durationValue); f.Value.Type() == "duration" && !ok {
				t.Errorf("%s --%s is not a durationValue", c.CommandPath(), f.Name)
			}
		})
	})
}

// TestStamps: a time is shown with its zone.
func TestStamps(t *testing.T) {
	at := time.Date(2026, 5, 5, 12, 0, 1, 234e6, time.UTC)
	zone := time.Local
	defer func() { time.Local = zone }()
	for _, c := range []struct {
		zone       *time.Location
		want, long string
	}{
		{time.UTC, "2026-05-05T12:00:01Z", "2026-05-05T12:00:01.234Z"},
		{time.FixedZone("", 5*3600+1800), "2026-05-05T17:30:01+05:30", "2026-05-05T17:30:01.234+05:30"},
	} {
		time.Local = c.zone
		if got, long := stamp(at), stampMillis(at); got != c.want || long != c.long {
			t.Errorf("got %s and %s, want %s and %s", got, long, c.want, c.long)
		}
	}
}

// TestScheduleShow: what is shown of a schedule says when and why there was no call.
func TestScheduleShow(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2030, 5, 5, hour, 0, 0, 0, time.UTC) }
	list := []hearth.ScheduleStatus{
		{
			Function: "hello", Name: "hourly", Schedule: hearth.Schedule{Cron: "0 * * * *"}.WithDefaults(),
			Next: []time.Time{at(14), at(15)}, Waiting: at(13),
			Last:    &hearth.ScheduleLast{Due: at(11), At: at(11), Invocation: "01a2", State: hearth.AsyncFailed},
			Skipped: &hearth.ScheduleSkip{Due: at(12), Reason: "the call before had not ended (overlap: skip)"},
		},
		{Function: "hello", Name: "off", Schedule: hearth.Schedule{Cron: "0 * * * *"}.WithDefaults(), Paused: true},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains([]string{"/v1/functions/hello/schedules", "/v1/schedules"}, r.URL.Path) {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"schedules": list}); err != nil {
			t.Error(err)
		}
	}))
	defer s.Close()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"show", "hello", "hourly"}, []string{
			"overlap   skip\n", "missed    once\n", "alias     live\n", "next      " + stamp(at(14)) + "\n", "next      " + stamp(at(15)) + "\n",
			"waiting   " + stamp(at(13)) + ": it is called when the call before has ended\n", "last      " + stamp(at(11)) + ": call 01a2, dead\n",
			"skipped   no call at " + stamp(at(12)) + ": the call before had not ended (overlap: skip)\n",
		}},
		{[]string{"show", "hello", "off"}, []string{"next      paused: hearth schedule resume hello off\n"}},
		{[]string{"list"}, []string{"SKIPPED\n", stamp(at(12)) + ": the call before had not ended (overlap: skip)\n"}},
		{[]string{"list", "hello"}, []string{"paused"}},
	} {
		code, stdout, stderr := hearthRun(t, append(append([]string{"schedule"}, c.args...), "--url", s.URL)...)
		for _, w := range c.want {
			if code != 0 || !strings.Contains(stdout, w) {
				t.Errorf("%s: exit code %d, without %q\n%s%s", c.args, code, w, stdout, stderr)
			}
		}
	}
	if code, _, stderr := hearthRun(t, "schedule", "show", "hello", "nosuch", "--url", s.URL); code != hearth.CodeNotFound.ExitCode() {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	if code, _, stderr := hearthRun(t, "schedules", "hello", "hourly"); code != exitUsage || !strings.Contains(stderr, "hearth schedule show hello hourly") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}
