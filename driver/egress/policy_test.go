package egress

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"93.184.216.34": true, "8.8.8.8": true, "1.1.1.1": true, "100.63.255.255": true, "100.128.0.0": true,
		"172.15.255.255": true, "172.32.0.0": true, "223.255.255.255": true, "11.0.0.0": true,
		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "100.64.0.0": false, "100.127.255.255": false,
		"127.0.0.1": false, "127.255.255.255": false, "169.254.169.254": false, "172.16.0.1": false, "172.31.255.255": false,
		"192.0.0.192": false, "192.0.2.1": false, "192.168.1.1": false, "198.18.0.1": false, "198.19.255.255": false,
		"198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "239.1.1.1": false, "240.0.0.1": false,
		"255.255.255.255": false, "168.63.129.16": false,
		"2600:1408::34": true, "2a00:1450:4001::1": true, "64:ff9b::8.8.8.8": true,
		"::": false, "::1": false, "::8.8.8.8": false, "::ffff:8.8.8.8": false, "::ffff:127.0.0.1": false,
		"64:ff9b::10.0.0.1": false, "64:ff9b::127.0.0.1": false, "64:ff9b:1::8.8.8.8": false,
		"2002:7f00:1::1": false, "2001:0:1234::1": false, "2001:db8::1": false, "3fff::1": false,
		"fc00::1": false, "fd00:ec2::254": false, "fe80::1": false, "fec0::1": false, "ff02::1": false, "100::1": false,
		"2600::5efe:a00:1": false, "2600::200:5efe:808:808": false, "2600::1%eth0": false, "5f00::1": false,
	} {
		if got := Public(netip.MustParseAddr(text)); got != want {
			t.Errorf("Public(%s) is %v, want %v", text, got, want)
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// FuzzPublic compares with a model made of what net/netip knows: what it calls
// not global unicast, private or in a range of special use must be refused, and
// so must every IPv6 address that can be turned into such an IPv4 address.
func FuzzPublic(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:1::f5ff:fffe", "2600::1"} {
		a := netip.MustParseAddr(s)
		f.Add(a.AsSlice())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			t.Skip()
		}
		if !Public(a) {
			return
		}
		bad := func(a netip.Addr) bool {
			return !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4() && a.As4()[0] >= 240
		}
		if bad(a) || a.Is4In6() {
			t.Fatalf("%s is public", a)
		}
		if a.Is4() {
			return
		}
		h := a.As16()
		embedded := []netip.Addr{}
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
			embedded = append(embedded, netip.AddrFrom4([4]byte(h[12:])))
		case netip.MustParsePrefix("2002::/16").Contains(a):
			embedded = append(embedded, netip.AddrFrom4([4]byte(h[2:])))
		case netip.MustParsePrefix("2001::/32").Contains(a):
			embedded = append(embedded, netip.AddrFrom4([4]byte{^h[12], ^h[13], ^h[14], ^h[15]}))
		}
		for _, e := range embedded {
			if bad(e) {
				t.Fatalf("%s is public, but embeds %s", a, e)
			}
		}
	})
}

// FuzzQuery checks that only what a plain query can say is passed on, and that
// the message made of it means the same.
func FuzzQuery(f *testing.F) {
	q := query{question: dnsmessage.Question{Name: dnsmessage.MustNewName("example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}, recurse: true, edns: true, size: 1232, dnssec: true}
	m, err := q.message(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m)
	q.edns, q.question.Type = false, typeAXFR
	m, _ = q.message(2)
	f.Add(m)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, err := parseQuery(msg)
		if err != nil {
			if r := q.refusal(dnsmessage.RCodeRefused); len(r) > 600 {
				t.Fatalf("a refusal has %d bytes", len(r))
			}
			return
		}
		if q.question.Class != dnsmessage.ClassINET || q.question.Type == typeAXFR || q.question.Type == typeIXFR {
			t.Fatalf("%v is passed on", q.question)
		}
		out, err := q.message(99)
		if err != nil {
			t.Skip() // a name that cannot be written again is not passed on
		}
		if len(out) > 300 {
			t.Fatalf("the message has %d bytes", len(out))
		}
		again, err := parseQuery(out)
		if err != nil {
			t.Fatalf("the message that is sent is not valid: %v", err)
		}
		if again.id != 99 || again.question != q.question || again.edns != q.edns || q.edns && again.size != q.size {
			t.Fatalf("%+v became %+v", q, again)
		}
		// A response to another question or with another id is no answer.
		answer := again.refusal(dnsmessage.RCodeSuccess)
		if !q.answers(answer, 99) || q.answers(answer, 98) || q.answers(out, 99) {
			t.Fatal("answers are told apart wrongly")
		}
	})
}

func TestBucket(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	n := 0
	for b.take(now, 10, 20) {
		n++
	}
	if n != 20 {
		t.Errorf("burst of %d, want 20", n)
	}
	for range 100 {
		now = now.Add(10 * time.Millisecond)
		if b.take(now, 10, 20) {
			n++
		}
	}
	if n < 29 || n > 31 {
		t.Errorf("%d in a second after the burst, want 10", n-20)
	}
}

// FuzzAccepts: no packet makes the filter panic or lets through what is not the
// sandbox's own.
func FuzzAccepts(f *testing.F) {
	f.Add([]byte{0x45, 19: 0})
	f.Add([]byte{0x60, 40: 17})
	f.Fuzz(func(t *testing.T, p []byte) {
		if !accepts(p) {
			return
		}
		src, _ := netip.AddrFromSlice(p[12:16])
		if p[0]>>4 == 6 {
			src, _ = netip.AddrFromSlice(p[8:24])
		}
		if src != guest4 && src != guest6 {
			t.Fatalf("a packet from %s was accepted", src)
		}
	})
}
