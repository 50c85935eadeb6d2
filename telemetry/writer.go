package telemetry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/hearthrun/hearth"
)

// writer is the state of the one goroutine that changes files.
type writer struct {
	logs     *Logs
	files    map[*stream]*openFile
	clock    int64 // grows with each use of a file
	late     map[*stream]struct{}
	used     int64 // what all segments take on the disk
	lastWarn time.Time
}

// openFile is the last segment of a stream, open for writing.
type openFile struct {
	*os.File
	used int64 // writer.clock at its last use
}

// do runs fn on the writer's goroutine. Errors: errClosed, ctx's.
func (l *Logs) do(ctx context.Context, fn func(w *writer)) error {
	ran := make(chan struct{})
	select {
	case l.jobs <- func(w *writer) { fn(w); close(ran) }:
	case <-l.done:
		return errClosed
	case <-ctx.Done():
		return ctxError(ctx)
	}
	select {
	case <-ran:
		return nil
	case <-ctx.Done():
		return ctxError(ctx)
	}
}

func (w *writer) run() {
	l := w.logs
	defer close(l.done)
	write, notice := stoppedTimer(), stoppedTimer()
	defer write.Stop()
	defer notice.Stop()
	old := time.NewTicker(expireEvery)
	defer old.Stop()
	w.expire(time.Now())
	w.packLater()
	writing, noticing := false, false
	for {
		select {
		case job := <-l.jobs:
			job(w)
		case <-l.kick:
			if !writing {
				writing = true
				write.Reset(writeDelay)
			}
		case <-write.C:
			writing = false
			w.writeDirty()
		case <-notice.C:
			noticing = false
			late := w.late
			w.late = map[*stream]struct{}{}
			for s := range late {
				w.write(s)
			}
		case <-old.C:
			w.expire(time.Now())
			w.packLater() // it may have failed
		case <-l.stop:
			w.finish()
			return
		}
		if len(w.late) > 0 && !noticing {
			noticing = true
			notice.Reset(noticeEvery)
		}
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// finish writes what is left, with all notices, and closes the files.
func (w *writer) finish() {
	w.writeDirty()
	for s := range w.late {
		s.mu.Lock()
		s.lastNotice = time.Time{}
		s.mu.Unlock()
		w.write(s)
	}
	for s := range w.files {
		w.closeFile(s)
	}
}

func (w *writer) writeDirty() {
	l := w.logs
	l.queueMu.Lock()
	dirty := l.dirty
	l.dirty = nil
	l.queueMu.Unlock()
	for _, s := range dirty {
		w.write(s)
	}
}

// write brings a stream's waiting lines into its files.
func (w *writer) write(s *stream) {
	l := w.logs
	s.mu.Lock()
	lines, cost := s.pending, s.pendingBytes
	s.pending, s.pendingBytes, s.dirty = nil, 0, false
	lost := s.lost
	notices, later := s.noticesLocked(time.Now(), l.opts)
	deleted := s.deleted
	s.mu.Unlock()
	if later {
		w.late[s] = struct{}{}
	}
	// The room in the queue is free again when the lines are in the file.
	defer func() {
		l.queueMu.Lock()
		l.queued -= cost
		l.queueMu.Unlock()
	}()
	lines = append(lines, notices...)
	if len(lines) == 0 || deleted {
		return
	}
	if n, err := w.writeLines(s, lines); err != nil {
		if len(notices) == 0 {
			lost = losses{}
		}
		lost.failed += max(0, len(lines)-len(notices)-n)
		w.failed(s, lost, lines[len(lines)-1], err)
	}
	s.mu.Lock()
	s.changedLocked()
	s.mu.Unlock()
	for _, line := range notices {
		l.opts.Export(line)
	}
	w.shrink()
}

// failed puts losses on the account of the stream: lines that could not be
// written, and those whose notice could not. last is one of the lines.
func (w *writer) failed(s *stream, lost losses, last hearth.LogLine, err error) {
	now := time.Now()
	s.mu.Lock()
	s.lost.rate += lost.rate
	s.lost.queue += lost.queue
	s.lost.failed += lost.failed
	s.lostLine.Version, s.lostLine.Instance = last.Version, last.Instance
	s.lastNotice = now
	s.mu.Unlock()
	w.late[s] = struct{}{}
	if now.Sub(w.lastWarn) > 10*time.Second {
		w.lastWarn = now
		w.logs.log.Error("cannot write log lines of functions", "function", s.function, "error", err)
	}
}

// writeLines writes lines and begins new segments where one is full. It returns
// how many were written.
func (w *writer) writeLines(s *stream, lines []hearth.LogLine) (done int, err error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if _, err := w.file(s); err != nil {
		return 0, err
	}
	if g := lastOf(s.segments); g.size > 0 && time.Since(g.first) > w.logs.opts.KeepFor/8 {
		if err := w.rotate(s); err != nil {
			return 0, err
		}
	}
	for i, line := range lines {
		before := buf.Len()
		if err := enc.Encode(line); err != nil {
			return done, err
		}
		size, err := w.size(s)
		if err != nil {
			return done, err
		}
		if size+int64(buf.Len()) <= w.logs.opts.FileBytes || size+int64(before) == 0 {
			continue
		}
		rest := bytes.Clone(buf.Bytes()[before:])
		if err := w.append(s, buf.Bytes()[:before], lines[done:i]); err != nil {
			return done, err
		}
		done = i
		if err := w.rotate(s); err != nil {
			return done, err
		}
		buf.Reset()
		buf.Write(rest)
	}
	if err := w.append(s, buf.Bytes(), lines[done:]); err != nil {
		return done, err
	}
	return len(lines), nil
}

// size returns the size of the stream's last segment, which it opens.
func (w *writer) size(s *stream) (int64, error) {
	if _, err := w.file(s); err != nil {
		return 0, err
	}
	return lastOf(s.segments).size, nil // only this goroutine changes it
}

// append writes lines to the last segment, b as JSON: all of them, or none.
func (w *writer) append(s *stream, b []byte, lines []hearth.LogLine) error {
	if len(b) == 0 {
		return nil
	}
	f, err := w.file(s)
	if err != nil {
		return err
	}
	last := &s.segments[len(s.segments)-1]
	if _, err := f.Write(b); err != nil {
		if f.Truncate(last.size) != nil {
			// The torn line is ended when the file is opened again.
			w.closeFile(s)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last.size += int64(len(b))
	w.used += int64(len(b))
	if last.first.IsZero() {
		last.first = lines[0].Time
	}
	for i := range lines {
		if t := lines[i].Time; t.After(last.last) {
			last.last = t
		}
	}
	return nil
}

// file returns the stream's last segment, opened for appending; it makes one
// if there is none.
func (w *writer) file(s *stream) (*openFile, error) {
	w.clock++
	if f := w.files[s]; f != nil {
		f.used = w.clock
		return f, nil
	}
	w.evict()
	var f *os.File
	if n := len(s.segments); n > 0 && !s.segments[n-1].packed {
		last := &s.segments[n-1]
		var size int64
		var err error
		f, size, err = openSegment(segmentPath(w.logs.dir, s.function, last.number))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			first := last.first
			if first.IsZero() {
				first = firstTime(w.logs.dir, s.function, last.number)
			}
			s.mu.Lock()
			w.used += size - last.size
			last.size, last.first = size, first
			s.mu.Unlock()
		}
	}
	if f == nil { // the first, or somebody removed the last
		var err error
		f, err = os.OpenFile(segmentPath(w.logs.dir, s.function, s.next), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.segments = append(s.segments, segment{number: s.next})
		s.next++
		s.mu.Unlock()
	}
	o := &openFile{File: f, used: w.clock}
	w.files[s] = o
	return o, nil
}

// openSegment opens a segment for appending and ends a line that a crash left
// unfinished.
func openSegment(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	size := int64(0)
	if err == nil && info.Size() > 0 {
		size = info.Size()
		var b [1]byte
		if _, err = f.ReadAt(b[:], size-1); err == nil && b[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
			size++
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// evict closes the file used longest ago if as many are open as may be.
func (w *writer) evict() {
	if len(w.files) < w.logs.opts.OpenFiles {
		return
	}
	var oldest *stream
	for s, f := range w.files {
		if oldest == nil || f.used < w.files[oldest].used {
			oldest = s
		}
	}
	w.closeFile(oldest)
}

func (w *writer) closeFile(s *stream) {
	if f := w.files[s]; f != nil {
		delete(w.files, s)
		if err := f.Close(); err != nil {
			w.logs.log.Warn("cannot close a log file", "function", s.function, "error", err)
		}
	}
}

// rotate begins a new segment and removes the oldest beyond the limit.
func (w *writer) rotate(s *stream) error {
	w.closeFile(s)
	path := segmentPath(w.logs.dir, s.function, s.next)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w.files[s] = &openFile{File: f, used: w.clock}
	s.mu.Lock()
	s.segments = append(s.segments, segment{number: s.next})
	s.next++
	old := s.excessLocked(w.logs.opts)
	s.mu.Unlock()
	w.packLater()
	err = w.remove(s, old)
	w.shrink()
	return err
}

// excessLocked takes the oldest segments away that are too many, or too large if the last
// one becomes full. What is still to be compressed has room of its own: it will be small.
func (s *stream) excessLocked(o LogOptions) []segment {
	room, plainRoom := o.FunctionBytes-o.FileBytes, o.FunctionBytes
	n := max(0, len(s.segments)-1)
	for n > 0 && len(s.segments)-n < o.Files {
		g := s.segments[n-1]
		if g.packed {
			room -= g.size
		} else {
			plainRoom -= g.size
		}
		if room < 0 || plainRoom < 0 {
			break
		}
		n--
	}
	old := s.segments[:n:n]
	s.segments = slices.Clone(s.segments[n:])
	return old
}

// packLater wakes the compressor.
func (w *writer) packLater() {
	select {
	case w.logs.pack <- struct{}{}:
	default:
	}
}

// remove deletes the files of segments that are not the stream's any more.
func (w *writer) remove(s *stream, segments []segment) error {
	var errs []error
	for _, g := range segments {
		w.used -= g.size
		for _, path := range []string{segmentPath(w.logs.dir, s.function, g.number), packedPath(w.logs.dir, s.function, g.number)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// expire deletes segments of which every line is too old.
func (w *writer) expire(now time.Time) {
	for _, s := range w.logs.all() {
		n := 0
		for n < len(s.segments) && now.Sub(s.segments[n].last) > w.logs.opts.KeepFor {
			n++
		}
		w.drop(s, n)
	}
}

// shrink deletes the oldest segments of the functions that take most, if all take too
// much, until there is a bit of room.
func (w *writer) shrink() {
	if w.used <= w.logs.opts.TotalBytes {
		return
	}
	all := w.logs.all()
	size := func(s *stream) (n int64) {
		for _, g := range s.segments {
			n += g.size
		}
		return n
	}
	for w.used > w.logs.opts.TotalBytes/20*19 && len(all) > 0 {
		largest := slices.MaxFunc(all, func(a, b *stream) int { return cmp.Compare(size(a), size(b)) })
		if len(largest.segments) == 0 {
			return
		}
		w.drop(largest, 1)
	}
}

// drop deletes the first n segments of a stream, the one that is written included.
func (w *writer) drop(s *stream, n int) {
	if n == 0 {
		return
	}
	if n == len(s.segments) {
		w.closeFile(s)
	}
	s.mu.Lock()
	old := s.segments[:n:n]
	s.segments = slices.Clone(s.segments[n:])
	s.mu.Unlock()
	if err := w.remove(s, old); err != nil {
		w.logs.log.Warn("cannot delete old log files", "function", s.function, "error", err)
	}
}

// delete removes everything of a stream, and the stream itself if nobody
// follows it. A stream that was deleted meanwhile holds nothing any more, and
// its place may be another's.
func (w *writer) delete(s *stream) error {
	l := w.logs
	w.closeFile(s)
	delete(w.late, s)
	l.mu.Lock()
	s.mu.Lock()
	if s.deleted {
		s.mu.Unlock()
		l.mu.Unlock()
		return nil
	}
	old, cost := s.segments, s.pendingBytes
	s.segments, s.pending, s.pendingBytes, s.lost = nil, nil, 0, losses{}
	if s.watchers == 0 {
		s.deleted = true
		delete(l.streams, s.function)
	}
	s.mu.Unlock()
	l.mu.Unlock()
	l.queueMu.Lock()
	l.queued -= cost
	l.queueMu.Unlock()
	return w.remove(s, old)
}
