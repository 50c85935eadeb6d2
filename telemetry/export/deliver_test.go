package export

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

// sending is a sender.
type sending func(lines []hearth.LogLine) error

func (s sending) send(_ context.Context, lines []hearth.LogLine) (int, error) {
	return 0, s(lines)
}

func (sending) close() {}

// deliver gives a batch to a sender and returns what was lost, and how long it took.
func deliver(s sender, lines int) (lost int, took time.Duration) {
	began := time.Now()
	b := &backoff{exporter: &Exporter{sender: s, log: slog.New(slog.DiscardHandler), stop: make(chan struct{})}}
	return b.deliver(context.Background(), make([]hearth.LogLine, lines)), time.Since(began)
}

// TestBatchTimeout: a receiver that is away does not get the oldest lines for ever.
func TestBatchTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost, took := deliver(sending(func([]hearth.LogLine) error { return errors.New("away") }), 7)
		if lost != 7 || took != batchTimeout {
			t.Errorf("%d lost after %s", lost, took)
		}
	})
}

// TestReceiverThatRefusesAll: it is not asked for each line, and one that has no right to
// anything is asked once.
func TestReceiverThatRefusesAll(t *testing.T) {
	for all, most := range map[bool]int{false: maxRefusals + maxRefusals/2, true: 1} {
		asked := 0
		lost, _ := deliver(sending(func([]hearth.LogLine) error { asked++; return refusal{errors.New("no"), all} }), 1000)
		if lost != 1000 || asked > most {
			t.Errorf("%v: %d lost, asked %d times", all, lost, asked)
		}
	}
}

type answering func() *http.Response

func (a answering) RoundTrip(*http.Request) (*http.Response, error) { return a(), nil }

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		header      string
		least, most time.Duration
	}{
		{"", firstBackoff / 2, firstBackoff},
		{"soon", firstBackoff / 2, firstBackoff},
		{"-7", firstBackoff / 2, firstBackoff},
		{"7", 7 * time.Second, 7 * time.Second},
		{"Sat, 01 Jan 2000 00:00:09 GMT", 9 * time.Second, 9 * time.Second}, // synctest begins at 0 h
		{"99999999", lastBackoff, lastBackoff},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			o := &otlp{url: "http://x", client: &http.Client{Transport: answering(func() *http.Response {
				n++
				status := http.StatusOK
				if n == 1 {
					status = http.StatusServiceUnavailable
				}
				return &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {c.header}}, Body: io.NopCloser(strings.NewReader(""))}
			})}}
			if lost, took := deliver(o, 1); lost != 0 || took < c.least || took > c.most {
				t.Errorf("%q: %d lost after %s", c.header, lost, took)
			}
		})
	}
}
