package telemetry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

// levelLines are what libraries write, and what is none of it, with the level in them.
var levelLines = map[string]hearth.LogLevel{
	`{"time":"2026-01-31T08:00:00Z","level":"INFO","msg":"slog"}`:           hearth.LevelInfo,
	`{"level":30,"time":1531171074631,"pid":657,"msg":"pino"}`:              hearth.LevelInfo,
	`{"name":"bunyan","level":60,"msg":"x"}`:                                hearth.LevelFatal,
	`{"level":35,"msg":"one of its own between info and warn"}`:             hearth.LevelInfo,
	`{"severity":"WARNING","message":"Google"}`:                             hearth.LevelWarn,
	`{"@timestamp":"2026","log.level":"ERROR","message":"ECS"}`:             hearth.LevelError,
	`{"asctime":"x","levelname":"CRITICAL","message":"python-json-logger"}`: hearth.LevelFatal,
	`{"@t":"2026","@mt":"Serilog","@l":"Verbose"}`:                          hearth.LevelTrace,
	` {"level":"info"}`:              "",
	`{"Level" : "Err" }`:             hearth.LevelError,
	`{"lvl":"dbug","level":"debug"}`: hearth.LevelDebug,
	`{"level":"notice"}`:             hearth.LevelInfo,
	`{"level":"emerg"}`:              hearth.LevelFatal,
	`{"level":"40"}`:                 hearth.LevelWarn,
	`{"level":70}`:                   "",
	`{"level":9}`:                    "",
	`{"level":-10}`:                  "",
	`{"level":1e1}`:                  "",
	`{"level":null,"severity":true,"lvl":{"level":"error"}}`: "",
	`{"a":{"level":"error"}}`:                                "",
	`{"level":"` + strings.Repeat("e", 1000) + `"}`:          "",
	`{"level":"error"`:                                       "",
	`{"level":"error"} and more`:                             "",
	`["level","error"]`:                                      "",
	`level=error`:                                            "",
	`{}`:                                                     "",
	"":                                                       "",
	`{` + strings.Repeat(`"a":1,`, 10_000) + `"level":"error"}`:                             "",
	strings.Repeat(`{"a":`, 10_000) + `{"level":"error"}` + strings.Repeat(`}`, 10_000):     "",
	`{"level":"error","a":` + strings.Repeat(`[`, 9_000) + strings.Repeat(`]`, 9_000) + `}`: hearth.LevelError,
}

func TestLevels(t *testing.T) {
	l := openLogs(t, t.TempDir(), telemetry.LogOptions{})
	for text, want := range levelLines {
		l.Append(line("f", "%s", text))
		got, err := l.Tail(t.Context(), hearth.LogQuery{Function: "f", Tail: 1})
		if err != nil || len(got) != 1 || got[0].Level != want {
			t.Errorf("%.80s: level %q, want %q (%v)", text, got[0].Level, want, err)
		}
	}
	own := line("f", `{"level":"error"}`)
	own.Stream = "hearth"
	l.Append(own)
	if got, err := l.Tail(t.Context(), hearth.LogQuery{Function: "f", Tail: 1}); err != nil || got[0].Level != "" {
		t.Errorf("a function chose the level of a line of Hearth's: %+v %v", got, err)
	}
}

// searched has lines of an hour, ten seconds apart, in many files.
func searched(t *testing.T) (*telemetry.Logs, []hearth.LogLine, string) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{FileBytes: 8 << 10, LinesPerSecond: 1e6, BytesPerSecond: 1 << 30})
	begin := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	levels := hearth.LogLevels()
	var all []hearth.LogLine
	for i := range 360 {
		x := line("f", "Line %d of ÄRGER \"quoted\"", i)
		x.Time, x.Version = begin.Add(time.Duration(i)*10*time.Second), 1+i%2
		x.Invocation = fmt.Sprintf("call-%d", i/4)
		if i%3 == 0 {
			x.Stream, x.Level = "stderr", levels[i%len(levels)]
		}
		l.Append(x)
		all = append(all, x)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPacked(t, dir)
	return l, all, dir
}

func TestSearch(t *testing.T) {
	l, all, _ := searched(t)
	for name, q := range map[string]hearth.LogFilter{
		"everything":       {},
		"text":             {Text: "line 12"},
		"any case":         {Text: "ärger \"QUO"},
		"nothing":          {Text: "nowhere"},
		"level":            {Level: hearth.LevelWarn},
		"stream":           {Stream: "stderr"},
		"call":             {Invocation: "call-7"},
		"an attempt":       {Invocation: "call-7.2"},
		"begin of an id":   {Invocation: "call-"},
		"odd id":           {Invocation: `call-7"`},
		"since":            {Since: all[300].Time},
		"until":            {Until: all[17].Time},
		"between":          {Since: all[100].Time, Until: all[200].Time},
		"before all":       {Until: all[0].Time},
		"after all":        {Since: time.Now()},
		"all at once":      {Text: "line", Level: hearth.LevelError, Stream: "stderr", Since: all[50].Time, Until: all[340].Time},
		"call and stream":  {Invocation: "call-3", Stream: "stdout"},
		"level of nothing": {Stream: "stdout", Level: hearth.LevelTrace},
	} {
		for _, n := range []int{0, 1, 7, 1000} {
			for _, versions := range [][]int{nil, {2}, {1, 2}, {9}} {
				var want []string
				for _, x := range all {
					if meant(x, q) && (versions == nil || slices.Contains(versions, x.Version)) {
						want = append(want, x.Text)
					}
				}
				want = want[max(0, len(want)-n):]
				got, err := l.Tail(t.Context(), hearth.LogQuery{Function: "f", Versions: versions, Tail: n, LogFilter: q})
				if err != nil || !slices.Equal(texts(got), want) {
					t.Errorf("%s, %d of versions %v: got %d, want %d lines: %v", name, n, versions, len(got), len(want), err)
				}
			}
		}
	}
}

// meant is what LogFilter promises, written down once more.
func meant(x hearth.LogLine, q hearth.LogFilter) bool {
	rank := map[hearth.LogLevel]int{"": 0, "trace": 1, "debug": 2, "info": 3, "warn": 4, "error": 5, "fatal": 6}
	return strings.Contains(strings.ToLower(x.Text), strings.ToLower(q.Text)) &&
		rank[x.Level] >= rank[q.Level] &&
		(q.Stream == "" || q.Stream == x.Stream) &&
		(q.Invocation == "" || q.Invocation == x.Invocation || q.Invocation == x.Invocation+".2") &&
		(q.Since.IsZero() || x.Time.Compare(q.Since) >= 0) &&
		(q.Until.IsZero() || x.Time.Compare(q.Until) < 0)
}

func TestFollowIsFiltered(t *testing.T) {
	l, all, _ := searched(t)
	var seen []string
	err := l.Follow(t.Context(), hearth.LogQuery{Function: "f", Versions: []int{2}, Tail: 2, LogFilter: hearth.LogFilter{Stream: "stdout"}}, func(x hearth.LogLine) error {
		if seen = append(seen, x.Text); len(seen) == 2 {
			for i, stream := range []string{"stderr", "stdout", "hearth", "stdout"} {
				next := line("f", "new %d", i)
				next.Stream, next.Version = stream, 2
				l.Append(next)
			}
		}
		if x.Text == "new 3" {
			return errDone
		}
		return nil
	})
	want := []string{all[355].Text, all[359].Text, "new 1", "new 3"}
	if !errors.Is(err, errDone) || !slices.Equal(seen, want) {
		t.Errorf("%v, seen %q", err, seen)
	}
}

func TestFollowEndsWithUntil(t *testing.T) {
	l, _, _ := searched(t)
	n := 0
	err := l.Follow(t.Context(), hearth.LogQuery{Function: "f", Tail: 5, LogFilter: hearth.LogFilter{Until: time.Now().Add(100 * time.Millisecond)}}, func(hearth.LogLine) error {
		n++
		return nil
	})
	if err != nil || n != 5 {
		t.Errorf("%d lines, %v", n, err)
	}
}

// TestAnswerIsBounded: many long lines are fewer in an answer, however well they can be
// compressed, and by what they take as JSON.
func TestAnswerIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := openLogs(t, dir, telemetry.LogOptions{LinesPerSecond: 1e6, BytesPerSecond: 1 << 40})
	for char, total := range map[string]int{"x": 320, "\x01": 60} {
		function := fmt.Sprint("f", total)
		for i := range total {
			l.Append(line(function, "%d %s", i, strings.Repeat(char, 60<<10)))
			if i%50 == 0 {
				if err := l.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := tail(t, l, function, total)
		b, err := json.Marshal(got)
		if n := len(b); err != nil || n > 17<<20 || n < 15<<20 || !strings.HasPrefix(got[len(got)-1], fmt.Sprint(total-1, " ")) {
			t.Errorf("%s: %d lines with %d bytes, %v", function, len(got), n, err)
		}
	}
}
