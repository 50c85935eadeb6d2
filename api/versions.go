package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

type versionsInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of versions"`
	Before int    `query:"before" minimum:"0" doc:"Only versions with lower numbers"`
}

// versionBody is a version as the API shows it.
type versionBody struct {
	hearth.Version
	URL string `json:"url" doc:"Path under which this version answers, live or not" example:"/fn/hello@7/"`
	// Aliases are the shares of calls in percent by alias.
	Aliases map[string]int `json:"aliases,omitempty" doc:"Aliases that lead to it, with its shares of their calls in percent"`
}

type versionList struct {
	Versions []versionBody `json:"versions" doc:"Newest first"`
	Next     int           `json:"next,omitempty" doc:"The before of the next page; missing on the last one"`
}

type versionListOutput struct{ Body versionList }

type versionInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	Number int    `path:"number" minimum:"1" doc:"Number of the version"`
}

type versionOutput struct{ Body versionBody }

func (s *API) registerVersions() {
	register(s, huma.Operation{
		OperationID: "list-versions", Method: http.MethodGet, Path: "/v1/functions/{name}/versions", Tags: []string{"Versions"},
		Summary: "List the versions of a function, newest first",
	}, s.listVersions)
	register(s, huma.Operation{
		OperationID: "get-version", Method: http.MethodGet, Path: "/v1/functions/{name}/versions/{number}", Tags: []string{"Versions"},
		Summary: "Read a version",
	}, s.getVersion)
	register(s, huma.Operation{
		OperationID: "delete-version", Method: http.MethodDelete, Path: "/v1/functions/{name}/versions/{number}", Tags: []string{"Versions"},
		Summary:       "Delete a version that no alias leads to",
		Description:   "Hearth does so by itself with all but the newest versions that nothing needs.",
		DefaultStatus: http.StatusNoContent,
	}, s.deleteVersion)
}

func (s *API) listVersions(ctx context.Context, in *versionsInput) (*versionListOutput, error) {
	aliases, err := s.aliases(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	list, err := s.Versions.Versions(ctx, in.Name, in.Before, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &versionListOutput{Body: versionList{Versions: []versionBody{}}}
	if len(list) > in.Limit {
		list = list[:in.Limit]
		out.Body.Next = list[in.Limit-1].Number
	}
	for _, v := range list {
		out.Body.Versions = append(out.Body.Versions, newVersionBody(v, aliases))
	}
	return out, nil
}

func newVersionBody(v hearth.Version, aliases []hearth.Alias) versionBody {
	b := versionBody{Version: v, URL: "/fn/" + v.Function + "@" + strconv.Itoa(v.Number) + "/"}
	for _, a := range aliases {
		if share := a.Versions[v.Number]; share > 0 {
			if b.Aliases == nil {
				b.Aliases = map[string]int{}
			}
			b.Aliases[a.Name] = share
		}
	}
	return b
}

// aliases returns the aliases of a function. Errors: CodeNotFound with a hint.
func (s *API) aliases(ctx context.Context, name string) ([]hearth.Alias, error) {
	if _, err := s.function(ctx, name); err != nil {
		return nil, err
	}
	return s.Aliases.Aliases(ctx, name)
}

func (s *API) getVersion(ctx context.Context, in *versionInput) (*versionOutput, error) {
	aliases, err := s.aliases(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	v, err := s.version(ctx, in.Name, in.Number)
	if err != nil {
		return nil, err
	}
	return &versionOutput{Body: newVersionBody(v, aliases)}, nil
}

func (s *API) deleteVersion(ctx context.Context, in *versionInput) (*struct{}, error) {
	return nil, s.change(ctx, in.Name, condition{}, func(ctx context.Context, f hearth.Function) error {
		v, err := s.version(ctx, f.Name, in.Number)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
		defer cancel()
		s.commit.Lock()
		defer s.commit.Unlock()
		if err := s.Versions.DeleteVersion(ctx, f.Name, v.Number); err != nil {
			return err
		}
		s.Verifier.Retire(v.Incarnation)
		return s.reload(ctx)
	})
}
