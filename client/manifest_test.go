package client_test

import (
	"os"
	"path/filepath"
	"strings"
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

func TestManifestErrors(t *testing.T) {
	const ok = "name: a\nruntime: python\n"
	for text, wants := range map[string][]string{
		"":                                     {"f: the file is empty"},
		"# only a comment\n":                   {"f"},
		"- a\n":                                {"f:1: expected keys and values"},
		"name: a\n\truntime: python\n":         {"f:2: not valid YAML"},
		"name: [\n":                            {"not valid YAML"},
		"name: a\n":                            {"f: the function has no runtime"},
		"runtime: python\n":                    {"f: the function has no name"},
		"name: Hello\nruntime: python\n":       {`f:1: function name "Hello" is not valid`},
		ok + "memroy: 1GiB\n":                  {`f:3: unknown key "memroy"`, `did you mean "memory"?`},
		ok + "quux: 1\n":                       {`unknown key "quux"`, "the keys are cache, concurrency, cpu,"},
		ok + "Timeout: 1s\n":                   {`did you mean "timeout"?`},
		ok + "name: b\n":                       {"f:3: name was already given in line 1"},
		ok + "env:\n  A: 1\n  A: 2\n":          {`f:5: env: "A" was already given in line 4`},
		ok + "timeout: -5s\n":                  {"f:3: timeout -5s is not positive"},
		ok + "timeout: 0\n":                    {"f:3: timeout 0s is not positive"},
		ok + "timeout: soon\n":                 {`f:3: timeout: "soon" is not a duration`, "30s"},
		ok + "timeout:\n":                      {"f:3: timeout has no value"},
		ok + "memory: 12\n":                    {`f:3: memory: "12" is not a size`},
		ok + "memory: 1KiB\n":                  {"f:3: memory 1KiB is out of range"},
		ok + "cpu: many\n":                     {`f:3: cpu cannot be "many"`, "a number"},
		ok + "concurrency: 1.5\n":              {`concurrency cannot be "1.5"`, "a whole number"},
		ok + "concurrency: 0\n":                {"f:3: concurrency 0 is out of range"},
		ok + "env: A=b\n":                      {"f:3: env must be a list of NAME: text"},
		ok + "env:\n  A: {b: c}\n":             {"f:4: env must have texts"},
		ok + "env: {HEARTH_X: y}\n":            {"reserved"},
		ok + "routes: /a\n":                    {"f:3: routes must be a list"},
		ok + "routes: [{a: b}]\n":              {"routes must be a list of texts"},
		ok + "routes: [/v1/x]\n":               {"f:3: route", "belongs to Hearth"},
		ok + "handler: [a]\n":                  {"handler must be a single value"},
		ok + "egress: all\n":                   {`f:3: egress "all" is not valid`, "internet or none"},
		ok + "env: &a {A: b}\n":                {"f:3: anchors and aliases are not allowed"},
		ok + "env: {<<: *a}\n":                 {"f"},
		ok + "handler: !!binary aGk=\n":        {"f:3: the tag"},
		ok + "---\nname: b\n":                  {"more than one document"},
		ok + strings.Repeat("#", 256<<10):      {"larger than 256KiB"},
		ok + "? [a]\n: b\n":                    {"f:3: unknown key"},
		ok + "name: " + strings.Repeat("x", 9): {"already given"},
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

func TestUnreadableManifest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hearth.yaml")
	if err := os.Mkdir(file, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := client.LoadManifest(filepath.Dir(file))
	wantError(t, err, hearth.CodeInvalid, "hearth.yaml")
}
