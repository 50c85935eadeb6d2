// Package hearth is the vocabulary of Hearth, a self-hosted serverless
// function platform: functions, versions, routes, invocations and the errors
// that pass between the parts. It imports only the standard library; every
// other package adapts these types to something: a database, HTTP, a sandbox.
//
// This package and package client promise a stable Go API.
package hearth

import (
	"context"
	"io"
	"time"
)

// Function is a named unit that users deploy and call.
type Function struct {
	// Name is unique in an installation; see ValidateName.
	Name string `json:"name"`
	// Live is the number of the version that answers calls; if they are split, of
	// that with the greatest share.
	Live int `json:"live"`
	// Split are the shares of calls in percent by version; nil while one has all.
	Split Weights `json:"split,omitempty"`
	// Config is the configuration of version Live, defaults filled in.
	Config Config `json:"config"`
	// Artifact is the digest of version Live's code.
	Artifact string `json:"artifact"`
	// Generation counts the changes of this function, starting at 1. It is
	// the ETag of the management API.
	Generation int64     `json:"generation"`
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// Version is one immutable, numbered code + configuration of a function.
type Version struct {
	Function string `json:"function"`
	// Number starts at 1 and grows by one with each deploy of a function. It
	// is not used again, not even after the function was deleted and made anew
	// with the same name (see Incarnation).
	Number int `json:"number"`
	// Config has every default filled in and Runtime pinned ("python3.11").
	Config Config `json:"config"`
	// Artifact is "sha256:" and the hex digest of what runs: the code with its
	// dependencies; see package build.
	Artifact string `json:"artifact"`
	// Source is the digest of the code as it was uploaded, if dependencies were
	// installed for it; empty if Artifact is the code as it was uploaded.
	Source    string    `json:"source,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// Warnings tell what of Config the host cannot enforce.
	Warnings []string `json:"warnings,omitempty"`
	// RequestStream is true if the handler reads request bodies as they arrive,
	// which it said when it was first loaded. Others get whole bodies, and Hearth
	// collects them before it takes an instance.
	RequestStream bool `json:"request_stream,omitempty"`
	// Websocket is true if the handler takes WebSockets, which it said when it was
	// first loaded. To others a request for one is a request like any other.
	Websocket bool `json:"websocket,omitempty"`
	// Secrets are the versions of the secrets in Config that count, by name; 0 for
	// one that does not exist.
	Secrets map[string]int `json:"secrets,omitempty"`
	// Incarnation is a random id, unique to this version in the world. The
	// pool keys its instances by it, so code deployed under a deleted
	// function's name never meets an instance of the old one.
	Incarnation string `json:"incarnation"`
}

// Kind tells how an invocation reached its function.
type Kind string

const (
	// KindHTTP is a request to /fn/{name} or a custom route; the handler gets
	// an API Gateway payload 2.0 event.
	KindHTTP Kind = "http"
	// KindEvent is a JSON event passed as it is (POST …/invocations).
	KindEvent Kind = "event"
	// KindWebsocket is a WebSocket, from its handshake until it is closed: one call
	// that lasts for as long as the connection.
	KindWebsocket Kind = "websocket"
	// KindWarmup is a call by Hearth itself that prepares a new instance: the
	// function's warmup, then the handler if there is an event. It makes no record;
	// what it prints is logged under its id.
	KindWarmup Kind = "warmup"
)

// Timings attributes the time of one invocation. Their sum is what the caller
// waited for Hearth and the function.
type Timings struct {
	// Route is until an instance was asked for: the call was matched, and its body
	// arrived.
	Route time.Duration `json:"route_ns" doc:"Until an instance was asked for: matching, and the arrival of the body, in nanoseconds"`
	// Queue is the wait for an instance to become free, without Start and Init;
	// of a call that got no instance it is the whole wait.
	Queue time.Duration `json:"queue_ns" doc:"Wait for an instance to become free, in nanoseconds"`
	// Start is the creation of the sandbox until its runtime was ready; 0 when warm.
	Start time.Duration `json:"start_ns" doc:"Creation of the sandbox until its runtime was ready, in nanoseconds; 0 when warm"`
	// Init is the loading of the function's code; 0 when warm.
	Init time.Duration `json:"init_ns" doc:"Loading of the function's code, in nanoseconds; 0 when warm"`
	// Run is from sending the event to the end of the response.
	Run time.Duration `json:"run_ns" doc:"From sending the event to the end of the response, in nanoseconds"`
}

// ColdReason tells why a call found no instance that was ready.
type ColdReason string

const (
	// ColdFirst: the version had no instance since it was deployed or the server
	// started.
	ColdFirst ColdReason = "first"
	// ColdExpired: its instances were ended because no call had come for a while.
	ColdExpired ColdReason = "expired"
	// ColdScale: all its instances were busy.
	ColdScale ColdReason = "scale"
	// ColdEvicted: its instances were ended because others needed the memory, or
	// somebody asked for it.
	ColdEvicted ColdReason = "evicted"
	// ColdDied: the instance that would have served it ended, or did not start.
	ColdDied ColdReason = "died"
)

// Invocation is the record of one call.
type Invocation struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Version  int    `json:"version"`
	// Instance is the id of the sandbox that had the call; empty if none had.
	Instance string `json:"instance,omitempty"`
	Kind     Kind   `json:"kind"`
	// Method and Path are those of the HTTP request, empty for events.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	// Status is the HTTP status sent to the caller.
	Status int `json:"status"`
	// ErrorCode and ErrorMessage are empty on success.
	ErrorCode    Code   `json:"error_code,omitempty"`
	ErrorMessage string `json:"error_message,omitempty"`
	// Cold is true when this call waited for an instance made for it.
	Cold bool `json:"cold"`
	// ColdReason tells why there was no instance for it; empty when warm.
	ColdReason ColdReason `json:"cold_reason,omitempty"`
	// Cached is true when a kept response answered, and not the function.
	Cached bool `json:"cached,omitempty"`
	// Attempt is which one of an asynchronous call it is, from 1; 0 if the caller waited.
	Attempt int `json:"attempt,omitempty" doc:"Which attempt of an asynchronous call, from 1"`
	// Trace is the span of the call as a whole; Running is that of the function in it.
	Trace
	// Links are spans in other traces that led to it, if it has several messages, and
	// HTTPRoute is the pattern that its path has matched. They are not kept.
	Links     []Trace `json:"-"`
	HTTPRoute string  `json:"-"`
	// Alias is through which it came, Live for most; empty for a version that was
	// called by its number. It is not kept.
	Alias string `json:"-"`
	// Scheduled tells that a schedule made it. It is not kept.
	Scheduled bool `json:"-"`
	// Isolation is the technology of the version. It is not kept.
	Isolation string    `json:"-"`
	StartedAt time.Time `json:"started_at"`
	Timings   Timings   `json:"timings"`
	BytesIn   int64     `json:"bytes_in"`
	BytesOut  int64     `json:"bytes_out"`
}

// LogLine is one line a function wrote, or one that Hearth wrote about it.
type LogLine struct {
	Time     time.Time `json:"time"`
	Function string    `json:"function"`
	Version  int       `json:"version"`
	// Instance is the id of the sandbox.
	Instance string `json:"instance"`
	// Invocation is empty for output outside of any call (imports, threads).
	Invocation string `json:"invocation,omitempty"`
	// Stream is "stdout", "stderr" or "hearth" (a line of the platform).
	Stream string `json:"stream"`
	// Level is what the line says of itself, if it is a JSON object as logging libraries
	// write them; empty for others.
	Level LogLevel `json:"level,omitempty"`
	// Text is without its line end; invalid UTF-8 is replaced.
	Text string `json:"text"`
}

// EventRequest calls a function with a JSON event.
type EventRequest struct {
	Target Target
	// Event is JSON; empty means null.
	Event io.Reader
	// Size is the length of Event in bytes, -1 when unknown.
	Size int64
	// Header are those of the request, from which the call learns its trace.
	Header map[string][]string
}

// Invoker calls functions; package gateway implements it.
type Invoker interface {
	// InvokeEvent runs the function with the event and streams the handler's
	// value to w. started is called once, before the first write, with the
	// record as far as it is known. The returned record is complete. Errors
	// carry a Code; after started was called they mean a broken stream. If w has
	// SetWriteDeadline, as net.Conn has, it is set to the call's deadline and, at
	// the end, to none.
	InvokeEvent(ctx context.Context, r EventRequest, w io.Writer, started func(Invocation)) (Invocation, error)
}
