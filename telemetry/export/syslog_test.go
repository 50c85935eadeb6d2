package export_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry/export"
)

// syslogServer takes messages by TCP.
type syslogServer struct {
	net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	got   []string
}

func newSyslogServer(t *testing.T, address string) *syslogServer {
	t.Helper()
	s := &syslogServer{}
	eventually(t, "the address is free", func() (ok bool) {
		var err error
		s.Listener, err = net.Listen("tcp", address)
		return err == nil
	})
	s.wg.Go(func() {
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			s.wg.Go(func() { s.read(t, conn) })
		}
	})
	t.Cleanup(s.end)
	return s
}

func (s *syslogServer) read(t *testing.T, conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		length, err := in.ReadString(' ')
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return
		}
		n, aerr := strconv.Atoi(strings.TrimSuffix(length, " "))
		if err != nil || aerr != nil {
			t.Errorf("length %q: %v %v", length, err, aerr)
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			t.Error(err)
			return
		}
		s.mu.Lock()
		s.got = append(s.got, string(b))
		s.mu.Unlock()
	}
}

func (s *syslogServer) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.got...)
}

func (s *syslogServer) end() {
	s.Close() //nolint:errcheck // twice is harmless
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close() //nolint:errcheck // as above
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// prefix is how each message of line begins behind its priority.
func prefix(t *testing.T) string {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return "1 2023-11-14T22:13:20.123456Z " + host + " f i-1 stdout [hearth@32473 function=\"f\" version=\"3\""
}

func TestSyslogTCP(t *testing.T) {
	s := newSyslogServer(t, "127.0.0.1:0")
	e, _ := start(t, export.Options{URL: "syslog+tcp://" + s.Addr().String()})
	odd := line("f", "é#\n\x00]\t\r\x1b[2J\x7f\u0085\u2028\u2029")
	odd.Invocation, odd.Level = "a\"]\\\n", hearth.LevelFatal
	e.Append(line("f", "one"))
	e.Append(odd)
	want := []string{"<14>" + prefix(t) + "] one", "<10>" + prefix(t) + ` invocation="a\"\]\\#012" level="fatal"] é#` + "#012#000]#011#015#033[2J#177#302#205#342#200#250#342#200#251"}
	eventually(t, "two messages", func() bool { return len(s.messages()) == 2 })
	if d := cmp.Diff(want, s.messages()); d != "" {
		t.Error(d)
	}

	// A name that is too long for its place is whole in the fields.
	name := strings.Repeat("n", 63)
	e.Append(line(name, "x"))
	eventually(t, "the long name", func() bool { return len(s.messages()) == 3 })
	if m := s.messages()[2]; !strings.Contains(m, " "+name[:48]+" ") || !strings.Contains(m, `function="`+name+`"`) {
		t.Error(m)
	}

	// The server ends and comes back: lines wait meanwhile.
	s.end()
	e.Append(line("f", "two"))
	e.Append(line("f", "three"))
	s = newSyslogServer(t, s.Addr().String())
	eventually(t, "two more", func() bool { return len(s.messages()) == 2 })
	if d := cmp.Diff([]string{"<14>" + prefix(t) + "] two", "<14>" + prefix(t) + "] three"}, s.messages()); d != "" || e.Dropped() != 0 {
		t.Errorf("%d dropped, %s", e.Dropped(), d)
	}
}

// TestSyslogServerThatReadsNothing: the end does not wait for it.
func TestSyslogServerThatReadsNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, _ := start(t, export.Options{URL: "syslog+tcp://" + l.Addr().String(), CloseTimeout: 100 * time.Millisecond})
	e.Append(line("f", "one"))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	// Lines are sent until one does not leave the queue any more: then there is no room
	// for others.
	long := strings.Repeat("x", 60<<10)
	eventually(t, "a write blocks", func() bool {
		for i := range 100 {
			e.Append(line(fmt.Sprint("f", i%10), long))
		}
		return e.Dropped() > 1000
	})
	before, began := e.Dropped(), time.Now()
	e.Close()
	// What waited is lost, 16 MiB of it.
	if took := time.Since(began); took > 5*time.Second || e.Dropped() < before+100 {
		t.Errorf("the end took %s, %d dropped, %d before", took, e.Dropped(), before)
	}
}

func TestSyslogUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	e, _ := start(t, export.Options{URL: "syslog+udp://" + conn.LocalAddr().String()})
	e.Append(line("f", "one"))
	e.Append(line("f", strings.Repeat("€", 20_000)))
	b := make([]byte, 64<<10)
	n, _, err := conn.ReadFrom(b)
	if want := "<14>" + prefix(t) + "] one"; err != nil || string(b[:n]) != want {
		t.Errorf("got %q, want %q, %v", b[:n], want, err)
	}
	if n, _, err = conn.ReadFrom(b); err != nil || n > 8<<10 || n < 8<<10-3 || !strings.HasSuffix(string(b[:n]), "€") {
		t.Errorf("%d bytes, %v", n, err)
	}
}
