package store_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

// randomRecords returns records of the functions a, b and c. Their ids are not in the
// order in which the calls started, and some start at the same time.
func randomRecords(r *rand.Rand, n int) (list []hearth.Invocation) {
	statuses := []int{200, 200, 204, 404, 499, 500, 503}
	codes := []hearth.Code{"", "", "", hearth.CodeFunction, hearth.CodeTimeout}
	kinds := []hearth.Kind{hearth.KindHTTP, hearth.KindEvent, hearth.KindQueue}
	for i := range n {
		started := time.UnixMicro(1_800_000_000_000_000 + int64(r.IntN(n/2))*1000).UTC()
		list = append(list, hearth.Invocation{
			ID:       fmt.Sprintf("%08x-%04x-7000-8000-%012x", r.IntN(4), r.IntN(1<<16), i),
			Function: string(rune('a' + r.IntN(3))), Version: 1 + r.IntN(3), Kind: kinds[r.IntN(len(kinds))],
			Status: statuses[r.IntN(len(statuses))], ErrorCode: codes[r.IntN(len(codes))], Cold: r.IntN(4) == 0, Attempt: r.IntN(3),
			StartedAt: started, Timings: hearth.Timings{Queue: time.Duration(r.IntN(50)), Run: time.Duration(r.IntN(50))},
		})
	}
	return list
}

// randomFilter returns one with some fields.
func randomFilter(r *rand.Rand, list []hearth.Invocation) (f hearth.InvocationFilter) {
	some := list[r.IntN(len(list))]
	one := func() bool { return r.IntN(4) == 0 }
	if r.IntN(2) == 0 {
		f.Function = some.Function
	}
	if one() {
		f.Version = some.Version
	}
	if one() {
		f.Status = []string{"200", "2xx", "5xx", "4XX", "503", "418"}[r.IntN(6)]
	}
	if one() {
		f.Code = []string{"ok", "error", "http_5xx", "timeout", "internal"}[r.IntN(5)]
	}
	if one() {
		f.Kind = some.Kind
	}
	if one() {
		f.Async = new(one())
	}
	if one() {
		f.Cold = new(one())
	}
	if one() {
		f.MinDuration = some.Timings.Sum()
	}
	if one() {
		f.MaxDuration = max(some.Timings.Sum(), f.MinDuration)
	}
	if one() {
		f.Since = some.StartedAt
	}
	if one() {
		f.Until = some.StartedAt.Add(time.Duration(r.IntN(3)) * time.Second)
		if !f.Since.IsZero() && !f.Since.Before(f.Until) {
			f.Until = f.Since.Add(time.Second)
		}
	}
	if one() {
		f.ID = some.ID[:8+r.IntN(6)]
	}
	return f
}

// fits is what a filter means, without an index.
func fits(f hearth.InvocationFilter, v hearth.Invocation) bool {
	status := fmt.Sprint(v.Status)
	class := status[:1] + "xx"
	code := string(v.ErrorCode)
	switch {
	case code == "" && v.Status >= 500:
		code = "http_5xx"
	case code == "":
		code = "ok"
	}
	d := v.Timings.Sum()
	return (f.Function == "" || f.Function == v.Function) && (f.Version == 0 || f.Version == v.Version) &&
		(f.Status == "" || f.Status == status || strings.ToLower(f.Status) == class) &&
		(f.Code == "" || f.Code == code || f.Code == "error" && code != "ok") &&
		(f.Kind == "" || f.Kind == v.Kind) &&
		(f.Async == nil || *f.Async == (v.Attempt > 0)) && (f.Cold == nil || *f.Cold == v.Cold) &&
		d >= f.MinDuration && (f.MaxDuration == 0 || d <= f.MaxDuration) &&
		!v.StartedAt.Before(f.Since) && (f.Until.IsZero() || v.StartedAt.Before(f.Until)) &&
		strings.HasPrefix(v.ID, f.ID)
}

// pages reads all pages of a search.
func pages(t *testing.T, s *store.Store, f hearth.InvocationFilter, limit int) (found []hearth.Invocation, n int) {
	t.Helper()
	for before := ""; ; n++ {
		list, next, err := s.Invocations(t.Context(), f, before, limit)
		if err != nil || len(list) > limit {
			t.Fatalf("%+v: %d records, %v", f, len(list), err)
		}
		found = append(found, list...)
		if before = next; before == "" {
			return found, n + 1
		}
	}
}

// TestSearchInvocations compares searches with what their filters mean.
func TestSearchInvocations(t *testing.T) {
	s := open(t, t.TempDir())
	for _, f := range []string{"a", "b", "c"} {
		create(t, s, version(f, artifact(t, s, "x")))
	}
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	all := randomRecords(r, 2000)
	if err := s.AppendInvocations(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b hearth.Invocation) int {
		return cmp.Or(b.StartedAt.Compare(a.StartedAt), strings.Compare(b.ID, a.ID))
	})
	empty := 0
	for i := range 300 {
		f := randomFilter(r, all)
		s.SetScan([]int{60, 300, 2000, 200_000}[i%4])
		var want []hearth.Invocation
		for _, v := range all {
			if fits(f, v) {
				want = append(want, v)
			}
		}
		if len(want) == 0 {
			empty++
		}
		if f.ID != "" { // in the order of ids
			slices.SortFunc(want, func(a, b hearth.Invocation) int { return strings.Compare(b.ID, a.ID) })
		}
		got, _ := pages(t, s, f, 1+r.IntN(40))
		if d := gocmp.Diff(ids(want), ids(got)); d != "" {
			t.Fatalf("%+v (-want +got):\n%s", f, d)
		}
	}
	if empty > 200 {
		t.Errorf("%d of 300 searches find nothing: the test tests little", empty)
	}
}

// TestSearchIsBounded: a page looks at so many records and no more, and the pages go on
// through all.
func TestSearchIsBounded(t *testing.T) {
	s := open(t, t.TempDir())
	create(t, s, version("a", artifact(t, s, "x")))
	var all []hearth.Invocation
	for i := range 1000 {
		all = append(all, hearth.Invocation{ID: fmt.Sprintf("%08d", i), Function: "a", Version: 1, Status: 200, StartedAt: time.UnixMicro(int64(i))})
	}
	all[10].Status, all[20].ErrorCode = 404, hearth.CodeFunction
	if err := s.AppendInvocations(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	s.SetScan(100)
	for _, c := range []struct {
		filter hearth.InvocationFilter
		found  int
		pages  int
	}{
		{hearth.InvocationFilter{Status: "404"}, 1, 11}, // ten are full, and the next is empty
		{hearth.InvocationFilter{Status: "404", Until: time.UnixMicro(50)}, 1, 1},
		{hearth.InvocationFilter{Status: "404", Since: time.UnixMicro(950), Function: "a"}, 0, 1},
		{hearth.InvocationFilter{Code: "error"}, 1, 1}, // has an index
		{hearth.InvocationFilter{Status: "5xx", Function: "a"}, 0, 1},
		{hearth.InvocationFilter{ID: "00000010"}, 1, 1},
	} {
		found, n := pages(t, s, c.filter, 50)
		if len(found) != c.found || n != c.pages {
			t.Errorf("%+v: %d records on %d pages, want %d on %d", c.filter, len(found), n, c.found, c.pages)
		}
	}
}

// TestSearchGoesOn: the next page begins where the one before ended, also if the record at
// its end is gone, whose id says only when an asynchronous call was accepted.
func TestSearchGoesOn(t *testing.T) {
	s := open(t, t.TempDir())
	d := artifact(t, s, "x")
	create(t, s, version("a", d))
	create(t, s, version("b", d))
	now := time.Now().Truncate(time.Microsecond)
	long := uuid.Must(uuid.NewV7()).String() // accepted an hour before it ran
	err := s.AppendInvocations(t.Context(), []hearth.Invocation{
		{ID: "00000001", Function: "a", Version: 1, StartedAt: now.Add(30 * time.Minute)},
		{ID: long, Function: "b", Version: 1, StartedAt: now.Add(time.Hour), Attempt: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, next, err := s.Invocations(t.Context(), hearth.InvocationFilter{}, "", 1)
	if err == nil {
		err = s.DeleteFunction(t.Context(), "b", 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if list, _, err := s.Invocations(t.Context(), hearth.InvocationFilter{}, next, 1); err != nil || len(list) != 1 || list[0].ID != "00000001" {
		t.Errorf("behind %s are %v, %v", next, ids(list), err)
	}
}

func TestSearchRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	now := time.Now()
	for _, c := range []struct {
		filter hearth.InvocationFilter
		before string
		code   hearth.Code
		text   string
	}{
		{hearth.InvocationFilter{Function: "none"}, "", hearth.CodeNotFound, "no function"},
		{hearth.InvocationFilter{Status: "6xx"}, "", hearth.CodeInvalid, "no status"},
		{hearth.InvocationFilter{Status: "x"}, "", hearth.CodeInvalid, "no status"},
		{hearth.InvocationFilter{Code: "nope"}, "", hearth.CodeInvalid, "does not exist"},
		{hearth.InvocationFilter{Kind: "nope"}, "", hearth.CodeInvalid, "does not exist"},
		{hearth.InvocationFilter{MinDuration: 2, MaxDuration: 1}, "", hearth.CodeInvalid, "longer than"},
		{hearth.InvocationFilter{Since: now, Until: now}, "", hearth.CodeInvalid, "before it begins"},
		{hearth.InvocationFilter{ID: "0123"}, "", hearth.CodeInvalid, "too short"},
		{hearth.InvocationFilter{}, "nothing", hearth.CodeInvalid, "nothing is known"},
	} {
		_, _, err := s.Invocations(t.Context(), c.filter, c.before, 0)
		wantCode(t, err, c.code, c.text)
	}
	// An id tells about when it was, also without a record.
	if _, _, err := s.Invocations(t.Context(), hearth.InvocationFilter{}, "01a2189c-91b3-754e-a042-f286c28ce53a.2", 0); err != nil {
		t.Error(err)
	}
}

// TestSearchHidesPredecessors: what deleted functions left is not found under the name of
// a new one, nor among all.
func TestSearchHidesPredecessors(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	d := artifact(t, s, "x")
	for _, f := range []string{"again", "gone"} {
		create(t, s, version(f, d))
		if err := s.DeleteFunction(ctx, f, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, v := create(t, s, version("again", d))
	err := s.AppendInvocations(ctx, []hearth.Invocation{
		{ID: "00000001", Function: "again", Version: 1, StartedAt: time.UnixMicro(1)},
		{ID: "00000002", Function: "gone", Version: 1, StartedAt: time.UnixMicro(2)},
		{ID: "00000003", Function: "again", Version: v.Number, StartedAt: time.UnixMicro(3)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []hearth.InvocationFilter{{}, {Function: "again"}, {ID: "00000003"}} {
		if got, _ := pages(t, s, f, 2); len(got) != 1 || got[0].ID != "00000003" {
			t.Errorf("%+v: %v", f, ids(got))
		}
	}
}
