package metrics

import (
	"bytes"
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"

	"github.com/hearthrun/hearth"
)

// server is what readings are taken from: a process that began at a time.
type server struct {
	t     *testing.T
	calls *Calls
	began time.Time
}

func (s *server) read(now time.Time) *Reading {
	s.t.Helper()
	r := prometheus.NewRegistry()
	started := prometheus.NewGauge(prometheus.GaugeOpts{Name: "process_start_time_seconds"})
	started.Set(float64(s.began.UnixMilli()) / 1000)
	parts := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hearth_instances"}, []string{"state"})
	parts.WithLabelValues("idle").Set(2)
	parts.WithLabelValues("busy").Set(3)
	r.MustRegister(started, parts)
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Accept", ExpositionFormat)
	Exposition(s.calls, r).ServeHTTP(w, req)
	got, err := Read(w.Body, now)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// TestLive: numbers are of the span and follow what is counted at once; a server that
// begins anew is noticed.
func TestLive(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	s := &server{t, &Calls{}, now.Add(-time.Hour)}
	count := func(n int, function string, took time.Duration, change ...func(*hearth.Invocation)) {
		for range n {
			s.calls.Count(call(function, took, change...))
		}
	}
	l := NewLive(time.Minute)
	stats := func(function string) hearth.Stats {
		t.Helper()
		all, err := l.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return all[function]
	}
	count(7, "f", time.Second) // before anybody looked
	first := s.read(now)
	if first.State("hearth_instances") != 5 || len(first.States("hearth_instances")) != 2 || !first.Started.Equal(s.began) {
		t.Errorf("%+v", first)
	}
	l.Add(first)
	if all, err := l.Stats(); all != nil || err != nil {
		t.Errorf("one reading tells %v, %v", all, err)
	}
	count(30, "f", 2*time.Second)
	count(10, "f", 2*time.Second, func(v *hearth.Invocation) {
		v.Version, v.ErrorCode, v.Cold, v.ColdReason = 2, hearth.CodeFunction, true, hearth.ColdScale
	})
	count(40, "other", time.Second)
	l.Add(s.read(now.Add(2 * time.Second)))
	f, all := stats("f"), stats("")
	if f.Calls != 40 || f.PerSecond != 20 || f.ErrorRatio != 0.25 || f.ColdStarts != 10 || math.Abs(f.Duration.P95-2) > 0.1 || f.Duration.Count != 40 ||
		len(f.Versions) != 2 || f.Versions[0].Calls != 30 || f.Versions[1].ErrorRatio != 1 || !f.From.Equal(now) || all.Calls != 80 || all.Versions != nil {
		t.Errorf("f: %+v\nall: %+v", f, all)
	}
	if got := l.Recent("f"); !slices.Equal(got, []float64{20}) || !slices.Equal(l.Recent(""), []float64{40}) {
		t.Errorf("recent %v, %v", got, l.Recent(""))
	}
	// Two minutes later nothing of that is told any more, and not too much was kept.
	for i := 4; i <= 120; i += 2 {
		l.Add(s.read(now.Add(time.Duration(i) * time.Second)))
	}
	if f := stats("f"); f.Calls != 0 || f.PerSecond != 0 || f.To.Sub(f.From) < time.Minute || f.To.Sub(f.From) > 67*time.Second {
		t.Errorf("after two minutes: %+v", f)
	}
	if len(l.readings) > liveReadings+2 || len(l.Recent("f")) > Recent {
		t.Errorf("%d readings, %d rates are kept", len(l.readings), len(l.Recent("f")))
	}
	// The server begins anew: it has counted from 0 since then.
	s.calls, s.began = &Calls{}, now.Add(125*time.Second)
	count(50, "f", time.Second)
	l.Add(s.read(now.Add(130 * time.Second)))
	if f := stats("f"); f.Calls != 50 || f.PerSecond != 10 || !f.From.Equal(s.began) {
		t.Errorf("after a restart: %+v", f)
	}
}

// TestLivePast: the first reading comes from the database, and is the same as if it had
// been taken then.
func TestLivePast(t *testing.T) {
	var calls Calls
	db := start(t, t.TempDir(), &calls)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	web := httptest.NewServer(db.Handler())
	defer web.Close()
	defer http.DefaultClient.CloseIdleConnections()
	c, err := api.NewClient(api.Config{Address: web.URL, Client: http.DefaultClient})
	if err != nil {
		t.Fatal(err)
	}
	query := func(q string, at time.Time) model.Vector {
		t.Helper()
		v, _, _, err := promv1.NewAPI(c).Query(t.Context(), q, at)
		if err != nil {
			t.Fatal(err)
		}
		return v.(model.Vector)
	}
	for i := range 20 { // from less than a bucket to more than an hour, and gaps
		calls.Count(call("f", time.Duration(i*i*i)*time.Second, func(v *hearth.Invocation) { v.Cold, v.ColdReason = i == 0, hearth.ColdFirst }))
	}
	s := &server{t, &calls, time.Now().Add(-time.Hour)}
	then := s.read(time.Now())
	eventually(t, "the calls are stored", func() bool {
		v := query("sum(hearth_invocations_total)", time.Now())
		return len(v) == 1 && v[0].Value == 20
	})
	at := query(PastTime(time.Millisecond), time.Now())
	if len(at) != 1 || time.Since(time.UnixMilli(int64(at[0].Value*1000))) > time.Minute {
		t.Fatalf("the past is %v", at)
	}
	past := ReadCounts(query(CountsQuery(time.Minute), time.Now()), then.Time)
	if len(past.counts) != len(then.counts) || len(past.counts) < 7 {
		t.Fatalf("%d of %d series", len(past.counts), len(then.counts))
	}
	for hash, c := range then.counts {
		got := past.counts[hash]
		if got.n != c.n || (c.h != nil && !c.h.Copy().Compact(0).Equals(got.h)) {
			t.Errorf("%s: got %v %v, want %v %v", c.labels, got.n, got.h, c.n, c.h)
		}
	}
	// What another process counted is not this one's.
	if other := ReadCounts(query(CountsQuery(0), time.Now().Add(time.Minute)), then.Time); len(other.counts) > 0 {
		t.Errorf("%d series of a process that began after them", len(other.counts))
	}
	calls.Count(call("f", time.Second))
	l := NewLive(time.Minute)
	l.Add(past)
	l.Add(s.read(then.Time.Add(time.Minute)))
	if all, err := l.Stats(); err != nil || all["f"].Calls != 1 || math.Abs(all["f"].Duration.P50-1) > 0.05 {
		t.Errorf("since the past: %+v, %v", all, err)
	}
}

// TestExpositionWaits: whoever asks while others are served waits for them.
func TestExpositionWaits(t *testing.T) {
	in, release := make(chan struct{}, 10), make(chan struct{})
	h := Exposition(&Calls{}, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		in <- struct{}{}
		<-release
		return nil, nil
	}))
	get := func(ctx context.Context) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := make(chan int)
	for range 6 {
		go func() { codes <- get(context.Background()) }()
	}
	for range maxScrapes {
		<-in
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	get(gone) // does not wait
	if len(in) > 0 {
		t.Errorf("%d more are served at the same time", len(in))
	}
	close(release)
	for range 6 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("an answer is %d", code)
		}
	}
}

// TestReadNonsense: what is no exposition is an error with a code.
func TestReadNonsense(t *testing.T) {
	for _, text := range []string{"<html>", "\x20\x0a\x03abc", "\xff\xff\xff\xff\xff\xff"} {
		if _, err := Read(bytes.NewBufferString(text), time.Now()); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzRead: no answer of a server makes Read or what follows panic.
func FuzzRead(f *testing.F) {
	var calls Calls
	calls.Count(call("f", time.Second))
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Accept", ExpositionFormat)
	Exposition(&calls, prometheus.NewRegistry()).ServeHTTP(w, req)
	f.Add(w.Body.Bytes())
	f.Fuzz(func(_ *testing.T, body []byte) {
		r, err := Read(bytes.NewReader(body), time.Now())
		if err != nil {
			return
		}
		l := NewLive(time.Minute)
		l.Add(r)
		l.Add(&Reading{Time: r.Time.Add(time.Second), Started: r.Started, counts: r.counts})
		l.Stats() //nolint:errcheck // an error is as good
	})
}
