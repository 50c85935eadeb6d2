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

	"github.com/hearthrun/hearth"
)

// secretKey encrypts the values of secrets.
type secretKey struct {
	aead cipher.AEAD
	// id tells keys apart. It is a hash, which says nothing of 256 random bits.
	id string
}

const keySize = 32

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
	return &secretKey{aead: aead, id: hex.EncodeToString(sum[:8])}, nil
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

// loadKey reads a key file. Errors: fs.ErrNotExist as it is, CodeInvalid,
// CodeUnavailable.
func loadKey(path string) (*secretKey, error) {
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
		text, err = io.ReadAll(io.LimitReader(f, 1024))
	}
	if err != nil {
		return nil, keyError(hearth.CodeUnavailable, "cannot be read", path, err)
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != keySize {
		return nil, keyError(hearth.CodeInvalid, "holds no key", path, fmt.Errorf("it must hold %d bytes in base64", keySize)).
			WithHint("restore it from your backup; openssl rand -base64 %d makes a new one", keySize)
	}
	return newSecretKey(key)
}

// keyError is an error about the key file, whose path is for the server's log
// only: callers of functions get to see the message.
func keyError(code hearth.Code, what, path string, err error) *hearth.Error {
	return &hearth.Error{Code: code, Message: "the key file of the secrets " + what, Err: fmt.Errorf("%s: %w", path, err)}
}

// makeKey makes a key file, which reaches the disk before anything that it
// encrypts.
func makeKey(path string) (*secretKey, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	fail := func(err error) (*secretKey, error) {
		return nil, keyError(hearth.CodeUnavailable, "cannot be made", path, err).
			WithHint("let this user write there, or choose another with --secrets-key-file")
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".secrets-key-") // 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // the link remains
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
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
	return newSecretKey(key)
}
