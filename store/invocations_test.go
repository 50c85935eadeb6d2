package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

func invocations(from, to int) (out []hearth.Invocation) {
	for i := from; i < to; i++ {
		out = append(out, hearth.Invocation{
			ID: fmt.Sprintf("%06d", i), Function: fmt.Sprint("f", i%2), Version: 1, Instance: "i-1", Kind: hearth.KindHTTP,
			Method: "GET", Path: "/x", Status: 502, ErrorCode: hearth.CodeFunction, ErrorMessage: "boom", Cold: i%3 == 0, ColdReason: hearth.ColdScale, Cached: i%2 == 1, Attempt: i % 3,
			StartedAt: time.UnixMicro(int64(i)).UTC(),
			Timings:   hearth.Timings{Route: 7, Queue: 1, Start: 2, Init: 3, Run: 4}, BytesIn: 5, BytesOut: 6,
		})
	}
	return out
}

func ids(rs []hearth.Invocation) (out []string) {
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}

func TestInvocations(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	create(t, s, version("f0", artifact(t, s, "x")))
	create(t, s, version("f1", artifact(t, s, "x")))
	want := invocations(0, 10)
	for range 2 { // repeating is harmless
		if err := s.AppendInvocations(ctx, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Invocation(ctx, "000003")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want[3], got); d != "" {
		t.Error(d)
	}
	list, _, err := s.Invocations(ctx, hearth.InvocationFilter{Function: "f0"}, "", 3)
	if d := cmp.Diff([]string{"000008", "000006", "000004"}, ids(list)); d != "" || err != nil {
		t.Error(d, err)
	}
	list, _, err = s.Invocations(ctx, hearth.InvocationFilter{Function: "f0"}, "000004", 0)
	if d := cmp.Diff([]string{"000002", "000000"}, ids(list)); d != "" || err != nil {
		t.Error(d, err)
	}
	list, _, err = s.Invocations(ctx, hearth.InvocationFilter{}, "000002", 0)
	if d := cmp.Diff([]string{"000001", "000000"}, ids(list)); d != "" || err != nil {
		t.Error(d, err)
	}
	huge := hearth.Invocation{ID: "huge", Path: strings.Repeat("é", 1<<20), ErrorMessage: strings.Repeat("\xff", 1<<20)}
	if err := s.AppendInvocations(ctx, []hearth.Invocation{huge}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Invocation(ctx, "huge"); err != nil || len(got.Path) > 2<<10 || len(got.ErrorMessage) > 4<<10 || got.Path[:2] != "é" {
		t.Errorf("%d %d %v", len(got.Path), len(got.ErrorMessage), err)
	}
}

func TestPruneInvocations(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	create(t, s, version("f0", artifact(t, s, "x")))
	create(t, s, version("f1", artifact(t, s, "x")))
	if err := s.AppendInvocations(ctx, invocations(0, 5000)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before, keep int
		want         int64
	}{{4100, 0, 4100}, {0, 900, 0}, {0, 899, 1}, {4200, 100, 799}, {0, 0, 0}} {
		n, err := s.PruneInvocations(ctx, time.UnixMicro(int64(c.before)), c.keep)
		if err != nil || n != c.want {
			t.Errorf("before %d keep %d: deleted %d, want %d, %v", c.before, c.keep, n, c.want, err)
		}
	}
	if list, _, err := s.Invocations(ctx, hearth.InvocationFilter{}, "", 0); err != nil || len(list) != 100 || list[99].ID != "004900" {
		t.Errorf("left %d %v", len(list), err)
	}
}

// TestBoundInvocations: however much comes, the file stays within its bound, and becomes
// smaller with a smaller one; the newest records stay.
func TestBoundInvocations(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	create(t, s, version("f0", artifact(t, s, "x")))
	create(t, s, version("f1", artifact(t, s, "x")))
	size := func() (n int64) {
		for _, name := range []string{"invocations.db", "invocations.db-wal"} {
			if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	bound := func(limit int64) int64 {
		t.Helper()
		n, err := s.BoundInvocations(ctx, limit)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const limit = 4 << 20
	n, deleted := 0, int64(0)
	for range 20 {
		list := invocations(n, n+1000)
		for i := range list {
			list[i].ErrorMessage = strings.Repeat("x", 500)
		}
		if err := s.AppendInvocations(ctx, list); err != nil {
			t.Fatal(err)
		}
		n += 1000
		deleted += bound(limit)
		if got := size(); got > limit*5/4+16<<20 {
			t.Fatalf("after %d records the files have %d bytes", n, got)
		}
	}
	newest := func() {
		t.Helper()
		list, _, err := s.Invocations(ctx, hearth.InvocationFilter{}, "", 2)
		if d := cmp.Diff([]string{fmt.Sprintf("%06d", n-1), fmt.Sprintf("%06d", n-2)}, ids(list)); d != "" || err != nil {
			t.Error(d, err)
		}
	}
	newest()
	if st, err := os.Stat(filepath.Join(dir, "invocations.db")); err != nil || st.Size() > limit*5/4 || deleted == 0 || deleted > int64(n) {
		t.Errorf("%d records were deleted, the file has %v bytes, %v", deleted, st.Size(), err)
	}
	if bound(2<<20) == 0 {
		t.Error("a smaller bound deletes nothing")
	}
	newest()
	if err := s.Close(); err != nil { // which moves all from the log to the file
		t.Fatal(err)
	}
	if got := size(); got > 2<<20 {
		t.Errorf("with a smaller bound there are %d bytes", got)
	}
	s = open(t, dir)
	newest()
}

func BenchmarkAppendInvocations(b *testing.B) {
	s := open(b, b.TempDir())
	n := 0
	for b.Loop() {
		if err := s.AppendInvocations(b.Context(), invocations(n, n+500)); err != nil {
			b.Fatal(err)
		}
		n += 500
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkAddVersion(b *testing.B) {
	s := open(b, b.TempDir())
	d := artifact(b, s, "x")
	create(b, s, version("f", d))
	for b.Loop() {
		if _, _, err := s.AddVersion(b.Context(), version("f", d), true, 0); err != nil {
			b.Fatal(err)
		}
	}
}
