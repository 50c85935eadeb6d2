package guest

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// WriteArchive writes the files, directories and symbolic links below dir as a
// tar stream for InitArchive. Equal directories make equal streams: names are
// sorted, owners and times left out.
func WriteArchive(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	buffered := bufio.NewWriterSize(w, chunkSize)
	out := tar.NewWriter(buffered)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return archiveEntry(out, root, name)
	})
	if err != nil {
		return fmt.Errorf("archive %s: %w", dir, err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

func archiveEntry(out *tar.Writer, root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	// No zip archive can have an older time, and functions make some of their files.
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), ModTime: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return out.WriteHeader(h)
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = root.Readlink(name); err != nil {
			return err
		}
		return out.WriteHeader(h)
	case 0:
	default:
		return fmt.Errorf("%s is neither a file, a directory nor a symbolic link", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}
