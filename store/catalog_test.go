package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

func TestNumbersAndRecordsOfADeletedFunction(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	create(t, s, version("f", d, "/f"))
	if _, _, err := s.AddVersion(ctx, version("f", d, "/f"), true, 0); err != nil {
		t.Fatal(err)
	}
	record := func(id string, version int) {
		t.Helper()
		if err := s.AppendInvocations(ctx, []hearth.Invocation{{ID: id, Function: "f", Version: version}}); err != nil {
			t.Fatal(err)
		}
	}
	record("1", 1)
	wantCode(t, s.DeleteFunction(ctx, "f", 1), hearth.CodeConflict, "generation 2, not 1")
	if err := s.DeleteFunction(ctx, "f", 2); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.DeleteFunction(ctx, "f", 0), hearth.CodeNotFound)
	_, err := s.Function(ctx, "f")
	wantCode(t, err, hearth.CodeNotFound)
	_, err = s.Version(ctx, "f", 1)
	wantCode(t, err, hearth.CodeNotFound)
	_, err = s.Versions(ctx, "f", 0, 0)
	wantCode(t, err, hearth.CodeNotFound)
	_, _, err = s.Invocations(ctx, hearth.InvocationFilter{Function: "f"}, "", 0)
	wantCode(t, err, hearth.CodeNotFound)
	_, err = s.Invocation(ctx, "1")
	wantCode(t, err, hearth.CodeNotFound)

	record("2", 2) // of a call that ended after the delete
	f, v := create(t, s, version("f", d, "/f"))
	if v.Number != 3 || f.Live != 3 || f.Generation != 1 {
		t.Fatalf("made anew: %+v %+v", f, v)
	}
	record("3", 3)
	got, _, err := s.Invocations(ctx, hearth.InvocationFilter{Function: "f"}, "", 0)
	if err != nil || len(got) != 1 || got[0].ID != "3" {
		t.Fatalf("%v %v", got, err)
	}
}

func TestRoutesAreTakenOnce(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	create(t, s, version("a", d, "GET /x", "/y"))
	_, _, err := s.CreateFunction(ctx, version("b", d, "GET  /x"))
	wantCode(t, err, hearth.CodeConflict, "GET /x", "function a")
	if _, err := s.Function(ctx, "b"); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Fatalf("a failed create left something: %v", err)
	}
	_, v := create(t, s, version("b", d, "POST /x", "/z"))
	if v.Number != 1 {
		t.Fatalf("a failed create used up number %d", v.Number)
	}
	// A route is free when the live version does not have it any more.
	_, _, err = s.AddVersion(ctx, version("b", d, "/y"), true, 0)
	wantCode(t, err, hearth.CodeConflict, "/y", "function a")
	if _, _, err := s.AddVersion(ctx, version("a", d, "GET /x"), true, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.AddVersion(ctx, version("b", d, "/y"), true, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteFunction(ctx, "b", 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.AddVersion(ctx, version("a", d, "/y"), true, 0); err != nil {
		t.Fatal(err)
	}
}

func TestPages(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	for i := range 5 {
		create(t, s, version(fmt.Sprint("f", i), d))
	}
	for range 4 {
		if _, _, err := s.AddVersion(ctx, version("f0", d), true, 0); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for after := ""; ; {
		fs, err := s.Functions(ctx, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(fs) == 0 {
			break
		}
		for _, f := range fs {
			names = append(names, f.Name)
		}
		after = fs[len(fs)-1].Name
	}
	if d := cmp.Diff([]string{"f0", "f1", "f2", "f3", "f4"}, names); d != "" {
		t.Error(d)
	}
	var numbers []int
	for before := 0; before != 1; {
		vs, err := s.Versions(ctx, "f0", before, 2)
		if err != nil || len(vs) == 0 {
			t.Fatal(vs, err)
		}
		for _, v := range vs {
			numbers = append(numbers, v.Number)
		}
		before = numbers[len(numbers)-1]
	}
	if d := cmp.Diff([]int{5, 4, 3, 2, 1}, numbers); d != "" {
		t.Error(d)
	}
	if live, err := liveVersions(ctx, s); err != nil || len(live) != 5 || live[0].Number != 5 {
		t.Errorf("live %v %v", live, err)
	}
}

func TestBadVersions(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	_, _, err := s.CreateFunction(ctx, version("Bad_Name", d))
	wantCode(t, err, hearth.CodeInvalid, "Bad_Name")
	_, _, err = s.CreateFunction(ctx, version("f", "../../etc"))
	wantCode(t, err, hearth.CodeInvalid, "digest")
	_, _, err = s.CreateFunction(ctx, version("f", digest("missing")))
	wantCode(t, err, hearth.CodeNotFound, "artifact")
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = s.CreateFunction(canceled, version("f", d))
	wantCode(t, err, hearth.CodeCanceled)
	_, err = s.Deployments(canceled)
	wantCode(t, err, hearth.CodeCanceled)
	wantCode(t, s.AppendInvocations(canceled, []hearth.Invocation{{ID: "x"}}), hearth.CodeCanceled)
	if fs, err := s.Functions(ctx, "", 0); err != nil || len(fs) != 0 {
		t.Fatalf("%v %v", fs, err)
	}
}

// TestConcurrentDeploys races writers with optimistic locking against readers:
// each generation is won once, and readers see whole states.
func TestConcurrentDeploys(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	create(t, s, version("f", d))
	const writers, each = 4, 15
	var won atomic.Int64
	var wg, readers sync.WaitGroup
	done := make(chan struct{})
	for range writers {
		wg.Go(func() {
			for range each {
				f, err := s.Function(ctx, "f")
				if err != nil {
					t.Error(err)
					return
				}
				switch _, _, err := s.AddVersion(ctx, version("f", d), true, f.Generation); hearth.ErrorCode(err) {
				case "":
					won.Add(1)
				case hearth.CodeConflict:
				default:
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			last := 0
			for {
				select {
				case <-done:
					return
				default:
				}
				live, err := liveVersions(ctx, s)
				if err != nil || len(live) != 1 || live[0].Number < last {
					t.Errorf("after %d: %v %v", last, live, err)
					return
				}
				last = live[0].Number
			}
		})
	}
	wg.Wait()
	close(done)
	readers.Wait()
	f, err := s.Function(ctx, "f")
	if err != nil || f.Generation != won.Load()+1 || int64(f.Live) != won.Load()+1 {
		t.Fatalf("%d won: %+v %v", won.Load(), f, err)
	}
}

// FuzzConfigRoundTrip stores whatever configuration JSON gives and reads it back.
func FuzzConfigRoundTrip(f *testing.F) {
	f.Add(`{"runtime":"python","env":{"A":"\u0000é"},"timeout":"1m30s","memory":"1GiB","routes":["GET /x"]}`)
	f.Add(`{"cpu":1e-300,"labels":{"":""}}`)
	s := open(f, f.TempDir())
	d := artifact(f, s, "x")
	f.Fuzz(func(t *testing.T, text string) {
		var c hearth.Config
		if json.Unmarshal([]byte(text), &c) != nil {
			return
		}
		_, v, err := s.CreateFunction(t.Context(), hearth.Version{Function: "f", Config: c, Artifact: d})
		if err != nil {
			if hearth.ErrorCode(err) == hearth.CodeConflict {
				return // the same route in two spellings
			}
			t.Fatal(err)
		}
		defer func() { _ = s.DeleteFunction(context.WithoutCancel(t.Context()), "f", 0) }()
		got, err := s.Version(t.Context(), "f", v.Number)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(v)
		have, _ := json.Marshal(got)
		if string(want) != string(have) {
			t.Fatalf("stored %s, read %s", want, have)
		}
	})
}
