package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Queue keeps calls that run later; package queue implements it.
type Queue interface {
	// Call returns a call with its result. Errors: CodeNotFound.
	Call(ctx context.Context, id string) (hearth.AsyncCall, error)
	// Payload returns what a call passes. Errors: CodeNotFound, also if it is not kept.
	Payload(ctx context.Context, id string) (hearth.AsyncPayload, error)
	// Wait does so as soon as it has ended, or ctx ends.
	Wait(ctx context.Context, id string) (hearth.AsyncCall, error)
	// Calls returns at most limit calls of a function or a queue, newest first, in one
	// state unless that is empty, that are older than the one with the id before.
	Calls(ctx context.Context, function string, state hearth.AsyncState, before string, limit int) ([]hearth.AsyncCall, error)
	// TraceCalls returns at most limit calls of a trace, the first ones.
	TraceCalls(ctx context.Context, of hearth.TraceID, limit int) ([]hearth.AsyncCall, error)
	// Cancel ends a call; canceled is false if it had ended before.
	Cancel(ctx context.Context, id string) (call hearth.AsyncCall, canceled bool, err error)
	// Send puts messages into a queue, durably, and returns them in the same order.
	// Errors: CodeNotFound if no function takes its messages, CodeExhausted.
	Send(ctx context.Context, queue string, messages []hearth.Message) ([]hearth.SentMessage, error)
	// Redrive queues dead letters of a function or a queue anew, all or those with the
	// ids.
	Redrive(ctx context.Context, function string, ids []string) (int64, error)
	// Purge deletes the dead letters of a function or a queue.
	Purge(ctx context.Context, function string) (int64, error)
	// Forget cancels all calls of a function that was deleted.
	Forget(ctx context.Context, function string) error
	// Status counts the calls of one function or queue, or of all.
	Status(ctx context.Context, function string) (hearth.QueueStatus, error)
	// WebhookSecret is with what webhooks are signed.
	WebhookSecret() string
}

// Acceptor takes calls that run later; package gateway implements it.
type Acceptor interface {
	// AcceptEvent stores a call as the headers of its request say, durably. first is
	// false if it was accepted before, under the same deduplication key.
	AcceptEvent(ctx context.Context, target string, event []byte, h http.Header) (call hearth.AsyncCall, first bool, err error)
	// CloudEvents returns the events that a request carries, if the function takes
	// them; batch tells that they came as a batch.
	CloudEvents(target string, h http.Header, body []byte) (events [][]byte, batch bool, err error)
	// AcceptEvents stores a call for each event and answers with their ids, or stores
	// none and returns an error.
	AcceptEvents(ctx context.Context, w http.ResponseWriter, target string, events [][]byte, h http.Header) error
	// TraceOf returns the span of a call with the headers.
	TraceOf(h map[string][]string) hearth.Trace
}

// maxWait bounds how long a request waits for a result.
const maxWait = 5 * time.Minute

// asyncBody is an asynchronous call as it is answered.
type asyncBody struct {
	hearth.AsyncCall
	Result *asyncResult `json:"result,omitempty" doc:"What the function answered; missing until the call succeeded"`
}

type asyncResult struct {
	Status  int         `json:"status" doc:"HTTP status of the response; 200 for events"`
	Headers [][2]string `json:"headers,omitempty" doc:"Names and values of the headers of an HTTP response"`
	Value   any         `json:"value,omitempty" doc:"The response if it is JSON"`
	Text    string      `json:"text,omitempty" doc:"The response if it is other text"`
	Base64  []byte      `json:"base64,omitempty" doc:"The response if it is no text"`
	Cut     bool        `json:"cut,omitempty" doc:"The response was longer: this is its beginning"`
}

func asyncBodyOf(c hearth.AsyncCall) *asyncBody {
	b := &asyncBody{AsyncCall: c}
	if r := c.Result; r != nil {
		value, text, bytes := r.Content()
		b.Result = &asyncResult{Status: r.Status, Headers: r.Headers, Text: text, Base64: bytes, Cut: r.Cut}
		if value != nil {
			b.Result.Value = json.RawMessage(value)
		}
	}
	return b
}

type queueInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	State  string `query:"state" enum:"queued,running,succeeded,failed,dead,canceled" doc:"Only calls in this state; dead is the same as failed"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of calls"`
	Before string `query:"before" maxLength:"100" doc:"Only calls older than the one with this id"`
}

type queueList struct {
	Calls []hearth.AsyncCall `json:"calls" doc:"Newest first"`
	Next  string             `json:"next,omitempty" doc:"The before of the next page; missing on the last one"`
}

type queueListOutput struct{ Body queueList }

type queueStatusOutput struct{ Body hearth.QueueStatus }

type redriveInput struct {
	Name string `path:"name" doc:"Name of the function" example:"hello"`
	Body *redriveBody
}

type redriveBody struct {
	IDs []string `json:"ids,omitempty" maxItems:"1000" doc:"Ids of dead letters; all if there are none"`
}

func (b *redriveBody) ids() []string {
	if b == nil {
		return nil
	}
	return b.IDs
}

type countOutput struct {
	Body struct {
		Calls int64 `json:"calls" doc:"How many calls it was"`
	}
}

type payloadOutput struct {
	Body struct {
		Request json.RawMessage `json:"request,omitempty" doc:"The event of an HTTP request, without its body"`
		Value   json.RawMessage `json:"value,omitempty" doc:"The event, message or body if it is JSON"`
		Text    string          `json:"text,omitempty" doc:"The same if it is other text"`
		Base64  []byte          `json:"base64,omitempty" doc:"The same if it is no text"`
	}
}

type cancelOutput struct{ Body *asyncBody }

type secretOutput struct {
	Body struct {
		Secret string `json:"secret" doc:"With what webhooks are signed, as Standard Webhooks have it: whsec_ and base64"`
	}
}

func (s *API) registerQueue() {
	register(s, huma.Operation{
		OperationID: "get-queue", Method: http.MethodGet, Path: "/v1/queue", Tags: []string{"Queue"},
		Summary: "Count the asynchronous calls that are stored",
	}, s.getQueue)
	register(s, huma.Operation{
		OperationID: "get-webhook-secret", Method: http.MethodGet, Path: "/v1/queue/webhook-secret", Tags: []string{"Queue"},
		Summary: "Read the secret with which webhooks are signed",
	}, s.getSecret)
	register(s, huma.Operation{
		OperationID: "list-queue", Method: http.MethodGet, Path: "/v1/functions/{name}/queue", Tags: []string{"Queue"},
		Summary: "List the asynchronous calls of a function, newest first", Description: "With the deliveries to its webhooks.",
	}, s.listQueue)
	register(s, huma.Operation{
		OperationID: "redrive", Method: http.MethodPost, Path: "/v1/functions/{name}/queue/redrive", Tags: []string{"Queue"},
		Summary: "Queue dead letters of a function anew", Description: "They are tried again as if they were accepted now.",
	}, s.redrive)
	register(s, huma.Operation{
		OperationID: "purge-dead", Method: http.MethodDelete, Path: "/v1/functions/{name}/queue/dead", Tags: []string{"Queue"},
		Summary: "Delete the dead letters of a function",
	}, s.purge)
	register(s, huma.Operation{
		OperationID: "get-payload", Method: http.MethodGet, Path: "/v1/invocations/{id}/payload", Tags: []string{"Queue"},
		Summary:     "Read what an asynchronous call or a message passes",
		Description: "It is kept until the call has succeeded or was canceled, and with dead letters.",
	}, s.getPayload)
	register(s, huma.Operation{
		OperationID: "cancel-invocation", Method: http.MethodDelete, Path: "/v1/invocations/{id}", Tags: []string{"Queue"},
		Summary:     "Cancel an asynchronous call",
		Description: "One that runs is broken off. If it has ended already, the answer is a conflict.",
	}, s.cancelInvocation)
}

func (s *API) getQueue(ctx context.Context, _ *struct{}) (*queueStatusOutput, error) {
	st, err := s.Queue.Status(ctx, "")
	return &queueStatusOutput{Body: st}, err
}

func (s *API) getSecret(context.Context, *struct{}) (*secretOutput, error) {
	out := &secretOutput{}
	out.Body.Secret = s.Queue.WebhookSecret()
	return out, nil
}

// queueOf refuses a name that neither a function nor calls in the queue have: those
// of a destination that was never deployed are in its own queue.
func (s *API) queueOf(ctx context.Context, name string) error {
	_, missing := s.function(ctx, name)
	if hearth.ErrorCode(missing) != hearth.CodeNotFound {
		return missing
	}
	st, err := s.Queue.Status(ctx, name)
	if err != nil || len(st.Functions) > 0 {
		return err
	}
	if s.knownQueue(ctx, name) == nil {
		return hearth.AsError(missing).WithHint("there is a queue of that name: did you mean queue:%s?", name)
	}
	return missing
}

func (s *API) listQueue(ctx context.Context, in *queueInput) (*queueListOutput, error) {
	if err := s.queueOf(ctx, in.Name); err != nil {
		return nil, err
	}
	list, next, err := s.listCalls(ctx, in.Name, in.State, in.Before, in.Limit)
	return &queueListOutput{Body: queueList{Calls: list, Next: next}}, err
}

// listCalls returns a page of the calls of a function, or the messages of a queue, and
// the before of the next one.
func (s *API) listCalls(ctx context.Context, of, state, before string, limit int) (list []hearth.AsyncCall, next string, err error) {
	if state == "dead" {
		state = string(hearth.AsyncFailed)
	}
	list, err = s.Queue.Calls(ctx, of, hearth.AsyncState(state), before, limit+1)
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	return append([]hearth.AsyncCall{}, list...), next, err
}

func (s *API) redrive(ctx context.Context, in *redriveInput) (*countOutput, error) {
	if err := s.queueOf(ctx, in.Name); err != nil {
		return nil, err
	}
	out, err := &countOutput{}, error(nil)
	out.Body.Calls, err = s.Queue.Redrive(ctx, in.Name, in.Body.ids())
	return out, err
}

func (s *API) purge(ctx context.Context, in *nameInput) (*countOutput, error) {
	if err := s.queueOf(ctx, in.Name); err != nil {
		return nil, err
	}
	out, err := &countOutput{}, error(nil)
	out.Body.Calls, err = s.Queue.Purge(ctx, in.Name)
	return out, err
}

func (s *API) getPayload(ctx context.Context, in *callInput) (*payloadOutput, error) {
	p, err := s.Queue.Payload(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &payloadOutput{}
	out.Body.Request = p.Head
	out.Body.Value, out.Body.Text, out.Body.Base64 = hearth.AsyncResult{Body: p.Body}.Content()
	return out, nil
}

func (s *API) cancelInvocation(ctx context.Context, in *callInput) (*cancelOutput, error) {
	call, canceled, err := s.Queue.Cancel(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if !canceled {
		return nil, hearth.Errorf(hearth.CodeConflict, "the call has ended already: it is %s", stateWord(call.State))
	}
	return &cancelOutput{Body: asyncBodyOf(call)}, nil
}

// stateWord is the word for a state in messages: a call that failed for good is
// dead, as it is in the command line.
func stateWord(s hearth.AsyncState) string {
	if s == hearth.AsyncFailed {
		return "dead"
	}
	return string(s)
}

// asyncCall returns the asynchronous call with the id, nil if there is none. It
// waits for its end for the given time, as long as the server does not drain.
func (s *API) asyncCall(ctx context.Context, id string, wait time.Duration) (*asyncBody, error) {
	var call hearth.AsyncCall
	var err error
	if wait <= 0 {
		call, err = s.Queue.Call(ctx, id)
	} else {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		stop := context.AfterFunc(s.drainContext, cancel)
		defer stop()
		call, err = s.Queue.Wait(ctx, id)
	}
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return asyncBodyOf(call), nil
}

// acceptEvent serves POST /v1/functions/{name}/invocations with the header
// Hearth-Invocation-Type: async.
func (s *API) acceptEvent(w http.ResponseWriter, r *http.Request, event []byte) error {
	call, first, err := s.Acceptor.AcceptEvent(r.Context(), r.PathValue("name"), event, r.Header)
	if err != nil {
		return err
	}
	body, err := json.Marshal(asyncBodyOf(call))
	if err != nil {
		return err
	}
	h, status := w.Header(), http.StatusAccepted
	h["Hearth-Invocation-Id"] = []string{call.ID}
	h.Set("Location", "/v1/invocations/"+call.ID)
	if !first {
		h.Set("Hearth-Deduplicated", "true")
		status = http.StatusOK
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return nil
}
