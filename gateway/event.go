package gateway

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

// appendEvent appends the request as an API Gateway payload 2.0 event, without
// its body. The format: AWS, "Working with AWS Lambda proxy integrations for
// HTTP APIs". It is written by hand as it is made for every call. Its trace context is
// that of trace, whatever the request has.
func appendEvent(b []byte, r *http.Request, t *target, id string, trace hearth.Trace, now time.Time) []byte {
	path := t.path
	if plain, err := url.PathUnescape(path); err == nil {
		path = plain
	}
	peer, trusted := peerAddress(r)
	b = append(b, `{"version":"2.0","routeKey":`...)
	b = appendString(b, t.routeKey)
	b = append(b, `,"rawPath":`...)
	b = appendString(b, path)
	b = append(b, `,"rawQueryString":`...)
	b = appendString(b, r.URL.RawQuery)
	if cookies := r.Header["Cookie"]; len(cookies) > 0 {
		b = append(b, `,"cookies":[`...)
		n := 0
		for _, line := range cookies {
			for c := range strings.SplitSeq(line, ";") {
				if c = strings.TrimSpace(c); c != "" {
					b = appendComma(b, &n)
					b = appendString(b, c)
				}
			}
		}
		b = append(b, ']')
	}
	b = append(b, `,"headers":`...)
	b = appendHeaders(b, r, t, trace, peer, trusted)
	if r.URL.RawQuery != "" {
		b = appendQuery(b, r.URL.RawQuery)
	}
	if len(t.params) > 0 {
		b = append(b, `,"pathParameters":{`...)
		for i, kv := range t.params {
			b = appendComma(b, &i)
			b = appendString(b, kv[0])
			b = append(b, ':')
			b = appendString(b, kv[1])
		}
		b = append(b, '}')
	}
	source := clientAddress(r)
	b = append(b, `,"requestContext":{"accountId":"hearth","apiId":`...)
	b = appendString(b, t.version.Function)
	b = append(b, `,"domainName":`...)
	b = appendString(b, r.Host)
	b = append(b, `,"http":{"method":`...)
	b = appendString(b, r.Method)
	b = append(b, `,"path":`...)
	b = appendString(b, path)
	b = append(b, `,"protocol":`...)
	b = appendString(b, r.Proto)
	b = append(b, `,"sourceIp":`...)
	b = appendString(b, source)
	b = append(b, `,"userAgent":`...)
	b = appendString(b, r.UserAgent())
	b = append(b, `},"requestId":`...)
	b = appendString(b, id)
	b = append(b, `,"routeKey":`...)
	b = appendString(b, t.routeKey)
	b = append(b, `,"stage":"$default","time":"`...)
	b = now.UTC().AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `","timeEpoch":`...)
	b = strconv.AppendInt(b, now.UnixMilli(), 10)
	b = append(b, `},"isBase64Encoded":`...)
	return append(strconv.AppendBool(b, isBinary(r.Header)), '}')
}

// hopByHop tells whether a request header belongs to the connection.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func appendHeaders(b []byte, r *http.Request, t *target, trace hearth.Trace, peer string, trusted bool) []byte {
	b = append(b, `{"host":`...)
	b = appendString(b, r.Host)
	connection := r.Header["Connection"]
	for name, values := range r.Header {
		switch {
		case name == "Cookie", hopByHop(name), len(connection) > 0 && listed(connection, name):
			continue
		case strings.HasPrefix(name, "Hearth-"), strings.IndexByte(name, '_') >= 0 && ambiguous(name):
			continue // only Hearth speaks with these names
		case name == "Traceparent", name == "Tracestate":
			continue // they are written below
		case name == "Forwarded", strings.HasPrefix(name, "X-Forwarded-"):
			if !trusted || name == "X-Forwarded-For" || name == "X-Forwarded-Prefix" {
				continue // a claim nobody vouches for, or written below
			}
		}
		b = append(b, ',')
		b = appendLower(b, name)
		b = append(b, ':')
		b = appendList(b, values)
	}
	if n := r.ContentLength; n >= 0 && r.Header["Content-Length"] == nil && n > 0 {
		b = append(b, `,"content-length":"`...)
		b = strconv.AppendInt(b, n, 10)
		b = append(b, '"')
	}
	forwarded := peer
	if prior := r.Header["X-Forwarded-For"]; trusted && len(prior) > 0 {
		forwarded = strings.Join(prior, ", ") + ", " + peer
	}
	b = append(b, `,"x-forwarded-for":`...)
	b = appendString(b, forwarded)
	if !trusted || r.Header["X-Forwarded-Proto"] == nil {
		proto := "http"
		if r.TLS != nil {
			proto = "https"
		}
		b = append(b, `,"x-forwarded-proto":"`...)
		b = append(b, proto...)
		b = append(b, '"')
	}
	if !trusted || r.Header["X-Forwarded-Host"] == nil {
		b = append(b, `,"x-forwarded-host":`...)
		b = appendString(b, r.Host)
	}
	b = trace.AppendTraceparent(append(b, `,"traceparent":"`...))
	b = append(b, '"')
	if trace.Tracestate != "" {
		b = append(b, `,"tracestate":`...)
		b = appendString(b, trace.Tracestate)
	}
	if t.prefix != "" {
		b = append(b, `,"x-forwarded-prefix":`...)
		b = appendString(b, t.prefix)
	}
	return append(b, '}')
}

// ambiguous tells whether a header with an underscore in its name is the same as
// a guarded one to frameworks that turn names into variables, as CGI and WSGI
// do: X_Forwarded_For and X-Forwarded-For are both HTTP_X_FORWARDED_FOR there.
func ambiguous(name string) bool {
	plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(plain, "x-forwarded-") || strings.HasPrefix(plain, "hearth-")
}

// peerAddress returns the client's address, and whether what it says of
// earlier hops is believed: only a proxy on this host is.
func peerAddress(r *http.Request) (addr string, trusted bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr, false
	}
	return host, host == "127.0.0.1" || host == "::1" || net.ParseIP(host).IsLoopback()
}

// clientAddress returns the address of the client, behind a proxy on this host if there
// is one.
func clientAddress(r *http.Request) string {
	addr, trusted := peerAddress(r)
	if trusted {
		return firstForwarded(r, addr)
	}
	return addr
}

// clientNetwork returns what stands for the client's address where clients share: the
// network that providers give to IPv6 clients at most.
func clientNetwork(r *http.Request) string {
	addr, err := netip.ParseAddr(clientAddress(r))
	if err != nil {
		return ""
	}
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		return addr.String()
	}
	return netip.PrefixFrom(addr, 48).Masked().String()
}

// firstForwarded returns the address the proxy on this host saw, and the
// proxy's own when what it says is no address.
func firstForwarded(r *http.Request, peer string) string {
	prior := r.Header["X-Forwarded-For"]
	if len(prior) == 0 {
		return peer
	}
	last := prior[len(prior)-1]
	last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
	if _, err := netip.ParseAddr(last); err != nil {
		return peer
	}
	return last
}

// listed tells whether a Connection header names the header.
func listed(connection []string, name string) bool {
	for _, line := range connection {
		for s := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(s), name) {
				return true
			}
		}
	}
	return false
}

// appendQuery appends the decoded query, repeated values joined by commas.
func appendQuery(b []byte, raw string) []byte {
	values, _ := url.ParseQuery(raw) //nolint:errcheck // what could be read is used, the raw string is there too
	b = append(b, `,"queryStringParameters":{`...)
	n := 0
	for k, v := range values {
		b = appendComma(b, &n)
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, strings.Join(v, ","))
	}
	return append(b, '}')
}

// isBinary tells whether the body goes into the event as base64.
func isBinary(h http.Header) bool {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return true
	}
	media := h.Get("Content-Type")
	if media == "" {
		return false // the guest falls back to base64 for what is no text
	}
	media, _, _ = strings.Cut(media, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	switch {
	case strings.HasPrefix(media, "text/"), strings.HasSuffix(media, "+json"), strings.HasSuffix(media, "+xml"):
		return false
	}
	switch media {
	case "application/json", "application/xml", "application/javascript", "application/x-www-form-urlencoded",
		"application/x-ndjson", "application/yaml", "application/graphql":
		return false
	}
	return true
}

// appendComma appends a comma unless it is called the first time for n.
func appendComma(b []byte, n *int) []byte {
	if *n++; *n == 1 {
		return b
	}
	return append(b, ',')
}

func appendList(b []byte, values []string) []byte {
	if len(values) == 1 {
		return appendString(b, values[0])
	}
	return appendString(b, strings.Join(values, ","))
}

// appendLower appends a header's name, which is a token, as a JSON string.
func appendLower(b []byte, name string) []byte {
	b = append(b, '"')
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return append(b, '"')
}

// appendString appends s as a JSON string; invalid UTF-8 is replaced.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(b, s[start:i]...)
				b = append(b, "\uFFFD"...)
				start = i + 1
			}
			i += size
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// countingReader bounds a body and counts it. It may be read in another
// goroutine than the one that looks at n.
type countingReader struct {
	r     io.Reader
	limit int64
	n     atomic.Int64
}

// Read implements io.Reader.
func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n.Add(int64(n)) > c.limit {
		return 0, tooLarge(c.limit)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's contract
		err = bodyError(err)
	}
	return n, err
}
