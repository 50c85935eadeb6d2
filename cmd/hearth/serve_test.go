package main

import (
	"maps"
	"strings"
	"testing"
)

// TestServeBounds: what would keep nothing is wrong usage.
func TestServeBounds(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--keep-invocations 0", "0 is less than 1"},
		{"--keep-invocations -1", "-1 is less than 1"},
		{"--keep-invocations-for -1s", "-1s is less than 1m0s"},
		{"--invocations-size 1KiB", "1KiB is less than 16MiB"},
		{"--keep-logs-for -5h", "-5h0m0s is less than 1m0s"},
		{"--keep-logs-for 59s", "59s is less than 1m0s"},
		{"--logs-size 0B", "0B is less than 16MiB"},
		{"--logs-size 1KiB", "1KiB is less than 16MiB"},
		{"--keep-metrics-for 59m", "59m0s is less than 1h0m0s"},
		{"--metrics-size 1B", "1B is less than 64MiB"},
		{"--metrics-interval -5s", "-5s is less than 1s"},
		{"--metrics-interval 0s", "0s is less than 1s"},
		{"--metrics-interval 10ms", "10ms is less than 1s"},
		{"--metrics-interval 61s", "1m1s is more than 1m0s"},
		{"--keep-versions 0", "0 is less than 1"},
	} {
		args := append([]string{"serve", "--data-dir", t.TempDir()}, strings.Fields(c.args)...)
		flag, _, _ := strings.Cut(c.args, " ")
		code, _, stderr := hearthRun(t, args...)
		if code != exitUsage || !strings.HasPrefix(stderr, "error: "+flag+" "+c.want+"\n") {
			t.Errorf("%s: exit code %d\n%s", c.args, code, stderr)
		}
	}
}

// TestExportHeaders: the variable for log lines stands in the place of the other.
func TestExportHeaders(t *testing.T) {
	env := map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=1, b=x%20y"}
	check := func(want map[string]string) {
		t.Helper()
		if got, err := exportHeaders(func(name string) string { return env[name] }); err != nil || !maps.Equal(got, want) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	check(map[string]string{"a": "1", "b": "x y"})
	env["OTEL_EXPORTER_OTLP_LOGS_HEADERS"] = "c=3"
	check(map[string]string{"c": "3"})
}
