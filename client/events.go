package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/hearthrun/hearth"
)

// maxEvent bounds one event of a stream; the status of a large pool is the
// largest.
const maxEvent = 64 << 20

// stream sends r and calls fn with each event of the answer, until the server
// ends it (then it returns nil), an event named error comes (then it returns
// that error) or fn returns an error (then it returns that).
func (c *Client) stream(ctx context.Context, r request, fn func(event) error) error {
	r.header = http.Header{"Accept": {"text/event-stream"}}
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return c.notHearth(resp, nil)
	}
	return c.readEvents(resp, fn)
}

func (c *Client) readEvents(resp *http.Response, fn func(event) error) error {
	events := newEvents(resp.Body)
	for {
		name, data, err := events.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.transportError(err)
		}
		e := event{name: name, decode: func(v any) error {
			if err := json.Unmarshal([]byte(data), v); err != nil {
				return c.notHearth(resp, err)
			}
			return nil
		}}
		if name != "error" {
			if err := fn(e); err != nil {
				return err
			}
			continue
		}
		var p problem
		if err := e.decode(&p); err != nil {
			return err
		}
		if p.Code == "" {
			p.Code = hearth.CodeInternal
		}
		return p.err()
	}
}

// event is one server-sent event.
type event struct {
	name string
	// decode reads the event's JSON into v.
	decode func(v any) error
}

// events reads a text/event-stream.
type events struct{ s *bufio.Scanner }

func newEvents(r io.Reader) *events {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxEvent)
	return &events{s}
}

// next returns the next event with data, io.EOF at the end of the stream.
func (e *events) next() (name, data string, err error) {
	name = "message"
	var lines []string
	for e.s.Scan() {
		line := e.s.Text()
		if line == "" {
			if lines != nil {
				return name, strings.Join(lines, "\n"), nil
			}
			name = "message"
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			name = value
		case "data":
			lines = append(lines, value)
		}
	}
	if err := e.s.Err(); err != nil {
		return "", "", err
	}
	return "", "", io.EOF
}
