package hearth

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

// TraceID names a trace; as text it has 32 hex digits. Zero stands for none.
type TraceID [16]byte

// SpanID names a span of a trace; as text it has 16 hex digits. Zero stands for none.
type SpanID [8]byte

// String returns the id as text.
func (id TraceID) String() string { return hex.EncodeToString(id[:]) }

// String returns the id as text.
func (id SpanID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id TraceID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// MarshalText implements encoding.TextMarshaler.
func (id SpanID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: CodeInvalid.
func (id *TraceID) UnmarshalText(text []byte) error { return decodeID(id[:], text) }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: CodeInvalid.
func (id *SpanID) UnmarshalText(text []byte) error { return decodeID(id[:], text) }

func decodeID(id, text []byte) error {
	if len(text) != 2*len(id) {
		return Errorf(CodeInvalid, "%q has not %d hex digits", clip(string(text)), 2*len(id))
	}
	if _, err := hex.Decode(id, text); err != nil {
		return Errorf(CodeInvalid, "%q has other characters than hex digits", clip(string(text)))
	}
	return nil
}

// Trace is a span and where it stands in its trace, as W3C Trace Context has it. The
// zero value is none.
type Trace struct {
	TraceID TraceID `json:"trace_id,omitzero" doc:"Trace that it belongs to, 32 hex digits" example:"4bf92f3577b34da6a3ce929d0e0e4736"`
	SpanID  SpanID  `json:"span_id,omitzero" doc:"Its own span in that trace, 16 hex digits" example:"00f067aa0ba902b7"`
	// ParentID is the span that it is a part of, or that led to it; zero if it began the
	// trace.
	ParentID SpanID `json:"parent_id,omitzero" doc:"Span that led to it; missing if it began the trace" example:"53995c3f42cd8ad8"`
	// Sampled tells that the trace is to be exported, here and wherever it comes.
	Sampled bool `json:"-"`
	// Tracestate is passed on as it is.
	Tracestate string `json:"-"`
}

// NewTrace begins a trace.
func NewTrace(sampled bool) Trace {
	t := Trace{SpanID: newSpanID(), Sampled: sampled}
	// Nobody is kept from anything by them, so they need not be unpredictable; their
	// generator is as good as that anyway.
	binary.LittleEndian.PutUint64(t.TraceID[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(t.TraceID[8:], nonzero(rand.Uint64()))
	return t
}

func newSpanID() (id SpanID) {
	binary.LittleEndian.PutUint64(id[:], nonzero(rand.Uint64()))
	return id
}

func nonzero(n uint64) uint64 { return max(n, 1) }

// Child returns a new span that t leads to.
func (t Trace) Child() Trace {
	t.ParentID, t.SpanID = t.SpanID, newSpanID()
	return t
}

// The parts of a call, by which their spans get their ids.
const (
	partRoute = 1 + iota
	partQueue
	partStart
	partInit
	partRun
	partAttempt = 16 // and on
)

// part returns a span that t leads to, always the same for n: so it has an id while it
// is under way, and nobody needs to keep that.
func (t Trace) part(n uint64) Trace {
	z := binary.LittleEndian.Uint64(t.SpanID[:]) + n*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9 // SplitMix64
	z = (z ^ z>>27) * 0x94d049bb133111eb
	t.ParentID = t.SpanID
	binary.LittleEndian.PutUint64(t.SpanID[:], nonzero(z^z>>31))
	return t
}

// Running returns the span of the function itself within the call t: what the function
// gets to see, and whatever it calls has as its parent.
func (t Trace) Running() Trace { return t.part(partRun) }

// Attempted returns the span of an attempt, from 1, of the stored call t.
func (t Trace) Attempted(attempt int) Trace { return t.part(partAttempt + uint64(attempt)) } //nolint:gosec // it is positive

// AppendTraceparent appends the header traceparent that has t as the parent.
func (t Trace) AppendTraceparent(b []byte) []byte {
	b = hex.AppendEncode(append(b, "00-"...), t.TraceID[:])
	b = hex.AppendEncode(append(b, '-'), t.SpanID[:])
	if t.Sampled {
		return append(b, "-01"...)
	}
	return append(b, "-00"...)
}

// Traceparent returns it as a text.
func (t Trace) Traceparent() string { return string(t.AppendTraceparent(make([]byte, 0, 55))) }
