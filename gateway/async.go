package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// This file is about calls that are stored and run later: how they come in over
// HTTP, and how package queue has them run.

const (
	// maxAsyncBody bounds the body of an asynchronous call in bytes.
	maxAsyncBody = 6 << 20
	// maxAsyncResult is how much of a result is stored, in bytes, maxBatchResult how
	// much of the answer to a batch is read.
	maxAsyncResult = 256 << 10
	maxBatchResult = 6 << 20
	// maxAsyncHeaders bounds the stored headers of a response in bytes.
	maxAsyncHeaders = 16 << 10
	// maxLargeBodies is how many bodies over spooledInMemory are in memory at the
	// same time while they are stored.
	maxLargeBodies = 8
)

// Queue stores calls to run them later; package queue has one.
type Queue interface {
	// Accept returns when the call has reached the disk. first is false if it was
	// accepted before, under the same deduplication key. Errors: with
	// hearth.ErrKeyReused if that was another request.
	Accept(ctx context.Context, r hearth.AsyncRequest) (call hearth.AsyncCall, first bool, err error)
	// AcceptAll accepts several calls of the same target: all, or none with an error.
	AcceptAll(ctx context.Context, list []hearth.AsyncRequest) ([]hearth.AsyncCall, error)
	// Reloaded tells that functions may have other configurations than before.
	Reloaded()
}

// invocationType is the header that asks for an asynchronous call.
const invocationType = "Hearth-Invocation-Type"

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// asyncRequest reads the headers that say how a call is to be run later.
func asyncRequest(h http.Header, now time.Time) (r hearth.AsyncRequest, err error) {
	r.ID, r.DeduplicationKey = newInvocationID(), h.Get("Hearth-Deduplication-Key")
	delay, at := h.Get("Hearth-Delay"), h.Get("Hearth-Not-Before")
	switch {
	case h["Idempotency-Key"] != nil:
		return r, hearth.Errorf(hearth.CodeInvalid, "a call that runs later cannot have an Idempotency-Key").WithHint("send Hearth-Deduplication-Key instead")
	case delay != "" && at != "":
		return r, hearth.Errorf(hearth.CodeInvalid, "the request has both Hearth-Delay and Hearth-Not-Before").WithHint("send one of them")
	case delay != "":
		var d hearth.Duration
		if err := d.UnmarshalText([]byte(delay)); err != nil || d < 0 {
			return r, hearth.Errorf(hearth.CodeInvalid, "Hearth-Delay %q is not a duration", clip(delay)).WithHint("write for example 500ms, 30s or 2h")
		}
		r.NotBefore = now.Add(time.Duration(d))
	case at != "":
		if r.NotBefore, err = time.Parse(time.RFC3339, at); err != nil {
			return r, hearth.Errorf(hearth.CodeInvalid, "Hearth-Not-Before %q is not a time", clip(at)).WithHint("write it as RFC 3339, for example 2030-01-31T08:00:00Z")
		}
	}
	return r, nil
}

// publicRequest does so for what comes over HTTP, from anybody whom the function lets.
// Errors: CodeInvalid, CodeDenied.
func (g *Gateway) publicRequest(r *http.Request, t *target, now time.Time) (req hearth.AsyncRequest, err error) {
	if g.cfg.Queue == nil {
		return req, hearth.Errorf(hearth.CodeUnsupported, "this server has no queue")
	}
	policy := g.publicPolicy(t)
	if policy.APIOnly {
		return req, hearth.Errorf(hearth.CodeDenied, "%s takes no calls over HTTP that run later", t.version.Function).
			WithHint("its configuration says async.api_only; POST /v1/functions/%s/invocations takes them", t.version.Function)
	}
	if req, err = asyncRequest(r.Header, now); err != nil {
		return req, err
	}
	if wait := req.NotBefore.Sub(now); wait > time.Duration(policy.MaxDelay) {
		return req, hearth.Errorf(hearth.CodeInvalid, "the call is to begin in %s", hearth.Duration(wait.Round(time.Second))).
			WithHint("the longest delay over HTTP is %s, the async.max_delay of the function", policy.MaxDelay)
	}
	req.Public, req.Target, req.Trace = true, string(t.name), g.public(t.version.Function, g.TraceOf(r.Header))
	if req.DeduplicationKey != "" { // no caller who can be told apart answers for the key of another
		scope := sha256.New()
		addCaller(scope, r.Header)
		req.KeyScope = hex.EncodeToString(scope.Sum(nil))
	}
	return req, nil
}

// publicPolicy returns what the version of a target lets callers over HTTP do, no more than
// the live one does: an old version must not be a way around that.
func (g *Gateway) publicPolicy(t *target) hearth.Async {
	policy := t.version.Config.AsyncOrDefault()
	if f := g.table.Load().functions[t.version.Function]; f != nil && f.err == nil && f.live != nil {
		live := f.live.main().Config.AsyncOrDefault()
		policy.APIOnly = policy.APIOnly || live.APIOnly
		policy.MaxDelay = min(policy.MaxDelay, live.MaxDelay)
	}
	return policy
}

// AcceptEvent stores a call with an event, as the headers of its request say.
// first is false if it was accepted before. Errors: those of Queue.Accept,
// CodeInvalid for a header.
func (g *Gateway) AcceptEvent(ctx context.Context, target string, event []byte, h http.Header) (call hearth.AsyncCall, first bool, err error) {
	r, err := asyncRequest(h, time.Now())
	if err != nil {
		return call, false, err
	}
	r.Target, r.Trace = target, g.TraceOf(h)
	return g.acceptEvent(ctx, r, event)
}

// acceptEvent stores a call with an event, which is otherwise as r says.
func (g *Gateway) acceptEvent(ctx context.Context, r hearth.AsyncRequest, event []byte) (call hearth.AsyncCall, first bool, err error) {
	r.Kind, r.Body = hearth.KindEvent, event
	if r.DeduplicationKey != "" {
		print := sha256.New()
		addTo(print, []byte(r.Target))
		print.Write(event) //nolint:errcheck // never fails
		r.Fingerprint = hex.EncodeToString(print.Sum(nil))
	}
	return g.cfg.Queue.Accept(ctx, r)
}

// async answers a request that is to be run later.
func (g *Gateway) async(w http.ResponseWriter, r *http.Request, t *target, now time.Time) {
	call, first, err := g.acceptRequest(w, r, t, now)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	writeAccepted(w, r, call, first)
}

// writeAccepted answers with a call that was accepted.
func writeAccepted(w http.ResponseWriter, r *http.Request, call hearth.AsyncCall, first bool) {
	call.Failures = nil // what a function raised is for its owner
	body, err := json.Marshal(call)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	setAccepted(w.Header(), call.ID, first)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	status := http.StatusAccepted
	if !first {
		status = http.StatusOK
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body) //nolint:errcheck // the client is gone
	}
}

// setAccepted sets the headers of the answer to a call that was accepted.
func setAccepted(h http.Header, id string, first bool) {
	h["Hearth-Invocation-Id"] = []string{id}
	h["Location"] = []string{"/v1/invocations/" + id}
	if !first {
		h["Hearth-Deduplicated"] = []string{"true"}
	}
}

func (g *Gateway) acceptRequest(w http.ResponseWriter, r *http.Request, t *target, now time.Time) (call hearth.AsyncCall, first bool, err error) {
	req, err := g.publicRequest(r, t, now)
	if err != nil {
		return call, false, err
	}
	if err := allow(t.limit, now); err != nil {
		return call, false, err
	}
	ctx, cancel, end := deadline(r.Context(), t.version, now)
	defer cancel()
	body, free, err := g.readStored(ctx, w, r, end)
	defer free()
	if err != nil {
		return call, false, err
	}
	req.Kind, req.Body, req.URL = hearth.KindHTTP, body, cacheURL(r)
	req.Head = appendEvent(nil, r, t, req.ID, req.Trace, now)
	if req.DeduplicationKey != "" {
		print := sha256.New()
		addRequest(print, r)
		print.Write(body) //nolint:errcheck // never fails
		req.Fingerprint = hex.EncodeToString(print.Sum(nil))
	}
	return g.cfg.Queue.Accept(ctx, req)
}

// readStored reads the body of a request that is kept as a whole, maxAsyncBody at most.
// free is to be called when it is not needed any more.
func (g *Gateway) readStored(ctx context.Context, w http.ResponseWriter, r *http.Request, end time.Time) (body []byte, free func(), err error) {
	free = func() {}
	if r.ContentLength > maxAsyncBody {
		return nil, free, errBodyTooLarge
	}
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil, free, nil
	}
	http.NewResponseController(w).SetReadDeadline(end) //nolint:errcheck // a connection without deadlines is a test's
	counted := &countingReader{r: r.Body, limit: maxAsyncBody}
	parts, err := g.spool.collect(counted)
	if counted.n.Load() > maxAsyncBody {
		err = errBodyTooLarge
	}
	if err != nil {
		return nil, free, err
	}
	defer parts.Close()
	if parts.rest == nil {
		return parts.head, free, nil
	}
	select {
	case g.large <- struct{}{}:
		free = sync.OnceFunc(func() { <-g.large })
	case <-ctx.Done():
		return nil, free, hearth.Errorf(hearth.CodeExhausted, "too many large requests are being stored").WithHint("try again in a moment")
	}
	body = make([]byte, parts.size)
	copy(body, parts.head)
	if _, err := io.ReadFull(parts.rest, body[len(parts.head):]); err != nil {
		return nil, free, spoolError(err)
	}
	return body, free, nil
}

var errBodyTooLarge = tooLarge(maxAsyncBody)

// AsyncConfig returns the configuration of the version that a target names now.
// Errors: CodeNotFound.
func (g *Gateway) AsyncConfig(target string) (hearth.Config, error) {
	a, v, err := g.resolveAsync(context.Background(), target)
	switch {
	case err != nil:
		return hearth.Config{}, err
	case a != nil:
		v = a.main()
	}
	return v.Config, nil
}

// resolveAsync is resolve for what calls are stored for: of a queue it is the function
// that takes its messages.
func (g *Gateway) resolveAsync(ctx context.Context, target string) (*alias, *hearth.Version, error) {
	t := g.table.Load()
	queue := hearth.QueueOf(target)
	if queue == "" {
		return g.resolve(ctx, t, hearth.Target(target))
	}
	if a := t.takers[queue]; a != nil {
		return a, nil, nil
	}
	if f := t.functions[t.queues[queue]]; f != nil {
		return nil, nil, f.err
	}
	return nil, nil, hearth.Errorf(hearth.CodeNotFound, "no function takes the messages of the queue %q", clip(queue)).
		WithHint("name the queue in the hearth.yaml of one, for example: queues: {%s: {}}", clip(queue))
}

// RunAsync makes an attempt of a stored call, on the version that its target names
// now. lent tells whether an instance had it; without one it makes no record.
// Errors: as those of InvokeEvent.
func (g *Gateway) RunAsync(ctx context.Context, e hearth.AsyncEntry, attempt int) (result hearth.AsyncResult, lent bool, err error) {
	now := time.Now()
	a, v, err := g.resolveAsync(ctx, e.Target)
	if err != nil {
		return result, false, err
	}
	if a != nil {
		v = a.any()
	}
	ctx, cancel, end := deadline(ctx, v, now)
	defer cancel()
	rec := g.newRecord(a, v, e.Kind, e.Attempt, now)
	rec.ID, rec.BytesIn, rec.Links, rec.Attempt = e.ID, int64(len(e.Body)), e.Links, e.Number(attempt)
	rec.Scheduled = e.Scheduled()
	call := &guest.Call{ID: e.ID, Deadline: end, Kind: hearth.KindEvent, Body: e.Body, Trace: rec.Running()}
	if e.Kind == hearth.KindHTTP {
		// What was stored has the span of the acceptance, which nobody knew before.
		call.Event = bytes.Replace(e.Head, e.Trace.AppendTraceparent(nil), call.Trace.AppendTraceparent(nil), 1)
		call.Kind = e.Kind
		rec.Method, rec.Path = requestLine(e.Head)
	}
	sink := &resultSink{http: e.Kind == hearth.KindHTTP, limit: g.maxResponse(v), keep: maxAsyncResult}
	if e.Kind == hearth.KindQueue {
		sink.keep = maxBatchResult
	}
	if v.Config.Cache != nil && sink.http && !safe(rec.Method) {
		sink.fill = &fill{cache: g.cache, key: &cacheKey{incarnation: v.Incarnation, url: e.URL}, unsafe: true}
	}
	err = g.invoke(ctx, v, call, &rec, sink)
	lent = rec.Instance != ""
	result = sink.result
	if result.Status == 0 {
		result.Status = 200
	}
	rec.BytesOut = sink.size
	if err == nil {
		rec.Status = result.Status
	}
	if lent {
		g.finishAttempt(rec, err)
	}
	return result, lent, err
}

// finishAttempt logs and records an attempt. Its lines have the id of the call, as
// those of the other attempts; records after the first one's have a number too.
func (g *Gateway) finishAttempt(rec hearth.Invocation, err error) {
	if err != nil {
		e := hearth.AsError(err)
		rec.ErrorCode, rec.ErrorMessage, rec.Status = e.Code, e.Message, e.Code.HTTPStatus()
		if e.Code == hearth.CodeInternal || e.Code == hearth.CodeUnavailable {
			g.cfg.Logger.Error("attempt failed", "function", rec.Function, "invocation", rec.ID, "attempt", rec.Attempt, "err", err)
		}
		g.logError(&rec, e)
	}
	rec.ID = hearth.AttemptID(rec.ID, rec.Attempt)
	g.cfg.Recorder.Record(rec)
}

// requestLine finds the method and path in an event that appendEvent made.
func requestLine(event []byte) (method, path string) {
	var e struct {
		RequestContext struct {
			HTTP struct{ Method, Path string }
		}
		Headers map[string]string
	}
	if json.Unmarshal(event, &e) != nil {
		return "", ""
	}
	return e.RequestContext.HTTP.Method, e.Headers["x-forwarded-prefix"] + e.RequestContext.HTTP.Path
}

// resultSink keeps the beginning of a response.
type resultSink struct {
	http   bool
	fill   *fill // nil unless the response matters to the cache
	limit  int64
	size   int64
	keep   int
	result hearth.AsyncResult
}

// Head implements guest.Sink.
func (s *resultSink) Head(h *guest.Head) error {
	if !s.http {
		return nil
	}
	if err := validHead(h); err != nil {
		return err
	}
	s.result.Status = h.Status
	if s.fill != nil {
		s.fill.head(h)
	}
	size := 0
	for _, kv := range h.Headers {
		if size += len(kv[0]) + len(kv[1]); size > maxAsyncHeaders {
			s.result.Cut = true
			break
		}
		if !dropResponseHeader(kv) {
			s.result.Headers = append(s.result.Headers, kv)
		}
	}
	return nil
}

// Data implements guest.Sink.
func (s *resultSink) Data(p []byte, _ bool) error {
	if s.size += int64(len(p)); s.size > s.limit {
		return responseTooLarge(s.limit)
	}
	if room := s.keep - len(s.result.Body); len(p) > room {
		p, s.result.Cut = p[:room], true
	}
	s.result.Body = append(s.result.Body, p...)
	return nil
}

// Flush implements guest.Sink.
func (s *resultSink) Flush() error { return nil }
