package telemetry_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry"
)

// sink keeps records in memory and can fail.
type sink struct {
	mu      sync.Mutex
	err     error
	batches [][]hearth.Invocation
}

func (s *sink) AppendInvocations(_ context.Context, records []hearth.Invocation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.batches = append(s.batches, append([]hearth.Invocation(nil), records...))
	return nil
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *sink) count() (ok, failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		for _, r := range b {
			if r.ErrorCode != "" {
				failed++
			} else {
				ok++
			}
		}
	}
	return ok, failed
}

func success(i int) hearth.Invocation { return hearth.Invocation{ID: fmt.Sprint("s", i)} }
func failure(i int) hearth.Invocation {
	return hearth.Invocation{ID: fmt.Sprint("e", i), ErrorCode: hearth.CodeFunction}
}

func TestRecorderBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{}, discard())
		for i := range 10 {
			r.Record(success(i))
		}
		synctest.Wait()
		if ok, _ := s.count(); ok != 0 {
			t.Fatalf("%d records came at once", ok)
		}
		time.Sleep(101 * time.Millisecond)
		synctest.Wait()
		if ok, _ := s.count(); ok != 10 || len(s.batches) != 1 {
			t.Fatalf("%d records in %d batches", ok, len(s.batches))
		}
		for i := range 500 { // a full batch does not wait
			r.Record(failure(i))
		}
		synctest.Wait()
		if _, failed := s.count(); failed != 500 {
			t.Fatalf("%d errors", failed)
		}
		r.Record(success(11))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if ok, _ := s.count(); ok != 11 {
			t.Fatalf("Close left records behind: %d", ok)
		}
		r.Record(success(12))
		if r.Dropped() != 1 {
			t.Fatalf("dropped %d", r.Dropped())
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Refused calls are as many as callers like.
func TestRecorderSamplesRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		counter := &counting{}
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{Counter: counter}, discard())
		const seconds, rate = 5, 2000
		taken := 0
		for i := range seconds * rate {
			if r.Refused(hearth.Invocation{ID: fmt.Sprint("r", i), Function: "flooded", ErrorCode: hearth.CodeExhausted, Trace: hearth.Trace{Sampled: true}}) {
				taken++
			}
			if i%500 == 0 && !r.Refused(hearth.Invocation{ID: fmt.Sprint("q", i), Function: "quiet", ErrorCode: hearth.CodeExhausted}) {
				t.Fatal("a refusal of one function was skipped for those of another")
			}
			time.Sleep(time.Second / rate)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, failed := s.count(); taken != 10*seconds || failed != taken+seconds*rate/500 {
			t.Errorf("%d refused calls were taken, and %d recorded", taken, failed)
		}
		if counter.all != seconds*rate+seconds*rate/500 || counter.sampled != taken {
			t.Errorf("%d were counted, %d of them for traces", counter.all, counter.sampled)
		}
	})
}

// counting counts calls.
type counting struct{ all, sampled int }

func (c *counting) Count(v *hearth.Invocation) {
	if c.all++; v.Sampled {
		c.sampled++
	}
}

func TestRecorderSamplesSuccessesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{SuccessRate: 200}, discard())
		const seconds, rate = 5, 2000
		for i := range seconds * rate {
			r.Record(success(i))
			if i%10 == 0 {
				r.Record(failure(i))
			}
			time.Sleep(time.Second / rate)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		ok, failed := s.count()
		if failed != seconds*rate/10 {
			t.Errorf("%d errors of %d", failed, seconds*rate/10)
		}
		// One second's burst and then the rate.
		if want := 200 * (seconds + 1); ok < want*8/10 || ok > want*11/10 {
			t.Errorf("%d successes, want about %d", ok, want)
		}
		if int64(ok)+r.Skipped() != seconds*rate || r.Dropped() != 0 {
			t.Errorf("%d + %d skipped, %d dropped", ok, r.Skipped(), r.Dropped())
		}
	})
}

func TestRecorderPrefersErrorsWhenTheSinkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		s.fail(hearth.Errorf(hearth.CodeUnavailable, "the disk is full"))
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{SuccessRate: -1, Buffer: 100}, discard())
		for i := range 100 {
			r.Record(success(i))
		}
		time.Sleep(time.Second) // several attempts
		for i := range 60 {
			r.Record(failure(i))
		}
		if err := r.Flush(t.Context()); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Fatalf("got %v", err)
		}
		if r.Dropped() != 60 {
			t.Fatalf("dropped %d", r.Dropped())
		}
		s.fail(nil)
		time.Sleep(6 * time.Second) // longer than the longest pause
		synctest.Wait()
		if ok, failed := s.count(); ok != 40 || failed != 60 {
			t.Fatalf("%d successes and %d errors", ok, failed)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Asynchronous calls and what functions answer with 5xx are kept like errors.
func TestRecorderKeepsWhatIsVital(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{SuccessRate: 10}, discard())
		const n = 1000
		for i := range n {
			r.Record(success(i))
			r.Record(hearth.Invocation{ID: fmt.Sprint("a", i), Status: 200, Attempt: 1})
			r.Record(hearth.Invocation{ID: fmt.Sprint("h", i), Status: 503})
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		attempts, answers := 0, 0
		for _, b := range s.batches {
			for _, v := range b {
				attempts += v.Attempt
				answers += v.Status / 503
			}
		}
		if attempts != n || answers != n || r.Skipped() < n-20 || r.Dropped() != 0 {
			t.Errorf("%d attempts and %d answers with 503 of %d each; %d skipped, %d dropped", attempts, answers, n, r.Skipped(), r.Dropped())
		}
	})
}

// What waits has a bound in bytes, and does not hold on to requests.
func TestRecorderBoundsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		s.fail(hearth.Errorf(hearth.CodeUnavailable, "the disk is full"))
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{SuccessRate: -1, BufferBytes: 1 << 20}, discard())
		line := "GET /" + strings.Repeat("x", 1<<20)
		for i := range 1000 {
			v := success(i)
			v.Method, v.Path = line[:3], line[4:]
			r.Record(v)
			v.ErrorCode, v.ErrorMessage = hearth.CodeFunction, line
			r.Record(v)
			time.Sleep(time.Millisecond)
		}
		s.fail(nil)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		bytes, n := 0, 0
		for _, b := range s.batches {
			for _, v := range b {
				if len(v.Path) > 8<<10 || len(v.ErrorMessage) > 8<<10 || v.Method != "GET" {
					t.Fatalf("method %q, %d bytes of path, %d of message", v.Method, len(v.Path), len(v.ErrorMessage))
				}
				if unsafe.StringData(v.Path) == unsafe.StringData(line[4:]) {
					t.Fatal("the record holds on to the request")
				}
				bytes += len(v.Path) + len(v.ErrorMessage)
				n++
			}
		}
		// One batch was with the sink while others came.
		if bytes > 2<<20 || n == 0 || int64(n)+r.Dropped() != 2000 {
			t.Errorf("%d records of %d bytes were kept, %d dropped", n, bytes, r.Dropped())
		}
		if _, failed := s.count(); failed != n {
			t.Errorf("%d successes were kept while errors were dropped", n-failed)
		}
	})
}

// A sink that hangs has at most one batch: what waits can still make room for errors.
func TestRecorderPrefersErrorsWhileTheSinkHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := telemetry.NewRecorder(deadSink{}, telemetry.RecorderOptions{SuccessRate: -1, Buffer: 100, Batch: 10, SinkTimeout: time.Hour}, discard())
		for i := range 110 {
			r.Record(success(i))
			time.Sleep(time.Millisecond) // the first batch goes to the sink
		}
		before := r.Dropped()
		for i := range 90 {
			r.Record(failure(i))
		}
		if d := r.Dropped() - before; d > 90 || before > 10 {
			t.Errorf("%d records were dropped, and %d for errors", before, d)
		}
		for i := range 10 {
			r.Record(failure(i))
		}
		dropped := r.Dropped()
		r.Record(success(1000))
		if r.Dropped() != dropped+1 {
			t.Error("a success took the place of an error")
		}
		closed := make(chan error)
		go func() { closed <- r.Close() }()
		if err := <-closed; err == nil {
			t.Error("no error")
		}
	})
}

func TestRecorderOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		r := telemetry.NewRecorder(s, telemetry.RecorderOptions{Off: true, Counter: refusing{t}}, discard())
		v := failure(1)
		v.Function, v.Version = "f", 1
		r.Record(v)
		for range 100 {
			r.Refused(v)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if len(s.batches) != 0 || r.Skipped() != 0 || r.Dropped() != 0 {
			t.Errorf("%v", s.batches)
		}
	})
}

// refusing counts nothing.
type refusing struct{ t *testing.T }

func (r refusing) Count(*hearth.Invocation) { r.t.Error("a call was counted") }

func TestRecorderCloseGivesUpOnADeadSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := telemetry.NewRecorder(deadSink{}, telemetry.RecorderOptions{}, discard())
		r.Record(failure(1))
		if err := r.Close(); err == nil {
			t.Fatal("no error")
		}
		if r.Dropped() != 1 {
			t.Fatalf("dropped %d", r.Dropped())
		}
	})
}

type deadSink struct{}

func (deadSink) AppendInvocations(ctx context.Context, _ []hearth.Invocation) error {
	<-ctx.Done()
	return hearth.Errorf(hearth.CodeTimeout, "no answer: %w", ctx.Err())
}

func BenchmarkRecord(b *testing.B) {
	for name, rate := range map[string]int{"sampled": 200, "all": -1} {
		b.Run(name, func(b *testing.B) {
			r := telemetry.NewRecorder(&nullSink{}, telemetry.RecorderOptions{SuccessRate: rate}, discard())
			defer func() { _ = r.Close() }()
			v := success(1)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r.Record(v)
				}
			})
		})
	}
}

type nullSink struct{}

func (nullSink) AppendInvocations(context.Context, []hearth.Invocation) error { return nil }
