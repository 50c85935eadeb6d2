package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openLogs(t testing.TB, dir string, opts telemetry.LogOptions) *telemetry.Logs {
	t.Helper()
	opts.Logger = discard()
	l, err := telemetry.OpenLogs(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func line(function, format string, args ...any) hearth.LogLine {
	return hearth.LogLine{Function: function, Version: 3, Instance: "i", Stream: "stdout", Text: fmt.Sprintf(format, args...)}
}

func tail(t testing.TB, l *telemetry.Logs, function string, n int) []string {
	t.Helper()
	lines, err := l.Tail(t.Context(), hearth.LogQuery{Function: function, Tail: n})
	if err != nil {
		t.Fatal(err)
	}
	return texts(lines)
}

func texts(lines []hearth.LogLine) []string {
	out := []string{}
	for _, l := range lines {
		out = append(out, l.Text)
	}
	return out
}

func TestTailSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{})
	want := line("hello", "one <&> \x00\x1b[31m ünï \xff")
	l.Append(want)
	l.Append(line("hello", "two"))
	l.Append(line("other", "else"))
	l.Append(line("../../etc/passwd", "evil"))
	got, err := l.Tail(t.Context(), hearth.LogQuery{Function: "hello", Tail: 10})
	if err != nil || len(got) != 2 || got[0].Time.IsZero() {
		t.Fatalf("%v %v", got, err)
	}
	want.Time, want.Text = got[0].Time, "one <&> \x00\x1b[31m ünï \uFFFD"
	if got[0] != want {
		t.Fatalf("got %+v, want %+v", got[0], want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// A crash can leave half a line.
	path := filepath.Join(dir, "hello.1.jsonl")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLogs(t, dir, telemetry.LogOptions{})
	l.Append(line("hello", "three"))
	if got := tail(t, l, "hello", 2); !slices.Equal(got, []string{"two", "three"}) {
		t.Fatalf("got %q", got)
	}
	if _, err := l.Tail(t.Context(), hearth.LogQuery{Function: "../x", Tail: 1}); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Fatalf("got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("files %v %v", entries, err)
	}
}

func TestFollowHasNoGapAndNoRepetition(t *testing.T) {
	// Small files: the followers cross many rotations.
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{FileBytes: 16 << 10, Files: 1000, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	const total, followers = 5000, 4
	for i := range total / 10 { // before the followers come
		l.Append(line("f", "%d", i))
	}
	go func() {
		for i := total / 10; i < total; i++ {
			l.Append(line("f", "%d", i))
		}
	}()
	results := make(chan error, followers)
	for range followers {
		go func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			next := -1
			results <- l.Follow(ctx, hearth.LogQuery{Function: "f", Tail: 10}, func(line hearth.LogLine) error {
				var i int
				if _, err := fmt.Sscan(line.Text, &i); err != nil {
					return err
				}
				if next >= 0 && i != next {
					return fmt.Errorf("got %d after %d", i, next-1)
				}
				if next = i + 1; next == total {
					return errDone
				}
				return nil
			})
		}()
	}
	for range followers {
		if err := <-results; !errors.Is(err, errDone) {
			t.Error(err)
		}
	}
}

var errDone = fmt.Errorf("done")

func TestLineWriter(t *testing.T) {
	var got []string
	w := telemetry.NewLineWriter(func(s string) { got = append(got, s) })
	for _, chunk := range []string{"a", "b\nc\r\n", "\n", "\xe2\x82", "\xac\nend"} {
		if n, err := w.Write([]byte(chunk)); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"ab", "c", "", "€", "end"}; !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	got = nil
	long := strings.Repeat("€", telemetry.MaxLine)
	if _, err := w.Write([]byte(long + "\n")); err != nil {
		t.Fatal(err)
	}
	joined := ""
	for _, s := range got {
		if len(s) > telemetry.MaxLine {
			t.Fatalf("a part has %d bytes", len(s))
		}
		joined += strings.TrimSuffix(s, " [line continues]")
	}
	if joined != long || strings.HasSuffix(got[len(got)-1], "]") {
		t.Fatalf("%d parts do not make the line", len(got))
	}
}
