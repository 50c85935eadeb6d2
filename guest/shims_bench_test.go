package guest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// BenchmarkShims has 64 callers share some instances of an echo function in
// the real guests, as a pool under load does; an instance gets one or several
// calls at a time. Besides the time it reports the processor's on either side,
// which other work on the machine disturbs less.
func BenchmarkShims(b *testing.B) {
	const callers = 64
	code := b.TempDir()
	for name, text := range map[string]string{
		"sync.py":  "def handler(event, context):\n    return {'statusCode': 200, 'headers': {'content-type': 'text/plain'}, 'body': event['body']}\n",
		"async.py": "async def handler(event, context):\n    return {'statusCode': 200, 'headers': {'content-type': 'text/plain'}, 'body': event['body']}\n",
		"main.mjs": "export const handler = async (event) => ({ statusCode: 200, headers: { 'content-type': 'text/plain' }, body: event.body });\n",
	} {
		if err := os.WriteFile(filepath.Join(code, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	shims := b.TempDir()
	if err := os.CopyFS(shims, Shims()); err != nil {
		b.Fatal(err)
	}
	event := []byte(`{"version":"2.0","routeKey":"$default","rawPath":"/echo","rawQueryString":"","headers":{"host":"127.0.0.1:8080","user-agent":"load/1","content-type":"text/plain","content-length":"5"},"requestContext":{"accountId":"local","apiId":"hearth","domainName":"127.0.0.1","http":{"method":"POST","path":"/echo","protocol":"HTTP/1.1","sourceIp":"127.0.0.1","userAgent":"load/1"},"requestId":"0192f0c1-7f00-7000-8000-000000000000","routeKey":"$default","stage":"$default","time":"26/Nov/2026:04:00:00 +0000","timeEpoch":1795665600000},"isBase64Encoded":false}`)
	for _, bb := range []struct {
		language, interpreter, handler string
		instances, calls               int
	}{
		{"python", "python3", "sync.handler", 8, 1},
		{"python", "python3", "async.handler", 8, 1},
		{"python", "python3", "async.handler", 2, 32},
		{"nodejs", "node", "main.handler", 8, 1},
		{"nodejs", "node", "main.handler", 2, 32},
	} {
		b.Run(fmt.Sprintf("%s-%s-%dx%d", bb.language, bb.handler, bb.instances, bb.calls), func(b *testing.B) {
			interpreter, err := exec.LookPath(bb.interpreter)
			if err != nil {
				b.Skip(err)
			}
			if bb.language == "python" { // the real one, not what finds it
				if out, err := exec.Command(interpreter, "-c", "import sys; print(sys.executable)").Output(); err == nil {
					interpreter = string(bytes.TrimSpace(out))
				}
			}
			free := make(chan *Conn, bb.instances*bb.calls)
			var guests []*exec.Cmd
			for range bb.instances {
				cmd, nc := startGuest(b, Command(bb.language, interpreter, shims))
				c, _, err := Connect(b.Context(), nc, Options{Secret: "secret"})
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Init(b.Context(), Init{Function: "f", Handler: bb.handler, Code: code}); err != nil {
					b.Fatal(err)
				}
				guests = append(guests, cmd)
				for range bb.calls {
					free <- c
				}
			}
			idle := cpuOf(b, guests)
			before := ownCPU(b)
			b.ResetTimer()
			work := make(chan struct{})
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					call := &Call{ID: "0192f0c1-7f00-7000-8000-000000000000", Deadline: time.Now().Add(time.Hour), Kind: hearth.KindHTTP, Event: event, Body: []byte("hello")}
					var sink discard
					for range work {
						c := <-free
						err := c.Invoke(b.Context(), call, &sink)
						free <- c
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
			b.ReportMetric(float64((ownCPU(b)-before).Nanoseconds())/float64(b.N), "host-cpu-ns/op")
			b.ReportMetric(float64((cpuOf(b, guests)-idle).Nanoseconds())/float64(b.N), "guest-cpu-ns/op")
		})
	}
}

func ownCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf returns the processor time of all threads of running processes.
func cpuOf(b *testing.B, guests []*exec.Cmd) (sum time.Duration) {
	for _, cmd := range guests {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", cmd.Process.Pid))
		for _, task := range tasks {
			var ns int64
			text, err := os.ReadFile(task)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := fmt.Sscan(string(text), &ns); err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum
}
