package guest

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
)

// writer sends frames in order. Its callers never wait inside a write: a guest
// that does not read, by malice or because its handler computes, must hold
// nobody beyond their deadlines. What the socket does not take at once is
// written by a goroutine that ends, at the latest, when the stream is closed.
type writer struct {
	nc   net.Conn
	raw  syscall.RawConn    // nil if nc has no descriptor
	try  func(uintptr) bool // writes what out holds; for raw
	fail func(error)        // called with the first error of a write

	mu      sync.Mutex
	out     []byte        // guarded by mu; frames not written yet
	n       int           // guarded by mu; result of try
	err     error         // guarded by mu; result of try, or why writing ended
	drained chan struct{} // guarded by mu; closed when out is written; nil while nothing writes it
}

func newWriter(nc net.Conn, fail func(error)) *writer {
	w := &writer{nc: nc, fail: fail}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	w.try = func(fd uintptr) bool {
		for {
			w.n, w.err = syscall.Write(int(fd), w.out)
			if !errors.Is(w.err, syscall.EINTR) {
				return true // also when it would block
			}
		}
	}
	return w
}

// post appends the frames that build appends. It never waits, so it is for
// what is small and bounded in number: grants and requests to cancel.
func (w *writer) post(build func([]byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.postLocked(0, build)
}

// send is post for everything else: it waits until nothing else is to be
// written, or ctx has ended. size is about how many bytes it will be.
func (w *writer) send(ctx context.Context, size int, build func([]byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.drained != nil {
		drained := w.drained
		w.mu.Unlock()
		select {
		case <-drained:
		case <-ctx.Done():
		}
		w.mu.Lock()
		if ctx.Err() != nil {
			return contextError(ctx)
		}
	}
	return w.postLocked(size, build)
}

func (w *writer) postLocked(size int, build func([]byte) []byte) error {
	if w.err != nil {
		return w.err
	}
	w.out = build(room(w.out, size))
	if w.drained != nil || len(w.out) == 0 {
		return nil
	}
	if w.raw != nil {
		w.n = 0
		if err := w.raw.Write(w.try); err != nil {
			w.err = err
		}
		if errors.Is(w.err, syscall.EAGAIN) {
			w.n, w.err = 0, nil
		}
		if w.err != nil {
			w.out = nil
			w.fail(w.err)
			return w.err
		}
		if w.n == len(w.out) {
			w.out = release(w.out)
			return nil
		}
	} else {
		w.n = 0
	}
	rest, buf := w.out[w.n:], w.out
	w.out = nil
	w.drained = make(chan struct{})
	go w.drain(rest, buf)
	return nil
}

// drain writes rest, a part of buf, and what has been appended meanwhile.
func (w *writer) drain(rest, buf []byte) {
	for {
		_, err := w.nc.Write(rest)
		if err != nil {
			w.fail(err)
		}
		w.mu.Lock()
		w.err = err
		if err != nil || len(w.out) == 0 {
			w.out = release(buf)
			close(w.drained)
			w.drained = nil
			w.mu.Unlock()
			return
		}
		rest, buf, w.out = w.out, w.out, release(buf)
		w.mu.Unlock()
	}
}

// wait returns when nothing writes any more.
func (w *writer) wait() {
	w.mu.Lock()
	drained := w.drained
	w.mu.Unlock()
	if drained != nil {
		<-drained
	}
}
