package native

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
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
