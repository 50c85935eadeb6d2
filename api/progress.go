package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// ndjson is the media type of a deploy that tells how it goes: JSON objects, one
// a line.
const ndjson = "application/x-ndjson"

// maxLogText is the greatest length of the text of one log event in bytes;
// longer lines become several.
const maxLogText = 16 << 10

// The steps of a deploy, in their order. Clients may meet others in the future.
const (
	stepChange    = "change"    // the version will run elsewhere than the live one
	stepBuild     = "build"     // dependencies are being installed
	stepBuilt     = "built"     // they are installed
	stepStart     = "start"     // the version is started
	stepUnchanged = "unchanged" // there is nothing to do
)

// deployEvent is one line of a deploy that tells how it goes.
type deployEvent struct {
	Type     string        `json:"type" enum:"step,log,result,error" doc:"What the line tells: a step begins, a line of the installer of dependencies, or, once and last, how it ended"`
	Step     string        `json:"step,omitempty" doc:"Which step: change, build, built, start or unchanged" example:"build"`
	Text     string        `json:"text,omitempty" doc:"The step or the installer's line in words"`
	Cached   bool          `json:"cached,omitempty" doc:"With the step built: nothing had to be installed"`
	Status   int           `json:"status,omitempty" doc:"The HTTP status that the answer would have without progress" example:"200"`
	Function *functionBody `json:"function,omitempty" doc:"With the type result: the function"`
	Error    *problem      `json:"error,omitempty" doc:"With the type error: what went wrong"`
}

// progressKey is the key of the *progress of a request's context.
type progressKey struct{}

// progressOf returns who is told how a deploy goes; nil is nobody.
func progressOf(ctx context.Context) *progress {
	p, _ := ctx.Value(progressKey{}).(*progress)
	return p
}

// progress answers a deploy with events. Until the first one, nothing is sent:
// what is refused at once is refused with its HTTP status. It takes the place of
// the http.ResponseWriter for huma, whose answer becomes the last event. Its
// methods may be called from many goroutines, and step and log on nil.
type progress struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	cancel context.CancelFunc // ends the deploy when nobody reads

	// The answer as huma writes it, from the goroutine of the request.
	header http.Header
	status int
	body   bytes.Buffer

	mu     sync.Mutex
	begun  bool // guarded by mu; the status was sent
	broken bool // guarded by mu; the client went away
}

// streamed is a middleware that answers with events if the client accepts them.
func (s *API) streamed(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	if !acceptsEvents(r) {
		next(ctx)
		return
	}
	inner, cancel := context.WithCancel(r.Context())
	defer cancel()
	p := &progress{w: w, rc: http.NewResponseController(w), cancel: cancel, header: http.Header{}, status: http.StatusOK}
	inner = context.WithValue(inner, progressKey{}, p)
	next(&opContext{humaContext: humago.NewContext(ctx.Operation(), r.WithContext(inner), p)})
	p.finish()
}

// acceptsEvents tells whether a client asks for events by name.
func acceptsEvents(r *http.Request) bool {
	for _, list := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(list, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil || media != ndjson {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			return err != nil || q > 0
		}
	}
	return false
}

// Header implements http.ResponseWriter.
func (p *progress) Header() http.Header { return p.header }

// WriteHeader implements http.ResponseWriter.
func (p *progress) WriteHeader(status int) { p.status = status }

// Write implements http.ResponseWriter.
func (p *progress) Write(b []byte) (int, error) { return p.body.Write(b) }

// Unwrap is for http.ResponseController.
func (p *progress) Unwrap() http.ResponseWriter { return p.w }

// step tells that a step begins.
func (p *progress) step(name, format string, args ...any) {
	p.send(deployEvent{Type: "step", Step: name, Text: fmt.Sprintf(format, args...)})
}

// send sends an event, and ends the deploy if that is not possible.
func (p *progress) send(e deployEvent) {
	if p == nil {
		return
	}
	b, err := json.Marshal(e)
	if err != nil {
		return // an event has only texts and numbers
	}
	p.line(b)
}

func (p *progress) line(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return
	}
	if !p.begun {
		p.begun = true
		h := p.w.Header()
		h.Set("Content-Type", ndjson)
		h.Set("X-Accel-Buffering", "no")
		p.w.WriteHeader(http.StatusOK)
	}
	// Not every ResponseWriter can; then the server's deadline stays.
	_ = p.rc.SetWriteDeadline(time.Now().Add(eventTimeout))
	_, err := p.w.Write(append(b, '\n'))
	if err == nil {
		err = p.rc.Flush()
	}
	if err != nil {
		p.broken = true
		p.cancel()
	}
}

// finish sends huma's answer: as it is if it is an error before any event, else
// as the last event.
func (p *progress) finish() {
	p.mu.Lock()
	begun := p.begun
	p.mu.Unlock()
	failed := p.status >= http.StatusBadRequest
	if failed && !begun {
		for k, v := range p.header {
			p.w.Header()[k] = v
		}
		p.w.WriteHeader(p.status)
		_, _ = p.w.Write(p.body.Bytes()) // the client may have gone
		return
	}
	last := struct {
		Type     string          `json:"type"`
		Status   int             `json:"status"`
		Function json.RawMessage `json:"function,omitempty"`
		Error    json.RawMessage `json:"error,omitempty"`
	}{Type: "result", Status: p.status}
	if failed {
		last.Type, last.Error = "error", p.body.Bytes()
	} else {
		last.Function = p.body.Bytes()
	}
	if b, err := json.Marshal(last); err == nil {
		p.line(b)
	}
}

// installerLog sends what is written to it as log events, a line each. It is
// for one goroutine; close sends a last line without end.
type installerLog struct {
	to  *progress
	buf []byte
}

// Write implements io.Writer. It never fails: that nobody reads ends the deploy
// in its own way.
func (l *installerLog) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			l.buf = append(l.buf, c)
		}
		if c == '\n' || len(l.buf) == maxLogText {
			l.flush()
		}
	}
	return len(b), nil
}

func (l *installerLog) flush() {
	l.to.send(deployEvent{Type: "log", Text: strings.ToValidUTF8(strings.TrimRight(string(l.buf), "\r"), "\uFFFD")})
	l.buf = l.buf[:0]
}

func (l *installerLog) close() {
	if len(l.buf) > 0 {
		l.flush()
	}
}

// documentEvents adds the answer with events to a documented operation.
func (s *API) documentEvents(op *huma.Operation) {
	ok := op.Responses["200"]
	if ok == nil {
		ok = &huma.Response{Description: "How it goes, if the client accepts " + ndjson}
		op.Responses["200"] = ok
	}
	if ok.Content == nil {
		ok.Content = map[string]*huma.MediaType{}
	}
	ok.Content[ndjson] = &huma.MediaType{Schema: schemaOf[deployEvent](s)}
}
