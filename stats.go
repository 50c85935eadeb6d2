package hearth

import "time"

// Stats are what calls did in a span of time, of one function or of all.
type Stats struct {
	// Function is empty for all.
	Function string    `json:"function,omitempty" doc:"Function that it is about; missing for all" example:"hello"`
	From     time.Time `json:"from" doc:"Beginning of the span"`
	To       time.Time `json:"to" doc:"End of the span"`
	StatsNumbers
	// Previous is the same of the span before, of the same length.
	Previous StatsNumbers `json:"previous" doc:"The same of the span before, which is as long"`
	// Versions are the parts of the versions that were called or had instances, and of
	// stem cells, those with most calls first.
	Versions []VersionStats `json:"versions" doc:"Those of each version that was called or had instances, and of stem cells, the one with most calls first"`
}

// Usage is what instances used.
type Usage struct {
	// CPUSeconds is the time they computed, on all cores together.
	CPUSeconds float64 `json:"cpu_seconds" doc:"Seconds that they computed, on all cores together; 0 where a driver cannot tell"`
	// Starting, Busy and Idle are their time until they were ready, with calls, and
	// without.
	Starting Occupancy `json:"starting" doc:"Until they were ready"`
	Busy     Occupancy `json:"busy" doc:"While they had calls"`
	Idle     Occupancy `json:"idle" doc:"While they were kept warm without a call"`
	// NetworkIn and NetworkOut are bytes of packets, DiskRead and DiskWritten those
	// from and to devices.
	NetworkIn   int64 `json:"network_in" doc:"Bytes of packets that they received"`
	NetworkOut  int64 `json:"network_out" doc:"Bytes of packets that they sent"`
	DiskRead    int64 `json:"disk_read" doc:"Bytes that they read from devices"`
	DiskWritten int64 `json:"disk_written" doc:"Bytes that they wrote to devices, as far as the host can tell"`
}

// Occupancy is for how long instances existed, each by itself, and what memory they had.
type Occupancy struct {
	Seconds float64 `json:"seconds" doc:"For how long they were so, all together"`
	// ByteSeconds is their memory over that time.
	ByteSeconds float64 `json:"byte_seconds" doc:"The memory charged to them over that time; divided by seconds it is the mean memory of an instance"`
}

// Total is the sum of all three.
func (u Usage) Total() Occupancy {
	return Occupancy{
		Seconds:     u.Starting.Seconds + u.Busy.Seconds + u.Idle.Seconds,
		ByteSeconds: u.Starting.ByteSeconds + u.Busy.ByteSeconds + u.Idle.ByteSeconds,
	}
}

// VersionStats are those of one version.
type VersionStats struct {
	// Function is empty, and Version 0, for stem cells.
	Function  string `json:"function" doc:"Name of the function; empty for stem cells, which have none" example:"hello"`
	Version   int    `json:"version" doc:"Number of the version; 0 for stem cells"`
	Isolation string `json:"isolation" doc:"Isolation technology it ran under" example:"native"`
	StatsNumbers
}

// StatsNumbers are counts of calls that have ended.
type StatsNumbers struct {
	Calls int64 `json:"calls" doc:"Calls that have ended"`
	// Errors are those that failed, by whose fault it was: function, hearth, caller or
	// limit.
	Errors map[string]int64 `json:"errors" doc:"Calls that failed, by whose fault it was: function, hearth, caller or limit"`
	// Codes are all calls by how they ended: ok, http_5xx or the code of the error.
	Codes map[string]int64 `json:"codes" doc:"Calls by how they ended: ok, http_5xx or the code of the error"`
	// ErrorRatio is the part of calls that failed by the fault of the function or of
	// Hearth, from 0 to 1.
	ErrorRatio float64 `json:"error_ratio" doc:"Part of the calls that failed by the fault of the function or of Hearth, from 0 to 1"`
	// PerSecond is the mean rate.
	PerSecond  float64 `json:"per_second" doc:"Mean rate of calls"`
	Cached     int64   `json:"cached" doc:"Calls that a kept response answered"`
	ColdStarts int64   `json:"cold_starts" doc:"Calls that waited for an instance that was made for them"`
	// ColdRatio is their part of the calls that an instance had, from 0 to 1.
	ColdRatio float64              `json:"cold_ratio" doc:"Their part of the calls that an instance had, from 0 to 1"`
	Cold      map[ColdReason]int64 `json:"cold" doc:"Cold starts by reason"`
	BytesIn   int64                `json:"bytes_in" doc:"Bytes of the bodies of requests and events"`
	BytesOut  int64                `json:"bytes_out" doc:"Bytes of the bodies of responses"`
	Duration  Durations            `json:"duration" doc:"How long calls took that an instance had, from when they came"`
	Phases    map[string]Durations `json:"phases" doc:"The same in parts: queue, start, init and run; start and init of cold starts only"`
	Usage     Usage                `json:"usage" doc:"What instances used"`
}

// Durations are how long something took, in seconds. Percentiles are exact to 5 %.
type Durations struct {
	Count int64   `json:"count" doc:"How often it happened"`
	Mean  float64 `json:"mean" doc:"Mean in seconds"`
	P50   float64 `json:"p50" doc:"Median in seconds"`
	P90   float64 `json:"p90" doc:"90th percentile in seconds"`
	P95   float64 `json:"p95" doc:"95th percentile in seconds"`
	P99   float64 `json:"p99" doc:"99th percentile in seconds"`
}
