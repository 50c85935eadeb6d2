package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
)

var (
	errStopping = errors.New("the server is shutting down")
	errCanceled = errors.New("the call was canceled")
)

// webhookPolicy is how webhooks are tried again: for a day, since their receivers
// are somebody else's.
var webhookPolicy = hearth.Async{
	MaxAttempts: 10, MaxAge: hearth.Duration(24 * time.Hour),
	MinBackoff: hearth.Duration(5 * time.Second), MaxBackoff: hearth.Duration(time.Hour),
}

// webhookTimeout bounds one delivery.
const webhookTimeout = 15 * time.Second

// begin reads calls for an attempt. Those of entries that have no id are not to have one:
// outcomes has what becomes of them.
func (q *Queue) begin(ctx context.Context, items []item, outcomes []outcome) (entries []hearth.AsyncEntry) {
	ids := make([]string, len(items))
	for i, it := range items {
		ids[i] = it.id
	}
	entries, err := q.cfg.Store.Begin(ctx, ids)
	if err != nil {
		if ctx.Err() == nil {
			q.cfg.Logger.Error("reading queued calls", "invocation", ids[0], "calls", len(ids), "err", err)
			wait(ctx, time.Second)
		}
		for i, it := range items { // they are still stored as waiting
			outcomes[i].again = &it
		}
		return make([]hearth.AsyncEntry, len(items))
	}
	now := time.Now()
	for i, e := range entries {
		switch {
		case e.ID == "": // it was purged
		case e.State.Ended():
			entries[i] = hearth.AsyncEntry{}
		case e.DueAt.After(now):
			outcomes[i].again = again(e)
			entries[i] = hearth.AsyncEntry{}
		case e.TraceID == (hearth.TraceID{}): // it was stored by a server that had no traces
			entries[i].Trace = q.runner.NewTrace()
		}
	}
	return entries
}

func again(e hearth.AsyncEntry) *item {
	it := itemOf(e.AsyncCall)
	return &it
}

// overdue tells why there is to be no further attempt of a call, nil if there is.
func overdue(e hearth.AsyncEntry, maxAttempts int) error {
	switch {
	case time.Now().After(e.ExpiresAt):
		return hearth.Errorf(hearth.CodeTimeout, "the call was not done within its max_age, until %s", e.ExpiresAt.UTC().Format(time.RFC3339))
	case e.Attempts >= maxAttempts:
		// As many as are allowed were begun: the last did not end before the server did.
		return hearth.Errorf(hearth.CodeUnavailable, "the server ended during attempt %d", e.Attempts)
	}
	return nil
}

// attempt makes one attempt of a call, if it still waits, and stores how it went.
func (q *Queue) attempt(ctx context.Context, it item) outcome {
	var o [1]outcome
	e := q.begin(ctx, []item{it}, o[:])[0]
	if e.ID == "" {
		return o[0]
	}
	now := time.Now()
	policy, err := webhookPolicy, error(nil)
	if e.Kind != hearth.KindWebhook {
		var cfg hearth.Config
		if cfg, err = q.runner.AsyncConfig(e.Target); err == nil {
			policy = cfg.AsyncOrDefault()
		}
	}
	switch {
	case err == nil:
		err = overdue(e, policy.MaxAttempts)
	case hearth.ErrorCode(err) != hearth.CodeNotFound:
		return q.putBack(e, outcome{busy: true}) // the catalog could not be read
	}
	policy = policy.WithDefaults()
	if err != nil {
		return q.finish(e, policy, hearth.AsyncFailed, failure(e.Attempts, now, err), nil)
	}
	attempt := e.Attempts + 1
	e.Attempt = e.Attempted(e.Number(attempt))
	q.cfg.Store.Started(e.ID, attempt)
	var result hearth.AsyncResult
	var lent bool
	var pause time.Duration
	if e.Kind == hearth.KindWebhook {
		result, pause, err = q.deliver(ctx, e, attempt)
		lent = true
	} else {
		result, lent, err = q.runner.RunAsync(ctx, e, attempt)
		if err == nil {
			err = statusError(e.Kind, result.Status)
		}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		if errors.Is(cause, errStopping) {
			return q.putBack(e, outcome{})
		}
		return outcome{} // canceled: the store knows it already
	}
	switch {
	case err == nil:
		e.Attempts = attempt
		return q.finish(e, policy, hearth.AsyncSucceeded, nil, &result)
	case !lent && passing(err):
		return q.putBack(e, outcome{busy: true, wait: hearth.AsError(err).RetryAfter})
	}
	if !lent {
		e.Attempt = hearth.Trace{} // there is no record of it
	}
	return q.failed(e, policy, failure(attempt, now, err), retryable(err), pause)
}

// failed stores that an attempt failed: the call is queued again, after a pause that is
// not shorter than the one given, or becomes a dead letter.
func (q *Queue) failed(e hearth.AsyncEntry, policy hearth.Async, f *hearth.AsyncFailure, again bool, pause time.Duration) outcome {
	e.Attempts, f.Number = f.Attempt, e.Number(f.Attempt)
	next := time.Now().Add(max(backoff(policy, f.Attempt), pause))
	if !again || f.Attempt >= policy.MaxAttempts || next.After(e.ExpiresAt) {
		return q.finish(e, policy, hearth.AsyncFailed, f, nil)
	}
	e.Failures = append(e.Failures, *f)
	e.DueAt = next
	return q.putBack(e, outcome{})
}

// putBack queues a call again.
func (q *Queue) putBack(e hearth.AsyncEntry, o outcome) outcome {
	e.DueAt = e.DueAt.Truncate(time.Microsecond).UTC()
	queued := false
	q.persist(e.ID, func(ctx context.Context) (err error) {
		queued, err = q.cfg.Store.Retry(ctx, e.AsyncCall)
		return err
	})
	if queued {
		o.again = again(e)
	}
	return o
}

// finish stores the end of a call with what follows from it.
func (q *Queue) finish(e hearth.AsyncEntry, policy hearth.Async, state hearth.AsyncState, f *hearth.AsyncFailure, result *hearth.AsyncResult) outcome {
	now := time.Now().Truncate(time.Microsecond).UTC()
	c := e.AsyncCall
	c.State, c.FinishedAt, c.Result = state, now, result
	keep := time.Duration(policy.KeepResult)
	if state == hearth.AsyncFailed {
		keep = max(keep, keepDead)
	}
	if f != nil {
		c.Failures = append(c.Failures, *f)
	}
	follow := q.follow(e, c, policy, now)
	var refused []hearth.AsyncEntry
	stored := q.persist(e.ID, func(ctx context.Context) (err error) {
		_, refused, err = q.cfg.Store.Finish(ctx, c, now.Add(keep), follow)
		return err
	})
	for _, r := range refused {
		q.cfg.Logger.Warn("the queue is full: a destination is not told of a call", "invocation", e.ID, "function", e.Function, "destination", r.Target)
	}
	o := outcome{ended: stored}
	for _, f := range follow {
		if stored && !slices.ContainsFunc(refused, func(r hearth.AsyncEntry) bool { return r.ID == f.ID }) {
			q.accepted(f.AsyncCall, time.Since(now))
			o.follow = append(o.follow, f.AsyncCall)
		}
	}
	return o
}

// persist repeats a change of the store until it is made: what an attempt did cannot
// be undone, and forgetting it would make another. It gives up, and returns false,
// when the server ends; then the call runs again after the next start.
func (q *Queue) persist(id string, change func(ctx context.Context) error) bool {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		// Not the attempt's context: that may have ended.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := change(ctx)
		cancel()
		if err == nil {
			return true
		}
		q.cfg.Logger.Error("storing how a queued call went", "invocation", id, "err", err)
		if wait(q.ctx, pause); q.ctx.Err() != nil {
			return false
		}
	}
}

// backoff is the pause after a failed attempt: min_backoff, doubled with each
// attempt up to max_backoff, and half of it random, so that calls which failed
// together do not come back together.
func backoff(p hearth.Async, attempt int) time.Duration {
	full := time.Duration(p.MinBackoff)
	for i := 1; i < attempt && full < time.Duration(p.MaxBackoff); i++ {
		full *= 2
	}
	full = min(full, time.Duration(p.MaxBackoff))
	return full/2 + rand.N(full/2+1)
}

// passing tells whether an error without an instance says that there was no room:
// no attempt was made then.
func passing(err error) bool {
	switch hearth.ErrorCode(err) {
	case hearth.CodeExhausted, hearth.CodeUnavailable, hearth.CodeTimeout, hearth.CodeCanceled:
		return true
	}
	return false
}

// retryable tells whether another attempt may succeed. docs/async.md has the table.
func retryable(err error) bool {
	e := hearth.AsError(err)
	switch e.Code {
	case hearth.CodeFunction:
		return e.Function == nil || e.Function.Type != typeRefused
	case hearth.CodeTimeout, hearth.CodeUnavailable, hearth.CodeExhausted, hearth.CodeCanceled, hearth.CodeInternal:
		return true
	}
	return false
}

const (
	// typeStatus is the type of the error of a response that says "try again",
	// typeRefused of one that says "not like this".
	typeStatus  = "Response.Status"
	typeRefused = "Response.Refused"
)

// statusError makes an error of a response's status, nil for success.
func statusError(kind hearth.Kind, status int) error {
	if kind == hearth.KindEvent || status < 400 && (kind == hearth.KindHTTP || status < 300 && status >= 200) {
		return nil
	}
	typ := typeStatus
	switch {
	case kind == hearth.KindWebhook && status == 410:
		typ = typeRefused // the receiver wants no more
	case kind == hearth.KindHTTP && status < 500 && status != 408 && status != 425 && status != 429:
		typ = typeRefused
	}
	msg := "the response has the status " + strconv.Itoa(status)
	return &hearth.Error{Code: hearth.CodeFunction, Message: msg, Function: &hearth.FunctionError{Type: typ, Message: msg}}
}

func failure(attempt int, started time.Time, err error) *hearth.AsyncFailure {
	e := hearth.AsError(err)
	f := &hearth.AsyncFailure{Attempt: attempt, StartedAt: started.Truncate(time.Microsecond).UTC(), EndedAt: time.Now().Truncate(time.Microsecond).UTC(), Code: e.Code, Message: e.Message}
	if e.Function != nil {
		f.Type = e.Function.Type
		if e.Function.Message != "" {
			f.Message = e.Function.Message
		}
	}
	return f
}

// follow makes the calls that tell a function's destinations how a call ended.
func (q *Queue) follow(e hearth.AsyncEntry, c hearth.AsyncCall, policy hearth.Async, now time.Time) []hearth.AsyncEntry {
	list := policy.OnSuccess
	if c.State == hearth.AsyncFailed {
		list = policy.OnFailure
	}
	if len(list) == 0 || e.Kind == hearth.KindWebhook {
		return nil
	}
	if e.Depth+1 >= maxDepth {
		q.cfg.Logger.Warn("a chain of destinations is too long: it ends here", "invocation", e.ID, "function", e.Function, "depth", e.Depth)
		return nil
	}
	if told := min(len(list), e.Budget); told < len(list) {
		q.cfg.Logger.Warn("too many calls come of one by destinations: some are not told", "invocation", e.ID, "function", e.Function, "first", e.Payer)
		list = list[:told]
	}
	parent := e.Trace // no instance had it
	if e.Attempt.TraceID != (hearth.TraceID{}) {
		parent = e.Attempt.Running()
	}
	var follow []hearth.AsyncEntry
	branches := 0
	for _, d := range list {
		f, branch := q.told(c.Function, d, now)
		f.Trace = parent.Child()
		body, err := notice(f, e, c, now)
		if err != nil {
			q.cfg.Logger.Error("telling a destination", "invocation", e.ID, "err", err)
			continue
		}
		f.Body, f.Bytes = body, int64(len(body))
		f.Source, f.Depth = e.ID, e.Depth+1
		f.Payer, f.Budget = e.Payer, 0
		if branch {
			branches++
			f.Budget = e.Budget - len(list)
		}
		follow = append(follow, f)
	}
	// What may still come of the call is for all of them together.
	for i := range follow {
		follow[i].Budget /= max(1, branches)
	}
	return follow
}

// told makes the call, without what it passes, that tells a destination of a function.
// branch says that other calls may come of it.
func (q *Queue) told(function string, d hearth.Destination, now time.Time) (f hearth.AsyncEntry, branch bool) {
	id, target := NewID(), d.Target()
	if target == "" {
		return entry(id, function, string(d), hearth.KindWebhook, now, now, webhookPolicy.MaxAge, hearth.AsyncPayload{}), false
	}
	cfg, err := q.runner.AsyncConfig(target)
	async := cfg.AsyncOrDefault()
	f = entry(id, target, target, hearth.KindEvent, now, now, async.MaxAge, hearth.AsyncPayload{})
	if hearth.QueueOf(target) != "" {
		f.Kind = hearth.KindQueue
	}
	return f, err != nil || len(async.OnSuccess)+len(async.OnFailure) > 0
}

// maxEcho is up to which size the event of a call is repeated to its destinations.
const maxEcho = 256 << 10

// notice is what the destination of the call f gets: a CloudEvent.
func notice(f, e hearth.AsyncEntry, c hearth.AsyncCall, now time.Time) ([]byte, error) {
	type response struct {
		Status  int             `json:"status"`
		Headers [][2]string     `json:"headers,omitempty"`
		Value   json.RawMessage `json:"value,omitempty"`
		Text    string          `json:"text,omitempty"`
		Base64  []byte          `json:"base64,omitempty"`
		Cut     bool            `json:"cut,omitempty"`
	}
	data := struct {
		Invocation hearth.AsyncCall     `json:"invocation"`
		Event      json.RawMessage      `json:"event,omitempty"`
		Response   *response            `json:"response,omitempty"`
		Error      *hearth.AsyncFailure `json:"error,omitempty"`
	}{Invocation: c}
	data.Invocation.Failures = nil
	if e.Kind == hearth.KindEvent && len(e.Body) <= maxEcho && json.Valid(e.Body) {
		data.Event = e.Body
	}
	if e.Kind == hearth.KindQueue && len(e.Body) <= maxEcho {
		data.Event = e.Body
		if !json.Valid(e.Body) {
			text, err := json.Marshal(string(e.Body))
			if err != nil {
				return nil, err
			}
			data.Event = text
		}
	}
	if n := len(c.Failures); c.State == hearth.AsyncFailed && n > 0 {
		data.Error = &c.Failures[n-1]
	}
	if r := c.Result; r != nil {
		data.Response = &response{Status: r.Status, Headers: r.Headers, Cut: r.Cut}
		data.Response.Value, data.Response.Text, data.Response.Base64 = r.Content()
	}
	source := "/v1/functions/" + c.Function
	if queue := hearth.QueueOf(c.Function); queue != "" {
		source = "/v1/queues/" + queue
	}
	verb := "succeeded"
	if c.State == hearth.AsyncFailed {
		verb = "failed"
	}
	return json.Marshal(map[string]any{
		"specversion": "1.0", "id": f.ID, "traceparent": f.Traceparent(), "type": "run.hearth.invocation." + verb,
		"source": source, "subject": c.ID, "time": now.UTC().Format(time.RFC3339Nano),
		"datacontenttype": "application/json", "data": data,
	})
}

// deliver sends a webhook.
func (q *Queue) deliver(ctx context.Context, e hearth.AsyncEntry, attempt int) (r hearth.AsyncResult, pause time.Duration, err error) {
	if q.cfg.Webhooks == nil {
		return r, 0, hearth.Errorf(hearth.CodeUnsupported, "this server sends no webhooks")
	}
	ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
	defer cancel()
	begin := time.Now()
	r.Status, pause, err = q.cfg.Webhooks.Deliver(ctx, e.Target, e.ID, e.Attempt, e.Body)
	if err == nil {
		err = statusError(e.Kind, r.Status)
	}
	if err != nil {
		err = fmt.Errorf("webhook: %w", err)
	}
	if q.cfg.Traces != nil && e.Sampled {
		var f *hearth.AsyncFailure
		if err != nil {
			f = failure(attempt, begin, err)
		}
		q.cfg.Traces.Span(e.Attempt, e.Delivered(e.Number(attempt), begin, time.Now(), f))
	}
	return r, min(pause, time.Duration(webhookPolicy.MaxBackoff)), err
}
