package api

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

func (s *API) registerSource() {
	least := 1.0
	s.registerRaw(huma.Operation{
		OperationID: "read-source", Method: http.MethodGet, Path: "/v1/functions/{name}/versions/{number}/source", Tags: []string{"Versions"},
		Summary: "Download the code of a version as it was uploaded",
		Description: "The archive is as POST /v1/artifacts takes it, without the dependencies that were installed. " +
			"If it breaks off, so does the connection.",
		Parameters: []*huma.Param{
			{Name: "name", In: "path", Required: true, Description: "Name of the function", Schema: &huma.Schema{Type: huma.TypeString}, Example: "hello"},
			{Name: "number", In: "path", Required: true, Description: "Number of the version", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &least}},
		},
		Responses: map[string]*huma.Response{"200": {
			Description: "A tar.gz",
			Content: map[string]*huma.MediaType{
				"application/gzip": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
			},
		}},
	}, s.readSource)
}

func (s *API) readSource(w http.ResponseWriter, r *http.Request) error {
	if err := onlyQuery(r.URL.Query()); err != nil {
		return err
	}
	number, err := strconv.Atoi(r.PathValue("number"))
	if err != nil || number < 1 {
		return hearth.Errorf(hearth.CodeInvalid, "path.number: %q is not the number of a version", clip(r.PathValue("number"))).
			WithHint("GET /v1/functions/{name}/versions lists them")
	}
	v, err := s.getVersion(r.Context(), &versionInput{Name: r.PathValue("name"), Number: number})
	if err != nil {
		return err
	}
	dir, err := s.sourceDir(v.Body.Version)
	if err != nil {
		return err
	}
	a := &archive{w: w, name: fmt.Sprintf("%s-%d.tar.gz", v.Body.Function, number)}
	if err := build.Archive(r.Context(), dir, a); err != nil {
		if !a.sent {
			return err
		}
		if r.Context().Err() == nil {
			s.Logger.WarnContext(r.Context(), "a download of source broke off", "function", v.Body.Function, "version", number, "error", err)
		}
		panic(http.ErrAbortHandler) // half an archive must not look complete
	}
	return nil
}

// sourceDir returns the directory with the code of a version as it was uploaded.
func (s *API) sourceDir(v hearth.Version) (string, error) {
	digest := v.Source
	if digest == "" {
		digest = v.Artifact
	}
	return s.Artifacts.ArtifactDir(digest)
}

// archive is the answer with an archive. Its header goes out with the first bytes.
type archive struct {
	w    http.ResponseWriter
	name string
	sent bool
}

// Write implements io.Writer.
func (a *archive) Write(b []byte) (int, error) {
	if !a.sent {
		a.sent = true
		a.w.Header().Set("Content-Type", "application/gzip")
		a.w.Header().Set("Content-Disposition", `attachment; filename="`+a.name+`"`)
	}
	return a.w.Write(b)
}
