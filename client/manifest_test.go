package client_test

import (
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func TestLoadManifest(t *testing.T) {
	dir := tree(t, map[string]string{"hearth.yaml": `
name: hello
runtime: python3.11
handler: app/main.handle
timeout: 1m30s
memory: 256MiB
cpu: 0.5
concurrency: 4
egress: none
env: {PORT: 80, DEBUG: true, EMPTY: ""}
labels:
  team: core
routes:
  - GET /hello/{who}
`})
	want := client.Manifest{Name: "hello", Config: hearth.Config{
		Runtime: "python3.11", Handler: "app/main.handle", Timeout: hearth.Duration(90 * time.Second), Memory: 256 << 20,
		CPU: 0.5, Concurrency: 4, Egress: hearth.EgressNone,
		Env: map[string]string{"PORT": "80", "DEBUG": "true", "EMPTY": ""}, Labels: map[string]string{"team": "core"},
		Routes: []hearth.Route{"GET /hello/{who}"},
	}}
	for _, path := range []string{dir, filepath.Join(dir, "hearth.yaml")} {
		m, err := client.LoadManifest(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	_, err := client.LoadManifest(t.TempDir())
	wantError(t, err, hearth.CodeNotFound, "there is no", "hearth init")
}

func TestManifestWithNestedKeys(t *testing.T) {
	m, err := client.ParseManifest("f", []byte(`
name: hello
runtime: python
cache:            # before the routes and the concurrency that it and warm need
  ttl: {GET /a: 1m, /fn: 5}
  authorized: true
warm:
  min: 20
  schedule: '* 8-18 * * *'
  call: {source: warm, list: [1, a, null]}
instance_concurrency: 20
routes: [GET /a]
concurrency: 400
`))
	want := client.Manifest{Name: "hello", Config: hearth.Config{
		Runtime: "python", Concurrency: 400, InstanceConcurrency: 20, Routes: []hearth.Route{"GET /a"},
		Warm: hearth.Warm{Min: 20, Schedule: "* 8-18 * * *", Call: map[string]any{"source": "warm", "list": []any{1, "a", nil}}},
		Cache: &hearth.Cache{
			TTL:        map[hearth.Route]hearth.Duration{"GET /a": hearth.Duration(time.Minute), "/fn": hearth.Duration(5 * time.Second)},
			Authorized: true,
		},
	}}
	if diff := cmp.Diff(want, m); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if m, err := client.ParseManifest("f", []byte("name: a\nruntime: python\nwebsocket: {idle_timeout: 1h}\n")); err != nil ||
		m.WithDefaults().Websocket.IdleTimeout != hearth.Duration(time.Hour) || m.WithDefaults().Websocket.MaxMessage != hearth.DefaultMessage {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := client.ParseManifest("f", []byte("name: a\nruntime: python\ncache: {}\n")); err != nil || m.Cache == nil {
		t.Errorf("an empty cache: %+v, %v", m, err)
	}
	m, err = client.ParseManifest("f", []byte("name: a\nruntime: python\nqueues: {orders:}\naliases:\n  beta:\n"))
	if _, alias := m.Aliases["beta"]; err != nil || !alias || !maps.Equal(m.Queues, map[string]hearth.QueueTrigger{"orders": {}}) {
		t.Errorf("names without values: %+v, %v", m, err)
	}
}

func TestManifestErrors(t *testing.T) {
	const ok = "name: a\nruntime: python\n"
	for text, wants := range map[string][]string{
		"":                               {"f: the file is empty"},
		"# only a comment\n":             {"f"},
		"- a\n":                          {"f:1: expected keys and values"},
		"name: a\n\truntime: python\n":   {"f:2: not valid YAML"},
		"name: [\n":                      {"not valid YAML"},
		"name: a\n":                      {"f: the function has no runtime"},
		"runtime: python\n":              {"f: the function has no name"},
		"name: Hello\nruntime: python\n": {`f:1: function name "Hello" is not valid`},
		ok + "memroy: 1GiB\n":            {`f:3: unknown key "memroy"`, `did you mean "memory"?`},
		ok + "quux: 1\n":                 {`unknown key "quux"`, "the keys are aliases, async, cache, cloudevents, concurrency, cors, cpu,"},
		ok + "Timeout: 1s\n":             {`did you mean "timeout"?`},
		ok + "name: b\n":                 {"f:3: name was already given in line 1"},
		ok + "env:\n  A: 1\n  A: 2\n":    {`f:5: env: "A" was already given in line 4`},
		ok + "timeout: -5s\n":            {"f:3: timeout -5s is not positive"},
		ok + "timeout: 0\n":              {"f:3: timeout 0s is not positive"},
		ok + "timeout: soon\n":           {`f:3: timeout: "soon" is not a duration`, "30s"},
		ok + "timeout:\n":                {"f:3: timeout has no value"},
		ok + "schedules: {daily:}\n":     {"f:3: schedules.daily: it needs one of cron and at"},
		ok + "env: {A:}\n":               {"f:3: env"},
		ok + "memory: 12\n":              {`f:3: memory: "12" is not a size`},
		ok + "memory: 1KiB\n":            {"f:3: memory 1KiB is out of range"},
		ok + "cpu: many\n":               {`f:3: cpu cannot be "many"`, "a number"},
		ok + "concurrency: 1.5\n":        {`concurrency cannot be "1.5"`, "a whole number"},
		ok + "concurrency: 0\n":          {"f:3: concurrency 0 is out of range"},
		ok + "env: A=b\n":                {"f:3: env must be NAME: value on lines"},
		ok + "env:\n  A: {b: c}\n":       {"f:4: env must have texts"},
		ok + "aliases:\n  Beta: {}\n":    {`f:3: alias name "Beta" is not valid`},
		ok + "aliases:\n  beta: {env: {HEARTH_X: y}}\n":     {"f:3: environment variable name HEARTH_X is reserved"},
		ok + "aliases:\n  beta: {versions: 7}\n":            {`f:4: unknown key "aliases.beta.versions"`, "env, routes, sticky"},
		ok + "aliases:\n  beta: 7\n":                        {"f:4: aliases must have keys and values"},
		ok + "env: {HEARTH_X: y}\n":                         {"reserved"},
		ok + "routes: /a\n":                                 {"f:3: routes must be a list"},
		ok + "routes: [{a: b}]\n":                           {"routes must be a list of texts"},
		ok + "routes: [/v1/x]\n":                            {"f:3: route", "belongs to Hearth"},
		ok + "handler: [a]\n":                               {"handler must be a single value"},
		ok + "cache: true\n":                                {"f:3: cache must be keys and values"},
		ok + "cache:\n":                                     {"f:3: cache has no value"},
		ok + "cache:\n  tll: {}\n":                          {`f:4: unknown key "cache.tll"`, `did you mean "ttl"?`},
		ok + "cache:\n  ttl: 1m\n":                          {"f:4: cache.ttl must be NAME: value on lines"},
		ok + "cache:\n  ttl:\n    /fn: soon\n":              {`cache.ttl: "soon" is not a duration`},
		ok + "cache:\n  ttl: {/fn: 1, /fn: 2}\n":            {`f:4: cache.ttl: "/fn" was already given`},
		ok + "cache:\n  ttl: {/a: 1m}\n":                    {`f:3: cache.ttl has the route "/a"`},
		ok + "cache: {authorized: 1}\n":                     {"cache.authorized cannot be"},
		ok + "warm:\n  min: 1\n  min: 2\n":                  {"f:5: warm.min was already given in line 4"},
		ok + "warm: {min: 1.5}\n":                           {`warm.min cannot be "1.5"`},
		ok + "warm: {min: 17}\n":                            {"f:3: warm.min 17 is out of range"},
		ok + "warm: {min: 3}\nconcurrency: 2\n":             {"f:3: warm.min 3 is out of range"},
		ok + "warm: {min: 1, call: {1: 2, a: b}}\n":         {"f:3: warm.call is not valid"},
		ok + "async: {max_attempts: 101}\n":                 {"f:3: async.max_attempts 101 is out of range"},
		ok + "async: {max_attempts: 0}\n":                   {"f:3: async.max_attempts 0 is out of range"},
		ok + "async: {max_age: 1ms}\n":                      {"f:3: async.max_age 1ms is out of range"},
		ok + "env: [A=1]\n":                                 {"f:3: env must have NAME: value on lines of their own", "is a list", `write A: "1" in place of A=1`},
		ok + "secrets:\n  - x\n":                            {"f:4: secrets must have", "without a hyphen or brackets"},
		ok + "async: {max_backoff: -1s}\n":                  {"f:3: async.max_backoff -1s is out of range"},
		ok + "async: {min_backoff: 10m, max_backoff: 5m}\n": {"f:3: async.min_backoff 10m is out of range: max_backoff is 5m", "longer max_backoff"},
		ok + "async: {min_backoff: 30h}\n":                  {"f:3: async.max_backoff 30h is out of range"},
		ok + "async: {min_backoff: -1s}\n":                  {"f:3: async.min_backoff -1s is out of range"},
		ok + "async: {keep_result: 1s}\n":                   {"f:3: async.keep_result 1s is out of range"},
		ok + "async: {on_success: [told]}\n":                {`f:3: destination "told" is not valid`, "function:NAME"},
		ok + "async: {on_failure: ['ftp://a/b']}\n":         {`f:3: destination "ftp://a/b" is not valid`},
		ok + "async: {on_failure: ['https://u:p@a/']}\n":    {"signed"},
		ok + "egress: all\n":                                {`f:3: egress "all" is not valid`, "internet or none"},
		ok + "env: &a {A: b}\n":                             {"f:3: anchors and aliases are not allowed"},
		ok + "env: {<<: *a}\n":                              {"f"},
		ok + "handler: !!binary aGk=\n":                     {"f:3: the tag"},
		ok + "---\nname: b\n":                               {"more than one document"},
		ok + strings.Repeat("#", 256<<10):                   {"larger than 256KiB"},
		ok + "? [a]\n: b\n":                                 {"f:3: unknown key"},
		ok + "name: " + strings.Repeat("x", 9):              {"already given"},
		ok + "websocket:\n  idle: 1m\n":                     {`f:4: unknown key "websocket.idle"`, "idle_timeout"},
		ok + "websocket:\n  max_message: 1GiB\n":            {`websocket.max_message 1GiB is out of range`, "64MiB"},
		ok + "secrets: {A: a}\nenv: {A: b}\n":               {"f:4: the variable A is in env and in secrets"},
		ok + "secrets: {HEARTH_X: a}\n":                     {"f:3: environment variable name HEARTH_X is reserved"},
		ok + "secrets: {A-B: a}\n":                          {`environment variable name "A-B" in secrets`},
		ok + "secrets: {A: Not_a_Name}\n":                   {`f:3: secret name "Not_a_Name" is not valid`},
		ok + "secrets: a\n":                                 {"f:3: secrets"},
		ok + "secret_files: {../a: a}\n":                    {`f:3: file name "../a" in secret_files is not valid`, "without a directory"},
		ok + "secret_files: {.a: a}\n":                      {`file name ".a" in secret_files`},
		ok + "secret_files: {a: ''}\n":                      {`secret name "" is not valid`},
	} {
		_, err := client.ParseManifest("f", []byte(text))
		if err == nil {
			t.Errorf("%.60q was accepted", text)
			continue
		}
		t.Run("", func(t *testing.T) { wantError(t, err, hearth.CodeInvalid, wants...) })
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte("name: a\nruntime: python\nenv: {A: b}\nroutes: [GET /x]\n"))
	f.Add([]byte("a: &a [*a]\n? {b: c}\n: !!float 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := client.ParseManifest("f", b)
		if err != nil {
			if hearth.ErrorCode(err) != hearth.CodeInvalid || !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("error %v (%s)", err, hearth.ErrorCode(err))
			}
			return
		}
		if err := m.Validate(); err != nil {
			t.Errorf("accepted what is not valid: %v", err)
		}
	})
}

// TestUnreadableManifest: what is not a file of the directory is refused, and nothing
// waits for the other end of a named pipe.
func TestUnreadableManifest(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("name: hello\nruntime: python\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := func(path string) error { return syscall.Mkfifo(path, 0o600) }
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"directory":      {func(path string) error { return os.Mkdir(path, 0o755) }, "is not a file"},
		"pipe":           {pipe, "is not a file"},
		"link to a pipe": {func(path string) error { return errors.Join(pipe(path+"2"), link(filepath.Base(path+"2"))(path)) }, "is not a file"},
		"socket": {func(path string) error {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}, "is not a file"},
		"link to a device": {link("/dev/zero"), "outside of the function's directory"},
		"link outside":     {link(outside), "outside of the function's directory"},
		"link above":       {link("../" + filepath.Base(filepath.Dir(outside)) + "/outside"), "outside of the function's directory"},
		"link to itself":   {func(path string) error { return link(filepath.Base(path))(path) }, "in a circle"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range []string{client.ManifestName, client.IgnoreName} {
				if err := c.make(filepath.Join(dir, file)); err != nil {
					t.Fatal(err)
				}
			}
			read := map[string]func() error{
				client.ManifestName: func() error { _, err := client.LoadManifest(dir); return err },
				client.IgnoreName:   func() error { _, err := client.Pack(dir, io.Discard, client.PackOptions{}); return err },
			}
			for file, f := range read {
				done := make(chan error, 1)
				go func() { done <- f() }()
				select {
				case err := <-done:
					wantError(t, err, hearth.CodeInvalid, file, c.want, "put a file in its place")
				case <-time.After(10 * time.Second):
					t.Errorf("reading %s does not end", file)
				}
			}
		})
	}
	dir := tree(t, map[string]string{"conf/f.yaml": "name: hello\nruntime: python\n", "hearth.yaml": "->conf/f.yaml"})
	if m, err := client.LoadManifest(dir); err != nil || m.Name != "hello" {
		t.Errorf("by a link that stays inside: %+v, %v", m, err)
	}
	missing := tree(t, map[string]string{"hearth.yaml": "->nowhere"})
	_, err := client.LoadManifest(missing)
	wantError(t, err, hearth.CodeInvalid, "points to nowhere, which does not exist")
	found, err := client.FindFunctions(missing)
	if err != nil || len(found) != 1 || hearth.ErrorCode(found[0].Err) != hearth.CodeInvalid {
		t.Errorf("a link to nowhere is found as %+v, %v", found, err)
	}
}

// TestManifestSchedules: schedules are read, and an error knows its line.
func TestManifestSchedules(t *testing.T) {
	m, err := client.ParseManifest("f", []byte(`name: a
runtime: python
schedules:
  nightly: {cron: 0 3 * * *, time_zone: Europe/Berlin, event: {n: [1, x]}}
  once:
    at: 2030-01-31T08:00:00Z
`))
	if err != nil || m.Schedules["once"].At != "2030-01-31T08:00:00Z" || m.Schedules["nightly"].TimeZone != "Europe/Berlin" {
		t.Errorf("%+v, %v", m.Schedules, err)
	}
	for _, c := range []struct{ line, want string }{
		{"{cron: 0 3 * * *, at: 2030-01-31T08:00:00Z}", "both cron and at"},
		{"{at: tomorrow}", "is not a time"},
		{"{cron: 0 3 * * *, missed: all}", "cut short"},
		{"{cron: 0 3 * * *, zone: UTC}", "unknown key"},
	} {
		_, err := client.ParseManifest("f", []byte("name: a\nruntime: python\nschedules:\n  x: "+c.line+"\n"))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "f:") {
			t.Errorf("%s: %v", c.line, err)
		}
	}
}
