package build

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLogFlood writes far more than a log holds. What is beyond the limit costs
// little, but its end still tells what went wrong.
func TestLogFlood(t *testing.T) {
	log := newLogBuffer()
	stdout, stderr := &lineWriter{log: log}, &lineWriter{log: log}
	flood := bytes.Repeat([]byte("\x1b[1my\n"), 8<<10)
	write := func(p []byte) time.Duration {
		begun := time.Now()
		if _, err := stdout.Write(p); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	kept := write(flood)
	write(bytes.Repeat([]byte(strings.Repeat("x", 1000)+"\n"), maxLog/1000))
	if !log.cut {
		t.Fatal("the log is not full")
	}
	var cut time.Duration
	for range 20 {
		cut += write(flood)
	}
	if cut > kept {
		t.Errorf("%d bytes take %v before the limit, and 20 times as many %v after it", len(flood), kept, cut)
	}
	if text, _ := log.wait(t.Context(), 0); len(text) > maxLog+200 || !strings.HasSuffix(string(text), "it is longer than 4MiB\n") {
		t.Errorf("the log has %d bytes and ends with %q", len(text), text[max(0, len(text)-100):])
	}

	var want []string
	for i := range maxTail - 2 {
		want = append(want, fmt.Sprint("line ", i))
		fmt.Fprintf(stdout, "\x1b[31mline %d\x1b[0m\r\n", i)
	}
	fmt.Fprint(stdout, "npm err")
	fmt.Fprint(stderr, "warning\xff\n")
	fmt.Fprint(stdout, "or: ENO")
	fmt.Fprint(stdout, "SPC")
	stdout.close()
	stderr.close()
	want = append(want, "warning", "npm error: ENOSPC")
	if got := log.lastLines(); !slices.Equal(got, want) {
		t.Errorf("the last lines are %q", got)
	}
	if n := cap(log.raw); n > 4*maxRaw {
		t.Errorf("%d bytes are held for the last lines", n)
	}
}

// The last lines are the last, whether the limit is just before or among them.
func TestLastLines(t *testing.T) {
	for _, after := range []int{0, maxTail - 1, 3 * maxTail} {
		log := newLogBuffer()
		w := &lineWriter{log: log}
		for !log.cut {
			fmt.Fprintln(w, strings.Repeat("x", maxLine))
		}
		var want []string
		for i := range after {
			want = append(want, fmt.Sprint(i))
			fmt.Fprintln(w, i)
		}
		want = want[max(0, len(want)-maxTail):]
		got := log.lastLines()
		if len(got) != maxTail || !slices.Equal(got[maxTail-len(want):], want) {
			t.Errorf("%d lines after the limit: %d lines, that end with %.20q", after, len(got), got[len(got)-1])
		}
	}
	log := newLogBuffer()
	w := &lineWriter{log: log}
	fmt.Fprint(w, "one\n\ntwo\rthree")
	w.close()
	if got := log.lastLines(); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("the lines are %q", got)
	}
}

// TestLogWithoutNpmsLog: npm's own log cannot be looked at.
func TestLogWithoutNpmsLog(t *testing.T) {
	log := newLogBuffer()
	w := &lineWriter{log: log}
	const out = "npm error code E404\n" +
		"npm error A complete log of this run can be found in: /tmp/.npm/_logs/2026-debug-0.log\n" +
		"npm ERR! A complete log of this run can be found in:\nnpm ERR!     /tmp/.npm/_logs/2026-debug-0.log\nadded 1 package\n"
	if _, err := w.Write([]byte(out)); err != nil {
		t.Fatal(err)
	}
	if text, _ := log.wait(t.Context(), 0); string(text) != "npm error code E404\nadded 1 package\n" {
		t.Errorf("the log is %q", text)
	}
}
