package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

const (
	defaultTail = 100
	maxTail     = 10_000
	// keepAlive is how often a followed log without news sends a comment, so
	// that nobody on the way takes the connection for dead.
	keepAlive = 15 * time.Second
	// eventTimeout is how long a client may take to accept one event.
	eventTimeout = 30 * time.Second
)

type logList struct {
	Lines []hearth.LogLine `json:"lines" doc:"Oldest first"`
}

func (s *server) registerLogs() {
	zero, most := 0.0, float64(maxTail)
	s.registerRaw(huma.Operation{
		OperationID: "read-logs", Method: http.MethodGet, Path: "/v1/functions/{name}/logs", Tags: []string{"Logs"},
		Summary:     "Read or follow the log of a function",
		Description: "With follow=true the answer is a stream of server-sent events named line, each with a LogLine as JSON in its data; it goes on until the client or the server ends it. An event named error has a problem in its data and is the last one.",
		Parameters: []*huma.Param{
			{Name: "name", In: "path", Required: true, Description: "Name of the function", Schema: &huma.Schema{Type: huma.TypeString}, Example: "hello"},
			{Name: "tail", In: "query", Description: "How many of the newest lines", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &zero, Maximum: &most, Default: defaultTail}},
			{Name: "follow", In: "query", Description: "Go on with new lines as they come", Schema: &huma.Schema{Type: huma.TypeBoolean, Default: false}},
		},
		Responses: map[string]*huma.Response{"200": {
			Description: "The lines",
			Content: map[string]*huma.MediaType{
				"application/json":  {Schema: schemaOf[logList](s)},
				"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}},
			},
		}},
	}, s.readLogs)
}

func (s *server) readLogs(w http.ResponseWriter, r *http.Request) error {
	tail, follow, err := logQuery(r.URL.Query())
	if err != nil {
		return err
	}
	f, err := s.function(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	if follow {
		return s.followLogs(w, r, f.Name, tail)
	}
	lines, err := s.Logs.Tail(r.Context(), f.Name, tail)
	if err != nil {
		return err
	}
	if lines == nil {
		lines = []hearth.LogLine{}
	}
	return writeJSON(w, http.StatusOK, logList{Lines: lines})
}

func logQuery(q url.Values) (tail int, follow bool, err error) {
	tail = defaultTail
	for key := range q {
		if !slices.Contains([]string{"tail", "follow"}, key) {
			return 0, false, hearth.Errorf(hearth.CodeInvalid, "query.%s: unknown query parameter", clip(key)).
				WithHint("possible: tail, follow")
		}
	}
	if v := q.Get("tail"); v != "" {
		tail, err = strconv.Atoi(v)
		if err != nil || tail < 0 || tail > maxTail {
			return 0, false, hearth.Errorf(hearth.CodeInvalid, "query.tail: %q is not a number from 0 to %d", clip(v), maxTail).
				WithHint("write for example tail=100")
		}
	}
	if v := q.Get("follow"); v != "" {
		follow, err = strconv.ParseBool(v)
		if err != nil {
			return 0, false, hearth.Errorf(hearth.CodeInvalid, "query.follow: %q is neither true nor false", clip(v)).
				WithHint("write follow=true")
		}
	}
	return tail, follow, nil
}

// followLogs streams lines until the client goes away or the server drains.
func (s *server) followLogs(w http.ResponseWriter, r *http.Request, function string, tail int) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &events{w: w, rc: http.NewResponseController(w)}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	if out.comment("following") != nil {
		return nil
	}
	var side sync.WaitGroup
	defer side.Wait()
	defer cancel()
	side.Go(func() {
		tick := time.NewTicker(keepAlive)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.Draining:
				cancel()
				return
			case <-tick.C:
				if out.comment("still here") != nil {
					cancel()
					return
				}
			}
		}
	})
	err := s.Logs.Follow(ctx, function, tail, func(l hearth.LogLine) error {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		return out.send("event: line\ndata: " + string(b) + "\n\n")
	})
	if err != nil && ctx.Err() == nil {
		// The status is gone; an event can still tell.
		if b, jerr := json.Marshal(s.problemOf(ctx, err)); jerr == nil {
			_ = out.send("event: error\ndata: " + string(b) + "\n\n")
		}
	}
	return nil
}

// events writes server-sent events from several goroutines.
type events struct {
	mu sync.Mutex
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (e *events) comment(text string) error { return e.send(": " + text + "\n\n") }

func (e *events) send(s string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	// Instead of the server's deadline for whole answers. Not every
	// ResponseWriter can; then that one stays.
	_ = e.rc.SetWriteDeadline(time.Now().Add(eventTimeout))
	if _, err := e.w.Write([]byte(s)); err != nil {
		return err
	}
	return e.rc.Flush()
}
