package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// StreamReport is what Stream found. Times are in milliseconds, memory in bytes.
type StreamReport struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	// Command is the command line, if the caller told it.
	Command string  `json:"command,omitempty"`
	Machine Machine `json:"machine"`
	Driver  string  `json:"driver"`
	// BusyAtRest is as in Report.
	BusyAtRest float64 `json:"busy_at_rest"`

	// First is from when a function writes the first bytes of a response until its
	// client has the first of them; Later is the same for what it writes after a
	// pause. Events is how many there were of both.
	First  Summary `json:"first"`
	Later  Summary `json:"later"`
	Events int     `json:"events"`

	// Bytes passed as a response and as a request, at these rates in 10⁹ bytes a
	// second. PeakBefore is the most memory that the server's process had used
	// before that, and PeakGrowth by how much that grew.
	Bytes       int64   `json:"bytes"`
	ResponseGBs float64 `json:"response_gb_s"`
	RequestGBs  float64 `json:"request_gb_s"`
	PeakBefore  int64   `json:"peak_before_bytes"`
	PeakGrowth  int64   `json:"peak_growth_bytes"`

	Sockets *SocketsReport `json:"sockets,omitempty"`
}

// SocketsReport is what idle WebSockets cost, each.
type SocketsReport struct {
	Sockets int `json:"sockets"`
	// OpenMS is how long it took to open all, one after the other, with one message
	// each way.
	OpenMS float64 `json:"open_ms"`
	// GoBytes is what Go has in use for one in the server: heap and stacks.
	// ServerBytes is by how much the server's resident set grew, GuestBytes the
	// proportional set of all that runs for it.
	GoBytes     int64 `json:"go_bytes,omitempty"`
	ServerBytes int64 `json:"server_bytes"`
	GuestBytes  int64 `json:"guest_bytes"`
	// Dropped is how many did not answer any more after a deploy.
	Dropped int `json:"dropped"`
}

// The targets of streams.
const (
	targetFirstByte = 1.0 // ms
	targetGrowth    = 32.0
)

// Missed tells whether a check that could be made failed its target.
func (r StreamReport) Missed() bool {
	return slices.ContainsFunc(r.Checks(), func(c Check) bool { return c.Verdict == Missed })
}

// Checks compares what was measured with its targets.
func (r StreamReport) Checks() []Check {
	var checks []Check
	first := Check{Name: "first byte at the client after the function wrote it, median", Unit: "ms", Op: "≤", Target: targetFirstByte}
	if r.Events > 0 {
		checks = append(checks, first.of(r.First.P50MS, ""))
	}
	if r.Bytes > 0 {
		growth := Check{
			Name: fmt.Sprintf("growth of the server while %d MB pass each way", r.Bytes/1e6), Unit: "MB", Op: "≤", Target: targetGrowth,
			Raw: fmt.Sprintf("%.1f MB before", float64(r.PeakBefore)/1e6),
		}
		checks = append(checks, growth.of(float64(r.PeakGrowth)/1e6, ""))
	}
	if s := r.Sockets; s != nil {
		dropped := Check{Name: fmt.Sprintf("of %d WebSockets, dropped by a deploy", s.Sockets), Op: "≤", Target: 0}
		checks = append(checks, dropped.of(float64(s.Dropped), ""))
	}
	return checks
}

// Table returns the report for people, as plain text that ends with a newline.
func (r StreamReport) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hearth bench stream: %s\n  %s\n  hearth %s, %s\n", r.Driver, r.Machine.line(), r.Version, r.Date.Format("2006-01-02 15:04 MST"))
	if r.Command != "" {
		fmt.Fprintf(&b, "  %s\n", r.Command)
	}
	if r.BusyAtRest > maxBusyAtRest {
		fmt.Fprintf(&b, "  NOT RELIABLE: something else kept the machine %.0f%% busy; measure again when it is quiet\n", 100*r.BusyAtRest)
	}
	line := func(name string, s Summary) row {
		return row{cells: []string{name, fmt.Sprintf("%.3f", s.P50MS), fmt.Sprintf("%.3f", s.P99MS), fmt.Sprintf("%.3f", s.MaxMS)}}
	}
	if r.Events > 0 {
		b.WriteString("\nEVENTS  (from the function's write to the client's first byte)\n" + layout([]row{
			{cells: []string{"", "p50 ms", "p99 ms", "max ms"}}, line("first of a response", r.First), line("after a pause", r.Later),
		}))
	}
	if r.Bytes > 0 {
		fmt.Fprintf(&b, "\nBODIES  (%d MB each way)\n", r.Bytes/1e6)
		b.WriteString(layout([]row{
			{cells: []string{"response GB/s", "request GB/s", "server's peak MB", "grew by MB"}},
			{cells: []string{
				fmt.Sprintf("%.2f", r.ResponseGBs), fmt.Sprintf("%.2f", r.RequestGBs),
				fmt.Sprintf("%.1f", float64(r.PeakBefore+r.PeakGrowth)/1e6), fmt.Sprintf("%.1f", float64(r.PeakGrowth)/1e6),
			}},
		}))
	}
	if s := r.Sockets; s != nil {
		b.WriteString("\nWEBSOCKETS  (idle, bytes each)\n" + layout([]row{
			{cells: []string{"sockets", "opened in ms", "Go heap and stacks", "server's memory", "guest's memory", "dropped by a deploy"}},
			{cells: []string{
				fmt.Sprint(s.Sockets), fmt.Sprintf("%.0f", s.OpenMS), fmt.Sprint(s.GoBytes), fmt.Sprint(s.ServerBytes), fmt.Sprint(s.GuestBytes), fmt.Sprint(s.Dropped),
			}},
		}))
	}
	if checks := r.Checks(); len(checks) > 0 {
		b.WriteString("\nTARGETS\n" + layout(Report{Checks: checks}.checkRows()))
	}
	return b.String()
}
