package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// silence is a standard input on which nothing ever comes.
type silence struct{ reading, end chan struct{} }

func (s *silence) Read([]byte) (int, error) {
	select {
	case s.reading <- struct{}{}:
	default:
	}
	<-s.end
	return 0, io.EOF
}

// TestInterruptedInput: a command that waits for input which does not come ends when it
// is interrupted, be it standard input or a named pipe.
func TestInterruptedInput(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	}))
	defer s.Close()
	for _, command := range []string{
		"invoke hello --data @FILE", "invoke hello --event FILE", "invoke hello --event example:http --data @FILE",
		"send orders --data @FILE", "send orders --lines --data @FILE",
		"secret set db --from-file FILE", "pool simulate --trace FILE",
	} {
		for _, from := range []string{"standard input", "pipe", "pipe without a writer"} {
			t.Run(command+" of "+from, func(t *testing.T) {
				in := &silence{make(chan struct{}, 1), make(chan struct{})}
				defer close(in.end)
				reading, args := in.reading, strings.Replace(strings.Replace(command, "@FILE", "-", 1), "FILE", "-", 1)
				if from != "standard input" {
					pipe := filepath.Join(t.TempDir(), "pipe")
					if err := syscall.Mkfifo(pipe, 0o600); err != nil {
						t.Fatal(err)
					}
					args = strings.Replace(command, "FILE", pipe, 1)
					reading = make(chan struct{})
					if from == "pipe" {
						go func() { // an open ends when the other end is opened
							w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
							close(reading)
							<-in.end
							if err != nil || w.Close() != nil {
								t.Error(err)
							}
						}()
					} else {
						close(reading) // nothing tells when it waits
					}
				}
				var out, errs bytes.Buffer
				a := &app{stdin: in, stdout: &out, stderr: &errs, getenv: func(name string) string {
					return map[string]string{"HEARTH_URL": s.URL}[name]
				}}
				ctx, interrupt := context.WithCancel(t.Context())
				defer interrupt()
				exit := make(chan int, 1)
				go func() { exit <- a.run(ctx, strings.Fields(args)) }()
				limit := time.After(30 * time.Second)
				select {
				case <-reading:
				case code := <-exit:
					t.Fatalf("exit code %d before it was interrupted: %s", code, errs.String())
				case <-limit:
					t.Fatal("it does not read")
				}
				interrupt()
				select {
				case code := <-exit:
					if code != hearth.CodeCanceled.ExitCode() || !strings.Contains(errs.String(), "error: interrupted\n") {
						t.Errorf("exit code %d: %s", code, errs.String())
					}
				case <-limit:
					t.Fatal("it goes on waiting")
				}
			})
		}
	}
}
