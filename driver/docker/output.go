package docker

import (
	"context"
	"io"
	"os"
	"sync"
	"time"
)

// output copies what the guest's processes write to the caller's writers.
type output struct {
	mu      sync.Mutex
	stopped bool // guarded by mu
	readers []*os.File
	wg      sync.WaitGroup
	ended   chan struct{} // closed by stop
}

// add copies r to w until every process has closed its end, or stop.
func (o *output) add(r *os.File, w io.Writer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		_ = r.Close()
		return
	}
	o.readers = append(o.readers, r)
	o.wg.Go(func() {
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				o.mu.Lock()
				stopped := o.stopped
				o.mu.Unlock()
				if stopped {
					return
				}
				if _, werr := w.Write(buf[:n]); werr != nil {
					w = io.Discard // the sandbox must not stop for that
				}
			}
			if err != nil {
				return
			}
		}
	})
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

// drainTimeout is how long a slow writer can delay Wait.
const drainTimeout = 500 * time.Millisecond

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
