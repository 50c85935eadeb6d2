// Package egress gives sandboxes a way to the internet without configuring the
// host: a TCP/IP stack in user space ends the connections that a sandbox opens
// on its TUN device, and dials them again from the server's process, public
// addresses only.
//
// Nothing is left on the host when the process is killed, no firewall rule
// clashes with another program's, and no privilege is needed outside the
// sandbox's own namespaces. See docs/adr/0002-egress-in-user-space.md.
//
// A driver makes a TUN device inside the sandbox's network namespace, gives it
// the addresses below and a default route, and hands its descriptor to Start:
//
//	ip addr add 198.18.0.2/30 dev tun0      (GuestIPv4)
//	ip addr add fd48:…::2/126 dev tun0      (GuestIPv6)
//	ip link set tun0 mtu 32768 up           (MTU)
//	ip route add default dev tun0           (both families)
//	nameserver 198.18.0.1                   (Gateway, in /etc/resolv.conf)
package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The addresses inside every sandbox. They are the same in each, as each has a
// network namespace and a Stack of its own.
const (
	// GuestIPv4 is the address of the TUN device, with its prefix length.
	GuestIPv4 = "198.18.0.2/30"
	// Gateway is the Stack's own address: the name server of the sandbox. It
	// also answers pings.
	Gateway = "198.18.0.1"
	// GuestIPv6 is the IPv6 address of the TUN device, with its prefix length.
	GuestIPv6 = "fd48:6561:7274:6800::2/126"
	// GatewayIPv6 is the Stack's own IPv6 address.
	GatewayIPv6 = "fd48:6561:7274:6800::1"
	// MTU is that of the TUN device, in bytes. It is large because no packet
	// leaves the machine: what the host sends has the host's own sizes.
	MTU = 32 << 10
)

// Options configure a Stack. The zero value is ready to use.
type Options struct {
	// Log gets warnings; nil discards them.
	Log *slog.Logger
	// Host is shared by all Stacks of a process. nil makes one for this Stack.
	Host *Host
	// Allow are endpoints, "host:port", that can be reached over TCP besides
	// public addresses. Names are resolved by the host.
	Allow []string
	// MaxConns bounds TCP connections that exist at the same time, also those
	// being opened and closed; further ones are refused. Default 256.
	MaxConns int
	// MaxFlows bounds pairs of UDP endpoints; further ones are refused until an
	// old one was idle for FlowIdle. Default 128.
	MaxFlows int
	// FlowIdle ends a UDP flow without packets. Default 30 s.
	FlowIdle time.Duration
	// NewPerSecond bounds how many connections and flows are opened in a
	// second on average, with a burst of twice as many. What exceeds it is
	// dropped, and the sandbox's kernel tries again. Default 200.
	NewPerSecond int
	// DialTimeout ends an attempt to connect that nobody answers. Default 20 s.
	DialTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Host == nil {
		o.Host = &Host{}
	}
	if o.MaxConns == 0 {
		o.MaxConns = 256
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = 128
	}
	if o.FlowIdle == 0 {
		o.FlowIdle = 30 * time.Second
	}
	if o.NewPerSecond == 0 {
		o.NewPerSecond = 200
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 20 * time.Second
	}
	return o
}

// Stack serves one sandbox. Until the sandbox sends its first packet it costs
// one waiting goroutine.
type Stack struct {
	opts   Options
	tun    *os.File
	ctx    context.Context // ends with Close or with the device
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing of the Stack is left
	mu     sync.Mutex
	ending bool // guarded by mu; no goroutine joins wg any more
	wg     sync.WaitGroup
	conns  atomic.Int64 // TCP connections
	flows  atomic.Int64 // UDP flows
	traffic
	opened bucket
	dns    chan struct{} // one token for each name query under way
	allow  allowed
	bufs   sync.Pool // *[]byte of copyBuffer bytes
}

// traffic is bytes of packets.
type traffic struct{ in, out atomic.Int64 }

// Traffic returns the bytes of all packets to the sandbox and from it. A nil Stack has none.
func (s *Stack) Traffic() (in, out int64) {
	if s == nil {
		return 0, 0
	}
	return s.in.Load(), s.out.Load()
}

// Start serves the TUN device until Close is called or the device disappears.
// It takes ownership of tun, also when it fails. The device must be of the kind
// IFF_TUN|IFF_NO_PI, configured and up.
func Start(tun *os.File, opts Options) (*Stack, error) {
	defer tun.Close()
	// A descriptor that came over a socket is in blocking mode, in which Close
	// would not wake a reader. Only a new os.File gets into Go's poller.
	fd := -1
	var err error
	raw, err := tun.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(old uintptr) {
			fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return nil, fmt.Errorf("take over the TUN device: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("take over the TUN device: %w", err)
	}
	s := &Stack{
		opts:  opts.withDefaults(),
		allow: allowed{endpoints: opts.Allow},
		tun:   os.NewFile(uintptr(fd), tun.Name()),
		done:  make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run()
	return s, nil
}

// Close ends every connection with a reset and frees everything. It returns
// when nothing is left, and may be called again.
func (s *Stack) Close() error {
	s.cancel()
	s.tun.Close() // wakes run
	<-s.done
	return nil
}

// run waits for the first packet, then makes the network stack and feeds it.
func (s *Stack) run() {
	defer close(s.done)
	defer s.tun.Close()
	defer s.cancel()
	first, err := s.firstPacket()
	if err != nil {
		return
	}
	n, err := s.newNetwork()
	if err != nil {
		s.opts.Log.Error("make the network stack of a sandbox", "err", err)
		return
	}
	for packet := first; ; {
		n.deliver(packet)
		buf := make([]byte, MTU)
		for {
			size, err := s.tun.Read(buf)
			if err != nil {
				s.end(n)
				return
			}
			if n.link.accepts(buf[:size]) {
				packet = buf[:size]
				break
			}
		}
	}
}

// enter counts a goroutine that end waits for, unless it is too late.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.wg.Add(1)
	return true
}

// end breaks everything off and returns when all goroutines have ended.
func (s *Stack) end(n *network) {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.cancel()
	idle := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(idle)
	}()
	for waiting := true; waiting; {
		// A handshake with the sandbox ends only by its endpoint, and a dial
		// that has just succeeded may still begin one.
		for _, ep := range n.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-idle:
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	n.stack.Destroy()
}

// firstPacket returns the first packet that asks for something. A kernel sends
// multicast packets on a new device by itself; those wake nothing up.
func (s *Stack) firstPacket() ([]byte, error) {
	raw, err := s.tun.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		// Wait without a buffer, which most sandboxes never need.
		err := raw.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return n > 0 || err != nil && !errors.Is(err, syscall.EINTR)
		})
		if err != nil {
			return nil, err
		}
		buf := make([]byte, MTU)
		n, err := s.tun.Read(buf)
		if err != nil {
			return nil, err
		}
		if accepts(buf[:n]) {
			return buf[:n], nil
		}
	}
}

// bucket is a token bucket.
type bucket struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// take tells whether something may happen now, if it may happen perSecond times
// in a second and burst times at once.
func (b *bucket) take(now time.Time, perSecond, burst int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.IsZero() {
		b.tokens = float64(burst)
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(float64(burst), b.tokens+d.Seconds()*float64(perSecond))
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
