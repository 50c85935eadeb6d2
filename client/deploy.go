package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/hearthrun/hearth"
)

// DeployOptions changes a Deploy. The zero value is ready to use.
type DeployOptions struct {
	// Override may change the manifest before it is checked and used.
	Override func(*Manifest)
	// New refuses to deploy over a function that exists.
	New bool
	// Preview makes a version without making it live.
	Preview bool
	// Generation, if it is not 0, refuses to deploy unless the function has that
	// generation.
	Generation int64
	// NoCache installs dependencies anew, whatever was installed before.
	NoCache bool
	// OnEvent is told how the deploy goes, one call after the other; may be nil.
	OnEvent func(Event)
	// Pack holds the limits of the directory.
	Pack PackOptions
}

// Stage is a step of a deploy.
type Stage string

// The stages of a deploy, in their order. A newer server may tell of others.
const (
	StagePack      Stage = "pack"      // files are packed
	StageUpload    Stage = "upload"    // they are uploaded
	StageChange    Stage = "change"    // the isolation or the runtime is another than the live version's
	StageBuild     Stage = "build"     // dependencies are installed, if there are any
	StageLog       Stage = "log"       // Text is a line of their installer
	StageBuilt     Stage = "built"     // they are installed; Cached is known
	StageStart     Stage = "start"     // the server loads the version and tries it
	StageUnchanged Stage = "unchanged" // nothing differs from the live version
	StageDone      Stage = "done"      // the version answers calls
)

// Event is the progress of a deploy.
type Event struct {
	Stage    Stage
	Manifest Manifest
	// Text is what the server says, from StageChange on.
	Text string
	// Cached is true at StageBuilt if the dependencies were installed before.
	Cached bool
	// Files is how many are uploaded, Bytes how much compressed; known from
	// StageUpload on.
	Files int
	Bytes int64
	// Took is the time since the deploy began.
	Took time.Duration
}

// Deploy packs dir, uploads it and makes it the live version of the function
// that dir's hearth.yaml describes. It returns once that version answers calls.
// If it fails, the version that was live stays so. Errors: those of
// LoadManifest, Pack, UploadArtifact and PutFunction; CodeInvalid with the
// installer's message if dependencies cannot be installed; CodeConflict with
// opts.New if the function exists, and if it has another generation than
// opts.Generation. When ctx ends, the server gives up too.
func (c *Client) Deploy(ctx context.Context, dir string, opts DeployOptions) (Function, error) {
	began := time.Now()
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return Function{}, hearth.Errorf(hearth.CodeInvalid, "%s is not a directory", dir).
			WithHint("name the directory that holds the %s", ManifestName)
	}
	m, err := LoadManifest(dir)
	if err != nil {
		return Function{}, err
	}
	if opts.Override != nil {
		opts.Override(&m)
		if err := m.Validate(); err != nil {
			return Function{}, err
		}
	}
	var files int
	var bytes int64
	report := func(e Event) {
		if opts.OnEvent != nil {
			e.Manifest, e.Files, e.Bytes, e.Took = m, files, bytes, time.Since(began)
			opts.OnEvent(e)
		}
	}
	report(Event{Stage: StagePack})
	archive, files, bytes, err := packTemp(dir, opts.Pack)
	if err != nil {
		return Function{}, err
	}
	defer archive.Close()
	report(Event{Stage: StageUpload})
	artifact, err := c.UploadArtifact(ctx, archive, bytes)
	if err != nil {
		return Function{}, err
	}
	r := request{
		method: http.MethodPut, path: []string{"v1", "functions", m.Name}, query: url.Values{},
		header: http.Header{"Accept": {ndjson + ", application/json"}},
	}
	maps.Copy(r.header, ifMatch(opts.Generation))
	in := functionInput{Config: m.Config, Code: &Code{Artifact: artifact.Digest}}
	if opts.New {
		r.method, r.path, in.Name = http.MethodPost, []string{"v1", "functions"}, m.Name
	}
	if opts.Preview {
		r.query.Set("preview", "true")
	} else {
		m.announceAliases(r.query)
	}
	if opts.NoCache {
		r.query.Set("fresh", "true")
	}
	r.in = in
	f, err := c.follow(ctx, r, report)
	if err != nil {
		return Function{}, err
	}
	if !opts.Preview {
		if err := c.setAliases(ctx, m, f.Live); err != nil {
			return f, err
		}
	}
	report(Event{Stage: StageDone})
	return f, nil
}

// ndjson is the media type in which the server tells how a deploy goes.
const ndjson = "application/x-ndjson"

// follow sends a deploy and reports what the server tells of it.
func (c *Client) follow(ctx context.Context, r request, report func(Event)) (Function, error) {
	resp, err := c.do(ctx, r)
	if err != nil {
		return Function{}, err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	if media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); media != ndjson {
		return Function{}, c.notHearth(resp, nil)
	}
	for {
		var e struct {
			Type, Step, Text string
			Cached           bool
			Function         Function
			Error            problem
		}
		switch err := lines.Decode(&e); {
		case errors.Is(err, io.EOF):
			return Function{}, c.transportError(io.ErrUnexpectedEOF)
		case isJSONError(err):
			return Function{}, c.notHearth(resp, err)
		case err != nil:
			return Function{}, c.transportError(err)
		}
		switch e.Type {
		case "step":
			report(Event{Stage: Stage(e.Step), Text: e.Text, Cached: e.Cached})
		case "log":
			report(Event{Stage: StageLog, Text: e.Text})
		case "result":
			return c.located(e.Function), nil
		case "error":
			if e.Error.Code == "" {
				e.Error.Code = hearth.CodeInternal
			}
			return Function{}, e.Error.err()
		}
	}
}

// packTemp packs dir into a file without a name, ready to be read; it is gone
// when the caller closes it.
func packTemp(dir string, opts PackOptions) (f *os.File, files int, bytes int64, err error) {
	f, err = os.CreateTemp("", "hearth-deploy-*.tar.gz")
	if err != nil {
		return nil, 0, 0, hearth.Errorf(hearth.CodeUnavailable, "cannot make a temporary file: %w", err).
			WithHint("set TMPDIR to a directory you can write to")
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, 0, 0, hearth.Errorf(hearth.CodeUnavailable, "cannot remove a temporary file: %w", err)
	}
	if files, err = Pack(dir, f, opts); err != nil {
		var path *os.PathError
		if hearth.ErrorCode(err) == hearth.CodeInternal && errors.As(err, &path) {
			err = hearth.Errorf(hearth.CodeUnavailable, "cannot write a temporary file: %w", err)
		}
		return nil, 0, 0, err
	}
	if bytes, err = f.Seek(0, 1); err == nil {
		_, err = f.Seek(0, 0)
	}
	return f, files, bytes, err
}
