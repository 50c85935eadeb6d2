package docker_test

import (
	"context"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/drivertest"
	"github.com/hearthrun/hearth/driver/native"
)

func BenchmarkColdStart(b *testing.B) {
	host := engine(b)
	drivertest.BenchmarkColdStart(b, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver {
		return newDriver(t, host, dir, owner)
	}})
}

// BenchmarkAgainstRun compares the time until a program's first word with that
// of docker run of the same image and program, in turn. It reports both medians
// in ms and their ratio.
func BenchmarkAgainstRun(b *testing.B) {
	host := engine(b)
	cli, err := exec.LookPath("docker")
	if err != nil {
		b.Skip("there is no docker command: ", err)
	}
	d := newDriver(b, host, b.TempDir(), "bench")
	b.Cleanup(func() { d.Close() })
	spec := spec(b, "bench")
	spec.Command = append(spec.Command, "id")
	run := []string{"--host", host, "run", "--rm", "--volume", spec.Mounts[0].Source + ":/testguest:ro", "hearth-test/bare:1"}
	var ours, plain []time.Duration
	for b.Loop() {
		ours = append(ours, firstWord(b, d, spec))
		began := time.Now()
		cmd := exec.CommandContext(b.Context(), cli, append(run, spec.Command...)...)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			b.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			b.Fatalf("docker run: %v", err)
		}
		plain = append(plain, time.Since(began))
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			b.Fatalf("docker run: %v", err)
		}
	}
	report(b, ours, plain, "run")
}

// BenchmarkWarm measures a round trip to a guest that runs, as a warm call makes
// one, and the same with the native driver in turn.
func BenchmarkWarm(b *testing.B) {
	host := engine(b)
	n, err := native.New(native.Config{Dir: filepath.Join(b.TempDir(), "native"), Owner: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	d := newDriver(b, host, b.TempDir(), "bench")
	b.Cleanup(func() { n.Close(); d.Close() })
	var conns []net.Conn
	for _, d := range []driver.Driver{d, n} {
		s, err := d.Create(b.Context(), spec(b, "bench"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = s.Destroy(context.Background()) })
		c, err := s.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, c)
	}
	took := make([][]time.Duration, len(conns))
	for b.Loop() {
		for i, c := range conns {
			began := time.Now()
			if err := echo(c); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(began))
		}
	}
	report(b, took[0], took[1], "native")
}

func report(b *testing.B, ours, other []time.Duration, name string) {
	b.Helper()
	slices.Sort(ours)
	slices.Sort(other)
	mine, theirs := ours[len(ours)/2], other[len(other)/2]
	b.ReportMetric(float64(mine.Microseconds())/1000, "ms/docker")
	b.ReportMetric(float64(theirs.Microseconds())/1000, "ms/"+name)
	b.ReportMetric(float64(mine)/float64(theirs), "ratio")
	b.ReportMetric(0, "ns/op")
}

// firstWord measures from Create to the first byte of output.
func firstWord(b *testing.B, d driver.Driver, spec driver.Spec) time.Duration {
	b.Helper()
	first := make(chan struct{})
	var once sync.Once
	spec.Stdout = writer(func() { once.Do(func() { close(first) }) })
	began := time.Now()
	s, err := d.Create(b.Context(), spec)
	if err != nil {
		b.Fatal(err)
	}
	<-first
	took := time.Since(began)
	if err := s.Destroy(context.Background()); err != nil {
		b.Fatal(err)
	}
	return took
}

type writer func()

func (w writer) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}
