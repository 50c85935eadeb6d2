package egress

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// allowed are endpoints that a sandbox may reach whatever their addresses are.
type allowed struct {
	endpoints []string // constant; "host:port"

	mu    sync.Mutex
	known map[netip.AddrPort]bool // guarded by mu
	at    time.Time               // guarded by mu; when known was resolved
}

// has tells whether one of the endpoints has the address now. The sandbox's own
// idea of a name plays no part.
func (a *allowed) has(ctx context.Context, to netip.AddrPort) bool {
	if len(a.endpoints) == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known[to] {
		return true // a registry may have more addresses than one answer names
	}
	if a.known == nil || time.Since(a.at) > cacheTime {
		a.resolve(ctx)
	}
	return a.known[to]
}

func (a *allowed) resolve(ctx context.Context) {
	if a.known == nil {
		a.known = map[netip.AddrPort]bool{}
	}
	a.at = time.Now()
	for _, e := range a.endpoints {
		host, service, err := net.SplitHostPort(e)
		if err != nil {
			continue
		}
		port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
		if err != nil {
			continue
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			continue
		}
		for _, addr := range addrs {
			a.known[netip.AddrPortFrom(addr.Unmap(), uint16(port))] = true
		}
	}
}
