package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// problem is the body of every error, as RFC 9457 has it, with fields of ours.
type problem struct {
	Type       string                `json:"type" doc:"Always about:blank; code tells the problems apart" example:"about:blank"`
	Title      string                `json:"title" doc:"What the HTTP status means" example:"Bad Request"`
	Status     int                   `json:"status" doc:"HTTP status" example:"400"`
	Detail     string                `json:"detail" doc:"What is wrong" example:"timeout -1s is not valid"`
	Instance   string                `json:"instance,omitempty" doc:"Path of the record of the call, if there is one" example:"/v1/invocations/0199f0c1"`
	Code       hearth.Code           `json:"code" doc:"What kind of problem it is, for programs; the header Hearth-Error has it too" enum:"invalid,denied,not_found,conflict,exhausted,unsupported,function_error,unavailable,timeout,canceled,internal"`
	Hint       string                `json:"hint,omitempty" doc:"What to do about it"`
	RetryAfter int64                 `json:"retry_after_s,omitempty" doc:"In how many seconds another try may succeed; the header Retry-After has it too" example:"1"`
	Function   *hearth.FunctionError `json:"function_error,omitempty" doc:"What the function's code raised, when code is function_error"`
	Errors     []fieldError          `json:"errors,omitempty" doc:"Which parts of the request are wrong"`
}

// fieldError is one wrong part of a request.
type fieldError struct {
	Location string `json:"location" doc:"Where it is" example:"body.timeout"`
	Message  string `json:"message" doc:"What is wrong with it" example:"expected string"`
}

// The interfaces through which huma learns how to send a problem.
var (
	_ huma.StatusError       = (*problem)(nil)
	_ huma.HeadersError      = (*problem)(nil)
	_ huma.ContentTypeFilter = (*problem)(nil)
)

// Error implements error.
func (p *problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{"Hearth-Error": {string(p.Code)}}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	return h
}

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// statusError gives an error another HTTP status than its code has, where HTTP
// has a more exact one.
type statusError struct {
	status int
	err    error
}

func withStatus(status int, err error) error { return &statusError{status, err} }

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// problemOf returns err as a problem and logs what the client does not get to
// see of it.
func (s *API) problemOf(ctx context.Context, err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		var e *hearth.Error
		if !errors.As(err, &e) {
			err = ctxErrorOf(err)
		}
	}
	e := hearth.AsError(err)
	status := e.Code.HTTPStatus()
	var se *statusError
	switch {
	case errors.As(err, &se):
		status = se.status
	case errors.Is(err, hearth.ErrKeyReused):
		status = http.StatusUnprocessableEntity
	}
	switch e.Code {
	case hearth.CodeInternal, hearth.CodeUnavailable:
		s.Logger.ErrorContext(ctx, "request failed", "code", string(e.Code), "error", err)
	default:
		s.Logger.DebugContext(ctx, "request refused", "code", string(e.Code), "error", err)
	}
	return &problem{
		Type: "about:blank", Title: statusText(status), Status: status,
		Detail: visible(e), Code: e.Code, Hint: e.Hint, RetryAfter: e.RetrySeconds(), Function: e.Function,
	}
}

// visible returns the message of e without the text of its cause, which may
// tell of paths and other things of the host.
func visible(e *hearth.Error) string {
	if e.Code == hearth.CodeInternal {
		return "something went wrong inside of Hearth; its log says what"
	}
	return e.Message
}

// fail answers r with err.
func (s *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	s.send(w, s.problemOf(r.Context(), err))
}

func (s *API) send(w http.ResponseWriter, p *problem) {
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", p.ContentType(""))
	maps.Copy(h, p.GetHeaders())
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		s.Logger.Debug("the client went away", "error", err)
	}
}

// fromHuma turns huma's own errors, which concern the form of the request, into
// problems.
func fromHuma(status int, m *huma.ErrorModel) *problem {
	p := &problem{Type: "about:blank", Status: status, Detail: m.Detail, Code: hearth.CodeInvalid}
	m.Errors = slices.DeleteFunc(m.Errors, func(d *huma.ErrorDetail) bool { return d == nil })
	switch status {
	case http.StatusUnprocessableEntity:
		p.Status = http.StatusBadRequest
	case http.StatusRequestEntityTooLarge:
		p.Hint = "send less; code can come as an archive instead of inline, to POST /v1/artifacts"
	case http.StatusUnsupportedMediaType:
		p.Hint = "send JSON with Content-Type: application/json"
	case http.StatusRequestTimeout:
		p.Code, p.Status = hearth.CodeTimeout, hearth.CodeTimeout.HTTPStatus()
	case http.StatusInternalServerError:
		// The only one huma makes itself: the body could not be read.
		p.Code, p.Status = hearth.CodeCanceled, hearth.CodeCanceled.HTTPStatus()
		p.Detail = "the request broke off"
	}
	p.Title = statusText(p.Status)
	if p.Code != hearth.CodeInvalid {
		return p
	}
	var parts []string
	// Unknown fields come in no order of their own.
	slices.SortStableFunc(m.Errors, func(a, b *huma.ErrorDetail) int { return strings.Compare(a.Location, b.Location) })
	for _, d := range m.Errors {
		f := fieldError{Location: d.Location, Message: plain(d)}
		p.Errors = append(p.Errors, f)
		parts = append(parts, f.Location+": "+f.Message)
		if p.Hint == "" {
			p.Hint = hintFor(d)
		}
		if len(p.Errors) == 10 {
			break
		}
	}
	if len(parts) > 0 {
		p.Detail = strings.Join(parts, "; ")
	}
	if p.Hint == "" {
		p.Hint = "the operations and their fields are described at /docs"
	}
	return p
}

// plain says a validation message in the words of a user.
func plain(d *huma.ErrorDetail) string {
	switch {
	case d.Message == "unexpected property":
		return "unknown field"
	case strings.HasPrefix(d.Message, "expected required property "):
		name := strings.TrimSuffix(strings.TrimPrefix(d.Message, "expected required property "), " to be present")
		return name + " is missing"
	case strings.Contains(d.Message, "match pattern"), strings.HasPrefix(d.Message, "expected string to be a "):
		if v, ok := d.Value.(string); ok {
			return quote(v) + " is not valid"
		}
	}
	return d.Message
}

func quote(s string) string {
	b, err := json.Marshal(clip(s))
	if err != nil {
		return "the value"
	}
	return string(b)
}

// hintFor says what to do about a validation error.
func hintFor(d *huma.ErrorDetail) string {
	field := d.Location[strings.LastIndexByte(d.Location, '.')+1:]
	switch {
	case d.Message == "unexpected property":
		return "remove it or correct its name; the fields are described at /docs"
	case strings.HasPrefix(d.Message, "unknown query parameter"):
		return "remove it or correct its name; the parameters are described at /docs"
	case field == "timeout":
		return `write a duration in quotes, for example "500ms", "30s" or "2m"`
	case field == "memory":
		return `write a size with its unit in quotes, for example "128MiB" or "1GiB"`
	case field == "artifact":
		return "give the digest that POST /v1/artifacts returned"
	case strings.Contains(d.Message, "property runtime "):
		return `add for example "runtime": "python"`
	case d.Location == "body" && (strings.HasPrefix(d.Message, "env") || strings.HasPrefix(d.Message, "labels")):
		return `environment variables and labels are strings: write "1" instead of 1`
	case d.Location == "body":
		return "check the JSON; the fields are described at /docs"
	}
	return "the fields and their types are described at /docs"
}

func statusText(status int) string {
	if status == hearth.CodeCanceled.HTTPStatus() {
		return "Client Closed Request"
	}
	return http.StatusText(status)
}

func ctxError(ctx context.Context) error { return ctxErrorOf(ctx.Err()) }

func ctxErrorOf(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "it took too long", Hint: "try again", Err: err}
	}
	return &hearth.Error{Code: hearth.CodeCanceled, Message: "the request was canceled", Err: err}
}

// recoverPanic answers a request whose handler panicked.
func (s *API) recoverPanic(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // breaks the connection off, on purpose
	}
	s.Logger.LogAttrs(r.Context(), slog.LevelError, "panic in the management API",
		slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Any("panic", v), slog.String("stack", stack()))
	if t, ok := w.(*tracked); ok && t.wrote {
		panic(http.ErrAbortHandler) // too late for an answer; do not let it look complete
	}
	s.send(w, &problem{
		Type: "about:blank", Title: statusText(500), Status: 500, Code: hearth.CodeInternal,
		Detail: "something went wrong inside of Hearth; its log says what",
	})
}
