package hearth

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Values of InvocationFilter.Code besides the codes of errors. They divide calls as
// hearth_invocations_total does.
const (
	// FilterOK is calls that went well.
	FilterOK = "ok"
	// FilterHTTP5xx is calls whose function answered with a status of 500 or more.
	FilterHTTP5xx = "http_5xx"
	// FilterError is all calls but those that went well.
	FilterError = "error"
)

// MinInvocationPrefix is how much of an id is needed at least to find a call by it.
const MinInvocationPrefix = 8

// InvocationFilter says of which calls records are wanted: those of which all fields are
// true that are not zero.
type InvocationFilter struct {
	// Function is a name, and Version a number.
	Function string
	Version  int
	// Status is that of the response, such as "404", or a class of them, such as "5xx".
	Status string
	// Code is that of the error, or one of the constants above.
	Code string
	Kind Kind
	// Async tells whether they are attempts of asynchronous calls, Cold whether they
	// waited for an instance made for them. nil means either.
	Async, Cold *bool
	// MinDuration and MaxDuration bound the sum of the timings.
	MinDuration, MaxDuration time.Duration
	// Since and Until bound when they started: not before Since, and before Until.
	Since, Until time.Time
	// ID is how the id begins, at least MinInvocationPrefix bytes.
	ID string
}

// Validate checks f. Errors: CodeInvalid.
func (f InvocationFilter) Validate() error {
	codes := []string{FilterOK, FilterHTTP5xx, FilterError}
	for _, c := range Codes() {
		codes = append(codes, string(c.Code))
	}
	kinds := []Kind{KindHTTP, KindEvent, KindQueue, KindWebsocket}
	_, _, err := f.StatusRange()
	switch {
	case err != nil:
		return err
	case f.Code != "" && !slices.Contains(codes, f.Code):
		return Errorf(CodeInvalid, "the code %q does not exist", clip(f.Code)).WithHint("choose one of %s", strings.Join(codes, ", "))
	case f.Kind != "" && !slices.Contains(kinds, f.Kind):
		return Errorf(CodeInvalid, "the kind %q does not exist", clip(string(f.Kind))).WithHint("choose http, event, queue or websocket")
	case f.Version < 0:
		return Errorf(CodeInvalid, "the version %d does not exist", f.Version).WithHint("versions are numbered from 1")
	case f.MinDuration < 0 || f.MaxDuration < 0:
		return Errorf(CodeInvalid, "a duration is negative").WithHint("write for example 500ms or 2s")
	case f.MaxDuration != 0 && f.MinDuration > f.MaxDuration:
		return Errorf(CodeInvalid, "the shortest duration %s is longer than the longest %s", Duration(f.MinDuration), Duration(f.MaxDuration)).WithHint("exchange them")
	case !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until):
		return Errorf(CodeInvalid, "the time ends at %s, before it begins", f.Until.Format(time.RFC3339)).WithHint("since must be earlier than until")
	case f.ID != "" && len(f.ID) < MinInvocationPrefix:
		return Errorf(CodeInvalid, "%q is too short to find a call by it", f.ID).WithHint("give at least the first %d letters of its id", MinInvocationPrefix)
	}
	return nil
}

// StatusRange returns the statuses that Status means, from one to another; 0 and 0 if it
// is empty. Errors: CodeInvalid.
func (f InvocationFilter) StatusRange() (from, to int, err error) {
	if f.Status == "" {
		return 0, 0, nil
	}
	if class, ok := strings.CutSuffix(strings.ToLower(f.Status), "xx"); ok && len(class) == 1 && class >= "1" && class <= "5" {
		from = int(class[0]-'0') * 100
		return from, from + 99, nil
	}
	if n, err := strconv.Atoi(f.Status); err == nil && n >= 100 && n <= 599 {
		return n, n, nil
	}
	return 0, 0, Errorf(CodeInvalid, "%q is no status", clip(f.Status)).WithHint("write for example 404, or 5xx for all from 500 to 599")
}

// Failed tells whether the call went wrong: with an error, or its function answered with
// a status of 500 or more.
func (v *Invocation) Failed() bool { return v.ErrorCode != "" || v.Status >= 500 }

// Sum returns how long the call took as a whole.
func (t Timings) Sum() time.Duration { return t.Queue + t.Start + t.Init + t.Run }
