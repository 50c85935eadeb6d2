package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errRefused is the cause of a dial that the policy forbids.
var errRefused = errors.New("the address is not public")

// errFull says that Host.MaxSockets is reached.
var errFull = errors.New("too many sockets are open for sandboxes")

// cacheTime is how long what was read about the host is believed.
const cacheTime = 3 * time.Second

// Host is what the Stacks of a process share: what they know of the host and a
// bound on the sockets they open together. The zero value is ready to use; its
// fields must not change once a Stack uses it.
type Host struct {
	// Deny are further addresses that sandboxes must not reach, such as a public
	// address that a router translates to this host.
	Deny []netip.Prefix
	// ResolvConf is where the host's name servers are read from. Default
	// /etc/resolv.conf.
	ResolvConf string
	// MaxSockets bounds the sockets open for all sandboxes together, so that
	// they leave descriptors to the server. Default: half of RLIMIT_NOFILE.
	MaxSockets int

	sockets atomic.Int64

	mu          sync.Mutex
	own         map[netip.Addr]bool // addresses and broadcast addresses of the host
	ownAt       time.Time
	ownErr      error
	resolvers   []netip.AddrPort
	resolversAt time.Time
}

// acquire takes one of the sockets; release gives it back.
func (h *Host) acquire() bool {
	limit := int64(h.MaxSockets)
	if limit == 0 {
		var r unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			r.Cur = 1024
		}
		limit = int64(min(r.Cur, 1<<20) / 2)
	}
	if h.sockets.Add(1) > limit {
		h.sockets.Add(-1)
		return false
	}
	return true
}

func (h *Host) release() { h.sockets.Add(-1) }

// dial connects to a public address. The address is literal, so no name can
// change its meaning between the check and the connection.
func (h *Host) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if err := h.check(to.Addr()); err != nil {
		return nil, err
	}
	if err := routedAway(to.Addr()); err != nil {
		return nil, err
	}
	d := net.Dialer{ControlContext: h.control}
	return d.DialContext(ctx, network, to.String())
}

// control is the second barrier: it sees the address that the kernel is really
// about to be given, whatever happened before.
func (h *Host) control(_ context.Context, network, address string, c syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if err := h.check(to.Addr()); err != nil {
		return err
	}
	if !strings.HasPrefix(network, "udp") {
		return nil
	}
	// Go lets UDP sockets send broadcasts; sandboxes may not.
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
	})
	return errors.Join(err, cerr)
}

// check returns an error unless addr is public and not the host's own. When the
// host's addresses cannot be read everything is refused.
func (h *Host) check(addr netip.Addr) error {
	if !Public(addr) || within(addr, h.Deny) {
		return errRefused
	}
	own, err := h.addresses(time.Now())
	if err != nil {
		return err
	}
	if own[addr] {
		return errRefused
	}
	if nat64.Contains(addr) {
		b := addr.As16()
		return h.check(netip.AddrFrom4([4]byte(b[12:])))
	}
	return nil
}

// addresses returns the addresses of the host's interfaces and the broadcast
// addresses of their networks.
func (h *Host) addresses(now time.Time) (map[netip.Addr]bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own != nil && now.Sub(h.ownAt) < cacheTime && !now.Before(h.ownAt) {
		return h.own, h.ownErr
	}
	own := map[netip.Addr]bool{}
	list, err := net.InterfaceAddrs()
	for _, a := range list {
		p, perr := netip.ParsePrefix(a.String())
		if perr != nil {
			continue
		}
		addr := p.Addr().WithZone("").Unmap()
		own[addr] = true
		if addr.Is4() && p.Bits() < 31 {
			own[p.Masked().Addr()] = true
			b := addr.As4()
			for i := p.Bits(); i < 32; i++ {
				b[i/8] |= 0x80 >> (i % 8)
			}
			own[netip.AddrFrom4(b)] = true
		}
	}
	h.own, h.ownAt, h.ownErr = own, now, err
	return own, err
}

// routedAway asks the kernel where a packet to addr would go and returns an
// error unless it leaves the host as unicast. It sees at once what the cached
// addresses do not have yet, and ranges that are local without being on an
// interface.
func routedAway(addr netip.Addr) error {
	routes, err := netlink.RouteGet(net.IP(addr.AsSlice()))
	if err != nil {
		return fmt.Errorf("find a route: %w", err)
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			return errRefused
		}
	}
	return nil
}

// servers returns the host's name servers. They may be on loopback or private
// addresses; only name queries made by this package are sent to them.
func (h *Host) servers(now time.Time) []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.resolvers != nil && now.Sub(h.resolversAt) < cacheTime && !now.Before(h.resolversAt) {
		return h.resolvers
	}
	path := h.ResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	h.resolvers, h.resolversAt = readResolvers(path), now
	return h.resolvers
}

// readResolvers returns at most three servers, like the C library, and the
// local one if none is named.
func readResolvers(path string) []netip.AddrPort {
	var list []netip.AddrPort
	if f, err := os.Open(path); err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan() && len(list) < 3; {
			w := strings.Fields(sc.Text())
			if len(w) < 2 || w[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(w[1]); err == nil {
				list = append(list, netip.AddrPortFrom(a, 53))
			}
		}
	}
	if list == nil {
		list = append(list, netip.MustParseAddrPort("127.0.0.1:53"))
	}
	return list
}

// Refuse returns an error unless addr is public, none of the host's own, and is
// reached by leaving the host. Parts of Hearth that connect to where users tell them
// ask it with the address that is about to be dialed.
func (h *Host) Refuse(addr netip.Addr) error {
	if err := h.check(addr); err != nil {
		return err
	}
	return routedAway(addr)
}
