package images

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
)

// maxLinks is how many symbolic links one path may go through.
const maxLinks = 64

var errLinks = errors.New("too many symbolic links")

// resolve returns the path below root that p means to somebody for whom root
// is /: symbolic links are followed within root, and ".." stops there. The
// result has no links in it, except as its last element if last is false.
// Elements need not exist.
func resolve(root *os.Root, p string, last bool) (string, error) {
	rest := strings.Split(p, "/")
	done := "."
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done) // of "." this is "."
			continue
		}
		next := path.Join(done, name)
		if len(rest) == 0 && !last {
			return next, nil
		}
		info, err := root.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			done = next
			continue
		} else if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", errLinks
		}
		to, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			done = "."
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return done, nil
}

// readFile reads at most limit bytes of a regular file, following links.
func readFile(root *os.Root, p string, limit int64) ([]byte, error) {
	p, err := resolve(root, p, true)
	if err != nil {
		return nil, err
	}
	info, err := root.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fs.ErrInvalid
	}
	return root.ReadFile(p)
}
