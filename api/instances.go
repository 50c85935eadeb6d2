package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Instances manages what runs for a function.
type Instances interface {
	// Evict destroys the idle instances of the function's live version and
	// returns their number. Errors: CodeNotFound.
	Evict(function string) (int, error)
}

type evictInput struct {
	Name string `path:"name" doc:"Name of the function" example:"hello"`
}

type evictOutput struct {
	Body struct {
		Evicted int `json:"evicted" doc:"How many instances are being destroyed"`
	}
}

func (s *API) registerInstances() {
	register(s, huma.Operation{
		OperationID: "evict-instances", Method: http.MethodDelete, Path: "/v1/functions/{name}/instances", Tags: []string{"Instances"},
		Summary:     "Destroy the idle instances of a function",
		Description: "The next call is then a cold start. Instances that serve a call are left alone.",
	}, func(_ context.Context, in *evictInput) (*evictOutput, error) {
		n, err := s.Instances.Evict(in.Name)
		if err != nil {
			return nil, err
		}
		out := &evictOutput{}
		out.Body.Evicted = n
		return out, nil
	})
}
