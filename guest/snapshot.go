package guest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"

	"github.com/hearthrun/hearth"
)

// seedSize is the number of random bytes a restored guest gets.
const seedSize = 32

// PrepareSnapshot asks a guest that has loaded its function and has no call
// under way whether its sandbox can be saved now. If so, the guest does nothing
// more until it is restored: this connection is to stay open while the sandbox
// is saved, and then only good for Close. Ask only if Ready.Snapshot is true.
// Errors: CodeUnsupported, telling why, if the function cannot be saved; the
// connection then serves calls as before. Else those of Init.
func (c *Conn) PrepareSnapshot(ctx context.Context) error {
	var answer struct {
		Snapshot bool   `json:"snapshot"`
		Reason   string `json:"reason"`
	}
	if err := c.ask(ctx, typeSnapshot, struct{}{}, &answer); err != nil {
		return err
	}
	if !answer.Snapshot {
		return hearth.Errorf(hearth.CodeUnsupported, "the function cannot be saved: %s", clip(answer.Reason, maxErrorType)).
			WithHint("it starts from its code each time")
	}
	return nil
}

// Resume takes over a guest that was restored from a snapshot, and returns when
// it has renewed what must not be the same in two sandboxes. It takes ownership
// of nc, also on error. opts.Secret is that of the saved guest. Errors: as
// Connect.
func Resume(ctx context.Context, nc net.Conn, opts Options) (*Conn, error) {
	c := newConn(nc, opts)
	seed := make([]byte, seedSize)
	rand.Read(seed) //nolint:errcheck // never fails
	var answer struct{}
	err := c.ask(ctx, typeRestored, map[string]any{"secret": opts.Secret, "seed": hex.EncodeToString(seed)}, &answer)
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
