package pool

import (
	"testing"

	"github.com/hearthrun/hearth"
)

// A call after one whose process ended is told so.
func TestCrashIsTheReason(t *testing.T) {
	d := &fakeDriver{script: func(_ *fakeGuest, invoke []byte) []frame {
		if invocationID(invoke) == "crash" {
			return nil
		}
		return answer("")
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		p.SetLive([]hearth.Version{*v})
		do(t.Context(), p, v, "crash") //nolint:errcheck // it fails
		_, l, err := do(t.Context(), p, v, "next")
		if err != nil || l.ColdReason != hearth.ColdDied {
			t.Errorf("%v; the reason is %q, want %q", err, l.ColdReason, hearth.ColdDied)
		}
	})
}
