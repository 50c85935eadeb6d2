package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

const (
	// keepAlive is how often a stream of events without news sends a comment, so
	// that nobody on the way takes the connection for dead.
	keepAlive = 15 * time.Second
	// eventTimeout is how long a client may take to accept what is sent at once.
	eventTimeout = 30 * time.Second
)

const eventStream = "text/event-stream"

// events writes server-sent events. Its methods may be called from several
// goroutines.
type events struct {
	mu sync.Mutex
	w  http.ResponseWriter
	rc *http.ResponseController
	b  bytes.Buffer // guarded by mu
}

// newEvents begins an answer of server-sent events.
func newEvents(w http.ResponseWriter) *events {
	h := w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	return &events{w: w, rc: http.NewResponseController(w)}
}

// comment sends a line that clients ignore.
func (e *events) comment(text string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.b.WriteString(": " + text + "\n\n")
	return e.flushLocked()
}

// send sends one event with data as JSON.
func (e *events) send(name string, data any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.addLocked(name, data); err != nil {
		return err
	}
	return e.flushLocked()
}

// sendAll sends first and what is ready in more, as far as it goes into one
// packet or two: a flush for each event would cost more than the events.
func sendAll[T any](e *events, name string, first T, more <-chan T) error {
	const enough = 64 << 10
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.addLocked(name, first)
	for err == nil && len(more) > 0 && e.b.Len() < enough {
		err = e.addLocked(name, <-more)
	}
	if err != nil {
		return err
	}
	return e.flushLocked()
}

func (e *events) addLocked(name string, data any) error {
	b, err := json.Marshal(data) // without line ends
	if err != nil {
		return err
	}
	e.b.WriteString("event: " + name + "\ndata: ")
	e.b.Write(b)
	e.b.WriteString("\n\n")
	return nil
}

func (e *events) flushLocked() error {
	defer e.b.Reset()
	// Instead of the server's deadline for whole answers. Not every
	// ResponseWriter can; then that one stays.
	_ = e.rc.SetWriteDeadline(time.Now().Add(eventTimeout))
	if _, err := e.w.Write(e.b.Bytes()); err != nil {
		return err
	}
	return e.rc.Flush()
}

// named is one kind of events, for the document.
type named struct {
	name string
	data *huma.Schema
}

// streamOf describes a stream of these events.
func streamOf(kinds ...named) *huma.MediaType {
	item := &huma.Schema{}
	for _, k := range kinds {
		item.OneOf = append(item.OneOf, &huma.Schema{
			Type: huma.TypeObject,
			Properties: map[string]*huma.Schema{
				"event": {Type: huma.TypeString, Enum: []any{k.name}},
				"data":  k.data,
			},
			Required: []string{"event", "data"},
		})
	}
	return &huma.MediaType{Schema: &huma.Schema{
		Type: huma.TypeArray, Items: item,
		Description: "Server-sent events, whose data is JSON",
	}}
}
