package telemetry_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

// comparing is a recorder that compares versions 1 and 2 of f.
func comparing(t *testing.T) (*telemetry.Recorder, hearth.Release) {
	r := telemetry.NewRecorder(&sink{}, telemetry.RecorderOptions{}, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = r.Close() })
	release := hearth.Release{ID: 7, Function: "f", From: 1, To: 2, StartedAt: time.Now()}
	r.Traffic.Watch(release)
	return r, release
}

// through is a call of f through live that began in the release.
func through(version int, ran time.Duration, change func(*hearth.Invocation)) hearth.Invocation {
	v := hearth.Invocation{
		Function: "f", Version: version, Alias: hearth.Live, Status: 200, BytesOut: 2,
		StartedAt: time.Now().Add(time.Second), Timings: hearth.Timings{Run: ran},
	}
	if change != nil {
		change(&v)
	}
	return v
}

func failed(v *hearth.Invocation) { v.ErrorCode, v.Status = hearth.CodeFunction, 502 }

func left(v *hearth.Invocation) { v.ErrorCode, v.Status, v.BytesOut = hearth.CodeCanceled, 499, 0 }

// Only what came through the alias since the release began is compared.
func TestTrafficOfTheReleasedAliasOnly(t *testing.T) {
	r, release := comparing(t)
	r.Record(through(1, time.Millisecond, nil))
	r.Record(through(2, time.Millisecond, nil))
	r.Record(through(2, time.Millisecond, failed))
	for name, change := range map[string]func(*hearth.Invocation){
		"by its number":                          func(v *hearth.Invocation) { v.Alias = "" },
		"through another alias":                  func(v *hearth.Invocation) { v.Alias = "beta" },
		"of a function that had the name before": func(v *hearth.Invocation) { v.StartedAt = release.StartedAt.Add(-time.Second) },
		"of another version":                     func(v *hearth.Invocation) { v.Version = 3 },
		"of another function":                    func(v *hearth.Invocation) { v.Function = "g" },
		"from the cache":                         func(v *hearth.Invocation) { v.Cached = true },
	} {
		for version := range 3 {
			v := through(version, time.Hour, failed)
			change(&v)
			r.Record(v)
		}
		fresh, old, ok := r.Traffic.Traffic(release)
		if !ok || fresh.Calls != 2 || fresh.Errors != 1 || old.Calls != 1 || old.Errors != 0 {
			t.Fatalf("after a call %s: %+v, %+v", name, fresh, old)
		}
	}
	// Another step counts anew.
	next := release
	next.Step = 1
	if _, _, ok := r.Traffic.Traffic(next); ok {
		t.Error("the calls of a step count for the next")
	}
	r.Traffic.Watch(next)
	if fresh, _, ok := r.Traffic.Traffic(next); !ok || fresh.Calls != 0 {
		t.Errorf("%+v", fresh)
	}
	r.Traffic.Unwatch("f")
	if _, _, ok := r.Traffic.Traffic(next); ok {
		t.Error("it is still watched")
	}
}

// A caller that leaves counts against a version if it had to wait for long.
func TestTrafficCountsCallersThatGaveUp(t *testing.T) {
	r, release := comparing(t)
	fresh := func() hearth.Traffic {
		f, _, _ := r.Traffic.Traffic(release)
		return f
	}
	r.Record(through(2, 9*time.Second, left))
	if f := fresh(); f.Calls != 0 || f.Left != 1 {
		t.Errorf("9 s while nothing is known of the old version: %+v", f)
	}
	r.Record(through(2, 11*time.Second, left))
	if f := fresh(); f.Calls != 1 || f.Errors != 1 || f.Left != 2 || f.Percentiles[50] < 11 {
		t.Errorf("11 s: %+v", f)
	}
	for range 99 {
		r.Record(through(1, 10*time.Millisecond, nil))
	}
	r.Record(through(1, 10*time.Second, nil)) // one of 100 does not count
	if f := fresh(); f.Calls != 2 || f.Errors != 2 {
		t.Errorf("the old version answers in 10 ms: %+v", f)
	}
	r.Record(through(2, 15*time.Millisecond, left))
	if f := fresh(); f.Calls != 2 || f.Left != 3 {
		t.Errorf("a caller that left soon: %+v", f)
	}
	// One that had begun to answer does not hang: a stream ends when its reader leaves.
	r.Record(through(2, time.Minute, func(v *hearth.Invocation) { v.ErrorCode = hearth.CodeCanceled }))
	// Nor does one that got no instance.
	r.Record(through(2, 0, left))
	if f := fresh(); f.Calls != 2 || f.Left != 3 {
		t.Errorf("a stream: %+v", f)
	}
	// The same holds for the old version.
	r.Record(through(1, time.Minute, left))
	if _, old, _ := r.Traffic.Traffic(release); old.Calls != 101 || old.Errors != 1 {
		t.Errorf("%+v", old)
	}
}
