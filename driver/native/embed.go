package native

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// If the build stops here with "pattern initbin/…: no matching files found",
// run scripts/build-init.sh (make build does): it builds the sandbox's
// pid 1 that embed_amd64.go and embed_arm64.go embed.

// helperHash names the embedded helper's content.
func helperHash() string {
	h := sha256.Sum256(helperBinary)
	return hex.EncodeToString(h[:8])
}

// openHelper puts the helper where it can be executed and returns the open
// file with the path to execute. A sealed memory file is best: nothing on the
// host or in a sandbox can change it, whatever happens. Where the system
// forbids to execute those, it goes into dir.
func openHelper(dir string) (*os.File, string, error) {
	if f, err := memoryHelper(); err == nil {
		return f, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
	}
	path := filepath.Join(dir, "init-"+helperHash())
	if b, err := os.ReadFile(path); err != nil || string(b) != string(helperBinary) {
		if err := writeFile(path, helperBinary, 0o555); err != nil {
			return nil, "", err
		}
	}
	f, err := os.Open(path)
	return f, path, err
}

func memoryHelper() (*os.File, error) {
	if b, err := os.ReadFile("/proc/sys/vm/memfd_noexec"); err == nil && len(b) > 0 && b[0] == '2' {
		return nil, unix.EACCES
	}
	fd, err := unix.MemfdCreate("hearth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { //nolint:errorlint // a bare errno; the kernel is older than MFD_EXEC
		fd, err = unix.MemfdCreate("hearth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "hearth-init")
	if _, err := f.Write(helperBinary); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		if err == nil {
			return f, nil
		}
	}
	_ = f.Close()
	return nil, unix.EIO
}

// writeFile replaces path atomically.
func writeFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// publish makes everything below dir readable for the sandboxes' users,
// whatever umask the server runs with.
func publish(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
		case e.IsDir():
			err = os.Chmod(path, 0o755)
		case e.Type().IsRegular():
			err = os.Chmod(path, 0o644)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another's temporary file
		}
		return err
	})
}
