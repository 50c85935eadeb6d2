package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

// secretive hands its secrets over when it is asked to, and prints them.
var secretive = map[string]string{
	"python": `
import os
loaded = os.environ["PASSWORD"]
def handler(event, context):
    if event.get("rawPath") == "/fail":
        raise ValueError("cannot log in with " + os.environ["PASSWORD"])
    print("the password is", os.environ["PASSWORD"], flush=True)
    if event.get("rawPath") == "/child":
        import subprocess
        subprocess.run(["sh", "-c", "echo raw $PASSWORD"], check=True)
    path = os.environ["HEARTH_SECRETS"] + "/key.pem"
    with open(path, "rb") as f:
        key = f.read()
    print(key.decode("latin-1"))
    return {"password": os.environ["PASSWORD"], "loaded": loaded, "stage": os.environ.get("STAGE"),
            "key": key.hex(), "mode": oct(os.stat(path).st_mode & 0o777)}
`,
	"nodejs": `
import { readFileSync, statSync } from 'node:fs';
import { execSync } from 'node:child_process';
const loaded = process.env.PASSWORD;
export const handler = async (event) => {
  if (event.rawPath === '/fail') throw new Error('cannot log in with ' + process.env.PASSWORD);
  console.log('the password is', process.env.PASSWORD);
  if (event.rawPath === '/child') execSync('echo raw $PASSWORD', { stdio: 'inherit' });
  const path = process.env.HEARTH_SECRETS + '/key.pem';
  const key = readFileSync(path);
  console.log(key.toString('latin1'));
  return { password: process.env.PASSWORD, loaded, stage: process.env.STAGE ?? null,
           key: key.toString('hex'), mode: '0o' + (statSync(path).mode & 0o777).toString(8) };
};
`,
}

// setSecret gives a secret a value that must be taken.
func (in *installation) setSecret(name, value string) {
	in.t.Helper()
	a := in.do("PUT", "/v1/secrets/"+name, fields{"base64": base64.StdEncoding.EncodeToString([]byte(value))})
	if a.status != 200 {
		in.t.Fatalf("setting %s: %v", name, a)
	}
}

const (
	firstPassword = "correct-horse-7731"
	pemKey        = "-----BEGIN KEY-----\nbGluZSBvbmUgb2Yga2V5\nbGluZSB0d28gb2Yga2V5\n-----END KEY-----\n"
)

func TestSecrets(t *testing.T) {
	log := &lockedBuffer{}
	in := start(t, "", func(c *server.Config) {
		c.Logger = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	each(t, secretive, func(t *testing.T, runtime, code string) {
		in.t = t
		name, password, key := "secretive-"+runtime, runtime+"-password", runtime+"-key"
		config := fields{"secrets": fields{"PASSWORD": password}, "secret_files": fields{"key.pem": key}}
		a := in.try(name, runtime, code, config)
		want(t, a, 400, "invalid")
		if !strings.Contains(string(a.body), "hearth secret set "+runtime) {
			t.Errorf("a deploy without its secrets was answered with %v", a)
		}
		in.setSecret(password, firstPassword)
		in.setSecret(key, pemKey)
		in.deploy(name, runtime, code, config)
		check := func(path, password, stage string) {
			t.Helper()
			a := in.do("GET", "/fn/"+name+path, nil)
			got := a.json(t)
			if a.status != 200 || got["password"] != password || got["loaded"] != password || got["mode"] != "0o400" ||
				got["key"] != fmt.Sprintf("%x", pemKey) || fmt.Sprint(got["stage"]) != stage {
				t.Errorf("%s was answered with %v", path, a)
			}
		}
		check("/", firstPassword, "<nil>")
		check("/child", firstPassword, "<nil>")
		check("@1/", firstPassword, "<nil>")
		want(t, in.do("GET", "/fn/"+name+"/fail", nil), 502, "function_error")

		// An alias's own environment goes with the secrets.
		if a := in.do("PUT", "/v1/functions/"+name+"/aliases/beta", fields{"versions": fields{"1": 100}, "env": fields{"STAGE": "beta"}}); a.status != 200 {
			t.Fatal(a)
		}
		check("@beta/", firstPassword, "beta")

		a = in.do("DELETE", "/v1/secrets/"+password, nil)
		want(t, a, 409, "conflict")
		if !strings.Contains(string(a.body), name) {
			t.Errorf("the refusal does not name the function: %v", a)
		}

		// A version that only its number leads to follows the secrets too.
		if a := in.do("PUT", "/v1/functions/"+name+"?preview=true", fields{
			"runtime": runtime, "secrets": config["secrets"], "secret_files": config["secret_files"], "env": fields{"STAGE": "preview"},
		}); a.status != 200 {
			t.Fatal(a)
		}
		check("@2/", firstPassword, "preview")
		const second = "second-password-9120"
		in.setSecret(password, second)
		check("/", second, "<nil>")
		check("@beta/", second, "beta")
		check("@2/", second, "preview")
		if a := in.do("POST", "/v1/secrets/"+password+"/rollback", fields{}); a.status != 200 || a.json(t)["version"] != 3.0 {
			t.Errorf("the rollback was answered with %v", a)
		}
		check("/", firstPassword, "<nil>")

		// An environment variable is text.
		a = in.do("PUT", "/v1/secrets/"+password, fields{"base64": base64.StdEncoding.EncodeToString([]byte("a\x00b"))})
		want(t, a, 400, "invalid")
		check("/", firstPassword, "<nil>")

		text := ""
		for _, l := range in.logs(name) {
			text += l["text"].(string) + "\n"
		}
		for _, hidden := range append(strings.Split(strings.TrimSpace(pemKey), "\n"), firstPassword, second) {
			if strings.Contains(text, hidden) {
				t.Errorf("the function's log has %q:\n%s", hidden, text)
			}
		}
		for _, shown := range []string{"the password is ***", "raw ***", "cannot log in with ***"} {
			if !strings.Contains(text, shown) {
				t.Errorf("the function's log lacks %q:\n%s", shown, text)
			}
		}
	})
	in.t = t
	in.nowhere(log, firstPassword, "bGluZSBvbmUgb2Yga2V5", "second-password-9120")
	in.stop()
	in.nowhere(log, firstPassword, "bGluZSBvbmUgb2Yga2V5", "second-password-9120")

	// What was stored is there after a restart, and of no use without its key.
	dir := in.dir
	in = start(t, dir)
	if a := in.do("GET", "/fn/secretive-python/", nil); a.json(t)["password"] != firstPassword {
		t.Errorf("after a restart: %v", a)
	}
	in.stop()
	if err := os.Rename(filepath.Join(dir, "secrets.key"), filepath.Join(t.TempDir(), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	in = start(t, dir)
	a := in.do("GET", "/fn/secretive-python/", nil)
	want(t, a, 503, "unavailable")
	if !strings.Contains(string(a.body), "key file of the secrets is missing") || strings.Contains(string(a.body), dir) {
		t.Errorf("without the key: %v", a)
	}
}

// nowhere fails the test if one of the values is in the server's log, in what
// the management API tells, in a file of the data directory, or in what other
// processes can see of any process.
func (in *installation) nowhere(log *lockedBuffer, values ...string) {
	in.t.Helper()
	look := func(where string, data []byte) {
		in.t.Helper()
		for _, v := range values {
			for _, form := range []string{v, base64.StdEncoding.EncodeToString([]byte(v))} {
				if bytes.Contains(data, []byte(form)) {
					in.t.Errorf("%s has %q", where, v)
				}
			}
		}
	}
	look("the server's log", log.bytes())
	err := filepath.WalkDir(in.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // it went away meanwhile
		}
		if data, err := os.ReadFile(path); err == nil {
			look(path, data)
		}
		return nil
	})
	if err != nil {
		in.t.Fatal(err)
	}
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			if data, err := os.ReadFile(p); err == nil {
				look(p, data)
			}
		}
	}
	for _, path := range []string{
		"/v1/secrets", "/v1/functions", "/v1/pool", "/v1/functions/secretive-python", "/v1/functions/secretive-python/versions",
		"/v1/functions/secretive-python/versions/1", "/v1/functions/secretive-python/aliases", "/v1/functions/secretive-python/releases",
		"/v1/functions/secretive-python/instances", "/v1/functions/secretive-python/invocations", "/v1/functions/secretive-python/logs",
		"/v1/functions/secretive-nodejs/invocations", "/v1/functions/secretive-nodejs/logs",
	} {
		if a := in.do("GET", path, nil); a.err == nil { // else the server has stopped
			look(path, a.body)
		}
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

// TestRotateUnderLoad gives a secret new values while calls go on.
func TestRotateUnderLoad(t *testing.T) {
	in := start(t, "")
	in.setSecret("token", "0")
	in.deploy("rotating", "python", `
import os
def handler(event, context):
    return os.environ["TOKEN"]
`, fields{"secrets": fields{"TOKEN": "token"}, "concurrency": 4})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var calls, set atomic.Int64
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				// Once a value was set, no call that begins gets an older one.
				least := set.Load()
				a := in.do("GET", "/fn/rotating/", nil)
				n, err := strconv.ParseInt(string(a.body), 10, 64)
				if a.status != http.StatusOK || err != nil || n < least {
					t.Errorf("a call after value %d was set was answered with %v", least, a)
					return
				}
				calls.Add(1)
			}
		})
	}
	const rotations = 6
	for i := 1; i <= rotations; i++ {
		before := calls.Load()
		in.setSecret("token", strconv.Itoa(i))
		set.Store(int64(i))
		eventually(t, "calls go on", func() bool { return calls.Load() >= before+20 })
	}
	stop()
	wg.Wait()
	// The same value changes nothing: the instances stay.
	waitFor(t, "an instance without a call", func() bool {
		in.do("GET", "/fn/rotating/", nil) // the last rotation may have ended all
		return slices.ContainsFunc(in.pool("rotating").Instances, func(i hearth.Instance) bool {
			return i.State == hearth.InstanceIdle || i.State == hearth.InstancePaused
		})
	})
	in.setSecret("token", strconv.Itoa(rotations))
	if a := in.do("GET", "/fn/rotating/", nil); a.header.Get("Hearth-Start") != "warm" || string(a.body) != strconv.Itoa(rotations) {
		t.Errorf("after the same value was set again: %v", a)
	}
	eventually(t, "the old instances end", func() bool {
		var v struct {
			Instances []struct{ Function, State string }
		}
		decode(t, in.do("GET", "/v1/pool", nil), &v)
		n := 0
		for _, i := range v.Instances {
			if i.Function == "rotating" {
				n++
			}
		}
		return n <= 4
	})
}

// TestRekeyUnderLoad changes the key again and again while new values of a secret
// make new instances start, which need both the key and its values.
func TestRekeyUnderLoad(t *testing.T) {
	in := start(t, "")
	in.setSecret("token", "0")
	in.deploy("rekeyed", "python", `
import os
def handler(event, context):
    return os.environ["TOKEN"]
`, fields{"secrets": fields{"TOKEN": "token"}, "concurrency": 2})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var newest, rekeys atomic.Int64
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := in.do("GET", "/fn/rekeyed/", nil)
				n, err := strconv.ParseInt(string(a.body), 10, 64)
				if a.status != http.StatusOK || err != nil {
					t.Errorf("a call was answered with %v", a)
					return
				}
				newest.Store(max(newest.Load(), n))
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if a := in.do("POST", "/v1/secrets/rekey", nil); a.status != http.StatusOK {
				t.Errorf("the rekey was answered with %v", a)
				return
			}
			rekeys.Add(1)
		}
	})
	for i := int64(1); i <= 8; i++ {
		before := rekeys.Load()
		in.setSecret("token", strconv.FormatInt(i, 10))
		eventually(t, "instances start with the new value while the key changes", func() bool {
			return t.Failed() || newest.Load() >= i && rekeys.Load() > before
		})
	}
	stop()
	wg.Wait()
}
