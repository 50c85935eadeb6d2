package pool

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/telemetry"
)

// codeDir is where a function's files are inside a sandbox.
const codeDir = "/function"

// destroyTimeout bounds how long a broken host may hold up the pool.
const destroyTimeout = 30 * time.Second

// instance is a sandbox bound to one version, or a stem cell, which gets one
// later.
type instance struct {
	pool *Pool
	id   string
	born time.Time // when the pool decided to start it

	// version is what it is bound to; nil for a stem cell. It is read by those who
	// log its output.
	version atomic.Pointer[hearth.Version]
	// mask hides the secrets of the function in what it prints; nil if it has none.
	mask atomic.Pointer[strings.Replacer]

	// Set by start, constant once it is ready.
	sandbox  driver.Sandbox
	conn     *guest.Conn
	secret   string        // of the guest
	asked    time.Time     // when the version wanted it: since then calls may wait for it
	begun    time.Time     // the driver was asked for the sandbox
	started  time.Time     // the runtime was ready, and the code in its place
	creation time.Duration // from begun until the runtime was ready
	inited   time.Time     // the function was loaded
	restored *snapshot     // what it was restored from, nil if it loaded its function itself
	ready    guest.Ready
	output   []*telemetry.LineWriter
	secrets  map[string][]byte // until the function has them; nil if it has none
	last     lastLines

	frost *frost

	// Guarded by Pool.mu.
	group    *group // nil for a stem cell
	stock    *stock // of which it is or was a stem cell, else nil
	watched  *guest.Conn
	state    hearth.InstanceState
	why      string // why it is in this state
	reason   string // why it was started
	since    time.Time
	creating bool // it has one of the places of Config.MaxStarts
	calls    int  // it has now
	held     int  // of calls, those of Pool.Hold
	slots    int  // calls it can have
	draining bool // it gets no more calls
	fresh    bool // no call was lent it yet
	ahead    bool // no call waits for it to start
	purpose  purpose
	served   int64
	charge   int64        // bytes of the pool's budget
	usage    driver.Stats // when it was last weighed
	weighed  time.Time    // zero if it was never, or served a call since
	// weighings is how often it was weighed since its last call.
	weighings int
	meter     usageMeter
}

func (p *Pool) newInstanceLocked(now time.Time) *instance {
	var id [8]byte
	rand.Read(id[:]) //nolint:errcheck // never fails
	inst := &instance{pool: p, id: fmt.Sprintf("i-%x", id), born: now, frost: newFrost(), meter: usageMeter{since: now}}
	p.instances[inst] = struct{}{}
	return inst
}

// free is how many more calls the instance can have now. A call that its caller
// left takes its place until it ends. Pool.mu is held.
func (i *instance) free() int {
	if i.draining || i.conn == nil {
		return 0
	}
	return i.slots - i.calls - i.conn.Abandoned()
}

// gone tells whether the instance is being destroyed, or was. Pool.mu is held.
func (i *instance) gone() bool {
	return i.state == hearth.InstanceStopping || i.state == hearth.InstanceStopped
}

// timings attributes the time between asked and got of a call that waited for
// this instance to be made. Its start may have begun before the call asked.
func (i *instance) timings(asked, got time.Time) hearth.Timings {
	var t hearth.Timings
	t.Start = overlap(asked, got, i.asked, i.started)
	t.Init = overlap(asked, got, i.started, i.inited)
	t.Queue = got.Sub(asked) - t.Start - t.Init
	return t
}

func overlap(a0, a1, b0, b1 time.Time) time.Duration {
	if b0.After(a0) {
		a0 = b0
	}
	if b1.Before(a1) {
		a1 = b1
	}
	return max(0, a1.Sub(a0))
}

// start makes the sandbox with the function loaded: from a stem cell if that is
// what the instance is, from the version's snapshot if there is one, else from
// the beginning. On an error nothing remains but the output, for destroy.
func (i *instance) start(ctx context.Context) error {
	v, cfg := i.version.Load(), &i.pool.cfg
	d, ok := cfg.Drivers[v.Config.Isolation]
	if !ok {
		return hearth.Errorf(hearth.CodeUnsupported, "this server has no driver %q", v.Config.Isolation).
			WithHint("hearth doctor lists the drivers")
	}
	dir, err := cfg.Artifacts.ArtifactDir(v.Artifact)
	if err != nil {
		return err
	}
	secrets, mask, err := i.pool.openSecrets(ctx, v)
	if err != nil {
		return err
	}
	i.secrets = secrets
	i.mask.Store(mask)
	defer func() { i.secrets = nil }()
	if i.sandbox != nil {
		fit, err := i.specialise(ctx, v, dir)
		if fit || ctx.Err() != nil {
			return err
		}
		cfg.Logger.Info("a stem cell could not be used; the function starts without it",
			"function", v.Function, "version", v.Number, "instance", i.id, "err", err)
		i.reset()
	}
	spec := i.spec()
	spec.Runtime = v.Config.Runtime
	spec.Mounts = []driver.Mount{{Source: dir, Target: codeDir}}
	spec.Limits = driver.Limits{Memory: int64(v.Config.Memory), CPU: v.Config.CPU}
	spec.Egress = v.Config.Egress
	spec.Labels = map[string]string{"function": v.Function, "version": fmt.Sprint(v.Number)}
	if s := i.pool.snapshotOf(v.Incarnation); s != nil && i.restore(ctx, d, spec, s) {
		return nil
	}
	if ctx.Err() != nil {
		return errClosing()
	}
	if err := i.create(ctx, d, spec); err != nil {
		return err
	}
	i.pool.created(i)
	return i.init(ctx, codeDir, "")
}

// spec is what the specs of all instances have in common.
func (i *instance) spec() driver.Spec {
	stdout, stderr := i.lineWriter("stdout"), i.lineWriter("stderr")
	i.output = append(i.output, stdout, stderr)
	return driver.Spec{ID: i.id, Stdout: stdout, Stderr: stderr}
}

// reset undoes what was made of the instance, so that it can be started anew.
func (i *instance) reset() {
	i.destroySandbox()
	i.sandbox, i.conn, i.restored, i.ready = nil, nil, nil, guest.Ready{}
}

// secretEnv is how a guest learns its secret.
func secretEnv(secret string) map[string]string { return map[string]string{"HEARTH_SECRET": secret} }

// create makes the sandbox and greets its guest.
func (i *instance) create(ctx context.Context, d driver.Driver, spec driver.Spec) (err error) {
	limit := i.pool.cfg.StartTimeout
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	i.begun = time.Now()
	i.secret = rand.Text()
	spec.Env = secretEnv(i.secret)
	i.sandbox, err = d.Create(ctx, spec)
	if err != nil {
		return startError(ctx, err, limit)
	}
	nc, err := i.sandbox.Dial(ctx)
	if err != nil {
		return startError(ctx, err, limit)
	}
	i.conn, _, err = guest.Connect(ctx, nc, i.options())
	if err != nil {
		// No code of the user has run yet, so it is not the function's fault.
		return startError(ctx, i.explain(err), limit)
	}
	i.started = time.Now()
	i.creation = i.started.Sub(i.begun)
	return nil
}

// options are those of the connection to the guest.
func (i *instance) options() guest.Options {
	return guest.Options{
		Secret: i.secret, OnLog: i.log, Grace: i.pool.cfg.Grace,
		OnSettled: func() { i.pool.settled(i) },
	}
}

// init loads the function. Its files are in code; if archive is a directory of
// the host, they are sent there from it first.
func (i *instance) init(ctx context.Context, code, archive string) (err error) {
	v, limit := i.version.Load(), i.pool.cfg.InitTimeout
	initCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	in := guest.Init{
		Function: v.Function,
		Version:  v.Number,
		Handler:  v.Config.Handler,
		Code:     code,
		MemoryMB: int64(v.Config.Memory) >> 20,
		Env:      v.Config.Env,
	}
	if i.secrets != nil {
		addSecrets(&in, v.Config, i.secrets)
		in.Mask = i.masked
	}
	if archive == "" {
		i.ready, err = i.conn.Init(initCtx, in)
	} else {
		i.ready, err = i.stream(initCtx, in, archive)
	}
	if err != nil {
		if errors.Is(initCtx.Err(), context.DeadlineExceeded) {
			return hearth.Errorf(hearth.CodeFunction, "the function did not load within %s", hearth.Duration(limit)).
				WithHint("look for something at the top of its files that waits or never ends")
		}
		if ctx.Err() != nil {
			return errClosing()
		}
		return i.explain(err)
	}
	i.inited = time.Now()
	return nil
}

func startError(ctx context.Context, err error, limit time.Duration) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return hearth.Errorf(hearth.CodeUnavailable, "the sandbox did not start within %s: %w", hearth.Duration(limit), err).
			WithHint("the host may be overloaded; hearth doctor tests its drivers")
	}
	if ctx.Err() != nil {
		return errClosing()
	}
	var he *hearth.Error
	if errors.As(err, &he) && he.Code != hearth.CodeFunction && he.Code != hearth.CodeInternal {
		return err
	}
	return hearth.Errorf(hearth.CodeUnavailable, "the sandbox did not start: %w", err).
		WithHint("hearth doctor tests the drivers of this host")
}

// warmUp runs the function's warm-up, with the event that its owner set for it.
// Errors: as guest.Conn.Invoke.
func (i *instance) warmUp(ctx context.Context) error {
	v := i.version.Load()
	call := guest.Call{ID: i.id + "-warmup", Kind: hearth.KindWarmup, Deadline: time.Now().Add(time.Duration(v.Config.Timeout))}
	if v.Config.Warm.Call != nil {
		event, err := json.Marshal(v.Config.Warm.Call)
		if err != nil {
			return err
		}
		call.Body = event
	}
	ctx, cancel := context.WithDeadline(ctx, call.Deadline)
	defer cancel()
	err := i.conn.Invoke(ctx, &call, discard{})
	if err == nil {
		return nil
	}
	err = i.explain(err)
	e := *hearth.AsError(err)
	e.Message = "the function's warm-up failed: " + e.Message
	return &e
}

// discard takes a response that nobody wants.
type discard struct{}

func (discard) Head(*guest.Head) error  { return nil }
func (discard) Data([]byte, bool) error { return nil }
func (discard) Flush() error            { return nil }

// explain replaces the error of a call whose instance died by why it died.
func (i *instance) explain(err error) error {
	var he *hearth.Error
	if !errors.As(err, &he) || he.Function == nil || he.Function.Type != "Runtime.ExitError" || i.sandbox == nil {
		return err
	}
	// The stream may have ended a moment before the process.
	ctx, cancel := context.WithTimeout(i.pool.background, time.Second)
	defer cancel()
	exit, waitErr := i.sandbox.Wait(ctx)
	if waitErr != nil {
		return hearth.AsError(err).WithHint("it closed its connection to Hearth but still ran; its code must not close descriptors it did not open")
	}
	out := *he
	fe := *he.Function
	switch limit := i.memoryLimit(); {
	case exit.OOM:
		fe.Type = "Runtime.OutOfMemory"
		fe.Message = fmt.Sprintf("the function used more than its %s of memory", limit)
		out.Hint = "raise memory in hearth.yaml, or let it use less"
	case exit.Signal != 0:
		fe.Message = fmt.Sprintf("the function's process was ended by signal %d (%s)", exit.Signal, syscall.Signal(exit.Signal))
	default:
		fe.Message = fmt.Sprintf("the function's process exited with status %d before it answered", exit.Code)
		out.Hint = "a handler must return; it must not call exit"
	}
	fe.Stack = i.last.get()
	out.Function, out.Message = &fe, fe.Message
	return &out
}

// memoryLimit is that of the sandbox.
func (i *instance) memoryLimit() hearth.Bytes {
	if v := i.version.Load(); v != nil {
		return v.Config.Memory
	}
	return hearth.Bytes(i.stock.class.memory)
}

// destroy frees everything of the instance.
func (i *instance) destroy() {
	i.destroySandbox()
	for _, w := range i.output {
		w.Close()
	}
}

func (i *instance) destroySandbox() {
	if i.conn != nil {
		i.conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(i.pool.background), destroyTimeout)
	defer cancel()
	i.meterLast(ctx)
	if i.sandbox != nil {
		if err := i.sandbox.Destroy(ctx); err != nil {
			i.pool.cfg.Logger.Error("a sandbox could not be destroyed", "instance", i.id, "function", i.functionName(), "err", err)
		}
	}
}

// maxFrameLines bounds the lines taken from one frame: a megabyte of line ends
// would keep the server busy, not the function.
const maxFrameLines = 20_000

// log takes output that the guest tagged with its call.
func (i *instance) log(invocation string, stream int, text []byte) {
	name := "stdout"
	if stream == 2 {
		name = "stderr"
	}
	n := 0
	for line := range strings.Lines(strings.ToValidUTF8(i.masked(string(text)), "\uFFFD")) {
		if n++; n > maxFrameLines {
			i.append("hearth", hearth.LevelWarn, invocation, "log lines were dropped: too many at once")
			return
		}
		i.append(name, "", invocation, strings.TrimRight(line, "\r\n"))
	}
}

// lineWriter takes output that bypassed the guest: of child processes, native
// libraries, the interpreter itself.
func (i *instance) lineWriter(stream string) *telemetry.LineWriter {
	return telemetry.NewLineWriter(func(text string) {
		text = i.masked(text)
		i.last.add(text)
		i.append(stream, "", "", text)
	})
}

// lastLines keeps the newest lines of raw output: what an interpreter says
// before it dies is often the only reason there is.
type lastLines struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (l *lastLines) add(text string) {
	const most = 20
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == most {
		l.lines = append(l.lines[:0], l.lines[1:]...)
	}
	l.lines = append(l.lines, text)
}

func (l *lastLines) get() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// functionName is for logs; a stem cell has none.
func (i *instance) functionName() string {
	if v := i.version.Load(); v != nil {
		return v.Function
	}
	return ""
}

func (i *instance) append(stream string, level hearth.LogLevel, invocation, text string) {
	v := i.version.Load()
	if v == nil { // nobody's code has run in it
		i.pool.cfg.Logger.Debug("output of a stem cell", "instance", i.id, "stream", stream, "text", text)
		return
	}
	i.pool.cfg.Logs.Append(hearth.LogLine{
		Time:       time.Now(),
		Function:   v.Function,
		Version:    v.Number,
		Instance:   i.id,
		Invocation: invocation,
		Stream:     stream,
		Level:      level,
		Text:       text,
	})
}
