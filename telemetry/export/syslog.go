package export

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

const (
	// maxDatagram bounds a message by UDP: what is longer is cut, as networks lose large
	// datagrams.
	maxDatagram = 8 << 10
	// facility is "user-level messages".
	facility = 1
	// dataID names the fields that syslog has no place for. 32473 is the number that is
	// reserved for those who have none.
	dataID = "hearth@32473"
)

// syslog sends lines as RFC 5424 has them, by UDP (RFC 5426) or by TCP with the length
// before each (RFC 6587). The protocol knows no answer: what the kernel has taken before a
// connection breaks may be lost.
type syslog struct {
	network, address string
	hostname         string
	conn             net.Conn // nil when there is none
	dialer           net.Dialer
	buf              bytes.Buffer
}

func newSyslog(u *url.URL) (*syslog, error) {
	if u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, invalid("%q is no address of a syslog server", u.Redacted())
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = ""
	}
	return &syslog{
		network: strings.TrimPrefix(u.Scheme, "syslog+"), address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "514")),
		hostname: header(hostname, 255),
	}, nil
}

func (s *syslog) close() {
	if s.conn != nil {
		s.conn.Close() //nolint:errcheck // everything was written
		s.conn = nil
	}
}

func (s *syslog) send(ctx context.Context, lines []hearth.LogLine) (rejected int, err error) {
	if s.conn != nil && s.network == "tcp" && s.gone() {
		s.close()
	}
	if s.conn == nil {
		if s.conn, err = s.dialer.DialContext(ctx, s.network, s.address); err != nil {
			return 0, err
		}
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	conn := s.conn
	if err := conn.SetWriteDeadline(time.Time{}); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })() //nolint:errcheck // then writing has ended
	s.buf.Reset()
	for i := range lines {
		m := s.message(&lines[i])
		if s.network == "tcp" {
			fmt.Fprintf(&s.buf, "%d %s", len(m), m)
			continue
		}
		if len(m) > maxDatagram {
			m = m[:cut(m, maxDatagram)]
		}
		if _, err := s.conn.Write(m); err != nil {
			return 0, err
		}
	}
	if s.network == "tcp" {
		_, err = s.conn.Write(s.buf.Bytes())
	}
	return 0, err
}

// gone tells whether the server has closed the connection: a first write would succeed
// all the same. Servers of syslog send nothing, so there is nothing to lose.
func (s *syslog) gone() bool {
	if s.conn.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return true
	}
	var b [1]byte
	_, err := s.conn.Read(b[:])
	netErr, ok := err.(net.Error) //nolint:errorlint // connections return it bare
	return err != nil && !(ok && netErr.Timeout())
}

// message formats a line: <PRI>1 TIME HOST FUNCTION INSTANCE STREAM [fields] TEXT.
func (s *syslog) message(l *hearth.LogLine) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s %s %s %s [%s function=\"%s\" version=\"%d\"", facility*8+priority(l.Level),
		l.Time.UTC().Format("2006-01-02T15:04:05.000000Z07:00"), s.hostname,
		header(l.Function, 48), header(l.Instance, 128), header(l.Stream, 32), dataID, escape.Replace(visible(l.Function)), l.Version)
	for _, f := range [][2]string{{"invocation", l.Invocation}, {"level", string(l.Level)}} {
		if f[1] != "" {
			fmt.Fprintf(&b, " %s=\"%s\"", f[0], escape.Replace(visible(f[1])))
		}
	}
	b.WriteString("] ")
	b.WriteString(visible(l.Text))
	return b.Bytes()
}

// priority is the severity of syslog; a line without a level is informational.
func priority(l hearth.LogLevel) int {
	switch l {
	case hearth.LevelFatal:
		return 2
	case hearth.LevelError:
		return 3
	case hearth.LevelWarn:
		return 4
	case hearth.LevelDebug, hearth.LevelTrace:
		return 7
	default:
		return 6
	}
}

// escape is for values of fields.
var escape = strings.NewReplacer(`"`, `\"`, `\`, `\\`, `]`, `\]`)

// visible writes the bytes of control characters and of line breaks as rsyslog does, #015:
// receivers write what they get to files of lines, and to terminals.
func visible(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if !hidden(r) {
			b.WriteRune(r)
			continue
		}
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(&b, "#%03o", c)
		}
	}
	return b.String()
}

func hidden(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }

// header makes a text fit into a place where only visible ASCII is allowed.
func header(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return cmp.Or(s[:min(len(s), most)], "-")
}

// cut returns the greatest length up to n at which b can be cut without breaking a
// character.
func cut(b []byte, n int) int {
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return n
}
