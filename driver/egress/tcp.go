package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// dial connects to a public or an allowed address.
func (s *Stack) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if s.allow.has(ctx, to) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.String())
	}
	return s.opts.Host.dial(ctx, "tcp", to)
}

// serveTCP handles a request of the sandbox to connect, in a goroutine of the
// request's own. It dials first and accepts then, so the sandbox sees a refusal
// as a refusal.
func (s *Stack) serveTCP(r *tcp.ForwarderRequest) {
	if !s.enter() {
		r.Complete(false)
		return
	}
	defer s.wg.Done()
	if !s.opened.take(time.Now(), s.opts.NewPerSecond, 2*s.opts.NewPerSecond) {
		r.Complete(false) // the sandbox's kernel tries again in a second
		return
	}
	active := s.conns.Add(1)
	defer s.conns.Add(-1)
	to := destination(r.ID().LocalAddress, r.ID().LocalPort)
	isDNS := to.Port() == 53 && (to.Addr() == gateway4 || to.Addr() == gateway6)
	if active > int64(s.opts.MaxConns) || !s.opts.Host.acquire() {
		r.Complete(true)
		return
	}
	defer s.opts.Host.release()

	var remote *net.TCPConn
	if !isDNS {
		ctx, cancel := context.WithTimeout(s.ctx, s.opts.DialTimeout)
		c, err := s.dial(ctx, to)
		cancel()
		if err != nil {
			s.opts.Log.Debug("a sandbox's connection failed", "to", to, "err", err)
			r.Complete(true)
			return
		}
		remote = c.(*net.TCPConn)
		defer remote.Close()
	}

	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		// The sandbox did not finish the handshake.
		r.Complete(false)
		if remote != nil {
			_ = remote.SetLinger(0)
		}
		return
	}
	r.Complete(false)
	if active <= fastConns {
		// Throughput for the few connections an ordinary function has.
		ep.SocketOptions().SetReceiveBufferSize(largeBuffer, true)
		ep.SocketOptions().SetSendBufferSize(largeBuffer, true)
	}
	ep.SocketOptions().SetKeepAlive(true)
	ended, hup := waiter.NewChannelEntry(waiter.EventHUp)
	queue.EventRegister(&ended)
	defer queue.EventUnregister(&ended)

	guest := gonet.NewTCPConn(&queue, ep)
	stop := context.AfterFunc(s.ctx, func() {
		ep.Abort()
		if remote != nil {
			_ = remote.SetLinger(0)
			_ = remote.Close()
		}
	})
	defer stop()
	if isDNS {
		s.serveDNSStream(guest)
	} else {
		s.relay(guest, ep, remote)
	}
	// The endpoint lives on until the sandbox has acknowledged everything, and
	// the connection counts until then: so a sandbox that acknowledges nothing
	// has no more memory here than its connections may.
	ep.Close()
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for tcp.EndpointState(ep.State()) != tcp.StateClose && tcp.EndpointState(ep.State()) != tcp.StateError && tcp.EndpointState(ep.State()) != tcp.StateTimeWait {
		select {
		case <-hup:
		case <-timer.C:
			ep.Abort()
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// relay copies both directions. The end of one passes on as a half-close, a
// failure of either as a reset of both.
func (s *Stack) relay(guest *gonet.TCPConn, ep tcpip.Endpoint, remote *net.TCPConn) {
	var once sync.Once
	reset := func() {
		once.Do(func() {
			ep.Abort()
			_ = remote.SetLinger(0) // Close then sends RST
			_ = remote.Close()
		})
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if s.copy(remote, guest) != nil || remote.CloseWrite() != nil {
			reset()
		}
	})
	if s.copy(guest, remote) != nil || guest.CloseWrite() != nil {
		reset()
	}
	wg.Wait()
}

// copy copies until the end of src. Each write waits until dst has room, so a
// slow reader on one side slows the writer on the other.
func (s *Stack) copy(dst io.Writer, src io.Reader) error {
	buf := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, err := dst.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// destination is where a packet of the sandbox was sent: what for the stack,
// which plays the remote side, is the local address.
func destination(addr tcpip.Address, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr.AsSlice())
	return netip.AddrPortFrom(a, port)
}
