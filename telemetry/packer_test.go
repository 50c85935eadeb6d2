package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

// waitPacked waits until every file of function f but the last is compressed.
func waitPacked(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		plain, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		temp, terr := filepath.Glob(filepath.Join(dir, "*.tmp"))
		if err = errors.Join(err, terr); err != nil {
			t.Fatal(err)
		}
		if len(plain) <= 1 && len(temp) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not compressed: %v %v", plain, temp)
		}
	}
}

// diskUse is what the files of a function take.
func diskUse(t *testing.T, dir, function string) (total int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, function+".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			total += info.Size()
		}
	}
	return total
}

// TestCompressionKeepsMore: what is compressed can be read as before, also after a start,
// and takes a part of the disk.
func TestCompressionKeepsMore(t *testing.T) {
	dir := t.TempDir()
	opts := telemetry.LogOptions{FileBytes: 64 << 10, FunctionBytes: 256 << 10, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30}
	l := openLogs(t, dir, opts)
	const total = 5000 // 800 KB
	for i := range total {
		l.Append(line("f", "request %d of a user was served", i))
		if i%300 == 0 { // as time would do
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			waitPacked(t, dir)
		}
	}
	check := func(l *telemetry.Logs) {
		t.Helper()
		got := tail(t, l, "f", total+1)
		if len(got) != total || got[0] != "request 0 of a user was served" {
			t.Fatalf("%d lines", len(got))
		}
	}
	check(l)
	waitPacked(t, dir)
	check(l)
	if n := diskUse(t, dir, "f"); n > 256<<10 {
		t.Errorf("it takes %d bytes", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(openLogs(t, dir, opts))
}

// TestOldInstallationKeepsItsLines: large files of an older version are compressed before they
// count.
func TestOldInstallationKeepsItsLines(t *testing.T) {
	dir := t.TempDir()
	lines := 0
	for _, name := range []string{"f.1.jsonl", "f.2.jsonl"} {
		var b bytes.Buffer
		for b.Len() < 8<<20-100<<10 {
			x := line("f", "%d %s", lines, strings.Repeat(fmt.Sprint(rand.Uint64()), 3000))
			x.Time = time.Now().UTC()
			if err := json.NewEncoder(&b).Encode(x); err != nil {
				t.Fatal(err)
			}
			lines++
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := openLogs(t, dir, telemetry.LogOptions{})
	l.Append(line("f", "new"))
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPacked(t, dir)
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 3 || filepath.Base(names[0]) != "f.1.jsonl.zst" || diskUse(t, dir, "f") > 16<<20 {
		t.Errorf("left %q, %v", names, err)
	}
	if got := tail(t, l, "f", 1000); len(got) != lines+1 || !strings.HasPrefix(got[0], "0 ") {
		t.Errorf("%d lines of %d", len(got), lines+1)
	}
}

// TestFollowThroughCompression: a follower that stands in a file when that is closed and
// compressed goes on behind its last line.
func TestFollowThroughCompression(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{FileBytes: 4 << 10, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	appended := 0
	add := func(n int) {
		for range n {
			l.Append(line("f", "%d", appended))
			appended++
		}
		if err := l.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	add(5)
	next := 3
	err := l.Follow(t.Context(), hearth.LogQuery{Function: "f", Tail: 2}, func(x hearth.LogLine) error {
		if x.Text != fmt.Sprint(next) {
			return fmt.Errorf("got %s after %d", x.Text, next-1)
		}
		switch next++; next {
		case 4, 50: // before it has opened the file, and while it reads one
			add(500)
			waitPacked(t, dir)
		case 1005:
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) {
		t.Error(err)
	}
}

// TestCrashDuringCompression begins with what each step leaves behind.
func TestCrashDuringCompression(t *testing.T) {
	content := func(from, to int) []byte {
		var b bytes.Buffer
		for i := from; i < to; i++ {
			x := line("f", "%d", i)
			x.Time = time.Now().UTC()
			if err := json.NewEncoder(&b).Encode(x); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	packed := enc.EncodeAll(content(0, 10), nil)
	for name, files := range map[string]map[string][]byte{
		"before":               {"f.1.jsonl": content(0, 10)},
		"while it is written":  {"f.1.jsonl": content(0, 10), "f.1.jsonl.zst.tmp": packed[:len(packed)/2]},
		"before the rename":    {"f.1.jsonl": content(0, 10), "f.1.jsonl.zst.tmp": packed},
		"before the plain one": {"f.1.jsonl": content(0, 10), "f.1.jsonl.zst": packed},
		"the disk has lied":    {"f.1.jsonl": content(0, 10), "f.1.jsonl.zst": make([]byte, 100)},
		"after":                {"f.1.jsonl.zst": packed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files["f.2.jsonl"] = content(10, 20)
			for file, b := range files {
				if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var want []string
			for i := range 20 {
				want = append(want, fmt.Sprint(i))
			}
			l := openLogs(t, dir, telemetry.LogOptions{})
			waitPacked(t, dir)
			l.Append(line("f", "20"))
			if got := tail(t, l, "f", 100); !slices.Equal(got, append(want, "20")) {
				t.Errorf("got %q", got)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || !slices.Equal(left, []string{filepath.Join(dir, "f.1.jsonl.zst"), filepath.Join(dir, "f.2.jsonl")}) {
				t.Errorf("left %q %v", left, err)
			}
		})
	}
}

// TestDamagedFile: what is before the damage is read, and so are the other files.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{FileBytes: 4 << 10, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	for i := range 200 {
		l.Append(line("f", "%d", i))
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPacked(t, dir)
	whole := tail(t, l, "f", 1000)
	path := filepath.Join(dir, "f.2.jsonl.zst")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	got := tail(t, l, "f", 1000)
	if len(whole) != 200 || len(got) >= 200 || len(got) < 150 || got[0] != "0" || got[len(got)-1] != "199" {
		t.Errorf("%d of %d lines", len(got), len(whole))
	}
}

// TestTotalIsBounded: when all functions together take too much, those that take most
// lose their oldest lines, and others none.
func TestTotalIsBounded(t *testing.T) {
	dir := t.TempDir()
	const total = 400 << 10
	l := openLogs(t, dir, telemetry.LogOptions{FileBytes: 32 << 10, TotalBytes: total, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	for i := range 10 {
		l.Append(line("small", "%d", i))
	}
	noise := func() string { // which cannot be compressed to much less
		b := make([]byte, 500)
		for i := range b {
			b[i] = byte('!' + rand.IntN(90))
		}
		return string(b)
	}
	for i := range 2000 {
		for _, name := range []string{"large", "larger", "larger"} {
			l.Append(line(name, "%d %s", i, noise()))
		}
		if i%20 != 0 {
			continue
		}
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A file that is being written compressed is not counted.
		if n := diskUse(t, dir, "*"); n > total+64<<10 {
			t.Fatalf("%d bytes after %d", n, i)
		}
	}
	if got := tail(t, l, "small", 100); len(got) != 10 {
		t.Errorf("small has %q", got)
	}
	for _, name := range []string{"large", "larger"} {
		if got := tail(t, l, name, 1); len(got) != 1 || !strings.HasPrefix(got[0], "1999 ") {
			t.Errorf("%s ends with %.20q", name, got)
		}
	}
	if a, b := diskUse(t, dir, "large"), diskUse(t, dir, "larger"); a < 100<<10 || b < 100<<10 {
		t.Errorf("large takes %d, larger %d bytes", a, b)
	}
}

// TestOldLinesGo: also those of a function that writes little.
func TestOldLinesGo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := openLogs(t, dir, telemetry.LogOptions{KeepFor: 24 * time.Hour})
		defer func() { _ = l.Close() }()
		l.Append(line("silent", "0"))
		for hour := range 100 {
			l.Append(line("f", "%d", hour))
			time.Sleep(time.Hour)
		}
		got := tail(t, l, "f", 1000)
		if n := len(got); n < 24 || n > 28 || got[n-1] != "99" {
			t.Errorf("%d lines are left: %q", n, got)
		}
		if got := tail(t, l, "silent", 10); len(got) != 0 {
			t.Errorf("silent has %q", got)
		}
		if files, err := filepath.Glob(filepath.Join(dir, "silent*")); err != nil || len(files) > 0 {
			t.Errorf("left %q, %v", files, err)
		}
		l.Append(line("silent", "1"))
		if got := tail(t, l, "silent", 10); !slices.Equal(got, []string{"1"}) {
			t.Errorf("silent has %q", got)
		}
	})
}

// TestOldFilesGoAtStart: the time of a file's last change tells how old it is.
func TestOldFilesGoAtStart(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{"f.1.jsonl": 30 * time.Hour, "f.2.jsonl": 20 * time.Hour, "g.1.jsonl": 25 * time.Hour} {
		path, at := filepath.Join(dir, name), time.Now().Add(-age)
		if err := os.WriteFile(path, []byte(fmt.Sprintf("{\"text\":%q}\n", name)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	l := openLogs(t, dir, telemetry.LogOptions{KeepFor: 24 * time.Hour})
	if got := tail(t, l, "f", 10); !slices.Equal(got, []string{"f.2.jsonl"}) {
		t.Errorf("f has %q", got)
	}
	if got := tail(t, l, "g", 10); len(got) != 0 {
		t.Errorf("g has %q", got)
	}
}

// TestSearchCanBeCanceled: a search that has to read everything ends with its context.
func TestSearchCanBeCanceled(t *testing.T) {
	l, _, _ := searched(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := l.Tail(ctx, hearth.LogQuery{Function: "f", Tail: 1, LogFilter: hearth.LogFilter{Text: "nowhere"}})
	if hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Errorf("got %v", err)
	}
}
