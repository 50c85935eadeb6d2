package egress

import (
	"errors"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxDatagram is the greatest payload of a UDP datagram.
const maxDatagram = 64 << 10

// serveUDP handles the first packet of a flow, in the goroutine that reads the
// device. Where it returns false the stack answers "port unreachable".
func (s *Stack) serveUDP(r *udp.ForwarderRequest) bool {
	if !s.opened.take(time.Now(), s.opts.NewPerSecond, 2*s.opts.NewPerSecond) {
		return true
	}
	if s.flows.Add(1) > int64(s.opts.MaxFlows) {
		s.flows.Add(-1)
		return false
	}
	if !s.opts.Host.acquire() {
		s.flows.Add(-1)
		return false
	}
	free := func() {
		s.opts.Host.release()
		s.flows.Add(-1)
	}
	to := destination(r.ID().LocalAddress, r.ID().LocalPort)
	isDNS := to.Port() == 53 && (to.Addr() == gateway4 || to.Addr() == gateway6)
	var remote net.Conn
	if !isDNS {
		// Connecting a datagram socket waits for nobody.
		c, err := s.opts.Host.dial(s.ctx, "udp", to)
		if err != nil {
			s.opts.Log.Debug("a sandbox's datagram was refused", "to", to, "err", err)
			free()
			return false
		}
		remote = c
	}
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		if remote != nil {
			remote.Close()
		}
		free()
		return true
	}
	ep.SocketOptions().SetReceiveBufferSize(smallBuffer, false)
	ep.SocketOptions().SetSendBufferSize(smallBuffer, false)
	guest := gonet.NewUDPConn(&queue, ep)
	s.wg.Go(func() {
		defer free()
		if isDNS {
			s.serveDNSPackets(guest)
			return
		}
		s.relayPackets(guest, remote)
	})
	return true
}

// relayPackets copies datagrams both ways until none came for FlowIdle, a side
// failed or the Stack ends.
func (s *Stack) relayPackets(guest, remote net.Conn) {
	var once sync.Once
	end := make(chan struct{})
	stop := func() { once.Do(func() { close(end) }) }
	idle := time.AfterFunc(s.opts.FlowIdle, stop)
	pump := func(dst, src net.Conn) {
		defer stop()
		buf := make([]byte, maxDatagram)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			idle.Reset(s.opts.FlowIdle)
			// Other errors are one datagram's, such as one that is too long.
			if _, err := dst.Write(buf[:n]); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { pump(remote, guest) })
	wg.Go(func() { pump(guest, remote) })
	select {
	case <-end:
	case <-s.ctx.Done():
	}
	idle.Stop()
	expired := time.Unix(1, 0)
	_ = guest.SetDeadline(expired) // closing an endpoint does not wake its reader
	guest.Close()
	remote.Close()
	wg.Wait()
}
