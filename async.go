package hearth

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Async is how the asynchronous calls of a function are treated.
type Async struct {
	// MaxAttempts is how often a call is tried at most.
	MaxAttempts int `json:"max_attempts,omitempty" yaml:"max_attempts,omitempty" minimum:"1" doc:"How often a call is tried at most" example:"3"`
	// MaxAge is how long after it was first due the last attempt may begin.
	MaxAge Duration `json:"max_age,omitempty" yaml:"max_age,omitempty" doc:"How long after it was first due an attempt may still begin" example:"6h"`
	// MinBackoff is the pause after the first failure. It doubles with each, up to
	// MaxBackoff; half of each pause is random. Where one of the two is left out, it
	// is its default, or the other if that would not fit.
	MinBackoff Duration `json:"min_backoff,omitempty" yaml:"min_backoff,omitempty" doc:"Pause after the first failed attempt; it doubles with each further one. Default 1s, or max_backoff if that is shorter" example:"1s"`
	MaxBackoff Duration `json:"max_backoff,omitempty" yaml:"max_backoff,omitempty" doc:"Longest pause between two attempts, at least min_backoff. Default 5m, or min_backoff if that is longer" example:"5m"`
	// KeepResult is how long a call is kept after it succeeded or was canceled.
	KeepResult Duration `json:"keep_result,omitempty" yaml:"keep_result,omitempty" doc:"How long a call and its result are kept after it ended" example:"24h"`
	// APIOnly refuses calls that come over HTTP, from whom the function's URL is for. It
	// says nothing of the management API, schedules and destinations.
	APIOnly bool `json:"api_only,omitempty" yaml:"api_only,omitempty" doc:"Refuse calls that run later from callers over HTTP; the management API, schedules and destinations go on"`
	// MaxDelay is how far ahead callers over HTTP can put a call.
	MaxDelay Duration `json:"max_delay,omitempty" yaml:"max_delay,omitempty" doc:"The longest Hearth-Delay of a caller over HTTP" example:"24h"`
	// OnSuccess and OnFailure are told how a call ended.
	OnSuccess []Destination `json:"on_success,omitempty" yaml:"on_success,omitempty" doc:"What is told of calls that succeeded: function:NAME, queue:NAME or the URL of a webhook"`
	OnFailure []Destination `json:"on_failure,omitempty" yaml:"on_failure,omitempty" doc:"What is told of calls that became dead letters: function:NAME, queue:NAME or the URL of a webhook"`
}

// Defaults and limits of Async.
const (
	DefaultMaxAttempts = 3
	DefaultMaxAge      = 6 * time.Hour
	DefaultMinBackoff  = time.Second
	DefaultMaxBackoff  = 5 * time.Minute
	DefaultKeepResult  = 24 * time.Hour
	DefaultMaxDelay    = 24 * time.Hour
	MaxAttempts        = 100
	MaxAsyncAge        = 14 * 24 * time.Hour
	MaxKeepResult      = 30 * 24 * time.Hour
	MaxDelay           = 30 * 24 * time.Hour // of any call
	MaxDestinations    = 5
)

// CheckSyncHeaders refuses headers that only calls that run later may have, in
// their canonical form. Errors: CodeInvalid.
func CheckSyncHeaders(h map[string][]string) error {
	for _, name := range []string{"Hearth-Delay", "Hearth-Not-Before", "Hearth-Deduplication-Key"} {
		if h[name] != nil {
			return Errorf(CodeInvalid, "the header %s is for calls that run later", name).
				WithHint("send Hearth-Invocation-Type: async with it")
		}
	}
	return nil
}

// AttemptID returns the id of the record of an attempt of a call.
func AttemptID(id string, attempt int) string {
	if attempt < 2 {
		return id
	}
	return id + "." + strconv.Itoa(attempt)
}

// Number returns that of an attempt, the attempt-th since the call was accepted or
// redriven, among all.
func (c AsyncCall) Number(attempt int) int { return c.Redriven + attempt }

// LastAttempt returns the number of the latest attempt among all, those before the
// call was redriven included; 0 if there was none.
func (c AsyncCall) LastAttempt() int { return c.Number(c.Attempts) }

// WithDefaults returns a with every empty field but the destinations set.
func (a Async) WithDefaults() Async {
	if a.MaxAttempts == 0 {
		a.MaxAttempts = DefaultMaxAttempts
	}
	// Who sets one of them only need not know the default of the other.
	if a.MaxBackoff == 0 {
		a.MaxBackoff = max(Duration(DefaultMaxBackoff), a.MinBackoff)
	}
	if a.MinBackoff == 0 {
		a.MinBackoff = min(Duration(DefaultMinBackoff), a.MaxBackoff)
	}
	for _, d := range []struct {
		field *Duration
		value time.Duration
	}{{&a.MaxAge, DefaultMaxAge}, {&a.KeepResult, DefaultKeepResult}, {&a.MaxDelay, DefaultMaxDelay}} {
		if *d.field == 0 {
			*d.field = Duration(d.value)
		}
	}
	return a
}

// Destination is what is told of the end of a call: "function:NAME", "queue:NAME",
// or the http or https URL of a webhook.
type Destination string

// Target returns the function or the queue that is told as the target of a call, ""
// for a webhook.
func (d Destination) Target() string {
	if name, ok := strings.CutPrefix(string(d), "function:"); ok {
		return name
	}
	if strings.HasPrefix(string(d), QueuePrefix) {
		return string(d)
	}
	return ""
}

// Validate checks the form of the destination. Errors: CodeInvalid.
func (d Destination) Validate() error {
	bad := Errorf(CodeInvalid, "destination %q is not valid", clip(string(d))).
		WithHint("write function:NAME, queue:NAME or the URL of a webhook such as https://example.com/hook")
	if queue, ok := strings.CutPrefix(string(d), QueuePrefix); ok {
		if ValidateQueueName(queue) != nil {
			return bad
		}
		return nil
	}
	if name, ok := strings.CutPrefix(string(d), "function:"); ok {
		if ValidateName(name) != nil {
			return bad
		}
		return nil
	}
	u, err := url.Parse(string(d))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" || len(d) > 2048 {
		return bad
	}
	if u.User != nil {
		return bad.WithHint("webhooks are signed: put no user or password into the URL")
	}
	return nil
}

func (a Async) validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch {
	case a.MaxAttempts < 1 || a.MaxAttempts > MaxAttempts:
		return bad("choose between 1 and 100", "async.max_attempts %d is out of range", a.MaxAttempts)
	case time.Duration(a.MaxAge) < time.Second || time.Duration(a.MaxAge) > MaxAsyncAge:
		return bad("choose between 1s and "+Duration(MaxAsyncAge).String(), "async.max_age %s is out of range", a.MaxAge)
	case time.Duration(a.MaxBackoff) > 24*time.Hour || a.MaxBackoff < 0:
		return bad("the longest is 24h", "async.max_backoff %s is out of range", a.MaxBackoff)
	case a.MinBackoff < 0 || a.MinBackoff > a.MaxBackoff:
		return bad("choose between 1ms and max_backoff, or give a longer max_backoff", "async.min_backoff %s is out of range: max_backoff is %s", a.MinBackoff, a.MaxBackoff)
	case time.Duration(a.KeepResult) < time.Minute || time.Duration(a.KeepResult) > MaxKeepResult:
		return bad("choose between 1m and "+Duration(MaxKeepResult).String(), "async.keep_result %s is out of range", a.KeepResult)
	case a.MaxDelay < 0 || time.Duration(a.MaxDelay) > MaxDelay:
		return bad("choose between 1s and "+Duration(MaxDelay).String(), "async.max_delay %s is out of range", a.MaxDelay)
	case len(a.OnSuccess) > MaxDestinations || len(a.OnFailure) > MaxDestinations:
		return bad("use at most 5 for each", "the function has too many destinations")
	}
	for _, list := range [][]Destination{a.OnSuccess, a.OnFailure} {
		for i, d := range list {
			if err := d.Validate(); err != nil {
				return err
			}
			if slices.Contains(list[:i], d) {
				return bad("remove one of them", "the destination %s is given twice", d)
			}
		}
	}
	return nil
}

// AsyncState is where an asynchronous call is between its acceptance and its end.
type AsyncState string

const (
	// AsyncQueued: it waits for its first or next attempt.
	AsyncQueued AsyncState = "queued"
	// AsyncRunning: an attempt is under way.
	AsyncRunning AsyncState = "running"
	// AsyncSucceeded: an attempt succeeded.
	AsyncSucceeded AsyncState = "succeeded"
	// AsyncFailed: it will not be tried again; it is a dead letter until it is
	// redriven or purged.
	AsyncFailed AsyncState = "failed"
	// AsyncCanceled: somebody canceled it, or its function was deleted.
	AsyncCanceled AsyncState = "canceled"
)

// Ended tells whether the call is over.
func (s AsyncState) Ended() bool { return s != AsyncQueued && s != AsyncRunning }

// KindWebhook is a delivery to a URL, which is a queued call too; see Async.
const KindWebhook Kind = "webhook"

// AsyncCall is a call that was accepted to be run later. It has one id, however
// often it is tried.
type AsyncCall struct {
	ID string `json:"id" doc:"Id of the call, the same for all its attempts"`
	// Function is in whose queue it is. It is empty once that function was deleted.
	Function string `json:"function,omitempty" doc:"Function in whose queue it is, or queue:NAME for a message; missing if that was deleted" example:"hello"`
	// Target is what the caller asked for, resolved anew for each attempt; or the
	// URL of a webhook.
	Target string     `json:"target" doc:"What is called, resolved anew for each attempt: a function, queue:NAME or the URL of a webhook" example:"hello"`
	Kind   Kind       `json:"kind" doc:"What is passed: an event, an HTTP request, a message of a queue or a webhook's body" enum:"event,http,queue,webhook"`
	State  AsyncState `json:"state" doc:"queued, running, succeeded, failed (a dead letter) or canceled" enum:"queued,running,succeeded,failed,canceled"`
	// AcceptedAt is when it was stored, DueAt when its next attempt may begin,
	// ExpiresAt after when none begins, FinishedAt when it ended.
	AcceptedAt time.Time `json:"accepted_at" doc:"When it was stored"`
	DueAt      time.Time `json:"due_at" doc:"When its next attempt may begin"`
	ExpiresAt  time.Time `json:"expires_at" doc:"After this no attempt begins"`
	FinishedAt time.Time `json:"finished_at,omitzero" doc:"When it ended; missing until then"`
	// Attempts counts those that were begun and count.
	Attempts int `json:"attempts" doc:"Attempts that were begun, without those for which there was no room"`
	// Redriven counts those before it was redriven.
	Redriven int `json:"-"`
	// Failures are the latest attempts that failed, the oldest first.
	Failures []AsyncFailure `json:"failures,omitempty" doc:"The latest attempts that failed, the oldest first"`
	// DeduplicationKey is the caller's; see AsyncRequest.
	DeduplicationKey string `json:"deduplication_key,omitempty" doc:"Key under which the same call is accepted once only"`
	// Source is the call whose destination this is, Depth how many calls are before
	// it in that chain.
	Source string `json:"source,omitempty" doc:"Call whose destination this is"`
	Depth  int    `json:"depth,omitempty" doc:"How many calls are before this one in a chain of destinations"`
	// Trace is the span of its acceptance, to which those of its attempts belong.
	Trace
	// Payer is whose room it takes in the queue: the function, or queue:NAME, that the
	// first call of the chain was for; apart from others if anybody could make that.
	Payer string `json:"-"`
	// Budget is how many calls may still come of it, of all that follow together.
	Budget int `json:"-"`
	// Bytes is what is stored of its payload and result.
	Bytes int64 `json:"bytes" doc:"Size of what is stored of its payload and result"`
	// Result is what the attempt that succeeded answered; nil until then.
	Result *AsyncResult `json:"-"`
}

// AsyncFailure is an attempt that failed.
type AsyncFailure struct {
	Attempt int `json:"attempt" doc:"Number of the attempt, from 1; after a redrive it begins anew"`
	// Number is that among all, those before a redrive included; 0 if it was no attempt.
	Number    int       `json:"number,omitempty" doc:"Number of the attempt among all, those before a redrive included, as in the id of its record; missing if there was none"`
	StartedAt time.Time `json:"started_at" doc:"When it began"`
	EndedAt   time.Time `json:"ended_at" doc:"When it ended"`
	Code      Code      `json:"code" doc:"Code of the error" example:"function_error"`
	// Type is the exception's class, if the function raised one.
	Type    string `json:"type,omitempty" doc:"Class of what the function raised"`
	Message string `json:"message" doc:"What went wrong"`
	// Invocation is the record of the attempt, if its id is not that of the call: a
	// message is passed with others.
	Invocation string `json:"invocation,omitempty" doc:"Invocation that had a message, with the others of its batch"`
}

// AsyncResult is a stored response.
type AsyncResult struct {
	// Status is that of the HTTP response; 200 for events.
	Status int
	// Headers are name and value pairs of an HTTP response, names in lower case.
	Headers [][2]string
	Body    []byte
	// Cut is true if Body is only the beginning.
	Cut bool
}

// ParseInvocationType reads the header Hearth-Invocation-Type: it tells whether a call
// is to be run later. Errors: CodeInvalid for a value that is not known.
func ParseInvocationType(value string) (async bool, err error) {
	switch strings.ToLower(value) {
	case "", "sync":
		return false, nil
	case "async":
		return true, nil
	}
	return false, Errorf(CodeInvalid, "Hearth-Invocation-Type %q is not known", clip(value)).WithHint("choose async, or sync as without it")
}

// AsyncPayload is what a call passes to its function.
type AsyncPayload struct {
	// Head is the event of an HTTP request as JSON, without its body; nil for
	// other kinds.
	Head []byte
	// Body is the event, or the request's body as it came.
	Body []byte
	// URL is that of an HTTP request byte for byte, as the response cache knows it;
	// empty for other kinds.
	URL string
}

// AsyncRequest asks for a call to be stored and run later.
type AsyncRequest struct {
	// ID is the new call's, a version 7 UUID; see NewID in package queue.
	ID     string
	Target string
	Kind   Kind
	AsyncPayload
	// NotBefore is when it may begin; zero means now.
	NotBefore time.Time
	// DeduplicationKey makes a second request with the same key for the same
	// function return the first call, if KeyScope is the same, too: whose key it is.
	DeduplicationKey, KeyScope string
	// Fingerprint tells requests apart that come with the same key: another one is
	// refused. Empty is the same as any.
	Fingerprint string
	// Public tells that anybody can send such requests. They get less room than others.
	Public bool
	// Trace is that of the call; if it is zero, it begins one.
	Trace Trace
}

// QueueStatus is what is stored for later.
type QueueStatus struct {
	Time time.Time `json:"time" doc:"When this was so"`
	// Calls and Bytes are all that is stored, finished calls included; MaxCalls and
	// MaxBytes bound them.
	Calls    int64 `json:"calls" doc:"Calls that are stored, finished ones included"`
	MaxCalls int64 `json:"max_calls" doc:"Bound of calls"`
	Bytes    int64 `json:"bytes" doc:"Size of the payloads and results that are stored"`
	MaxBytes int64 `json:"max_bytes" doc:"Bound of bytes"`
	// Functions are those that have calls, sorted by name.
	Functions []FunctionQueue `json:"functions" doc:"The functions that have calls, sorted by name"`
}

// FunctionQueue counts the stored calls of one function, with the deliveries to its
// webhooks.
type FunctionQueue struct {
	Function string `json:"function" doc:"Name of the function, or queue:NAME" example:"hello"`
	QueueCounts
}

// QueueCounts counts calls, or messages, by what they are doing.
type QueueCounts struct {
	// Queued are those that wait, of which Delayed are not due yet.
	Queued    int64 `json:"queued" doc:"Calls that wait for an attempt, delayed ones included"`
	Delayed   int64 `json:"delayed" doc:"Of queued, those that are not due yet"`
	Running   int64 `json:"running" doc:"Calls with an attempt under way"`
	Succeeded int64 `json:"succeeded" doc:"Calls that succeeded and are kept"`
	Dead      int64 `json:"dead" doc:"Calls that failed: dead letters"`
	Canceled  int64 `json:"canceled" doc:"Calls that were canceled and are kept"`
	Bytes     int64 `json:"bytes" doc:"Size of what is stored of them"`
	// OldestDue is when the next of the waiting calls was or is due; zero if none
	// waits.
	OldestDue time.Time `json:"oldest_due,omitzero" doc:"When the next of the waiting calls was or is due; missing if none waits"`
}

// Deleted is what the deletion of a function ended or left behind.
type Deleted struct {
	Canceled int64    `json:"canceled" doc:"Asynchronous calls that had not ended and were canceled"`
	Warnings []string `json:"warnings" doc:"Messages that wait in queues, which no function takes now"`
}

// AsyncEntry is a call with what it passes.
type AsyncEntry struct {
	AsyncCall
	AsyncPayload
	// Fingerprint and KeyScope are those of its request, if it has a DeduplicationKey.
	// They are stored, not read.
	Fingerprint, KeyScope string
	// Public is that of its request. It is not stored.
	Public bool
	// Attempt is the span of the attempt under way, and Links are spans in other traces
	// that led to it. They are not stored.
	Attempt Trace
	Links   []Trace
}

// Lane is what takes turns with other lanes: the calls of a function, or the
// deliveries of its webhooks, which must not hold up each other.
func (c AsyncCall) Lane() string {
	if c.Kind == KindWebhook {
		return WebhookLane(c.Function)
	}
	return c.Function
}

// WebhookLane is the lane of the deliveries of a function's webhooks.
func WebhookLane(function string) string { return function + "/webhooks" }

// Content returns the body as the first of these that it is: a JSON value, text, or
// bytes. All are empty if it is.
func (r AsyncResult) Content() (value json.RawMessage, text string, bytes []byte) {
	switch {
	case len(r.Body) == 0:
	case !r.Cut && json.Valid(r.Body):
		value = r.Body
	case utf8.Valid(r.Body):
		text = string(r.Body)
	default:
		bytes = r.Body
	}
	return value, text, bytes
}
