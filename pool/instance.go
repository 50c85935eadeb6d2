package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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

type state int

const (
	stateStarting state = iota + 1
	stateIdle           // in group.idle
	stateLent           // one call has it
	stateSettling       // its caller left, its call has not ended
	stateDead           // being destroyed
)

// instance is a sandbox bound to one version.
type instance struct {
	pool  *Pool
	group *group
	id    string
	asked time.Time // when the pool decided to start it

	// Set by start, constant afterwards.
	sandbox  driver.Sandbox
	conn     *guest.Conn
	secret   string    // of the guest
	begun    time.Time // the driver was asked for the sandbox
	started  time.Time // the runtime was ready
	inited   time.Time // the function was loaded
	restored *snapshot // what it was restored from, nil if it loaded its function itself
	ready    guest.Ready
	output   []*telemetry.LineWriter
	last     lastLines

	state     state     // guarded by Pool.mu
	idleSince time.Time // guarded by Pool.mu
	fresh     bool      // belongs to who has the instance; neither idle nor in a call yet
}

// setState is the one place where an instance changes its state.
func (i *instance) setState(s state) {
	if i.state == stateDead {
		panic("pool: a dead instance was used")
	}
	i.state = s
}

func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("i-%x", b)
}

// lease attributes the time between asked and got for a call that waited. A
// fresh instance was made because of a call, but its start may have begun
// before this one asked.
func (i *instance) lease(asked, got time.Time) *Lease {
	l := &Lease{Conn: i.conn, Instance: i.id, Ready: i.ready, Cold: i.fresh, inst: i}
	wait := got.Sub(asked)
	if i.fresh {
		l.Timings.Start = overlap(asked, got, i.asked, i.started)
		l.Timings.Init = overlap(asked, got, i.started, i.inited)
	}
	l.Timings.Queue = wait - l.Timings.Start - l.Timings.Init
	return l
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

// start makes the sandbox with the function loaded, from the version's snapshot
// if there is one. On an error nothing remains but the output, for destroy.
func (i *instance) start(ctx context.Context) error {
	v, cfg := &i.group.version, &i.pool.cfg
	d, ok := cfg.Drivers[v.Config.Isolation]
	if !ok {
		return hearth.Errorf(hearth.CodeUnsupported, "this server has no driver %q", v.Config.Isolation).
			WithHint("hearth doctor lists the drivers")
	}
	dir, err := cfg.Artifacts.ArtifactDir(v.Artifact)
	if err != nil {
		return err
	}
	stdout, stderr := i.lineWriter("stdout"), i.lineWriter("stderr")
	i.output = []*telemetry.LineWriter{stdout, stderr}
	spec := driver.Spec{
		ID:      i.id,
		Runtime: v.Config.Runtime,
		Mounts:  []driver.Mount{{Source: dir, Target: codeDir}},
		Limits:  driver.Limits{Memory: int64(v.Config.Memory), CPU: v.Config.CPU},
		Egress:  v.Config.Egress,
		Labels:  map[string]string{"function": v.Function, "version": fmt.Sprint(v.Number)},
		Stdout:  stdout,
		Stderr:  stderr,
	}
	if s := i.pool.snapshotOf(v.Incarnation); s != nil && i.restore(ctx, d, spec, s) {
		return nil
	}
	if ctx.Err() != nil {
		return errClosing()
	}
	i.begun = time.Now()
	i.secret = rand.Text()
	spec.Env = secretEnv(i.secret)
	if err := i.create(ctx, d, spec); err != nil {
		return err
	}
	return i.init(ctx)
}

// secretEnv is how a guest learns its secret.
func secretEnv(secret string) map[string]string { return map[string]string{"HEARTH_SECRET": secret} }

// create makes the sandbox and greets its guest.
func (i *instance) create(ctx context.Context, d driver.Driver, spec driver.Spec) (err error) {
	limit := i.pool.cfg.StartTimeout
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	i.sandbox, err = d.Create(ctx, spec)
	if err != nil {
		return startError(ctx, err, limit)
	}
	nc, err := i.sandbox.Dial(ctx)
	if err != nil {
		return startError(ctx, err, limit)
	}
	i.conn, _, err = guest.Connect(ctx, nc, guest.Options{Secret: i.secret, OnLog: i.log})
	if err != nil {
		// No code of the user has run yet, so it is not the function's fault.
		return startError(ctx, i.explain(err), limit)
	}
	i.started = time.Now()
	return nil
}

// init loads the function.
func (i *instance) init(ctx context.Context) (err error) {
	v, limit := &i.group.version, i.pool.cfg.InitTimeout
	initCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	i.ready, err = i.conn.Init(initCtx, guest.Init{
		Function: v.Function,
		Version:  v.Number,
		Handler:  v.Config.Handler,
		Code:     codeDir,
		MemoryMB: int64(v.Config.Memory) >> 20,
		Env:      v.Config.Env,
	})
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
	switch limit := i.group.version.Config.Memory; {
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
	if i.sandbox != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(i.pool.background), destroyTimeout)
		defer cancel()
		if err := i.sandbox.Destroy(ctx); err != nil {
			i.pool.cfg.Logger.Error("a sandbox could not be destroyed", "instance", i.id, "function", i.group.version.Function, "err", err)
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
	for line := range strings.Lines(strings.ToValidUTF8(string(text), "\uFFFD")) {
		if n++; n > maxFrameLines {
			i.append("hearth", invocation, "log lines were dropped: too many at once")
			return
		}
		i.append(name, invocation, strings.TrimRight(line, "\r\n"))
	}
}

// lineWriter takes output that bypassed the guest: of child processes, native
// libraries, the interpreter itself.
func (i *instance) lineWriter(stream string) *telemetry.LineWriter {
	return telemetry.NewLineWriter(func(text string) {
		i.last.add(text)
		i.append(stream, "", text)
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

func (i *instance) append(stream, invocation, text string) {
	v := &i.group.version
	i.pool.cfg.Logs.Append(hearth.LogLine{
		Time:       time.Now(),
		Function:   v.Function,
		Version:    v.Number,
		Instance:   i.id,
		Invocation: invocation,
		Stream:     stream,
		Text:       text,
	})
}
