package build

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/hearthrun/hearth"
)

// List returns the files and symbolic links of an artifact in dir, by path.
// Errors: CodeCanceled, CodeUnavailable.
func List(ctx context.Context, dir string) ([]hearth.SourceFile, error) {
	nodes, err := readTree(ctx, dir)
	if err != nil {
		return nil, err
	}
	var list []hearth.SourceFile
	for _, p := range slices.Sorted(maps.Keys(nodes)) {
		switch n := nodes[p]; n.kind {
		case kindFile:
			list = append(list, hearth.SourceFile{Path: p, Executable: n.exec, SHA256: hex.EncodeToString(n.hash[:])})
		case kindLink:
			list = append(list, hearth.SourceFile{Path: p, Target: n.target})
		}
	}
	return list, nil
}

// Archive writes an artifact in dir to w as a tar.gz that Extract reads. The same
// artifact gives the same bytes. Errors: CodeCanceled, CodeUnavailable, and those
// of w.
func Archive(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return sourceError(err)
	}
	defer root.Close()
	// Only the kinds and sizes are used: hashing is cheap beside compression.
	nodes, err := readTree(ctx, dir)
	if err != nil {
		return err
	}
	gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(gz)
	for _, p := range slices.Sorted(maps.Keys(nodes)) {
		if err := ctx.Err(); err != nil {
			return canceled(err)
		}
		if err := archiveNode(tw, root, p, nodes[p]); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), gz.Close())
}

func archiveNode(tw *tar.Writer, root *os.Root, p string, n *node) error {
	h := &tar.Header{Name: p, Mode: 0o644, ModTime: mtime(), Format: tar.FormatPAX}
	switch n.kind {
	case kindDir:
		if n.child {
			return nil // it follows from what is in it
		}
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, p+"/", 0o755
		return tw.WriteHeader(h)
	case kindLink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, n.target, 0o777
		return tw.WriteHeader(h)
	}
	h.Typeflag, h.Size = tar.TypeReg, n.size
	if n.exec {
		h.Mode = 0o755
	}
	f, err := root.Open(p)
	if err != nil {
		return sourceError(err)
	}
	defer f.Close()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(tw, f, n.size)
	return err
}
