package guest

import (
	"context"
	"errors"
	"io"
)

// upload sends a body that is too large for one piece, or not yet complete.
type upload struct {
	conn *Conn
	call *call
}

// startUpload sends body and then rest, which may be nil. The channel tells if it
// could not be read; the end of ctx or of the connection is the caller's to
// notice.
func (c *Conn) startUpload(ctx context.Context, call *call, body []byte, rest io.Reader) <-chan error {
	u := &upload{c, call}
	failed := make(chan error, 1)
	go func() {
		if err := u.send(ctx, body, rest); err != nil && ctx.Err() == nil {
			failed <- err
		}
	}()
	return failed
}

// send returns an error of rest only.
func (u *upload) send(ctx context.Context, body []byte, rest io.Reader) error {
	if !u.data(ctx, body) {
		return nil
	}
	if rest != nil {
		buf := make([]byte, chunkSize)
		for ctx.Err() == nil {
			n, err := rest.Read(buf)
			if !u.data(ctx, buf[:n]) {
				return nil
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	u.conn.send(ctx, headerSize, func(b []byte) []byte { //nolint:errcheck // the reader reports the end of the connection
		return appendHeader(b, typeEnd, u.call.stream, 0)
	})
	return nil
}

// data sends p as the guest's window allows. It returns false if the rest is
// not wanted any more.
func (u *upload) data(ctx context.Context, p []byte) bool {
	for len(p) > 0 {
		n := u.acquire(ctx, min(len(p), chunkSize))
		if n == 0 {
			return false
		}
		err := u.conn.send(ctx, headerSize+n, func(b []byte) []byte {
			return appendFrame(b, typeData, u.call.stream, p[:n])
		})
		if err != nil {
			return false
		}
		p = p[n:]
	}
	return true
}

// acquire takes up to n bytes of the guest's window, waiting for the first. It
// returns 0 if the call or the connection has ended.
func (u *upload) acquire(ctx context.Context, n int) int {
	c := u.call
	for {
		if ctx.Err() != nil {
			return 0
		}
		c.mu.Lock()
		got := min(n, c.credit)
		c.credit -= got
		c.mu.Unlock()
		if got > 0 {
			return got
		}
		select {
		case <-c.more:
		case <-ctx.Done():
		case <-u.conn.done:
			return 0
		}
	}
}
