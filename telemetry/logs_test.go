package telemetry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

func TestRotationKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{FileBytes: 4 << 10, Files: 2, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	const total = 1000
	for i := range total {
		l.Append(line("f", "%d", i))
		if i%100 == 0 {
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := tail(t, l, "f", total)
	if len(got) == 0 || len(got) == total {
		t.Fatalf("%d lines are left", len(got))
	}
	for i, text := range got {
		if text != fmt.Sprint(total-len(got)+i) {
			t.Fatalf("line %d of %d is %s", i, len(got), text)
		}
	}
	if err := l.Close(); err != nil { // no file is being compressed any more
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 2 {
		t.Fatalf("%v %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Size() > 4<<10 || info.Mode() != 0o600 {
			t.Errorf("%s: %d bytes, %v %v", e.Name(), info.Size(), info.Mode(), err)
		}
	}
	if last := tail(t, openLogs(t, dir, telemetry.LogOptions{}), "f", 3); !slices.Equal(last, []string{"997", "998", "999"}) {
		t.Errorf("last %q", last)
	}
}

func TestFloodIsCutAndSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openLogs(t, t.TempDir(), telemetry.LogOptions{LinesPerSecond: 10})
		defer func() { _ = l.Close() }()
		for i := range 100 {
			l.Append(line("flood", "%d", i))
		}
		why := line("flood", "timeout")
		why.Stream = "hearth"
		l.Append(why)
		l.Append(line("quiet", "heard"))
		time.Sleep(1100 * time.Millisecond)
		for i := range 20 {
			l.Append(line("flood", "later %d", i))
		}
		time.Sleep(2 * time.Second)
		lines, err := l.Tail(t.Context(), hearth.LogQuery{Function: "flood", Tail: 1000})
		if err != nil {
			t.Fatal(err)
		}
		var kept, dropped int
		told := false
		for _, x := range lines {
			if x.Stream != "hearth" {
				kept++
				continue
			}
			if x.Text == "timeout" {
				told = true
				continue
			}
			var n int
			if _, err := fmt.Sscanf(x.Text, "%d log lines were dropped: the function logs more than 10 lines", &n); err != nil || x.Version != 3 {
				t.Fatalf("%+v %v", x, err)
			}
			dropped += n
		}
		// A burst of 20, then what 1.1 s give.
		if kept != 31 || kept+dropped != 120 {
			t.Errorf("%d kept and %d dropped of 120", kept, dropped)
		}
		if !told {
			t.Error("the flood swallowed what Hearth had to say")
		}
		if got := tail(t, l, "quiet", 10); !slices.Equal(got, []string{"heard"}) {
			t.Errorf("quiet got %q", got)
		}
	})
}

func TestLossIsSaidAtClose(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{LinesPerSecond: 1})
	for i := range 10 {
		l.Append(line("f", "%d", i))
		if err := l.Flush(t.Context()); err != nil { // the first notice is out early
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, text := range tail(t, openLogs(t, dir, telemetry.LogOptions{}), "f", 100) {
		var n int
		if _, err := fmt.Sscanf(text, "%d log lines were dropped", &n); err == nil && strings.Contains(text, "dropped") {
			sum += n
		} else {
			sum++
		}
	}
	if sum != 10 {
		t.Errorf("%d of 10 lines are accounted for", sum)
	}
}

func TestQueueIsBounded(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{QueueBytes: 40 << 10, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	// One function takes at most a quarter of the queue at a time; whatever is
	// lost is said.
	big := strings.Repeat("x", 5<<10)
	for range 100 {
		l.Append(line("f", "%s", big))
	}
	got := 0
	for _, text := range tail(t, l, "f", 1000) {
		var n int
		if text == big {
			got++
		} else if _, err := fmt.Sscanf(text, "%d log lines were dropped: the disk", &n); err == nil {
			got += n
		}
	}
	if got > 100 || got == 0 {
		t.Fatalf("%d lines", got)
	}
	// Everything queued is freed again.
	for range 50 {
		l.Append(line("g", "%s", big))
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := tail(t, l, "g", 1000); len(got) != 50 {
		t.Fatalf("%d of 50", len(got))
	}
}

func TestLongLineIsCut(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{})
	l.Append(line("f", "%s", strings.Repeat("€", 100_000)))
	got := tail(t, l, "f", 1)
	if len(got) != 1 || len(got[0]) > telemetry.MaxLine || !strings.HasSuffix(got[0], "€ [line cut]") {
		t.Fatalf("%d lines", len(got))
	}
}

func TestManyFunctionsWithFewFiles(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{OpenFiles: 5})
	before := openFiles(t)
	for round := range 3 {
		for i := range 100 {
			l.Append(line(fmt.Sprint("f", i), "%d", round))
		}
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := openFiles(t) - before; n > 5 {
		t.Errorf("%d files are open", n)
	}
	for i := range 100 {
		if got := tail(t, l, fmt.Sprint("f", i), 10); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Fatalf("f%d: %q", i, got)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(entries)
}

func TestDelete(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Follow(ctx, hearth.LogQuery{Function: "f", Tail: 0}, func(line hearth.LogLine) error {
			got <- line.Text
			return nil
		})
	}()
	for seen := false; !seen; { // until the follower is there
		l.Append(line("f", "old"))
		select {
		case <-got:
			seen = true
		case <-time.After(time.Millisecond):
		}
	}
	l.Append(line("f", "pending"))
	if err := l.Delete("f"); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("left %v %v", entries, err)
	}
	if got := tail(t, l, "f", 10); len(got) != 0 {
		t.Fatalf("got %q", got)
	}
	l.Append(line("f", "new"))
	for text := ""; text != "new"; {
		if text = <-got; text != "old" && text != "new" && text != "pending" {
			t.Fatalf("followed %q", text)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("follow ended with %v", err)
	}
	if got := tail(t, l, "f", 10); !slices.Equal(got, []string{"new"}) {
		t.Fatalf("got %q", got)
	}
	if err := l.Delete("f"); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete("never-was"); err != nil {
		t.Fatal(err)
	}
}

// TestDeleteRacesWithAppend makes, follows and deletes the same functions from
// many goroutines: nothing hangs, and what is appended last is there.
func TestDeleteRacesWithAppend(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{FileBytes: 1 << 10, OpenFiles: 2})
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprint("f", i%2)
		wg.Go(func() {
			for j := range 200 {
				l.Append(line(name, "%d", j))
				if j%20 == 0 {
					if err := l.Delete(name); err != nil {
						t.Error(err)
					}
				}
				if j%50 == 0 {
					ctx, cancel := context.WithCancel(t.Context())
					err := l.Follow(ctx, hearth.LogQuery{Function: name, Tail: 5}, func(hearth.LogLine) error { cancel(); return nil })
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					cancel()
				}
				l.Append(line(name, "wake the follower of the other goroutine"))
			}
		})
	}
	// Followers of a deleted function wait for a next line.
	stop := make(chan struct{})
	var waker sync.WaitGroup
	waker.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				l.Append(line("f0", "tick"))
				l.Append(line("f1", "tick"))
			}
		}
	})
	wg.Wait()
	close(stop)
	waker.Wait()
	for _, f := range []string{"f0", "f1"} {
		l.Append(line(f, "last"))
		if got := tail(t, l, f, 1); !slices.Equal(got, []string{"last"}) {
			t.Errorf("got %q", got)
		}
	}
}

func TestSlowFollowerIsTold(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{FileBytes: 1 << 10, Files: 2, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	l.Append(line("f", "first"))
	var seen []hearth.LogLine
	err := l.Follow(t.Context(), hearth.LogQuery{Function: "f", Tail: 1}, func(x hearth.LogLine) error {
		seen = append(seen, x)
		if x.Text == "first" {
			for i := range 100 {
				l.Append(line("f", "%d", i))
			}
			return l.Flush(t.Context())
		}
		if x.Text == "99" {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) {
		t.Fatal(err)
	}
	if len(seen) < 3 || seen[1].Stream != "hearth" || !strings.Contains(seen[1].Text, "deleted before") {
		t.Fatalf("seen %q", texts(seen))
	}
	for i, x := range seen[2:] {
		if want := fmt.Sprint(100 - len(seen[2:]) + i); x.Text != want {
			t.Fatalf("%q instead of %q", x.Text, want)
		}
	}
}

func TestCloseEndsFollowers(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{})
	started, ended := make(chan struct{}), make(chan error, 1)
	var got []string
	l.Append(line("f", "one"))
	go func() {
		ended <- l.Follow(t.Context(), hearth.LogQuery{Function: "f", Tail: 1}, func(x hearth.LogLine) error {
			if got = append(got, x.Text); len(got) == 1 {
				close(started)
			}
			return nil
		})
	}()
	<-started
	l.Append(line("f", "two"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || !slices.Equal(got, []string{"one", "two"}) {
		t.Fatalf("%v %q", err, got)
	}
	l.Append(line("f", "three"))
	if _, err := l.Tail(t.Context(), hearth.LogQuery{Function: "f", Tail: 1}); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Fatalf("tail of closed logs: %v", err)
	}
}

// TestDiskFailure makes writing fail and heal again: the lost lines are counted.
func TestDiskFailure(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := openLogs(t, dir, telemetry.LogOptions{})
		defer func() { _ = l.Close() }()
		// A directory in the place of the file.
		obstacle := filepath.Join(dir, "f.1.jsonl")
		if err := os.Mkdir(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			l.Append(line("f", "%d", i))
		}
		time.Sleep(3500 * time.Millisecond)
		if err := os.Remove(obstacle); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		l.Append(line("f", "back"))
		got := tail(t, l, "f", 10)
		if want := []string{"5 log lines were dropped: they could not be written to the disk", "back"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

func TestOpenLogsFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := telemetry.OpenLogs(file, telemetry.LogOptions{Logger: discard()})
	if e := hearth.AsError(err); e == nil || e.Code != hearth.CodeUnavailable || e.Hint == "" {
		t.Fatalf("got %v", err)
	}
}

// FuzzLineWriter: however the output is cut into chunks, the same lines come
// out, none too long.
func FuzzLineWriter(f *testing.F) {
	f.Add([]byte("a\r\nb\n\nc"), uint16(2), uint8(0))
	f.Add([]byte("€\xff\xe2\x82"), uint16(1), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, chunk uint16, blow uint8) {
		b = append([]byte(strings.Repeat("é\x80", int(blow)*200)), b...)
		split := func(chunk int) (out []string) {
			w := telemetry.NewLineWriter(func(s string) { out = append(out, s) })
			for c := range slices.Chunk(b, chunk) {
				if n, err := w.Write(c); n != len(c) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return out
		}
		whole, parts := split(len(b)+1), split(int(chunk)+1)
		if !slices.Equal(whole, parts) {
			t.Fatalf("whole %q, in parts %q", whole, parts)
		}
		for _, s := range whole {
			if len(s) > telemetry.MaxLine || strings.Contains(s, "\n") {
				t.Fatalf("bad line of %d bytes", len(s))
			}
		}
	})
}

// FuzzLogFile: a file with any content does no harm.
func FuzzLogFile(f *testing.F) {
	good, _ := json.Marshal(line("f", "good"))
	f.Add(append(good, '\n'))
	f.Add([]byte("{\"text\":1}\n\n{\"ti"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f.7.jsonl"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		l := openLogs(t, dir, telemetry.LogOptions{})
		defer func() { _ = l.Close() }()
		before := len(tail(t, l, "f", 1<<20))
		l.Append(line("f", "end"))
		after := tail(t, l, "f", 1<<20)
		if len(after) != before+1 || after[before] != "end" {
			t.Fatalf("%d lines, then %q", before, after)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l := openLogs(b, b.TempDir(), telemetry.LogOptions{LinesPerSecond: 1e9, BytesPerSecond: 1 << 40})
	x := line("f", "a line of ordinary length, such as programs write")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Append(x)
		}
	})
}
