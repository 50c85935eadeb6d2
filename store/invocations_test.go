package store_test

import (
	"fmt"
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
			Method: "GET", Path: "/x", Status: 502, ErrorCode: hearth.CodeFunction, ErrorMessage: "boom", Cold: i%3 == 0, ColdReason: hearth.ColdScale, Cached: i%2 == 1,
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
	list, err := s.Invocations(ctx, "f0", "", 3)
	if d := cmp.Diff([]string{"000008", "000006", "000004"}, ids(list)); d != "" || err != nil {
		t.Error(d, err)
	}
	list, err = s.Invocations(ctx, "f0", "000004", 0)
	if d := cmp.Diff([]string{"000002", "000000"}, ids(list)); d != "" || err != nil {
		t.Error(d, err)
	}
	list, err = s.Invocations(ctx, "", "000002", 0)
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
	if list, err := s.Invocations(ctx, "", "", 0); err != nil || len(list) != 100 || list[99].ID != "004900" {
		t.Errorf("left %d %v", len(list), err)
	}
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
