package hearth

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code classifies an error for programs. The table below maps it to an HTTP
// status and a CLI exit code.
type Code string

const (
	// CodeInvalid: the request is wrong; the same request will fail again.
	CodeInvalid Code = "invalid"
	// CodeDenied: the caller may not do this.
	CodeDenied Code = "denied"
	// CodeNotFound: there is no such function, version, route or artifact.
	CodeNotFound Code = "not_found"
	// CodeConflict: a name or route is taken, or something changed meanwhile.
	CodeConflict Code = "conflict"
	// CodeExhausted: a limit is reached; the same request may succeed later.
	CodeExhausted Code = "exhausted"
	// CodeUnsupported: this host or driver cannot do this.
	CodeUnsupported Code = "unsupported"
	// CodeFunction: the user's code failed. Never used for a failure of ours.
	CodeFunction Code = "function_error"
	// CodeUnavailable: the host or the driver failed; try again.
	CodeUnavailable Code = "unavailable"
	// CodeTimeout: the deadline passed.
	CodeTimeout Code = "timeout"
	// CodeCanceled: the caller went away.
	CodeCanceled Code = "canceled"
	// CodeInternal: a defect in Hearth.
	CodeInternal Code = "internal"
)

// CodeInfo is how a Code appears outside of Go.
type CodeInfo struct {
	Code       Code
	HTTPStatus int
	ExitCode   int
}

// Codes is the one table that maps codes to HTTP statuses and CLI exit codes.
// Exit code 1 is left to errors without a code, 2 to wrong usage.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeInvalid, 400, 3},
		{CodeDenied, 403, 4},
		{CodeNotFound, 404, 5},
		{CodeConflict, 409, 6},
		{CodeExhausted, 429, 7},
		{CodeUnsupported, 501, 8},
		{CodeFunction, 502, 9},
		{CodeUnavailable, 503, 10},
		{CodeTimeout, 504, 11},
		{CodeCanceled, 499, 12},
		{CodeInternal, 500, 13},
	}
}

// HTTPStatus returns the status of c, 500 for an unknown code.
func (c Code) HTTPStatus() int {
	for _, i := range Codes() {
		if i.Code == c {
			return i.HTTPStatus
		}
	}
	return 500
}

// ExitCode returns the CLI exit code of c, 1 for an unknown code.
func (c Code) ExitCode() int {
	for _, i := range Codes() {
		if i.Code == c {
			return i.ExitCode
		}
	}
	return 1
}

// Error is an error with a code for programs and a hint for people.
type Error struct {
	Code Code
	// Message says what is wrong, in one sentence without a full stop.
	Message string
	// Hint says what to do next; may be empty.
	Hint string
	// Function holds the details when the user's code failed.
	Function *FunctionError
	// RetryAfter is in how long another try may succeed, 0 where unknown.
	RetryAfter time.Duration
	// Err is the cause; its text is not shown to API clients.
	Err error
}

// FunctionError is what the user's code raised.
type FunctionError struct {
	// Type is the exception's class ("ValueError").
	Type    string `json:"type"`
	Message string `json:"message"`
	// Stack has one frame or line an entry, in the order in which the language
	// prints them.
	Stack []string `json:"stack,omitempty"`
}

// Error returns the message and, unless it is part of it, the cause.
func (e *Error) Error() string {
	if e.Err == nil || strings.Contains(e.Message, e.Err.Error()) {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error. A %w in format becomes its cause as well.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint returns a copy of e with the hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// RetrySeconds is the value of a Retry-After header: RetryAfter in whole
// seconds, rounded up, where it is set; else 1 if the code says that another try
// may succeed, and 0, which is no header, if it does not.
func (e *Error) RetrySeconds() int64 {
	switch {
	case e.RetryAfter > 0:
		return int64((e.RetryAfter-1)/time.Second) + 1
	case e.Code == CodeExhausted, e.Code == CodeUnavailable:
		return 1
	}
	return 0
}

// AsError returns err as *Error. Other errors become CodeInternal with err as
// their cause; nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeInternal, Message: "internal error", Err: err}
}

// ErrorCode returns the code of err, "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}
