package bench

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

const (
	// activeShare is one of how many functions is called.
	activeShare = 100
	// manyRounds is in how many windows calls are measured, by turns.
	manyRounds = 4
	// manyConnections is the load whose throughput is compared.
	manyConnections = 64
)

// many compares a server that has many functions, of which few are called, with
// one that has only those few.
func (p *pooling) many(ctx context.Context) (err error) {
	m := &Many{Functions: p.o.Functions, Active: max(1, p.o.Functions/activeShare)}
	p.report.Many = m
	fail := func(err error) error {
		if ctx.Err() == nil {
			m.Problem = oneLine(err)
			p.logf("many   %s", m.Problem)
			return nil
		}
		return ctx.Err()
	}
	runtime, err := p.pinned(ctx)
	if err != nil {
		return fail(err)
	}
	var crowds []*crowd
	defer func() {
		for _, c := range crowds {
			if stopErr := c.server.Stop(ctx); err == nil {
				err = stopErr
			}
		}
	}()
	for _, n := range []int{m.Active, m.Functions} {
		c, err := p.startCrowd(ctx, runtime, n)
		if err != nil {
			return fail(err)
		}
		crowds = append(crowds, c)
		p.logf("many   %d functions: ready after %s", n, c.server.ReadyTime.Round(time.Millisecond))
		if err := c.weigh(ctx, m.Active); err != nil {
			return fail(err)
		}
		p.logf("many   %d functions, %d called: server %.1f MB (PSS), heap %.1f MB", n, m.Active, float64(c.pss)/1e6, float64(c.heap)/1e6)
	}
	few, all := crowds[0], crowds[1]
	inactive := int64(max(1, m.Functions-m.Active))
	m.FewPSS, m.ManyPSS = few.pss, all.pss
	m.PerFunction, m.HeapPerFunction = (all.pss-few.pss)/inactive, (all.heap-few.heap)/inactive
	m.FewReadyMS, m.ManyReadyMS = millis(few.server.ReadyTime), millis(all.server.ReadyTime)
	if err := p.compareCrowds(ctx, few, all, m); err != nil {
		return fail(err)
	}
	return nil
}

// pinned returns the runtime that Python functions get.
func (p *pooling) pinned(ctx context.Context) (string, error) {
	drivers, err := p.client.Drivers(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range drivers {
		if rt, ok := pickRuntime(d.Runtimes, "python"); ok && d.Name == p.o.Drivers[0] {
			return rt.Name, nil
		}
	}
	return "", hearth.Errorf(hearth.CodeUnsupported, "%s has no Python here", p.o.Drivers[0])
}

// crowd is a server with a number of functions.
type crowd struct {
	server *Server
	base   *url.URL
	debug  string // where it serves its profiles
	// What the server needs, in bytes: of memory, and of that for objects in use.
	pss, heap int64
}

// startCrowd starts a server that has n functions with the same code. They are
// put into its data directory before: to deploy each would start an instance of
// each, which says nothing about how it is to have them.
func (p *pooling) startCrowd(ctx context.Context, runtime string, n int) (*crowd, error) {
	if p.o.Binary == "" {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the program that starts a server is not known")
	}
	debug, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hearth-bench-")
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "make a data directory: %w", err)
	}
	if err := seed(ctx, filepath.Join(dir, dataDir), runtime, p.o.Drivers[0], n); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	s, err := startServer(ctx, dir, p.o.Binary, "--debug-listen", debug)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(s.URL)
	return &crowd{server: s, base: base, debug: "http://" + debug}, err
}

// crowdFunction is the name of the ith function.
func crowdFunction(i int) string { return fmt.Sprintf("bench-many-%06d", i) }

// seed makes a data directory with n functions, each with a route of its own.
func seed(ctx context.Context, dir, runtime, isolation string, n int) (err error) {
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := s.Close(); err == nil {
			err = closeErr
		}
	}()
	stage, err := s.Stage(ctx)
	if err != nil {
		return err
	}
	defer stage.Discard()
	if err := os.WriteFile(filepath.Join(stage.Dir(), "main.py"), []byte(poolFunction), 0o600); err != nil {
		return err
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(poolFunction)))
	if _, err := stage.Commit(ctx, digest); err != nil {
		return err
	}
	for i := range n {
		cfg := hearth.Config{
			Runtime: runtime, Handler: "main.echo", Isolation: isolation,
			Routes: []hearth.Route{hearth.Route("POST /" + crowdFunction(i) + "/{item}")},
		}.WithDefaults()
		_, _, err := s.CreateFunction(ctx, hearth.Version{Function: crowdFunction(i), Config: cfg, Artifact: digest})
		if err != nil {
			return err
		}
	}
	return nil
}

// weigh calls the first functions and then takes the server's memory.
func (c *crowd) weigh(ctx context.Context, active int) error {
	next := make(chan int, active)
	for i := range active {
		next <- i
	}
	close(next)
	problems := make([]error, 8)
	var wg sync.WaitGroup
	for w := range problems {
		wg.Go(func() {
			for i := range next {
				t, err := echoTarget(ctx, c.base, crowdFunction(i))
				if err == nil {
					_, _, err = once(ctx, t)
				}
				if err != nil {
					problems[w] = fmt.Errorf("call of %s: %w", crowdFunction(i), err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range problems {
		if err != nil {
			return err
		}
	}
	return c.collected(ctx)
}

// collected takes the memory of a server that has collected its garbage and given
// back what it does not need, which it does little by little.
func (c *crowd) collected(ctx context.Context) error {
	for round, same := 0, 0; round < 60 && same < 3; round++ {
		heap, err := c.collect(ctx)
		if err != nil {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		now, err := pss(c.server.PID)
		if err != nil {
			return err
		}
		if same++; now < c.pss-c.pss/200 || c.pss == 0 {
			same = 0
		}
		c.heap, c.pss = heap, now
	}
	return nil
}

// collect has the server collect its garbage and returns how many bytes are in
// use then.
func (c *crowd) collect(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.debug+"/debug/pprof/heap?gc=1&debug=1", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	heap := int64(-1)
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "# HeapAlloc = "); ok {
			heap, err = strconv.ParseInt(v, 10, 64)
		}
	}
	if err == nil && heap < 0 {
		err = fmt.Errorf("the server does not tell its heap: %s", resp.Status)
	}
	return heap, err
}

// compareCrowds measures warm calls of one function of each server by turns,
// found by its name and by its route.
func (p *pooling) compareCrowds(ctx context.Context, few, all *crowd, m *Many) error {
	type windows struct{ one, full, route []sample }
	measured := map[*crowd]*windows{few: {}, all: {}}
	for round := range manyRounds {
		order := []*crowd{few, all}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, c := range order {
			w := measured[c]
			byName, err := echoTarget(ctx, c.base, crowdFunction(0))
			if err != nil {
				return err
			}
			byRoute, err := newTarget(ctx, "route", c.base.JoinPath(crowdFunction(0), "x").String(), []byte(echoBody), []byte(echoBody))
			if err != nil {
				return err
			}
			for _, load := range []struct {
				to *[]sample
				t  target
				n  int
			}{{&w.one, byName, 1}, {&w.route, byRoute, 1}, {&w.full, byName, manyConnections}} {
				s, err := generate(ctx, load.t, load.n, p.o.Duration/20, p.o.Duration/manyRounds)
				if err != nil {
					return err
				}
				*load.to = append(*load.to, s)
			}
		}
	}
	cells := func(c *crowd) ManyCells {
		w := measured[c]
		return ManyCells{
			ByName: newCell("function", 1, w.one), ByRoute: newCell("route", 1, w.route),
			Full: newCell("function", manyConnections, w.full),
		}
	}
	m.Few, m.Many = cells(few), cells(all)
	p.logf("many   warm p50 %.3f ms with %d functions, %.3f ms with %d", m.Few.ByName.P50MS, m.Active, m.Many.ByName.P50MS, m.Functions)
	return nil
}
