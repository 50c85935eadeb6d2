package telemetry

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// disorder is how far the times of lines may be out of order: they are taken before the
// line comes to its file, and clocks are set.
const disorder = time.Minute

// matcher is a query, prepared.
type matcher struct {
	hearth.LogQuery
	text string // in lower case
	call string // Invocation without the number of an attempt, see hearth.AttemptID
	// hint is in the JSON of every line that is meant; nil if nothing is known.
	hint []byte
}

func newMatcher(q hearth.LogQuery) matcher {
	m := matcher{LogQuery: q, text: strings.ToLower(q.Text)}
	m.call, _, _ = strings.Cut(q.Invocation, ".")
	if m.call != "" && !strings.ContainsFunc(m.call, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	}) {
		m.hint = []byte(m.call)
	}
	return m
}

// parse reads a line of a file, if it is one and is meant. Blank and torn ones are none.
func (m *matcher) parse(raw []byte) (line hearth.LogLine, ok bool) {
	if m.hint != nil && !bytes.Contains(raw, m.hint) {
		return line, false
	}
	line, ok = parseLine(raw)
	return line, ok && m.matches(&line)
}

func (m *matcher) matches(l *hearth.LogLine) bool {
	return (len(m.Versions) == 0 || slices.Contains(m.Versions, l.Version)) &&
		(m.Stream == "" || l.Stream == m.Stream) &&
		l.Level.AtLeast(m.Level) &&
		(m.Invocation == "" || l.Invocation == m.call) &&
		(m.Since.IsZero() || !l.Time.Before(m.Since)) &&
		(m.Until.IsZero() || l.Time.Before(m.Until)) &&
		(m.text == "" || strings.Contains(strings.ToLower(l.Text), m.text))
}

// tooOld tells whether no line of the segment, nor of those before, can be meant.
func (m *matcher) tooOld(g segment) bool {
	return !m.Since.IsZero() && g.last.Add(disorder).Before(m.Since)
}

// tooNew tells whether no line of a segment that begins with a line of this time can be
// meant.
func (m *matcher) tooNew(first time.Time) bool {
	return !m.Until.IsZero() && !first.IsZero() && !first.Add(-disorder).Before(m.Until)
}

// newest collects lines that come oldest first, and keeps the last ones.
type newest struct {
	lines []hearth.LogLine
	sizes []int64 // of their JSON
	// room and bytes are how many more lines may be kept, and how much JSON; the last line
	// is kept always.
	room  int
	bytes int64
}

func (n *newest) add(l hearth.LogLine, size int64) {
	n.lines, n.sizes = append(n.lines, l), append(n.sizes, size)
	n.room--
	n.bytes -= size
	for n.room < 0 || n.bytes < 0 && len(n.lines) > 1 {
		n.room++
		n.bytes += n.sizes[0]
		n.lines[0] = hearth.LogLine{} // free for the collector of garbage
		n.lines, n.sizes = n.lines[1:], n.sizes[1:]
	}
}
