package client_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func TestDeploy(t *testing.T) {
	dir := tree(t, map[string]string{"hearth.yaml": "name: hello\nruntime: python\nenv: {A: b}\n", "main.py": "code"})
	t.Setenv("TMPDIR", t.TempDir())
	var uploaded map[string]string
	var length int64
	var body map[string]any
	var query, accept string
	lines := []string{
		`{"type":"step","step":"build","text":"installing"}`,
		`{"type":"log","text":"Collecting idna"}`,
		`{"type":"step","step":"built","text":"dependencies: cached","cached":true}`,
		`{"type":"step","step":"start","text":"starting version 1"}`,
		`{"type":"result","status":201,"function":{"name":"hello","live":1,"url":"/fn/hello/"}}`,
	}
	deployed := func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		query, accept = r.URL.RawQuery, r.Header.Get("Accept")
		w.Header().Set("Content-Type", "application/x-ndjson")
		for _, l := range lines {
			fmt.Fprintln(w, l)
		}
	}
	c := serve(t, map[string]http.HandlerFunc{
		"POST /v1/artifacts": func(w http.ResponseWriter, r *http.Request) {
			if ct := r.Header.Get("Content-Type"); ct != "application/gzip" {
				t.Errorf("content type %s", ct)
			}
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			uploaded, length = unpack(t, b), r.ContentLength
			answer(201, `{"digest":"sha256:abc","files":2,"bytes":4}`)(w, r)
		},
		"PUT /v1/functions/hello": deployed,
		"POST /v1/functions":      answer(409, `{"code":"conflict","detail":"there is a function \"hello\" already"}`),
	})
	var stages []client.Stage
	f, err := c.Deploy(t.Context(), dir, client.DeployOptions{
		Override: func(m *client.Manifest) { m.Env["C"] = "d" },
		NoCache:  true,
		OnEvent: func(e client.Event) {
			stages = append(stages, e.Stage)
			if e.Stage != client.StagePack && (e.Files != 2 || e.Bytes == 0) || e.Manifest.Name != "hello" || e.Cached != (e.Stage == client.StageBuilt) {
				t.Errorf("event %+v", e)
			}
			if e.Stage == client.StageLog && e.Text != "Collecting idna" {
				t.Errorf("event %+v", e)
			}
		},
	})
	if err != nil || f.URL != c.URL()+"/fn/hello/" {
		t.Fatalf("%+v, %v", f, err)
	}
	if length <= 0 || uploaded["main.py"] != "code" || len(uploaded) != 2 {
		t.Errorf("uploaded %v with content length %d", uploaded, length)
	}
	want := map[string]any{"runtime": "python", "env": map[string]any{"A": "b", "C": "d"}, "code": map[string]any{"artifact": "sha256:abc"}}
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]client.Stage{
		client.StagePack, client.StageUpload, client.StageBuild, client.StageLog, client.StageBuilt, client.StageStart, client.StageDone,
	}, stages); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}

	if query != "fresh=true" || !strings.Contains(accept, "application/x-ndjson") {
		t.Errorf("asked with %q, accepting %q", query, accept)
	}

	lines = []string{lines[0], `{"type":"error","status":400,"error":{"code":"invalid","detail":"no such package","hint":"look"}}`}
	_, err = c.Deploy(t.Context(), dir, client.DeployOptions{})
	wantError(t, err, hearth.CodeInvalid, "no such package")
	lines = lines[:1]
	_, err = c.Deploy(t.Context(), dir, client.DeployOptions{})
	wantError(t, err, hearth.CodeUnavailable, "broke")
	lines = []string{"<html>"}
	_, err = c.Deploy(t.Context(), dir, client.DeployOptions{})
	wantError(t, err, hearth.CodeInternal, "unexpected answer")
	_, err = c.Deploy(t.Context(), dir, client.DeployOptions{New: true})
	wantError(t, err, hearth.CodeConflict, "already")
	_, err = c.Deploy(t.Context(), dir, client.DeployOptions{Override: func(m *client.Manifest) { m.Name = "No" }})
	wantError(t, err, hearth.CodeInvalid, `function name "No"`)

	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}
