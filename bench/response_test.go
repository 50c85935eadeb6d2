package bench

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

func TestResponseReader(t *testing.T) {
	for name, tt := range map[string]struct {
		in     string
		status int
		body   string
		close  bool
		cold   bool
		timing string
		err    string
	}{
		"length":           {in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", status: 200, body: "hello"},
		"no reason":        {in: "HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", status: 200},
		"bare line feeds":  {in: "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", status: 200, body: "hi"},
		"chunked":          {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", status: 200, body: "hello"},
		"chunked, trailer": {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nServer-Timing: run;dur=2\r\n\r\n", status: 200, body: "0123456789", timing: "run;dur=2"},
		"close":            {in: "HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", status: 500, body: "x", close: true},
		"until the end":    {in: "HTTP/1.1 200 OK\r\n\r\nall of it", status: 200, body: "all of it", close: true},
		"HTTP/1.0":         {in: "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, close: true},
		"1.0, kept":        {in: "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", status: 200},
		"no content":       {in: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
		"after 100":        {in: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", status: 200, body: "x"},
		"cold":             {in: "HTTP/1.1 200 OK\r\nHearth-Start: cold\r\nServer-Timing: queue;dur=1\r\nContent-Length: 0\r\n\r\n", status: 200, cold: true, timing: "queue;dur=1"},
		"warm":             {in: "HTTP/1.1 200 OK\r\nhearth-start: warm\r\nContent-Length: 0\r\n\r\n", status: 200},

		"nothing":           {in: "", err: "EOF"},
		"half a line":       {in: "HTTP/1.1 2", err: "unexpected EOF"},
		"half a head":       {in: "HTTP/1.1 200 OK\r\nA: b\r\n", err: "unexpected EOF"},
		"half a body":       {in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", err: "unexpected EOF"},
		"half the chunks":   {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", err: "unexpected EOF"},
		"another protocol":  {in: "SSH-2.0-OpenSSH_9.2p1\r\n", err: "malformed status line"},
		"HTTP/2":            {in: "HTTP/2.0 200 OK\r\n\r\n", err: "malformed status line"},
		"status":            {in: "HTTP/1.1 2x0 OK\r\n\r\n", err: "malformed status line"},
		"two lengths":       {in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", err: "Content-Length"},
		"negative length":   {in: "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", err: "Content-Length"},
		"huge body":         {in: "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", err: "longer than"},
		"chunk size":        {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", err: "bad chunk size"},
		"chunk too long":    {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n", err: "longer than its size"},
		"gzip":              {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", err: "Transfer-Encoding"},
		"no colon":          {in: "HTTP/1.1 200 OK\r\nwhat\r\n\r\n", err: "malformed header"},
		"switched":          {in: "HTTP/1.1 101 Switching\r\n\r\n", err: "switched protocols"},
		"endless head":      {in: "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxHead), err: "headers are longer"},
		"endless line":      {in: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", maxHead), err: "too long"},
		"chunks of nothing": {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("FFFF\r\n"+strings.Repeat("x", 0xffff)+"\r\n", 20), err: "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{"whole": strings.NewReader(tt.in), "bytes": iotest.OneByteReader(strings.NewReader(tt.in))} {
				got, err := newResponseReader(r, true).read()
				if tt.err != "" {
					if err == nil || !strings.Contains(err.Error(), tt.err) {
						t.Fatalf("%s: got error %v, want one with %q", how, err, tt.err)
					}
					if tt.err == "EOF" && !errors.Is(err, io.EOF) {
						t.Fatalf("%s: got %v, want io.EOF", how, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if got.status != tt.status || string(got.body) != tt.body || got.close != tt.close || got.cold != tt.cold || string(got.timing) != tt.timing {
					t.Errorf("%s: got %d %q close %t cold %t timing %q", how, got.status, got.body, got.close, got.cold, got.timing)
				}
			}
		})
	}
}

// TestResponseReaderPipelined checks that nothing of one response leaks into
// the next.
func TestResponseReaderPipelined(t *testing.T) {
	one := "HTTP/1.1 200 OK\r\nHearth-Start: cold\r\nServer-Timing: run;dur=1\r\nHearth-Error: x\r\nContent-Length: 3\r\n\r\nabc"
	two := "HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nd\r\n0\r\n\r\n"
	p := newResponseReader(strings.NewReader(one+two), true)
	if r, err := p.read(); err != nil || string(r.body) != "abc" || !r.cold || string(r.code) != "x" {
		t.Fatalf("first: %+v, %v", r, err)
	}
	if r, err := p.read(); err != nil || string(r.body) != "d" || r.status != 201 || r.cold || r.started || r.timing != nil || r.code != nil {
		t.Fatalf("second: %+v, %v", r, err)
	}
	if _, err := p.read(); !errors.Is(err, io.EOF) {
		t.Fatalf("end: %v", err)
	}
}

func TestResponseReaderAllocates(t *testing.T) {
	in := strings.Repeat("HTTP/1.1 200 OK\r\nDate: now\r\nHearth-Start: warm\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello", 200)
	p := newResponseReader(strings.NewReader(in), false)
	if _, err := p.read(); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.read(); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a response, want none", n)
	}
}

// FuzzResponseReader compares with net/http wherever both accept the input.
func FuzzResponseReader(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n0\r\nA: b\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 404 X\r\nConnection: keep-alive\r\n\r\nrest"))
	f.Add([]byte("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := newResponseReader(bytes.NewReader(in), true).read()
		if err != nil {
			return
		}
		br := bufio.NewReader(bytes.NewReader(in))
		want, err := http.ReadResponse(br, nil)
		for err == nil && want.StatusCode < 200 {
			want, err = http.ReadResponse(br, nil)
		}
		if err != nil {
			return
		}
		defer want.Body.Close()
		body, err := io.ReadAll(want.Body)
		if err != nil {
			return
		}
		if got.status != want.StatusCode || !bytes.Equal(got.body, body) {
			t.Errorf("got %d %q, net/http reads %d %q", got.status, got.body, want.StatusCode, body)
		}
	})
}
