package store_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRekey(t *testing.T) {
	dir, place := t.TempDir(), t.TempDir()
	s := open(t, dir)
	// A link to the file stays one, and its mode what it was.
	keyFile, link := filepath.Join(place, "key"), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(keyFile, link); err != nil {
		t.Fatal(err)
	}
	_, err := s.Secrets(keyFile).Rekey(t.Context())
	fails(t, err, hearth.CodeConflict, "hearth secret set")

	setSecret(t, s.Secrets(keyFile), "token", "one")
	secrets := s.Secrets(link)
	setSecret(t, secrets, "token", "two")
	setSecret(t, secrets, "other", "\x00\xff")
	if err := os.Chmod(keyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	old := readFile(t, keyFile)
	held, err := os.Open(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()

	r, err := secrets.Rekey(t.Context())
	if err != nil || r.Secrets != 2 || r.Values != 3 || len(r.Unreadable) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	now := readFile(t, keyFile)
	if strings.Contains(now, strings.TrimSpace(old)) || len(strings.Fields(now)) != 1 {
		t.Errorf("the key was %q and is %q", old, now)
	}
	was := make([]byte, len(old))
	if _, err := held.ReadAt(was, 0); err != nil || !bytes.Equal(was, make([]byte, len(old))) {
		t.Errorf("the old file holds %q: %v", was, err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info, err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode() != 0o640 {
		t.Errorf("the new file is %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(place); len(left) != 1 {
		t.Errorf("files remain: %v", left)
	}

	// Those who had the old key, and those who read the new one, get all.
	for _, x := range []*store.Secrets{secrets, s.Secrets(keyFile)} {
		if openSecret(t, x, "token", 1) != "one" || openSecret(t, x, "token", 2) != "two" || openSecret(t, x, "other", 1) != "\x00\xff" {
			t.Error("a value is another one")
		}
	}
	// The old key opens nothing any more.
	lost := filepath.Join(dir, "old")
	if err := os.WriteFile(lost, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Secrets(lost).OpenSecrets(t.Context(), map[string]int{"token": 2})
	fails(t, err, hearth.CodeUnavailable, "another key")
	if x := setSecret(t, secrets, "token", "two"); x.Version != 2 {
		t.Errorf("the same value made %+v", x)
	}

	// A value whose key is lost is told of and stays, for when it is found.
	setSecret(t, s.Secrets(lost), "other", "lost")
	r, err = secrets.Rekey(t.Context())
	if err != nil || r.Values != 3 || len(r.Unreadable) != 1 || r.Unreadable[0] != "other" {
		t.Errorf("with a value of another key: %+v, %v", r, err)
	}
	if v := openSecret(t, s.Secrets(lost), "other", 2); v != "lost" {
		t.Errorf("it is %q", v)
	}

	// What cannot be written changes nothing.
	if err := os.Mkdir(keyFile+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, keyFile)
	_, err = secrets.Rekey(t.Context())
	fails(t, err, hearth.CodeUnavailable, "cannot be replaced")
	if readFile(t, keyFile) != before || openSecret(t, secrets, "token", 2) != "two" {
		t.Error("a rekey that failed changed the key")
	}
}

// TestKeyFileLost: a key file that is lost while the server has its key is told of, and
// made anew with another key.
func TestKeyFileLost(t *testing.T) {
	s := open(t, t.TempDir())
	keyFile := filepath.Join(t.TempDir(), "key")
	secrets := s.Secrets(keyFile)
	if err := secrets.CheckKeyFile(); err != nil {
		t.Errorf("before there is any: %v", err)
	}
	setSecret(t, secrets, "token", "one")
	if err := secrets.CheckKeyFile(); err != nil {
		t.Error(err)
	}
	key := readFile(t, keyFile)
	if err := os.WriteFile(keyFile, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("n"), 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, secrets.CheckKeyFile(), hearth.CodeInvalid, "does not hold the key")
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	fails(t, secrets.CheckKeyFile(), hearth.CodeUnavailable, "is missing", keyFile, "hearth secret rekey")

	// Who does not have the key cannot make it anew.
	_, err := s.Secrets(keyFile).Rekey(t.Context())
	fails(t, err, hearth.CodeUnavailable, "is missing")
	// A link that leads nowhere is no place for it.
	if err := os.Symlink(filepath.Join(t.TempDir(), "gone"), keyFile); err != nil {
		t.Fatal(err)
	}
	_, err = secrets.Rekey(t.Context())
	fails(t, err, hearth.CodeUnavailable, "is missing", keyFile, "remove the link")
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}

	if r, err := secrets.Rekey(t.Context()); err != nil || r.Values != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode() != 0o600 {
		t.Errorf("the new file is %v, %v", info, err)
	}
	if now := readFile(t, keyFile); now == key || len(strings.Fields(now)) != 1 {
		t.Errorf("the key was %q and is %q", key, now)
	}
	for _, x := range []*store.Secrets{secrets, s.Secrets(keyFile)} {
		if err := x.CheckKeyFile(); err != nil {
			t.Error(err)
		}
		if v := openSecret(t, x, "token", 1); v != "one" {
			t.Errorf("it is %q", v)
		}
	}
}

// TestRekeyInterrupted starts in each state that a crash can leave.
func TestRekeyInterrupted(t *testing.T) {
	for name, crash := range map[string]func(t *testing.T, keyFile string, secrets *store.Secrets){
		"while the file was written": func(t *testing.T, keyFile string, _ *store.Secrets) {
			if err := os.WriteFile(keyFile+".new", []byte("AAAA"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"before the values were encrypted": func(t *testing.T, keyFile string, _ *store.Secrets) {
			fresh := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("n"), 32))
			if err := os.WriteFile(keyFile, []byte(fresh+"\n"+readFile(t, keyFile)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"before the old key was removed": func(t *testing.T, keyFile string, secrets *store.Secrets) {
			old := readFile(t, keyFile)
			if _, err := secrets.Rekey(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(keyFile, []byte(readFile(t, keyFile)+old), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			keyFile := filepath.Join(dir, "secrets.key")
			setSecret(t, s.Secrets(keyFile), "token", "one")
			crash(t, keyFile, s.Secrets(keyFile))

			secrets := s.Secrets(keyFile)
			if v := openSecret(t, secrets, "token", 1); v != "one" {
				t.Errorf("before anything is mended: %q", v)
			}
			if list, err := secrets.Secrets(t.Context()); err != nil || list[0].Locked {
				t.Errorf("listed are %+v, %v", list, err)
			}
			if _, err := secrets.ResumeRekey(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := len(strings.Fields(readFile(t, keyFile))); n != 1 {
				t.Errorf("%d keys are in the file", n)
			}
			if _, err := os.Stat(keyFile + ".new"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file remains: %v", err)
			}
			for _, x := range []*store.Secrets{secrets, s.Secrets(keyFile)} {
				if v := openSecret(t, x, "token", 1); v != "one" {
					t.Errorf("it is %q", v)
				}
			}
		})
	}
}

// TestRekeyWhileReading: nobody who reads or stores a value notices.
func TestRekeyWhileReading(t *testing.T) {
	dir := t.TempDir()
	secrets := open(t, dir).Secrets(filepath.Join(dir, "secrets.key"))
	setSecret(t, secrets, "token", "one")
	setSecret(t, secrets, "counter", "0")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if v, err := secrets.OpenSecrets(t.Context(), map[string]int{"token": 1}); err != nil || string(v["token"]) != "one" {
					t.Errorf("read %q, %v", v, err)
					return
				}
				if list, err := secrets.Secrets(t.Context()); err != nil || list[0].Locked || list[1].Locked {
					t.Errorf("listed %+v, %v", list, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			x, err := secrets.SetSecret(t.Context(), "counter", []byte(strconv.Itoa(i)))
			if err != nil || x.Locked {
				t.Errorf("stored %+v, %v", x, err)
				return
			}
		}
	})
	for range 20 {
		if _, err := secrets.Rekey(t.Context()); err != nil {
			t.Error(err)
			break
		}
	}
	stop()
	wg.Wait()
}

// rekeyCrashEnv makes this test binary a server that changes the key until it is
// killed.
const rekeyCrashEnv = "HEARTH_TEST_REKEY_CRASH_DIR"

func rekeyCrashChild(dir string) {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	fail(err)
	secrets := s.Secrets(filepath.Join(dir, "secrets.key"))
	_, err = secrets.ResumeRekey(ctx)
	fail(err)
	for {
		x, err := secrets.SetSecret(ctx, "token", []byte(fmt.Sprint("value ", rand.Uint64())))
		fail(err)
		values, err := secrets.OpenSecrets(ctx, map[string]int{"token": x.Version})
		fail(err)
		fmt.Println("set", x.Version, string(values["token"]))
		_, err = secrets.Rekey(ctx)
		fail(err)
		fmt.Println("rekeyed")
	}
}

func TestRekeyKilled(t *testing.T) {
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "secrets.key")
	const rounds = 25
	var last int
	var value string
	both := 0
	for range rounds {
		armed := false
		untilKilled(t, rekeyCrashEnv+"="+dir, func(line string, kill func(time.Duration)) {
			f := strings.Fields(line)
			switch f[0] {
			case "set":
				last, _ = strconv.Atoi(f[1])
				value = strings.Join(f[2:], " ")
				if !armed { // a rekey begins now
					armed = true
					kill(15 * time.Millisecond)
				}
			case "error":
				t.Fatal(line)
			}
		})
		if len(strings.Fields(readFile(t, keyFile))) > 1 {
			both++
		}
		s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		secrets := s.Secrets(keyFile)
		list, err := secrets.Secrets(t.Context())
		if err != nil || len(list) != 1 || list[0].Locked {
			t.Fatalf("after a kill: %+v, %v", list, err)
		}
		for _, n := range list[0].Versions {
			if v := openSecret(t, secrets, "token", n); n == last && v != value {
				t.Errorf("version %d is %q, not %q", n, v, value)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("after %d of %d kills both keys were there", both, rounds)
}
