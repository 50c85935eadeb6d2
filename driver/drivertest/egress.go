package drivertest

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func egressCases() []testCase {
	return []testCase{
		{"Egress/none", egressNone},
		{"Egress/internet spares the host", egressSparesHost},
		{"Egress/internet is prompt and named", egressNameServer},
		{"Egress/a slow reader gets everything", egressSlowReader},
		{"Egress/unsupported is said", egressUnsupported},
	}
}

// target is a service of the host that no sandbox may reach. It counts who does.
type target struct {
	port    string
	touched atomic.Int64
}

func newTarget(t *testing.T) *target {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	x := &target{port: port}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.touched.Add(1)
			c.Close()
		}
	}()
	return x
}

// hostAddresses are those of the host's interfaces: none may be reached.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, a := range addrs {
		ip, _, err := net.ParseCIDR(a.String())
		if err == nil && !ip.IsLinkLocalUnicast() {
			list = append(list, ip.String())
		}
	}
	return list
}

// refusedAddresses returns addresses that are never the internet: those that are
// on this host anyway, and private and metadata addresses if Main has put them
// on the loopback device of a network namespace. Elsewhere a wrong driver would
// let the guest knock at somebody's door.
func refusedAddresses(t *testing.T) []string {
	t.Helper()
	list := []string{"127.0.0.1", "::1", "0.0.0.0"}
	if os.Getenv(networkEnv) == "" {
		t.Log("private and metadata addresses are left out: they need drivertest.Main, and root")
		return list
	}
	return append(list, "169.254.169.254", "10.255.255.254", "172.31.255.254", "192.168.255.254", "100.100.100.200", "fd00:ec2::254")
}

func egressNone(t *testing.T, e *env) {
	x := newTarget(t)
	for _, policy := range []hearth.Egress{hearth.EgressNone, ""} {
		g := e.create(t, func(s *driver.Spec) { s.Egress = policy })
		for _, a := range append(hostAddresses(t), refusedAddresses(t)...) {
			if r := g.ask(t, request{Op: "connect", Path: net.JoinHostPort(a, x.port), Timeout: 2 * time.Second}); r.Err == "" {
				t.Errorf("with egress %q the guest could connect to %s", policy, a)
			}
		}
		// A documentation address: if a packet left all the same, it would find
		// nobody.
		r := g.ask(t, request{Op: "connect", Path: "192.0.2.1:80", Timeout: 2 * time.Second})
		if e := syscall.Errno(r.Errno); r.Err == "" || !errors.Is(e, syscall.ENETUNREACH) && !errors.Is(e, syscall.EACCES) && !errors.Is(e, syscall.EPERM) && !errors.Is(e, syscall.ECONNREFUSED) && !errors.Is(e, syscall.EHOSTUNREACH) {
			t.Errorf("with egress %q a connection to 192.0.2.1 ended with %q, want a refusal at once", policy, r.Err)
		}
		addr := g.do(t, request{Op: "listen"}).Text
		if r := g.do(t, request{Op: "connect", Path: addr, Text: "own", Timeout: 2 * time.Second}); r.Text != "own" {
			t.Errorf("with egress %q the guest's own loopback does not work", policy)
		}
		destroy(t, g)
	}
	if n := x.touched.Load(); n > 0 {
		t.Errorf("%d connections reached the host", n)
	}
}

func egressSparesHost(t *testing.T, e *env) {
	e.skipUnless(t, e.info.Internet, "policy for the internet")
	x := newTarget(t)
	g := e.create(t, func(s *driver.Spec) { s.Egress = hearth.EgressInternet })
	other := e.create(t, func(s *driver.Spec) { s.Egress = hearth.EgressInternet })
	theirs := other.do(t, request{Op: "listen"}).Text
	targets := []string{theirs}
	for _, a := range append(hostAddresses(t), refusedAddresses(t)...) {
		targets = append(targets, net.JoinHostPort(a, x.port))
	}
	for _, a := range targets {
		start := time.Now()
		r := g.ask(t, request{Op: "connect", Path: a, Timeout: 5 * time.Second})
		if r.Err == "" {
			t.Errorf("the guest could connect to %s", a)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s was refused only after %v: %s", a, d, r.Err)
		}
	}
	if n := x.touched.Load(); n > 0 {
		t.Errorf("%d connections reached the host", n)
	}
	addr := g.do(t, request{Op: "listen"}).Text
	if r := g.do(t, request{Op: "connect", Path: addr, Text: "own", Timeout: 2 * time.Second}); r.Text != "own" {
		t.Error("the guest's own loopback does not work")
	}
}

func egressNameServer(t *testing.T, e *env) {
	e.skipUnless(t, e.info.Internet, "policy for the internet")
	g := e.create(t, func(s *driver.Spec) { s.Egress = hearth.EgressInternet })
	conf := g.do(t, request{Op: "read", Path: "/etc/resolv.conf"}).Text
	server := ""
	for line := range strings.Lines(conf) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			server = f[1]
			break
		}
	}
	if server == "" {
		t.Fatalf("the guest has no name server: %q", conf)
	}
	if host, _ := os.ReadFile("/etc/resolv.conf"); string(host) == conf && net.ParseIP(server).IsLoopback() {
		t.Error("the guest has the host's resolv.conf, whose loopback is not the guest's")
	}
	before, err := g.Stats(e.context(t))
	if err != nil {
		t.Fatal(err)
	}
	// A question that the relay itself refuses: nothing is asked outside.
	r := g.ask(t, request{Op: "resolve", Path: net.JoinHostPort(server, "53"), Text: "invalid", Timeout: 5 * time.Second})
	if r.Err != "" {
		t.Errorf("the guest's name server does not answer: %s", r.Err)
	}
	if s, err := g.Stats(e.context(t)); err != nil || s.NetworkIn <= before.NetworkIn || s.NetworkOut <= before.NetworkOut {
		t.Errorf("a question and its answer made the traffic %+v of %+v, %v", s.Usage, before.Usage, err)
	}
}

// egressSlowReader closes and opens the window of a connection many times: what
// a slow installer does to a fast registry.
func egressSlowReader(t *testing.T, e *env) {
	e.skipUnless(t, e.info.Internet, "policy for the internet")
	const size = 8 << 20
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 251*5)
		for i := range buf {
			buf[i] = byte(i % 251)
		}
		for n := 0; n < size; n += len(buf) {
			if _, err := c.Write(buf[:min(len(buf), size-n)]); err != nil {
				return
			}
		}
	}()
	// Kernels drop packets to loopback addresses that come over a device.
	var addr string
	for _, a := range append(hostAddresses(t), refusedAddresses(t)...) {
		if ip := net.ParseIP(a); ip.To4() != nil && !ip.IsLoopback() && !ip.IsUnspecified() {
			addr = a
		}
	}
	if addr == "" {
		t.Skip("needs an IPv4 address of the host that is not its loopback")
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	to := net.JoinHostPort(addr, port)
	g := e.create(t, func(s *driver.Spec) { s.Egress, s.Allow = hearth.EgressInternet, []string{to} })
	if r := g.ask(t, request{Op: "download", Path: to, Timeout: 30 * time.Second}); r.N != size || r.Text != "0" {
		t.Errorf("the guest got %d of %d bytes, %s of them wrong: %s", r.N, size, r.Text, r.Err)
	}
}

func egressUnsupported(t *testing.T, e *env) {
	if e.info.Internet {
		t.Skip("the driver enforces the policy for the internet")
	}
	spec := e.spec()
	spec.Egress = hearth.EgressInternet
	s, err := e.driver.Create(e.context(t), spec)
	wantCode(t, "Create with egress internet, which Probe denies", err, hearth.CodeUnsupported)
	if err == nil {
		destroy(t, s)
	}
}
