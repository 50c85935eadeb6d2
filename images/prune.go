package images

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// PruneOptions of Store.Prune.
type PruneOptions struct {
	// DryRun only tells what would be removed.
	DryRun bool
}

// Pruned is what Store.Prune removed.
type Pruned struct {
	Images []Image `json:"images"` // none but those that were replaced
	Bytes  int64   `json:"bytes"`  // freed, with layers and unpacked files
	// Held are replaced images that are in use and were left.
	Held []Image `json:"held"`
}

// Prune removes images that another of the same runtime has replaced (see Find)
// and that nobody holds (RootFS), and what killed processes have left. It waits
// for a Build that is under way. Errors: CodeUnavailable.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	p := Pruned{Images: []Image{}, Held: []Image{}}
	if _, err := os.Lstat(filepath.Join(s.dir, "locks")); errors.Is(err, fs.ErrNotExist) {
		return p, nil // nor is it created
	}
	build, err := s.lock(ctx, buildLock, true)
	if err != nil {
		return p, err
	}
	defer build.release()
	all, err := s.List(ctx)
	if err != nil {
		return p, err
	}
	keep := map[string]bool{} // ids and names of blobs
	for _, i := range all {
		if stays, _ := used(all, i.Runtime); stays.Digest == i.Digest {
			keep[i.id()] = true
			continue
		}
		l, err := s.tryLock(i.id(), true)
		if errors.Is(err, errLocked) {
			keep[i.id()] = true
			p.Held = append(p.Held, i)
			continue
		} else if err != nil {
			return p, err
		}
		p.Images = append(p.Images, i)
		if o.DryRun {
			l.release()
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, "images", i.id()+".json")); err != nil {
			l.release()
			return p, hostError("the image cannot be removed", err)
		}
		n, err := s.removeTree(filepath.Join("rootfs", i.id()), false)
		p.Bytes += n
		l.remove()
		if err != nil {
			return p, err
		}
	}
	// Blobs of the images that stay; a damaged one keeps nothing but itself.
	for _, id := range sortedKeys(keep) {
		for _, blob := range s.blobsOf(id) {
			keep[blob] = true
		}
	}
	for _, dir := range []string{"blobs/sha256", "rootfs"} {
		n, err := s.removeOthers(dir, keep, o.DryRun)
		p.Bytes += n
		if err != nil {
			return p, err
		}
	}
	for _, dir := range []string{"images", "tmp"} {
		n, err := s.removeLeft(dir, o.DryRun)
		p.Bytes += n
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// blobsOf returns the names of an image's blobs.
func (s *Store) blobsOf(id string) []string {
	b, err := os.ReadFile(filepath.Join(s.dir, "blobs/sha256", id))
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err != nil || json.Unmarshal(b, &m) != nil {
		return nil
	}
	names := []string{strings.TrimPrefix(m.Config.Digest, "sha256:")}
	for _, l := range m.Layers {
		names = append(names, strings.TrimPrefix(l.Digest, "sha256:"))
	}
	return names
}

// removeOthers removes what is in a directory of the store and not to be kept.
func (s *Store) removeOthers(dir string, keep map[string]bool, dry bool) (freed int64, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return 0, hostError("the images cannot be listed", err)
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		n, err := s.removeTree(filepath.Join(dir, e.Name()), dry)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// removeLeft removes from a directory what no living process works on. Who
// writes a record or a blob holds the lock of builds, as Prune does; who unpacks
// holds that of the image.
func (s *Store) removeLeft(dir string, dry bool) (freed int64, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return 0, hostError("the images cannot be listed", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") {
			continue // a record
		}
		var l *lock
		if id, ok := strings.CutPrefix(e.Name(), "rootfs-"); ok && validID(id) {
			if l, err = s.tryLock(id, true); errors.Is(err, errLocked) {
				continue
			} else if err != nil {
				return freed, err
			}
		}
		n, err := s.removeTree(filepath.Join(dir, e.Name()), dry)
		if l != nil {
			l.release()
		}
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// removeTree removes a file or directory of the store and returns its size.
func (s *Store) removeTree(name string, dry bool) (size int64, err error) {
	p := filepath.Join(s.dir, name)
	type inode struct{ device, number uint64 }
	seen := map[inode]bool{} // hard links count once
	err = filepath.WalkDir(p, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			i := inode{st.Dev, st.Ino}
			if seen[i] {
				return nil
			}
			seen[i] = true
		}
		size += info.Size()
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err == nil && !dry {
		err = os.RemoveAll(p)
	}
	if err != nil {
		return size, hostError("the image cannot be removed", err)
	}
	return size, nil
}
