package telemetry

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// stream is the log of one function: what waits to be written, and where the
// written lines are.
type stream struct {
	function string // constant

	mu           sync.Mutex
	pending      []hearth.LogLine
	pendingBytes int64
	dirty        bool // in Logs.dirty
	deleted      bool // not in Logs.streams any more
	watchers     int  // followers
	rate         bucket
	ownRate      bucket // for the lines of stream "hearth"
	lost         losses
	lostLine     hearth.LogLine // the last one dropped
	lastNotice   time.Time
	segments     []segment // oldest first; the writer appends to the last
	next         int       // number of the segment to come; not used again while there are watchers
	changed      chan struct{}
}

// losses counts lines by why they were dropped, since the last notice.
type losses struct{ rate, queue, failed int }

// segment is one file. Only the last one of a stream is written; those before are
// compressed some time.
type segment struct {
	number int
	size   int64 // on the disk
	packed bool  // compressed
	// first is the time of the first line, zero if it is not known; no line is later than
	// last. As files are written while time goes on, the time of their last change will
	// do after a start.
	first, last time.Time
}

// lastOf returns the last segment, the zero one if there is none.
func lastOf(segments []segment) segment {
	if n := len(segments); n > 0 {
		return segments[n-1]
	}
	return segment{}
}

// position is a place between two lines.
type position struct {
	number int // of the segment
	offset int64
}

func newStream(function string) *stream {
	return &stream{function: function, next: 1, changed: make(chan struct{})}
}

// findStreams reads which files there are, and removes what a crash during compression
// left: the plain file counts until it is gone.
func findStreams(dir string) (map[string]*stream, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	streams := map[string]*stream{}
	for _, e := range entries { // a plain file comes before its compressed one
		if strings.HasSuffix(e.Name(), packedSuffix+tempSuffix) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		function, number, packed, ok := parseSegment(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		s := streams[function]
		if s == nil {
			s = newStream(function)
			streams[function] = s
		}
		if packed && slices.ContainsFunc(s.segments, func(g segment) bool { return g.number == number }) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		s.segments = append(s.segments, segment{number: number, size: info.Size(), packed: packed, last: info.ModTime()})
		s.next = max(s.next, number+1)
	}
	for _, s := range streams {
		slices.SortFunc(s.segments, func(a, b segment) int { return a.number - b.number })
	}
	return streams, nil
}

const (
	plainSuffix  = ".jsonl"
	packedSuffix = ".jsonl.zst"
	tempSuffix   = ".tmp" // behind packedSuffix, of a file that is being written
)

func segmentPath(dir, function string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d%s", function, number, plainSuffix))
}

func packedPath(dir, function string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d%s", function, number, packedSuffix))
}

// parseSegment is the inverse of segmentPath and packedPath.
func parseSegment(name string) (function string, number int, packed, ok bool) {
	name, packed = strings.CutSuffix(name, packedSuffix)
	if ok = packed; !packed {
		name, ok = strings.CutSuffix(name, plainSuffix)
	}
	function, digits, found := strings.Cut(name, ".")
	number, err := strconv.Atoi(digits)
	ok = ok && found && err == nil && number > 0 && strconv.Itoa(number) == digits && hearth.ValidateName(function) == nil
	return function, number, packed, ok
}

// snapshot returns the segments as they are now, and the number of the next.
func (s *stream) snapshot() ([]segment, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.segments), s.next
}

// changes returns a channel that is closed at the next change.
func (s *stream) changes() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// changedLocked wakes the followers.
func (s *stream) changedLocked() {
	if s.watchers > 0 {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// droppedLocked counts a dropped line.
func (s *stream) droppedLocked(line hearth.LogLine, counter *int) {
	*counter++
	line.Text = ""
	s.lostLine = line
}

// noticesLocked returns lines about dropped lines, if it is time for them, and
// whether there will be some later.
func (s *stream) noticesLocked(now time.Time, opts LogOptions) (lines []hearth.LogLine, later bool) {
	if s.lost == (losses{}) {
		return nil, false
	}
	if now.Sub(s.lastNotice) < noticeEvery {
		return nil, true
	}
	add := func(n int, why string) {
		if n > 0 {
			lines = append(lines, hearth.LogLine{
				Time: now.UTC(), Function: s.function, Version: s.lostLine.Version, Instance: s.lostLine.Instance,
				Stream: "hearth", Level: hearth.LevelWarn, Text: fmt.Sprintf("%d log lines were dropped: %s", n, why),
			})
		}
	}
	add(s.lost.rate, "the function logs more than "+opts.rateText())
	add(s.lost.queue, "the disk is too slow for the logs of all functions")
	add(s.lost.failed, "they could not be written to the disk")
	s.lost, s.lastNotice = losses{}, now
	return lines, false
}

// bucket limits lines and bytes a second, with bursts of twice as much.
type bucket struct {
	lines, bytes float64
	at           time.Time
}

func (b *bucket) take(now time.Time, cost int64, o LogOptions) bool {
	lineRate, byteRate := float64(o.LinesPerSecond), float64(o.BytesPerSecond)
	if b.at.IsZero() {
		b.lines, b.bytes = 2*lineRate, 2*byteRate
	} else if d := now.Sub(b.at).Seconds(); d > 0 {
		b.lines = min(2*lineRate, b.lines+d*lineRate)
		b.bytes = min(2*byteRate, b.bytes+d*byteRate)
	}
	b.at = now
	if b.lines < 1 || b.bytes < float64(cost) {
		return false
	}
	b.lines--
	b.bytes -= float64(cost)
	return true
}
