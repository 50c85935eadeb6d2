package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

func numbers(vs []hearth.Version) (out []int) {
	for _, v := range vs {
		out = append(out, v.Number)
	}
	return out
}

func all(number int) hearth.Alias {
	return hearth.Alias{Name: hearth.Live, Versions: hearth.Weights{number: 100}}
}

func TestAliasesAndReleases(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	d := artifact(t, s, "x")
	if _, _, err := s.CreateFunction(ctx, version("f", d, "/one")); err != nil {
		t.Fatal(err)
	}
	f, v2, err := s.AddVersion(ctx, version("f", d, "/two"), false, 1)
	if err != nil || v2.Number != 2 || f.Live != 1 || f.Generation != 2 || f.Config.Routes[0] != "/one" {
		t.Fatalf("%+v %+v %v", f, v2, err)
	}
	// A release by steps: live is split, and its main version and routes stay.
	now := time.Now()
	r := &hearth.Release{Kind: hearth.ReleaseVersion, State: hearth.ReleaseRunning, From: 1, To: 2, StartedAt: now, StepAt: now, Canary: &hearth.Canary{Shares: []int{10}}}
	split := hearth.Alias{Name: hearth.Live, Versions: hearth.Weights{1: 90, 2: 10}, Sticky: hearth.StickyCookie}
	f, r, err = s.SetAlias(ctx, "f", split, 2, r)
	if err != nil || f.Live != 1 || f.Split[2] != 10 || f.Generation != 3 || r.ID == 0 {
		t.Fatalf("%+v %+v %v", f, r, err)
	}
	wantCode(t, addFunction(t, s, "other", "/one"), hearth.CodeConflict, "function f")
	if running, err := s.RunningReleases(ctx); err != nil || len(running) != 1 || running[0].Canary.Shares[0] != 10 || running[0].EndedAt != nil {
		t.Errorf("%+v %v", running, err)
	}
	wantCode(t, s.DeleteVersion(ctx, "f", 2), hearth.CodeConflict, "version 2")
	if gone, err := s.PruneVersions(ctx, "f", 0, nil); err != nil || len(gone) != 0 {
		t.Errorf("pruned %v, %v", numbers(gone), err)
	}
	// Its end: the routes are those of the new version.
	ended := now.Add(time.Minute)
	r.State, r.EndedAt, r.Reason = hearth.ReleaseDone, &ended, "it was good"
	if f, _, err = s.SetAlias(ctx, "f", all(2), 3, r); err != nil || f.Live != 2 || f.Split != nil || f.Config.Routes[0] != "/two" {
		t.Fatalf("%+v %v", f, err)
	}
	_, _, err = s.SetAlias(ctx, "f", split, 0, r)
	wantCode(t, err, hearth.CodeConflict, "has ended")
	if err := addFunction(t, s, "other", "/one"); err != nil {
		t.Error(err) // nobody has it now
	}
	_, _, err = s.SetAlias(ctx, "f", all(1), 0, nil)
	wantCode(t, err, hearth.CodeConflict, "belongs to")
	if err := s.DeleteFunction(ctx, "other", 0); err != nil {
		t.Fatal(err)
	}

	// Other aliases have routes and environments of their own.
	beta := hearth.Alias{Name: "beta", Versions: hearth.Weights{1: 100}, Env: map[string]string{"A": "b"}, Routes: []hearth.Route{"beta.example.com/", "/beta"}}
	if f, _, err = s.SetAlias(ctx, "f", beta, 0, nil); err != nil || f.Live != 2 {
		t.Fatalf("%+v %v", f, err)
	}
	wantCode(t, addFunction(t, s, "other", "/beta"), hearth.CodeConflict, "alias beta")
	bad := beta
	bad.Versions = hearth.Weights{9: 100}
	_, _, err = s.SetAlias(ctx, "f", bad, 0, nil)
	wantCode(t, err, hearth.CodeNotFound, "version 9")
	_, _, err = s.SetAlias(ctx, "f", beta, 1, nil)
	wantCode(t, err, hearth.CodeConflict, "generation")
	_, _, err = s.SetAlias(ctx, "none", beta, 0, nil)
	wantCode(t, err, hearth.CodeNotFound, "function")

	check := func(s *store.Store) {
		t.Helper()
		list, err := s.Deployments(ctx)
		if err != nil || len(list) != 1 || len(list[0].Aliases) != 2 || len(list[0].Versions) != 2 {
			t.Fatalf("%+v %v", list, err)
		}
		b := list[0].Aliases[0]
		if b.Name != "beta" || b.Env["A"] != "b" || !slices.Equal(b.Routes, beta.Routes) || list[0].Aliases[1].Versions[2] != 100 {
			t.Errorf("%+v", list[0].Aliases)
		}
		rs, err := s.Releases(ctx, "f", 0, 0)
		if err != nil || len(rs) != 2 || rs[0].Reason != "it was good" || !rs[0].EndedAt.Equal(ended.Truncate(time.Microsecond)) || rs[1].Kind != hearth.ReleaseDeploy {
			t.Errorf("%+v %v", rs, err)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	check(s)

	_, err = s.DeleteAlias(ctx, "f", hearth.Live, 0)
	wantCode(t, err, hearth.CodeInvalid, "live")
	_, err = s.DeleteAlias(ctx, "f", "none", 0)
	wantCode(t, err, hearth.CodeNotFound, "alias")
	if _, err := s.DeleteAlias(ctx, "f", "beta", 0); err != nil {
		t.Fatal(err)
	}
	if err := addFunction(t, s, "other", "/beta"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteVersion(ctx, "f", 1); err != nil {
		t.Error(err)
	}
	wantCode(t, s.DeleteVersion(ctx, "f", 1), hearth.CodeNotFound, "version 1")
	if err := s.DeleteFunction(ctx, "f", 0); err != nil {
		t.Fatal(err)
	}
	_, err = s.Releases(ctx, "f", 0, 0)
	wantCode(t, err, hearth.CodeNotFound, "no function")
}

func addFunction(t *testing.T, s *store.Store, name string, routes ...hearth.Route) error {
	t.Helper()
	_, _, err := s.CreateFunction(t.Context(), version(name, artifact(t, s, "x"), routes...))
	return err
}

// A deploy ends the release that runs and keeps what live has besides versions.
func TestDeploySupersedes(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	if err := addFunction(t, s, "f"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.AddVersion(ctx, version("f", d), false, 0); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	run := func() {
		t.Helper()
		alias := hearth.Alias{Name: hearth.Live, Versions: hearth.Weights{1: 90, 2: 10}, Sticky: "header:X", Env: map[string]string{"A": "b"}}
		_, _, err := s.SetAlias(ctx, "f", alias, 0, &hearth.Release{State: hearth.ReleaseRunning, From: 1, To: 2, StartedAt: now, StepAt: now})
		if err != nil {
			t.Fatal(err)
		}
	}
	run()
	run() // supersedes the first
	if _, _, err := s.AddVersion(ctx, version("f", d), true, 0); err != nil {
		t.Fatal(err)
	}
	rs, err := s.Releases(ctx, "f", 0, 0)
	if err != nil || len(rs) != 4 || rs[0].To != 3 || rs[0].From != 1 || rs[1].State != hearth.ReleaseSuperseded || rs[2].State != hearth.ReleaseSuperseded || rs[1].EndedAt == nil {
		t.Errorf("%+v %v", rs, err)
	}
	a, err := s.Aliases(ctx, "f")
	if err != nil || a[0].Versions[3] != 100 || len(a[0].Versions) != 1 || a[0].Sticky != "header:X" || a[0].Env["A"] != "b" {
		t.Errorf("%+v %v", a, err)
	}
	run()
	if _, _, err := s.SetAlias(ctx, "f", all(3), 0, nil); err != nil {
		t.Fatal(err)
	}
	if running, err := s.RunningReleases(ctx); err != nil || len(running) != 0 {
		t.Errorf("%+v %v", running, err)
	}
}

func TestPruneVersions(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	if err := addFunction(t, s, "f"); err != nil {
		t.Fatal(err)
	}
	for range 9 { // 2 to 10, of which the even ones become live
		n, err := s.NextNumber(ctx, "f")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.AddVersion(ctx, version("f", d), n%2 == 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.SetAlias(ctx, "f", hearth.Alias{Name: "old", Versions: hearth.Weights{2: 100}}, 0, nil); err != nil {
		t.Fatal(err)
	}
	// Kept are 9 and 10 as the newest, 2 for its alias, 8 to go back to.
	gone, err := s.PruneVersions(ctx, "f", 2, []int{8})
	slices.SortFunc(gone, func(a, b hearth.Version) int { return a.Number - b.Number })
	if err != nil || !slices.Equal(numbers(gone), []int{1, 3, 4, 5, 6, 7}) || gone[0].Incarnation == "" {
		t.Errorf("gone are %v, %v", numbers(gone), err)
	}
	left, err := s.Versions(ctx, "f", 0, 0)
	if err != nil || !slices.Equal(numbers(left), []int{10, 9, 8, 2}) {
		t.Errorf("left are %v, %v", numbers(left), err)
	}
	// Artifacts that only those had go after a while.
	if n, err := s.PruneArtifacts(ctx, time.Now().Add(time.Hour)); err != nil || n != 0 {
		t.Errorf("%d artifacts pruned, %v", n, err)
	}
}
