package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/hearthrun/hearth"
)

// SourceFiles lists the files that Pack would pack of dir, by path, with their
// hashes. Errors: those of Pack.
func SourceFiles(dir string, opts PackOptions) ([]hearth.SourceFile, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, unreadable(err)
	}
	defer root.Close()
	entries, err := collect(root)
	if err != nil {
		return nil, err
	}
	if err := checkSize(dir, entries, opts); err != nil {
		return nil, err
	}
	files := make([]hearth.SourceFile, len(entries))
	for i, e := range entries {
		files[i] = hearth.SourceFile{Path: e.name, Target: e.target}
		if e.target == "" {
			files[i].Executable = e.mode&0o111 != 0
			if files[i].SHA256, err = hashFile(root, e.name); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

func hashFile(root *os.Root, name string) (string, error) {
	f, err := openFile(root, name)
	if err != nil {
		return "", unreadable(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", unreadable(err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// PlanFunction tells what a deploy of the configuration and the files would
// change; nil files keep the code. Nothing is changed. Errors: CodeInvalid,
// CodeUnsupported.
func (c *Client) PlanFunction(ctx context.Context, name string, cfg hearth.Config, files []hearth.SourceFile) (hearth.Plan, error) {
	return c.plan(ctx, Manifest{Name: name, Config: cfg}, files)
}

// plan is PlanFunction for a manifest.
func (c *Client) plan(ctx context.Context, m Manifest, files []hearth.SourceFile) (p hearth.Plan, err error) {
	r := request{
		method: http.MethodPost, path: []string{"v1", "functions", m.Name, "plan"}, query: url.Values{},
		in: struct {
			hearth.Config
			Files []hearth.SourceFile `json:"files,omitempty"`
		}{m.Config, files},
	}
	m.announceAliases(r.query)
	_, err = c.call(ctx, r, &p)
	return p, err
}
