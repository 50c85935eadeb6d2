package hearth

import "time"

// InstanceState is what an instance does now.
type InstanceState string

const (
	// InstanceStarting: its sandbox or its function is being started.
	InstanceStarting InstanceState = "starting"
	// InstanceStem: a stem cell, which has no function yet.
	InstanceStem InstanceState = "stem"
	// InstanceIdle: it waits for a call.
	InstanceIdle InstanceState = "idle"
	// InstancePaused: it waits for a call and is frozen, because it used CPU.
	InstancePaused InstanceState = "paused"
	// InstanceBusy: it has a call.
	InstanceBusy InstanceState = "busy"
	// InstanceSettling: its caller left, and its call has not ended yet.
	InstanceSettling InstanceState = "settling"
	// InstanceDraining: it ends its calls and gets no other.
	InstanceDraining InstanceState = "draining"
	// InstanceStopping: its sandbox is being destroyed.
	InstanceStopping InstanceState = "stopping"
	// InstanceStopped: nothing of it is left. Only events tell it.
	InstanceStopped InstanceState = "stopped"
)

// Instance is a sandbox bound to one version, or a stem cell.
type Instance struct {
	// ID is that of the sandbox.
	ID string `json:"id" doc:"Id of the sandbox" example:"i-9f2c4e1b7a60d385"`
	// Function and Version are empty for a stem cell.
	Function  string        `json:"function,omitempty" doc:"Function that it serves; missing for a stem cell" example:"hello"`
	Version   int           `json:"version,omitempty" doc:"Version that it serves; missing for a stem cell"`
	Isolation string        `json:"isolation" doc:"Isolation technology it runs under" example:"native"`
	Runtime   string        `json:"runtime" doc:"Language environment in it" example:"python3.11"`
	State     InstanceState `json:"state" doc:"What it does now: it starts, is a stem cell, waits for a call (idle, or paused if it used CPU meanwhile), has one (busy), has one whose caller left (settling), ends its calls and gets no other (draining), is being destroyed (stopping) or is gone (stopped, in events only)" enum:"starting,stem,idle,paused,busy,settling,draining,stopping,stopped" example:"idle"`
	// Why says in words why it is in this state or, once it is ready, why it was
	// started.
	Why string `json:"why" doc:"In words: why it is in this state or, once it is ready, why it was started" example:"3 calls waited"`
	// Since is when it came into this state, StartedAt when it was asked for.
	Since     time.Time `json:"since" doc:"When it came into this state"`
	StartedAt time.Time `json:"started_at" doc:"When the pool decided to start it"`
	// InFlight is the calls it has now, Served those it has ended.
	InFlight int   `json:"in_flight" doc:"Calls it has now"`
	Served   int64 `json:"served" doc:"Calls it has ended"`
	// Memory is what it uses, PSS what it used when it was last weighed, in bytes; 0
	// where that is not known.
	Memory int64 `json:"memory,omitempty" doc:"What it uses, in bytes; missing where that is not known"`
	PSS    int64 `json:"pss,omitempty" doc:"What it used when it was last weighed, with what it shares with others counted in parts (proportional set size), in bytes; missing where that is not known"`
	// MemoryPeak is the most it used at a time, CPU how long it has computed; 0 where
	// that is not known.
	MemoryPeak int64         `json:"memory_peak,omitempty" doc:"The most it used at a time, in bytes; missing where that is not known"`
	CPU        time.Duration `json:"cpu_ns,omitempty" doc:"How long it has computed, on all cores together, in nanoseconds; missing where that is not known"`
	// Charge is what the pool counts for it in its memory budget, in bytes.
	Charge int64 `json:"charge" doc:"What the pool counts for it in its memory budget, in bytes"`
}

// InstanceEvent is a change of an instance's state.
type InstanceEvent struct {
	Time time.Time `json:"time" doc:"When it changed"`
	// From is the state before; empty for a new instance.
	From     InstanceState `json:"from,omitempty" doc:"State before; missing for a new instance" enum:"starting,stem,idle,paused,busy,settling,draining,stopping,stopped"`
	Instance Instance      `json:"instance" doc:"The instance after the change"`
}

// PoolStatus is what the pool has and why.
type PoolStatus struct {
	Time time.Time `json:"time" doc:"When this was so"`
	// MemoryBudget bounds MemoryUsed, what all instances are expected to use, in
	// bytes; 0 means no bound.
	MemoryBudget int64 `json:"memory_budget" doc:"Bound of memory_used in bytes; 0 means none"`
	MemoryUsed   int64 `json:"memory_used" doc:"What all instances and stem cells are expected to use, in bytes"`
	// MaxInstances bounds the number of instances and stem cells.
	MaxInstances int `json:"max_instances" doc:"Bound of the number of instances and stem cells"`
	// Queued is the calls of all functions that wait.
	Queued int `json:"queued" doc:"Calls of all functions that wait for an instance"`
	// Instances are sorted by function, version and age; stem cells come last.
	Instances []Instance     `json:"instances" doc:"Sorted by function, version and age; stem cells come last"`
	Functions []PoolFunction `json:"functions" doc:"The versions that have instances or were called lately"`
	Stems     []StemStock    `json:"stems" doc:"The stocks of stem cells: started sandboxes with a runtime and without a function"`
}

// PoolFunction is what the pool knows about one version of a function that has
// instances or was called lately.
type PoolFunction struct {
	Function string `json:"function" doc:"Name of the function" example:"hello"`
	Version  int    `json:"version" doc:"Number of the version"`
	// Retired is true for a version that only ends its calls.
	Retired  bool `json:"retired,omitempty" doc:"Whether it only ends the calls it has"`
	InFlight int  `json:"in_flight" doc:"Calls that have an instance"`
	Queued   int  `json:"queued" doc:"Calls that wait for one"`
	// Instances is how many there are, Target how many there should be, between
	// Min and Max.
	Instances int `json:"instances" doc:"How many instances there are, those that start included"`
	Target    int `json:"target" doc:"How many there should be now"`
	Min       int `json:"min" doc:"How many are kept ready without calls, by warm of the function"`
	Max       int `json:"max" doc:"How many there may be, by concurrency of the function"`
	// Service and Cold are how long a call and a start take on average, in
	// nanoseconds; 0 while unknown.
	Service time.Duration `json:"service_ns" doc:"How long a call takes on average, in nanoseconds; 0 while unknown"`
	Cold    time.Duration `json:"cold_ns" doc:"How long a start takes on average, in nanoseconds; 0 while unknown"`
	// IdleSince is when the last call ended; null while there are calls.
	IdleSince *time.Time `json:"idle_since,omitempty" doc:"When the last call ended; missing while there are calls"`
	// KeepAlive says in words how long the function is kept warm, and why.
	KeepAlive string `json:"keep_alive" doc:"In words: how long it is kept warm after a call, and why"`
	// Calls and ColdStarts count since the server's start; ColdStarts by reason.
	Calls      int64                `json:"calls" doc:"Calls of the function, all versions, since the server's start"`
	ColdStarts map[ColdReason]int64 `json:"cold_starts" doc:"Those of them that were cold starts, by reason: first, expired, scale, evicted, died"`
	// LastCold is the latest cold start, null if there was none.
	LastCold *ColdStart `json:"last_cold,omitempty" doc:"The latest cold start; missing if there was none"`
}

// ColdStart explains one cold start.
type ColdStart struct {
	Time   time.Time  `json:"time" doc:"When the call got its instance"`
	Reason ColdReason `json:"reason" doc:"Why there was none for it" enum:"first,expired,scale,evicted,died" example:"expired"`
	// Explanation says the reason in words.
	Explanation string `json:"explanation" doc:"The reason in words"`
	Timings
}

// StemStock is the stem cells of one kind.
type StemStock struct {
	Isolation string `json:"isolation" doc:"Isolation technology they run under" example:"native"`
	Runtime   string `json:"runtime" doc:"Language environment in them" example:"python3.11"`
	Memory    Bytes  `json:"memory" doc:"Memory limit they are started with"`
	Egress    Egress `json:"egress" doc:"What they may connect to; empty means whatever the isolation allows"`
	// Ready and Starting are how many there are, Target how many there should be.
	Ready    int `json:"ready" doc:"How many are ready"`
	Starting int `json:"starting" doc:"How many are starting"`
	Target   int `json:"target" doc:"How many there should be"`
	// Why says in words why that many.
	Why string `json:"why" doc:"In words: why that many"`
}
