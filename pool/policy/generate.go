package policy

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// GenerateOptions describe a trace to make. The same ones make the same trace.
type GenerateOptions struct {
	// Pattern is one of Patterns.
	Pattern string
	// Functions and Duration are how many functions are called for how long.
	Functions int
	Duration  time.Duration
	Seed      uint64
}

// patterns make a function's arrivals: each of the calls returns how long after
// the one before the next comes.
var patterns = map[string]func(*rand.Rand, *function) (next func() time.Duration){
	"poisson": func(rng *rand.Rand, _ *function) func() time.Duration {
		return poisson(rng, logUniform(rng, 10*time.Second, 6*time.Hour))
	},
	"diurnal": func(rng *rand.Rand, _ *function) func() time.Duration {
		return diurnal(rng, logUniform(rng, 10*time.Second, 2*time.Hour))
	},
	"bursty": func(rng *rand.Rand, _ *function) func() time.Duration {
		return bursty(rng, logUniform(rng, 2*time.Minute, 4*time.Hour))
	},
	"rare": func(rng *rand.Rand, _ *function) func() time.Duration {
		every := logUniform(rng, 30*time.Minute, 24*time.Hour)
		if rng.IntN(2) == 0 {
			return timer(rng, every)
		}
		return poisson(rng, every)
	},
	"mix": mix,
}

// Patterns are the names that GenerateOptions takes.
func Patterns() []string { return []string{"mix", "poisson", "diurnal", "bursty", "rare"} }

// Generate makes a trace, call by call as it is consumed.
func Generate(o GenerateOptions) (Trace, error) {
	pattern := patterns[o.Pattern]
	if pattern == nil {
		return nil, fmt.Errorf("there is no pattern %q; choose %s", o.Pattern, strings.Join(Patterns(), ", "))
	}
	if o.Functions < 1 {
		return nil, fmt.Errorf("%d functions are too few: a trace has at least one", o.Functions)
	}
	if o.Duration <= 0 {
		return nil, fmt.Errorf("a trace of %s is too short", o.Duration)
	}
	return func(yield func(Call, error) bool) {
		all := make(functions, o.Functions)
		for i := range all {
			all[i] = newFunction(i, o.Seed, pattern)
		}
		heap.Init(&all)
		for all[0].at < o.Duration {
			f := all[0]
			if !yield(Call{Function: f.name, Start: f.at.Round(time.Millisecond), Duration: f.duration(), MemoryMB: f.memory}, nil) {
				return
			}
			f.at += f.next()
			heap.Fix(&all, 0)
		}
	}, nil
}

// function makes the calls of one.
type function struct {
	name   string
	index  int
	rng    *rand.Rand
	next   func() time.Duration
	at     time.Duration // of the next call
	memory float64
	median time.Duration // of the durations
}

// The distributions of durations and memory are those that the paper found:
// a function's average duration is log-normal with these parameters, in seconds
// (section 3.4, figure 7), and half of the applications allocate up to 170 MB, nine
// tenths up to 400 MB (section 3.5).
const (
	durationMu    = -0.38
	durationSigma = 2.36
	maxDuration   = 60 * time.Second // so that no function needs hundreds of instances
	memoryMedian  = 170.0
)

var memorySigma = math.Log(400/memoryMedian) / 1.2816 // the normal distribution's 90th percentile

func newFunction(i int, seed uint64, pattern func(*rand.Rand, *function) func() time.Duration) *function {
	rng := rand.New(rand.NewPCG(seed, uint64(i)))
	f := &function{name: fmt.Sprintf("f%d", i), index: i, rng: rng}
	f.median = time.Duration(min(math.Exp(durationMu+durationSigma*rng.NormFloat64()), maxDuration.Seconds()/4) * 1e9)
	f.memory = math.Round(min(max(memoryMedian*math.Exp(memorySigma*rng.NormFloat64()), 20), 2048))
	f.next = pattern(rng, f)
	f.at = time.Duration(rng.Float64() * float64(f.next())) // they do not all begin together
	return f
}

// duration of one call: most are near the median.
func (f *function) duration() time.Duration {
	d := time.Duration(float64(f.median) * math.Exp(0.5*f.rng.NormFloat64()))
	return min(max(d, time.Millisecond), maxDuration).Round(time.Millisecond)
}

// mix resembles the functions of Azure: how often they are called (section 3.3:
// 45 % of the applications at most once an hour, 81 % at most once a minute), and
// what calls them (section 3.2: timers 16 %, requests 55 %, queues and
// orchestration 22 %). That requests follow the day and queues come in bursts is
// an assumption, and so is the range of the rates.
func mix(rng *rand.Rand, _ *function) func() time.Duration {
	var every time.Duration
	switch u := rng.Float64(); {
	case u < 0.45:
		every = logUniform(rng, time.Hour, 48*time.Hour)
	case u < 0.81:
		every = logUniform(rng, time.Minute, time.Hour)
	default:
		every = logUniform(rng, 2*time.Second, time.Minute)
	}
	switch u := rng.Float64(); {
	case u < 0.16:
		return timer(rng, every)
	case u < 0.71:
		return diurnal(rng, every)
	case u < 0.93:
		return bursty(rng, every*burst)
	default:
		return poisson(rng, every)
	}
}

// logUniform returns a duration, all orders of magnitude being as likely.
func logUniform(rng *rand.Rand, least, most time.Duration) time.Duration {
	return time.Duration(float64(least) * math.Pow(float64(most)/float64(least), rng.Float64()))
}

// poisson calls come independently of each other.
func poisson(rng *rand.Rand, every time.Duration) func() time.Duration {
	return func() time.Duration { return time.Duration(rng.ExpFloat64() * float64(every)) }
}

// diurnal calls come independently of each other, many by day and few at night.
func diurnal(rng *rand.Rand, every time.Duration) func() time.Duration {
	const day = float64(24 * time.Hour)
	now := rng.Float64() * day // people live in all time zones
	return func() time.Duration {
		start := now
		for { // thinning: of those that come at the rate of noon, as many as now
			now += rng.ExpFloat64() * float64(every) / 1.9
			if rng.Float64()*1.9 < 1-0.9*math.Cos(2*math.Pi*now/day) {
				return time.Duration(now - start)
			}
		}
	}
}

// burst is the average number of calls that come together.
const burst = 10

// bursty calls come in bursts, which come independently of each other.
func bursty(rng *rand.Rand, every time.Duration) func() time.Duration {
	return func() time.Duration {
		if rng.Float64() < 1./burst {
			return time.Duration(rng.ExpFloat64() * float64(every))
		}
		return time.Duration(rng.ExpFloat64() * float64(500*time.Millisecond))
	}
}

// timer calls come at the next of the periods that people choose, give or take
// a second.
func timer(rng *rand.Rand, every time.Duration) func() time.Duration {
	const m, h = time.Minute, time.Hour
	usual := []time.Duration{m, 2 * m, 5 * m, 10 * m, 15 * m, 30 * m, h, 2 * h, 4 * h, 6 * h, 12 * h, 24 * h}
	i, _ := slices.BinarySearch(usual, every)
	every = usual[min(i, len(usual)-1)]
	late := time.Duration(0)
	return func() time.Duration {
		before := late
		late = time.Duration(rng.ExpFloat64() * float64(time.Second))
		return max(0, every+late-before)
	}
}

// functions is a heap, the function that is called next on top.
type functions []*function

func (f functions) Len() int { return len(f) }
func (f functions) Less(i, j int) bool {
	if f[i].at != f[j].at {
		return f[i].at < f[j].at
	}
	return f[i].index < f[j].index
}
func (f functions) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *functions) Push(x any)   { *f = append(*f, x.(*function)) }
func (f *functions) Pop() any     { panic("no function ever leaves") }
