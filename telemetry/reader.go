package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hearthrun/hearth"
)

const (
	// answerBytes is how much the JSON of the lines of one answer may take, so that many
	// long ones do not: then there are fewer. A byte of text can be six of JSON.
	answerBytes = 16 << 20
	// maxRaw is how long the JSON of a line can be: six bytes for one of its text, and
	// the other fields.
	maxRaw = 6*MaxLine + 4<<10
	// windowStart is how much of a file's end is read first when lines are sought.
	windowStart = 64 << 10
)

// parseLine reads one line of a file; blank and torn ones are no lines.
func parseLine(b []byte) (line hearth.LogLine, ok bool) {
	b = bytes.TrimSpace(b)
	return line, len(b) > 0 && json.Unmarshal(b, &line) == nil
}

// lineReader cuts what it reads into lines, with a bounded buffer.
type lineReader struct {
	in   *bufio.Reader
	long []byte // a line that did not fit into in
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{in: bufio.NewReaderSize(r, 32<<10)} }

// next returns the next line, empty if it is longer than maxRaw, and how many bytes it
// has taken. The line is valid until the next call. It may come with an error.
func (r *lineReader) next() (raw []byte, n int64, err error) {
	raw, err = r.in.ReadSlice('\n')
	if n = int64(len(raw)); !errors.Is(err, bufio.ErrBufferFull) {
		return raw, n, err
	}
	r.long = append(r.long[:0], raw...)
	for errors.Is(err, bufio.ErrBufferFull) {
		raw, err = r.in.ReadSlice('\n')
		n += int64(len(raw))
		if n <= maxRaw {
			r.long = append(r.long, raw...)
		}
	}
	if n > maxRaw {
		return nil, n, err
	}
	return r.long, n, err
}

// source is an open segment.
type source struct {
	*os.File
	unpack *zstd.Decoder // nil for a plain file
}

// openSource opens a segment, whether it is compressed or not. Errors: fs.ErrNotExist.
func openSource(dir, function string, number int) (*source, error) {
	f, err := os.Open(segmentPath(dir, function, number))
	if err == nil {
		return &source{File: f}, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// It may have been compressed a moment ago.
	if f, err = os.Open(packedPath(dir, function, number)); err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packWindow))
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &source{File: f, unpack: d}, nil
}

// lines reads the lines from the offset up to the end, which is that of the file if it is
// negative.
func (s *source) lines(from, end int64) (*lineReader, error) {
	if end < 0 {
		end = 1<<63 - 1
	}
	if s.unpack == nil {
		return newLineReader(io.NewSectionReader(s.File, from, end-from)), nil
	}
	if _, err := io.CopyN(io.Discard, s.unpack, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return newLineReader(io.LimitReader(s.unpack, end-from)), nil
}

func (s *source) close() {
	if s.unpack != nil {
		s.unpack.Close()
	}
	_ = s.Close()
}

// lastLines reads the newest lines that are meant, oldest first.
func lastLines(ctx context.Context, dir string, segments []segment, m *matcher) ([]hearth.LogLine, error) {
	var parts [][]hearth.LogLine // newest first
	room, budget := m.Tail, int64(answerBytes)
	for _, g := range slices.Backward(segments) {
		if room <= 0 || budget <= 0 || m.tooOld(g) {
			break
		}
		found, full, err := lastOfSegment(ctx, dir, g, m, room, budget)
		if err != nil {
			return nil, err
		}
		parts = append(parts, found.lines)
		room, budget = found.room, found.bytes
		if full {
			break
		}
	}
	slices.Reverse(parts)
	return slices.Concat(parts...), nil
}

// lastOfSegment reads the newest lines of a segment as far as there is room for them;
// full tells whether there were more. A missing file has none.
func lastOfSegment(ctx context.Context, dir string, g segment, m *matcher, room int, budget int64) (_ newest, full bool, err error) {
	none := newest{room: room, bytes: budget}
	src, err := openSource(dir, m.Function, g.number)
	if errors.Is(err, fs.ErrNotExist) {
		return none, false, nil
	} else if err != nil {
		return none, false, err
	}
	defer src.close()
	end := g.size
	if g.packed {
		end = -1
	}
	for window := int64(windowStart); ; window *= 8 {
		from := max(0, end-window)
		if src.unpack != nil {
			from = 0
		}
		lines, err := src.lines(from, end)
		if err != nil {
			return none, false, nil // damaged
		}
		found := none
		seen := 0
		for first := true; ; first = false {
			if ctx.Err() != nil {
				return none, false, ctxError(ctx)
			}
			raw, _, err := lines.next()
			if line, ok := m.parse(raw); ok && (!first || from == 0) { // else it may not be whole
				seen++
				found.add(line, int64(len(raw)))
			}
			if first && from == 0 && err == nil {
				if line, ok := parseLine(raw); ok && m.tooNew(line.Time) {
					return none, false, nil
				}
			}
			if errors.Is(err, io.EOF) || err != nil && src.unpack != nil {
				break // what is behind damage is lost
			} else if err != nil {
				return none, false, err
			}
		}
		if full = seen > len(found.lines) || seen == room; full || from == 0 {
			return found, full, nil
		}
	}
}

// firstTime returns the time of a segment's first line, zero if there is none.
func firstTime(dir, function string, number int) time.Time {
	src, err := openSource(dir, function, number)
	if err != nil {
		return time.Time{}
	}
	defer src.close()
	lines, err := src.lines(0, -1)
	if err != nil {
		return time.Time{}
	}
	raw, _, _ := lines.next()
	line, _ := parseLine(raw)
	return line.Time
}

// reader reads a stream's files from a position on. It keeps the file it reads
// open, so that rotation cannot take it away.
type reader struct {
	dir    string
	stream *stream
	match  *matcher
	pos    position
	src    *source
}

func (r *reader) close() {
	if r.src != nil {
		r.src.close()
		r.src = nil
	}
}

// read calls fn for every line that is meant from the position to the present end.
func (r *reader) read(ctx context.Context, fn func(hearth.LogLine) error) error {
	for {
		segments, next := r.stream.snapshot()
		if r.pos.number >= next {
			return nil // that segment is still to come
		}
		if r.src == nil {
			src, err := openSource(r.dir, r.stream.function, r.pos.number)
			if errors.Is(err, fs.ErrNotExist) {
				if err := r.skip(segments, next, fn); err != nil {
					return err
				}
				continue
			} else if err != nil {
				return err
			}
			r.src = src
		}
		end := int64(-1) // it does not grow any more
		last := lastOf(segments)
		current := last.number == r.pos.number && !last.packed
		if current {
			end = last.size
		}
		if err := r.readTo(ctx, end, fn); err != nil {
			return err
		}
		if current {
			return nil
		}
		r.close()
		from := r.pos.number
		if r.pos = (position{number: following(segments, next, from)}); r.pos.number != from+1 {
			if err := fn(r.missed()); err != nil {
				return err
			}
		}
	}
}

// skip goes on with the oldest segment there is, and says so.
func (r *reader) skip(segments []segment, next int, fn func(hearth.LogLine) error) error {
	r.pos = position{number: following(segments, next, r.pos.number)}
	return fn(r.missed())
}

func (r *reader) missed() hearth.LogLine {
	return hearth.LogLine{
		Time: time.Now().UTC(), Function: r.stream.function, Stream: "hearth", Level: hearth.LevelWarn,
		Text: "log lines were deleted before this reader came to them",
	}
}

// following returns the number of the first segment after the given one.
func following(segments []segment, next, number int) int {
	for _, g := range segments {
		if g.number > number {
			return g.number
		}
	}
	return max(next, number+1)
}

// readTo calls fn for the lines before end, negative for all.
func (r *reader) readTo(ctx context.Context, end int64, fn func(hearth.LogLine) error) error {
	if end >= 0 && end <= r.pos.offset {
		return nil
	}
	lines, err := r.src.lines(r.pos.offset, end)
	if err != nil {
		return nil //nolint:nilerr // it is damaged; what follows may not be
	}
	for {
		if ctx.Err() != nil {
			return ctxError(ctx)
		}
		raw, n, err := lines.next()
		r.pos.offset += n
		if line, ok := r.match.parse(raw); ok {
			if err := fn(line); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err != nil && r.src.unpack != nil {
			return nil
		} else if err != nil {
			return err
		}
	}
}
