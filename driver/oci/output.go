package oci

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"sync"
	"time"
)

// output copies what the guest's processes write to the caller's writers.
type output struct {
	mu      sync.Mutex
	stopped bool       // guarded by mu
	readers []*os.File // guarded by mu
	wg      sync.WaitGroup
	ended   chan struct{} // closed by stop
}

// add starts copying from r, until every process has closed its end, or stop.
func (o *output) add(r *os.File, run func(r io.Reader)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		_ = r.Close()
		return
	}
	o.readers = append(o.readers, r)
	o.wg.Go(func() {
		defer r.Close()
		run(r)
	})
}

// plain copies bytes to w.
func (o *output) plain(w io.Writer) func(io.Reader) {
	return func(r io.Reader) {
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 && !o.deliver(&w, buf[:n]) || err != nil {
				return
			}
		}
	}
}

// records copies to two writers what init has put into records.
func (o *output) records(stdout, stderr io.Writer) func(io.Reader) {
	to := [2]io.Writer{stdout, stderr}
	for i := range to {
		if to[i] == nil {
			to[i] = io.Discard
		}
	}
	return func(r io.Reader) {
		var head [5]byte
		buf := make([]byte, maxRecord)
		for {
			if _, err := io.ReadFull(r, head[:]); err != nil {
				return
			}
			n := binary.LittleEndian.Uint32(head[1:])
			if head[0] < 1 || head[0] > 2 || n > maxRecord {
				return // init does not write such
			}
			if _, err := io.ReadFull(r, buf[:n]); err != nil || !o.deliver(&to[head[0]-1], buf[:n]) {
				return
			}
		}
	}
}

// maxRecord is the greatest payload of a record in bytes.
const maxRecord = 16 << 10

// deliver writes b to w, and tells whether to go on. A writer that fails is
// replaced: the sandbox must not stop for that.
func (o *output) deliver(w *io.Writer, b []byte) bool {
	o.mu.Lock()
	stopped := o.stopped
	o.mu.Unlock()
	if stopped {
		return false
	}
	if _, err := (*w).Write(b); err != nil {
		*w = io.Discard
	}
	return true
}

// stop ends the copying; a Write under way is left to return.
func (o *output) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return
	}
	o.stopped = true
	close(o.ended)
	for _, r := range o.readers {
		_ = r.Close()
	}
}

// drainTimeout is how long a slow writer can delay Wait.
const drainTimeout = 500 * time.Millisecond

// drain waits, though not long, until what the dead processes wrote last has
// been delivered.
func (o *output) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	go func() {
		select {
		case <-o.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	o.wait(ctx)
}

// wait returns when no Write is under way any more, or ctx ends: a writer that
// never returns holds up its own goroutine only.
func (o *output) wait(ctx context.Context) {
	all := make(chan struct{})
	go func() {
		o.wg.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-ctx.Done():
	}
}
