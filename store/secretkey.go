package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/hearthrun/hearth"
)

// secretKey encrypts the values of secrets.
type secretKey struct {
	aead cipher.AEAD
	// id tells keys apart. It is a hash, which says nothing of 256 random bits.
	id string
	// text is the key as its file has it.
	text string
}

// keyring is what a key file holds, one key a line: the first encrypts, all
// decrypt. There are several only while one takes the place of another.
type keyring []*secretKey

// find returns the key with the id, nil if it is not there.
func (r keyring) find(id string) *secretKey {
	for _, k := range r {
		if k.id == id {
			return k
		}
	}
	return nil
}

const (
	keySize = 32
	// maxKeys is how many keys a key file has at most.
	maxKeys = 16
)

// randomKey makes a key.
func randomKey() (*secretKey, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return newSecretKey(key)
}

func newSecretKey(key []byte) (*secretKey, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("hearth secrets key id\x00"), key...))
	return &secretKey{aead: aead, id: hex.EncodeToString(sum[:8]), text: base64.StdEncoding.EncodeToString(key)}, nil
}

// place binds a value to its name and number, so that who can write to the
// database cannot put one secret in the place of another.
func place(name string, number int) []byte {
	return []byte("hearth secret\x00" + name + "\x00" + strconv.Itoa(number))
}

func (k *secretKey) seal(name string, number int, value []byte) []byte {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(value)+k.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return k.aead.Seal(nonce, nonce, value, place(name, number))
}

func (k *secretKey) open(name string, number int, sealed []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("it is too short")
	}
	return k.aead.Open(nil, sealed[:n], sealed[n:], place(name, number))
}

// loadKeys reads a key file. Errors: fs.ErrNotExist as it is, CodeInvalid,
// CodeUnavailable.
func loadKeys(path string) (keyring, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	} else if err != nil {
		return nil, keyError(hearth.CodeUnavailable, "cannot be read", path, err).WithHint("let this user read it, or choose another with --secrets-key-file")
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o027 != 0 {
		return nil, keyError(hearth.CodeInvalid, "is open to other users", path, fmt.Errorf("its mode is %s", info.Mode().Perm())).
			WithHint("chmod 600 the key file")
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, 4096))
	}
	if err != nil {
		return nil, keyError(hearth.CodeUnavailable, "cannot be read", path, err)
	}
	lines := bytes.Fields(text)
	ring := make(keyring, 0, len(lines))
	for _, line := range lines {
		key, err := base64.StdEncoding.DecodeString(string(line))
		if err != nil || len(key) != keySize || len(lines) > maxKeys {
			ring = nil
			break
		}
		k, err := newSecretKey(key)
		if err != nil {
			return nil, err
		}
		ring = append(ring, k)
	}
	if len(ring) == 0 {
		return nil, keyError(hearth.CodeInvalid, "holds no key", path, fmt.Errorf("each line must hold %d bytes in base64, and there are at most %d", keySize, maxKeys)).
			WithHint("restore it from your backup; openssl rand -base64 %d makes a new one", keySize)
	}
	return ring, nil
}

// keyError is an error about the key file, whose path is for the server's log
// only: callers of functions get to see the message.
func keyError(code hearth.Code, what, path string, err error) *hearth.Error {
	return &hearth.Error{Code: code, Message: "the key file of the secrets " + what, Err: fmt.Errorf("%s: %w", path, err)}
}

// makeKey makes a key file, which reaches the disk before anything that it
// encrypts.
func makeKey(path string) (keyring, error) {
	fail := func(err error) (keyring, error) {
		return nil, keyError(hearth.CodeUnavailable, "cannot be made", path, err).
			WithHint("let this user write there, or choose another with --secrets-key-file")
	}
	key, err := randomKey()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".secrets-key-") // 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // the link remains
	_, err = f.WriteString(key.text + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // which replaces nothing
	}
	if err == nil {
		err = syncPath(dir)
	}
	if err != nil {
		return fail(err)
	}
	return keyring{key}, nil
}

// nextKeys is the file that takes the place of the key file. One that is there
// was left by a server that was killed.
func nextKeys(path string) string { return path + ".new" }

// replaceKeys gives a key file other keys: at every moment it holds either those
// or what it held before. What it held before is overwritten, as far as the file
// system allows. If it is missing it is made. Errors: CodeUnavailable.
func replaceKeys(path string, ring keyring) error {
	fail := func(err error) error {
		return keyError(hearth.CodeUnavailable, "cannot be replaced", path, err).
			WithHint("let this user write to its directory, or change the key by hand: docs/secrets.md, Another key, says how")
	}
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return keyError(hearth.CodeUnavailable, "is missing", path, errors.New("it is a link that leads nowhere")).
				WithHint("restore the file that it leads to, or remove the link: then the file is made anew")
		}
		target, err = path, nil
	}
	if err != nil {
		return fail(err)
	}
	old, err := openOld(target)
	if err != nil {
		return fail(err)
	}
	if old != nil {
		defer old.Close()
	}
	if err := eraseKeys(nextKeys(target)); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(nextKeys(target), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	for _, k := range ring {
		_, werr := f.WriteString(k.text + "\n")
		err = errors.Join(err, werr)
	}
	if old != nil {
		err = errors.Join(err, likeOld(f, old))
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), target)
	}
	if err != nil {
		_ = eraseKeys(nextKeys(target))
		return fail(err)
	}
	if err := syncPath(filepath.Dir(target)); err != nil {
		return fail(err)
	}
	if old != nil {
		overwrite(old)
	}
	return nil
}

// openOld opens a key file that is to be replaced, for writing if that is allowed;
// nil if there is none.
func openOld(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		f, err = os.Open(path) // then it is not overwritten
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// likeOld gives a key file owner and mode of the one that it replaces.
func likeOld(f, old *os.File) error {
	info, err := old.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid)) // else it is this user's, who can read it
	}
	return f.Chmod(info.Mode().Perm())
}

// eraseKeys removes a file with keys, if it is there, so that they cannot be read
// from the disk.
func eraseKeys(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	overwrite(f)
	return nil
}

// overwrite makes the content of a file that has no name any more unreadable.
func overwrite(f *os.File) {
	info, err := f.Stat()
	if err != nil {
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink > 0 {
		return // somebody keeps it on purpose
	}
	_, _ = f.WriteAt(make([]byte, info.Size()), 0)
	_ = f.Sync()
}
