package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver/egress"
)

// What the engine has no option for, the driver does itself, as root, in the
// namespaces of the container whose helper waits: one file system of bounded
// size for all that can be written, mounts without devices and set-user-ID
// programs, and the network device. All of it ends with the container.

// writable are the places of the one file system, by its directories.
var writable = []struct{ dir, target string }{{"tmp", "/tmp"}, {"vartmp", "/var/tmp"}, {"shm", "/dev/shm"}}

// shared are file systems that engines give every container, of things of which
// the kernel has few for all containers and the host together: terminals and
// message queues.
var shared = []string{"/dev/pts", "/dev/mqueue"}

// mountInside finishes the file systems of the container of process pid: size
// bounds what can be written, in bytes, and targets become nosuid and nodev. The
// container loses what is shared, and cannot write to /proc any more.
func mountInside(pid int, size int64, targets []string) error {
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return err
	}
	defer ns.Close()
	scratch, err := newTmpfs(size)
	if err != nil {
		return fmt.Errorf("make a file system: %w", err)
	}
	defer func() { _ = unix.Close(scratch) }()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // which setns demands
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace: %w", err)
		}
		for _, t := range targets {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(unix.AT_FDCWD, t, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &attr); err != nil {
				return &os.PathError{Op: "restrict the mount", Path: t, Err: err}
			}
		}
		for _, dir := range shared {
			// EINVAL: nothing is mounted there.
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return &os.PathError{Op: "unmount", Path: dir, Err: err}
			}
		}
		// Without this the guest could ask to be spared when memory is short.
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/proc", unix.AT_SYMLINK_NOFOLLOW, &attr); err != nil {
			return &os.PathError{Op: "restrict the mount", Path: "/proc", Err: err}
		}
		return mountWritable(scratch)
	})
}

// newTmpfs returns a mount of a new file system that is nowhere yet.
func newTmpfs(size int64) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	for key, value := range map[string]string{
		"size": strconv.FormatInt(size, 10), "nr_inodes": strconv.FormatInt(max(1024, size/4096), 10), "mode": "0755",
	} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// mountWritable mounts the directories of scratch where programs write. The
// thread is in the container's mount namespace.
func mountWritable(scratch int) error {
	const first = "/tmp" // before, scratch is mounted as a whole here
	if err := unix.MoveMount(scratch, "", unix.AT_FDCWD, first, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount", Path: first, Err: err}
	}
	trees := make([]int, len(writable))
	for i, w := range writable {
		dir := path.Join(first, w.dir)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := unix.Chmod(dir, 0o1777); err != nil {
			return &os.PathError{Op: "chmod", Path: dir, Err: err}
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: dir, Err: err}
		}
		defer func() { _ = unix.Close(fd) }()
		trees[i] = fd
	}
	if err := unix.Unmount(first, unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: first, Err: err}
	}
	for i, w := range writable {
		if err := os.MkdirAll(w.target, 0o755); err != nil && !errors.Is(err, syscall.EROFS) {
			return err
		}
		err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, w.target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if errors.Is(err, unix.ENOENT) && w.target != first {
			continue // the image has no such place, and it cannot be written then
		}
		if err != nil {
			return &os.PathError{Op: "mount", Path: w.target, Err: err}
		}
	}
	return nil
}

// ownNetwork checks that the container of process pid has a network namespace of
// its own: whatever the engine was configured to, nothing of the user's runs in
// the host's.
func ownNetwork(pid int) error {
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return err
	}
	for _, host := range []string{"1", "self"} {
		if ns, err := os.Readlink("/proc/" + host + "/ns/net"); err == nil && ns == theirs {
			return errors.New("it is the host's")
		}
	}
	return nil
}

// attach gives the container of process pid its way to the internet.
func (d *Driver) attach(pid int, s *sandbox) error {
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	tun, err := egress.Attach(ns)
	if err != nil {
		return err
	}
	stack, err := egress.Start(tun, egress.Options{Log: d.log, Host: &d.network, Allow: s.allow})
	if err != nil {
		return err
	}
	s.mu.Lock()
	gone := s.destroying
	if !gone {
		s.egress = stack
	}
	s.mu.Unlock()
	if gone {
		return errors.Join(context.Canceled, stack.Close())
	}
	return nil
}

// explainAttach says why there is no way to the internet.
func explainAttach(err error) error {
	return hearth.Errorf(hearth.CodeUnsupported, "docker: cannot connect a sandbox to the internet: %w", err).
		WithHint("load the tun module and make %s readable and writable for root, or use egress: none", egress.TUNPath)
}

// onThread runs fn on a thread that ends with it: whatever namespaces fn has
// entered, nothing else runs there.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		// Not the main thread: the kernel would keep it as a zombie.
		if syscall.Gettid() == os.Getpid() {
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
