package egress

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// lookupTimeout ends the search for the addresses of allowed endpoints.
const lookupTimeout = 5 * time.Second

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

// resolve asks for all names at once, so that one that nobody answers for does
// not keep the others waiting for longer than lookupTimeout.
func (a *allowed) resolve(ctx context.Context) {
	if a.known == nil {
		a.known = map[netip.AddrPort]bool{}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found := make(chan []netip.AddrPort)
	for _, e := range a.endpoints {
		go func() { found <- lookup(ctx, e) }()
	}
	for range a.endpoints {
		for _, addr := range <-found {
			a.known[addr] = true
		}
	}
	a.at = time.Now()
}

// lookup returns the addresses of an endpoint, none if they cannot be had.
func lookup(ctx context.Context, endpoint string) []netip.AddrPort {
	host, service, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil
	}
	addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // none on error
	var out []netip.AddrPort
	for _, addr := range addrs {
		out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(port)))
	}
	return out
}
