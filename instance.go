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
	ID string `json:"id"`
	// Function and Version are empty for a stem cell.
	Function  string        `json:"function,omitempty"`
	Version   int           `json:"version,omitempty"`
	Isolation string        `json:"isolation"`
	Runtime   string        `json:"runtime"`
	State     InstanceState `json:"state"`
	// Why says in words why it is in this state or, once it is ready, why it was
	// started.
	Why string `json:"why"`
	// Since is when it came into this state, StartedAt when it was asked for.
	Since     time.Time `json:"since"`
	StartedAt time.Time `json:"started_at"`
	// InFlight is the calls it has now, Served those it has ended.
	InFlight int   `json:"in_flight"`
	Served   int64 `json:"served"`
	// Memory and PSS are what it used when it was last looked at, in bytes; 0 where
	// that is not known.
	Memory int64 `json:"memory,omitempty"`
	PSS    int64 `json:"pss,omitempty"`
	// Charge is what the pool counts for it in its memory budget, in bytes.
	Charge int64 `json:"charge"`
}

// InstanceEvent is a change of an instance's state.
type InstanceEvent struct {
	Time time.Time `json:"time"`
	// From is the state before; empty for a new instance.
	From     InstanceState `json:"from,omitempty"`
	Instance Instance      `json:"instance"`
}

// PoolStatus is what the pool has and why.
type PoolStatus struct {
	Time time.Time `json:"time"`
	// MemoryBudget bounds MemoryUsed, what all instances are expected to use, in
	// bytes; 0 means no bound.
	MemoryBudget int64 `json:"memory_budget"`
	MemoryUsed   int64 `json:"memory_used"`
	// MaxInstances bounds the number of instances and stem cells.
	MaxInstances int `json:"max_instances"`
	// Queued is the calls of all functions that wait.
	Queued int `json:"queued"`
	// Instances are sorted by function, version and age; stem cells come last.
	Instances []Instance     `json:"instances"`
	Functions []PoolFunction `json:"functions"`
	Stems     []StemStock    `json:"stems"`
}

// PoolFunction is what the pool knows about one version of a function that has
// instances or was called lately.
type PoolFunction struct {
	Function string `json:"function"`
	Version  int    `json:"version"`
	// Retired is true for a version that only ends its calls.
	Retired  bool `json:"retired,omitempty"`
	InFlight int  `json:"in_flight"`
	Queued   int  `json:"queued"`
	// Instances is how many there are, Target how many there should be, between
	// Min and Max.
	Instances int `json:"instances"`
	Target    int `json:"target"`
	Min       int `json:"min"`
	Max       int `json:"max"`
	// Service and Cold are how long a call and a start take on average, in
	// nanoseconds; 0 while unknown.
	Service time.Duration `json:"service_ns"`
	Cold    time.Duration `json:"cold_ns"`
	// IdleSince is when the last call ended; null while there are calls.
	IdleSince *time.Time `json:"idle_since,omitempty"`
	// KeepAlive says in words how long the function is kept warm, and why.
	KeepAlive string `json:"keep_alive"`
	// Calls and ColdStarts count since the server's start; ColdStarts by reason.
	Calls      int64                `json:"calls"`
	ColdStarts map[ColdReason]int64 `json:"cold_starts"`
	// LastCold is the latest cold start, null if there was none.
	LastCold *ColdStart `json:"last_cold,omitempty"`
}

// ColdStart explains one cold start.
type ColdStart struct {
	Time   time.Time  `json:"time"`
	Reason ColdReason `json:"reason"`
	// Explanation says the reason in words.
	Explanation string `json:"explanation"`
	Timings
}

// StemStock is the stem cells of one kind.
type StemStock struct {
	Isolation string `json:"isolation"`
	Runtime   string `json:"runtime"`
	Memory    Bytes  `json:"memory"`
	Egress    Egress `json:"egress"`
	// Ready and Starting are how many there are, Target how many there should be.
	Ready    int `json:"ready"`
	Starting int `json:"starting"`
	Target   int `json:"target"`
	// Why says in words why that many.
	Why string `json:"why"`
}
