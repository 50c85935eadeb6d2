package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// fakeServer answers as it is told.
type fakeServer struct {
	status topStatus
	err    error
	failed []hearth.Invocation
}

func (s *fakeServer) look(context.Context) (topStatus, error) { return s.status, s.err }

func (s *fakeServer) failures(context.Context, string) ([]hearth.Invocation, error) {
	return s.failed, s.err
}

// topExample is a server with functions.
func topExample() topStatus {
	at := time.Date(2026, 5, 5, 12, 0, 0, 0, time.Local)
	numbers := func(calls, failed, cold int64, p95 float64, busy, idle int, memory int64) topNumbers {
		n := newTopNumbers(hearth.StatsNumbers{})
		n.Calls, n.PerSecond, n.ColdStarts = calls, float64(calls)/60, cold
		n.Codes["ok"] = calls - failed
		if failed > 0 {
			n.Errors["function"], n.Codes["function_error"] = failed, failed
			n.ErrorRatio = float64(failed) / float64(calls)
		}
		if cold > 0 {
			n.Cold[hearth.ColdScale] = cold
		}
		n.Duration = hearth.Durations{Count: calls, P50: p95 / 3, P95: p95, P99: p95 * 2}
		n.InFlight, n.Memory = busy, memory
		for state, k := range map[hearth.InstanceState]int{hearth.InstanceBusy: busy, hearth.InstanceIdle: idle} {
			if k > 0 {
				n.Instances[state] = k
			}
		}
		return n
	}
	st := topStatus{
		Time: at, Seconds: 60, topNumbers: numbers(9000, 12, 3, 0.050, 3, 5, 700<<20), Recent: []float64{0, 1, 50, 100, 150},
		StemCells: 2, MemoryUsed: 768 << 20, MemoryBudget: 2 << 30, ServerCPU: 0.215, ServerMemory: 120 << 20,
		Queue: topQueue{Queued: 12, Running: 1, Dead: 3, LagSeconds: 12},
	}
	add := func(name, isolation string, n topNumbers, recent ...float64) {
		f := topFunction{Function: name, Isolation: isolation, topNumbers: n, Recent: recent}
		f.Versions = []topVersion{{Version: 2, Isolation: isolation, topNumbers: n}}
		st.Functions = append(st.Functions, f)
	}
	add("a-function-with-quite-a-long-name-that-does-not-fit", "gvisor", numbers(60, 12, 3, 1.5, 1, 0, 512<<20), 0, 0, 1, 2, 1)
	add("hello", "native", numbers(8940, 0, 0, 0.00021, 2, 4, 30<<20), 0, 1, 50, 100, 148, 150, 149, 20, 10)
	waiting := numbers(0, 0, 0, 0, 0, 0, 0)
	waiting.Waiting = 7
	add("idle", "docker,native", waiting)
	return st
}

// see gives a model what a server tells, and messages.
func see(t *testing.T, m *topModel, messages ...tea.Msg) {
	t.Helper()
	for _, msg := range append([]tea.Msg{m.look()()}, messages...) {
		m.Update(msg)
	}
}

// screen is what a model shows, without colours.
func screen(m *topModel) string { return ansi.Strip(m.View().Content) + "\n" }

// pressed are messages of keys that are pressed.
func pressed(text string) (list []tea.Msg) {
	for _, r := range text {
		k := tea.Key{Code: r, Text: string(r)}
		switch r {
		case '\r':
			k = tea.Key{Code: tea.KeyEnter}
		case '\x1b':
			k = tea.Key{Code: tea.KeyEscape}
		case '\b':
			k = tea.Key{Code: tea.KeyBackspace}
		}
		list = append(list, tea.KeyPressMsg(k))
	}
	return list
}

// TestTopView compares screens of several sizes, after some keys, with files, which -update
// writes.
func TestTopView(t *testing.T) {
	failed := []hearth.Invocation{
		{Version: 2, Status: 502, ErrorCode: hearth.CodeFunction, ErrorMessage: "ValueError: \x1b[2Jno\nway", StartedAt: time.Date(2026, 5, 5, 11, 59, 0, 0, time.Local)},
		{Version: 2, Status: 503, StartedAt: time.Date(2026, 5, 5, 11, 58, 0, 0, time.Local)},
	}
	for _, c := range []struct {
		name          string
		width, height int
		keys          string
	}{
		{"80", 80, 20, ""},
		{"100", 100, 20, ""},
		{"160", 160, 20, ""},
		{"40", 40, 12, ""},
		{"small", 10, 3, ""},
		{"errors", 100, 20, "s"},
		{"filter", 100, 20, "/hel"},
		{"filtered", 100, 20, "/helx\b\r"},
		{"nothing", 100, 20, "/nosuch"},
		{"chosen", 80, 11, "jj"},
		{"paused", 80, 20, "p"},
		{"help", 80, 24, "?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &topModel{ctx: t.Context(), server: &fakeServer{status: topExample()}, url: "http://127.0.0.1:8080", interval: time.Second}
			see(t, m, append(pressed(c.keys), tea.WindowSizeMsg{Width: c.width, Height: c.height})...)
			golden(t, c.name, m)
		})
	}
	for _, width := range []int{80, 120} {
		name := fmt.Sprintf("details-%d", width)
		t.Run(name, func(t *testing.T) {
			m := &topModel{ctx: t.Context(), server: &fakeServer{status: topExample(), failed: failed}, url: "http://127.0.0.1:8080", interval: time.Second}
			see(t, m, append(pressed("j\r"), tea.WindowSizeMsg{Width: width, Height: 24})...)
			m.Update(m.askFailures()())
			golden(t, name, m)
		})
	}
}

func golden(t *testing.T, name string, m *topModel) {
	t.Helper()
	got := screen(m)
	for line := range strings.Lines(got) {
		if ansi.StringWidth(strings.TrimSuffix(line, "\n")) > m.width {
			t.Errorf("wider than %d: %q", m.width, line)
		}
	}
	if n := strings.Count(got, "\n"); n > m.height {
		t.Errorf("%d lines of %d", n, m.height)
	}
	var trimmed strings.Builder
	for line := range strings.Lines(got) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	path := filepath.Join("testdata", "top", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(trimmed.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), trimmed.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestTopStale: what is known stays when the server does not answer, and is marked; a
// pause keeps what is seen.
func TestTopStale(t *testing.T) {
	s := &fakeServer{status: topExample()}
	m := &topModel{ctx: t.Context(), server: s, url: "http://127.0.0.1:8080", interval: time.Second}
	m.Update(tea.WindowSizeMsg{Width: 100, Height: 24})
	if got := screen(m); !strings.Contains(got, "asking the server …") {
		t.Error(got)
	}
	s.err = hearth.Errorf(hearth.CodeUnavailable, "no server \x1b[2J").WithHint("start one")
	see(t, m)
	if got := screen(m); !strings.Contains(got, "error: no server �[2J\nhint: start one\n") || strings.Contains(got, "stale") || strings.Contains(got, "calls  ") {
		t.Error(got)
	}
	s.err = nil
	see(t, m)
	if got := screen(m); strings.Contains(got, "error:") || !strings.Contains(got, "\nhello ") {
		t.Error(got)
	}
	s.err = errors.New("gone")
	m.Update(looked{err: s.err, now: m.at.Add(14 * time.Second)})
	if got := screen(m); !strings.Contains(got, "stale: no answer for 14s") || !strings.Contains(got, "error: gone\n") || !strings.Contains(got, "\nhello ") {
		t.Error(got)
	}
	s.err, s.status = nil, topStatus{}
	see(t, m, pressed("p")...)
	before := screen(m)
	s.status = topExample()
	see(t, m)
	if got := screen(m); got != before || !strings.Contains(got, "paused") || !strings.Contains(got, noFunctions) {
		t.Error(got)
	}
	see(t, m, pressed("p")...)
	see(t, m)
	if got := screen(m); !strings.Contains(got, "\nhello ") {
		t.Error(got)
	}
}

// TestTopKeys: the chosen function stays chosen when the order changes, and no key breaks
// anything, whatever there is.
func TestTopKeys(t *testing.T) {
	s := &fakeServer{status: topExample()}
	m := &topModel{ctx: t.Context(), server: s, interval: time.Second}
	see(t, m, pressed("jj")...)
	if m.chosen != "idle" {
		t.Errorf("%q is chosen", m.chosen)
	}
	for range topOrders {
		see(t, m, pressed("s")...)
		if list := m.functions(); list[m.index(list)].Function != "idle" {
			t.Errorf("%q is chosen", m.chosen)
		}
	}
	see(t, m, pressed("kkkkjG")...)
	if m.chosen != "idle" {
		t.Errorf("%q is chosen at the end", m.chosen)
	}
	for _, status := range []topStatus{{}, topExample()} {
		s.status = status
		see(t, m)
		for _, sequence := range []string{"\r", "\r\r", "\x1b", "g", "G", "/é\b\b\b\r", "jk", "?\r", "/\x1b", "\r?\x1b\x1b\x1b", "sssssss"} {
			see(t, m, pressed(sequence)...)
			screen(m) // of no size at all
		}
	}
	for _, name := range []string{"q", "\x03"} {
		k := tea.KeyPressMsg{Code: rune(name[0]), Text: name}
		if name == "\x03" {
			k = tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl}
		}
		_, cmd := m.Update(k)
		if cmd == nil {
			t.Fatalf("%q does nothing", name)
		}
		if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%q does not leave", name)
		}
	}
}

// brokenServer breaks hearth top.
type brokenServer struct{ fakeServer }

func (*brokenServer) look(context.Context) (topStatus, error) { panic("broken") }

// TestMain runs a hearth top that breaks, if TestTopPanic asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("HEARTH_TEST_TOP_PANIC") == "" {
		os.Exit(m.Run())
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	err := a.runTop(context.Background(), &topModel{ctx: context.Background(), server: &brokenServer{}, interval: time.Second})
	os.Exit(hearth.ErrorCode(err).ExitCode())
}

// TestTopPanic: the terminal is as before also if hearth top breaks.
func TestTopPanic(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	defer master.Close()
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		out.ReadFrom(master) //nolint:errcheck // it ends with an error
	}()
	// In a process of its own: when it breaks, bubbletea closes its input while it still
	// reads from it, which the race detector does not let pass.
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "HEARTH_TEST_TOP_PANIC=1", "GORACE=exitcode=0")
	cmd.Stdin, cmd.Stdout = tty, tty
	err = cmd.Run()
	tty.Close()
	<-read
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != hearth.CodeInternal.ExitCode() {
		t.Errorf("it ended with %v", err)
	}
	if text := out.String(); strings.LastIndex(text, "\x1b[?1049l") < strings.LastIndex(text, "\x1b[?1049h") || strings.LastIndex(text, "\x1b[?25h") < strings.LastIndex(text, "\x1b[?25l") {
		t.Errorf("the terminal is left as it was in hearth top: %q", text)
	}
}

// TestTopNumbers: numbers take five characters at most.
func TestTopNumbers(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.001: "<0.01", 0.01: "0.01", 9.999: "10.0", 99.96: "100", 123456: "123k", 99_960: "100k", 9_999.6: "10.0k", 1e6: "1.0M"} {
		if got := short(n); got != want {
			t.Errorf("short(%v) is %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0µs", 0.000224: "224µs", 0.0009996: "1.0ms", 0.00996: "10ms", 0.9996: "1.0s", 30: "30.0s", 99.96: "1m", 7200: "2h"} {
		if got := brief(s, 1); got != want {
			t.Errorf("brief(%v) is %q, want %q", s, got, want)
		}
	}
	for _, n := range []int64{1, 1023, 1024, 10 << 10, 999 << 20, 1000 << 20, 15 << 30, 3 << 40} {
		if got := compact(n); len(got) > 5 {
			t.Errorf("compact(%d) is %q", n, got)
		}
	}
	if got := bars([]float64{0, 1, 4, 8}); got != " ▁▄█" {
		t.Errorf("%q", got)
	}
}
