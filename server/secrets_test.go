package server

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hearthrun/hearth"
)

// TestWatchKeyFile: a lost key file is told of once, and so is its return.
func TestWatchKeyFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		missing := hearth.Errorf(hearth.CodeUnavailable, "it is missing").WithHint("restore it")
		each := []error{nil, missing, missing, nil, nil} // minute
		ctx, cancel := context.WithCancel(t.Context())
		watchKeyFile(ctx, func() (err error) {
			err, each = each[0], each[1:]
			if len(each) == 0 {
				cancel()
			}
			return err
		}, slog.New(slog.NewTextHandler(&out, nil)))
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[1], "there again") ||
			!strings.Contains(lines[0], `level=ERROR msg="the secrets are lost when this server ends" err="it is missing" hint="restore it"`) {
			t.Errorf("the log is %s", out.String())
		}
	})
}
