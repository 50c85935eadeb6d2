package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// peakMemory is the most memory that a process has used, in bytes.
func peakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if n := kilobytes(field(b, "VmHWM")); err == nil && n > 0 {
		return n, nil
	}
	return 0, hearth.Errorf(hearth.CodeNotFound, "the memory of process %d cannot be read", pid)
}

// socketTimeout bounds each step with a WebSocket.
const socketTimeout = 30 * time.Second

// bareSocket is the client's end of a WebSocket that costs this process little.
type bareSocket struct{ nc net.Conn }

// openSocket opens one.
func openSocket(ctx context.Context, host, path string) (*bareSocket, error) {
	d := net.Dialer{Timeout: socketTimeout}
	nc, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(socketTimeout)) //nolint:errcheck // reads and writes tell
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, host)
	resp, err := http.ReadResponse(bufio.NewReaderSize(nc, 4<<10), nil)
	if err == nil {
		resp.Body.Close() //nolint:errcheck // nothing of it is read
		if resp.StatusCode != http.StatusSwitchingProtocols {
			err = hearth.Errorf(hearth.CodeUnavailable, "a WebSocket was answered with %s", resp.Status)
		}
	}
	if err != nil {
		nc.Close() //nolint:errcheck // it is of no use
		return nil, err
	}
	return &bareSocket{nc}, nil
}

// echo tells whether a message comes back.
func (b *bareSocket) echo() bool {
	b.nc.SetDeadline(time.Now().Add(socketTimeout)) //nolint:errcheck // reads and writes tell
	if _, err := io.WriteString(b.nc, "\x81\x84\x00\x00\x00\x00echo"); err != nil {
		return false
	}
	for {
		var head [2]byte
		if _, err := io.ReadFull(b.nc, head[:]); err != nil {
			return false
		}
		p := make([]byte, head[1]) // no message here is longer
		if _, err := io.ReadFull(b.nc, p); err != nil {
			return false
		}
		switch head[0] {
		case 0x89: // a ping
		case 0x81:
			return string(p) == "echo"
		default:
			return false
		}
	}
}

// footprint is what a server and the guests of a function use, in bytes.
type footprint struct{ inUse, server, guests int64 }

// footprint measures after a garbage collection of the server.
func (s *streaming) footprint(ctx context.Context) (f footprint, err error) {
	for range 2 { // stacks shrink a step with each
		if f.inUse, err = s.inUse(ctx); err != nil {
			return f, err
		}
	}
	if f.server, err = rss(s.o.Server.PID); err != nil {
		return f, err
	}
	u, err := memoryOf(newFamily(s.o.Server.PID, s.o.Server.DataDir).members())
	f.guests = u.pss
	return f, err
}

// inUse is what Go has in use in the server: heap and stacks.
func (s *streaming) inUse(ctx context.Context) (int64, error) {
	if s.o.Debug == "" {
		return 0, nil
	}
	body, err := s.get(ctx, http.MethodGet, s.o.Debug+"/debug/pprof/heap?gc=1&debug=1", http.NoBody)
	if err != nil {
		return 0, err
	}
	defer body.Close() //nolint:errcheck // it was read
	var sum int64
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		for _, what := range []string{"# HeapAlloc = ", "# Stack = "} {
			if v, ok := strings.CutPrefix(lines.Text(), what); ok {
				v, _, _ = strings.Cut(v, " ")
				n, err := strconv.ParseInt(v, 10, 64)
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, lines.Err()
}

// sockets measures what idle WebSockets cost, and what becomes of them when the
// function is deployed anew.
func (s *streaming) sockets(ctx context.Context) error {
	to, err := s.deploy(ctx, "sockets", 1, s.o.Sockets+1)
	if err != nil {
		return err
	}
	path := strings.TrimPrefix(to, s.o.Server.URL)
	var all []*bareSocket
	defer func() {
		for _, b := range all {
			b.nc.Close() //nolint:errcheck // that is the end
		}
	}()
	open := func(n int) error {
		for range n {
			b, err := openSocket(ctx, s.base.Host, path)
			if err != nil {
				return err
			}
			all = append(all, b)
			if !b.echo() {
				return hearth.Errorf(hearth.CodeUnavailable, "a WebSocket did not send back what it got")
			}
		}
		return nil
	}
	if err := open(1); err != nil { // what the first one loads, stays
		return err
	}
	before, err := s.footprint(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := open(s.o.Sockets); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := pause(ctx, s.o.rest); err != nil {
		return err
	}
	after, err := s.footprint(ctx)
	if err != nil {
		return err
	}
	n := int64(s.o.Sockets)
	r := SocketsReport{
		Sockets: s.o.Sockets, OpenMS: float64(took.Microseconds()) / 1e3,
		GoBytes: (after.inUse - before.inUse) / n, ServerBytes: (after.server - before.server) / n, GuestBytes: (after.guests - before.guests) / n,
	}
	if s.o.Debug == "" {
		r.GoBytes = 0
	}
	s.logf("sockets %d idle: %d B of Go's heap and stacks each, %d B of the server's memory, %d B of the guest's", n, r.GoBytes, r.ServerBytes, r.GuestBytes)
	if _, err := s.deploy(ctx, "sockets", 2, s.o.Sockets+1); err != nil {
		return err
	}
	for _, b := range all {
		if !b.echo() {
			r.Dropped++
		}
	}
	s.logf("deploy  %d of %d sockets were dropped", r.Dropped, len(all))
	s.report.Sockets = &r
	return nil
}
