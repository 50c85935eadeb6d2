package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// coldPause lets the machine come to rest before a cold start: what is measured
// is one start, not several that fight for the cores.
const coldPause = 100 * time.Millisecond

// coldStarts measures cold calls and bare starts of the interpreter in turns.
func (r *run) coldStarts(ctx context.Context, function string) error {
	if r.o.ColdIterations < 0 {
		return nil
	}
	t, err := r.target(ctx, function)
	if err != nil {
		return err
	}
	c := &ColdStart{}
	r.report.Cold = c
	// The first start of an interpreter fills the page cache.
	if _, err := bareStart(ctx, r.interp); err != nil {
		return err
	}
	var bare, wall []float64
	split := map[string][]float64{}
	for attempts := 0; len(wall) < r.o.ColdIterations && c.Problem == ""; attempts++ {
		if attempts >= 3*r.o.ColdIterations {
			c.Problem = fmt.Sprintf("only %d of %d calls were cold", len(wall), attempts)
			break
		}
		if err := r.evict(ctx, function); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.Problem = err.Error()
			break
		}
		if err := pause(ctx, coldPause); err != nil {
			return err
		}
		b, err := bareStart(ctx, r.interp)
		if err != nil {
			return err
		}
		if err := pause(ctx, coldPause); err != nil {
			return err
		}
		d, resp, err := once(ctx, t)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.Problem = describe(err, d)
		case !resp.started:
			c.Problem = "the answer has no Hearth-Start header"
		case !resp.cold:
			c.Warm++
		default:
			bare = append(bare, millis(b))
			wall = append(wall, millis(d))
			for name, ms := range parseTiming(string(resp.timing)) {
				split[name] = append(split[name], ms)
			}
		}
	}
	c.Iterations = len(wall)
	if len(wall) > 0 {
		c.Bare, c.Wall = summarize(bare), summarize(wall)
		c.QueueMS, c.StartMS = median(split["queue"]), median(split["start"])
		c.InitMS, c.RunMS = median(split["init"]), median(split["run"])
		r.logf("cold start  %.1f ms, bare interpreter %.1f ms (medians of %d)", c.Wall.P50MS, c.Bare.P50MS, c.Iterations)
	}
	if c.Problem != "" {
		r.logf("cold start  %s", c.Problem)
	}
	return nil
}

// once sends one request on a connection of its own and returns how long its
// answer took, without the connecting. An answer that is not the target's is an
// error.
func once(ctx context.Context, t target) (time.Duration, *response, error) {
	d, resp, err := exchange(ctx, t)
	if err == nil {
		if err = check(resp, t.answer); err != nil && len(resp.code) > 0 {
			err = hearth.Errorf(hearth.Code(resp.code), "%w", err)
		}
	}
	return d, resp, err
}

// exchange is once for any answer.
func exchange(ctx context.Context, t target) (time.Duration, *response, error) {
	w := &worker{target: t}
	if err := w.dial(ctx); err != nil {
		return 0, nil, err
	}
	defer w.hangUp()
	w.responses.details = true
	_ = w.conn.SetDeadline(time.Now().Add(answerGrace))
	start := time.Now()
	if _, err := w.conn.Write(t.request); err != nil {
		return time.Since(start), nil, err
	}
	resp, err := w.responses.read()
	return time.Since(start), resp, err
}

// parseTiming reads a Server-Timing header, "queue;dur=0.1, run;dur=12", into
// milliseconds. It leaves out what it does not understand.
func parseTiming(header string) map[string]float64 {
	out := map[string]float64{}
	for metric := range strings.SplitSeq(header, ",") {
		params := strings.Split(metric, ";")
		for _, p := range params[1:] {
			k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
			ms, err := strconv.ParseFloat(strings.Trim(v, `"`), 64)
			if strings.EqualFold(k, "dur") && err == nil && ms >= 0 && ms < 1e9 {
				out[strings.TrimSpace(params[0])] = ms
			}
		}
	}
	return out
}
