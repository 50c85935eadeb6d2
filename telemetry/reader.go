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

	"github.com/hearthrun/hearth"
)

// parseLine reads one line of a file; blank and torn ones are no lines.
func parseLine(b []byte) (line hearth.LogLine, ok bool) {
	b = bytes.TrimSpace(b)
	return line, len(b) > 0 && json.Unmarshal(b, &line) == nil
}

// lastLines reads the last n lines of the segments, oldest first; of these versions
// only, if there are any.
func lastLines(ctx context.Context, dir, function string, segments []segment, n int, versions []int) ([]hearth.LogLine, error) {
	var out []hearth.LogLine // newest first
	for i := len(segments) - 1; i >= 0 && len(out) < n; i-- {
		lines, err := lastOfSegment(ctx, segmentPath(dir, function, segments[i].number), segments[i].size, n-len(out), versions)
		if err != nil {
			return nil, err
		}
		slices.Reverse(lines)
		out = append(out, lines...)
	}
	slices.Reverse(out)
	return out, nil
}

// lastOfSegment reads up to n lines before size. A missing file has none.
func lastOfSegment(ctx context.Context, path string, size int64, n int, versions []int) ([]hearth.LogLine, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for window := int64(64 << 10); ; window *= 4 {
		if ctx.Err() != nil {
			return nil, ctxError(ctx)
		}
		from := max(0, size-window)
		b := make([]byte, size-from)
		if k, err := f.ReadAt(b, from); errors.Is(err, io.EOF) {
			b = b[:k]
		} else if err != nil {
			return nil, err
		}
		if from > 0 { // the first line is not whole
			_, b, _ = bytes.Cut(b, []byte{'\n'})
		}
		var lines []hearth.LogLine
		for raw := range bytes.Lines(b) {
			if line, ok := parseLine(raw); ok && (len(versions) == 0 || slices.Contains(versions, line.Version)) {
				lines = append(lines, line)
			}
		}
		if len(lines) >= n {
			return lines[len(lines)-n:], nil
		}
		if from == 0 {
			return lines, nil
		}
	}
}

// reader reads a stream's files from a position on. It keeps the file it reads
// open, so that rotation cannot take it away.
type reader struct {
	dir    string
	stream *stream
	pos    position
	file   *os.File
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}

// read calls fn for every line from the position to the present end.
func (r *reader) read(ctx context.Context, fn func(hearth.LogLine) error) error {
	for {
		segments, next := r.stream.snapshot()
		if r.pos.number >= next {
			return nil // that segment is still to come
		}
		if r.file == nil {
			f, err := os.Open(segmentPath(r.dir, r.stream.function, r.pos.number))
			if errors.Is(err, fs.ErrNotExist) {
				if err := r.skip(segments, next, fn); err != nil {
					return err
				}
				continue
			} else if err != nil {
				return err
			}
			r.file = f
		}
		var end int64
		current := len(segments) > 0 && segments[len(segments)-1].number == r.pos.number
		if current {
			end = segments[len(segments)-1].size
		} else {
			info, err := r.file.Stat() // it does not grow any more
			if err != nil {
				return err
			}
			end = info.Size()
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
		Time: time.Now().UTC(), Function: r.stream.function, Stream: "hearth",
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

// readTo calls fn for the lines before end.
func (r *reader) readTo(ctx context.Context, end int64, fn func(hearth.LogLine) error) error {
	if end <= r.pos.offset {
		return nil
	}
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, r.pos.offset, end-r.pos.offset), 32<<10)
	for {
		if ctx.Err() != nil {
			return ctxError(ctx)
		}
		raw, err := in.ReadBytes('\n')
		r.pos.offset += int64(len(raw))
		if line, ok := parseLine(raw); ok {
			if err := fn(line); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
