package store_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// crashEnv makes this test binary a server that writes until it is killed.
const crashEnv = "HEARTH_TEST_CRASH_DIR"

const crashFiles = 20

// crashChild deploys from several goroutines and prints a line for everything
// the store has acknowledged.
func crashChild(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			for {
				if err := crashDeploy(ctx, s, name); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

func crashDeploy(ctx context.Context, s *store.Store, name string) error {
	g, err := s.Stage(ctx)
	if err != nil {
		return err
	}
	defer g.Discard()
	d := digest(fmt.Sprint(name, rand.Uint64()))
	for i := range crashFiles {
		sub := filepath.Join(g.Dir(), fmt.Sprint("dir", i%3))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(d), 0o644); err != nil {
			return err
		}
	}
	if _, err := g.Commit(ctx, d); err != nil {
		return err
	}
	_, v, err := s.AddVersion(ctx, version(name, d), true, 0)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		_, v, err = s.CreateFunction(ctx, version(name, d))
	}
	if err != nil {
		return err
	}
	fmt.Println("version", name, v.Number, d)
	id := fmt.Sprintf("%s-%d", name, v.Number)
	if err := s.AppendInvocations(ctx, []hearth.Invocation{{ID: id, Function: name, Version: v.Number, StartedAt: time.Now()}}); err != nil {
		return err
	}
	fmt.Println("invocation", id)
	if v.Number%7 == 0 { // numbers must go on from here
		if err := s.DeleteFunction(ctx, name, 0); err != nil {
			return err
		}
		fmt.Println("deleted", name, v.Number)
	}
	return nil
}

// untilKilled runs this program with an environment variable and gives each line that it
// prints to fn, which may have it killed at a random moment within a time.
func untilKilled(t *testing.T, env string, fn func(line string, kill func(within time.Duration))) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func(within time.Duration) {
		time.AfterFunc(rand.N(within), func() { _ = cmd.Process.Kill() })
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fn(lines.Text(), kill)
	}
	_ = cmd.Wait() // it was killed
}

func TestKilledServerLosesNothing(t *testing.T) {
	dir := t.TempDir()
	rounds := 10
	if testing.Short() {
		rounds = 4
	}
	acked := map[string]map[int]string{"a": {}, "b": {}, "c": {}} // digest by function and number
	highest := map[string]int{}
	invocations := map[string]bool{}
	versions := 0
	for round := range rounds {
		seen, killAt := 0, 1+rand.IntN(30)
		untilKilled(t, crashEnv+"="+dir, func(line string, kill func(time.Duration)) {
			f := strings.Fields(line)
			if seen++; seen == killAt { // at some point in the midst of the work
				kill(20 * time.Millisecond)
			}
			switch f[0] {
			case "ready":
			case "version":
				var n int
				if _, err := fmt.Sscan(f[2], &n); err != nil {
					t.Fatal(err)
				}
				if n <= highest[f[1]] {
					t.Errorf("number %d of %s was given after %d", n, f[1], highest[f[1]])
				}
				highest[f[1]] = n
				acked[f[1]][n] = f[3]
				versions++
			case "invocation":
				invocations[f[1]] = true
			case "deleted":
				acked[f[1]] = map[int]string{}
				for id := range invocations {
					if strings.HasPrefix(id, f[1]+"-") {
						delete(invocations, id)
					}
				}
			default:
				t.Fatalf("round %d: %s", round, line)
			}
		})
		checkAfterCrash(t, dir, acked, highest, invocations)
	}
	t.Logf("%d versions were acknowledged in %d rounds", versions, rounds)
	if versions == 0 {
		t.Error("nothing was written: the test proves nothing")
	}
}

func checkAfterCrash(t *testing.T, dir string, acked map[string]map[int]string, highest map[string]int, invocations map[string]bool) {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, versions := range acked {
		for n, d := range versions {
			// A delete may have been done, but not acknowledged any more.
			v, err := s.Version(t.Context(), name, n)
			if hearth.ErrorCode(err) == hearth.CodeNotFound && highest[name]%7 == 0 {
				if _, err := s.Function(t.Context(), name); hearth.ErrorCode(err) == hearth.CodeNotFound {
					delete(versions, n)
					delete(invocations, fmt.Sprintf("%s-%d", name, n))
					continue
				}
			}
			if err != nil || v.Artifact != d {
				t.Fatalf("version %d of %s: %+v %v", n, name, v, err)
			}
			if _, err := s.ArtifactDir(d); err != nil {
				t.Fatal(err)
			}
		}
	}
	for id := range invocations {
		if _, err := s.Invocation(t.Context(), id); err != nil {
			if name, _, _ := strings.Cut(id, "-"); len(acked[name]) > 0 {
				t.Fatal(err)
			}
			delete(invocations, id)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s was left behind", e.Name())
			continue
		}
		for i := range crashFiles {
			path := filepath.Join(dir, "artifacts", e.Name(), fmt.Sprint("dir", i%3), fmt.Sprint(i))
			if b, err := os.ReadFile(path); err != nil || string(b) != "sha256:"+e.Name() {
				t.Fatalf("half an artifact is visible: %q %v", b, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"hearth.db", "invocations.db"} {
		db, err := sql.Open("sqlite", filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		var result string
		err = db.QueryRowContext(t.Context(), `PRAGMA integrity_check`).Scan(&result)
		if err != nil || result != "ok" {
			t.Errorf("%s: %s %v", file, result, err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}
