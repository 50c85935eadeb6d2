package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/egress"
)

// image is a root file system that sandboxes share.
type image struct {
	dir         string
	language    string
	interpreter string // path inside, empty for "provided"
	env         []string
	release     func() // lets go of dir
}

// storedImage returns the root file system of a runtime. The caller releases it.
func (d *Driver) storedImage(ctx context.Context, name string) (image, error) {
	if d.images == nil {
		return image{}, hearth.Errorf(hearth.CodeNotFound, "there is no image of the runtime %s", name).
			WithHint("hearth images build")
	}
	img, err := d.images.Find(ctx, name)
	if err != nil {
		return image{}, err
	}
	root, err := d.images.RootFS(ctx, img)
	if err != nil {
		return image{}, err
	}
	return image{dir: root.Dir, language: img.Language, interpreter: img.Interpreter, env: img.Env, release: root.Release}, nil
}

// layers are directories that are laid over images: places to mount on, the
// sandbox's own files of /etc, and its first process. They depend on little, so
// they are made once and shared.
type layers struct {
	dir    string
	helper [sha256.Size]byte      // digest of helperBinary, which is too large to read for each start
	sync   func(dir string) error // syncFS, but in tests
	mu     sync.Mutex
}

// newLayer begins the names of layers that are being made.
const newLayer = ".new-"

// clean removes what an earlier process has not finished.
func (l *layers) clean() error {
	entries, err := os.ReadDir(l.dir)
	for _, e := range entries {
		if err == nil && strings.HasPrefix(e.Name(), newLayer) {
			err = os.RemoveAll(filepath.Join(l.dir, e.Name()))
		}
	}
	return err
}

// syncFS returns when everything in the file system of dir is on the disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// places are mounted on in every sandbox.
var places = []string{"proc", "dev", "tmp", "var/tmp", "sys", "run", "function"}

// helperPath is where the first process is inside; the image has nothing there.
const helperPath = "/hearth/init/init"

// get returns the layer for a policy and the targets of mounts.
func (l *layers) get(policy hearth.Egress, mounts []driver.Mount) (string, error) {
	resolv := ""
	if policy == hearth.EgressInternet {
		resolv = "nameserver " + egress.Gateway + "\n"
	}
	files := map[string]string{
		"etc/hosts":       "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
		"etc/hostname":    "sandbox\n",
		"etc/resolv.conf": resolv,
	}
	dirs := slices.Clone(places)
	for _, m := range mounts {
		dirs = append(dirs, m.Target[1:])
	}
	slices.Sort(dirs)
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%q %q\n", name, files[name])
	}
	h.Write(l.helper[:])
	fmt.Fprintf(h, "%q", dirs)
	dir := filepath.Join(l.dir, hex.EncodeToString(h.Sum(nil)[:12]))

	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(l.dir, newLayer)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for _, name := range dirs {
		if err := os.MkdirAll(filepath.Join(tmp, name), 0o755); err != nil {
			return "", err
		}
	}
	files[helperPath[1:]] = string(helperBinary)
	for name, content := range files {
		p := filepath.Join(tmp, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	if err := publish(tmp); err != nil {
		return "", err
	}
	// What has its name is trusted, also after a loss of power.
	if err := l.sync(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// publish makes everything below dir readable for the sandboxes' users,
// whatever umask the server runs with.
func publish(dir string) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() || strings.HasSuffix(path, helperPath) {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}

// place is the directory that every mounter hides with a file system of its
// own. Users of sandboxes can pass it, other than the data directory perhaps.
const place = "/run/hearth"

// mounter mounts the sandboxes' root file systems and starts runtimes that see
// them, in a mount namespace of its own: the host's mounts do not change, and
// when this process ends, however it does, nothing is left.
type mounter struct {
	mu     sync.Mutex
	jobs   chan func() // guarded by mu; nil before the first job
	closed bool        // guarded by mu
	gone   chan struct{}
}

// do runs fn on the thread that is in the namespace.
func (m *mounter) do(fn func() error) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return os.ErrClosed
	}
	if m.jobs == nil {
		if err := os.MkdirAll(place, 0o711); err != nil {
			m.mu.Unlock()
			return err
		}
		ready := make(chan error, 1)
		jobs, gone := make(chan func()), make(chan struct{})
		go serveMounts(jobs, gone, ready)
		if err := <-ready; err != nil {
			<-gone
			m.mu.Unlock()
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		m.jobs, m.gone = jobs, gone
	}
	result := make(chan error, 1)
	m.jobs <- func() { result <- fn() }
	m.mu.Unlock()
	return <-result
}

func (m *mounter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.jobs != nil && !m.closed {
		close(m.jobs)
		<-m.gone
	}
	m.closed = true
}

// serveMounts enters a new mount namespace and runs jobs there. Its thread ends
// with it, and the namespace with the thread and the sandboxes.
func serveMounts(jobs <-chan func(), gone chan<- struct{}, ready chan<- error) {
	defer close(gone)
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == os.Getpid() {
		// Not the main thread, which could not end.
		again := make(chan struct{})
		go serveMounts(jobs, again, ready)
		<-again
		runtime.UnlockOSThread()
		return
	}
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		// What the host unmounts must go here as well.
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	if err == nil {
		err = unix.Mount("tmpfs", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size=16m")
	}
	ready <- err
	if err != nil {
		return
	}
	for job := range jobs {
		job()
	}
}

// rootPath and scratchPath are directories in the mounter's namespace: the
// sandbox's root, and the file system for all that it can write.
func rootPath(id string) string    { return filepath.Join(place, id, "root") }
func scratchPath(id string) string { return filepath.Join(place, id, "scratch") }

// scratchDirs are the places that can be written to, by their directories in
// scratchPath.
var scratchDirs = []struct{ dir, target string }{{"tmp", "/tmp"}, {"vartmp", "/var/tmp"}, {"shm", "/dev/shm"}}

// mountRoot mounts what the sandbox sees. It runs on the mounter's thread.
// After an error unmountRoot frees what there is.
func mountRoot(id, layer, image string) error {
	for _, dir := range []string{filepath.Dir(rootPath(id)), rootPath(id)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// By descriptors: paths could contain what options give a meaning to.
	var lower []string
	for _, dir := range []string{layer, image} {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		defer func() { _ = unix.Close(fd) }()
		lower = append(lower, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	err := unix.Mount("overlay", rootPath(id), "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "lowerdir="+strings.Join(lower, ":"))
	if err != nil {
		return fmt.Errorf("mount the root file system: %w", err)
	}
	return nil
}

// mountScratch mounts a file system of its own for all that the sandbox can
// write to, so that one size bounds it.
func mountScratch(id string, size int64) error {
	dir := scratchPath(id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("mode=0755,size=%d,nr_inodes=%d", size, max(1024, size/4096)))
	if err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	for _, s := range scratchDirs {
		p := filepath.Join(dir, s.dir)
		if err := os.Mkdir(p, 0o777); err != nil {
			return err
		}
		if err := unix.Chmod(p, 0o1777); err != nil {
			return err
		}
	}
	return nil
}

// unmountRoot lets go of the mounts: a running sandbox has its own.
func unmountRoot(id string) {
	for _, dir := range []string{scratchPath(id), rootPath(id)} {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = unix.Rmdir(dir)
	}
	_ = unix.Rmdir(filepath.Dir(rootPath(id)))
}
