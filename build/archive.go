package build

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/hearthrun/hearth"
)

func readTarGz(src *source, t *tree) error {
	gz, err := gzip.NewReader(bufio.NewReader(src))
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	defer gz.Close()
	return readTarStream(gz, t)
}

func readTar(src *source, t *tree) error { return readTarStream(bufio.NewReader(src), t) }

func readTarStream(r io.Reader, t *tree) error {
	// Headers and padding count too: a compressed stream of nothing but those
	// must end as well.
	r = &capped{r: r, left: 2*t.limits.Unpacked + int64(t.limits.Files)*4096, err: t.tooMuch}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// What follows the end mark is read so that a checksum at the end of
			// the compressed stream is verified.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		exec := h.Mode&0o111 != 0
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			err = t.file(h.Name, exec, h.Size, tr)
		case tar.TypeDir:
			err = t.dir(h.Name)
		case tar.TypeSymlink:
			err = t.symlink(h.Name, h.Linkname)
		case tar.TypeLink:
			err = t.hardlink(h.Name, h.Linkname)
		case tar.TypeXGlobalHeader:
			err = nil // comments of git archive
		case tar.TypeChar, tar.TypeBlock:
			err = badEntry(h.Name, "is a device file", "leave it out: a function has only plain files, directories and links")
		case tar.TypeFifo:
			err = badEntry(h.Name, "is a named pipe", "leave it out: a function has only plain files, directories and links")
		default:
			err = badEntry(h.Name, fmt.Sprintf("is of the unknown type %q", h.Typeflag), "leave it out: a function has only plain files, directories and links")
		}
		if err != nil {
			return err
		}
	}
}

// capped fails with err once more than left bytes were read.
type capped struct {
	r    io.Reader
	left int64
	err  func() error
}

// Read implements io.Reader.
func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, c.err()
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	return n, err
}

func readZip(src *source, t *tree) error {
	spool, err := os.CreateTemp("", "hearth-upload-*")
	if err != nil {
		return hostError(err)
	}
	defer spool.Close()
	// Without a name it goes away with the process, however that ends.
	if err := os.Remove(spool.Name()); err != nil {
		return hostError(err)
	}
	size, err := io.Copy(spool, src)
	if err != nil {
		if src.err != nil {
			return src.err
		}
		return hostError(err)
	}
	// NewReader holds the whole directory in memory; the cap keeps an archive of
	// a million empty entries from filling it.
	dir := &cappedAt{r: spool, left: int64(t.limits.Files)*320 + 256<<10}
	zr, err := zip.NewReader(dir, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return err
	}
	dir.off = true
	if len(zr.File) > t.limits.Files {
		return t.tooMany()
	}
	for _, f := range zr.File {
		if err := readZipEntry(f, t); err != nil {
			return err
		}
	}
	return nil
}

func readZipEntry(f *zip.File, t *tree) error {
	mode := f.Mode()
	switch {
	case f.Flags&1 != 0:
		return badEntry(f.Name, "is encrypted", "make the archive without a password")
	case mode.IsDir():
		return t.dir(f.Name)
	case !mode.IsRegular() && mode.Type() != fs.ModeSymlink:
		return badEntry(f.Name, "is a device, pipe or socket", "leave it out: a function has only plain files, directories and links")
	case f.UncompressedSize64 > 1<<62:
		return t.tooMuch()
	}
	r, err := f.Open()
	if errors.Is(err, zip.ErrAlgorithm) {
		return badEntry(f.Name, fmt.Sprintf("is compressed with the unknown method %d", f.Method), "make the archive with the usual method (deflate)")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if mode.Type() == fs.ModeSymlink {
		var target strings.Builder
		if _, err := io.Copy(&target, io.LimitReader(r, maxLink+1)); err != nil {
			return err
		}
		return t.symlink(f.Name, target.String())
	}
	return t.file(f.Name, mode&0o111 != 0, int64(f.UncompressedSize64), r)
}

// cappedAt fails once more than left bytes were read, until off is set.
type cappedAt struct {
	r    io.ReaderAt
	left int64
	off  bool
}

// ReadAt implements io.ReaderAt.
func (c *cappedAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	if c.off {
		return n, err
	}
	if c.left -= int64(n); c.left < 0 {
		return 0, hearth.Errorf(hearth.CodeInvalid, "the archive's directory is too large").
			WithHint("use fewer files and shorter names")
	}
	return n, err
}
