package store_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(scheduleCrashEnv); dir != "" {
		scheduleCrashChild(dir)
	}
	if dir := os.Getenv(rekeyCrashEnv); dir != "" {
		rekeyCrashChild(dir)
	}
	if dir := os.Getenv(crashEnv); dir != "" {
		crashChild(dir)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// artifact commits a file with the text and returns its digest.
func artifact(t testing.TB, s *store.Store, text string) string {
	t.Helper()
	d, err := commit(t.Context(), s, text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func commit(ctx context.Context, s *store.Store, text string) (string, error) {
	g, err := s.Stage(ctx)
	if err != nil {
		return "", err
	}
	defer g.Discard()
	if err := os.WriteFile(filepath.Join(g.Dir(), "main.py"), []byte(text), 0o644); err != nil {
		return "", err
	}
	d := digest(text)
	_, err = g.Commit(ctx, d)
	return d, err
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func version(name, artifact string, routes ...hearth.Route) hearth.Version {
	c := hearth.Config{Runtime: "python3.11", Egress: hearth.EgressNone, Routes: routes, Env: map[string]string{"A": "b"}}
	return hearth.Version{Function: name, Config: c.WithDefaults(), Artifact: artifact, Warnings: []string{"w"}}
}

func create(t testing.TB, s *store.Store, v hearth.Version) (hearth.Function, hearth.Version) {
	t.Helper()
	f, v, err := s.CreateFunction(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return f, v
}

func wantCode(t testing.TB, err error, code hearth.Code, parts ...string) {
	t.Helper()
	if hearth.ErrorCode(err) != code {
		t.Fatalf("got error %v (code %q), want code %q", err, hearth.ErrorCode(err), code)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("error %q does not contain %q", err, p)
		}
	}
}

func TestLifeOfAFunction(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	a1, a2 := artifact(t, s, "one"), artifact(t, s, "two")
	f, v1 := create(t, s, version("hello", a1, "GET /hello"))
	if f.Live != 1 || f.Generation != 1 || v1.Number != 1 || len(v1.Incarnation) != 32 || f.Artifact != a1 {
		t.Fatalf("created %+v %+v", f, v1)
	}
	if v1.CreatedAt.Location() != time.UTC || v1.CreatedAt.Nanosecond()%1000 != 0 || time.Since(v1.CreatedAt) > time.Minute {
		t.Fatalf("created at %v", v1.CreatedAt)
	}
	_, _, err := s.CreateFunction(ctx, version("hello", a1))
	wantCode(t, err, hearth.CodeConflict, "hello exists")
	_, _, err = s.AddVersion(ctx, version("other", a1), true, 0)
	wantCode(t, err, hearth.CodeNotFound, "other")

	f, v2, err := s.AddVersion(ctx, version("hello", a2, "GET /hello", "/all"), true, 1)
	if err != nil {
		t.Fatal(err)
	}
	if f.Live != 2 || f.Generation != 2 || v2.Number != 2 || f.Artifact != a2 || v2.Incarnation == v1.Incarnation {
		t.Fatalf("updated %+v %+v", f, v2)
	}
	_, _, err = s.AddVersion(ctx, version("hello", a2), true, 1)
	wantCode(t, err, hearth.CodeConflict, "generation 2, not 1")

	// What was returned is what is read, also by a new server.
	check := func(s *store.Store) {
		t.Helper()
		got, err := s.Function(ctx, "hello")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f, got); d != "" {
			t.Fatal(d)
		}
		vs, err := s.Versions(ctx, "hello", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]hearth.Version{v2, v1}, vs); d != "" {
			t.Fatal(d)
		}
		live, err := liveVersions(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]hearth.Version{v2}, live); d != "" {
			t.Fatal(d)
		}
	}
	check(s)
	owner := s.Owner()
	if len(owner) != 32 {
		t.Fatalf("owner %q", owner)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	check(s)
	if s.Owner() != owner {
		t.Fatalf("owner changed from %s to %s", owner, s.Owner())
	}
}

// liveVersions returns the main version that is live of every function.
func liveVersions(ctx context.Context, s *store.Store) ([]hearth.Version, error) {
	deployed, err := s.Deployments(ctx)
	live := []hearth.Version{}
	for _, d := range deployed {
		for _, a := range d.Aliases {
			if a.Name == hearth.Live {
				live = append(live, *d.Versions[a.Main()])
			}
		}
	}
	return live, err
}
