package client

import (
	"context"
	"net/http"
	"time"

	"github.com/hearthrun/hearth"
)

// Message is to be put into a queue.
type Message struct {
	// Body is text in UTF-8 of at most 1 MiB.
	Body string
	// Delay is how long it waits at least, at most 30 days.
	Delay time.Duration
	// DeduplicationKey makes a second message with the same key, within a day, be the
	// first.
	DeduplicationKey string
}

// Send puts messages into a queue, at most 1000 with 6 MiB together (and 16 MiB as JSON
// has them, in which control characters take six bytes), and returns what
// they became, in the same order, when they have reached the server's disk. If there is
// an error, none is in the queue because of this call. Errors: CodeInvalid,
// CodeNotFound if no function takes messages of the queue, CodeExhausted if there is no
// room.
func (c *Client) Send(ctx context.Context, queue string, messages ...Message) ([]hearth.SentMessage, error) {
	type message struct {
		Body             string          `json:"body"`
		Delay            hearth.Duration `json:"delay,omitempty"`
		DeduplicationKey string          `json:"deduplication_key,omitempty"`
	}
	var in struct {
		Messages []message `json:"messages"`
	}
	for _, m := range messages {
		in.Messages = append(in.Messages, message{m.Body, hearth.Duration(m.Delay), m.DeduplicationKey})
	}
	var out struct {
		Messages []hearth.SentMessage `json:"messages"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: []string{"v1", "queues", queue, "messages"}, in: in}, &out)
	return out.Messages, err
}

// Queues returns the queues of messages, sorted by name.
func (c *Client) Queues(ctx context.Context) ([]hearth.Queue, error) {
	var out struct {
		Queues []hearth.Queue `json:"queues"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "queues"}}, &out)
	return out.Queues, err
}

// queuePath returns the path of what the name stands for, a function or "queue:NAME",
// with that of the function's queue below it.
func queuePath(name, below string) []string {
	if queue := hearth.QueueOf(name); queue != "" {
		if below == "" {
			below = "messages"
		}
		return []string{"v1", "queues", queue, below}
	}
	path := []string{"v1", "functions", name, "queue"}
	if below != "" {
		path = append(path, below)
	}
	return path
}
