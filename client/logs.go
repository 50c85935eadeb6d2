package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/hearthrun/hearth"
)

// maxEvent bounds one event of a followed log.
const maxEvent = 4 << 20

// Logs returns the last tail lines a function wrote, oldest first (-1: the
// server's choice). Errors: CodeNotFound.
func (c *Client) Logs(ctx context.Context, name string, tail int) ([]hearth.LogLine, error) {
	var out struct {
		Lines []hearth.LogLine `json:"lines"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "logs"}, query: tailQuery(tail),
	}, &out)
	return out.Lines, err
}

// FollowLogs calls fn with the last tail lines and then with each line as it
// is written, until ctx ends (then it returns CodeCanceled or CodeTimeout), fn
// returns an error (then it returns that), or the server ends the stream (then
// it returns nil). Errors: CodeNotFound, CodeUnavailable.
func (c *Client) FollowLogs(ctx context.Context, name string, tail int, fn func(hearth.LogLine) error) error {
	q := tailQuery(tail)
	q.Set("follow", "true")
	resp, err := c.do(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "logs"}, query: q,
		header: http.Header{"Accept": {"text/event-stream"}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return c.notHearth(resp, nil)
	}
	return c.readEvents(resp, fn)
}

func (c *Client) readEvents(resp *http.Response, fn func(hearth.LogLine) error) error {
	events := newEvents(resp.Body)
	for {
		name, data, err := events.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.transportError(err)
		}
		switch name {
		case "line":
			var l hearth.LogLine
			if err := json.Unmarshal([]byte(data), &l); err != nil {
				return c.notHearth(resp, err)
			}
			if err := fn(l); err != nil {
				return err
			}
		case "error":
			var p problem
			if err := json.Unmarshal([]byte(data), &p); err != nil {
				return c.notHearth(resp, err)
			}
			if p.Code == "" {
				p.Code = hearth.CodeInternal
			}
			return p.err()
		}
	}
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

func tailQuery(n int) url.Values {
	q := url.Values{}
	if n >= 0 {
		q.Set("tail", strconv.Itoa(n))
	}
	return q
}
