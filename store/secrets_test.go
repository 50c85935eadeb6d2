package store_test

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// openSecret returns one value.
func openSecret(t *testing.T, s *store.Secrets, name string, version int) string {
	t.Helper()
	values, err := s.OpenSecrets(t.Context(), map[string]int{name: version})
	if err != nil {
		t.Fatal(err)
	}
	return string(values[name])
}

func setSecret(t *testing.T, s *store.Secrets, name, value string) hearth.Secret {
	t.Helper()
	x, err := s.SetSecret(t.Context(), name, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// fails checks the code and the text of an error.
func fails(t *testing.T, err error, code hearth.Code, says ...string) {
	t.Helper()
	e := hearth.AsError(err)
	for _, text := range says {
		if hearth.ErrorCode(err) != code || !strings.Contains(err.Error()+" "+e.Hint, text) {
			t.Errorf("want %s with %q, got %v", code, text, err)
		}
	}
}

func TestSecretVersions(t *testing.T) {
	dir := t.TempDir()
	secrets := open(t, dir).Secrets(filepath.Join(dir, "secrets.key"))
	for i, want := range []int{1, 2, 2, 3} {
		value := []string{"one", "two", "two", "a\x00\xff"}[i] // the same value changes nothing
		if x := setSecret(t, secrets, "token", value); x.Version != want || x.Locked || x.CreatedAt.IsZero() {
			t.Errorf("after value %q: %+v", value, x)
		}
	}
	if v := openSecret(t, secrets, "token", 3); v != "a\x00\xff" {
		t.Errorf("got %q", v)
	}
	x, err := secrets.RollbackSecret(t.Context(), "token", 0)
	if err != nil || x.Version != 4 || openSecret(t, secrets, "token", 4) != "two" {
		t.Errorf("after a rollback: %+v, %v", x, err)
	}
	if x, err = secrets.RollbackSecret(t.Context(), "token", 1); err != nil || openSecret(t, secrets, "token", x.Version) != "one" {
		t.Errorf("after a rollback to version 1: %+v, %v", x, err)
	}
	_, err = secrets.RollbackSecret(t.Context(), "token", 5)
	fails(t, err, hearth.CodeConflict, "counts")
	_, err = secrets.RollbackSecret(t.Context(), "token", 99)
	fails(t, err, hearth.CodeNotFound, "no version 99")
	_, err = secrets.RollbackSecret(t.Context(), "other", 0)
	fails(t, err, hearth.CodeNotFound, "no secret")

	for i := range 10 {
		x = setSecret(t, secrets, "token", fmt.Sprint("value ", i))
	}
	if want := []int{15, 14, 13, 12, 11, 10, 9, 8, 7, 6}; !slices.Equal(x.Versions, want) {
		t.Errorf("kept are %v", x.Versions)
	}
	_, err = secrets.OpenSecrets(t.Context(), map[string]int{"token": 5})
	fails(t, err, hearth.CodeUnavailable, "gone")

	// A number never stands for two values, whatever was deleted.
	if err := secrets.DeleteSecret(t.Context(), "token"); err != nil {
		t.Fatal(err)
	}
	fails(t, secrets.DeleteSecret(t.Context(), "token"), hearth.CodeNotFound, "token")
	if x := setSecret(t, secrets, "token", "anew"); x.Version != 16 || len(x.Versions) != 1 {
		t.Errorf("made anew: %+v", x)
	}
	_, err = secrets.RollbackSecret(t.Context(), "token", 0)
	fails(t, err, hearth.CodeConflict, "no older")

	for _, bad := range []struct{ name, value, says string }{
		{"Token", "x", "not valid"},
		{"../x", "x", "not valid"},
		{"token", "", "1 byte"},
		{"token", strings.Repeat("x", 64<<10+1), "64KiB"},
	} {
		_, err := secrets.SetSecret(t.Context(), bad.name, []byte(bad.value))
		fails(t, err, hearth.CodeInvalid, bad.says)
	}
}

// TestSecretsAtRest looks for a value in every file of the data directory.
func TestSecretsAtRest(t *testing.T) {
	dir := t.TempDir()
	keyFile := filepath.Join(t.TempDir(), "key")
	s := open(t, dir)
	value := strings.Repeat("hush-hush ", 500)
	setSecret(t, s.Secrets(keyFile), "token", value)
	found, files := 0, 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		for _, form := range []string{"hush-hush", base64.StdEncoding.EncodeToString([]byte("hush-hush "))[:12]} {
			if bytes.Contains(data, []byte(form)) {
				t.Errorf("%s has the value", path)
			}
		}
		if bytes.Contains(data, []byte("token")) {
			found++
		}
		return err
	})
	if err != nil || found == 0 || files < 3 {
		t.Errorf("the name was in %d of %d files: %v", found, files, err)
	}
	info, err := os.Stat(keyFile)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the key file: %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(keyFile), ".*")); len(left) > 0 {
		t.Errorf("files remain: %v", left)
	}
}

// TestSecretsMoved: who can write to the database cannot give a function another
// secret than its own, or an older value.
func TestSecretsMoved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	secrets := s.Secrets(filepath.Join(dir, "secrets.key"))
	setSecret(t, secrets, "one", "old")
	setSecret(t, secrets, "one", "new")
	setSecret(t, secrets, "two", "other")
	db, err := sql.Open("sqlite", filepath.Join(dir, "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, from := range []string{"name = 'one' AND number = 1", "name = 'two'"} {
		_, err := db.ExecContext(t.Context(), `UPDATE secret_versions SET sealed = (SELECT sealed FROM secret_versions WHERE `+from+`) WHERE name = 'one' AND number = 2`)
		if err != nil {
			t.Fatal(err)
		}
		_, err = secrets.OpenSecrets(t.Context(), map[string]int{"one": 2})
		fails(t, err, hearth.CodeUnavailable, "damaged")
	}
	if _, err := db.ExecContext(t.Context(), `UPDATE secret_versions SET sealed = x'00' WHERE name = 'two'`); err != nil {
		t.Fatal(err)
	}
	_, err = secrets.OpenSecrets(t.Context(), map[string]int{"two": 1})
	fails(t, err, hearth.CodeUnavailable, "damaged")
	// Setting it again mends it.
	if x, err := secrets.SetSecret(t.Context(), "two", []byte("other")); err != nil || openSecret(t, secrets, "two", x.Version) != "other" {
		t.Errorf("set again: %+v, %v", x, err)
	}
}

func TestSecretsKey(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	keyFile := filepath.Join(dir, "secrets.key")
	setSecret(t, s.Secrets(keyFile), "token", "hush")
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) *store.Secrets {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return s.Secrets(path)
	}
	other := write("other", base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n", 0o600)
	for name, c := range map[string]struct {
		secrets *store.Secrets
		code    hearth.Code
		says    string
	}{
		"missing":   {s.Secrets(filepath.Join(dir, "none")), hearth.CodeUnavailable, "is missing"},
		"another":   {other, hearth.CodeUnavailable, "another key"},
		"no key":    {write("bad", "secret", 0o600), hearth.CodeInvalid, "holds no key"},
		"too short": {write("short", string(key[:20]), 0o600), hearth.CodeInvalid, "holds no key"},
		"open":      {write("open", string(key), 0o604), hearth.CodeInvalid, "chmod 600"},
	} {
		_, err := c.secrets.OpenSecrets(t.Context(), map[string]int{"token": 1})
		fails(t, err, c.code, c.says)
		if strings.Contains(hearth.AsError(err).Message, dir) {
			t.Errorf("%s: the message, which callers see, tells of the host: %v", name, err)
		}
		list, err := c.secrets.Secrets(t.Context())
		if err != nil || len(list) != 1 || !list[0].Locked {
			t.Errorf("%s: listed are %+v, %v", name, list, err)
		}
	}
	// No key is made where there are secrets of another one.
	_, err = s.Secrets(filepath.Join(dir, "none")).SetSecret(t.Context(), "more", []byte("x"))
	fails(t, err, hearth.CodeUnavailable, "restore it")
	if _, err := os.Stat(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made: %v", err)
	}
	// With a new key, what was lost can be set again.
	if x := setSecret(t, other, "token", "hush"); x.Version != 2 || openSecret(t, other, "token", 2) != "hush" {
		t.Errorf("set again: %+v", x)
	}
	// The old key is found once it is put back, without a restart.
	later := s.Secrets(filepath.Join(dir, "later"))
	if _, err := later.OpenSecrets(t.Context(), map[string]int{"token": 1}); err == nil {
		t.Error("a secret was opened without a key")
	}
	if err := os.Rename(keyFile, filepath.Join(dir, "later")); err != nil {
		t.Fatal(err)
	}
	if v := openSecret(t, later, "token", 1); v != "hush" {
		t.Errorf("got %q", v)
	}
}

// TestSecretsOfVersions: versions know which secrets count, and what needs a
// secret cannot be without it.
func TestSecretsOfVersions(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	secrets := s.Secrets(filepath.Join(dir, "secrets.key"))
	v := hearth.Version{
		Function: "shop", Artifact: artifact(t, s, "code"), Incarnation: "abc",
		Config: hearth.Config{Secrets: map[string]string{"A": "token", "B": "token"}, SecretFiles: map[string]string{"f": "key"}},
	}
	_, _, err := s.CreateFunction(t.Context(), v)
	fails(t, err, hearth.CodeInvalid, "hearth secret set key")
	setSecret(t, secrets, "token", "t1")
	setSecret(t, secrets, "key", "\xff")
	setSecret(t, secrets, "spare", "x")
	if _, _, err := s.CreateFunction(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	incarnations := map[string]bool{}
	is := func(want map[string]int) {
		t.Helper()
		one, err := s.Version(t.Context(), "shop", 1)
		list, err2 := s.Versions(t.Context(), "shop", 0, 0)
		all, err3 := s.Deployments(t.Context())
		if err := errors.Join(err, err2, err3); err != nil {
			t.Fatal(err)
		}
		for _, got := range []hearth.Version{one, list[0], *all[0].Versions[1]} {
			if diff := cmp.Diff(want, got.Secrets); diff != "" || got.Incarnation != one.Incarnation || !strings.HasPrefix(got.Incarnation, "abc-") {
				t.Errorf("incarnation %s, secrets (-want +got):\n%s", got.Incarnation, diff)
			}
		}
		if incarnations[one.Incarnation] {
			t.Errorf("the incarnation %s is an old one", one.Incarnation)
		}
		incarnations[one.Incarnation] = true
	}
	is(map[string]int{"token": 1, "key": 1})
	setSecret(t, secrets, "token", "t2")
	is(map[string]int{"token": 2, "key": 1})

	list, err := secrets.Secrets(t.Context())
	if err != nil || len(list) != 3 || !slices.Equal(list[0].Functions, []string{"shop"}) || len(list[1].Functions) != 0 {
		t.Errorf("listed are %+v, %v", list, err)
	}
	fails(t, secrets.DeleteSecret(t.Context(), "key"), hearth.CodeConflict, "used by shop")
	// What the function could not get is refused.
	_, err = secrets.SetSecret(t.Context(), "token", []byte{0})
	fails(t, err, hearth.CodeInvalid, "function shop")
	_, err = secrets.SetSecret(t.Context(), "token", bytes.Repeat([]byte("x"), 64<<10))
	fails(t, err, hearth.CodeInvalid, "128KiB") // twice 64 KiB, and the key: one byte too many

	// Once nothing leads to it any more, a version does not keep its secrets.
	v.Config.SecretFiles, v.Incarnation = nil, ""
	if _, _, err := s.AddVersion(t.Context(), v, true, 0); err != nil {
		t.Fatal(err)
	}
	if err := secrets.DeleteSecret(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if old, err := s.Version(t.Context(), "shop", 1); err != nil || old.Secrets["key"] != 0 || old.Secrets["token"] != 2 {
		t.Errorf("the old version: %+v, %v", old, err)
	}
	_, _, err = s.SetAlias(t.Context(), "shop", hearth.Alias{Name: "live", Versions: hearth.Weights{1: 100}}, 0, nil)
	fails(t, err, hearth.CodeInvalid, "hearth secret set key")
	_, err = secrets.OpenSecrets(t.Context(), map[string]int{"token": 2, "key": 0})
	fails(t, err, hearth.CodeInvalid, "no secret key")
}
