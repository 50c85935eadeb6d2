package telemetry

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// packWindow bounds the memory of compression, and of reading what was compressed.
const packWindow = 1 << 20

// packer is the goroutine that compresses segments that are not written any more. What it
// does survives a crash at any moment: until the compressed file is on the disk under its
// name the plain one is there, and while both are, the plain one counts.
type packer struct {
	logs     *Logs
	lastWarn time.Time
}

func (p *packer) run() {
	defer close(p.logs.idle)
	for {
		select {
		case <-p.logs.pack:
		case <-p.logs.stop:
			return
		}
		for _, s := range p.logs.all() {
			for _, g := range s.closed() {
				err := p.pack(s, g)
				if errors.Is(err, errClosed) {
					return
				}
				if err != nil && time.Since(p.lastWarn) > time.Minute {
					p.lastWarn = time.Now()
					p.logs.log.Warn("cannot compress log lines of functions; they take more room until it works", "function", s.function, "error", err)
				}
			}
		}
	}
}

// all returns all streams.
func (l *Logs) all() []*stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.streams))
}

// closed returns the segments that are not written any more and not compressed yet.
func (s *stream) closed() (out []segment) {
	segments, _ := s.snapshot()
	for i, g := range segments {
		if !g.packed && i < len(segments)-1 {
			out = append(out, g)
		}
	}
	return out
}

// pack compresses a segment. Errors: errClosed.
func (p *packer) pack(s *stream, g segment) error {
	plain, packed := segmentPath(p.logs.dir, s.function, g.number), packedPath(p.logs.dir, s.function, g.number)
	temp := packed + tempSuffix
	size, err := p.compress(plain, temp, g.last)
	if err != nil {
		_ = os.Remove(temp)
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was deleted meanwhile
		}
		return err
	}
	// Only the writer's goroutine changes what a stream consists of, and its files.
	stale := false
	var failed error
	err = p.logs.do(context.Background(), func(*writer) {
		if stale = !s.has(g.number); !stale {
			failed = os.Rename(temp, packed)
		}
	})
	if err = errors.Join(err, failed); err != nil || stale {
		_ = os.Remove(temp)
		return err
	}
	synced := syncDir(p.logs.dir)
	err = p.logs.do(context.Background(), func(w *writer) {
		switch {
		case !s.has(g.number): // another's may have its name
		case synced != nil:
			failed = errors.Join(synced, os.Remove(packed))
		default:
			failed = w.packed(s, g, size)
		}
	})
	return errors.Join(err, failed)
}

// packed makes a segment one that is compressed to a file of this size. What is too much by
// that is deleted.
func (w *writer) packed(s *stream, g segment, size int64) error {
	w.used += size - g.size
	g.size, g.packed = size, true
	s.replace(g)
	err := os.Remove(segmentPath(w.logs.dir, s.function, g.number))
	s.mu.Lock()
	old := s.excessLocked(w.logs.opts)
	s.mu.Unlock()
	return errors.Join(err, w.remove(s, old))
}

// compress writes the compressed file and returns its size. It ends early, with
// errClosed, when the logs are closed.
func (p *packer) compress(plain, temp string, last time.Time) (size int64, err error) {
	in, err := os.Open(plain)
	if err != nil {
		return 0, err
	}
	defer in.Close() //nolint:errcheck // it was only read
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	enc, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(packWindow))
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(enc, stoppable{in, p.logs.stop})
	if err = errors.Join(err, enc.Close()); err != nil {
		return 0, err
	}
	info, err := out.Stat()
	if err = errors.Join(err, out.Sync()); err != nil {
		return 0, err
	}
	// Its time says how new its lines are, after the next start, too.
	return info.Size(), os.Chtimes(temp, last, last)
}

// stoppable reads until stop is closed.
type stoppable struct {
	io.Reader
	stop <-chan struct{}
}

func (r stoppable) Read(b []byte) (int, error) {
	select {
	case <-r.stop:
		return 0, errClosed
	default:
		return r.Reader.Read(b)
	}
}

// has tells whether the segment is still one of the stream.
func (s *stream) has(number int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.segments, func(g segment) bool { return g.number == number })
}

// replace puts g in the place of the segment with its number.
func (s *stream) replace(g segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.segments, func(x segment) bool { return x.number == g.number }); i >= 0 {
		s.segments[i] = g
	}
}

// syncDir makes names of files survive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
