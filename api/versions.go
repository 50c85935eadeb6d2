package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

type versionsInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of versions"`
	Before int    `query:"before" minimum:"0" doc:"Only versions with lower numbers"`
}

type versionList struct {
	Versions []hearth.Version `json:"versions" doc:"Newest first"`
	Next     int              `json:"next,omitempty" doc:"The before of the next page; missing on the last one"`
}

type versionListOutput struct{ Body versionList }

type versionInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	Number int    `path:"number" minimum:"1" doc:"Number of the version"`
}

type versionOutput struct{ Body hearth.Version }

func (s *server) registerVersions() {
	register(s, huma.Operation{
		OperationID: "list-versions", Method: http.MethodGet, Path: "/v1/functions/{name}/versions", Tags: []string{"Versions"},
		Summary: "List the versions of a function, newest first",
	}, s.listVersions)
	register(s, huma.Operation{
		OperationID: "get-version", Method: http.MethodGet, Path: "/v1/functions/{name}/versions/{number}", Tags: []string{"Versions"},
		Summary: "Read a version",
	}, s.getVersion)
}

func (s *server) listVersions(ctx context.Context, in *versionsInput) (*versionListOutput, error) {
	if _, err := s.function(ctx, in.Name); err != nil {
		return nil, err
	}
	list, err := s.Versions.Versions(ctx, in.Name, in.Before, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &versionListOutput{Body: versionList{Versions: []hearth.Version{}}}
	if len(list) > in.Limit {
		list = list[:in.Limit]
		out.Body.Next = list[in.Limit-1].Number
	}
	out.Body.Versions = append(out.Body.Versions, list...)
	return out, nil
}

func (s *server) getVersion(ctx context.Context, in *versionInput) (*versionOutput, error) {
	if _, err := s.function(ctx, in.Name); err != nil {
		return nil, err
	}
	v, err := s.Versions.Version(ctx, in.Name, in.Number)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return nil, (&hearth.Error{
			Code: hearth.CodeNotFound, Err: err,
			Message: hearth.Errorf(hearth.CodeNotFound, "function %q has no version %d", in.Name, in.Number).Message,
		}).WithHint("GET /v1/functions/%s/versions lists them", in.Name)
	}
	if err != nil {
		return nil, err
	}
	return &versionOutput{Body: v}, nil
}
