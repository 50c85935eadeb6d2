package native

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

// BenchmarkCreate measures Create and Destroy, and reports the medians of the
// phases in µs: clone until the helper's main, the assembly of the sandbox, the
// start of the guest's process, and its way back to Create's caller. The server
// is as large as a real one: a clone copies its page tables.
func BenchmarkCreate(b *testing.B) {
	ballast := make([]byte, 80<<20)
	for i := 0; i < len(ballast); i += os.Getpagesize() {
		ballast[i] = 1
	}
	for _, policy := range []hearth.Egress{hearth.EgressNone, hearth.EgressInternet} {
		b.Run(string(policy), func(b *testing.B) {
			d := newDriver(b)
			names := []string{"clone", "assemble", "start", "return", "create", "destroy"}
			took := make([][]time.Duration, len(names))
			for b.Loop() {
				began := monotonic()
				sb, err := d.Create(b.Context(), driver.Spec{
					ID: "bench", Runtime: "provided", Command: []string{"/bin/sleep", "1000"}, Egress: policy,
				})
				if hearth.ErrorCode(err) == hearth.CodeUnsupported {
					b.Skip(err)
				}
				if err != nil {
					b.Fatal(err)
				}
				created := monotonic()
				if err := sb.Destroy(b.Context()); err != nil {
					b.Fatal(err)
				}
				p := sb.(*sandbox).phases
				for i, v := range []time.Duration{p[0] - began, p[1] - p[0], p[2] - p[1], created - p[2], created - began, monotonic() - created} {
					took[i] = append(took[i], v)
				}
			}
			for i, name := range names {
				slices.Sort(took[i])
				b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), name+"-µs")
			}
		})
	}
	_ = ballast[0]
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// BenchmarkColdStart measures a guest for Python until it has answered HELLO,
// executed and forked, and what ten of them weigh.
func BenchmarkColdStart(b *testing.B) {
	for _, kind := range []string{"executed", "forked"} {
		b.Run(kind, func(b *testing.B) {
			d := newDriver(b)
			runtime := pythons(b, d)[0]
			if kind == "executed" {
				d.forks.close()
			} else {
				warmUp(b, d, runtime)
			}
			n := 0
			start := func() (driver.Sandbox, func()) {
				n++
				sb, err := d.Create(b.Context(), driver.Spec{
					ID: fmt.Sprintf("b%d", n), Runtime: runtime, Env: map[string]string{"HEARTH_SECRET": "s3cret"},
				})
				if err != nil {
					b.Fatal(err)
				}
				c, err := sb.Dial(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := greet(c); err != nil {
					b.Fatal(err)
				}
				return sb, func() {
					_ = c.Close()
					if err := sb.Destroy(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			var took, cpu []time.Duration
			for b.Loop() {
				began := monotonic()
				sb, end := start()
				took = append(took, monotonic()-began)
				b.StopTimer()
				st, err := sb.Stats(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				cpu = append(cpu, st.CPU)
				end()
				b.StartTimer()
			}
			slices.Sort(took)
			slices.Sort(cpu)
			b.ReportMetric(float64(took[0].Microseconds()), "least-µs")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-µs")
			b.ReportMetric(float64(cpu[len(cpu)/2].Microseconds()), "cpu-µs")

			var running []driver.Sandbox
			weigh := func() (pss, charged int64) { // with the fork server, if there is one
				for _, sb := range running {
					st, err := sb.Stats(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					pss, charged = pss+st.PSS, charged+st.Memory
				}
				if z := current(d, runtime); z != nil {
					pss += cgroup.PSS(z.process.Pid)
				}
				return pss, charged
			}
			before, _ := weigh()
			for range 10 {
				sb, end := start()
				defer end()
				running = append(running, sb)
			}
			after, charged := weigh()
			b.ReportMetric(float64((after-before)/10>>10), "pss-KiB")
			b.ReportMetric(float64(charged/10>>10), "charged-KiB")
		})
	}
}
