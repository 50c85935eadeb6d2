package api_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// TestClient lets the Go client and the API talk to each other: what one
// writes the other must read.
func TestClient(t *testing.T) {
	h := newHost(t)
	h.invoke = func(_ context.Context, r hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
		i := hearth.Invocation{ID: "id7", Cold: true, Timings: hearth.Timings{Start: time.Second, Run: 2 * time.Millisecond}}
		started(i)
		_, err := io.Copy(w, r.Event)
		return i, err
	}
	c, err := client.New(h.serve().URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	a, err := c.UploadArtifact(ctx, bytes.NewReader(gzipped(t, tarOf(t, "main.py", python))), -1)
	if err != nil || a.Files != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	cfg := hearth.Config{Runtime: "python", Timeout: hearth.Duration(5 * time.Second), Memory: 64 << 20}
	f, created, err := c.PutFunction(ctx, "hello", cfg, client.Code{Artifact: a.Digest}, 0)
	if err != nil || !created || f.Live != 1 || f.Config.Timeout != cfg.Timeout || f.Config.Memory != cfg.Memory {
		t.Fatalf("%+v, %v, %v", f, created, err)
	}
	if f, created, err = c.PutFunction(ctx, "hello", f.Config, client.Code{Artifact: a.Digest}, f.Generation); err != nil || created || f.Live != 1 {
		t.Errorf("the configuration that was read cannot be put back: %+v, %v", f, err)
	}
	if _, _, err := c.PutFunction(ctx, "hello", cfg, client.Code{Artifact: a.Digest}, 99); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("another generation: %v", err)
	}
	var out bytes.Buffer
	call, err := c.Invoke(ctx, "hello", strings.NewReader(`[1]`), &out)
	if err != nil || out.String() != "[1]" || !call.Cold || call.InvocationID != "id7" || call.Timings.Start != time.Second || call.Timings.Run != 2*time.Millisecond {
		t.Errorf("%q, %+v, %v", &out, call, err)
	}
	if vs, err := c.Versions(ctx, "hello", 0, 0); err != nil || len(vs) != 1 {
		t.Errorf("%v, %v", vs, err)
	}
	if is, _, err := c.Invocations(ctx, hearth.InvocationFilter{Function: "hello"}, 0, ""); err != nil || len(is) != 0 {
		t.Errorf("%v, %v", is, err)
	}
	if fs, err := c.AllFunctions(ctx); err != nil || len(fs) != 1 || fs[0].URL == "" {
		t.Errorf("%v, %v", fs, err)
	}
	if ds, err := c.Drivers(ctx); err != nil || len(ds) != 3 || ds[2].Missing[0].Remedy == "" {
		t.Errorf("%v, %v", ds, err)
	}
	h.logs.Append(hearth.LogLine{Time: time.Now(), Function: "hello", Stream: "stdout", Text: "one"})
	enough := context.Canceled
	if err := c.FollowLogs(ctx, "hello", 5, hearth.LogFilter{}, func(l hearth.LogLine) error {
		if l.Text != "one" {
			t.Errorf("got %+v", l)
		}
		return enough
	}); err != enough { //nolint:errorlint // it must come back as it is
		t.Errorf("got %v", err)
	}
	h.verify = func(context.Context, *hearth.Version) error {
		return &hearth.Error{Code: hearth.CodeFunction, Message: "it raised", Function: &hearth.FunctionError{Type: "KeyError"}}
	}
	_, err = c.CreateFunction(ctx, "other", cfg, client.Code{Artifact: a.Digest})
	if e := hearth.AsError(err); e == nil || e.Code != hearth.CodeFunction || e.Hint == "" || e.Function == nil || e.Function.Type != "KeyError" {
		t.Errorf("got %#v", err)
	}
	if err := c.DeleteFunction(ctx, "hello", 0); err != nil {
		t.Error(err)
	}
	if _, err := c.Function(ctx, "hello"); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if c.Ready(ctx) != nil || c.Healthy(ctx) != nil {
		t.Error("not healthy")
	}
}
