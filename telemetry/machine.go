package telemetry

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPUTimes returns the time the cores that this process may use were busy and the
// time there was, in ticks of a hundredth of a second, since the machine was
// started. Both are 0 if the kernel does not tell.
func CPUTimes() (busy, total float64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	var mine unix.CPUSet
	known := unix.SchedGetaffinity(0, &mine) == nil
	for line := range strings.Lines(string(b)) {
		// cpuN user nice system idle iowait irq softirq steal, then guest times that
		// are part of user.
		fields := strings.Fields(line)
		rest, ok := strings.CutPrefix(line, "cpu")
		if !ok || len(fields) < 9 {
			break
		}
		core, err := strconv.Atoi(strings.Fields(rest)[0])
		if strings.HasPrefix(rest, " ") || err != nil || known && !mine.IsSet(core) {
			continue // that of all, or of others
		}
		for i, f := range fields[1:9] {
			n, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, 0
			}
			if total += n; i != 3 && i != 4 {
				busy += n
			}
		}
	}
	return busy, total
}
