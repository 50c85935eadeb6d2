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
		if len(fields) < 9 || !strings.HasPrefix(fields[0], "cpu") {
			break
		}
		core, err := strconv.Atoi(fields[0][len("cpu"):])
		if err != nil || known && !mine.IsSet(core) {
			continue // the sum of all, or not ours
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
