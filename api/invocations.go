package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/jsonwalk"
)

// maxBuffered is up to which size in bytes an answer is held back, so that all
// of its timings are in the header.
const maxBuffered = 64 << 10

// InvocationSearch is the query of searches. It is exported for huma, which sees no other
// embedded types.
type InvocationSearch struct {
	Version     int    `query:"version" minimum:"1" doc:"Number of the version that had the call"`
	Status      string `query:"status" doc:"HTTP status of the response such as 404, or a class of them such as 5xx" example:"5xx"`
	Code        string `query:"code" doc:"Code of the error; ok: none; http_5xx: the function answered with a status of 500 or more; error: all but ok" example:"error"`
	Kind        string `query:"kind" enum:"http,event,queue,websocket" doc:"What kind of call it was"`
	Async       string `query:"async" enum:"true,false" doc:"true: attempts of asynchronous calls; false: calls whose callers waited"`
	Cold        string `query:"cold" enum:"true,false" doc:"Whether the call waited for an instance made for it"`
	MinDuration string `query:"min_duration" doc:"Shortest sum of queue, start, init and run" example:"500ms"`
	MaxDuration string `query:"max_duration" doc:"Longest sum of queue, start, init and run" example:"2s"`
	Since       string `query:"since" doc:"When calls started at the earliest: RFC 3339, or how long ago such as 15m" example:"24h"`
	Until       string `query:"until" doc:"Before when they started: RFC 3339, or how long ago"`
	ID          string `query:"id" minLength:"8" maxLength:"100" doc:"How the id of the call begins"`
	Limit       int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of records"`
	Before      string `query:"before" maxLength:"100" doc:"Only calls that started before the one with this id: next of the page before"`
}

// filter returns what in asks for. Errors: CodeInvalid.
func (in *InvocationSearch) filter(function string) (hearth.InvocationFilter, error) {
	f := hearth.InvocationFilter{
		Function: function, Version: in.Version, Status: in.Status, Code: in.Code, Kind: hearth.Kind(in.Kind), ID: in.ID,
	}
	for _, b := range []struct {
		text string
		to   **bool
	}{{in.Async, &f.Async}, {in.Cold, &f.Cold}} {
		if b.text != "" {
			*b.to = new(b.text == "true")
		}
	}
	for _, d := range []struct {
		text string
		to   *time.Duration
	}{{in.MinDuration, &f.MinDuration}, {in.MaxDuration, &f.MaxDuration}} {
		if d.text != "" {
			if err := (*hearth.Duration)(d.to).UnmarshalText([]byte(d.text)); err != nil {
				return f, err
			}
		}
	}
	now := time.Now()
	for _, t := range []struct {
		text string
		to   *time.Time
	}{{in.Since, &f.Since}, {in.Until, &f.Until}} {
		if t.text != "" {
			var err error
			if *t.to, err = hearth.ParseMoment(t.text, now); err != nil {
				return f, err
			}
		}
	}
	return f, f.Validate()
}

type functionInvocationsInput struct {
	Name string `path:"name" doc:"Name of the function" example:"hello"`
	InvocationSearch
}

type allInvocationsInput struct {
	Function string `query:"function" doc:"Name of a function; all if it is missing" example:"hello"`
	InvocationSearch
}

type invocationList struct {
	Invocations []hearth.Invocation `json:"invocations" doc:"Newest first, by when they started"`
	Next        string              `json:"next,omitempty" doc:"The before of the next page; missing on the last one. A page with few records or none can have it: the search goes on there"`
}

type invocationListOutput struct{ Body invocationList }

type callInput struct {
	ID string `path:"id" doc:"Id of the call, from the header Hearth-Invocation-Id"`
}

type invocationInput struct {
	ID   string `path:"id" doc:"Id of the call, from the header Hearth-Invocation-Id"`
	Wait string `query:"wait" doc:"How long to wait for the end of an asynchronous call, at most 5m" example:"30s"`
}

type invocationOutput struct{ Body invocationBody }

// invocationBody is the record of a call and, if it was asynchronous, how it is.
type invocationBody struct {
	hearth.Invocation
	Async *asyncBody `json:"async,omitempty" doc:"State and result of an asynchronous call, from the moment of its acceptance; then the other fields are the record of an attempt, as far as there is one"`
}

func (s *API) registerInvocations() {
	const search = "All parameters must fit. One page looks at 200,000 records at most, and at no others where an index serves " +
		"(function, since, until, code but ok, status from 500 on); with next the search goes on. " +
		"Of successful calls there may be records of some only: see hearth_records_skipped_total."
	register(s, huma.Operation{
		OperationID: "list-invocations", Method: http.MethodGet, Path: "/v1/functions/{name}/invocations", Tags: []string{"Invocations"},
		Summary: "List the calls of a function, newest first", Description: search,
	}, func(ctx context.Context, in *functionInvocationsInput) (*invocationListOutput, error) {
		return s.listInvocations(ctx, in.Name, &in.InvocationSearch)
	})
	register(s, huma.Operation{
		OperationID: "search-invocations", Method: http.MethodGet, Path: "/v1/invocations", Tags: []string{"Invocations"},
		Summary: "List the calls of all functions, newest first", Description: search,
	}, func(ctx context.Context, in *allInvocationsInput) (*invocationListOutput, error) {
		return s.listInvocations(ctx, in.Function, &in.InvocationSearch)
	})
	register(s, huma.Operation{
		OperationID: "get-invocation", Method: http.MethodGet, Path: "/v1/invocations/{id}", Tags: []string{"Invocations"},
		Summary: "Read the record of a call",
	}, s.getInvocation)

	text := func(doc string) *huma.Param {
		return &huma.Param{Description: doc, Schema: &huma.Schema{Type: huma.TypeString}}
	}
	anyJSON := func() map[string]*huma.MediaType {
		return map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{}}}
	}
	s.registerRaw(huma.Operation{
		OperationID: "invoke-function", Method: http.MethodPost, Path: "/v1/functions/{name}/invocations", Tags: []string{"Invocations"},
		Summary: "Call a function with an event",
		Description: "The body is the event, any JSON value; without a body it is null. The answer is the handler's value as JSON. " +
			"Server-Timing tells where the time went, in milliseconds; for answers over 64 KiB its run comes in a trailer.",
		Parameters: []*huma.Param{{
			Name: "name", In: "path", Required: true, Description: "Name of the function, or NAME@ALIAS or NAME@VERSION", Schema: &huma.Schema{Type: huma.TypeString}, Example: "hello",
		}, {
			Name: "Hearth-Invocation-Type", In: "header", Description: "async stores the call durably and runs it later: the answer is 202 with its id", Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"sync", "async"}},
		}, {
			Name: "Hearth-Delay", In: "header", Description: "For asynchronous calls: how long they wait at least, at most 30 days", Schema: &huma.Schema{Type: huma.TypeString}, Example: "30s",
		}, {
			Name: "Hearth-Not-Before", In: "header", Description: "For asynchronous calls: when they may begin", Schema: &huma.Schema{Type: huma.TypeString, Format: "date-time"},
		}, {
			Name: "Hearth-Deduplication-Key", In: "header", Description: "For asynchronous calls: a second call with the same key is not stored, and answered with the first one; 422 if it is another one", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: new(256)},
		}},
		RequestBody: &huma.RequestBody{
			Description: "The event, at most " + hearth.Bytes(s.MaxEvent).String(),
			Content:     anyJSON(),
		},
		Responses: map[string]*huma.Response{"200": {
			Description: "The handler's value",
			Headers: map[string]*huma.Param{
				"Hearth-Invocation-Id": text("Id of the call"),
				"Hearth-Start":         text("cold if the call waited for an instance made for it, else warm"),
				"Hearth-Cold-Reason":   text("Why there was no instance for it, if it was cold: first, expired, scale, evicted or died"),
				"Server-Timing":        text("queue, start, init and run in ms"),
			},
			Content: anyJSON(),
		}, "202": {
			Description: "The asynchronous call is stored; 200 with Hearth-Deduplicated: true if it was before",
			Headers: map[string]*huma.Param{
				"Hearth-Invocation-Id": text("Id of the call, for GET /v1/invocations/{id}"),
				"Location":             text("Where it is read"),
				"Hearth-Deduplicated":  text("true if it was accepted before under the same key"),
			},
			Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf[asyncBody](s)}},
		}},
	}, s.invoke)
}

func (s *API) listInvocations(ctx context.Context, function string, in *InvocationSearch) (*invocationListOutput, error) {
	f, err := in.filter(function)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Invocations.Invocations(ctx, f, in.Before, in.Limit)
	if err != nil {
		return nil, err
	}
	return &invocationListOutput{Body: invocationList{Invocations: list, Next: next}}, nil
}

func (s *API) getInvocation(ctx context.Context, in *invocationInput) (*invocationOutput, error) {
	var wait hearth.Duration
	if in.Wait != "" {
		if err := wait.UnmarshalText([]byte(in.Wait)); err != nil {
			return nil, err
		}
		wait = min(wait, hearth.Duration(maxWait))
	}
	async, err := s.asyncCall(ctx, in.ID, time.Duration(wait))
	if err != nil {
		return nil, err
	}
	id := in.ID
	if async != nil {
		id = hearth.AttemptID(id, async.LastAttempt())
	}
	i, err := s.Invocations.Invocation(ctx, id)
	if hearth.ErrorCode(err) == hearth.CodeNotFound && async != nil {
		i, err = hearth.Invocation{Function: async.Function, Kind: async.Kind, StartedAt: async.AcceptedAt}, nil
	}
	if async != nil {
		i.ID = in.ID
	}
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return nil, noRecord(in.ID, err)
	}
	if err != nil {
		return nil, err
	}
	return &invocationOutput{Body: invocationBody{i, async}}, nil
}

// noRecord says that there is no record of a call.
func noRecord(id string, err error) error {
	return (&hearth.Error{
		Code: hearth.CodeNotFound, Message: "there is no record of a call " + strconv.Quote(clip(id)), Err: err,
	}).WithHint("records are written a moment after the call and kept for a limited time; of many successful calls a second not all have one, see hearth serve --record-successes")
}

// invoke serves POST /v1/functions/{name}/invocations.
func (s *API) invoke(w http.ResponseWriter, r *http.Request) error {
	async, err := hearth.ParseInvocationType(r.Header.Get("Hearth-Invocation-Type"))
	if err != nil {
		return err
	}
	// A batch of events always runs later; eventOf refuses other formats of events.
	if mode, err := hearth.EventModeOf(r.Header); !async && (mode != hearth.BatchedEvents || err != nil) {
		if err := checkSyncHeaders(r); err != nil {
			return err
		}
	}
	body, err := s.readEvent(r)
	if err != nil {
		return err
	}
	event, done, err := s.eventOf(w, r, body)
	if err != nil || done {
		return err
	}
	if async {
		return s.acceptEvent(w, r, event)
	}
	a := &answer{w: w}
	inv, err := s.Invoker.InvokeEvent(r.Context(), hearth.EventRequest{
		Target: hearth.Target(r.PathValue("name")), Event: bytes.NewReader(event), Size: int64(len(event)), Header: r.Header,
	}, a, func(i hearth.Invocation) { a.record = i })
	if inv.ID != "" {
		a.record = inv
	}
	switch {
	case a.sent && err != nil:
		// The status is gone already; only a broken connection can still tell.
		s.Logger.DebugContext(r.Context(), "answer broken off", "invocation", a.record.ID, "error", err)
		panic(http.ErrAbortHandler)
	case err != nil:
		p := s.problemOf(r.Context(), err)
		if a.record.ID != "" {
			a.head()
			p.Instance = "/v1/invocations/" + a.record.ID
		}
		s.send(w, p)
	case a.sent:
		w.Header().Set(http.TrailerPrefix+"Server-Timing", a.record.Timings.ServerTiming())
	default:
		a.head()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(a.held)))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(a.held)
	}
	return nil
}

// checkSyncHeaders refuses headers that a call through the API would not heed. Errors:
// CodeInvalid.
func checkSyncHeaders(r *http.Request) error {
	if r.Header["Idempotency-Key"] != nil {
		return hearth.Errorf(hearth.CodeInvalid, "a call through the management API cannot have an Idempotency-Key").
			WithHint("send the request to /fn/%s/ instead", clip(r.PathValue("name")))
	}
	return hearth.CheckSyncHeaders(r.Header)
}

// readEvent reads the body of a call.
func (s *API) readEvent(r *http.Request) ([]byte, error) {
	tooLarge := func() error {
		return withStatus(http.StatusRequestEntityTooLarge,
			hearth.Errorf(hearth.CodeInvalid, "the event is larger than %s", hearth.Bytes(s.MaxEvent)).
				WithHint("send large data to /fn/%s/ instead, where the function can read it as a stream", clip(r.PathValue("name"))))
	}
	if r.ContentLength > s.MaxEvent {
		return nil, tooLarge()
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(r.Body, s.MaxEvent+1))
	var over *http.MaxBytesError
	switch {
	case n > s.MaxEvent, errors.As(err, &over):
		return nil, tooLarge()
	case err != nil:
		return nil, &hearth.Error{Code: hearth.CodeCanceled, Message: "the request broke off", Hint: "send it again", Err: err}
	}
	return buf.Bytes(), nil
}

// validEvent returns the event in a body, nil for null. Errors: CodeInvalid.
func validEvent(body []byte) ([]byte, error) {
	event := bytes.TrimSpace(body)
	if len(event) == 0 {
		return nil, nil
	}
	if !json.Valid(event) {
		var v any
		err := json.Unmarshal(event, &v)
		where := ""
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			where = fmt.Sprintf(" (%s at byte %d)", syntax.Error(), syntax.Offset)
		}
		return nil, hearth.Errorf(hearth.CodeInvalid, "the event is not valid JSON%s", where).
			WithHint(`send a JSON value, for example {"name":"Ada"}`)
	}
	if err := jsonwalk.Readable(event); err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the event cannot be read by every language: %w", err).
			WithHint("send UTF-8, and large numbers as text")
	}
	return event, nil
}

// answer holds an answer back until it is complete or larger than maxBuffered,
// and streams from then on.
type answer struct {
	w      http.ResponseWriter
	record hearth.Invocation
	held   []byte
	sent   bool // the header is out
}

// Write implements io.Writer.
func (a *answer) Write(p []byte) (int, error) {
	if !a.sent && len(a.held)+len(p) <= maxBuffered {
		a.held = append(a.held, p...)
		return len(p), nil
	}
	if !a.sent {
		a.sent = true
		a.head()
		a.w.Header().Set("Content-Type", "application/json")
		a.w.WriteHeader(http.StatusOK)
		if _, err := a.w.Write(a.held); err != nil {
			return 0, err
		}
		a.held = nil
	}
	n, err := a.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, http.NewResponseController(a.w).Flush()
}

// SetWriteDeadline bounds the writing to the client; the Invoker knows until when.
func (a *answer) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(a.w).SetWriteDeadline(t)
}

// head sets what the record tells.
func (a *answer) head() {
	h := a.w.Header()
	h.Set("Hearth-Invocation-Id", a.record.ID)
	start := "warm"
	if a.record.Cold {
		start = "cold"
	}
	h.Set("Hearth-Start", start)
	if a.record.ColdReason != "" {
		h.Set("Hearth-Cold-Reason", string(a.record.ColdReason))
	}
	h.Set("Server-Timing", a.record.Timings.ServerTiming())
}
