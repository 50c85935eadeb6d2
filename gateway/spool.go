package gateway

import (
	"errors"
	"io"
	"os"
	"sync/atomic"

	"github.com/hearthrun/hearth"
)

// spooledInMemory is how much of a body is kept in memory; the rest is in a file.
const spooledInMemory = 256 << 10

// spool collects request bodies before an instance is taken for them, so that
// slow senders hold none.
type spool struct {
	dir   string // for files; "" is the system's
	limit int64  // bytes of all files together
	used  atomic.Int64
}

// spooled is a body that has arrived. Close it.
type spooled struct {
	spool *spool
	// head is the beginning, rest what follows, nil if nothing.
	head []byte
	rest *os.File
	size int64 // of both
}

// collect reads r to its end. Errors: those of r, CodeExhausted when too much
// is being collected already, CodeUnavailable when the disk fails.
func (s *spool) collect(r io.Reader) (_ *spooled, err error) {
	b := &spooled{spool: s}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if b.head, err = io.ReadAll(io.LimitReader(r, spooledInMemory)); err != nil {
		return nil, err
	}
	b.size = int64(len(b.head))
	if b.size < spooledInMemory {
		return b, nil
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := b.append(buf[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if b.rest != nil {
		if _, err := b.rest.Seek(0, io.SeekStart); err != nil {
			return nil, spoolError(err)
		}
	}
	return b, nil
}

func (b *spooled) append(p []byte) error {
	if b.rest == nil {
		f, err := os.CreateTemp(b.spool.dir, "body-")
		if err != nil {
			return spoolError(err)
		}
		b.rest = f
		// Without a name it is gone with the last descriptor, whatever happens.
		if err := os.Remove(f.Name()); err != nil {
			return spoolError(err)
		}
	}
	b.size += int64(len(p))
	if b.spool.used.Add(int64(len(p))) > b.spool.limit {
		return hearth.Errorf(hearth.CodeExhausted, "too many large requests are arriving").WithHint("try again in a moment")
	}
	if _, err := b.rest.Write(p); err != nil {
		return spoolError(err)
	}
	return nil
}

// Close frees the body.
func (b *spooled) Close() {
	b.spool.used.Add(-(b.size - int64(len(b.head))))
	if b.rest != nil {
		b.rest.Close() //nolint:errcheck // it has no name any more
	}
}

func spoolError(err error) error {
	return &hearth.Error{Code: hearth.CodeUnavailable, Message: "the request's body could not be stored", Hint: "the server's disk may be full", Err: err}
}
