package telemetry

import (
	"bytes"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxLine is the greatest length of one log line's text in bytes, marks
// included.
const MaxLine = 64 << 10

const (
	continuedMark = " [line continues]"
	cutMark       = " [line cut]"
)

// LineWriter turns chunks of output into lines. A line ends with \n or \r\n,
// and invalid UTF-8 in it is replaced. A line longer than MaxLine is given out
// in parts, each but the last ending with a mark; so at most MaxLine bytes wait
// for their end. It may be used by many goroutines.
type LineWriter struct {
	emit func(text string)

	mu  sync.Mutex
	buf []byte
}

// NewLineWriter returns a LineWriter that calls emit for each line without its
// end, one at a time, from within Write and Close.
func NewLineWriter(emit func(text string)) *LineWriter { return &LineWriter{emit: emit} }

// Write takes a chunk. It never fails.
func (w *LineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := partSize - len(w.buf); len(line) > room {
			w.buf = append(w.buf, line[:room]...)
			p = p[room:]
			w.part()
			continue
		}
		w.buf = append(w.buf, line...)
		p = rest
		if ended {
			w.line()
		}
	}
	return n, nil
}

// Close gives out a last line without an end. The writer can be used again.
func (w *LineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 0 {
		w.line()
	}
	return nil
}

// partSize is how much of an unended line is collected.
const partSize = MaxLine - len(continuedMark)

// part gives out the buffer as one part of a line, but for the beginning of a
// character that may be completed by what follows.
func (w *LineWriter) part() {
	keep := 0
	for i := 1; i < utf8.UTFMax && i <= len(w.buf); i++ {
		if c := w.buf[len(w.buf)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(w.buf[len(w.buf)-i:]) {
				keep = i
			}
			break
		}
	}
	n := len(w.buf) - keep
	w.text(w.buf[:n], true)
	w.buf = append(w.buf[:0], w.buf[n:]...)
}

// line gives out the buffer as a whole line, or the last part of one.
func (w *LineWriter) line() {
	w.text(bytes.TrimSuffix(w.buf, []byte{'\r'}), false)
	if w.buf = w.buf[:0]; cap(w.buf) > 4096 {
		w.buf = nil
	}
}

func (w *LineWriter) text(b []byte, continued bool) {
	// Replacing bad bytes can make the text longer than it was.
	text := strings.ToValidUTF8(string(b), "\uFFFD")
	for len(text) > partSize {
		n := runeCut(text, partSize)
		w.emit(text[:n] + continuedMark)
		text = text[n:]
	}
	if continued {
		text += continuedMark
	}
	w.emit(text)
}

// runeCut returns the greatest length up to n at which s can be cut without
// breaking a character.
func runeCut(s string, n int) int {
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return n
}

// clipLine makes a text fit into a log line.
func clipLine(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxLine {
		return s
	}
	return s[:runeCut(s, MaxLine-len(cutMark))] + cutMark
}
