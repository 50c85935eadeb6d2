package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"path/filepath"
	"slices"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

const (
	// streamDir is where the files of a function are that were sent to its guest.
	streamDir = "/tmp/function"
	// maxStream is how large, in bytes, the files of a function may be that are
	// sent: they are in the memory of the sandbox then, and take time on the way.
	maxStream = 4 << 20
	// stemShare is the part of the memory budget that stem cells may have together.
	stemShare = 8
	// stemMemory is what a stem cell is expected to use before one of its kind was
	// weighed, in bytes.
	stemMemory = 32 << 20
)

// class is a kind of stem cells: those that are started in the same way. Limits
// of a function that differ are set when a stem cell becomes an instance.
type class struct {
	isolation string
	runtime   string
	// memory is that of the function rounded up to a power of two: some
	// interpreters choose the size of their heaps by it when they start.
	memory int64
	cpu    float64
	egress hearth.Egress
}

// limits are those of the stem cells of the class.
func (c class) limits() driver.Limits { return driver.Limits{Memory: c.memory, CPU: c.cpu} }

// stock is the stem cells of one class. Guarded by Pool.mu.
type stock struct {
	class    class
	cells    []*instance // the newest last
	starting int
	demand   demand
	memory   int64 // the most that one was seen to use, in bytes
	failures int   // starts that failed, or stem cells that died, since one was taken
	retryAt  time.Time
	// streams: the driver's sandboxes have no slots, the files must be sent.
	streams bool
}

// demand is how many instances of a class were started lately: in each of the
// last buckets of time.
type demand struct {
	buckets [30]uint16
	at      int64     // the number of the newest bucket since 1970
	last    time.Time // of the last start or deploy
}

const (
	demandBucket = 10 * time.Second
	// demandKept is how long one stem cell is kept after the last start or deploy
	// of a function of its class.
	demandKept = 30 * time.Minute
)

func (d *demand) touch(now time.Time) { d.last = now }

// add counts one start.
func (d *demand) add(now time.Time) {
	d.advance(now)
	d.last = now
	if b := &d.buckets[d.at%int64(len(d.buckets))]; *b < 1<<16-1 {
		*b++
	}
}

func (d *demand) advance(now time.Time) {
	at := now.UnixNano() / int64(demandBucket)
	for i := max(d.at+1, at-int64(len(d.buckets))+1); i <= at; i++ {
		d.buckets[i%int64(len(d.buckets))] = 0
	}
	d.at = max(d.at, at)
}

// want is how many stem cells there should be, at most most: as many as were
// wanted at once in the last minutes, at least one while the class is in use.
func (d *demand) want(now time.Time, most int) int {
	if d.last.IsZero() || now.Sub(d.last) > demandKept {
		return 0
	}
	d.advance(now)
	peak := 1
	for _, b := range d.buckets {
		peak = max(peak, int(b))
	}
	return min(peak, most)
}

// why says in words why there should be that many.
func (d *demand) why(want int) string {
	if want == 0 {
		return fmt.Sprintf("no function of this kind was started for %s", hearth.Duration(demandKept))
	}
	return fmt.Sprintf("at most %d were wanted within %s lately", want, hearth.Duration(demandBucket))
}

// stockLocked returns the stock that a version's instances come from.
func (p *Pool) stockLocked(v *hearth.Version) *stock {
	c := class{
		isolation: v.Config.Isolation, runtime: v.Config.Runtime, egress: v.Config.Egress,
		memory: int64(v.Config.Memory), cpu: v.Config.CPU,
	}
	if !p.rigid[c.isolation] {
		c.memory, c.cpu = 1<<bits.Len64(uint64(max(c.memory, 1)-1)), driver.DefaultCPU
	}
	s := p.stocks[c]
	if s == nil {
		s = &stock{class: c}
		p.stocks[c] = s
	}
	return s
}

// stemForLocked returns the stem cell that is best for another instance of the
// group, nil if there is none or another way is faster.
func (p *Pool) stemForLocked(g *group, why purpose) *instance {
	if snap := p.snapshots[g.version.Incarnation]; snap != nil && !snap.slower || g.stemless {
		return nil
	}
	if _, restorer := p.cfg.Drivers[g.version.Config.Isolation].(driver.Restorer); restorer && why == forVerification && p.cfg.SnapshotDir != "" && len(g.version.Secrets) == 0 {
		return nil // what is saved must be started like what is restored
	}
	s := p.stockLocked(&g.version)
	if n := len(s.cells); n > 0 {
		return s.cells[n-1]
	}
	return nil
}

// takeLocked takes a stem cell out of its stock.
func (p *Pool) takeLocked(inst *instance) {
	s := inst.stock
	s.cells = slices.DeleteFunc(s.cells, func(i *instance) bool { return i == inst })
	s.failures = 0
}

// failed keeps the stock from being filled for a while.
func (s *stock) failed(now time.Time) {
	s.failures++
	s.retryAt = now.Add(backoff(s.failures))
}

// restockLocked starts the stem cells that are missing, as long as no function
// needs what that takes, and ends those that are too many.
func (p *Pool) restockLocked() {
	if p.closed || p.cfg.MaxStems < 0 {
		return
	}
	now := time.Now()
	for c, s := range p.stocks {
		want := s.demand.want(now, p.cfg.MaxStems)
		for len(s.cells) > want {
			p.removeLocked(s.cells[0], s.demand.why(want))
		}
		if want == 0 && s.starting == 0 && len(s.cells) == 0 {
			delete(p.stocks, c)
			continue
		}
		for len(s.cells)+s.starting < want && !now.Before(s.retryAt) && p.stemRoomLocked(s) {
			p.growStockLocked(s, now, s.demand.why(want))
		}
	}
}

// stemRoomLocked tells whether there is room for another stem cell that nobody
// needs yet.
func (p *Pool) stemRoomLocked(s *stock) bool {
	if len(p.hungry) > 0 || p.queued > 0 && len(s.cells) > 0 || p.starts >= max(1, p.cfg.MaxStarts/2) || len(p.instances) >= p.cfg.MaxInstances {
		return false
	}
	bytes := s.estimate()
	stems := bytes
	for inst := range p.instances {
		if inst.group == nil {
			stems += inst.charge
		}
	}
	return stems <= p.cfg.Memory/stemShare && p.used+bytes <= p.cfg.Memory
}

func (s *stock) estimate() int64 {
	if s.memory == 0 {
		return stemMemory
	}
	return max(leastMemory/2, s.memory*5/4)
}

// emptyLocked ends all stem cells of a stock.
func (p *Pool) emptyLocked(s *stock, why string) {
	for len(s.cells) > 0 {
		p.removeLocked(s.cells[0], why)
	}
}

func (p *Pool) growStockLocked(s *stock, now time.Time, why string) {
	inst := p.newInstanceLocked(now)
	inst.stock = s
	p.chargeLocked(inst, s.estimate())
	s.starting++
	p.holdLocked(inst)
	p.setState(inst, hearth.InstanceStarting, why)
	p.wg.Go(func() { p.startStem(inst) })
}

// startStem makes a stem cell and puts it into its stock.
func (p *Pool) startStem(inst *instance) {
	ctx, cancel := context.WithCancel(p.background)
	defer cancel()
	stop := context.AfterFunc(p.stems, cancel)
	defer stop()
	err := inst.startStem(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := inst.stock
	s.starting--
	p.letGoLocked(inst)
	defer p.feedLocked()
	switch {
	case err != nil && !s.streams && hearth.ErrorCode(err) == hearth.CodeUnsupported:
		s.streams = true // it has no slots
		p.removeLocked(inst, "its driver has no slots")
	case err != nil:
		s.failed(time.Now())
		if ctx.Err() == nil {
			p.cfg.Logger.Warn("a stem cell did not start", "isolation", s.class.isolation, "runtime", s.class.runtime, "err", err)
		}
		p.removeLocked(inst, "it did not start: "+hearth.AsError(err).Message)
	case p.closed:
		p.removeLocked(inst, whyClosing)
	default:
		s.cells = append(s.cells, inst)
		p.setState(inst, hearth.InstanceStem, "")
		p.watchLocked(inst)
	}
}

// startStem makes the sandbox of a stem cell.
func (i *instance) startStem(ctx context.Context) error {
	c := i.stock.class
	d, ok := i.pool.cfg.Drivers[c.isolation]
	if !ok {
		return hearth.Errorf(hearth.CodeNotFound, "this server has no driver %q", c.isolation)
	}
	spec := i.spec()
	spec.Runtime, spec.Limits, spec.Egress = c.runtime, c.limits(), c.egress
	spec.Labels = map[string]string{"stem-cell": c.runtime}
	if !i.stock.streams {
		spec.Slots = []string{codeDir}
	}
	return i.create(ctx, d, spec)
}

// specialise makes a stem cell an instance of v, whose files are in dir. If it
// does not fit, the instance is to be started in another way.
func (i *instance) specialise(ctx context.Context, v *hearth.Version, dir string) (fit bool, err error) {
	limits := driver.Limits{Memory: int64(v.Config.Memory), CPU: v.Config.CPU}
	if limits != i.stock.class.limits() {
		resizer, ok := i.sandbox.(driver.Resizer)
		if !ok {
			i.pool.mu.Lock()
			i.pool.rigid[v.Config.Isolation] = true
			i.pool.stockLocked(v).demand.touch(time.Now()) // of its very limits
			i.pool.mu.Unlock()
			return false, errors.New("its limits cannot be changed")
		}
		if err := resizer.Resize(ctx, limits); err != nil {
			return false, err
		}
	}
	code, archive := codeDir, ""
	if mounter, ok := i.sandbox.(driver.Mounter); ok && !i.stock.streams {
		if err := mounter.Mount(ctx, driver.Mount{Source: dir, Target: codeDir}); err != nil {
			return false, err
		}
	} else {
		if err := checkStream(dir); err != nil {
			return false, err
		}
		code, archive = streamDir, dir
	}
	i.started = time.Now()
	err = i.init(ctx, code, archive)
	return err == nil || i.functionFailed(err), err
}

// functionFailed tells whether err is the function's, and would be no other in a
// new sandbox.
func (i *instance) functionFailed(err error) bool {
	return hearth.ErrorCode(err) == hearth.CodeFunction && !errors.Is(err, guest.ErrUnread)
}

// checkStream returns an error if the files below dir are too large to be sent.
func checkStream(dir string) error {
	var bytes int64
	return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if bytes += info.Size(); bytes > maxStream {
			return fmt.Errorf("the function's files have more than %s", hearth.Bytes(maxStream))
		}
		return nil
	})
}

// stream loads the function from files that are sent to the guest.
func (i *instance) stream(ctx context.Context, in guest.Init, dir string) (guest.Ready, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(guest.WriteArchive(w, dir)) }() //nolint:errcheck // never fails
	defer r.Close()
	return i.conn.InitArchive(ctx, in, r)
}
