package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// connect runs Connect against play.
func connect(t *testing.T, play func(g *script)) (*Conn, Hello, error) {
	t.Helper()
	host, far := socketpair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		play(&script{t, far})
	}()
	c, hello, err := Connect(t.Context(), host, Options{Secret: `s"cret`})
	t.Cleanup(func() {
		if c != nil {
			c.Close()
		}
		<-done
	})
	return c, hello, err
}

// TestUnread: an error tells whether the guest ended without having read what it
// was asked.
func TestUnread(t *testing.T) {
	for name, tt := range map[string]struct {
		play func(g *script)
		want bool
	}{
		"guest ended before": {func(*script) {}, true},
		"guest ends and leaves the question": {func(g *script) {
			raw, err := g.nc.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Error(err)
				return
			}
			raw.Read(func(fd uintptr) bool { //nolint:errcheck // then nothing is there, and the test fails
				_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
				return err == nil
			})
		}, true},
		"guest ends on the question": {func(g *script) { g.expect(typeInit) }, false},
		"guest answers with an error": {func(g *script) {
			g.expect(typeInit)
			g.send(typeInitError, 0, `{"type":"ImportError"}`)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := connect(t, func(g *script) {
				g.expect(typeHello)
				g.send(typeReady, 0, `{"protocol":1}`)
				tt.play(g)
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Init(t.Context(), Init{})
			if hearth.ErrorCode(err) != hearth.CodeFunction || errors.Is(err, ErrUnread) != tt.want {
				t.Errorf("%v, unread: %t", err, errors.Is(err, ErrUnread))
			}
			<-c.Done()
			err = c.Invoke(t.Context(), &Call{ID: "a", Kind: hearth.KindEvent, Deadline: time.Now()}, &recorder{})
			if hearth.ErrorCode(err) != hearth.CodeFunction || !errors.Is(err, ErrUnread) {
				t.Errorf("a call after the end: %v", err)
			}
		})
	}
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) { g.expect(typeInvoke); far.Close() })
	err := c.Invoke(t.Context(), &Call{ID: "a", Kind: hearth.KindEvent, Deadline: time.Now()}, &recorder{})
	if hearth.ErrorCode(err) != hearth.CodeFunction || errors.Is(err, ErrUnread) {
		t.Errorf("a call during which the guest ends: %v", err)
	}
}

func TestConnect(t *testing.T) {
	for name, tt := range map[string]struct {
		play func(g *script)
		code hearth.Code
		typ  string
	}{
		"guest ends at once":  {func(g *script) {}, hearth.CodeFunction, "Runtime.ExitError"},
		"guest ends on HELLO": {func(g *script) { g.expect(typeHello) }, hearth.CodeFunction, "Runtime.ExitError"},
		"other protocol": {func(g *script) {
			g.expect(typeHello)
			g.send(typeReady, 0, `{"protocol":2}`)
		}, hearth.CodeUnavailable, ""},
		"malformed READY": {func(g *script) {
			g.expect(typeHello)
			g.send(typeReady, 0, `{`)
		}, hearth.CodeFunction, "Runtime.ProtocolError"},
		"READY is no object": {func(g *script) {
			g.expect(typeHello)
			g.send(typeReady, 0, `null`)
		}, hearth.CodeFunction, "Runtime.ProtocolError"},
		"INIT_ERROR before INIT": {func(g *script) {
			g.expect(typeHello)
			g.send(typeInitError, 0, `{}`)
		}, hearth.CodeFunction, "Runtime.ProtocolError"},
		"RESPONSE before INIT": {func(g *script) {
			g.expect(typeHello)
			g.send(typeResponse, 1, `{}`)
		}, hearth.CodeFunction, "Runtime.ProtocolError"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := connect(t, tt.play)
			wantError(t, err, tt.code, tt.typ)
			if c != nil {
				t.Error("a connection came with the error")
			}
		})
	}
	t.Run("hello", func(t *testing.T) {
		c, hello, err := connect(t, func(g *script) {
			var m map[string]any
			json.Unmarshal([]byte(g.expect(typeHello).payload), &m)
			if m["protocol"] != 1.0 || m["secret"] != `s"cret` {
				t.Errorf("HELLO %v", m)
			}
			g.send(typeReady, 0, `{"protocol":1,"runtime":"x1","pid":7,"new":[]}`)
			g.next() //nolint:errcheck // until the host leaves
		})
		if err != nil || hello != (Hello{1, "x1", 7}) || c.Err() != nil {
			t.Fatalf("%+v, %v", hello, err)
		}
		c.Close()
		c.Close()
		wantError(t, c.Err(), hearth.CodeUnavailable, "")
	})
}

func TestConnectDeadline(t *testing.T) {
	for _, reads := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			host, far := net.Pipe()
			defer far.Close()
			if reads {
				go (&script{t, far}).expect(typeHello)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			begin := time.Now()
			_, _, err := Connect(ctx, host, Options{})
			wantError(t, err, hearth.CodeTimeout, "")
			if time.Since(begin) != time.Second {
				t.Errorf("after %s", time.Since(begin))
			}
		})
	}
}

func TestInit(t *testing.T) {
	hello := func(g *script) {
		g.expect(typeHello)
		g.send(typeReady, 0, `{"protocol":1}`)
	}
	for name, tt := range map[string]struct {
		play func(g *script)
		code hearth.Code
		typ  string
		text string
	}{
		"ready": {func(g *script) {
			var m map[string]any
			json.Unmarshal([]byte(g.expect(typeInit).payload), &m)
			if m["function"] != "f" || m["version"] != 3.0 || m["handler"] != "main.handler" || m["code"] != "/function" ||
				m["memory_mb"] != 128.0 || fmt.Sprint(m["env"]) != "map[A:b]" {
				t.Errorf("INIT %v", m)
			}
			g.send(typeReady, 0, `{}`)
			g.next() //nolint:errcheck // until the host leaves
		}, "", "", ""},
		"INIT_ERROR, then exit": {func(g *script) {
			g.expect(typeInit)
			g.send(typeInitError, 0, `{"type":"SyntaxError","message":"bad","stack":["x"]}`)
		}, hearth.CodeFunction, "SyntaxError", "the function failed to load: SyntaxError: bad"},
		"exit": {func(g *script) { g.expect(typeInit) }, hearth.CodeFunction, "Runtime.ExitError", ""},
		"malformed INIT_ERROR": {func(g *script) {
			g.expect(typeInit)
			g.send(typeInitError, 0, `[]`)
		}, hearth.CodeFunction, "Runtime.ProtocolError", ""},
		"two answers to HELLO": {func(g *script) { g.send(typeReady, 0, `{}`) }, hearth.CodeFunction, "Runtime.ProtocolError", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := connect(t, func(g *script) { hello(g); tt.play(g) })
			if err != nil {
				t.Fatal(err)
			}
			if name == "two answers to HELLO" {
				<-c.Done()
			}
			_, err = c.Init(t.Context(), Init{
				Function: "f", Version: 3, Handler: "main.handler", Code: "/function", MemoryMB: 128, Env: map[string]string{"A": "b"},
			})
			if tt.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e := wantError(t, err, tt.code, tt.typ); tt.text != "" && e.Message != tt.text {
				t.Errorf("message %q", e.Message)
			}
		})
	}
}

func TestInitTooLarge(t *testing.T) {
	c, _, err := connect(t, func(g *script) {
		g.expect(typeHello)
		g.send(typeReady, 0, `{"protocol":1}`)
		g.next() //nolint:errcheck // until the host leaves
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Init(t.Context(), Init{Env: map[string]string{"A": strings.Repeat("x", maxPayload)}})
	wantError(t, err, hearth.CodeInvalid, "")
}

// TestGuestDies in each phase of a call.
func TestGuestDies(t *testing.T) {
	for name, play := range map[string]func(g *script, stream uint32){
		"before RESPONSE": func(*script, uint32) {},
		"in a header":     func(g *script, s uint32) { g.raw([]byte{0, 0, 0}) },
		"in a head":       func(g *script, s uint32) { g.raw(appendFrame(nil, typeResponse, s, []byte("{}"))[:10]) },
		"after RESPONSE":  func(g *script, s uint32) { g.send(typeResponse, s, `{"status":200}`) },
		"after some DATA": func(g *script, s uint32) { g.send(typeResponse, s, `{}`); g.send(typeData, s, "abc") },
		"in a large DATA": func(g *script, s uint32) {
			g.send(typeResponse, s, `{}`)
			g.raw(appendHeader(nil, typeData, s, 1000000))
		},
		"in a middle DATA": func(g *script, s uint32) { g.send(typeResponse, s, `{}`); g.raw(appendHeader(nil, typeData, s, 20000)) },
	} {
		t.Run(name, func(t *testing.T) {
			host, far := socketpair(t)
			c := start(t, host, far, Options{}, func(g *script) {
				s := g.expect(typeInvoke).stream
				play(g, s)
				g.nc.Close()
			})
			var r recorder
			wantError(t, c.Invoke(t.Context(), httpCall("a"), &r), hearth.CodeFunction, "Runtime.ExitError")
			if r.last != 0 {
				t.Error("the response looked complete")
			}
			<-c.Done()
			wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ExitError")
			wantError(t, c.Invoke(t.Context(), httpCall("b"), &r), hearth.CodeFunction, "Runtime.ExitError")
			if underWay(c) != 0 {
				t.Error("a call is under way")
			}
		})
	}
}

// TestGuestDiesInUpload: also a caller that is sending learns of it.
func TestGuestDiesInUpload(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) {
		g.expect(typeInvoke)
		g.expect(typeData)
		g.nc.Close()
	})
	call := httpCall("a")
	call.Rest = endless{}
	wantError(t, c.Invoke(t.Context(), call, &recorder{}), hearth.CodeFunction, "Runtime.ExitError")
}

// TestClose: a call that the host itself cuts off is not the function's failure.
func TestClose(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) {
		g.send(typeResponse, g.expect(typeInvoke).stream, `{"status":200}`)
	})
	r := recorder{onHead: func() { c.Close() }}
	wantError(t, c.Invoke(t.Context(), httpCall("a"), &r), hearth.CodeUnavailable, "")
}

// TestViolations sends what breaks a rule while a call is under way.
func TestViolations(t *testing.T) {
	head := func(n uint32, typ frameType, stream uint32) []byte {
		return binary.BigEndian.AppendUint32(append(binary.BigEndian.AppendUint32(nil, n), byte(typ)), stream)
	}
	frame := func(typ frameType, stream uint32, payload string) []byte {
		return appendFrame(nil, typ, stream, []byte(payload))
	}
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	response := frame(typeResponse, 1, `{"status":200}`)
	for name, b := range map[string][]byte{
		"length":                     head(maxPayload+1, typeData, 1),
		"length of 4 GiB":            head(1<<32-1, typeLog, 0),
		"type 0":                     head(0, 0, 1),
		"type 255":                   head(0, 255, 0),
		"HELLO":                      frame(typeHello, 0, `{}`),
		"INIT":                       frame(typeInit, 0, `{}`),
		"INVOKE":                     frame(typeInvoke, 1, `{}`),
		"CANCEL":                     frame(typeCancel, 1, `{}`),
		"PING":                       frame(0x07, 0, ``),
		"SHUTDOWN":                   frame(typeShutdown, 0, `{}`),
		"PONG without PING":          frame(0x16, 0, ``),
		"READY":                      frame(typeReady, 0, `{}`),
		"READY on a stream":          frame(typeReady, 1, `{}`),
		"INIT_ERROR":                 frame(typeInitError, 0, `{}`),
		"RESPONSE on 0":              frame(typeResponse, 0, `{}`),
		"DATA on 0":                  frame(typeData, 0, `x`),
		"unknown stream":             frame(typeResponse, 3, `{}`),
		"even stream":                frame(typeResponse, 2, `{}`),
		"WINDOW on unknown stream":   frame(typeWindow, 3, "\x00\x00\x00\x01"),
		"short WINDOW":               frame(typeWindow, 1, "\x00\x00\x01"),
		"WINDOW overflow":            frame(typeWindow, 1, "\xff\xff\xff\xff"),
		"WINDOW overflow in pieces":  join(frame(typeWindow, 1, "\x3f\xff\xff\xff"), frame(typeWindow, 1, "\x00\x00\x00\x02")),
		"DATA before RESPONSE":       frame(typeData, 1, `x`),
		"END before RESPONSE":        frame(typeEnd, 1, ``),
		"END with payload":           join(response, frame(typeEnd, 1, `x`)),
		"second RESPONSE":            join(response, response),
		"malformed RESPONSE":         frame(typeResponse, 1, `{"status":`),
		"RESPONSE is no object":      frame(typeResponse, 1, `null`),
		"RESPONSE of another type":   frame(typeResponse, 1, `{"status":"200"}`),
		"header in upper case":       frame(typeResponse, 1, `{"status":200,"headers":[["Hearth-Error","x"]]}`),
		"malformed ERROR":            frame(typeError, 1, `{`),
		"ERROR is no object":         frame(typeError, 1, `[]`),
		"empty LOG":                  frame(typeLog, 1, ``),
		"LOG of descriptor 3":        frame(typeLog, 1, "\x03x"),
		"LOG of a stream to come":    frame(typeLog, 3, "\x01x"),
		"text":                       []byte("Traceback (most recent call last):\n"),
		"window exceeded":            join(response, bytes.Repeat(frame(typeData, 1, strings.Repeat("x", chunkSize)), 17)),
		"window exceeded, last byte": join(response, frame(typeData, 1, strings.Repeat("x", windowSize)), frame(typeData, 1, "x")),
	} {
		t.Run(name, func(t *testing.T) {
			host, far := socketpair(t)
			c := start(t, host, far, Options{}, func(g *script) {
				g.expect(typeInvoke)
				g.raw(b)
			})
			hold := make(chan struct{})
			r := recorder{onData: func() error { <-hold; return nil }}
			time.AfterFunc(0, func() { <-c.Done(); close(hold) })
			err := c.Invoke(t.Context(), httpCall("a"), &r)
			wantError(t, err, hearth.CodeFunction, "Runtime.ProtocolError")
			if r.last != 0 {
				t.Error("the response looked complete")
			}
			<-c.Done()
			wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ProtocolError")
		})
	}
	for name, b := range map[string][]byte{
		"DATA after END":    frame(typeData, 1, `x`),
		"END after END":     frame(typeEnd, 1, ``),
		"ERROR after END":   frame(typeError, 1, `{}`),
		"RESPONSE after it": response,
	} {
		t.Run(name, func(t *testing.T) {
			host, far := socketpair(t)
			c := start(t, host, far, Options{}, func(g *script) {
				g.respond(g.expect(typeInvoke).stream, "x")
				g.raw(b)
			})
			if err := c.Invoke(t.Context(), httpCall("a"), &recorder{}); err != nil {
				t.Fatal(err)
			}
			<-c.Done()
			wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ProtocolError")
		})
	}
	t.Run("allowed", func(t *testing.T) {
		host, far := socketpair(t)
		c := start(t, host, far, Options{}, func(g *script) {
			g.respond(g.expect(typeInvoke).stream, "x")
			g.window(1, 5)
			g.send(typeLog, 1, "\x01")
			s := g.expect(typeInvoke).stream
			g.send(typeResponse, s, ` {"status":200,"more":1}`)
			g.send(typeData, s, "")
			g.send(typeEnd, s, "")
		})
		for i := range 2 {
			var r recorder
			if err := c.Invoke(t.Context(), httpCall("a"), &r); err != nil || r.last != 1 || len(r.body) != 1-i {
				t.Fatalf("%+v, %v", r, err)
			}
		}
	})
}
