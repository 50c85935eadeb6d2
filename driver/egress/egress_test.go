package egress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) {
	if code, ok := enterHost(); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// start makes a guest with a Stack over a shared internet, and checks at the end
// that Close leaves nothing.
func start(t *testing.T, opts Options) (*namespace, *Stack) {
	t.Helper()
	needHost(t)
	ignore := goleak.IgnoreCurrent()
	fds := openFiles(t)
	guest, tun := newGuest(t)
	s, err := Start(tun, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		begin := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("Close took %v", d)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		guest.close()
		if err := goleak.Find(ignore); err != nil {
			t.Error(err)
		}
		// The tests' own servers close theirs a moment later.
		until(t, func() bool { return openFiles(t) <= fds })
	})
	return guest, s
}

func openFiles(t *testing.T) int {
	t.Helper()
	n := 0
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(link, "anon_inode:[event") {
			n++
		}
	}
	return n
}

func TestTransfer(t *testing.T) {
	w := newInternet(t)
	for _, addr := range []string{"93.184.216.34", "2600:1408::34"} {
		t.Run(addr, func(t *testing.T) {
			guest, _ := start(t, Options{})
			data := make([]byte, 20<<20)
			r := rand.NewChaCha8([32]byte{1})
			_, _ = r.Read(data)
			want := sha256.Sum256(data)

			// Upload, then the server's digest after our half-close.
			l := w.listen(t, net.JoinHostPort(addr, "0"))
			go serveOnce(l, func(c *net.TCPConn) {
				h := sha256.New()
				_, _ = io.Copy(h, c)
				_, _ = c.Write(h.Sum(nil))
			})
			begin := time.Now()
			c := guest.dial(t, "tcp", l.Addr().String()).(*net.TCPConn)
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want[:]) {
				t.Fatalf("upload arrived as %x, %v; want %x", got, err, want)
			}
			t.Logf("up: %.0f MB/s", 20/time.Since(begin).Seconds())

			// Download, with the server's half-close first.
			l = w.listen(t, net.JoinHostPort(addr, "0"))
			last := make(chan string, 1)
			go serveOnce(l, func(c *net.TCPConn) {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
				b, _ := io.ReadAll(c)
				last <- string(b)
			})
			begin = time.Now()
			c = guest.dial(t, "tcp", l.Addr().String()).(*net.TCPConn)
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Fatalf("download arrived as %x, want %x", h.Sum(nil), want)
			}
			t.Logf("down: %.0f MB/s", 20/time.Since(begin).Seconds())
			_, _ = c.Write([]byte("after the end"))
			c.Close()
			if got := <-last; got != "after the end" {
				t.Errorf("after its half-close the server received %q", got)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	w := newInternet(t)
	for _, addr := range []string{
		"10.9.9.9", "169.254.169.254", "192.0.2.9", // exist, but are not public
		"93.184.216.1", "93.184.216.255", // the host and its network's broadcast
		"fd00:ec2::254", "2600:1408::1",
	} {
		w.listenMaybe(t, net.JoinHostPort(addr, "80"))
	}
	local, err := net.Listen("tcp", ":80") // a service of the host, on all addresses
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	touched := make(chan string, 1)
	go func() {
		for {
			c, err := local.Accept()
			if err != nil {
				return
			}
			touched <- c.RemoteAddr().String()
			c.Close()
		}
	}()
	guest, _ := start(t, Options{Host: &Host{Deny: []netip.Prefix{netip.MustParsePrefix("93.184.216.77/32")}}})
	for _, to := range []string{
		"10.9.9.9:80", "169.254.169.254:80", "192.0.2.9:80", "93.184.216.1:80", "93.184.216.0:80",
		"93.184.216.255:80", "93.184.216.77:80", Gateway + ":80", "100.100.100.200:80", "168.63.129.16:80", "240.0.0.1:80",
		"[fd00:ec2::254]:80", "[2600:1408::1]:80", "[64:ff9b::a09:909]:80", "[64:ff9b::5db8:d801]:80",
		"[2002:a09:909::1]:80", "[" + GatewayIPv6 + "]:80",
		"7.7.7.7:80", // local by a route only
	} {
		begin := time.Now()
		c, err := guest.try("tcp", to)
		if err == nil {
			c.Close()
			t.Errorf("%s could be reached", to)
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want a refusal", to, err)
		}
		if d := time.Since(begin); d > 500*time.Millisecond {
			t.Errorf("%s was refused only after %v", to, d)
		}
		// And by UDP: a connected socket sees the ICMP message as an error.
		u := guest.dial(t, "udp", to)
		_ = u.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = u.Write([]byte("x"))
		if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("udp %s: %v, want a refusal", to, err)
		}
		u.Close()
	}
	select {
	case from := <-touched:
		t.Errorf("a service of the host was reached from %s", from)
	default:
	}
	if n := w.accepted.Load(); n != 0 {
		t.Errorf("%d connections reached addresses that are not public", n)
	}
}

// TestNewAddress: an address the host gets while a Stack runs is refused at once.
func TestNewAddress(t *testing.T) {
	w := newInternet(t)
	guest, _ := start(t, Options{})
	l := w.listen(t, "93.184.216.34:0")
	go serveOnce(l, func(c *net.TCPConn) {})
	guest.dial(t, "tcp", l.Addr().String()).Close() // the host's addresses are cached now
	local, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	addHostAddress(t, "93.184.216.99/32")
	if _, err := guest.try("tcp", "93.184.216.99:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new address of the host: %v, want a refusal", err)
	}
}

func TestUDP(t *testing.T) {
	w := newInternet(t)
	guest, s := start(t, Options{FlowIdle: 300 * time.Millisecond})
	for _, addr := range []string{"93.184.216.34", "2600:1408::34"} {
		p := w.packet(t, net.JoinHostPort(addr, "0"))
		c := guest.dial(t, "udp", p.LocalAddr().String())
		for _, size := range []int{1, 1200, 9000, 60000} {
			msg := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 65536)
			n, err := c.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], msg) {
				t.Errorf("%s: echo of %d bytes: %d bytes, %v", addr, size, n, err)
			}
		}
		c.Close()
	}
	until(t, func() bool { return s.flows.Load() == 0 })
}

func TestDNS(t *testing.T) {
	w := newInternet(t)
	var mu sync.Mutex
	seen := map[string]int{}
	w.serveDNS(t, "10.9.9.9:53", func(q dnsmessage.Question) string {
		mu.Lock()
		defer mu.Unlock()
		seen[q.Name.String()]++
		return "93.184.216.34"
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search example\nnameserver 10.9.9.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	guest, _ := start(t, Options{Host: &Host{ResolvConf: conf}})
	for _, network := range []string{"udp", "tcp"} {
		r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return guest.try(network, Gateway+":53")
		}}
		ips, err := r.LookupHost(t.Context(), network+".example.com")
		if err != nil || len(ips) == 0 || ips[0] != "93.184.216.34" {
			t.Errorf("lookup by %s: %v, %v", network, ips, err)
		}
	}
	mu.Lock()
	if seen["udp.example.com."] == 0 || seen["tcp.example.com."] == 0 {
		t.Errorf("the name server saw %v", seen)
	}
	mu.Unlock()

	// What is no name query gets no further.
	c := guest.dial(t, "udp", Gateway+":53")
	defer c.Close()
	transfer, _ := query{id: 7, question: dnsmessage.Question{Name: dnsmessage.MustNewName("corp.example."), Type: typeAXFR, Class: dnsmessage.ClassINET}}.message(7)
	for _, msg := range [][]byte{[]byte("GET / HTTP/1.0\r\n\r\n"), transfer} {
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil || n < 12 || buf[1] != 7 || buf[3]&15 != 5 {
		t.Errorf("a zone transfer was answered with %x, %v; want REFUSED", buf[:n], err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["corp.example."] != 0 {
		t.Error("a zone transfer reached the name server")
	}
}

func TestResetPropagates(t *testing.T) {
	w := newInternet(t)
	guest, s := start(t, Options{})
	l := w.listen(t, "93.184.216.34:0")
	// From the remote side to the sandbox.
	go serveOnce(l, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	c := guest.dial(t, "tcp", l.Addr().String()).(*net.TCPConn)
	_, _ = c.Write([]byte("x"))
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset of the remote side arrived as %v", err)
	}
	c.Close()
	// From the sandbox to the remote side.
	result := make(chan error, 1)
	l = w.listen(t, "93.184.216.34:0")
	go serveOnce(l, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("x"))
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		result <- err
	})
	c = guest.dial(t, "tcp", l.Addr().String()).(*net.TCPConn)
	_, _ = c.Read(make([]byte, 1))
	_ = c.SetLinger(0)
	c.Close()
	if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset of the sandbox arrived as %v", err)
	}
	// A port where nobody listens.
	begin := time.Now()
	if _, err := guest.try("tcp", "93.184.216.34:1"); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > time.Second {
		t.Errorf("closed port: %v after %v", err, time.Since(begin))
	}
	until(t, func() bool { return s.conns.Load() == 0 })
}

// TestBackPressure: a reader that stops must stop the writer, not fill memory.
func TestBackPressure(t *testing.T) {
	w := newInternet(t)
	guest, _ := start(t, Options{})
	l := w.listen(t, "93.184.216.34:0")
	sent := make(chan int64, 1)
	go serveOnce(l, func(c *net.TCPConn) {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		n, _ := io.Copy(c, io.LimitReader(zeros{}, 1<<30))
		sent <- n
	})
	c := guest.dial(t, "tcp", l.Addr().String())
	defer c.Close()
	if n := <-sent; n > 64<<20 {
		t.Errorf("the server could send %d MB that nobody read", n>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLimits(t *testing.T) {
	w := newInternet(t)
	host := &Host{}
	guest, s := start(t, Options{MaxConns: 8, MaxFlows: 4, FlowIdle: 500 * time.Millisecond, Host: host})
	l := w.listen(t, "93.184.216.34:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	var open []net.Conn
	for range 8 {
		open = append(open, guest.dial(t, "tcp", l.Addr().String()))
	}
	if _, err := guest.try("tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connection over the limit: %v, want a refusal", err)
	}
	for _, c := range open {
		c.Close()
	}
	until(t, func() bool { return s.conns.Load() == 0 })
	c := guest.dial(t, "tcp", l.Addr().String()) // there is room again
	c.Close()

	p := w.packet(t, "93.184.216.34:0")
	for range 4 {
		echo(t, guest.dial(t, "udp", p.LocalAddr().String()))
	}
	u := guest.dial(t, "udp", p.LocalAddr().String())
	defer u.Close()
	_, _ = u.Write([]byte("x"))
	_ = u.SetDeadline(time.Now().Add(patience))
	if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("flow over the limit: %v, want a refusal", err)
	}
	until(t, func() bool { return s.flows.Load() == 0 })
	echo(t, guest.dial(t, "udp", p.LocalAddr().String()))
	until(t, func() bool { return s.flows.Load() == 0 && s.conns.Load() == 0 && host.sockets.Load() == 0 })
}

func echo(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	_, _ = c.Write([]byte("hello"))
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 16)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("echo: %q, %v", buf[:n], err)
	}
}

// TestCloseUnderLoad closes a Stack in the middle of everything.
func TestCloseUnderLoad(t *testing.T) {
	w := newInternet(t)
	guest, s := start(t, Options{DialTimeout: time.Minute})
	l := w.listen(t, "93.184.216.34:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, zeros{}); c.Close() }()
		}
	}()
	for range 16 {
		c := guest.dial(t, "tcp", l.Addr().String())
		t.Cleanup(func() { c.Close() })
	}
	// And one to an address where nobody answers.
	guest.do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{93, 184, 216, 200}}); !errors.Is(err, unix.EINPROGRESS) {
			t.Error(err)
		}
	})
	until(t, func() bool { return s.conns.Load() == 17 })
}

// TestDeviceGone: the end of the sandbox's namespace ends the Stack too.
func TestDeviceGone(t *testing.T) {
	newInternet(t)
	guest, s := start(t, Options{})
	guest.delete(t, "tun0")
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Error("the Stack outlives its device")
	}
}

func TestIdleCost(t *testing.T) {
	newInternet(t)
	measure := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	host := &Host{}
	idle := func(n int) (after uint64) {
		for range n {
			// A pipe in which nothing ever comes waits like a device.
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { w.Close() })
			s, err := Start(r, Options{Host: host})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
		}
		return measure()
	}
	first := idle(100) // what is made once is not counted
	per := (int64(idle(200)) - int64(first)) / 200
	t.Logf("an idle Stack takes %d bytes", per)
	if per > 16<<10 {
		t.Errorf("an idle Stack takes %d bytes, which is too much", per)
	}

	const n = 8
	guests := make([]*namespace, n)
	for i := range guests {
		guest, tun := newGuest(t)
		defer guest.close()
		s, err := Start(tun, Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		guests[i] = guest
	}
	before := measure()
	for _, g := range guests {
		_, _ = g.try("tcp", "10.0.0.1:1")
	}
	t.Logf("one that was used takes %d bytes", (int64(measure())-int64(before))/n)
}

func until(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen in time")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func serveOnce(l net.Listener, serve func(*net.TCPConn)) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	serve(c.(*net.TCPConn))
}
