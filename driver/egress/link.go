package egress

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Bounds of the memory that one sandbox can make its Stack hold. Connections
// beyond the first fastConns get small buffers.
const (
	fastConns   = 32
	smallBuffer = 64 << 10
	largeBuffer = 512 << 10
	copyBuffer  = 32 << 10
	nic         = 1
	fragment6   = 44 // the extension header of an IPv6 fragment
)

// How long the stack keeps connections that are over for the sandbox or the
// remote side.
const (
	timeWait = 3 * time.Second
	linger   = 15 * time.Second
)

// network is the part of a Stack that exists from the first packet on.
type network struct {
	stack *stack.Stack
	link  *link
}

func (s *Stack) newNetwork() (*network, error) {
	n := &network{
		link: &link{tun: s.tun, traffic: &s.traffic},
		stack: stack.New(stack.Options{
			NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{})},
			TransportProtocols: []stack.TransportProtocolFactory{
				tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
			},
		}),
	}
	if err := n.configure(); err != nil {
		n.stack.Destroy()
		return nil, err
	}
	s.bufs.New = func() any { b := make([]byte, copyBuffer); return &b }
	s.dns = make(chan struct{}, maxQueries)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, s.opts.MaxConns, s.serveTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, s.serveUDP).HandlePacket)
	return n, nil
}

func (n *network) configure() error {
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	wait, fin, user := tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPLingerTimeoutOption(linger), tcpip.TCPSynRetriesOption(3)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: smallBuffer, Max: largeBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: smallBuffer, Max: largeBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &fin, &user, &receive, &send} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return netErr("set an option of TCP", err)
		}
	}
	if err := n.stack.CreateNIC(nic, n.link); err != nil {
		return netErr("create a device", err)
	}
	// Accept packets to every address, and answer from every address.
	if err := n.stack.SetPromiscuousMode(nic, true); err != nil {
		return netErr("accept all addresses", err)
	}
	if err := n.stack.SetSpoofing(nic, true); err != nil {
		return netErr("answer from all addresses", err)
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

// deliver gives a packet to the stack, which keeps it.
func (n *network) deliver(packet []byte) {
	proto := header.IPv4ProtocolNumber
	if packet[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	n.link.traffic.out.Add(int64(len(packet)))
	if d := n.link.dispatcher.Load(); d != nil {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(packet))})
		(*d).DeliverNetworkPacket(proto, p)
		p.DecRef()
	}
}

func netErr(what string, err tcpip.Error) error { return errors.New(what + ": " + err.String()) }

// accepts tells whether a packet of the sandbox is one that the stack serves:
// unicast from the sandbox's own address, TCP or UDP to anywhere, ICMP to the
// gateway only. The stack would else answer pings in the name of every address.
func accepts(p []byte) bool {
	if len(p) == 0 {
		return false
	}
	switch p[0] >> 4 {
	case 4:
		if len(p) < header.IPv4MinimumSize {
			return false
		}
		src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		if src != guest4 || dst.IsMulticast() || dst == broadcast4 {
			return false
		}
		switch tcpip.TransportProtocolNumber(p[9]) {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
			return true
		case header.ICMPv4ProtocolNumber:
			return dst == gateway4
		}
	case 6:
		if len(p) < header.IPv6MinimumSize {
			return false
		}
		src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		if src != guest6 || dst.IsMulticast() {
			return false
		}
		next := tcpip.TransportProtocolNumber(p[6])
		if next == fragment6 && len(p) > header.IPv6MinimumSize && tcpip.TransportProtocolNumber(p[header.IPv6MinimumSize]) == header.UDPProtocolNumber {
			next = header.UDPProtocolNumber // a part of a large datagram
		}
		switch next {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
			return true
		case header.ICMPv6ProtocolNumber:
			return dst == gateway6
		}
	}
	return false
}

var (
	guest4     = netip.MustParsePrefix(GuestIPv4).Addr()
	gateway4   = netip.MustParseAddr(Gateway)
	guest6     = netip.MustParsePrefix(GuestIPv6).Addr()
	gateway6   = netip.MustParseAddr(GatewayIPv6)
	broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// link is the stack's device. Packets to the sandbox are written straight into
// the TUN device, which never makes a writer wait.
type link struct {
	tun        *os.File
	traffic    *traffic
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
}

var _ stack.LinkEndpoint = (*link)(nil)

func (l *link) accepts(p []byte) bool { return accepts(p) }

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	raw, err := l.tun.SyscallConn()
	if err != nil {
		return 0, &tcpip.ErrClosedForSend{}
	}
	n := 0
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, p := range list.AsSlice() {
			// A packet that the device does not take is lost, as on any network.
			size, err := unix.Writev(int(fd), p.AsSlices())
			l.traffic.in.Add(int64(max(size, 0)))
			if failed = err; failed != nil && !errors.Is(failed, syscall.EAGAIN) && !errors.Is(failed, syscall.ENOBUFS) {
				return
			}
			n++
		}
	})
	if err != nil || n < list.Len() {
		return n, &tcpip.ErrClosedForSend{}
	}
	return n, nil
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// MTU implements stack.NetworkLinkEndpoint.
func (l *link) MTU() uint32 { return MTU }

// SetMTU implements stack.NetworkLinkEndpoint; the MTU is fixed.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint; a TUN device has none.
func (l *link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.NetworkLinkEndpoint. Packets come from a kernel
// on the same machine, so their checksums need no check.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Wait implements stack.NetworkLinkEndpoint; Stack.run is the only reader.
func (l *link) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.NetworkLinkEndpoint; Stack.run closes the device.
func (l *link) Close() {}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}
