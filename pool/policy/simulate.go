package policy

import (
	"math"
	"slices"
	"time"
)

// SimOptions are those of Simulate; the zero value is good.
type SimOptions struct {
	// ColdStart is how long a start takes; default 500 ms.
	ColdStart time.Duration
	// Calm is how long an instance that is not a function's last stays without
	// calls; default PeakWindow.
	Calm time.Duration
	// MemoryMB is what an instance takes if the trace does not tell; default 128.
	MemoryMB float64
}

// Result is what a policy did with a trace.
type Result struct {
	Policy    string `json:"policy"`
	Functions int    `json:"functions"`
	Calls     int    `json:"calls"`
	// Cold is the calls that found no instance ready.
	Cold      int     `json:"cold"`
	ColdShare float64 `json:"cold_share"`
	// ColdP50 and ColdP75 are percentiles of the functions' shares of cold calls:
	// every function counts the same, however often it is called.
	ColdP50 float64 `json:"cold_share_p50"`
	ColdP75 float64 `json:"cold_share_p75"`
	// BusyMBs and IdleMBs are memory-seconds, in MB·s, of instances that start or
	// serve a call, and of those that wait for one.
	BusyMBs float64 `json:"busy_mb_s"`
	IdleMBs float64 `json:"idle_mb_s"`
	// PreWarms are instances started ahead of a call, Wasted those of them that no
	// call came to.
	PreWarms int `json:"prewarms"`
	Wasted   int `json:"prewarms_wasted"`
}

// Simulate replays a trace against each policy, in one pass. Every instance
// serves one call at a time, and a call that finds none ready gets one of its
// own, as in the paper's simulator (section 5.1), but calls take their time. It
// returns the error that the trace ends with.
func Simulate(trace Trace, policies []Policy, o SimOptions) ([]Result, error) {
	if o.ColdStart == 0 {
		o.ColdStart = 500 * time.Millisecond
	}
	if o.Calm == 0 {
		o.Calm = PeakWindow
	}
	if o.MemoryMB == 0 {
		o.MemoryMB = 128
	}
	functions := map[string][]simulated{} // one for each policy
	var end time.Duration
	for call, err := range trace {
		if err != nil {
			return nil, err
		}
		f := functions[call.Function]
		if f == nil {
			f = make([]simulated, len(policies))
			for i, p := range policies {
				f[i] = simulated{learner: p.New()}
				f[i].windows = f[i].learner.Windows()
			}
			functions[call.Function] = f
		}
		for i := range f {
			f[i].call(call, &o)
		}
		end = max(end, call.Start+call.Duration)
	}
	results := make([]Result, len(policies))
	for i, p := range policies {
		r := &results[i]
		r.Policy = p.Name
		shares := make([]float64, 0, len(functions))
		for _, name := range sortedKeys(functions) { // sums of floats depend on the order
			f := &functions[name][i]
			f.finish(end, &o)
			r.add(f)
			shares = append(shares, float64(f.cold)/float64(f.calls))
		}
		r.ColdShare = float64(r.Cold) / float64(max(1, r.Calls))
		slices.Sort(shares)
		r.ColdP50, r.ColdP75 = percentile(shares, 0.5), percentile(shares, 0.75)
	}
	return results, nil
}

func sortedKeys(m map[string][]simulated) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (r *Result) add(f *simulated) {
	r.Functions++
	r.Calls += f.calls
	r.Cold += f.cold
	r.PreWarms += f.preWarms
	r.Wasted += f.wasted
	r.BusyMBs += f.busy
	r.IdleMBs += f.idle
}

// percentile returns the value that the share p of the sorted values does not
// exceed.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

// simulated is one function under one policy.
type simulated struct {
	learner Learner
	windows Windows // since the last call ended
	// instances are when each ends, or has ended, its last call, the earliest first.
	instances []time.Duration
	ended     time.Duration // when the last of all calls ends, or has ended
	memory    float64       // of an instance

	calls, cold, preWarms, wasted int
	busy, idle                    float64 // MB·s
}

// call replays one.
func (f *simulated) call(c Call, o *SimOptions) {
	f.memory = c.MemoryMB
	if f.memory == 0 {
		f.memory = o.MemoryMB
	}
	idle, ever := f.idleAt(c.Start)
	f.settle(c.Start, o)
	if ever && idle >= 0 {
		f.learner.Observe(idle)
		f.windows = f.learner.Windows()
	}
	f.calls++
	run := c.Duration
	// The one used last of those that are free.
	i, _ := slices.BinarySearch(f.instances, c.Start+1)
	if i > 0 {
		f.idle += f.memory * (c.Start - f.instances[i-1]).Seconds()
		f.instances = slices.Delete(f.instances, i-1, i)
	} else {
		f.cold++
		run += o.ColdStart
	}
	f.busy += f.memory * run.Seconds()
	end := c.Start + run
	f.ended = max(f.ended, end)
	i, _ = slices.BinarySearch(f.instances, end)
	f.instances = slices.Insert(f.instances, i, end)
}

// idleAt returns how long the function has been idle: negative while it is not.
func (f *simulated) idleAt(now time.Duration) (idle time.Duration, ever bool) {
	return now - f.ended, f.calls > 0
}

// settle brings the instances to now: those are gone whose time was over, and
// one is there that was started ahead.
func (f *simulated) settle(now time.Duration, o *SimOptions) {
	// Without calls all are gone when the windows say so; one that is not the last
	// is gone earlier if it was not needed for long.
	over := f.ended + max(f.windows.Linger, f.windows.KeepAlive)
	if f.windows.PreWarm > 0 {
		over = f.ended + f.windows.Linger
	}
	kept := f.instances[:0]
	for _, freed := range f.instances {
		gone := over
		if freed < f.ended {
			gone = max(freed, min(over, freed+o.Calm))
		}
		if now < gone || freed > now {
			kept = append(kept, freed)
		} else {
			f.idle += f.memory * (gone - freed).Seconds()
		}
	}
	f.instances = kept
	idle, ever := f.idleAt(now)
	if w := f.windows; ever && w.PreWarm > 0 && idle >= w.PreWarm+o.ColdStart {
		f.preWarms++
		if idle < w.PreWarm+w.KeepAlive {
			f.instances = append(f.instances, f.ended+w.PreWarm) // the last that became free
		} else {
			f.wasted++
			f.idle += f.memory * w.KeepAlive.Seconds()
		}
	}
}

// finish accounts for the instances that still wait at the end of the trace.
func (f *simulated) finish(end time.Duration, o *SimOptions) {
	f.settle(end, o)
	for _, freed := range f.instances {
		f.idle += f.memory * max(0, end-freed).Seconds()
	}
}
