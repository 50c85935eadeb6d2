package bench

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/hearthrun/hearth"
)

const (
	// answerGrace is how long a response may take beyond the end of its cell.
	answerGrace = 30 * time.Second
	// maxFailures ends a connection's work: the cell is invalid already.
	maxFailures = 10
	// refusalPause is after what time a caller that was refused tries again: ten
	// times earlier than Retry-After asks for at least, and not so early that the
	// generator, which shares the machine, is the greatest load on it.
	refusalPause = 100 * time.Millisecond
	// Latencies are kept in microseconds' precision between these bounds.
	minLatency = int64(time.Microsecond)
	maxLatency = int64(10 * time.Minute)
)

// target is what the generator calls: always the same request, with a known
// answer.
type target struct {
	name    string
	addr    string // IP and port, loopback
	request []byte
	answer  []byte // the only right body
	// sheds: to be refused for too many calls (429) is no failure.
	sheds bool
}

// newTarget makes a target that posts body to the URL. Errors: CodeInvalid for
// anything that is not plain HTTP to a loopback address.
func newTarget(ctx context.Context, name, rawURL string, body, answer []byte) (target, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return target{}, hearth.Errorf(hearth.CodeInvalid, "%q is not a URL", rawURL).
			WithHint("write for example http://127.0.0.1:8080")
	}
	addr, err := loopback(ctx, u)
	if err != nil {
		return target{}, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		u.RequestURI(), u.Host, len(body))
	b.Write(body)
	return target{name: name, addr: addr, request: b.Bytes(), answer: answer}, nil
}

// loopback returns the address to dial for u, resolved once. The generator
// talks to nothing but this machine: load on someone else's is an attack.
func loopback(ctx context.Context, u *url.URL) (string, error) {
	refuse := func(what string) error {
		return hearth.Errorf(hearth.CodeInvalid, "cannot measure %s: %s", u.Redacted(), what).
			WithHint("run hearth bench on the server's machine, for example with --url http://127.0.0.1:8080")
	}
	if u.Scheme != "http" {
		return "", refuse("only http:// is measured")
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	ip := net.ParseIP(u.Hostname())
	if ip == nil {
		ips, err := net.DefaultResolver.LookupIP(ctx, "ip", u.Hostname())
		if err != nil || len(ips) == 0 {
			return "", refuse("its host name is not known")
		}
		ip = ips[0]
	}
	if !ip.IsLoopback() {
		return "", refuse("load goes only to a loopback address")
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// sample is the result of one cell in one round.
type sample struct {
	requests   int64 // right answers within the measured time
	cold       int64 // of those, answered by an instance made for them
	reconnects int64 // connections the server closed in good order
	refused    int64 // of a target that sheds, within the measured time
	failures   int64 // anything else, also during the warm-up
	problem    string
	throughput float64 // right answers per second
	latencies  *hdrhistogram.Histogram
}

// generate puts a closed-loop load of n keep-alive connections on t: each sends
// its next request when the answer to the last is complete. It calls for warm
// first, then measures for d. A failure of the target is told in the sample;
// the error is that of ctx.
func generate(ctx context.Context, t target, n int, warm, d time.Duration) (sample, error) {
	workers, problem, err := connect(ctx, t, n)
	defer hangUp(workers)
	if err != nil || problem != "" {
		return sample{failures: 1, problem: problem}, err
	}
	begin := time.Now()
	from, until := begin.Add(warm), begin.Add(warm+d)
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() { w.run(ctx, from, until) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	return collect(workers, d), nil
}

// connect opens n connections to t. hangUp them, also on an error, which is that
// of ctx.
func connect(ctx context.Context, t target, n int) (workers []*worker, problem string, err error) {
	for range n {
		w := &worker{target: t, latencies: hdrhistogram.New(minLatency, maxLatency, 3)}
		workers = append(workers, w)
		if err := w.dial(ctx); err != nil {
			if ctx.Err() != nil {
				return workers, "", ctx.Err()
			}
			return workers, "cannot connect: " + err.Error(), nil
		}
	}
	return workers, "", nil
}

func hangUp(workers []*worker) {
	for _, w := range workers {
		w.hangUp()
	}
}

// collect adds up what the connections found in d.
func collect(workers []*worker, d time.Duration) sample {
	total := sample{latencies: hdrhistogram.New(minLatency, maxLatency, 3)}
	for _, w := range workers {
		total.requests += w.requests
		total.cold += w.cold
		total.reconnects += w.reconnects
		total.refused += w.refused
		total.failures += w.failures
		if total.problem == "" {
			total.problem = w.problem
		}
		total.latencies.Merge(w.latencies)
	}
	if total.requests == 0 && total.problem == "" {
		total.problem = "no request was answered in time"
	}
	total.throughput = float64(total.requests) / d.Seconds()
	return total
}

// worker is one connection of a cell. Its fields belong to run until that has
// returned.
type worker struct {
	target    target
	conn      net.Conn
	unwatch   func() bool
	deadline  time.Time // of every answer
	responses *responseReader

	requests, cold, reconnects, refused, failures int64

	problem   string
	latencies *hdrhistogram.Histogram
}

// dial connects; the end of ctx interrupts the connection from then on.
func (w *worker) dial(ctx context.Context) error {
	w.hangUp()
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", w.target.addr)
	if err != nil {
		return err
	}
	w.conn = conn
	w.unwatch = context.AfterFunc(ctx, func() { conn.Close() })
	if w.responses == nil {
		w.responses = newResponseReader(conn, false)
	} else {
		w.responses.reset(conn)
	}
	return nil
}

func (w *worker) hangUp() {
	if w.conn != nil {
		w.unwatch()
		w.conn.Close()
		w.conn = nil
	}
}

// run calls the target until the time is over.
func (w *worker) run(ctx context.Context, from, until time.Time) {
	defer w.hangUp()
	w.expect(until.Add(answerGrace))
	for start := time.Now(); start.Before(until); {
		end, outcome := w.step(ctx, start)
		if outcome == stopped || outcome == failed && end.After(until) {
			return
		}
		if !end.Before(from) && !end.After(until) {
			w.record(outcome, end.Sub(start))
		}
		start = end
		if outcome == refused {
			if pause(ctx, refusalPause) != nil {
				return
			}
			start = time.Now()
		}
		if w.conn == nil {
			if !w.redial(ctx) {
				return
			}
			start = time.Now()
		}
	}
}

// outcome is what became of a call.
type outcome int

const (
	answered outcome = iota
	refused
	failed
	stopped // by the end of ctx, or after too many failures
)

// step makes one call that was wanted at start, and takes note of a failure. It
// hangs up if the connection cannot be used for another.
func (w *worker) step(ctx context.Context, start time.Time) (end time.Time, _ outcome) {
	again, err := w.call()
	end = time.Now()
	if ctx.Err() != nil {
		return end, stopped
	}
	if !again {
		w.hangUp()
	}
	var status *statusError
	switch {
	case err == nil:
		if !again {
			w.reconnects++
		}
		return end, answered
	case w.target.sheds && errors.As(err, &status) && status.status == http.StatusTooManyRequests:
		return end, refused
	}
	w.fail(describe(err, end.Sub(start)))
	if w.failures >= maxFailures {
		return end, stopped
	}
	return end, failed
}

// record counts a call that belongs to the measured time.
func (w *worker) record(o outcome, d time.Duration) {
	switch o {
	case answered:
		w.requests++
		if w.responses.r.cold {
			w.cold++
		}
		// A value above the bounds would be an answer after more than
		// answerGrace, which the deadline excludes.
		_ = w.latencies.RecordValue(int64(d))
	case refused:
		w.refused++
	}
}

func (w *worker) fail(problem string) {
	w.failures++
	w.problem = cmp.Or(w.problem, problem)
}

// expect bounds every answer from now on.
func (w *worker) expect(deadline time.Time) {
	w.deadline = deadline
	_ = w.conn.SetDeadline(deadline)
}

// redial connects again. It tells whether that worked.
func (w *worker) redial(ctx context.Context) bool {
	if err := w.dial(ctx); err != nil {
		if ctx.Err() == nil {
			w.fail("cannot connect again: " + err.Error())
		}
		return false
	}
	w.expect(w.deadline)
	return true
}

// call sends one request and checks its answer. again tells whether the
// connection can be used for another.
func (w *worker) call() (again bool, err error) {
	if _, err := w.conn.Write(w.target.request); err != nil {
		return false, err
	}
	r, err := w.responses.read()
	if err != nil {
		return false, err
	}
	return !r.close, check(r, w.target.answer)
}

// check tells whether r is the right answer.
func check(r *response, answer []byte) error {
	if r.status < 200 || r.status > 299 {
		return &statusError{r.status, strings.TrimSpace(string(clip(r.body)))}
	}
	if !bytes.Equal(r.body, answer) {
		return fmt.Errorf("wrong body %q", clip(r.body))
	}
	return nil
}

// statusError is an answer that is no success.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// describe words a failed call.
func describe(err error, after time.Duration) string {
	var ne net.Error
	switch {
	case errors.Is(err, io.EOF):
		return "the connection was closed instead of an answer"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed within an answer"
	case errors.As(err, &ne) && ne.Timeout():
		return fmt.Sprintf("no answer after %s", after.Round(time.Millisecond))
	}
	return err.Error()
}
