package egress

import "net/netip"

// refusedPrefixes4 are the IPv4 ranges that are not globally routable unicast
// addresses, and two that are but belong to the machine's surroundings.
var refusedPrefixes4 = prefixes(
	"0.0.0.0/8",        // this network
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // shared by carriers; some clouds' metadata
	"127.0.0.0/8",      // loopback
	"169.254.0.0/16",   // link-local; clouds' metadata
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments; some clouds' metadata
	"192.0.2.0/24",     // documentation
	"192.88.99.0/24",   // 6to4 relays, withdrawn
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarks; the sandboxes' own addresses
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast
	"168.63.129.16/32", // Azure's host agent behind a public address
)

// allowed6 is the only range from which global unicast addresses are given out,
// and nat64 the one through which IPv6-only hosts reach IPv4.
var (
	allowed6 = netip.MustParsePrefix("2000::/3")
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
)

// refusedPrefixes6 are the parts of allowed6 that must not be reached.
var refusedPrefixes6 = prefixes(
	"2001::/23",     // protocol assignments, with Teredo, benchmarks, ORCHID
	"2001:db8::/32", // documentation
	"2002::/16",     // 6to4: any IPv4 address may hide inside
	"3fff::/20",     // documentation
)

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// Public tells whether addr is a globally routable unicast address: the only
// kind a sandbox may reach. IPv6 addresses in which an IPv4 address is embedded
// (mapped, compatible, 6to4, Teredo, ISATAP) are not public, except those of
// the well-known NAT64 prefix if the embedded address is. Addresses with a zone
// are not public.
//
// Public knows nothing of the host: its own public addresses are public.
func Public(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	if addr.Is4() {
		return !within(addr, refusedPrefixes4)
	}
	b := addr.As16()
	if nat64.Contains(addr) {
		return Public(netip.AddrFrom4([4]byte(b[12:])))
	}
	if !allowed6.Contains(addr) || within(addr, refusedPrefixes6) {
		return false
	}
	// ISATAP: an interface identifier of 0000:5efe or 0200:5efe and an IPv4
	// address.
	return b[8]&^2 != 0 || b[9] != 0 || b[10] != 0x5e || b[11] != 0xfe
}

func within(addr netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
