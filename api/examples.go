package api

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

type examplesInput struct {
	Function string `query:"function" maxLength:"63" doc:"Name of the function that they are for" example:"hello"`
}

// exampleItem is hearth.Example with the schemas of its events.
type exampleItem struct {
	Name    string       `json:"name" doc:"Name of the example" example:"http"`
	Summary string       `json:"summary" doc:"What it is the event of"`
	Event   exampleEvent `json:"event" doc:"The event"`
}

type exampleList struct {
	Examples []exampleItem `json:"examples"`
}

type exampleListOutput struct{ Body exampleList }

// exampleEvent is one of the types of events that hearth.Examples returns.
type exampleEvent any

// exampleSchema stands for exampleEvent in the document.
type exampleSchema struct{}

// Schema implements huma.SchemaProvider.
func (exampleSchema) Schema(r huma.Registry) *huma.Schema {
	s := &huma.Schema{Description: "The event"}
	for _, t := range []reflect.Type{
		reflect.TypeFor[hearth.HTTPEvent](), reflect.TypeFor[hearth.ScheduleEvent](),
		reflect.TypeFor[hearth.QueueEvent](), reflect.TypeFor[hearth.CloudEvent](),
	} {
		s.OneOf = append(s.OneOf, r.Schema(t, true, ""))
	}
	return s
}

func (s *API) registerExamples() {
	s.huma.OpenAPI().Components.Schemas.RegisterTypeAlias(reflect.TypeFor[exampleEvent](), reflect.TypeFor[exampleSchema]())
	register(s, huma.Operation{
		OperationID: "list-examples", Method: http.MethodGet, Path: "/v1/examples", Tags: []string{"Invocations"},
		Summary:     "List typical events",
		Description: "Events to try a function with, such as an HTTP request as the function gets it.",
	}, s.listExamples)
}

func (s *API) listExamples(_ context.Context, in *examplesInput) (*exampleListOutput, error) {
	list, err := hearth.Examples(hearth.ExampleOptions{Function: in.Function, Time: time.Now()})
	if err != nil {
		return nil, err
	}
	out := &exampleListOutput{Body: exampleList{Examples: []exampleItem{}}}
	for _, e := range list {
		out.Body.Examples = append(out.Body.Examples, exampleItem{Name: e.Name, Summary: e.Summary, Event: e.Event})
	}
	return out, nil
}
