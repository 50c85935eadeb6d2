// Package build turns source code into an artifact: a directory of plain files
// with a content address. What arrives is hostile: every name is checked, every
// limit is enforced while the archive streams in, and all writing goes through
// an os.Root, so nothing can land outside of the given directory.
//
// What an artifact may contain: regular files (mode 0644, or 0755 if they were
// executable), directories (0755), and symbolic links that stay inside of the
// artifact. Hard links become copies. Times, owners and other mode bits are
// dropped. A single top-level directory is kept as it is.
package build

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
)

// Format is the form in which source code arrives.
type Format string

// The formats Extract reads.
const (
	Zip   Format = "zip"
	TarGz Format = "tar.gz"
	Tar   Format = "tar"
)

// Limits bound what an artifact may be. A zero field means its default.
type Limits struct {
	// Compressed is the greatest size of the archive as it arrives, in bytes;
	// default 50 MiB.
	Compressed int64
	// Unpacked is the greatest size of all files together, in bytes; default
	// 250 MiB. It is what stops decompression bombs.
	Unpacked int64
	// File is the greatest size of one file, in bytes; default Unpacked.
	File int64
	// Files is the greatest number of entries, directories included; default
	// 20,000.
	Files int
	// PathLength is the greatest length of a path in bytes; default 512.
	PathLength int
	// Depth is the greatest number of segments of a path; default 40.
	Depth int
}

// WithDefaults returns l with zero fields set.
func (l Limits) WithDefaults() Limits {
	if l.Compressed <= 0 {
		l.Compressed = 50 << 20
	}
	if l.Unpacked <= 0 {
		l.Unpacked = 250 << 20
	}
	if l.File <= 0 || l.File > l.Unpacked {
		l.File = l.Unpacked
	}
	if l.Files <= 0 {
		l.Files = 20_000
	}
	if l.PathLength <= 0 {
		l.PathLength = 512
	}
	if l.Depth <= 0 {
		l.Depth = 40
	}
	return l
}

// Summary tells what an artifact is.
type Summary struct {
	// Digest is "sha256:" and 64 hex digits over the canonical listing. The same
	// content has the same digest whichever format it came in.
	Digest string
	// Files counts regular files and symbolic links.
	Files int
	// Bytes is the size of the regular files together.
	Bytes int64
}

// Extract reads an archive from r and writes its files to dir, an existing
// empty directory that the caller removes if there is an error. It reads r no
// further than limits allow. A zip archive is first spooled to an unlinked
// temporary file. Errors: CodeInvalid, naming the entry, for whatever is wrong
// with the archive; CodeCanceled when r or ctx broke off; CodeUnavailable when
// the host cannot write.
func Extract(ctx context.Context, r io.Reader, format Format, dir string, limits Limits) (Summary, error) {
	_, sum, err := extract(ctx, r, format, dir, limits)
	return sum, err
}

// extract is Extract and returns what is in the tree, too.
func extract(ctx context.Context, r io.Reader, format Format, dir string, limits Limits) (map[string]*node, Summary, error) {
	limits = limits.WithDefaults()
	src := &source{ctx: ctx, r: r, left: limits.Compressed, limit: limits.Compressed}
	var read func(*source, *tree) error
	switch format {
	case Zip:
		read = readZip
	case TarGz:
		read = readTarGz
	case Tar:
		read = readTar
	default:
		return nil, Summary{}, hearth.Errorf(hearth.CodeInvalid, "the format %q is unknown", string(format)).
			WithHint("send a zip, tar.gz or tar archive")
	}
	t, err := openTree(ctx, dir, limits)
	if err != nil {
		return nil, Summary{}, err
	}
	defer t.close()
	if err := read(src, t); err != nil {
		return nil, Summary{}, src.explain(err, format)
	}
	sum, err := t.finish()
	return t.nodes, sum, err
}

// WriteFiles writes files, paths with their contents, to dir, an existing empty
// directory that the caller removes if there is an error. The rules and errors
// are those of Extract; limits.Compressed does not apply.
func WriteFiles(ctx context.Context, files map[string]string, dir string, limits Limits) (Summary, error) {
	t, err := openTree(ctx, dir, limits.WithDefaults())
	if err != nil {
		return Summary{}, err
	}
	defer t.close()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, "/") {
			return Summary{}, badEntry(name, "is the name of a directory", "leave directories out; they are made for the files in them")
		}
		if err := t.file(name, false, int64(len(files[name])), strings.NewReader(files[name])); err != nil {
			return Summary{}, err
		}
	}
	return t.finish()
}

// source is the archive as it arrives, cut off at its limit.
type source struct {
	ctx   context.Context
	r     io.Reader
	left  int64
	limit int64
	err   error // the first error other than io.EOF
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if err := s.ctx.Err(); err != nil {
		s.err = canceled(err)
		return 0, s.err
	}
	if s.left < 0 {
		s.err = tooLarge(s.limit)
		return 0, s.err
	}
	// One byte more than the limit is read, to tell its end from a longer one.
	if int64(len(p)) > s.left+1 {
		p = p[:s.left+1]
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if s.left < 0 {
		s.err = tooLarge(s.limit)
		return 0, s.err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = &hearth.Error{
			Code: hearth.CodeCanceled, Message: "the upload broke off",
			Hint: "send it again", Err: err,
		}
		return n, s.err
	}
	return n, err
}

// explain turns an error of a decoder into one for the user.
func (s *source) explain(err error, format Format) error {
	if s.err != nil {
		return s.err
	}
	var e *hearth.Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &hearth.Error{
			Code: hearth.CodeInvalid, Message: "the " + string(format) + " archive ends too early",
			Hint: "it was cut off on its way; make it again and send all of it", Err: err,
		}
	}
	return &hearth.Error{
		Code: hearth.CodeInvalid, Message: "this is not a readable " + string(format) + " archive",
		Hint: "check that the file is what its content type says, and that it is not damaged", Err: err,
	}
}

func tooLarge(limit int64) *hearth.Error {
	return hearth.Errorf(hearth.CodeInvalid, "the archive is larger than %s", hearth.Bytes(limit)).
		WithHint("leave out what the function does not need at run time (tests, caches, .git)")
}

func canceled(err error) *hearth.Error {
	code := hearth.CodeCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = hearth.CodeTimeout
	}
	return &hearth.Error{Code: code, Message: "unpacking was stopped", Err: err}
}

func badEntry(name, what, hint string) *hearth.Error {
	if len(name) > 120 {
		name = name[:120] + "…"
	}
	return hearth.Errorf(hearth.CodeInvalid, "the entry %q %s", name, what).WithHint("%s", hint)
}
