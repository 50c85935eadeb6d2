package policy

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

func at(d time.Duration) time.Time { return epoch.Add(d) }

func TestLoad(t *testing.T) {
	var l Load
	if a, p, since := l.At(epoch); a != 0 || p != 0 || !since.IsZero() {
		t.Errorf("before any call: %v %v %v", a, p, since)
	}
	l.Set(epoch, 4)
	if a, _, _ := l.At(at(settle)); math.Abs(a-4*(1-1/math.E)) > 1e-6 {
		t.Errorf("after one time constant: %v", a)
	}
	if a, p, _ := l.At(at(time.Minute)); math.Abs(a-4) > 1e-6 || math.Abs(p-4) > 1e-6 {
		t.Errorf("settled: %v %v", a, p)
	}
	l.Set(at(time.Minute), 0)
	a, p, since := l.At(at(PeakWindow))
	if a > 1e-6 || math.Abs(p-4) > 1e-6 || !since.Equal(at(time.Minute)) {
		t.Errorf("in the window of the peak: %v %v %v", a, p, since)
	}
	if _, p, _ := l.At(at(time.Minute + PeakWindow + 2*peakBucket)); p > 0.1 {
		t.Errorf("after the window: %v", p)
	}
	if a, p, _ := l.At(at(24 * time.Hour)); a > 1e-6 || p > 1e-6 {
		t.Errorf("a day later: %v %v", a, p)
	}
	l.Set(at(0), 1) // time does not go backwards
	if _, _, since := l.At(at(time.Hour)); !since.Equal(at(time.Minute)) {
		t.Errorf("idle since %v", since)
	}
	if size := unsafe.Sizeof(l); size > 200 {
		t.Errorf("a Load takes %d bytes", size)
	}
}

// TestLoadPeak compares the peak with that of all averages of the window.
func TestLoadPeak(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var l Load
	type point struct {
		at      time.Duration
		average float64
	}
	var points []point
	now, average, calls := time.Duration(0), 0.0, 0
	for range 2000 {
		step := time.Duration(rng.ExpFloat64() * float64(20*time.Second))
		for d := time.Duration(0); d < step; d += 100 * time.Millisecond { // the average, finely
			points = append(points, point{now + d, float64(calls) + (average-float64(calls))*math.Exp(-float64(d)/float64(settle))})
		}
		now += step
		average = float64(calls) + (average-float64(calls))*math.Exp(-float64(step)/float64(settle))
		points = append(points, point{now, average})
		calls = rng.IntN(20)
		l.Set(at(now), calls)

		got, peak, _ := l.At(at(now))
		if math.Abs(got-average) > 1e-6 {
			t.Fatalf("average %v, want %v", got, average)
		}
		least, most := 0.0, 0.0
		for i := len(points) - 1; i >= 0 && points[i].at > now-PeakWindow-2*peakBucket; i-- {
			most = max(most, points[i].average)
			if points[i].at > now-PeakWindow+peakBucket {
				least = max(least, points[i].average)
			}
		}
		if peak < least-0.1 || peak > most+0.1 { // float32, and what is between the points
			t.Fatalf("peak %v, want %v to %v", peak, least, most)
		}
	}
}

func TestMean(t *testing.T) {
	var m Mean
	if m.Value() != 0 {
		t.Error("a mean of nothing")
	}
	m.Add(time.Second)
	if m.Value() != time.Second {
		t.Errorf("the first: %v", m.Value())
	}
	for range 100 {
		m.Add(2 * time.Second)
	}
	if d := m.Value(); d < 1990*time.Millisecond || d > 2*time.Second {
		t.Errorf("after a change: %v", d)
	}
}
