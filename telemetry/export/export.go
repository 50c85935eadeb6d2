// Package export sends the log lines of functions to somebody else's system: to a
// collector by OTLP, or to a syslog server. Nothing in it makes a call or another line
// wait: what the receiver does not take in time is dropped and counted.
package export

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

const (
	// queueBytes is how much may wait for the receiver, of all functions. One may have a
	// third of what is free: alone a quarter of it all, and however many there are, there
	// is room for another.
	queueBytes = 16 << 20
	// turnBytes is how much of one function is taken before others have their turn.
	turnBytes = 32 << 10
	// batchLines and batchBytes bound what is sent at once, gatherFor is how long a line
	// waits for others.
	batchLines = 1000
	batchBytes = 1 << 20
	gatherFor  = 200 * time.Millisecond
	// sendTimeout bounds one attempt to send, batchTimeout all attempts with one batch: the
	// queue is the newest lines that there is room for, not the oldest.
	sendTimeout  = 10 * time.Second
	batchTimeout = 5 * time.Minute
	// maxRefusals is how often parts of one function's lines in a batch are divided to find
	// out which of them the receiver refuses.
	maxRefusals = 32
	// firstBackoff and lastBackoff are the pauses between attempts, which double.
	firstBackoff = 500 * time.Millisecond
	lastBackoff  = 30 * time.Second
	// warnEvery is the shortest time between two complaints in the log.
	warnEvery = time.Minute
)

// Options of an Exporter.
type Options struct {
	// URL is the receiver: http://HOST:4318 or https:// for OTLP, with a path below which
	// there is v1/logs; syslog+udp://HOST:514 or syslog+tcp://HOST:514 for syslog.
	URL string
	// Headers are sent with each OTLP request, such as a key of the receiver.
	Headers map[string]string
	// Version is Hearth's own.
	Version string
	// CloseTimeout is how long Close waits for what is still to be sent; default 5 s.
	CloseTimeout time.Duration
	// Logger gets told when the receiver takes nothing, and when it does again.
	Logger *slog.Logger
}

// sender sends lines somewhere. It is used by one goroutine.
type sender interface {
	// send sends lines once. With an error none of them counts as sent; if it is a
	// refusal it is in vain to send them again. It returns how many of them the receiver
	// has not taken.
	send(ctx context.Context, lines []hearth.LogLine) (rejected int, err error)
	close()
}

// refusal is an error of a receiver that says no, and would again.
type refusal struct {
	error
	all bool // it would refuse any lines, as a key or the address is wrong
}

func (r refusal) Unwrap() error { return r.error }

// busy is an error of a receiver that says when it wants to be asked again.
type busy struct {
	error
	after time.Duration
}

func (b busy) Unwrap() error { return b.error }

// Exporter sends lines in the background. Its methods may be called from many goroutines.
type Exporter struct {
	// Constant after New.
	sender sender
	url    string
	log    *slog.Logger
	wait   time.Duration
	kick   chan struct{} // something is queued; holds at most one token
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed when the goroutine has ended

	dropped atomic.Int64

	mu      sync.Mutex
	closed  bool
	waiting map[string]*queue // by function; none is empty
	turns   []*queue          // the same, the next one first
	bytes   int64             // of all
}

// queue has what waits of one function.
type queue struct {
	function string
	lines    []hearth.LogLine
	bytes    int64
}

// New makes an exporter. It does not ask the receiver anything. The caller must Close it.
// Errors: CodeInvalid for a URL it does not understand.
func New(o Options) (*Exporter, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // the URL may hold a password
		}
		return nil, invalid("the URL cannot be read: %w", err)
	}
	e := &Exporter{
		url: u.Redacted(), log: o.Logger, wait: o.CloseTimeout,
		kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), waiting: map[string]*queue{},
	}
	if e.wait == 0 {
		e.wait = 5 * time.Second
	}
	switch u.Scheme {
	case "http", "https":
		e.sender, err = newOTLP(u, o.Headers, o.Version)
	case "syslog+tcp", "syslog+udp":
		e.sender, err = newSyslog(u)
	default:
		err = invalid("%q is of no kind that is known", e.url)
	}
	if err != nil {
		return nil, err
	}
	go e.run()
	return e, nil
}

func invalid(format string, args ...any) error {
	return hearth.Errorf(hearth.CodeInvalid, "log lines cannot be exported: "+format, args...).
		WithHint("give https://collector:4318 for OTLP, or syslog+tcp://host:514 or syslog+udp://host:514")
}

// Append takes a line. It never waits: when too much waits already the line is dropped.
func (e *Exporter) Append(line hearth.LogLine) {
	cost := line.Size()
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.waiting[line.Function]
	if q == nil {
		q = &queue{function: line.Function}
	}
	if e.closed || q.bytes+cost > (queueBytes-e.bytes)/3 {
		e.dropped.Add(1)
		return
	}
	if len(q.lines) == 0 {
		e.waiting[q.function] = q
		e.turns = append(e.turns, q)
	}
	q.lines = append(q.lines, line)
	q.bytes += cost
	e.bytes += cost
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were not taken by the receiver.
func (e *Exporter) Dropped() int64 { return e.dropped.Load() }

// Close sends what is queued, as far as that is possible within CloseTimeout. Lines that
// come later are dropped. A second Close does nothing.
func (e *Exporter) Close() {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	if first {
		close(e.stop)
	}
	<-e.done
}

// run sends batches until Close.
func (e *Exporter) run() {
	defer close(e.done)
	defer e.sender.close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	end := make(chan struct{})
	defer func() { <-end }()
	defer cancel()
	go func() { // what is being sent at Close has until then
		defer close(end)
		select {
		case <-e.stop:
		case <-ctx.Done():
			return
		}
		last := time.NewTimer(e.wait)
		defer last.Stop()
		select {
		case <-last.C:
			cancel()
		case <-ctx.Done():
		}
	}()
	b := &backoff{exporter: e}
	for stopping := false; !stopping; {
		select {
		case <-e.kick:
		case <-e.stop:
		}
		gather := time.NewTimer(gatherFor)
		select {
		case <-gather.C:
		case <-e.stop:
			stopping = true
		}
		gather.Stop()
		for batch := e.take(); len(batch) > 0; batch = e.take() {
			e.dropped.Add(int64(b.deliver(ctx, batch)))
		}
	}
	if n := e.Dropped(); n > 0 {
		e.log.Warn("log lines were not exported", "url", e.url, "lines", n)
	}
}

// take takes the next batch out of the queues, which take turns.
func (e *Exporter) take() (batch []hearth.LogLine) {
	e.mu.Lock()
	defer e.mu.Unlock()
	size := int64(0)
	for len(e.turns) > 0 && len(batch) < batchLines && size < batchBytes {
		q := e.turns[0]
		e.turns = e.turns[1:]
		for end := size + turnBytes; len(q.lines) > 0 && len(batch) < batchLines && size < end; {
			c := q.lines[0].Size()
			size += c
			q.bytes -= c
			batch = append(batch, q.lines[0])
			q.lines[0] = hearth.LogLine{} // free for the collector of garbage
			q.lines = q.lines[1:]
		}
		if len(q.lines) > 0 {
			e.turns = append(e.turns, q)
		} else {
			delete(e.waiting, q.function)
		}
	}
	e.bytes -= size
	return batch
}

// backoff sends batches until they are taken, with longer and longer pauses.
type backoff struct {
	exporter *Exporter
	failing  bool // and said so
	lastWarn time.Time
}

// deliver returns how many lines of the batch were not taken in the end: when ctx ends, when
// it takes too long, or when the receiver refuses them. A refused batch is sent in parts, so
// that nobody else's lines are lost with those that the receiver cannot stand.
func (b *backoff) deliver(ctx context.Context, batch []hearth.LogLine) (lost int) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	lost, no := b.send(ctx, batch)
	if no == nil || no.all {
		return lost
	}
	lost = 0
	for _, lines := range byFunction(batch) {
		refusals := maxRefusals
		lost += b.divide(ctx, lines, &refusals)
	}
	return lost
}

// divide sends lines, those that are refused in halves, and returns how many were not taken.
func (b *backoff) divide(ctx context.Context, lines []hearth.LogLine, refusals *int) (lost int) {
	lost, no := b.send(ctx, lines)
	if no == nil || no.all {
		return lost
	}
	if *refusals--; len(lines) == 1 || *refusals <= 0 {
		return lost
	}
	half := len(lines) / 2
	return b.divide(ctx, lines[:half], refusals) + b.divide(ctx, lines[half:], refusals)
}

// byFunction keeps the order of each function's lines.
func byFunction(lines []hearth.LogLine) (parts [][]hearth.LogLine) {
	index := map[string]int{}
	for _, l := range lines {
		i, ok := index[l.Function]
		if !ok {
			i = len(parts)
			index[l.Function], parts = i, append(parts, nil)
		}
		parts[i] = append(parts[i], l)
	}
	return parts
}

// send sends lines until they are taken or refused, or ctx ends. It returns how many were not
// taken, and why if they were refused.
func (b *backoff) send(ctx context.Context, lines []hearth.LogLine) (lost int, no *refusal) {
	for pause := firstBackoff; ; pause = min(2*pause, lastBackoff) {
		attempt, cancel := context.WithTimeout(ctx, sendTimeout)
		rejected, err := b.exporter.sender.send(attempt, lines)
		cancel()
		if err == nil {
			if b.failing {
				b.failing = false
				b.exporter.log.Info("log lines are exported again", "url", b.exporter.url, "dropped", b.exporter.Dropped())
			}
			return rejected, nil
		}
		if time.Since(b.lastWarn) > warnEvery {
			b.lastWarn, b.failing = time.Now(), true
			b.exporter.log.Warn("log lines cannot be exported", "url", b.exporter.url, "err", err)
		}
		var r refusal
		if errors.As(err, &r) {
			return len(lines), &r
		}
		wait := pause/2 + jitter(pause/2)
		var later busy
		if errors.As(err, &later) {
			wait = min(max(wait, later.after), lastBackoff)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-b.exporter.stop: // there is time for few attempts
			timer.Reset(min(pause, firstBackoff))
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return len(lines), nil
		}
	}
}
