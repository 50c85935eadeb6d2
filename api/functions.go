package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// maxBody is the greatest size of a JSON body other than an event in bytes.
// Inline source must fit; larger code comes as an artifact.
const maxBody = 8 << 20

// code says where the source of a function is: exactly one field is set.
type code struct {
	Files    map[string]string `json:"files,omitempty" doc:"The source itself: paths with their contents" example:"{\"main.py\":\"def handler(event, context):\\n    return event\\n\"}"`
	Artifact string            `json:"artifact,omitempty" doc:"Digest of an artifact that POST /v1/artifacts returned" pattern:"^sha256:[0-9a-f]{64}$" patternDescription:"sha256: and 64 hex digits" example:"sha256:5f2c…"`
}

// functionInput is a function as a client describes it.
type functionInput struct {
	hearth.Config
	Code *code `json:"code,omitempty" doc:"Where the source is; when it is left out, the function keeps its code"`
}

// newFunction is functionInput with a name.
type newFunction struct {
	Name string `json:"name" doc:"At most 63 lower-case letters, digits and hyphens" example:"hello"`
	hearth.Config
	Code *code `json:"code,omitempty" doc:"Where the source is"`
}

// functionItem is a function in a list.
type functionItem struct {
	hearth.Function
	URL string `json:"url" doc:"Path under which the function answers" example:"/fn/hello/"`
}

// functionBody is a function as the API shows it.
type functionBody struct {
	hearth.Function
	URL      string   `json:"url" doc:"Path under which the function answers" example:"/fn/hello/"`
	Deployed int      `json:"deployed,omitempty" doc:"Number of the version that this request made, or that a preview found to be the same; missing if the live version is"`
	Warnings []string `json:"warnings" doc:"What of the configuration this host cannot enforce and, after a deploy, destinations and schedules that lead nowhere and messages that no function takes any more"`
}

// functionOutput answers with one function.
type functionOutput struct {
	Status   int
	Location string `header:"Location" doc:"Path of a new function"`
	ETag     string `header:"ETag" doc:"Generation of the function, for If-Match" example:"\"3\""`
	Body     functionBody
}

type nameInput struct {
	Name string `path:"name" doc:"Name of the function" example:"hello"`
}

type listInput struct {
	Limit int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of functions"`
	After string `query:"after" maxLength:"63" doc:"Only functions whose names come after this one"`
}

type functionList struct {
	Functions []functionItem `json:"functions"`
	Next      string         `json:"next,omitempty" doc:"The after of the next page; missing on the last one"`
}

type functionListOutput struct{ Body functionList }

type createInput struct {
	Fresh   bool     `query:"fresh" doc:"Install dependencies anew, whatever was installed before"`
	Aliases []string `query:"aliases" doc:"Aliases that are set after this: no schedule is warned of that calls them"`
	Body    newFunction
}

type putInput struct {
	Name        string   `path:"name" doc:"Name of the function" example:"hello"`
	Preview     bool     `query:"preview" doc:"Make the version without making it live: it answers at /fn/NAME@VERSION/ only"`
	Fresh       bool     `query:"fresh" doc:"Install dependencies anew, whatever was installed before"`
	Aliases     []string `query:"aliases" doc:"Aliases that are set after this: no schedule is warned of that calls them"`
	IfMatch     string   `header:"If-Match" doc:"Only if the function has this ETag"`
	IfNoneMatch string   `header:"If-None-Match" doc:"* means: only if there is no such function yet"`
	Body        functionInput
}

// deleteOutput answers with what a deletion ended or left behind, if there is anything.
type deleteOutput struct {
	Status int
	Body   *hearth.Deleted
}

type deleteInput struct {
	Name    string `path:"name" doc:"Name of the function" example:"hello"`
	IfMatch string `header:"If-Match" doc:"Only if the function has this ETag"`
}

// eventsText describes progress for the document.
const eventsText = "With Accept: " + ndjson + " the answer tells how it goes: a JSON object on each line, the last one with the type result or error. " +
	"What is refused before anything was begun is answered as without it."

func (s *API) registerFunctions() {
	register(s, huma.Operation{
		OperationID: "create-function", Method: http.MethodPost, Path: "/v1/functions", Tags: []string{"Functions"},
		Summary: "Create a function",
		Description: "Stores the code, installs its dependencies, starts it once in a real sandbox and, if it can be loaded, makes it answer calls. Nothing changes if anything fails. " +
			eventsText,
		MaxBodyBytes: maxBody, DefaultStatus: http.StatusCreated, Middlewares: huma.Middlewares{s.streamed},
	}, s.createFunction)
	register(s, huma.Operation{
		OperationID: "put-function", Method: http.MethodPut, Path: "/v1/functions/{name}", Tags: []string{"Functions"},
		Summary: "Create a function or give it a new version",
		Description: "Answers 201 for a new function and 200 for an existing one. The configuration replaces the old one as a whole; without code the function keeps its code. " +
			"If neither code nor configuration differ, no new version is made and the function is returned as it is. Until the new version can be loaded, the old one goes on answering. " +
			"With preview it goes on after that, too, and the new version answers under its own URL until it is released. " +
			eventsText,
		MaxBodyBytes: maxBody, DefaultStatus: http.StatusOK, Middlewares: huma.Middlewares{s.streamed},
		Responses: map[string]*huma.Response{"201": {
			Description: "Created",
			Content:     map[string]*huma.MediaType{"application/json": {Schema: schemaOf[functionBody](s)}},
		}},
	}, s.putFunction)
	paths := s.huma.OpenAPI().Paths
	s.documentEvents(paths["/v1/functions"].Post)
	s.documentEvents(paths["/v1/functions/{name}"].Put)
	register(s, huma.Operation{
		OperationID: "list-functions", Method: http.MethodGet, Path: "/v1/functions", Tags: []string{"Functions"},
		Summary: "List functions by name",
	}, s.listFunctions)
	register(s, huma.Operation{
		OperationID: "get-function", Method: http.MethodGet, Path: "/v1/functions/{name}", Tags: []string{"Functions"},
		Summary: "Read a function",
	}, s.getFunction)
	register(s, huma.Operation{
		OperationID: "delete-function", Method: http.MethodDelete, Path: "/v1/functions/{name}", Tags: []string{"Functions"},
		Summary: "Delete a function, its versions and its logs",
		Description: "Asynchronous calls that have not ended are canceled. Messages of queues stay. " +
			"Answers 200 if there were such calls, or such messages that no function takes now, and 204 without a body else.",
		DefaultStatus: http.StatusOK,
		Responses:     map[string]*huma.Response{"204": {Description: "No Content"}},
	}, s.deleteFunction)
}

func (s *API) createFunction(ctx context.Context, in *createInput) (*functionOutput, error) {
	res, err := s.deploy(ctx, deployment{
		name: in.Body.Name, config: in.Body.Config, code: in.Body.Code, mustBeNew: true, fresh: in.Fresh, aliases: in.Aliases,
	})
	if err != nil {
		return nil, err
	}
	return res.output(), nil
}

func (s *API) putFunction(ctx context.Context, in *putInput) (*functionOutput, error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	if in.IfNoneMatch != "" && strings.TrimSpace(in.IfNoneMatch) != "*" {
		return nil, hearth.Errorf(hearth.CodeInvalid, "If-None-Match can only be *").
			WithHint("use If-Match with the ETag to change a function only if nobody else has")
	}
	res, err := s.deploy(ctx, deployment{
		name: in.Name, config: in.Body.Config, code: in.Body.Code,
		match: match, ifNew: in.IfNoneMatch != "", fresh: in.Fresh, preview: in.Preview, aliases: in.Aliases,
	})
	if err != nil {
		return nil, err
	}
	return res.output(), nil
}

func (s *API) listFunctions(ctx context.Context, in *listInput) (*functionListOutput, error) {
	// One more than asked for tells whether there is a next page.
	list, err := s.Catalog.Functions(ctx, in.After, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &functionListOutput{Body: functionList{Functions: []functionItem{}}}
	if len(list) > in.Limit {
		list = list[:in.Limit]
		out.Body.Next = list[in.Limit-1].Name
	}
	for _, f := range list {
		out.Body.Functions = append(out.Body.Functions, functionItem{Function: f, URL: urlOf(f)})
	}
	return out, nil
}

func (s *API) getFunction(ctx context.Context, in *nameInput) (*functionOutput, error) {
	f, err := s.function(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	v, err := s.Versions.Version(ctx, f.Name, f.Live)
	if err != nil {
		return nil, err
	}
	return deployed{function: f, warnings: v.Warnings}.output(), nil
}

func (s *API) deleteFunction(ctx context.Context, in *deleteInput) (*deleteOutput, error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	d, err := s.remove(ctx, in.Name, match)
	if err != nil {
		return nil, err
	}
	if d.Canceled == 0 && len(d.Warnings) == 0 {
		return &deleteOutput{Status: http.StatusNoContent}, nil
	}
	return &deleteOutput{Status: http.StatusOK, Body: &d}, nil
}

// function returns the function. Errors: CodeNotFound with a hint.
func (s *API) function(ctx context.Context, name string) (hearth.Function, error) {
	f, err := s.Catalog.Function(ctx, name)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return f, (&hearth.Error{
			Code: hearth.CodeNotFound, Message: "there is no function " + strconv.Quote(clip(name)), Err: err,
		}).WithHint("hearth list shows the functions")
	}
	return f, err
}

func urlOf(f hearth.Function) string { return "/fn/" + f.Name + "/" }

// deployed is a function after a deploy.
type deployed struct {
	function hearth.Function
	version  int // that was made; 0 if none was
	warnings []string
	created  bool
}

func (d deployed) output() *functionOutput {
	out := &functionOutput{
		Status: http.StatusOK,
		ETag:   etag(d.function.Generation),
		Body:   functionBody{Function: d.function, URL: urlOf(d.function), Deployed: d.version, Warnings: d.warnings},
	}
	if out.Body.Warnings == nil {
		out.Body.Warnings = []string{}
	}
	if d.created {
		out.Status, out.Location = http.StatusCreated, "/v1/functions/"+d.function.Name
	}
	return out
}

func etag(generation int64) string { return `"` + strconv.FormatInt(generation, 10) + `"` }

// condition is an If-Match header. The zero value is always met.
type condition struct {
	exists      bool    // the function must exist
	generations []int64 // and have one of these, unless empty
}

// parseETag reads an If-Match header. Errors: CodeInvalid.
func parseETag(s string) (condition, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return condition{}, nil
	}
	c := condition{exists: true}
	if s == "*" {
		return c, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		num, ok := strings.CutPrefix(part, `"`)
		num, ok2 := strings.CutSuffix(num, `"`)
		n, err := strconv.ParseInt(num, 10, 64)
		if !ok || !ok2 || err != nil || n < 1 {
			return c, hearth.Errorf(hearth.CodeInvalid, "If-Match %q is not an ETag of a function", clip(s)).
				WithHint(`send the ETag header of GET /v1/functions/{name} with its quotes, for example "3"`)
		}
		c.generations = append(c.generations, n)
	}
	return c, nil
}

// check compares the condition with the function, nil if there is none.
// Errors: CodeConflict with status 412.
func (c condition) check(name string, f *hearth.Function) error {
	if !c.exists {
		return nil
	}
	if f == nil {
		return withStatus(http.StatusPreconditionFailed,
			hearth.Errorf(hearth.CodeConflict, "there is no function %q to match If-Match", name).
				WithHint("leave If-Match out to create it"))
	}
	if len(c.generations) == 0 {
		return nil
	}
	for _, g := range c.generations {
		if g == f.Generation {
			return nil
		}
	}
	return withStatus(http.StatusPreconditionFailed,
		hearth.Errorf(hearth.CodeConflict, "function %q was changed meanwhile: it has the ETag %s now", name, etag(f.Generation)).
			WithHint("read it again, decide whether your change still fits, and send it with the new ETag"))
}
