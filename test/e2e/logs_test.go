package e2e

import (
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

// search returns the lines of a function that meet conditions.
func (in *installation) search(function string, conditions url.Values) []hearth.LogLine {
	in.t.Helper()
	var v struct{ Lines []hearth.LogLine }
	decode(in.t, in.do("GET", "/v1/functions/"+function+"/logs?"+conditions.Encode(), nil), &v)
	return v.Lines
}

// TestLogSearchAndExport: what a function writes through a logging library has a level, is
// found by it and by its call, and goes to a syslog server as well.
func TestLogSearchAndExport(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var sent []string
	var reading sync.WaitGroup
	reading.Go(func() {
		for b := make([]byte, 64<<10); ; {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			mu.Lock()
			sent = append(sent, string(b[:n]))
			mu.Unlock()
		}
	})
	defer reading.Wait()
	defer conn.Close()

	in := start(t, "", func(c *server.Config) { c.ExportLogs = "syslog+udp://" + conn.LocalAddr().String() })
	in.deploy("writer", "python", `import json, sys
def handler(event, context):
    print(json.dumps({"level": "WARNING", "msg": "low on tea"}))
    print("plain", file=sys.stderr)
    if event.get("fail"):
        raise ValueError("no tea")
`, fields{"async": fields{"max_attempts": 2, "min_backoff": "10ms", "max_backoff": "10ms"}})
	id := in.do("POST", "/v1/functions/writer/invocations", fields{}).header.Get("Hearth-Invocation-Id")
	failed := in.later("writer", fields{"fail": true})
	in.ended(failed)

	of := func(conditions url.Values, want ...string) {
		t.Helper()
		var got []string
		for _, l := range in.search("writer", conditions) {
			got = append(got, l.Stream+" "+string(l.Level)+" "+l.Text)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%v: got %q, want %q", conditions, got, want)
		}
	}
	warning := `stdout warn {"level": "WARNING", "msg": "low on tea"}`
	of(url.Values{"invocation": {id}}, warning, "stderr  plain")
	of(url.Values{"invocation": {id}, "level": {"info"}}, warning)
	of(url.Values{"invocation": {failed}, "stream": {"stderr"}}, "stderr  plain", "stderr  plain")
	of(url.Values{"invocation": {failed + ".2"}, "stream": {"stderr"}}, "stderr  plain", "stderr  plain")
	of(url.Values{"q": {"LOW ON"}, "tail": {"2"}}, warning, warning)
	of(url.Values{"q": {"valueerror: no"}, "level": {"error"}, "invocation": {failed + ".2"}, "tail": {"1"}}, "hearth error function_error: ValueError: no tea")
	of(url.Values{"until": {"1h"}})

	eventually(t, "the lines are exported", func() bool {
		mu.Lock()
		defer mu.Unlock()
		all := strings.Join(sent, "\n")
		return strings.Count(all, "low on tea") == 3 && strings.Contains(all, `invocation="`+id+`" level="warn"] {"level"`) &&
			strings.Contains(all, `level="error"] function_error: ValueError: no tea`)
	})
	if a := in.do("GET", "/metrics", nil); !strings.Contains(string(a.body), "\nhearth_logs_export_dropped_total 0\n") {
		t.Errorf("/metrics has no count of what was not exported")
	}
}

// TestLogFlood: a function that writes as fast as it can neither fills the disk nor hides
// what others write, and they are answered meanwhile.
func TestLogFlood(t *testing.T) {
	const limit = 1 << 20
	in := start(t, "", func(c *server.Config) { c.LogsSize = limit })
	in.deploy("quiet", "python", "def handler(event, context):\n    print('heard', event)\n", nil)
	in.deploy("flood", "python", `import base64, os, time
def handler(event, context):
    end = time.time() + 3
    while time.time() < end:
        print(base64.b64encode(os.urandom(3000)).decode())
`, nil)
	in.invoke("quiet", 0)
	done := make(chan answer, 1)
	go func() { done <- in.invoke("flood", nil) }()
	for i, running := 1, true; running; i++ {
		select {
		case a := <-done:
			want(t, a, 200, "")
			running = false
		default:
			want(t, in.invoke("quiet", i), 200, "")
		}
		var used int64
		err := filepath.WalkDir(filepath.Join(in.dir, "logs"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".tmp") {
				if info, err := d.Info(); err == nil { // else it was deleted meanwhile
					used += info.Size()
				}
			}
			return nil
		})
		if err != nil || used > limit+limit/2 {
			t.Fatalf("the logs take %d bytes, %v", used, err)
		}
	}
	if got := in.search("quiet", url.Values{"q": {"heard 0"}}); len(got) != 1 {
		t.Errorf("the first line of the quiet function is gone: %v", got)
	}
	if got := in.search("flood", url.Values{"tail": {"1"}}); len(got) != 1 {
		t.Error("the flood left nothing")
	}
}
