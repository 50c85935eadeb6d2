package guest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// TestShims calls a function through the real guest of each language whose
// interpreter is present. What the guests must do is package guesttest's.
func TestShims(t *testing.T) {
	for _, tt := range []struct{ language, interpreter, file, code string }{
		{"python", "python3", "main.py", `
import os
def warmup():
    print("warming")
def handler(event, context):
    print("called", event["rawPath"])
    return {"statusCode": 201, "headers": {"X-Env": os.environ["A"]}, "body": event["body"] * 3}
`},
		{"nodejs", "node", "main.mjs", `
export const warmup = async () => { console.log("warming"); };
export const handler = async (event, context) => {
  console.log("called", event.rawPath);
  return {statusCode: 201, headers: {"X-Env": process.env.A}, body: event.body.repeat(3)};
};
`},
	} {
		t.Run(tt.language, func(t *testing.T) {
			interpreter, err := exec.LookPath(tt.interpreter)
			if err != nil {
				t.Skipf("%s is not installed", tt.interpreter)
			}
			code := t.TempDir()
			if err := os.WriteFile(filepath.Join(code, tt.file), []byte(tt.code), 0o600); err != nil {
				t.Fatal(err)
			}
			shims := t.TempDir()
			if err := os.CopyFS(shims, Shims()); err != nil {
				t.Fatal(err)
			}
			command := Command(tt.language, interpreter, shims)
			cmd, nc := startGuest(t, command)
			var l logs
			l.more = make(chan struct{}, 10)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c, hello, err := Connect(ctx, nc, Options{Secret: "secret", OnLog: l.add})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if !strings.HasPrefix(hello.Runtime, tt.language) || hello.PID == 0 {
				t.Errorf("hello %+v", hello)
			}
			ready, err := c.Init(ctx, Init{Function: "f", Version: 1, Handler: "main.handler", Code: code, MemoryMB: 128, Env: map[string]string{"A": "b"}})
			if err != nil {
				t.Fatal(err)
			}
			if ready.Concurrent != (tt.language == "nodejs") || ready.RequestStream {
				t.Errorf("ready %+v", ready)
			}
			call := &Call{
				ID: "id1", Deadline: time.Now().Add(time.Minute), Kind: hearth.KindHTTP,
				Event: []byte(`{"version":"2.0","rawPath":"/p","isBase64Encoded":false}`), Body: []byte("abc"),
			}
			var r recorder
			if err := c.Invoke(ctx, call, &r); err != nil {
				t.Fatal(err)
			}
			if r.head.Status != 201 || string(r.body) != "abcabcabc" || r.last != 1 {
				t.Errorf("%+v", r)
			}
			if len(r.head.Headers) == 0 || r.head.Headers[0] != [2]string{"x-env", "b"} {
				t.Errorf("headers %v", r.head.Headers)
			}
			<-l.more
			if l.all[0] != (logged{"id1", 1, "called /p\n"}) {
				t.Errorf("logs %+v", l.all)
			}
			// A body of several windows both ways.
			call.ID, call.Body = "id2", nil
			call.Rest = strings.NewReader(strings.Repeat("0123456789", 300_000))
			r = recorder{}
			if err := c.Invoke(ctx, call, &r); err != nil || len(r.body) != 9_000_000 {
				t.Errorf("%d bytes, %v", len(r.body), err)
			}
			call = &Call{ID: "id3", Deadline: call.Deadline, Kind: hearth.KindWarmup, Body: []byte(`{"rawPath":"/w","body":""}`)}
			r = recorder{}
			if err := c.Invoke(ctx, call, &r); err != nil || r.head.Status != 0 || len(r.body) != 0 {
				t.Errorf("the warm-up was answered with %+v, %v", r, err)
			}
			l.mu.Lock()
			if want := []logged{{"id3", 1, "warming\n"}, {"id3", 1, "called /w\n"}}; !slices.Equal(l.all[2:], want) {
				t.Errorf("logs %+v", l.all)
			}
			l.mu.Unlock()
			if err := c.Shutdown(time.Second); err != nil {
				t.Fatal(err)
			}
			select {
			case <-c.Done():
			case <-ctx.Done():
				t.Fatal("the guest did not end after SHUTDOWN")
			}
			wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ExitError")
			if err := cmd.Wait(); err != nil {
				t.Errorf("the guest exited with %v", err)
			}
		})
	}
}

// startGuest runs a guest with one end of a stream; the other is returned.
func startGuest(t testing.TB, command []string) (*exec.Cmd, net.Conn) {
	t.Helper()
	host, far := socketpair(t)
	defer far.Close()
	file, err := far.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "HEARTH_FD=3", "HEARTH_SECRET=secret")
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			host.Close()
			cmd.Process.Kill() //nolint:errcheck // it may have ended
			cmd.Wait()         //nolint:errcheck // it was killed
		}
	})
	return cmd, host
}

func TestCommand(t *testing.T) {
	for _, language := range []string{"python", "nodejs"} {
		command := Command(language, "/bin/x", "/shims")
		file := command[len(command)-1]
		if command[0] != "/bin/x" {
			t.Errorf("%q", command)
		}
		if _, err := fs.Stat(Shims(), strings.TrimPrefix(file, "/shims/")); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	if Command("cobol", "x", "y") != nil {
		t.Error("a command for a language without a shim")
	}
	if _, err := fs.Stat(Shims(), "conn.go"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
