package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
	"github.com/hearthrun/hearth/telemetry"
	"github.com/hearthrun/hearth/telemetry/metrics"
)

// Recording is what it needs to record calls at a rate, each of them. Memory is that of
// this process, in which it is done as in a server's.
type Recording struct {
	Calls   int64   `json:"calls"`
	Seconds float64 `json:"seconds"`
	// Counted is what the metrics say of Calls, Stored how many records can be read.
	Counted int64 `json:"counted"`
	Stored  int64 `json:"stored"`
	Dropped int64 `json:"dropped"`
	Skipped int64 `json:"skipped"`
	// How long the caller of one was held up, in microseconds.
	RecordP50US float64 `json:"record_p50_us"`
	RecordP99US float64 `json:"record_p99_us"`
	RecordMaxUS float64 `json:"record_max_us"`
	// In bytes: of memory before and at most, of it in use before and after, of the
	// disk for each record, and for the metrics of all.
	Memory      int64   `json:"memory"`
	PeakMemory  int64   `json:"peak_memory"`
	HeapBefore  int64   `json:"heap_before"`
	HeapAfter   int64   `json:"heap_after"`
	DiskPerCall float64 `json:"disk_per_call"`
	MetricsDisk int64   `json:"metrics_disk"`
}

const (
	// recordedFunctions have the calls that are recorded; one of failEvery fails.
	recordedFunctions = 20
	failEvery         = 100
	// recordCallers record at the same time.
	recordCallers = 4
)

// record records calls in a data directory of its own.
func record(ctx context.Context, rate int, d time.Duration, progress io.Writer) (r Recording, err error) {
	dir, err := os.MkdirTemp("", "hearth-bench-")
	if err != nil {
		return r, hearth.Errorf(hearth.CodeUnavailable, "make a data directory: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	if err := seed(ctx, dir, "python", hearth.DefaultIsolation, recordedFunctions); err != nil {
		return r, err
	}
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(ctx, dir, log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var calls metrics.Calls
	db := metrics.Start(metrics.Options{Dir: filepath.Join(dir, "metrics"), Calls: &calls, Gatherer: prometheus.NewRegistry(), Logger: log})
	defer func() { err = errors.Join(err, db.Close()) }()
	recorder := telemetry.NewRecorder(s, telemetry.RecorderOptions{SuccessRate: -1, Counter: &calls}, log)
	defer func() { err = errors.Join(err, recorder.Close()) }()

	files := filepath.Join(dir, "invocations.db*")
	diskBefore := diskOf(files)
	r.HeapBefore, r.Memory = heapInUse(), memoryNow()
	r.PeakMemory = r.Memory
	begin := time.Now()
	took := hdrhistogram.New(1, int64(time.Minute), 3) // nanoseconds
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range recordCallers {
		wg.Go(func() {
			mine := recordAt(ctx, recorder, float64(rate)/recordCallers, d)
			mu.Lock()
			took.Merge(mine)
			mu.Unlock()
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for recording := true; recording; {
		select {
		case <-tick.C:
			r.PeakMemory = max(r.PeakMemory, memoryNow())
		case <-done:
			recording = false
		}
	}
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	r.Seconds = time.Since(begin).Seconds()
	if err := recorder.Flush(ctx); err != nil {
		return r, err
	}
	r.PeakMemory = max(r.PeakMemory, memoryNow())
	r.HeapAfter = heapInUse()
	r.Calls, r.Dropped, r.Skipped = took.TotalCount(), recorder.Dropped(), recorder.Skipped()
	r.RecordP50US, r.RecordP99US, r.RecordMaxUS = float64(took.ValueAtQuantile(50))/1e3, float64(took.ValueAtQuantile(99))/1e3, float64(took.Max())/1e3
	// What ended in the last 0.1 s may come with the next look.
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		st, err := db.Stats(ctx, "", 0, begin.Add(-time.Second), time.Now())
		if err != nil {
			return r, err
		}
		if r.Counted = st.Calls; r.Counted >= r.Calls || time.Now().After(end) {
			break
		}
	}
	if r.Stored, err = countRecords(ctx, s); err != nil {
		return r, err
	}
	r.DiskPerCall = float64(diskOf(files)-diskBefore) / float64(max(r.Stored, 1))
	r.MetricsDisk = diskOf(filepath.Join(dir, "metrics", "*"), filepath.Join(dir, "metrics", "*", "*"), filepath.Join(dir, "metrics", "*", "*", "*"))
	fmt.Fprintf(progress, "record  %d calls, %d counted, %d stored; p50 %.1f µs, p99 %.1f µs; %.0f bytes of disk each\n", r.Calls, r.Counted, r.Stored, r.RecordP50US, r.RecordP99US, r.DiskPerCall)
	return r, nil
}

// recordAt records rate calls a second and returns how long each took.
func recordAt(ctx context.Context, recorder *telemetry.Recorder, rate float64, d time.Duration) *hdrhistogram.Histogram {
	took := hdrhistogram.New(1, int64(time.Minute), 3)
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; {
		due := int(rate * min(time.Since(begin), d).Seconds())
		for ; n < due; n++ {
			v := someCall(n)
			asked := time.Now()
			recorder.Record(v)
			took.RecordValue(max(1, int64(time.Since(asked)))) //nolint:errcheck // nothing takes a minute
		}
		if time.Since(begin) >= d {
			break
		}
		<-tick.C
	}
	return took
}

// someCall makes up the nth record: as those of a usual request, and some of failures.
func someCall(n int) hearth.Invocation {
	v := hearth.Invocation{
		ID: uuid.Must(uuid.NewV7()).String(), Function: crowdFunction(rand.IntN(recordedFunctions)), Version: 1, Instance: "native-0123456789abcdef", //nolint:gosec // not a secret
		Kind: hearth.KindHTTP, Method: "GET", Path: fmt.Sprintf("/fn/shop/orders/%d", n), Status: 200, Isolation: hearth.DefaultIsolation,
		StartedAt: time.Now(), Timings: hearth.Timings{Queue: 20 * time.Microsecond, Run: time.Duration(rand.IntN(20)) * time.Millisecond}, //nolint:gosec // as above
		BytesIn: 120, BytesOut: 800,
	}
	if n%failEvery == 0 {
		v.Status, v.ErrorCode, v.ErrorMessage = 502, hearth.CodeFunction, "KeyError: 'customer'"
	}
	return v
}

// countRecords reads all there are.
func countRecords(ctx context.Context, s *store.Store) (n int64, err error) {
	for before := ""; ; {
		list, next, err := s.Invocations(ctx, hearth.InvocationFilter{}, before, 1000)
		if err != nil {
			return n, err
		}
		n += int64(len(list))
		if before = next; before == "" {
			return n, nil
		}
	}
}

// diskOf returns the size of files.
func diskOf(patterns ...string) (n int64) {
	for _, p := range patterns {
		paths, _ := filepath.Glob(p) //nolint:errcheck // the patterns are fine
		for _, path := range paths {
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
				n += st.Size()
			}
		}
	}
	return n
}

// memoryNow returns what this process has in memory, in bytes, 0 if that is not known.
func memoryNow() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	return kilobytes(field(b, "VmRSS"))
}

// heapInUse returns the size of the objects that are in use.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
