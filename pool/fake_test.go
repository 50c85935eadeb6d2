package pool

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// fakeDriver makes sandboxes whose guests are goroutines that follow a script.
type fakeDriver struct {
	// script handles one call of a guest; it returns the frames to answer with,
	// as (type, payload) pairs on the call's stream. nil closes the stream.
	script func(g *fakeGuest, invoke []byte) []frame
	// concurrent is what guests say of their handlers.
	concurrent bool
	// beforeInit runs when a guest is told its function.
	beforeInit func(function string)
	// onInit answers INIT; nil answers READY.
	onInit func() frame
	// onWarmup is script for warm-ups; nil answers at once.
	onWarmup func(g *fakeGuest, invoke []byte) []frame
	// beforeCreate runs first in Create.
	beforeCreate func(ctx context.Context) error

	// onSnapshot answers SNAPSHOT; empty makes a guest that does not know it.
	onSnapshot string
	// beforeRestore runs first in Restore, with the spec and directory.
	beforeRestore func(ctx context.Context, spec driver.Spec, dir string) error
	// whileSaving runs in Snapshot, which fails with its error.
	whileSaving func(dir string) error
	// memory is what sandboxes use, in bytes; 0 where unknown. cpu is what they
	// use of a core, all the time.
	memory int64
	cpu    float64
	// slow makes only Stats tell that, and asked counts how often it does.
	slow  bool
	asked atomic.Int64
	// meter is driver.Meter's; nil where it cannot be told.
	meter func(s *fakeSandbox) time.Duration
	// noSlots makes a driver without slots, rigid one whose sandboxes have no
	// optional interfaces. onMount, onResize, onPause and onResume run first in
	// these methods, which fail with their errors.
	noSlots, rigid    bool
	onMount           func(m driver.Mount) error
	onResize          func(l driver.Limits) error
	onPause, onResume func() error
	// onRestored answers RESTORED; nil closes the stream.
	onRestored func(s *fakeSandbox) *frame

	mu       sync.Mutex
	restored int
	live     map[string]*fakeSandbox
	created  int
	most     int
}

type frame struct {
	typ     byte
	payload string
}

const (
	fHello, fInit, fInvoke, fEnd, fCancel   = 0x01, 0x02, 0x03, 0x05, 0x06
	fSnapshot, fRestored                    = 0x0a, 0x0b
	fReady, fInitError, fResponse, fErrorFr = 0x11, 0x12, 0x13, 0x14
)

func answer(body string) []frame {
	return []frame{{fResponse, `{}`}, {0x04, body}, {fEnd, ""}}
}

type fakeSandbox struct {
	d         *fakeDriver
	id        string
	secret    string
	host, far net.Conn
	exited    chan struct{}
	once      sync.Once
	exit      driver.Exit
	born      time.Time

	mu      sync.Mutex
	limits  driver.Limits
	mounted string // guarded by mu; the source of its mount
	frozen  bool   // guarded by mu
	serves  string // guarded by mu; the function of INIT
	archive bool   // guarded by mu; its files come with INIT
	told    []byte // guarded by mu; the head of INIT
}

// plain is a sandbox without optional interfaces.
type plain struct{ driver.Sandbox }

type fakeGuest struct {
	sb *fakeSandbox
	// canceled receives the stream ids of CANCEL frames.
	canceled chan uint32
}

func (d *fakeDriver) Probe(context.Context) (driver.Info, error) {
	return driver.Info{Name: "fake", Works: true}, nil
}
func (d *fakeDriver) List(context.Context) ([]driver.Sandbox, error) { return nil, nil }
func (d *fakeDriver) Close() error                                   { return nil }

func (d *fakeDriver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if d.beforeCreate != nil {
		if err := d.beforeCreate(ctx); err != nil {
			return nil, err
		}
	}
	if len(spec.Slots) > 0 && d.noSlots {
		return nil, hearth.Errorf(hearth.CodeUnsupported, "no slots")
	}
	d.mu.Lock()
	d.created++
	d.mu.Unlock()
	sb := d.launch(spec)
	if d.rigid {
		return plain{sb}, nil
	}
	return sb, nil
}

func (s *fakeSandbox) Mount(_ context.Context, m driver.Mount) error {
	if s.d.onMount != nil {
		if err := s.d.onMount(m); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted != "" {
		return hearth.Errorf(hearth.CodeConflict, "%s is mounted already", s.mounted)
	}
	s.mounted = m.Source
	return nil
}

func (s *fakeSandbox) Resize(_ context.Context, l driver.Limits) error {
	if s.d.onResize != nil {
		if err := s.d.onResize(l); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits.Memory, s.limits.CPU = l.Memory, l.CPU
	return nil
}

func (s *fakeSandbox) Pause(context.Context) error  { return s.freeze(s.d.onPause, true) }
func (s *fakeSandbox) Resume(context.Context) error { return s.freeze(s.d.onResume, false) }

func (s *fakeSandbox) freeze(first func() error, on bool) error {
	if first != nil {
		if err := first(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = on
	return nil
}

func (s *fakeSandbox) isFrozen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frozen
}

// Restore starts a sandbox of which only the files tell that it was saved.
func (d *fakeDriver) Restore(ctx context.Context, spec driver.Spec, dir string) (driver.Sandbox, error) {
	if d.beforeRestore != nil {
		if err := d.beforeRestore(ctx, spec, dir); err != nil {
			return nil, err
		}
	}
	saved, err := os.ReadFile(filepath.Join(dir, "memory"))
	if err != nil || string(saved) != spec.Env["HEARTH_SECRET"] {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "the snapshot %q cannot be used: %w", saved, err)
	}
	d.mu.Lock()
	d.restored++
	d.mu.Unlock()
	return d.launch(spec), nil
}

func (d *fakeDriver) launch(spec driver.Spec) *fakeSandbox {
	host, far := net.Pipe()
	sb := &fakeSandbox{d: d, id: spec.ID, secret: spec.Env["HEARTH_SECRET"], host: host, far: far, exited: make(chan struct{}), born: time.Now(), limits: spec.Limits}
	if len(spec.Mounts) > 0 {
		sb.mounted = spec.Mounts[0].Source
	}
	d.mu.Lock()
	if d.live == nil {
		d.live = map[string]*fakeSandbox{}
	}
	d.live[spec.ID] = sb
	d.most = max(d.most, len(d.live))
	d.mu.Unlock()
	go sb.guest()
	return sb
}

// Snapshot writes the one thing that a fake guest knows, and ends it.
func (s *fakeSandbox) Snapshot(_ context.Context, dir string) error {
	if s.d.whileSaving != nil {
		if err := s.d.whileSaving(dir); err != nil {
			return err
		}
	}
	err := os.WriteFile(filepath.Join(dir, "memory"), []byte(s.secret), 0o644)
	s.end(driver.Exit{})
	return err
}

func (d *fakeDriver) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.live)
}

// peak is how many sandboxes lived at once, at most.
func (d *fakeDriver) peak() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.most
}

// made is how many sandboxes were created.
func (d *fakeDriver) made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.created
}

func (s *fakeSandbox) ID() string                             { return s.id }
func (s *fakeSandbox) Dial(context.Context) (net.Conn, error) { return s.host, nil }
func (s *fakeSandbox) Stats(context.Context) (driver.Stats, error) {
	s.d.asked.Add(1)
	return driver.Stats{Usage: driver.Usage{Memory: s.d.memory, CPU: time.Duration(s.d.cpu * float64(time.Since(s.born)))}}, nil
}

func (s *fakeSandbox) Usage() (driver.Usage, bool) {
	if s.d.slow {
		return driver.Usage{}, false
	}
	stats, err := s.Stats(context.Background())
	return stats.Usage, err == nil
}

func (s *fakeSandbox) CPU() time.Duration {
	if s.d.meter == nil {
		return 0
	}
	return s.d.meter(s)
}

func (s *fakeSandbox) Wait(ctx context.Context) (driver.Exit, error) {
	select {
	case <-s.exited:
		return s.exit, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

func (s *fakeSandbox) end(e driver.Exit) {
	s.once.Do(func() {
		s.exit = e
		s.far.Close()
		close(s.exited)
	})
}

func (s *fakeSandbox) Destroy(context.Context) error {
	s.end(driver.Exit{Destroyed: true})
	s.d.mu.Lock()
	delete(s.d.live, s.id)
	s.d.mu.Unlock()
	return nil
}

func (s *fakeSandbox) guest() {
	g := &fakeGuest{sb: s, canceled: make(chan uint32, 100)}
	var wmu sync.Mutex
	send := func(stream uint32, frames ...frame) {
		wmu.Lock()
		defer wmu.Unlock()
		var b []byte
		for _, f := range frames {
			b = binary.BigEndian.AppendUint32(b, uint32(len(f.payload)))
			b = append(b, f.typ)
			b = binary.BigEndian.AppendUint32(b, stream)
			b = append(b, f.payload...)
		}
		s.far.Write(b) //nolint:errcheck // the host may have closed
	}
	var head [9]byte
	for {
		if _, err := io.ReadFull(s.far, head[:]); err != nil {
			s.end(driver.Exit{Code: 0})
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(s.far, payload); err != nil {
			return
		}
		stream := binary.BigEndian.Uint32(head[5:])
		switch head[4] {
		case fHello:
			send(0, frame{fReady, `{"protocol":1,"runtime":"fake","pid":1}`})
		case fInit, fEnd:
			if stream != 0 {
				continue // of a call's body
			}
			if head[4] == fInit && s.begin(payload) {
				continue // its files follow, and END
			}
			if s.d.beforeInit != nil {
				s.d.beforeInit(s.function())
			}
			f := frame{fReady, fmt.Sprintf(`{"snapshot":%t,"concurrent":%t}`, s.d.onSnapshot != "", s.d.concurrent)}
			if s.d.onInit != nil {
				f = s.d.onInit()
			}
			send(0, f)
		case fSnapshot:
			send(0, frame{fReady, s.d.onSnapshot})
		case fRestored:
			f := &frame{fReady, `{}`}
			if s.d.onRestored != nil {
				f = s.d.onRestored(s)
			}
			if f == nil {
				s.end(driver.Exit{Code: 70})
				return
			}
			send(0, *f)
		case fInvoke:
			go func() {
				script := s.d.script
				if kind(payload) == hearth.KindWarmup {
					script = s.d.onWarmup
					if script == nil {
						script = func(*fakeGuest, []byte) []frame { return answer("") }
					}
				}
				if frames := script(g, payload); frames != nil {
					send(stream, frames...)
				} else {
					s.end(driver.Exit{Code: 3})
				}
			}()
		case fCancel:
			g.canceled <- stream
		}
	}
}

// begin takes INIT, and tells whether an archive follows.
func (s *fakeSandbox) begin(payload []byte) (archive bool) {
	var in struct {
		Function string
		Archive  bool
	}
	json.Unmarshal(payload, &in) //nolint:errcheck // an empty name fails the test
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serves, s.archive, s.told = in.Function, in.Archive, payload
	return in.Archive
}

// init is the head of INIT.
func (s *fakeSandbox) init() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

func (s *fakeSandbox) function() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serves
}

// sandboxes returns those that exist.
func (d *fakeDriver) sandboxes() []*fakeSandbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.live))
}

// sink collects a response.
type sink struct{ body []byte }

func (s *sink) Data(p []byte, _ bool) error { s.body = append(s.body, p...); return nil }
func (s *sink) Flush() error                { return nil }

type nowhere struct{}

func (nowhere) ArtifactDir(string) (string, error) { return "/", nil }
func (nowhere) Append(hearth.LogLine)              {}

func invocationID(invoke []byte) string {
	var v struct {
		ID string `json:"id"`
	}
	json.Unmarshal(invoke, &v) //nolint:errcheck // an empty id fails the test
	return v.ID
}

func kind(invoke []byte) hearth.Kind {
	var v struct {
		Kind hearth.Kind `json:"kind"`
	}
	json.Unmarshal(invoke, &v) //nolint:errcheck // an empty kind is that of a call
	return v.Kind
}
