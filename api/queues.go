package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/jsonwalk"
)

type messageInput struct {
	Body             json.RawMessage `json:"body" doc:"The message: a text as it is, any other JSON value as its text"`
	Delay            hearth.Duration `json:"delay,omitempty" doc:"For how long it waits before a function gets it; at most 30 days" example:"30s"`
	DeduplicationKey string          `json:"deduplication_key,omitempty" maxLength:"256" doc:"A second message with the same key is not stored within 24 hours"`
}

// message returns what is to be put into a queue.
func (m messageInput) message(now time.Time) (hearth.Message, error) {
	out := hearth.Message{DeduplicationKey: m.DeduplicationKey}
	if m.Delay < 0 {
		return out, hearth.Errorf(hearth.CodeInvalid, "delay %s is negative", m.Delay)
	}
	if m.Delay > 0 {
		out.NotBefore = now.Add(time.Duration(m.Delay))
	}
	if json.Unmarshal(m.Body, &out.Body) == nil && string(m.Body) != "null" {
		return out, out.Validate()
	}
	var text bytes.Buffer
	if err := json.Compact(&text, m.Body); err != nil {
		return out, hearth.Errorf(hearth.CodeInvalid, "the body is not JSON: %s", err)
	}
	out.Body = text.String()
	return out, out.Validate()
}

// sendInput has the body as it came: to validate and unmarshal what is no message can
// take hundreds of times its size.
type sendInput struct {
	Queue       string `path:"queue" doc:"Name of the queue" example:"orders"`
	Traceparent string `header:"Traceparent" doc:"Trace that the messages belong to, as W3C Trace Context has it"`
	Tracestate  string `header:"Tracestate" doc:"What belongs to traceparent"`
	Body        json.RawMessage
}

// sendInputBody describes the body of sendInput; messagesOf reads it.
type sendInputBody struct {
	Messages []messageInput `json:"messages" minItems:"1" maxItems:"1000" doc:"What to put into the queue, at most 6 MiB together"`
}

type sendOutput struct {
	Body struct {
		Messages []hearth.SentMessage `json:"messages" doc:"In the order of the request"`
	}
}

type messagesInput struct {
	Queue  string `path:"queue" doc:"Name of the queue" example:"orders"`
	State  string `query:"state" enum:"queued,running,succeeded,failed,dead,canceled" doc:"Only messages in this state; dead is the same as failed"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of messages"`
	Before string `query:"before" maxLength:"100" doc:"Only messages older than the one with this id"`
}

type queueNameInput struct {
	Queue string `path:"queue" doc:"Name of the queue" example:"orders"`
}

type redriveMessagesInput struct {
	Queue string `path:"queue" doc:"Name of the queue" example:"orders"`
	Body  *redriveBody
}

type queuesOutput struct {
	Body struct {
		Queues []hearth.Queue `json:"queues" doc:"Sorted by name"`
	}
}

type messageListOutput struct {
	Body struct {
		Messages []hearth.AsyncCall `json:"messages" doc:"Newest first"`
		Next     string             `json:"next,omitempty" doc:"The before of the next page; missing on the last one"`
	}
}

type messageCountOutput struct {
	Body struct {
		Messages int64 `json:"messages" doc:"How many messages it was"`
	}
}

func (s *API) registerQueues() {
	register(s, huma.Operation{
		OperationID: "list-queues", Method: http.MethodGet, Path: "/v1/queues", Tags: []string{"Queues"},
		Summary: "List the queues of messages", Description: "Those of which a function takes messages, and those that have messages.",
	}, s.listQueues)
	register(s, huma.Operation{
		OperationID: "send-messages", Method: http.MethodPost, Path: "/v1/queues/{queue}/messages", Tags: []string{"Queues"},
		Summary: "Put messages into a queue", DefaultStatus: http.StatusAccepted, MaxBodyBytes: maxSend,
		Middlewares: huma.Middlewares{s.large}, SkipValidateBody: true,
		RequestBody: &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf[sendInputBody](s)}}},
		Description: "The answer comes when all of them have reached the disk. If there is an error, none was stored.",
	}, s.sendMessages)
	register(s, huma.Operation{
		OperationID: "list-messages", Method: http.MethodGet, Path: "/v1/queues/{queue}/messages", Tags: []string{"Queues"},
		Summary: "List the messages of a queue, newest first",
	}, s.listMessages)
	register(s, huma.Operation{
		OperationID: "redrive-messages", Method: http.MethodPost, Path: "/v1/queues/{queue}/redrive", Tags: []string{"Queues"},
		Summary: "Queue dead letters of a queue anew", Description: "They are tried again as if they were sent now.",
	}, s.redriveMessages)
	register(s, huma.Operation{
		OperationID: "purge-dead-messages", Method: http.MethodDelete, Path: "/v1/queues/{queue}/dead", Tags: []string{"Queues"},
		Summary: "Delete the dead letters of a queue",
	}, s.purgeMessages)
}

const (
	// maxSendBytes bounds the messages of a request in bytes, maxSend the request, in
	// which a text can be longer than it is.
	maxSendBytes = 6 << 20
	maxSend      = 16 << 20
	// maxMessages bounds the messages of a request.
	maxMessages = 1000
)

func (s *API) sendMessages(ctx context.Context, in *sendInput) (*sendOutput, error) {
	if err := hearth.ValidateQueueName(in.Queue); err != nil {
		return nil, err
	}
	messages, err := messagesOf(in.Body, time.Now())
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if in.Traceparent != "" {
		header["Traceparent"], header["Tracestate"] = []string{in.Traceparent}, []string{in.Tracestate}
	}
	for i := range messages {
		messages[i].Trace = s.Acceptor.TraceOf(header)
	}
	out := &sendOutput{}
	out.Body.Messages, err = s.Queue.Send(ctx, in.Queue, messages)
	return out, err
}

// messagesOf reads the body of sendInput, which is valid JSON, up to the first thing that
// is wrong. Errors: CodeInvalid.
func messagesOf(body []byte, now time.Time) ([]hearth.Message, error) {
	hint := "send UTF-8; what is no text can be sent as base64"
	if !utf8.Valid(body) {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the messages are not UTF-8").WithHint("%s", hint)
	}
	if err := jsonwalk.Paired(body); err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the messages are not Unicode: %w", err).WithHint("%s", hint)
	}
	if jsonwalk.Kind(body) != '{' {
		return nil, badField("body", "expected object")
	}
	var list []byte
	for name, value := range jsonwalk.Members(body) {
		if !strings.EqualFold(name, "messages") { // as in other bodies
			return nil, badField("body."+clip(name), "unknown field")
		}
		list = value
	}
	switch {
	case list == nil:
		return nil, badField("body", "messages is missing")
	case jsonwalk.Kind(list) != '[':
		return nil, badField("body.messages", "expected array")
	}
	var messages []hearth.Message
	size := 0
	for e := range jsonwalk.Elements(list) {
		where := fmt.Sprintf("messages[%d]", len(messages))
		if len(messages) == maxMessages {
			return nil, hearth.Errorf(hearth.CodeInvalid, "body.messages: there are more than %d", maxMessages).WithHint("send the others in another request")
		}
		in, err := readMessage(e, "body."+where)
		if err != nil {
			return nil, err
		}
		m, err := in.message(now)
		if err != nil {
			he := *hearth.AsError(err)
			he.Message = where + ": " + he.Message
			return nil, &he
		}
		if size += len(m.Body); size > maxSendBytes {
			return nil, withStatus(http.StatusRequestEntityTooLarge, hearth.Errorf(hearth.CodeInvalid, "the messages have more than %s together", hearth.Bytes(maxSendBytes)).
				WithHint("send the others in another request"))
		}
		messages = append(messages, m)
	}
	if len(messages) == 0 {
		return nil, badField("body.messages", "there is none")
	}
	return messages, nil
}

// readMessage reads a message at a place of the body. Errors: CodeInvalid.
func readMessage(raw []byte, where string) (m messageInput, err error) {
	if jsonwalk.Kind(raw) != '{' {
		return m, badField(where, "expected object")
	}
	for name, value := range jsonwalk.Members(raw) {
		at := where + "." + clip(name)
		name = strings.ToLower(name)
		if name != "body" && name != "delay" && name != "deduplication_key" {
			return m, badField(at, "unknown field")
		}
		if name == "body" {
			m.Body = value
			continue
		}
		if jsonwalk.Kind(value) == 'n' {
			continue // null is the same as none
		}
		var text string
		if jsonwalk.Kind(value) != '"' || json.Unmarshal(value, &text) != nil {
			return m, badField(at, "expected string")
		}
		if name == "delay" {
			if err := m.Delay.UnmarshalText([]byte(text)); err != nil {
				return m, badField(at, quote(text)+" is not valid")
			}
		} else if m.DeduplicationKey = text; utf8.RuneCountInString(text) > 256 {
			return m, badField(at, "expected length <= 256")
		}
	}
	if m.Body == nil {
		return m, badField(where, "body is missing")
	}
	return m, nil
}

// badField says what is wrong with a part of a request, as huma does.
func badField(where, what string) error {
	return fromHuma(http.StatusUnprocessableEntity, &huma.ErrorModel{Errors: []*huma.ErrorDetail{{Location: where, Message: what}}})
}

func (s *API) listQueues(ctx context.Context, _ *struct{}) (*queuesOutput, error) {
	st, err := s.Queue.Status(ctx, "")
	if err != nil {
		return nil, err
	}
	all := map[string]hearth.Queue{}
	for name, function := range s.Router.Queues() {
		all[name] = hearth.Queue{Name: name, Function: function}
	}
	for _, f := range st.Functions {
		if name := hearth.QueueOf(f.Function); name != "" {
			q := all[name]
			q.Name, q.QueueCounts = name, f.QueueCounts
			all[name] = q
		}
	}
	out := &queuesOutput{}
	out.Body.Queues = []hearth.Queue{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out.Body.Queues = append(out.Body.Queues, all[name])
	}
	return out, nil
}

// knownQueue tells whether there is such a queue. Errors: CodeNotFound.
func (s *API) knownQueue(ctx context.Context, name string) error {
	if s.Router.Queues()[name] != "" {
		return nil
	}
	st, err := s.Queue.Status(ctx, hearth.QueueTarget(name))
	if err == nil && len(st.Functions) == 0 {
		err = hearth.Errorf(hearth.CodeNotFound, "there is no queue %q: no function takes its messages, and it has none", clip(name)).
			WithHint("hearth queues lists those that there are")
	}
	return err
}

func (s *API) listMessages(ctx context.Context, in *messagesInput) (*messageListOutput, error) {
	if err := s.knownQueue(ctx, in.Queue); err != nil {
		return nil, err
	}
	out, err := &messageListOutput{}, error(nil)
	out.Body.Messages, out.Body.Next, err = s.listCalls(ctx, hearth.QueueTarget(in.Queue), in.State, in.Before, in.Limit)
	return out, err
}

func (s *API) redriveMessages(ctx context.Context, in *redriveMessagesInput) (*messageCountOutput, error) {
	if err := s.knownQueue(ctx, in.Queue); err != nil {
		return nil, err
	}
	out, err := &messageCountOutput{}, error(nil)
	out.Body.Messages, err = s.Queue.Redrive(ctx, hearth.QueueTarget(in.Queue), in.Body.ids())
	return out, err
}

func (s *API) purgeMessages(ctx context.Context, in *queueNameInput) (*messageCountOutput, error) {
	if err := s.knownQueue(ctx, in.Queue); err != nil {
		return nil, err
	}
	out, err := &messageCountOutput{}, error(nil)
	out.Body.Messages, err = s.Queue.Purge(ctx, hearth.QueueTarget(in.Queue))
	return out, err
}

// checkTriggers tells whether what calls a function may be as in the configurations of
// the versions of its alias live, besides that of all others: the main one has the routes.
// Errors: CodeConflict.
func (s *API) checkTriggers(function string, main hearth.Config, others ...hearth.Config) error {
	owners := s.Router.Queues()
	for _, c := range append(others, main) {
		for _, queue := range slices.Sorted(maps.Keys(c.Queues)) {
			if owner := owners[queue]; owner != "" && owner != function {
				return hearth.Errorf(hearth.CodeConflict, "the messages of the queue %s go to function %s", queue, owner).
					WithHint("choose another queue, or take this one out of %s; a sender can send to several queues", owner)
			}
		}
	}
	return s.checkRoutes(function, hearth.Live, main.Routes)
}
