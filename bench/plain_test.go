package bench

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestFirstByte runs commands to their end, and ends those that have none.
func TestFirstByte(t *testing.T) {
	for name, c := range map[string]struct {
		script, out, err string
		limit            time.Duration
	}{
		"output":           {script: "printf a; printf b", out: "ab"},
		"no output":        {script: "exit 0", err: "sh printed nothing"},
		"failure":          {script: "echo first >&2; echo last >&2; exit 3", err: "sh failed: last"},
		"silent failure":   {script: "exit 3", err: "sh failed: exit status 3"},
		"deaf":             {script: "trap '' INT; exec /bin/sleep 1000", err: "sh failed: ", limit: 300 * time.Millisecond},
		"child has stdout": {script: "trap '' INT; /bin/sleep 3 & exit 0", err: "sh failed: ", limit: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if c.limit == 0 {
				c.limit = time.Hour
			}
			d, out, err := firstByte(t.Context(), c.limit, func(ctx context.Context) *exec.Cmd {
				return exec.CommandContext(ctx, "/bin/sh", "-c", c.script)
			})
			switch {
			case c.err == "" && (err != nil || string(out) != c.out || d <= 0):
				t.Errorf("%q after %s, %v", out, d, err)
			case c.err != "" && (err == nil || !strings.HasPrefix(err.Error(), c.err) || strings.Contains(err.Error(), "%!")):
				t.Errorf("the error is %v, want %q", err, c.err)
			}
		})
	}
}

// TestColdSamples keeps starts and restores apart.
func TestColdSamples(t *testing.T) {
	var s coldSamples
	s.add(100*time.Millisecond, 80*time.Millisecond, map[string]float64{"start": 10, "init": 80})
	s.add(20*time.Millisecond, 10*time.Millisecond, map[string]float64{"start": 15})
	s.add(20*time.Millisecond, 10*time.Millisecond, map[string]float64{"start": 15})
	fresh, restored := s.fresh.report(), s.restored.report()
	if fresh == nil || len(s.fresh.wall) != 1 || fresh.CPUPer1000 != 80 || fresh.InitMS != 80 {
		t.Errorf("started: %+v", fresh)
	}
	if restored == nil || len(s.restored.wall) != 2 || restored.CPUPer1000 != 10 || restored.StartMS != 15 {
		t.Errorf("restored: %+v", restored)
	}
	if none := (&startSamples{}).report(); none != nil {
		t.Errorf("of nothing: %+v", none)
	}
}
