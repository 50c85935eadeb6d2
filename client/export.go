package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/hearthrun/hearth"
)

// YAML returns m as a hearth.yaml with what differs from the defaults, always in
// the same order. Labels that belong to Hearth are left out. Errors: CodeInvalid if
// m is not valid.
func (m Manifest) YAML() ([]byte, error) {
	m.Config = m.Config.Clone()
	maps.DeleteFunc(m.Labels, func(k, _ string) bool { return strings.HasPrefix(k, hearth.LabelPrefix) })
	if m.Egress == hearth.EgressInternet {
		m.Egress = "" // what it is by default wherever it can be enforced
	}
	set, defaults := reflect.ValueOf(&m.Config).Elem(), reflect.ValueOf(hearth.Config{}.WithDefaults())
	for i := range set.NumField() {
		if reflect.DeepEqual(set.Field(i).Interface(), defaults.Field(i).Interface()) {
			set.Field(i).SetZero()
		}
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(m), enc.Close()); err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the configuration of %s cannot be written: %w", m.Name, err)
	}
	if _, err := ParseManifest(m.Name+"/"+ManifestName, b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Source downloads the code of a version as it was uploaded, a tar.gz, and copies
// it to w. Errors: CodeNotFound; CodeUnavailable if it broke off.
func (c *Client) Source(ctx context.Context, name string, version int, w io.Writer) error {
	resp, err := c.do(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "versions", strconv.Itoa(version), "source"},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out := &writer{w: w}
	if _, err := io.Copy(out, resp.Body); err != nil {
		if out.err != nil {
			return out.err
		}
		return c.transportError(err)
	}
	return nil
}

// Export writes a function as files into dir/NAME: its code as it was uploaded, and
// a hearth.yaml, so that applying them makes the same function. What Pack would
// pack of a directory that exists is replaced, the rest of it stays. It returns
// what is not in the files: of the code what Pack will leave out, and aliases that
// lead to other versions than the live one. Errors: those of Source, and CodeInvalid if
// dir cannot be written to or the code makes no sense.
func (c *Client) Export(ctx context.Context, f Function, dir string) (leftOut []string, err error) {
	if err := hearth.ValidateName(f.Name); err != nil {
		return nil, err // it becomes a path
	}
	aliases, err := c.Aliases(ctx, f.Name)
	if err != nil {
		return nil, err
	}
	written, others := exportAliases(aliases, f.Live)
	manifest, err := Manifest{Name: f.Name, Config: f.Config, Aliases: written}.YAML()
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(dir, ".hearth-export-")
	if err != nil {
		return nil, unwritable(err)
	}
	defer os.RemoveAll(temp) //nolint:errcheck // what could be removed is
	if err := os.Chmod(temp, 0o755); err != nil {
		return nil, unwritable(err)
	}
	root, err := os.OpenRoot(temp)
	if err != nil {
		return nil, unwritable(err)
	}
	defer root.Close()
	r, w := io.Pipe()
	downloaded := make(chan error, 1)
	go func() {
		err := c.Source(ctx, f.Name, f.Live, w)
		w.CloseWithError(err) //nolint:errcheck // it returns none
		downloaded <- err
	}()
	names, err := extract(r, root)
	r.CloseWithError(errors.New("no more is read")) //nolint:errcheck // it returns none
	// What broke the download off says more than that the archive ends early.
	if derr := <-downloaded; derr != nil && hearth.ErrorCode(derr) != hearth.CodeInternal {
		err = derr
	}
	if err == nil {
		err = root.WriteFile(ManifestName, manifest, 0o644)
	}
	if err != nil {
		return nil, unwritable(err)
	}
	if leftOut, err = notPacked(root, names); err != nil {
		return nil, err
	}
	for _, name := range others {
		leftOut = append(leftOut, "the alias "+name+", which leads to other versions than the live one")
	}
	return leftOut, replace(dir, filepath.Base(temp), f.Name)
}

// extract writes an archive into root, without the manifest at its top, and returns
// the names of its files and links.
func extract(r io.Reader, root *os.Root) ([]string, error) {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return nil, badSource(err)
	}
	tr := tar.NewReader(gz)
	var names []string
	links := map[string]string{}
	var total int64
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, badSource(err)
		}
		name := path.Clean(h.Name)
		if !filepath.IsLocal(filepath.FromSlash(name)) || strings.Contains(name, `\`) {
			return nil, badSource(fmt.Errorf("the name %q leads out of it", clip(h.Name)))
		}
		if total += h.Size; len(names) >= DefaultMaxFiles || total > DefaultMaxBytes {
			return nil, badSource(fmt.Errorf("it has more than %d files or %s", DefaultMaxFiles, hearth.Bytes(DefaultMaxBytes)))
		}
		if name == ManifestName {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.MkdirAll(name, 0o755); err != nil {
				return nil, unwritable(err)
			}
			continue
		case tar.TypeSymlink:
			links[name] = h.Linkname
		case tar.TypeReg:
			if err := writeFile(root, name, h, tr); err != nil {
				return nil, err
			}
		default:
			return nil, badSource(fmt.Errorf("%q is neither a file nor a link", clip(name)))
		}
		names = append(names, name)
	}
	// Last of all, so that nothing is written through one.
	for name, target := range links {
		if path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(name), target)) {
			return nil, badSource(fmt.Errorf("the link %q leads out of it", clip(name)))
		}
		if err := errors.Join(root.MkdirAll(path.Dir(name), 0o755), root.Symlink(target, name)); err != nil {
			return nil, unwritable(err)
		}
	}
	return names, nil
}

func writeFile(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return unwritable(err)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|h.FileInfo().Mode().Perm()&0o111)
	if err != nil {
		return unwritable(err)
	}
	out := &writer{w: f}
	_, err = io.Copy(out, r)
	switch cerr := f.Close(); {
	case out.err != nil:
		return unwritable(out.err)
	case err != nil:
		return badSource(err)
	default:
		return unwritable(cerr)
	}
}

// notPacked returns which of the names Pack would leave out.
func notPacked(root *os.Root, names []string) ([]string, error) {
	entries, err := collect(root)
	if err != nil {
		return nil, err
	}
	packed := map[string]bool{}
	for _, e := range entries {
		packed[e.name] = true
	}
	var out []string
	for _, n := range names {
		if !packed[n] {
			out = append(out, n)
		}
	}
	return out, nil
}

// replace makes what Pack packs of the directory to what is in from, both in dir.
// What else is in to, such as .git, stays.
func replace(dir, from, to string) error {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return unwritable(err)
	}
	defer top.Close()
	if err := top.Rename(from, to); err == nil || !errors.Is(err, fs.ErrExist) {
		return unwritable(err)
	}
	old, err := top.OpenRoot(to)
	if err != nil {
		return unwritable(err)
	}
	defer old.Close()
	entries, err := collect(old)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := old.Remove(e.name); err != nil {
			return unwritable(err)
		}
		for d := path.Dir(e.name); d != "." && old.Remove(d) == nil; d = path.Dir(d) {
			continue // directories go with their last file
		}
	}
	return unwritable(fs.WalkDir(top.FS(), from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == from {
			return err
		}
		target := path.Join(to, strings.TrimPrefix(p, from))
		if d.IsDir() {
			return top.MkdirAll(target, 0o755)
		}
		return top.Rename(p, target)
	}))
}

func badSource(err error) error {
	return hearth.Errorf(hearth.CodeInvalid, "the source that the server sent cannot be used: %w", err).
		WithHint("is this the address of a Hearth server, of a version that fits this client?")
}

// unwritable is the error for a directory of the user's that cannot be written to.
func unwritable(err error) error {
	var h *hearth.Error
	if err == nil || errors.As(err, &h) {
		return err
	}
	return (&hearth.Error{Code: hearth.CodeInvalid, Message: err.Error(), Err: err}).
		WithHint("choose a directory that you can write to")
}
