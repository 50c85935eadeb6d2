package telemetry

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// CPUTimes returns the time all cores of the machine were busy and the time there
// was, in ticks of a hundredth of a second, since it was started. Both are 0 if the
// kernel does not tell.
func CPUTimes() (busy, total float64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	// cpu user nice system idle iowait irq softirq steal, then guest times that
	// are part of user.
	for i, f := range strings.Fields(string(line)) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 {
			continue // the name
		}
		if total += n; i != 4 && i != 5 {
			busy += n
		}
	}
	return busy, total
}
