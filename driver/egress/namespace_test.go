package egress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The tests run in a network namespace of their own, which plays the host: the
// test binary starts itself again there, in a user namespace if it is not root.
// Nothing in it has a way to a real network.
const hostEnv = "HEARTH_TEST_EGRESS_HOST"

// enterHost runs the tests again in the host namespace and returns their exit
// status, unless it is already there or not possible.
func enterHost() (int, bool) {
	if os.Getenv(hostEnv) != "" {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), hostEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig is that of the thread
	signal.Ignore(syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		return 0, false // needHost says so
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, true
	}
	return cmd.ProcessState.ExitCode(), true
}

func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(hostEnv) == "" {
		t.Skip("needs the right to make network namespaces: run as root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: modprobe tun")
	}
}

// namespace is a network namespace in which one thread executes functions.
// Sockets stay in the namespace in which they were made.
type namespace struct {
	calls chan func()
	done  chan struct{}
	fd    int
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- err
		for f := range n.calls {
			f()
		}
		unix.Close(n.fd)
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	n.do(func() { up(t, "lo") })
	return n
}

func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { defer close(done); f() }
	<-done
}

func (n *namespace) close() {
	close(n.calls)
	<-n.done
}

func (n *namespace) try(network, addr string) (c net.Conn, err error) {
	n.do(func() {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial(network, addr)
	})
	return c, err
}

func (n *namespace) dial(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	c, err := n.try(network, addr)
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (n *namespace) delete(t testing.TB, name string) {
	t.Helper()
	n.do(func() {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkDel(l))
	})
}

// newGuest makes a namespace with a TUN device as a driver does.
func newGuest(t testing.TB) (*namespace, *os.File) {
	t.Helper()
	n := newNamespace(t)
	var tun *os.File
	n.do(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		var req struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			_     [22]byte
		}
		copy(req.name[:], "tun0")
		req.flags = unix.IFF_TUN | unix.IFF_NO_PI
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
			t.Fatal(e)
		}
		tun = os.NewFile(uintptr(fd), "tun0")
		l, err := netlink.LinkByName("tun0")
		must(t, err)
		must(t, netlink.LinkSetMTU(l, MTU))
		addAddress(t, "tun0", GuestIPv4)
		addAddress(t, "tun0", GuestIPv6)
		up(t, "tun0")
		for _, dst := range []string{"0.0.0.0/0", "::/0"} {
			_, all, _ := net.ParseCIDR(dst)
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Scope: netlink.SCOPE_UNIVERSE}))
		}
	})
	return n, tun
}

// internet is a namespace joined to the host's by a pair of devices. It carries
// public addresses and such that only look like the host's surroundings.
type internet struct {
	*namespace
	accepted atomic.Int64 // connections to listenMaybe
}

func newInternet(t testing.TB) *internet {
	t.Helper()
	needHost(t)
	w := &internet{namespace: newNamespace(t)}
	up(t, "lo")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "net0"}))
	peer, err := netlink.LinkByName("net0")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, w.fd))
	addAddress(t, "wan0", "93.184.216.1/24")
	addAddress(t, "wan0", "2600:1408::1/64")
	up(t, "wan0")
	w.do(func() {
		for _, a := range []string{"93.184.216.34/24", "10.9.9.9/32", "169.254.169.254/32", "192.0.2.9/32", "2600:1408::34/64", "fd00:ec2::254/128"} {
			addAddress(t, "net0", a)
		}
		up(t, "net0")
	})
	// Until the kernel has noticed the carrier, packets are lost.
	until(t, func() bool {
		wan, err := netlink.LinkByName("wan0")
		return err == nil && wan.Attrs().OperState == netlink.OperUp
	})
	// Everything has a route into the internet, so only the policy protects it.
	gw4, gw6 := net.ParseIP("93.184.216.34"), net.ParseIP("2600:1408::34")
	_, all4, _ := net.ParseCIDR("0.0.0.0/0")
	_, all6, _ := net.ParseCIDR("::/0")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: all4, Gw: gw4}))
	must(t, netlink.RouteAdd(&netlink.Route{Dst: all6, Gw: gw6}))
	// An address that is the host's own without being on any device.
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	_, own, _ := net.ParseCIDR("7.7.7.0/24")
	local := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: own, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	must(t, netlink.RouteReplace(local))
	t.Cleanup(func() {
		wan, err := netlink.LinkByName("wan0")
		must(t, err)
		must(t, netlink.LinkDel(wan))
		w.close()
	})
	return w
}

func (w *internet) listen(t testing.TB, addr string) (l net.Listener) {
	t.Helper()
	var err error
	w.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// listenMaybe counts the connections to addr, if the internet has it.
func (w *internet) listenMaybe(t testing.TB, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	w.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		return
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.accepted.Add(1)
			c.Close()
		}
	}()
}

// packet serves a UDP echo.
func (w *internet) packet(t testing.TB, addr string) (p net.PacketConn) {
	t.Helper()
	var err error
	w.do(func() { p, err = net.ListenPacket("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(buf[:n], from)
		}
	}()
	return p
}

// serveDNS answers questions for A records with an address.
func (w *internet) serveDNS(t testing.TB, addr string, answer func(dnsmessage.Question) string) {
	t.Helper()
	reply := func(msg []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(msg) != nil || len(m.Questions) != 1 {
			return nil
		}
		q := m.Questions[0]
		m.Response, m.Additionals = true, nil
		if text := answer(q); q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(text).To4())},
			}}
		}
		b, _ := m.Pack()
		return b
	}
	l := w.listen(t, addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					msg, err := readMessage(c)
					if err != nil || writeMessage(c, reply(msg)) != nil {
						return
					}
				}
			}()
		}
	}()
	var p net.PacketConn
	var err error
	w.do(func() { p, err = net.ListenPacket("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := reply(buf[:n]); b != nil {
				_, _ = p.WriteTo(b, from)
			}
		}
	}()
}

func addHostAddress(t testing.TB, cidr string) {
	t.Helper()
	addAddress(t, "wan0", cidr)
}

func addAddress(t testing.TB, device, cidr string) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	if strings.Contains(cidr, ":") {
		a.Flags = unix.IFA_F_NODAD
	}
	must(t, netlink.AddrAdd(l, a))
}

func up(t testing.TB, device string) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		panic(fmt.Sprintf("set up the test's network: %v", err))
	}
}
