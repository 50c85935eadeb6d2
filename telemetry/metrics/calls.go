package metrics

import (
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
)

// Calls counts the calls of functions and what their instances use. Its methods may be called from many goroutines.
type Calls struct {
	mu   sync.RWMutex
	list map[version]*counts
}

// version is what is counted apart.
type version struct {
	function  string
	number    int
	isolation string
}

// counts are those of a version. They only grow.
type counts struct {
	version
	since time.Time // when they were 0

	calls    [len(outcomes)]atomic.Uint64
	cold     [len(coldReasons)]atomic.Uint64
	cached   atomic.Uint64
	in, out  atomic.Uint64
	duration Histogram
	phases   [len(phases)]Histogram
	used     usage

	touched atomic.Bool // something was counted
	gone    atomic.Bool // the version is no more

	// Of the goroutine that stores them.
	series  []series
	pending bool // something was counted since it was stored
	stored  time.Time
}

// outcome is how a call ended.
type outcome struct {
	code hearth.Code
	// fault is whose it was that the call failed: the caller's, the function's or
	// Hearth's. A limit is that of the function or of the machine.
	fault string
}

// outcomes are in no order but for the first two, which are no errors with a code.
var outcomes = [...]outcome{
	{"ok", ""},
	{"http_5xx", "function"}, // the function said so itself
	{hearth.CodeInvalid, "caller"},
	{hearth.CodeDenied, "caller"},
	{hearth.CodeNotFound, "caller"},
	{hearth.CodeConflict, "caller"},
	{hearth.CodeUnsupported, "caller"},
	{hearth.CodeCanceled, "caller"},
	{hearth.CodeExhausted, "limit"},
	{hearth.CodeFunction, "function"},
	{hearth.CodeTimeout, "function"},
	{hearth.CodeUnavailable, "hearth"},
	{hearth.CodeInternal, "hearth"},
}

var coldReasons = [...]hearth.ColdReason{
	hearth.ColdFirst, hearth.ColdExpired, hearth.ColdScale, hearth.ColdEvicted, hearth.ColdDied,
}

// phases are those of hearth.Timings.
var phases = [...]string{"queue", "start", "init", "run"}

// outcomeOf returns the index of how a call ended.
func outcomeOf(v *hearth.Invocation) int {
	switch {
	case v.ErrorCode == "" && v.Status < 500:
		return 0
	case v.ErrorCode == "":
		return 1
	}
	for i := range outcomes {
		if outcomes[i].code == v.ErrorCode {
			return i
		}
	}
	return len(outcomes) - 1 // there is no other code
}

// Count counts a call that has ended.
func (c *Calls) Count(v *hearth.Invocation) {
	c.change(version{v.Function, v.Version, v.Isolation}, v.StartedAt, func(n *counts) { n.count(v) })
}

// change calls fn with the counts of a version, which were 0 at a time if there are none
// yet.
func (c *Calls) change(key version, began time.Time, fn func(n *counts)) {
	c.mu.RLock()
	n := c.list[key]
	for n == nil {
		c.mu.RUnlock()
		c.begin(key, began)
		c.mu.RLock()
		n = c.list[key]
	}
	fn(n)
	c.mu.RUnlock() // not sooner: forget must not come between
}

func (n *counts) count(v *hearth.Invocation) {
	defer n.touch()
	n.calls[outcomeOf(v)].Add(1)
	n.in.Add(uint64(max(v.BytesIn, 0)))
	n.out.Add(uint64(max(v.BytesOut, 0)))
	if v.Cached {
		n.cached.Add(1)
	}
	if v.Instance == "" {
		return
	}
	for i, reason := range coldReasons {
		if v.ColdReason == reason {
			n.cold[i].Add(1)
		}
	}
	t := v.Timings
	n.duration.Observe(t.Queue + t.Start + t.Init + t.Run)
	n.phases[0].Observe(t.Queue)
	if v.Cold {
		n.phases[1].Observe(t.Start)
		n.phases[2].Observe(t.Init)
	}
	n.phases[3].Observe(t.Run)
}

// usage is what the instances of a version have used.
type usage struct {
	cpu                   float
	seconds, byteSeconds  [len(activities)]float
	netIn, netOut         float
	diskRead, diskWritten float
}

// activities are those of hearth.Usage, by the values of the label state.
var activities = [...]string{"starting", "busy", "idle"}

// float is a number that grows. Its methods may be called from many goroutines.
type float struct{ bits atomic.Uint64 }

func (f *float) Add(n float64) {
	for n > 0 {
		old := f.bits.Load()
		if f.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+n)) {
			return
		}
	}
}

func (f *float) Load() float64 { return math.Float64frombits(f.bits.Load()) }

// Use counts what instances of a version have used since it was counted last; that of stem
// cells has no function and version 0.
func (c *Calls) Use(function string, number int, isolation string, u hearth.Usage) {
	if u == (hearth.Usage{}) {
		return
	}
	began := time.Now().Add(-time.Duration(u.Total().Seconds * float64(time.Second)))
	c.change(version{function, number, isolation}, began, func(n *counts) {
		n.used.cpu.Add(u.CPUSeconds)
		for i, o := range [...]hearth.Occupancy{u.Starting, u.Busy, u.Idle} {
			n.used.seconds[i].Add(o.Seconds)
			n.used.byteSeconds[i].Add(o.ByteSeconds)
		}
		n.used.netIn.Add(float64(u.NetworkIn))
		n.used.netOut.Add(float64(u.NetworkOut))
		n.used.diskRead.Add(float64(u.DiskRead))
		n.used.diskWritten.Add(float64(u.DiskWritten))
		n.touch()
	})
}

// touch notes that something was counted, after it was.
func (n *counts) touch() {
	if !n.touched.Load() { // most times it is
		n.touched.Store(true)
	}
}

// begin makes counts of a version, which were 0 at a time, if there are none.
func (c *Calls) begin(v version, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list[v] != nil {
		return
	}
	if c.list == nil {
		c.list = map[version]*counts{}
	}
	c.list[v] = &counts{version: v, since: began}
}

// Prune lets the counts of versions go that do not exist any more, once they are stored.
func (c *Calls) Prune(exists func(function string, version int) bool) {
	for _, n := range c.all() {
		n.gone.Store(!exists(n.function, n.number))
	}
}

// forget takes the counts away of a version that is gone, unless there are newer ones.
func (c *Calls) forget(n *counts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !n.touched.Load() {
		delete(c.list, n.version)
	}
}

// all returns what there is, in no order.
func (c *Calls) all() []*counts {
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]*counts, 0, len(c.list))
	for _, n := range c.list {
		list = append(list, n)
	}
	return list
}

// value is one number of a version, or a histogram.
type value struct {
	*family
	labels    []string // values of the family's labels
	n         float64
	histogram *Histogram
}

// family is the values with one name.
type family struct {
	name, kind, help string
	labels           []string // after those of the version
	desc             *prometheus.Desc
}

func newFamily(name, kind, help string, labels ...string) *family {
	all := append([]string{"function", "version", "isolation"}, labels...)
	return &family{name: name, kind: kind, help: help, labels: labels, desc: prometheus.NewDesc(name, help, all, nil)}
}

var (
	callsFamily    = newFamily("hearth_invocations_total", "counter", "Calls that have ended, by how: code is ok, http_5xx or that of the error; fault is whose it was: caller, function, limit or hearth.", "code", "fault")
	coldFamily     = newFamily("hearth_cold_starts_total", "counter", "Calls that waited for an instance that was made for them, by why there was none.", "reason")
	cachedFamily   = newFamily("hearth_cached_responses_total", "counter", "Calls that were answered with a kept response.")
	inFamily       = newFamily("hearth_request_bytes_total", "counter", "Bytes of the bodies of requests and of events.")
	outFamily      = newFamily("hearth_response_bytes_total", "counter", "Bytes of the bodies of responses.")
	durationFamily = newFamily("hearth_invocation_duration_seconds", "histogram", "How long calls took that an instance had, from when they came.")
	phaseFamily    = newFamily("hearth_invocation_phase_seconds", "histogram", "How long calls took in parts: they waited in queue, their instance was started and initialised, it ran.", "phase")

	cpuFamily     = newFamily("hearth_instance_cpu_seconds_total", "counter", "How long instances have computed, on all cores together; those without a function are stem cells.")
	timeFamily    = newFamily("hearth_instance_seconds_total", "counter", "For how long instances have existed, by what they did: starting, busy with calls, or idle.", "state")
	memoryFamily  = newFamily("hearth_instance_memory_byte_seconds_total", "counter", "Memory charged to instances over that time: divided by the seconds it is the mean memory of one.", "state")
	networkFamily = newFamily("hearth_instance_network_bytes_total", "counter", "Bytes of packets from and to outside.", "direction")
	diskFamily    = newFamily("hearth_instance_disk_bytes_total", "counter", "Bytes from and to devices, as far as the host can tell.", "direction")

	families = []*family{
		callsFamily, coldFamily, cachedFamily, inFamily, outFamily, durationFamily, phaseFamily,
		cpuFamily, timeFamily, memoryFamily, networkFamily, diskFamily,
	}
	// familyPattern is a regular expression for their names.
	familyPattern = func() string {
		var names []string
		for _, f := range families {
			names = append(names, f.name)
		}
		return strings.Join(names, "|")
	}()
)

// valuesOf is how many values a version has.
const valuesOf = len(outcomes) + len(coldReasons) + 3 + 1 + len(phases) + 1 + 2*len(activities) + 4

// each calls fn for each value that is not 0, with a number that is always its.
func (n *counts) each(fn func(i int, v value)) {
	i := 0
	float := func(f *family, v float64, labels ...string) {
		if v > 0 {
			fn(i, value{family: f, labels: labels, n: v})
		}
		i++
	}
	number := func(f *family, c *atomic.Uint64, labels ...string) { float(f, float64(c.Load()), labels...) }
	for k := range outcomes {
		number(callsFamily, &n.calls[k], string(outcomes[k].code), outcomes[k].fault)
	}
	for k := range coldReasons {
		number(coldFamily, &n.cold[k], string(coldReasons[k]))
	}
	number(cachedFamily, &n.cached)
	number(inFamily, &n.in)
	number(outFamily, &n.out)
	durations := func(f *family, h *Histogram, labels ...string) {
		if c := h.Count(); c > 0 {
			fn(i, value{family: f, labels: labels, n: float64(c), histogram: h})
		}
		i++
	}
	durations(durationFamily, &n.duration)
	for k := range phases {
		durations(phaseFamily, &n.phases[k], phases[k])
	}
	float(cpuFamily, n.used.cpu.Load())
	for k, state := range activities {
		float(timeFamily, n.used.seconds[k].Load(), state)
		float(memoryFamily, n.used.byteSeconds[k].Load(), state)
	}
	float(networkFamily, n.used.netIn.Load(), "in")
	float(networkFamily, n.used.netOut.Load(), "out")
	float(diskFamily, n.used.diskRead.Load(), "read")
	float(diskFamily, n.used.diskWritten.Load(), "written")
}
