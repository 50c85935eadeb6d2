package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/driver"
)

// BenchmarkColdStart compares, one after the other on the same root file system
// and with the same command, this driver with the runtime's own run command and
// its default configuration: from the start to the first byte of output, in ms
// (medians), and the ratio of the two.
func BenchmarkColdStart(b *testing.B) {
	for _, dialect := range []Dialect{Runc, GVisor} {
		b.Run(string(dialect), func(b *testing.B) {
			root, command := benchRoot(b)
			d := newDriver(b, dialect, b.TempDir(), fmt.Sprintf("bench-%d", os.Getpid()))
			defer d.Close()
			if err := d.usable(); err != nil {
				b.Skip(err)
			}
			var plain, ours, destroy []time.Duration
			for b.Loop() {
				plain = append(plain, plainRun(b, d, root, command))
				took, freed := driverRun(b, d, root, command)
				ours, destroy = append(ours, took), append(destroy, freed)
			}
			ms := func(d []time.Duration) float64 {
				slices.Sort(d)
				return float64(d[len(d)/2].Microseconds()) / 1000
			}
			b.ReportMetric(ms(plain), "plain-ms")
			b.ReportMetric(ms(ours), "driver-ms")
			b.ReportMetric(ms(ours)/ms(plain), "ratio")
			b.ReportMetric(ms(destroy), "destroy-ms")
		})
	}
}

// benchRoot returns a root file system and a command in it that writes
// something: Python of an image if the tests have some, else a small program.
func benchRoot(b *testing.B) (string, []string) {
	if img, ok := testImage(b, "python"); ok {
		return img.dir, []string{img.interpreter, "-I", "-S", "-c", "print(1, flush=True)"}
	}
	root := b.TempDir()
	build := exec.CommandContext(b.Context(), "go", "build", "-o", filepath.Join(root, "testguest"), "../drivertest/testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for _, dir := range []string{"proc", "dev", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	return root, []string{"/testguest", "id"}
}

// plainRun runs the runtime by hand and returns the time to the first byte.
func plainRun(b *testing.B, d *Driver, root string, command []string) time.Duration {
	b.Helper()
	bundle := b.TempDir()
	spec := exec.CommandContext(b.Context(), d.binary, "spec")
	spec.Dir = bundle
	if out, err := spec.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	file := filepath.Join(bundle, "config.json")
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		b.Fatal(err)
	}
	config["root"] = map[string]any{"path": root, "readonly": true}
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, command
	if text, err = json.Marshal(config); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		b.Fatal(err)
	}
	state := filepath.Join(bundle, "state")
	b.Cleanup(func() { _ = unix.Unmount(filepath.Join(state, "null-netns"), unix.MNT_DETACH) })
	args := []string{"--root", state}
	if d.dialect == GVisor {
		args = append(args, "--platform=systrap", "--network=none", "--ignore-cgroups")
	}
	cmd := exec.CommandContext(b.Context(), d.binary, append(args, "run", "--bundle", bundle, fmt.Sprintf("plain-%d", time.Now().UnixNano()))...)
	var errs lockedBuffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_, err = out.Read(make([]byte, 1))
	took := time.Since(start)
	if werr := cmd.Wait(); err != nil || werr != nil {
		b.Fatalf("%v, %v: %s", err, werr, errs.String())
	}
	return took
}

// driverRun does the same with the driver.
func driverRun(b *testing.B, d *Driver, root string, command []string) (took, freed time.Duration) {
	b.Helper()
	out := &firstByte{came: make(chan struct{})}
	spec := driver.Spec{ID: "bench", Runtime: driver.Provided, Command: command, Stdout: out}
	d.find = func(context.Context, string) (image, error) { return image{dir: root, release: func() {}}, nil }
	start := time.Now()
	s, err := d.Create(b.Context(), spec)
	if err != nil {
		b.Fatal(err)
	}
	<-out.came
	took = time.Since(start)
	if x, err := s.Wait(b.Context()); err != nil || x.Code != 0 {
		b.Fatalf("%+v, %v", x, err)
	}
	start = time.Now()
	if err := s.Destroy(b.Context()); err != nil {
		b.Fatal(err)
	}
	return took, time.Since(start)
}

// firstByte closes came on the first write.
type firstByte struct {
	once sync.Once
	came chan struct{}
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.came) })
	return len(p), nil
}
