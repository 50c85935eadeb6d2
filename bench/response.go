package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	// maxHead bounds the status line and headers of a response, and a chunk's
	// trailers.
	maxHead = 64 << 10
	// maxBody bounds a response's body: the load generator compares bodies of a
	// few bytes, so a large one is a mistake.
	maxBody = 1 << 20
)

// response is what the load generator wants to know of an HTTP response. Its
// slices are valid until the next read.
type response struct {
	status int
	body   []byte
	// close is true when the connection cannot be used again.
	close bool
	// cold is true when Hearth-Start says so; started is true when that header
	// was there at all.
	cold, started bool
	// timing is the Server-Timing header, code the Hearth-Error header; they are
	// read only when details are asked for.
	timing, code []byte
}

// responseReader reads HTTP/1.x responses from one connection. It does as
// little as the measurement needs, without allocating for each response, so
// that the generator's own cost stays small beside the fastest server.
type responseReader struct {
	br *bufio.Reader
	// details makes it keep the timing and code headers.
	details bool
	r       response
	head    int  // bytes of the current head
	old     bool // HTTP/1.0
	body    []byte
	timing  []byte
	code    []byte
}

func newResponseReader(r io.Reader, details bool) *responseReader {
	return &responseReader{br: bufio.NewReaderSize(r, 16<<10), details: details}
}

// reset continues with a new connection.
func (p *responseReader) reset(r io.Reader) { p.br.Reset(r) }

// framing is how the length of a body is known.
type framing struct {
	length  int64 // -1 when not given
	chunked bool
}

// read returns the next response whose request had a method other than HEAD.
// io.EOF means that the connection ended before the first byte of it.
func (p *responseReader) read() (*response, error) {
	for {
		p.r, p.head, p.body = response{}, 0, p.body[:0]
		f, err := p.readHead()
		if err != nil {
			return nil, err
		}
		if p.r.status >= 200 {
			if err := p.readBody(f); err != nil {
				return nil, unexpected(err)
			}
			p.r.body = p.body
			return &p.r, nil
		}
		if p.r.status == 101 {
			return nil, errors.New("the server switched protocols")
		}
		// 100 Continue, 103 Early Hints: the real response follows.
	}
}

func (p *responseReader) readHead() (framing, error) {
	f := framing{length: -1}
	line, err := p.line()
	if err != nil {
		return f, err
	}
	if err := p.statusLine(line); err != nil {
		return f, err
	}
	return f, unexpected(p.fields(&f))
}

// fields reads header or trailer lines up to the empty one.
func (p *responseReader) fields(f *framing) error {
	for {
		line, err := p.line()
		if err != nil || len(line) == 0 {
			return err
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || name[0] == ' ' || name[0] == '\t' {
			return fmt.Errorf("malformed header line %q", clip(line))
		}
		if err := p.header(f, name, bytes.Trim(value, " \t")); err != nil {
			return err
		}
	}
}

// statusLine parses "HTTP/1.1 200 OK".
func (p *responseReader) statusLine(line []byte) error {
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return fmt.Errorf("malformed status line %q", clip(line))
	}
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return fmt.Errorf("malformed status line %q", clip(line))
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 {
		return fmt.Errorf("malformed status line %q", clip(line))
	}
	p.r.status = status
	p.old = line[7] == '0'
	p.r.close = p.old
	return nil
}

// header takes note of the few headers that matter; the length of the name
// sorts out the others cheaply.
func (p *responseReader) header(f *framing, name, value []byte) error {
	switch len(name) {
	case len("connection"):
		if is(name, "connection") {
			p.r.close = p.r.close && !is(value, "keep-alive") || is(value, "close")
		}
	case len("content-length"):
		if is(name, "content-length") {
			n, err := strconv.ParseUint(string(value), 10, 62)
			if err != nil || f.length >= 0 && f.length != int64(n) {
				return fmt.Errorf("bad Content-Length %q", clip(value))
			}
			f.length = int64(n)
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			if !is(value, "chunked") || p.old {
				return fmt.Errorf("unknown Transfer-Encoding %q", clip(value))
			}
			f.chunked = true
		}
	case len("hearth-start"): // as long as hearth-error
		if is(name, "hearth-start") {
			p.r.started, p.r.cold = true, is(value, "cold")
		} else if p.details && is(name, "hearth-error") {
			p.code = append(p.code[:0], value...)
			p.r.code = p.code
		}
	case len("server-timing"):
		if p.details && is(name, "server-timing") {
			p.timing = append(p.timing[:0], value...)
			p.r.timing = p.timing
		}
	}
	return nil
}

func (p *responseReader) readBody(f framing) error {
	switch {
	case p.r.status == 204 || p.r.status == 304:
		return nil
	case f.chunked:
		return p.readChunks()
	case f.length >= 0:
		return p.take(f.length)
	}
	// Without a length the body lasts as long as the connection.
	p.r.close = true
	for {
		if err := p.take(1); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (p *responseReader) readChunks() error {
	for {
		line, err := p.line()
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(bytes.Trim(size, " \t")), 16, 62)
		if err != nil {
			return fmt.Errorf("bad chunk size %q", clip(size))
		}
		if n == 0 {
			break
		}
		if err := p.take(int64(n)); err != nil {
			return err
		}
		p.head = 0
		if line, err := p.line(); err != nil {
			return err
		} else if len(line) != 0 {
			return errors.New("a chunk is longer than its size")
		}
	}
	// Trailers are fields like any other; those that tell lengths are void here.
	return p.fields(new(framing))
}

// take appends the next n bytes to the body.
func (p *responseReader) take(n int64) error {
	if n > maxBody-int64(len(p.body)) {
		return fmt.Errorf("the body is longer than %d bytes", maxBody)
	}
	for n > 0 {
		buf, err := p.br.Peek(int(min(n, max(int64(p.br.Buffered()), 1))))
		if err != nil {
			return err
		}
		p.body = append(p.body, buf...)
		n -= int64(len(buf))
		if _, err := p.br.Discard(len(buf)); err != nil {
			return err
		}
	}
	return nil
}

// line returns the next line without its end. io.EOF means that there was not
// one byte of it.
func (p *responseReader) line() ([]byte, error) {
	line, err := p.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errors.New("a header line is too long")
	}
	if err != nil {
		if len(line) > 0 {
			err = unexpected(err)
		}
		return nil, err
	}
	if p.head += len(line); p.head > maxHead {
		return nil, fmt.Errorf("the headers are longer than %d bytes", maxHead)
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

func is(b []byte, lower string) bool {
	return len(b) == len(lower) && bytes.EqualFold(b, []byte(lower))
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func clip(b []byte) []byte { return b[:min(len(b), 80)] }
