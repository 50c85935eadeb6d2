package guest

import "sync"

const (
	// maxSpare bounds each buffer an idle connection keeps, in bytes.
	maxSpare = 8 << 10
	// bigSize fits the frames of a response or request of one chunk.
	bigSize = 2 * chunkSize
)

// bigBuffers lends connections the buffers they do not keep.
var bigBuffers = sync.Pool{New: func() any { return new([bigSize]byte) }}

// room returns b, or a copy from bigBuffers with room for n more bytes. Without
// it append grows b as usual.
func room(b []byte, n int) []byte {
	need := len(b) + n
	if need <= cap(b) || need <= maxSpare || need > bigSize {
		return b
	}
	return append(bigBuffers.Get().(*[bigSize]byte)[:0], b...)
}

// release empties b, whose content nobody needs any more: it gives it back if
// it came from bigBuffers, and lets it go if it is too large to be kept.
func release(b []byte) []byte {
	if cap(b) == bigSize {
		bigBuffers.Put((*[bigSize]byte)(b[:bigSize]))
		return nil
	}
	if cap(b) > maxSpare {
		return nil
	}
	return b[:0]
}
