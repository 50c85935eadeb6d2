package api

import (
	"context"
	"encoding/json"
	"mime"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

const artifactsPath = "/v1/artifacts"

// artifactBody tells what an upload has become.
type artifactBody struct {
	Digest string `json:"digest" doc:"Content address of the code, for the code of a function" example:"sha256:5f2c…"`
	Files  int    `json:"files" doc:"Number of files"`
	Bytes  int64  `json:"bytes" doc:"Size of the files together"`
}

func (s *API) registerArtifacts() {
	binary := func() *huma.MediaType {
		return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
	}
	s.registerRaw(huma.Operation{
		OperationID: "upload-artifact", Method: http.MethodPost, Path: artifactsPath, Tags: []string{"Artifacts"},
		Summary: "Upload code as an archive",
		Description: "The archive has the function's files at its top: make it from inside of the directory. " +
			"Uploading the same content again is no error and gives the same digest.",
		RequestBody: &huma.RequestBody{
			Required:    true,
			Description: "The archive, at most " + hearth.Bytes(s.Limits.Compressed).String() + ", unpacked at most " + hearth.Bytes(s.Limits.Unpacked).String(),
			Content: map[string]*huma.MediaType{
				"application/zip": binary(), "application/gzip": binary(), "application/x-tar": binary(),
			},
		},
		Responses: map[string]*huma.Response{"201": {
			Description: "Created",
			Content:     map[string]*huma.MediaType{"application/json": {Schema: schemaOf[artifactBody](s)}},
		}},
	}, s.uploadArtifact)
}

func (s *API) uploadArtifact(w http.ResponseWriter, r *http.Request) error {
	format, err := formatOf(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if r.ContentLength > s.Limits.Compressed {
		return withStatus(http.StatusRequestEntityTooLarge,
			hearth.Errorf(hearth.CodeInvalid, "the archive is larger than %s", hearth.Bytes(s.Limits.Compressed)).
				WithHint("leave out what the function does not need at run time (tests, caches, .git)"))
	}
	sum, err := s.store(r.Context(), s.uploads, func(dir string) (build.Summary, error) {
		return build.Extract(r.Context(), r.Body, format, dir, s.Limits)
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, artifactBody{Digest: sum.Digest, Files: sum.Files, Bytes: sum.Bytes})
}

// store keeps what fill writes as an artifact. It waits for one of the slots.
func (s *API) store(ctx context.Context, slots chan struct{}, fill func(dir string) (build.Summary, error)) (build.Summary, error) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return build.Summary{}, ctxError(ctx)
	}
	var sum build.Summary
	err := s.Artifacts.Put(ctx, func(dir string) (string, error) {
		var err error
		sum, err = fill(dir)
		return sum.Digest, err
	})
	return sum, err
}

func formatOf(contentType string) (build.Format, error) {
	mt, _, err := mime.ParseMediaType(contentType)
	if err == nil {
		switch mt {
		case "application/zip", "application/x-zip-compressed":
			return build.Zip, nil
		case "application/gzip", "application/x-gzip":
			return build.TarGz, nil
		case "application/x-tar":
			return build.Tar, nil
		}
	}
	return "", withStatus(http.StatusUnsupportedMediaType,
		hearth.Errorf(hearth.CodeInvalid, "the content type %q is no archive", clip(contentType)).
			WithHint("send application/zip, application/gzip (a .tar.gz) or application/x-tar"))
}

// writeJSON answers with v. Its errors come before anything was sent; that the
// client went away is none.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
	return nil
}
