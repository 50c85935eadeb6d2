package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// The targets of the queue.
const (
	targetAccepted = 2000.0 // each second
	targetStartMS  = 20.0
)

// queueFunction tells when it began.
const queueFunction = "import time\ndef handler(event, context):\n    return time.time()\n"

// QueueOptions say how to measure the queue. Zero fields but Server get the defaults
// that their comments name.
type QueueOptions struct {
	// Server was started for this, by StartServer.
	Server *Server
	// Duration is that of each measurement under load, 10 s by default.
	Duration time.Duration
	// Callers is how many make calls at once and wait until each is accepted, 64 by
	// default.
	Callers int
	// Starts is how many calls are made one after the other to see how soon they
	// begin, 200 by default.
	Starts int
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string
}

func (o QueueOptions) withDefaults() QueueOptions {
	o.Duration = cmp.Or(o.Duration, 10*time.Second)
	o.Callers, o.Starts = cmp.Or(o.Callers, 64), cmp.Or(o.Starts, 200)
	o.Version = cmp.Or(o.Version, "unknown")
	return o
}

// Validate checks o. Errors: CodeInvalid.
func (o QueueOptions) Validate() error {
	o = o.withDefaults()
	for _, n := range []struct {
		what        string
		value, most int
	}{{"callers", o.Callers, 1000}, {"calls one after the other", o.Starts, 10_000}} {
		if n.value < 1 || n.value > n.most {
			return hearth.Errorf(hearth.CodeInvalid, "%d %s are out of range", n.value, n.what).WithHint("choose between 1 and %d", n.most)
		}
	}
	// More calls than fit into the queue would be refused.
	if o.Duration < 10*time.Millisecond || o.Duration > 30*time.Second {
		return hearth.Errorf(hearth.CodeInvalid, "a duration of %s is out of range", o.Duration).WithHint("choose between 10ms and 30s")
	}
	return nil
}

// QueueReport is what Queue found. Times are in milliseconds.
type QueueReport struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	// Command is the command line, if the caller told it.
	Command string  `json:"command,omitempty"`
	Machine Machine `json:"machine"`
	// Syncs is how often in a second 4 KiB were appended to a file in the data
	// directory and had reached the disk, one after the other.
	Syncs float64 `json:"fsyncs_per_second"`
	// Accepted is how many calls a second were accepted from Callers, for later;
	// Accept is how long each of them waited for that.
	Callers  int     `json:"callers"`
	Accepted float64 `json:"accepted_per_second"`
	Accept   Summary `json:"accept"`
	// Ran is how many calls a second were accepted and run, of a function that does
	// nothing.
	Ran float64 `json:"ran_per_second"`
	// Start is from the moment when the server begins to store a call to the one when
	// the handler of an idle instance begins.
	Start Summary `json:"start"`
}

// Missed tells whether a check failed its target.
func (r QueueReport) Missed() bool {
	for _, c := range r.Checks() {
		if c.Verdict == Missed {
			return true
		}
	}
	return false
}

// Checks compares what was measured with its targets.
func (r QueueReport) Checks() []Check {
	accepted := Check{Name: "accepted each second, durable", Op: "≥", Target: targetAccepted, Raw: fmt.Sprintf("%.2f for each of %.0f fsyncs", r.Accepted/r.Syncs, r.Syncs)}
	start := Check{Name: "acceptance to start, p50", Unit: "ms", Op: "≤", Target: targetStartMS, Raw: fmt.Sprintf("p99 %.1f ms", r.Start.P99MS)}
	return []Check{accepted.of(r.Accepted, ""), start.of(r.Start.P50MS, "")}
}

// Table returns the report for people, as plain text that ends with a newline.
func (r QueueReport) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hearth bench queue\n  %s\n  hearth %s, %s\n", r.Machine.line(), r.Version, r.Date.Format("2006-01-02 15:04 MST"))
	if r.Command != "" {
		fmt.Fprintf(&b, "  %s\n", r.Command)
	}
	number := func(f float64) string { return fmt.Sprintf("%.0f", f) }
	line := func(what, rate string, s Summary) row {
		cells := []string{what, rate}
		if s != (Summary{}) {
			cells = append(cells, fmt.Sprintf("%.2f", s.P50MS), fmt.Sprintf("%.2f", s.P99MS), fmt.Sprintf("%.2f", s.MaxMS))
		}
		return row{cells: cells}
	}
	b.WriteString("\n" + layout([]row{
		{cells: []string{"", "each second", "p50 ms", "p99 ms", "max ms"}},
		line("fsync of 4 KiB, one after the other", number(r.Syncs), Summary{}),
		line(fmt.Sprintf("accepted, of %d callers", r.Callers), number(r.Accepted), r.Accept),
		line("accepted and run", number(r.Ran), Summary{}),
		line("from acceptance to start", "-", r.Start),
	}))
	b.WriteString("\nTARGETS\n" + layout(Report{Checks: r.Checks()}.checkRows()))
	return b.String()
}

// Queue measures how fast a server accepts asynchronous calls and how soon they begin.
// It writes one line for each step to progress. The function that it deploys is
// deleted again. Errors: CodeInvalid for bad options, CodeCanceled or CodeTimeout when
// ctx ends, CodeUnavailable when the server does not answer, and what deploying may
// return.
func Queue(ctx context.Context, o QueueOptions, progress io.Writer) (r QueueReport, err error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return r, err
	}
	r = QueueReport{Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command, Machine: describeMachine(), Callers: o.Callers}
	c, err := client.New(o.Server.URL, client.WithUserAgent("hearth-bench"), client.WithHTTPClient(&http.Client{
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: o.Callers},
	}))
	if err != nil {
		return r, err
	}
	defer c.Close()
	if r.Syncs, err = syncs(ctx, o.Server.DataDir, min(o.Duration, 2*time.Second)); err != nil {
		return r, err
	}
	fmt.Fprintf(progress, "fsync  %.0f/s\n", r.Syncs)
	const name = "bench-queue"
	deploy := func() error {
		_, _, err := c.PutFunction(ctx, name, hearth.Config{Runtime: "python"}, client.Code{Files: map[string]string{"main.py": queueFunction}}, 0)
		return err
	}
	drop := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return c.DeleteFunction(ctx, name, 0)
	}
	// With a function of its own for each part, what is left of one part takes no part
	// in the next.
	for _, measure := range []func() error{
		func() (err error) { r.Start, err = starts(ctx, c, name, o.Starts); return err },
		func() (err error) { r.Accepted, r.Accept, err = acceptAll(ctx, c, name, o, time.Hour); return err },
		func() (err error) { r.Ran, err = runAll(ctx, c, name, o); return err },
	} {
		if err = deploy(); err == nil {
			err = measure()
		}
		if dropErr := drop(); err == nil {
			err = dropErr
		}
		if err != nil {
			return r, wrapContext(ctx, err)
		}
	}
	fmt.Fprintf(progress, "start  p50 %.2f ms, p99 %.2f ms\naccept %.0f/s, p50 %.2f ms, p99 %.2f ms\nrun    %.0f/s\n", r.Start.P50MS, r.Start.P99MS, r.Accepted, r.Accept.P50MS, r.Accept.P99MS, r.Ran)
	return r, nil
}

// syncs returns how often in a second a file in dir can grow by 4 KiB that have
// reached the disk.
func syncs(ctx context.Context, dir string, d time.Duration) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "bench-sync"))
	if err != nil {
		return 0, hearth.Errorf(hearth.CodeUnavailable, "measure the disk: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // the directory is removed too
	defer f.Close()
	block := make([]byte, 4096)
	n, begin := 0, time.Now()
	for ; time.Since(begin) < d && ctx.Err() == nil; n++ {
		if _, err = f.Write(block); err == nil {
			err = f.Sync()
		}
		if err != nil {
			return 0, hearth.Errorf(hearth.CodeUnavailable, "measure the disk: %w", err)
		}
	}
	return float64(n) / time.Since(begin).Seconds(), ctx.Err()
}

// starts makes calls one after the other, each to an idle instance.
func starts(ctx context.Context, c *client.Client, name string, n int) (Summary, error) {
	var took []float64
	for range n {
		call, _, err := c.InvokeAsync(ctx, name, nil, client.AsyncOptions{})
		if err == nil {
			call, err = c.AsyncCall(ctx, call.ID, time.Minute)
		}
		if err != nil {
			return Summary{}, err
		}
		var began float64
		if call.Result == nil || json.Unmarshal(call.Result.Value, &began) != nil {
			return Summary{}, hearth.Errorf(hearth.CodeUnavailable, "an asynchronous call did not succeed: it is %s", call.State)
		}
		took = append(took, began*1e3-float64(call.AcceptedAt.UnixMicro())/1e3)
	}
	return summarize(took), nil
}

// acceptAll has callers make calls that run later than anybody waits.
func acceptAll(ctx context.Context, c *client.Client, name string, o QueueOptions, delay time.Duration) (rate float64, each Summary, err error) {
	var mu sync.Mutex
	var took []float64
	var failed atomic.Pointer[error]
	begin := time.Now()
	var wg sync.WaitGroup
	for range o.Callers {
		wg.Go(func() {
			var mine []float64
			for time.Since(begin) < o.Duration && failed.Load() == nil {
				asked := time.Now()
				if _, _, err := c.InvokeAsync(ctx, name, nil, client.AsyncOptions{Delay: delay}); err != nil {
					failed.Store(&err)
					break
				}
				mine = append(mine, float64(time.Since(asked))/float64(time.Millisecond))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return 0, each, *e
	}
	return float64(len(took)) / time.Since(begin).Seconds(), summarize(took), nil
}

// runAll has callers make calls that run at once, and waits until all have.
func runAll(ctx context.Context, c *client.Client, name string, o QueueOptions) (float64, error) {
	begin := time.Now()
	if _, _, err := acceptAll(ctx, c, name, o, 0); err != nil {
		return 0, err
	}
	for {
		st, err := c.Queue(ctx)
		if err != nil {
			return 0, err
		}
		for _, f := range st.Functions {
			if f.Function == name && f.Queued+f.Running == 0 {
				return float64(f.Succeeded) / time.Since(begin).Seconds(), nil
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
}
