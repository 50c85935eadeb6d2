package build

import (
	"bytes"
	"context"
	"strings"
	"sync"

	"github.com/hearthrun/hearth"
)

const (
	maxLog  = 4 << 20   // bytes of a build's log
	maxLine = 16 << 10  // bytes of a line; longer ones are broken
	maxTail = 200       // lines kept to find out what went wrong
	maxRaw  = 256 << 10 // bytes from which the last lines are taken after the limit
)

// logBuffer is the log of one installation, for any number of readers.
type logBuffer struct {
	mu      sync.Mutex
	text    []byte        // guarded by mu; whole lines
	tail    []string      // guarded by mu; the last lines
	cut     bool          // guarded by mu; the limit was reached
	raw     []byte        // guarded by mu; after the limit, the last output as it came
	ended   bool          // guarded by mu
	changed chan struct{} // guarded by mu; closed at the next change
}

func newLogBuffer() *logBuffer { return &logBuffer{changed: make(chan struct{})} }

// wait returns the text after the first from bytes, once there is some. more is
// false when there will be none, or ctx has ended.
func (l *logBuffer) wait(ctx context.Context, from int) (text []byte, more bool) {
	for {
		l.mu.Lock()
		text, ended, changed := l.text[from:len(l.text):len(l.text)], l.ended, l.changed
		l.mu.Unlock()
		if len(text) > 0 || ended {
			return text, len(text) > 0
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// pointsAtLog tells whether npm speaks of its own log, which ends with the sandbox.
func pointsAtLog(line string) bool {
	line = strings.TrimSpace(line)
	return strings.HasPrefix(line, "npm ") &&
		(strings.Contains(line, "A complete log of this run can be found") || strings.HasSuffix(line, "-debug-0.log"))
}

// line adds a line, unless it is of no use to those who read the log.
func (l *logBuffer) line(b []byte) {
	if l.skip(b, []byte{'\n'}) {
		return
	}
	s := clean(b)
	if pointsAtLog(s) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tail) == maxTail {
		l.tail = append(l.tail[:0], l.tail[1:]...)
	}
	l.tail = append(l.tail, s[:min(len(s), maxLine)])
	if l.cut {
		return
	}
	if len(l.text)+len(s)+1 > maxLog {
		l.cut = true
		s = "hearth: the rest of the log is left out; it is longer than " + hearth.Bytes(maxLog).String()
	}
	l.text = append(append(l.text, s...), '\n')
	l.notify()
}

// clean makes a line one that can be shown.
func clean(line []byte) string { return printable(strings.ToValidUTF8(string(line), "�")) }

// skip takes output, lines with their ends, once the limit was reached; before,
// it returns false. A flood costs little more than the copying of it: what is
// kept is made lines of by lastLines.
func (l *logBuffer) skip(parts ...[]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		return false
	}
	for _, b := range parts {
		l.raw = append(l.raw, b[max(0, len(b)-maxRaw):]...)
		if len(l.raw) > 2*maxRaw {
			l.raw = l.raw[:copy(l.raw, l.raw[len(l.raw)-maxRaw:])]
		}
	}
	return true
}

func (l *logBuffer) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// end tells readers that nothing follows.
func (l *logBuffer) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.notify()
}

// lastLines returns the last lines, also those that were cut off.
func (l *logBuffer) lastLines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := append([]string(nil), l.tail...)
	raw := bytes.FieldsFunc(l.raw, func(r rune) bool { return r == '\n' || r == '\r' })
	for _, b := range raw[max(0, len(raw)-maxTail):] {
		s := clean(b)
		lines = append(lines, s[:min(len(s), maxLine)])
	}
	return lines[max(0, len(lines)-maxTail):]
}

// lineWriter is one stream of output that goes into a logBuffer line by line.
type lineWriter struct {
	log *logBuffer

	mu   sync.Mutex
	rest []byte // guarded by mu; the begun line
}

// Write implements io.Writer.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	if i := bytes.LastIndexAny(p, "\r\n") + 1; i > 0 && w.log.skip(w.rest, p[:i]) {
		w.rest, p = w.rest[:0], p[i:]
	}
	for {
		i := bytes.IndexAny(p, "\r\n")
		if i < 0 {
			break
		}
		if len(w.rest)+i > 0 {
			w.log.line(append(w.rest, p[:i]...))
		}
		w.rest, p = w.rest[:0], p[i+1:]
	}
	w.rest = append(w.rest, p...)
	for len(w.rest) > maxLine {
		w.log.line(w.rest[:maxLine])
		w.rest = append(w.rest[:0], w.rest[maxLine:]...)
	}
	return n, nil
}

// close adds what has no line end.
func (w *lineWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.log.line(w.rest)
		w.rest = nil
	}
}
