package api

import (
	"context"
	"io"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
)

// maxBuilds is how many dependency builds run at the same time; others wait.
const maxBuilds = 2

// Builder installs dependencies; package server joins package build to it.
type Builder interface {
	// Manifest returns which file of the source in dir names dependencies that
	// are to be installed, "" if there are none. Errors: CodeInvalid for source
	// that cannot be built.
	Manifest(dir, language string) (string, error)
	// Build writes the source and its dependencies to r.Out. Errors: CodeInvalid
	// with the installer's message if they cannot be installed, and those of the
	// driver. On any error, and when ctx ends, nothing remains but r.Out.
	Build(ctx context.Context, r BuildRequest) (BuildResult, error)
}

// BuildRequest is one dependency build.
type BuildRequest struct {
	Isolation string         // name of the driver
	Runtime   driver.Runtime // one of that driver
	Source    string         // directory with the source
	Out       string         // empty directory for the result
	Log       io.Writer      // gets the installer's output as it comes
	Fresh     bool           // ignores what was installed before
}

// BuildResult is what a build has made.
type BuildResult struct {
	build.Summary
	// Cached is true if the dependencies had been installed before.
	Cached bool
}

// source is the code of a deploy, stored and without dependencies.
type source struct {
	digest, dir string
	// manifest is the file that names dependencies to install, "" if none.
	manifest string
}

// version returns the version of a deploy without its artifact, if that is yet
// to be built.
func (src source) version(v hearth.Version) hearth.Version {
	if src.manifest == "" {
		v.Artifact = src.digest
	} else {
		v.Source = src.digest
	}
	return v
}

// source stores the code of a deploy, unless it is there, and checks it. was is
// the live version, nil if there is none.
func (s *API) source(ctx context.Context, d deployment, was *hearth.Version, language, handler string) (src source, err error) {
	switch {
	case d.code == nil && was.Source != "":
		src.digest = was.Source
	case d.code == nil:
		src.digest = was.Artifact
	case (len(d.code.Files) == 0) == (d.code.Artifact == ""):
		return src, hearth.Errorf(hearth.CodeInvalid, "code needs either files or an artifact").
			WithHint(`write "code": {"files": {"main.py": "…"}} or "code": {"artifact": "sha256:…"}`)
	case d.code.Artifact != "":
		src.digest = d.code.Artifact
	default:
		sum, err := s.store(ctx, s.uploads, func(dir string) (build.Summary, error) {
			sum, err := build.WriteFiles(ctx, d.code.Files, dir, s.Limits)
			if err != nil {
				return sum, err
			}
			return sum, build.CheckHandler(dir, language, handler)
		})
		if err != nil {
			return src, err
		}
		src.digest = sum.Digest
	}
	src.dir, err = s.Artifacts.ArtifactDir(src.digest)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return src, (&hearth.Error{Code: hearth.CodeNotFound, Message: "there is no artifact " + src.digest, Err: err}).
			WithHint("upload the code again to POST /v1/artifacts")
	}
	if err != nil {
		return src, err
	}
	if err := build.CheckHandler(src.dir, language, handler); err != nil {
		return src, err
	}
	src.manifest, err = s.Builder.Manifest(src.dir, language)
	return src, err
}

// build installs the dependencies of src for v and returns the artifact.
func (s *API) build(ctx context.Context, v hearth.Version, src source, rt driver.Runtime, fresh bool) (string, error) {
	p := progressOf(ctx)
	p.step(stepBuild, "installing the dependencies of %s for %s on %s", src.manifest, rt.Name, v.Config.Isolation)
	log := &installerLog{to: p}
	if len(s.builds) == cap(s.builds) {
		p.send(deployEvent{Type: "log", Text: "hearth: waiting for other builds to end"})
	}
	var res BuildResult
	began := time.Now()
	_, err := s.store(ctx, s.builds, func(dir string) (build.Summary, error) {
		var err error
		res, err = s.Builder.Build(ctx, BuildRequest{
			Isolation: v.Config.Isolation, Runtime: rt, Source: src.dir, Out: dir, Log: log, Fresh: fresh,
		})
		return res.Summary, err
	})
	log.close()
	if err != nil {
		// The client is told as well, but it is the host's operator who sees
		// that a registry or a proxy fails everybody.
		if ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "dependencies could not be installed", "function", v.Function, "isolation", v.Config.Isolation,
				"runtime", rt.Name, "took", time.Since(began).Round(time.Millisecond), "error", err)
		}
		return "", err
	}
	took := time.Since(began).Round(time.Millisecond)
	text := "dependencies: installed in " + took.String()
	if res.Cached {
		text = "dependencies: cached"
	}
	p.send(deployEvent{Type: "step", Step: stepBuilt, Text: text, Cached: res.Cached})
	s.Logger.InfoContext(ctx, "installed dependencies", "function", v.Function, "isolation", v.Config.Isolation,
		"runtime", rt.Name, "cached", res.Cached, "files", res.Files, "bytes", res.Bytes, "took", took)
	return res.Digest, nil
}
