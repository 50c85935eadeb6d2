package pool

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// fakeDriver makes sandboxes whose guests are goroutines that follow a script.
type fakeDriver struct {
	// script handles one call of a guest; it returns the frames to answer with,
	// as (type, payload) pairs on the call's stream. nil closes the stream.
	script func(g *fakeGuest, invoke []byte) []frame
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
	// memory is what sandboxes use, in bytes; 0 where unknown.
	memory int64
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
}

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
	d.mu.Lock()
	d.created++
	d.mu.Unlock()
	return d.launch(spec), nil
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
	sb := &fakeSandbox{d: d, id: spec.ID, secret: spec.Env["HEARTH_SECRET"], host: host, far: far, exited: make(chan struct{})}
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

func (s *fakeSandbox) ID() string                             { return s.id }
func (s *fakeSandbox) Dial(context.Context) (net.Conn, error) { return s.host, nil }
func (s *fakeSandbox) Stats(context.Context) (driver.Stats, error) {
	return driver.Stats{Memory: s.d.memory}, nil
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
		case fInit:
			f := frame{fReady, fmt.Sprintf(`{"snapshot":%t}`, s.d.onSnapshot != "")}
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
