// Package telemetry keeps what functions and Hearth tell about calls: log
// lines in files, and invocation records on their way to the store. Nothing in
// it ever makes a call wait for the disk: where output comes faster than it
// can be kept, some is dropped, and the loss is counted and said.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// LogOptions bound what Logs keeps; zero fields take the default.
type LogOptions struct {
	// FileBytes is the size at which a new file is begun, before it is compressed.
	// Default 2 MiB, and at most a sixteenth of TotalBytes.
	FileBytes int64
	// Files and FunctionBytes are how many files a function has at most, and how much
	// they take on the disk; the oldest are deleted. Those that wait to be compressed may
	// take as much again. The number bounds what a search has
	// to read, however well lines can be compressed. Defaults 128 and 16 MiB.
	Files         int
	FunctionBytes int64
	// TotalBytes is how much the files of all functions take on the disk at most; the
	// oldest of those are deleted that take most. Default 4 GiB.
	TotalBytes int64
	// KeepFor is how old lines become: a file is deleted when its last one is so old. A
	// file is closed in time for its first line not to become older than 9/8 of that.
	// Default 15 days.
	KeepFor time.Duration
	// LinesPerSecond and BytesPerSecond limit each function, with bursts of
	// twice as much. Defaults 5,000 and 2 MiB.
	LinesPerSecond int
	BytesPerSecond int64
	// QueueBytes is how much text of all functions may wait for the disk.
	// Default 32 MiB. One function may use a quarter of it.
	QueueBytes int64
	// OpenFiles is how many files are kept open for writing. Default 64.
	OpenFiles int
	// Export gets each line that is kept. It must not wait. Default none.
	Export func(hearth.LogLine)
	// Logger gets the errors of the disk. Default none.
	Logger *slog.Logger
}

func (o LogOptions) withDefaults() LogOptions {
	setDefault(&o.FileBytes, 2<<20)
	setDefault(&o.Files, 128)
	setDefault(&o.FunctionBytes, 16<<20)
	setDefault(&o.TotalBytes, 4<<30)
	setDefault(&o.KeepFor, 15*24*time.Hour)
	o.FileBytes = min(o.FileBytes, o.TotalBytes/16)
	setDefault(&o.LinesPerSecond, 5000)
	setDefault(&o.BytesPerSecond, 2<<20)
	setDefault(&o.QueueBytes, 32<<20)
	setDefault(&o.OpenFiles, 64)
	if o.Export == nil {
		o.Export = func(hearth.LogLine) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

const (
	// writeDelay gathers lines into one write.
	writeDelay = 5 * time.Millisecond
	// noticeEvery is the shortest time between two lines about dropped lines.
	noticeEvery = time.Second
	// searches is how many searches read files at the same time.
	searches = 4
	// expireEvery is how often files are looked for that are too old.
	expireEvery = time.Minute
)

// Logs keeps the log lines of all functions: for each some files of JSON lines
// named FUNCTION.NUMBER.jsonl, all but the last of them compressed to
// FUNCTION.NUMBER.jsonl.zst. One goroutine writes them, and another compresses. Its
// methods may be called from many goroutines.
type Logs struct {
	// Constant after OpenLogs.
	dir  string
	opts LogOptions
	log  *slog.Logger
	kick chan struct{}      // a stream became dirty; holds at most one token
	jobs chan func(*writer) // work for the writer's goroutine
	pack chan struct{}      // there is something to compress; holds at most one token
	slot chan struct{}      // holds a token for each search that reads
	stop chan struct{}      // closed by Close
	done chan struct{}      // closed when the writer has ended
	idle chan struct{}      // closed when the compressor has ended

	mu      sync.Mutex // may be taken before a stream's, not after
	closed  bool
	streams map[string]*stream

	queueMu sync.Mutex // taken last
	queued  int64      // bytes waiting, of all streams
	dirty   []*stream  // streams with something to write
}

// OpenLogs opens the directory, which it creates with mode 0700 if need be. No
// other process may write there. The caller must Close it.
// Errors: CodeUnavailable if the directory cannot be used.
func OpenLogs(dir string, opts LogOptions) (*Logs, error) {
	opts = opts.withDefaults()
	l := &Logs{
		dir: dir, opts: opts, log: opts.Logger,
		kick: make(chan struct{}, 1), jobs: make(chan func(*writer)), pack: make(chan struct{}, 1), slot: make(chan struct{}, searches),
		stop: make(chan struct{}), done: make(chan struct{}), idle: make(chan struct{}),
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		l.streams, err = findStreams(dir)
	}
	if err != nil {
		return nil, (&hearth.Error{Code: hearth.CodeUnavailable, Message: "cannot use the log directory " + dir, Err: err}).
			WithHint("check the disk and the permissions of the data directory")
	}
	w := &writer{logs: l, files: map[*stream]*openFile{}, late: map[*stream]struct{}{}}
	for _, s := range l.streams {
		for _, g := range s.segments {
			w.used += g.size
		}
	}
	go w.run()
	go (&packer{logs: l}).run()
	return l, nil
}

// Append takes a line. It never waits for the disk: over a function's rate or
// with a full queue the line is dropped, and a line of stream "hearth" says
// later how many were. A zero Time becomes now; text longer than MaxLine is
// cut. A line with an invalid function name is dropped. The Level of a function's line
// that has none becomes what its text says, if that is a JSON object.
func (l *Logs) Append(line hearth.LogLine) {
	s := l.stream(line.Function, true)
	if s == nil {
		return
	}
	now := time.Now()
	if line.Time.IsZero() {
		line.Time = now
	}
	line.Time = line.Time.UTC()
	line.Text = clipLine(line.Text)
	cost := line.Size()

	s.mu.Lock()
	for s.deleted { // between our look-up and now
		s.mu.Unlock()
		if s = l.stream(line.Function, true); s == nil {
			return
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	rate := &s.rate
	if line.Stream == "hearth" {
		rate = &s.ownRate // a flood must not swallow why its call ended
	}
	switch {
	case !rate.take(now, cost, l.opts):
		s.droppedLocked(line, &s.lost.rate)
	case !l.enqueue(s, cost):
		s.droppedLocked(line, &s.lost.queue)
	default:
		if line.Level == "" && line.Stream != "hearth" {
			line.Level = levelOf(line.Text)
		}
		s.pending = append(s.pending, line)
		s.pendingBytes += cost
		l.opts.Export(line)
	}
	if !s.dirty {
		s.dirty = true
		l.queueMu.Lock()
		l.dirty = append(l.dirty, s)
		l.queueMu.Unlock()
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}

// enqueue reserves room in the queue for a line of s, whose mutex is held.
func (l *Logs) enqueue(s *stream, cost int64) bool {
	if s.pendingBytes+cost > l.opts.QueueBytes/4 {
		return false
	}
	l.queueMu.Lock()
	defer l.queueMu.Unlock()
	if l.queued+cost > l.opts.QueueBytes {
		return false
	}
	l.queued += cost
	return true
}

// stream returns the stream of a function, nil if the name is invalid, Logs is
// closed, or there is none and it shall not be made.
func (l *Logs) stream(function string, create bool) *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	s := l.streams[function]
	if s == nil && create && hearth.ValidateName(function) == nil {
		s = newStream(function)
		l.streams[function] = s
	}
	return s
}

// Tail returns the newest lines that q asks for, oldest first, with everything appended
// before the call; fewer than q.Tail if there are no more, or if they would take more
// than 16 MiB as JSON. None is no error. Errors: CodeInvalid for a bad name, CodeUnavailable
// after Close.
func (l *Logs) Tail(ctx context.Context, q hearth.LogQuery) ([]hearth.LogLine, error) {
	m := newMatcher(q)
	lines, _, err := l.tail(ctx, &m)
	return lines, err
}

// Follow calls fn for the lines Tail returns and then for each new one that q asks for as
// it comes, without a gap or a repetition. It returns fn's error, an error that wraps
// ctx's (CodeCanceled or CodeTimeout) when ctx ends, and nil when q.Until has come or Logs
// is closed. A reader so slow that lines were deleted before it came to them gets a line
// of stream "hearth" that says so. Deleting the function's logs does not end it.
// Errors: CodeInvalid for a bad name.
func (l *Logs) Follow(ctx context.Context, q hearth.LogQuery, fn func(hearth.LogLine) error) error {
	if err := hearth.ValidateName(q.Function); err != nil {
		return err
	}
	s := l.watch(q.Function)
	if s == nil {
		return nil
	}
	defer l.unwatch(s)
	m := newMatcher(q)
	lines, pos, err := l.tail(ctx, &m)
	if errors.Is(err, errClosed) {
		return nil
	} else if err != nil {
		return err
	}
	for _, line := range lines {
		if err := fn(line); err != nil {
			return err
		}
	}
	until := stoppedTimer()
	defer until.Stop()
	if !q.Until.IsZero() {
		until.Reset(time.Until(q.Until))
	}
	r := &reader{dir: l.dir, stream: s, match: &m, pos: pos}
	defer r.close()
	for {
		changed := s.changes()
		if err := r.read(ctx, fn); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctxError(ctx)
		case <-until.C:
			if err := l.flush(ctx, s); err != nil && !errors.Is(err, errClosed) {
				return err
			}
			return r.read(ctx, fn)
		case <-l.done:
			return r.read(ctx, fn)
		}
	}
}

// watch returns the function's stream and keeps it from being forgotten; nil
// after Close.
func (l *Logs) watch(function string) *stream {
	for {
		s := l.stream(function, true)
		if s == nil {
			return nil
		}
		s.mu.Lock()
		if !s.deleted {
			s.watchers++
			s.mu.Unlock()
			return s
		}
		s.mu.Unlock()
	}
}

// unwatch ends a watch, and forgets a stream in which there never was a line.
func (l *Logs) unwatch(s *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers--
	if s.watchers == 0 && !s.deleted && len(s.segments) == 0 && !s.dirty && s.lost == (losses{}) {
		s.deleted = true
		delete(l.streams, s.function)
	}
}

// tail returns the newest lines that are meant, and the position behind them.
func (l *Logs) tail(ctx context.Context, m *matcher) ([]hearth.LogLine, position, error) {
	if err := hearth.ValidateName(m.Function); err != nil {
		return nil, position{}, err
	}
	s := l.stream(m.Function, false)
	if s == nil {
		if l.isClosed() {
			return nil, position{}, errClosed
		}
		return nil, position{}, nil
	}
	if err := l.flush(ctx, s); err != nil {
		return nil, position{}, err
	}
	if m.Tail > 0 { // it may have to read everything, and takes memory
		select {
		case l.slot <- struct{}{}:
			defer func() { <-l.slot }()
		case <-ctx.Done():
			return nil, position{}, ctxError(ctx)
		}
	}
	segments, next := s.snapshot()
	lines, err := lastLines(ctx, l.dir, segments, m)
	if err != nil {
		return nil, position{}, err
	}
	end := position{number: next}
	if last := lastOf(segments); last.number > 0 && !last.packed {
		end = position{last.number, last.size}
	}
	return lines, end, nil
}

// Delete removes all lines of a function. The name need not be valid.
func (l *Logs) Delete(function string) error {
	s := l.stream(function, false)
	if s == nil {
		return nil
	}
	var failed error
	err := l.do(context.Background(), func(w *writer) { failed = w.delete(s) })
	return errors.Join(err, failed)
}

// Flush returns when every line appended before the call is in its file.
func (l *Logs) Flush(ctx context.Context) error {
	return l.do(ctx, func(w *writer) { w.writeDirty() })
}

func (l *Logs) flush(ctx context.Context, s *stream) error {
	return l.do(ctx, func(w *writer) { w.write(s) })
}

// Close writes what is queued, ends the followers and closes the files. Lines
// appended later are dropped. A second Close does nothing.
func (l *Logs) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if first {
		close(l.stop)
	}
	<-l.done
	<-l.idle
	return nil
}

// ctxError is why ctx ended, with a code.
func ctxError(ctx context.Context) error {
	code := hearth.CodeCanceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = hearth.CodeTimeout
	}
	return hearth.Errorf(code, "waiting for telemetry: %w", ctx.Err())
}

func (l *Logs) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// errClosed is what calls get after Close.
var errClosed error = hearth.Errorf(hearth.CodeUnavailable, "the logs are closed").
	WithHint("the server is stopping; try again when it is back")

// rateText is for messages: "5000 lines or 2MiB a second".
func (o LogOptions) rateText() string {
	return fmt.Sprintf("%d lines or %s a second", o.LinesPerSecond, hearth.Bytes(o.BytesPerSecond))
}
