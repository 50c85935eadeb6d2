package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// maxSpans bounds the spans of a trace that are shown.
const maxSpans = 500

type traceOutput struct{ Body hearth.TraceView }

func (s *API) registerTraces() {
	register(s, huma.Operation{
		OperationID: "get-trace", Method: http.MethodGet, Path: "/v1/invocations/{id}/trace", Tags: []string{"Invocations"},
		Summary: "Read the trace that a call belongs to",
		Description: "The id is that of a call, of one of its attempts such as ID.2, or of a trace, 32 hex digits. What is known here of the trace: this call, those that led to it or came of it, attempts and webhooks of asynchronous calls, " +
			"each with its parts. There are at most " + strconv.Itoa(maxSpans) + " spans, those of this call among them.",
	}, s.getTrace)
}

type traceInput struct {
	ID string `path:"id" doc:"Id of the call, from the header Hearth-Invocation-Id, or of the trace"`
}

// traced is a call of a trace with its spans, the first of which began first.
type traced struct {
	id    string
	spans []hearth.Span
}

func (s *API) getTrace(ctx context.Context, in *traceInput) (*traceOutput, error) {
	var of hearth.TraceID
	var asked []hearth.Span // none for the trace as a whole
	if of.UnmarshalText([]byte(in.ID)) != nil {
		var err error
		if of, asked, err = s.traceOf(ctx, in.ID); err != nil {
			return nil, err
		}
	}
	all, err := s.tracedCalls(ctx, of)
	if err != nil {
		return nil, err
	}
	call, _, _ := strings.Cut(in.ID, ".")
	isAsked := func(c traced) bool { return len(asked) > 0 && c.spans[0].ID == asked[0].ID }
	// The call that was asked for is never among those that are left out.
	if len(asked) > 0 && !slices.ContainsFunc(all, isAsked) {
		all = append(all, traced{call, asked})
	}
	if len(all) == 0 {
		return nil, hearth.Errorf(hearth.CodeNotFound, "there is no record of a call of the trace %s", of).
			WithHint("records appear shortly after a call ended, and are kept for a limited time")
	}
	rank := func(c traced) int {
		switch {
		case isAsked(c):
			return 0
		case c.id == call:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b traced) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.spans[0].Start.Compare(b.spans[0].Start))
	})
	view := hearth.TraceView{TraceID: of, Spans: []hearth.Span{}}
	for _, c := range all {
		if view.Truncated = len(view.Spans)+len(c.spans) > maxSpans; view.Truncated {
			break
		}
		view.Spans = append(view.Spans, c.spans...)
	}
	slices.SortStableFunc(view.Spans, func(a, b hearth.Span) int { return a.Start.Compare(b.Start) })
	return &traceOutput{Body: view}, nil
}

// traceOf returns the trace of a call, and the spans of that. Errors: CodeNotFound.
func (s *API) traceOf(ctx context.Context, id string) (of hearth.TraceID, spans []hearth.Span, err error) {
	i, err := s.Invocations.Invocation(ctx, id)
	of, spans = i.TraceID, i.Spans()
	if hearth.ErrorCode(err) == hearth.CodeNotFound { // it may not have begun yet
		var c hearth.AsyncCall
		if c, err = s.Queue.Call(ctx, id); hearth.ErrorCode(err) == hearth.CodeNotFound {
			return of, nil, noRecord(id, err)
		}
		of, spans = c.TraceID, c.Spans()
	}
	if err == nil && len(spans) == 0 {
		err = hearth.Errorf(hearth.CodeNotFound, "the call %s has no trace", strconv.Quote(clip(id))).
			WithHint("it was made before this server had traces")
	}
	return of, spans, err
}

// tracedCalls returns what is kept of a trace, in no order.
func (s *API) tracedCalls(ctx context.Context, of hearth.TraceID) (all []traced, err error) {
	calls, err := s.Queue.TraceCalls(ctx, of, maxSpans)
	if err != nil {
		return nil, err
	}
	stored := map[string]*hearth.AsyncCall{}
	for i := range calls {
		stored[calls[i].ID] = &calls[i]
		all = append(all, traced{calls[i].ID, calls[i].Spans()})
	}
	records, err := s.Invocations.TraceInvocations(ctx, of, maxSpans)
	for i := range records {
		r := &records[i]
		id, attempt, _ := strings.Cut(r.ID, ".")
		if c := stored[id]; c != nil {
			n, _ := strconv.Atoi(cmp.Or(attempt, "1")) //nolint:errcheck // ids have numbers there
			r.Attempt, r.Scheduled = n, c.Scheduled()
		}
		all = append(all, traced{id, r.Spans()})
	}
	return all, err
}
