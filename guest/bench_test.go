package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// echo is a fast guest: it answers every call with the call's body.
func echo(nc net.Conn) {
	defer nc.Close()
	r := bufio.NewReaderSize(nc, 64<<10)
	var out, payload, body []byte
	var head [headerSize]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if cap(payload) < n {
			payload = make([]byte, n)
		}
		payload = payload[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		stream := binary.BigEndian.Uint32(head[5:])
		out = out[:0]
		switch frameType(head[4]) {
		case typeHello, typeInit:
			out = appendFrame(out, typeReady, 0, []byte(`{"protocol":1}`))
		case typeData:
			body = append(body, payload...)
			continue
		case typeEnd:
			out = appendFrame(out, typeResponse, stream, []byte(`{"status":200,"headers":[["content-type","text/plain"]]}`))
			out = appendFrame(out, typeData, stream, body)
			out = appendHeader(out, typeEnd, stream, 0)
			body = body[:0]
		}
		if _, err := nc.Write(out); err != nil {
			return
		}
	}
}

type discard struct{ n int }

func (*discard) Head(*Head) error              { return nil }
func (d *discard) Data(p []byte, _ bool) error { d.n += len(p); return nil }
func (*discard) Flush() error                  { return nil }

func BenchmarkInvoke(b *testing.B) {
	for _, size := range []int{16, 4 << 10, 60 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			host, far := socketpair(b)
			go echo(far)
			c, _, err := Connect(b.Context(), host, Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Init(b.Context(), Init{}); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
			defer cancel()
			call := httpCall("0192f0c1-7f00-7000-8000-000000000000")
			call.Body = pattern(size)
			var sink discard
			b.ReportAllocs()
			b.SetBytes(int64(2 * size))
			n := 0
			for b.Loop() {
				if err := c.Invoke(ctx, call, &sink); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if sink.n != n*size {
				b.Fatalf("%d bytes came back, want %d", sink.n, n*size)
			}
		})
	}
}

// BenchmarkRoundTrip is what the socket alone costs: the floor of
// BenchmarkInvoke.
func BenchmarkRoundTrip(b *testing.B) {
	host, far := socketpair(b)
	defer host.Close()
	go func() { io.Copy(far, far); far.Close() }() //nolint:errcheck // until the host leaves
	buf := make([]byte, 200)
	for b.Loop() {
		host.Write(buf) //nolint:errcheck // the read fails too
		if _, err := io.ReadFull(host, buf); err != nil {
			b.Fatal(err)
		}
	}
}
