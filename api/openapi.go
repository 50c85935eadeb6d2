package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/jsonwalk"
)

// newHuma makes the huma API on s.mux. Its built-in pages are off: they load
// scripts from elsewhere, and its errors become problems.
func newHuma(s *API) huma.API {
	registry := huma.NewMapRegistry("#/components/schemas/", schemaName)
	registry.RegisterTypeAlias(reflect.TypeFor[hearth.Duration](), reflect.TypeFor[durationSchema]())
	registry.RegisterTypeAlias(reflect.TypeFor[hearth.Bytes](), reflect.TypeFor[bytesSchema]())
	registry.RegisterTypeAlias(reflect.TypeFor[hearth.Rate](), reflect.TypeFor[rateSchema]())
	registry.RegisterTypeAlias(reflect.TypeFor[hearth.Weights](), reflect.TypeFor[weightsSchema]())
	// huma forgets where it is in a body when a key has a dot, as file names do.
	// Maps are left to the JSON decoder, whose errors decode translates.
	registry.RegisterTypeAlias(reflect.TypeFor[map[string]string](), reflect.TypeFor[stringsSchema]())
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: decode}
	a := humago.New(s.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Hearth management API", Version: s.Version,
				Description: "Deploys functions, calls them and tells what they did. Every error is an RFC 9457 problem with a code and a hint.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{Schemas: registry},
			Tags: []*huma.Tag{
				{Name: "Functions", Description: "Deploy, read and delete functions."},
				{Name: "Versions", Description: "The immutable versions of a function."},
				{Name: "Secrets", Description: "Values that functions get and nobody can read back."},
				{Name: "Instances", Description: "The sandboxes that run a function."},
				{Name: "Pool", Description: "The instances of all functions, how they change, and why."},
				{Name: "Artifacts", Description: "Upload code as an archive."},
				{Name: "Invocations", Description: "Call functions and read the records of calls."},
				{Name: "Queue", Description: "Asynchronous calls, which run later: what waits, what failed, and what became of them. Each function has a queue of its own. For queues of messages see Queues."},
				{Name: "Queues", Description: "Queues of messages, by a name of their own: one function takes them in batches. For calls that run later see Queue."},
				{Name: "Schedules", Description: "When functions are called by themselves."},
				{Name: "Metrics", Description: "What calls did, summed up. The series themselves are at /metrics/api/v1, as Prometheus has them."},
				{Name: "Logs", Description: "What functions wrote."},
				{Name: "Host", Description: "What this server can do and how it is."},
			},
		},
		Formats: map[string]huma.Format{
			"application/json": format,
			"json":             format,
		},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{problems},
	})
	a.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) { next(&opContext{humaContext: ctx}) })
	return a
}

// schemaName names a type in the document.
func schemaName(t reflect.Type, hint string) string {
	switch t {
	case reflect.TypeFor[driver.Problem]():
		return "DriverProblem"
	case reflect.TypeFor[driver.Info]():
		return "Driver"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// humaContext is huma.Context under a name that does not hide its own method
// Context when it is embedded.
type humaContext huma.Context

// maxValues bounds the values of a body. huma unmarshals a body twice and looks at each
// value, for which it takes some 600 bytes: in 16 MiB there are 8 million. A plan of
// 20,000 files has 80,000.
const maxValues = 100_000

// decode is json.Unmarshal with errors for users instead of Go programmers. What is
// unmarshalled may have maxValues at most, unless it is kept as it came.
func decode(data []byte, v any) error {
	if _, raw := v.(*json.RawMessage); !raw && !jsonwalk.AtMost(data, maxValues) {
		return fmt.Errorf("it has more than %d values", maxValues)
	}
	err := json.Unmarshal(data, v)
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		want := "another type"
		switch wrong.Type.Kind() {
		case reflect.String:
			want = "string"
		case reflect.Map, reflect.Struct:
			want = "object"
		case reflect.Slice:
			want = "array"
		case reflect.Int, reflect.Int64, reflect.Float64:
			want = "number"
		}
		field := strings.TrimPrefix(wrong.Field, "Config.") // an embedded struct
		kind, _, _ := strings.Cut(wrong.Value, " ")         // a number comes after it, which may be secret
		return fmt.Errorf("%s: expected %s instead of %s", field, want, kind)
	case errors.As(err, &syntax):
		return fmt.Errorf("not valid JSON: %w at byte %d", syntax, syntax.Offset)
	}
	return err
}

// opContext lets the transformer problems change the status of an answer.
type opContext struct {
	humaContext
	status int // in place of the one huma chose, if not 0
}

// SetStatus implements huma.Context.
func (c *opContext) SetStatus(status int) {
	if c.status != 0 {
		status = c.status
	}
	c.humaContext.SetStatus(status)
}

// Unwrap is for humago.Unwrap.
func (c *opContext) Unwrap() huma.Context { return c.humaContext }

// problems replaces huma's error model by ours.
func problems(ctx huma.Context, status string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code, err := strconv.Atoi(status)
	if err != nil {
		code = m.Status
	}
	p := fromHuma(code, m)
	if c, ok := ctx.(*opContext); ok {
		c.status = p.Status
	}
	ctx.SetHeader("Content-Type", p.ContentType(""))
	ctx.SetHeader("Hearth-Error", string(p.Code))
	return p, nil
}

// register adds an operation whose bodies are JSON. Errors of h become
// problems.
func register[I, O any](s *API, op huma.Operation, h func(context.Context, *I) (*O, error)) {
	s.document(&op)
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, s.problemOf(ctx, err)
		}
		return out, nil
	})
	// huma always adds the model of its own errors, which is never sent.
	delete(s.huma.OpenAPI().Components.Schemas.Map(), "ErrorModel")
}

// large is a middleware for operations whose bodies can be large: it bounds how many of
// those are in memory at the same time. Others wait.
func (s *API) large(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	if n := r.ContentLength; n < 0 || n > smallBody {
		wait, cancel := context.WithTimeout(r.Context(), largeWait)
		defer cancel()
		select {
		case s.bodies <- struct{}{}:
			defer func() { <-s.bodies }()
		case <-wait.Done():
			s.fail(w, r, hearth.Errorf(hearth.CodeExhausted, "too many large requests are arriving").WithHint("try again in a moment"))
			return
		}
	}
	next(ctx)
}

const (
	// smallBody is up to which size in bytes a body does not count as large.
	smallBody = 256 << 10
	// maxLargeBodies is how many others are in memory at the same time, largeWait for
	// how long one waits.
	maxLargeBodies = 4
	largeWait      = 30 * time.Second
)

// registerRaw adds an operation that reads and writes streams itself; op holds
// all of its documentation but the errors.
func (s *API) registerRaw(op huma.Operation, h func(http.ResponseWriter, *http.Request) error) {
	s.document(&op)
	s.huma.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc(op.Method+" "+op.Path, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// document adds the answer for errors to an operation.
func (s *API) document(op *huma.Operation) {
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "What went wrong. The status follows from the code: " + statuses(),
		Headers: map[string]*huma.Param{
			"Hearth-Error": {Description: "The code of the problem", Schema: &huma.Schema{Type: huma.TypeString}},
			"Retry-After":  {Description: "In how many seconds another try may succeed, where it may", Schema: &huma.Schema{Type: huma.TypeInteger}},
		},
		Content: map[string]*huma.MediaType{
			"application/problem+json": {Schema: schemaOf[problem](s)},
		},
	}
}

// statuses lists which HTTP status each code has.
func statuses() string {
	var list string
	for i, c := range hearth.Codes() {
		if i > 0 {
			list += ", "
		}
		list += string(c.Code) + " " + strconv.Itoa(c.HTTPStatus)
	}
	return list
}

// schemaOf returns a reference to the schema of T.
func schemaOf[T any](s *API) *huma.Schema {
	return s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}

// durationSchema stands for hearth.Duration in the document. Its pattern lets
// through all that might be meant as one; hearth.Duration says what is wrong.
type durationSchema struct{}

// Schema implements huma.SchemaProvider.
func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeString,
		Description: "A duration: a number with ms, s, m or h, several of them, or a bare number of seconds",
		Pattern:     `^-?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$|^-?[0-9]+(\.[0-9]+)?$`,
		Examples:    []any{"30s", "500ms", "1m30s"},
	}
}

// stringsSchema stands for map[string]string in the document.
type stringsSchema struct{}

// Schema implements huma.SchemaProvider.
func (stringsSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeObject,
		// As an extension it is in the document, but huma does not look at it.
		Extensions: map[string]any{"additionalProperties": map[string]any{"type": "string"}},
	}
}

// bytesSchema stands for hearth.Bytes in the document.
type bytesSchema struct{}

// Schema implements huma.SchemaProvider.
func (bytesSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeString,
		Description: "A size: a number with B, KiB, MiB, GiB or TiB (powers of 1024) or KB, MB, GB or TB (powers of 1000)",
		Pattern:     `^[0-9]+(\.[0-9]+)? ?([KMGT]i?)?B$`,
		Examples:    []any{"128MiB", "1GiB"},
	}
}

// rateSchema stands for hearth.Rate in the document.
type rateSchema struct{}

// Schema implements huma.SchemaProvider.
func (rateSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeString,
		Description: "A number of events in a second (/s), minute (/m) or hour (/h)",
		Pattern:     `^[0-9]+(\.[0-9]+)? ?/ ?[smh]$`,
		Examples:    []any{"100/s", "30/m"},
	}
}

// weightsSchema stands for hearth.Weights in the document.
type weightsSchema struct{}

// Schema implements huma.SchemaProvider.
func (weightsSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type:        huma.TypeObject,
		Description: `Shares of calls in percent by version number, together 100, such as {"7": 90, "8": 10}`,
		// As an extension it is in the document, but huma does not look at it.
		Extensions: map[string]any{"additionalProperties": map[string]any{"type": "integer"}},
	}
}
