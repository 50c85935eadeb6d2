package guesttest

import (
	"encoding/json"
	"strings"
	"testing"
)

// granted is the payload of the READY that answers SNAPSHOT.
type granted struct {
	Snapshot bool
	Reason   string
}

const seed = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func restoredHead(secret, seed string) []byte {
	return mustJSON(map[string]any{"secret": secret, "seed": seed})
}

// snapshots checks what guests do that can be saved. The process is not saved
// here: to a guest, a stream that goes on and one that was put in its place look
// the same. Drivers that save sandboxes are tested with theirs.
func (s *suite) snapshots(t *testing.T) {
	p := s.start(t)
	p.hello()
	knows := loadedOf(p.init(s.code, "conformance.chance")).Snapshot
	if !knows {
		p.send(snapshot, 0, []byte(`{}`))
		p.ends(70)
		t.Skipf("the guest for %s takes no part in snapshots", s.Language)
	}
	ask := func(p *peer) (g granted) {
		t.Helper()
		p.send(snapshot, 0, []byte(`{}`))
		if f := p.recv(); f.typ != ready || json.Unmarshal(f.payload, &g) != nil {
			t.Fatalf("SNAPSHOT was answered with %s", f)
		}
		return g
	}
	chance := func(p *peer) (m map[string]any) {
		t.Helper()
		r := p.wait(p.invoke("event", nil, nil))
		if json.Unmarshal([]byte(r.body()), &m) != nil {
			t.Fatalf("the call was answered with %v", r)
		}
		return m
	}

	if g := ask(p); !g.Snapshot || g.Reason != "" {
		t.Fatalf("SNAPSHOT was answered with %+v", g)
	}
	p.next = 1 // stream ids begin anew
	clear(p.calls)
	p.send(restored, 0, restoredHead(p.secret, seed))
	if f := p.recv(); f.typ != ready || string(f.payload) != "{}" {
		t.Fatalf("RESTORED was answered with %s", f)
	}
	for what, same := range chance(p) {
		if same != false {
			t.Errorf("%s goes on as it was saved", what)
		}
	}
	// It can be saved again after calls.
	if g := ask(p); !g.Snapshot {
		t.Fatalf("the second SNAPSHOT was answered with %+v", g)
	}
	p.send(restored, 0, restoredHead(p.secret, seed))
	p.recv()
	chance(p)
	p.stop()

	// Without a snapshot everything stays as the function made it.
	p = s.function(t, "chance")
	for what, same := range chance(p) {
		if same != true {
			t.Errorf("%s was not predictable to begin with", what)
		}
	}
	p.stop()

	// A handler in an event loop.
	p = s.function(t, "chance_async")
	ask(p)
	p.send(restored, 0, restoredHead(p.secret, seed))
	p.recv()
	chance(p)
	p.stop()

	for handler, why := range map[string]string{
		"chance_with_thread": "threads", "chance_with_process": "processes", "chance_with_socket": "connections",
	} {
		p := s.start(t)
		p.hello()
		p.init(s.code, "obstacles."+handler)
		chance(p)
		if g := ask(p); g.Snapshot || !strings.Contains(g.Reason, why) {
			t.Errorf("%s: SNAPSHOT was answered with %+v", handler, g)
		}
		chance(p) // it goes on as before
		p.stop()
	}

	for _, c := range []struct {
		name string
		ask  bool // SNAPSHOT first
		send func(p *peer) []byte
	}{
		{"RESTORED without SNAPSHOT", false, func(p *peer) []byte {
			return appendFrame(nil, restored, 0, restoredHead(p.secret, seed))
		}},
		{"another secret", true, func(*peer) []byte { return appendFrame(nil, restored, 0, restoredHead("guess", seed)) }},
		{"no seed", true, func(p *peer) []byte { return appendFrame(nil, restored, 0, helloHead(p.secret)) }},
		{"a seed of other characters", true, func(p *peer) []byte {
			return appendFrame(nil, restored, 0, restoredHead(p.secret, "zz"))
		}},
		{"PING in between", true, func(*peer) []byte { return appendFrame(nil, ping, 0, nil) }},
		{"SNAPSHOT on a stream", false, func(*peer) []byte { return appendFrame(nil, snapshot, 1, []byte(`{}`)) }},
		{"SNAPSHOT is no JSON", false, func(*peer) []byte { return appendFrame(nil, snapshot, 0, nil) }},
		{"SNAPSHOT while a call runs", false, func(p *peer) []byte {
			p.begin("http", map[string]any{}, true)
			b := append([]byte(nil), p.out...)
			p.out = p.out[:0]
			return appendFrame(b, snapshot, 0, []byte(`{}`))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := s.function(t, "text")
			if c.ask {
				p.send(snapshot, 0, []byte(`{}`))
				p.recv()
			}
			p.out = append(p.out, c.send(p)...)
			p.flush()
			p.ends(70)
		})
	}
	p = s.start(t)
	p.hello()
	p.send(snapshot, 0, []byte(`{}`)) // before INIT
	p.ends(70)
}
