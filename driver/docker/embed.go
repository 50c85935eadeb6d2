package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
)

// If the build stops here with "pattern initbin/…: no matching files found",
// run scripts/build-init.sh (make build does): it builds the first process of
// the containers, which embed_amd64.go and embed_arm64.go embed.

// writeHelper puts the helper into dir, where the engine can mount it from, and
// returns its path.
func writeHelper(dir string) (string, error) {
	sum := sha256.Sum256(helperBinary)
	path := filepath.Join(dir, "init-"+hex.EncodeToString(sum[:8]))
	if b, err := os.ReadFile(path); err == nil && string(b) == string(helperBinary) {
		return path, os.Chmod(path, 0o555) //nolint:gosec // it is a program
	}
	return path, writeFile(path, helperBinary, 0o555)
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
