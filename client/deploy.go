package client

import (
	"context"
	"errors"
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
	// Progress is called before each step and once at the end; may be nil.
	Progress func(Step)
	// Pack holds the limits of the directory.
	Pack PackOptions
}

// Stage is a step of a deploy.
type Stage string

// The stages of a deploy, in their order.
const (
	StagePack   Stage = "pack"   // files are packed
	StageUpload Stage = "upload" // Files and Bytes are known
	StageStart  Stage = "start"  // the server loads the version and tries it
	StageDone   Stage = "done"   // Took is known
)

// Step is the progress of a deploy.
type Step struct {
	Stage    Stage
	Manifest Manifest
	// Files is how many are uploaded, Bytes how much compressed.
	Files int
	Bytes int64
	// Took is the time since the deploy began.
	Took time.Duration
}

// Deploy packs dir, uploads it and makes it the live version of the function
// that dir's hearth.yaml describes. It returns once that version answers calls.
// If it fails, the version that was live stays so. Errors: those of
// LoadManifest, Pack, UploadArtifact and PutFunction; CodeConflict with
// opts.New if the function exists.
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
	report := func(s Step) {
		if opts.Progress != nil {
			s.Manifest, s.Took = m, time.Since(began)
			opts.Progress(s)
		}
	}
	report(Step{Stage: StagePack})
	archive, files, bytes, err := packTemp(dir, opts.Pack)
	if err != nil {
		return Function{}, err
	}
	defer archive.Close()
	report(Step{Stage: StageUpload, Files: files, Bytes: bytes})
	artifact, err := c.UploadArtifact(ctx, archive, bytes)
	if err != nil {
		return Function{}, err
	}
	report(Step{Stage: StageStart, Files: files, Bytes: bytes})
	code := Code{Artifact: artifact.Digest}
	var f Function
	if opts.New {
		f, err = c.CreateFunction(ctx, m.Name, m.Config, code)
	} else {
		f, _, err = c.PutFunction(ctx, m.Name, m.Config, code, 0)
	}
	if err != nil {
		return Function{}, err
	}
	report(Step{Stage: StageDone, Files: files, Bytes: bytes})
	return f, nil
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
