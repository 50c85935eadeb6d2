package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
)

// This file runs a request with an Idempotency-Key once, and answers those that
// come again with the same key with the first one's response (as the IETF draft
// "The Idempotency-Key HTTP Header Field" has it).

const (
	maxIdempotencyKey = 256
	// maxKept bounds the body of a response that is kept in bytes.
	maxKept = 1 << 20
	// keepTimeout bounds a step of the store that goes on when the caller left.
	keepTimeout = 10 * time.Second
	// maxKeyWaiters bounds the requests that wait for the end of a call with the same
	// key, maxWaiters those that wait for any, and keyWait for how long.
	maxKeyWaiters = 16
	maxWaiters    = 1000
	keyWait       = 30 * time.Second
)

// keyedCall is a call with an idempotency key that runs.
type keyedCall struct {
	done    chan struct{} // closed at its end
	waiters atomic.Int32
}

// Keeper keeps the responses of calls with an idempotency key; package store has
// one.
type Keeper interface {
	// BeginKept begins a call, unless one with the same key has begun before: then
	// it returns that. It returns when the call has reached the disk.
	BeginKept(ctx context.Context, k hearth.KeptResponse) (before hearth.KeptResponse, began bool, err error)
	// EndKept stores its response.
	EndKept(ctx context.Context, k hearth.KeptResponse) error
	// DropKept forgets it, because the function did not get it.
	DropKept(ctx context.Context, key string) error
}

// idempotencyKey returns the key of a request that asks to be run once, "" if it
// does not: safe requests may be run again in any case. Errors: CodeInvalid.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header["Idempotency-Key"]
	switch {
	case values == nil || safe(r.Method):
		return "", nil
	case len(values) > 1 || values[0] == "" || len(values[0]) > maxIdempotencyKey:
		return "", hearth.Errorf(hearth.CodeInvalid, "the Idempotency-Key is not valid").
			WithHint("send one with 1 to %d bytes, for example a random UUID", maxIdempotencyKey)
	}
	return values[0], nil
}

// once answers a request with an idempotency key.
func (g *Gateway) once(w http.ResponseWriter, r *http.Request, t *target, m manner, now time.Time) {
	// Before anything is stored: that is the more work of the two.
	err := allow(t.limit, now)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	t.limit = nil // it has been counted
	k, body, err := g.keptCall(w, r, t, m, now)
	if err != nil {
		writeError(w, r, nil, err)
		return
	}
	defer body.Close()
	ctx, cancel, _ := deadline(r.Context(), t.version, now)
	defer cancel()
	before, began, err := g.begin(ctx, k)
	switch {
	case err != nil:
		writeError(w, r, nil, err)
	case !began:
		replayKept(w, r, t, k, before)
	default:
		g.runOnce(w, r, t, m, k, body, now)
	}
}

// keptCall reads the request's body, which is to be closed unless there is an
// error, and names the call.
func (g *Gateway) keptCall(w http.ResponseWriter, r *http.Request, t *target, m manner, now time.Time) (k hearth.KeptResponse, body *spooled, err error) {
	if g.cfg.Keeper == nil {
		return k, nil, hearth.Errorf(hearth.CodeUnsupported, "this server keeps no responses for an Idempotency-Key")
	}
	http.NewResponseController(w).SetReadDeadline(now.Add(time.Duration(t.version.Config.Timeout))) //nolint:errcheck // a connection without deadlines is a test's
	limit := g.maxRequest(t.version)
	if r.ContentLength > limit {
		return k, nil, tooLarge(limit)
	}
	body, err = g.spool.collect(&countingReader{r: cmp.Or[io.Reader](r.Body, http.NoBody), limit: limit})
	if err != nil {
		return k, nil, err
	}
	// None gets to see the response to another.
	name, print := sha256.New(), sha256.New()
	addTo(name, []byte(t.version.Function))
	addTo(name, []byte(m.key))
	addCaller(name, r.Header)
	addRequest(print, r)
	if m.event == hearth.BinaryEvent {
		addAttributes(print, r.Header)
	}
	print.Write(body.head) //nolint:errcheck // never fails
	if body.rest != nil {
		_, err = io.Copy(print, body.rest)
		if _, seekErr := body.rest.Seek(0, io.SeekStart); err != nil || seekErr != nil {
			body.Close()
			return k, nil, spoolError(cmp.Or(err, seekErr))
		}
	}
	return hearth.KeptResponse{
		Key: hex.EncodeToString(name.Sum(nil)), Function: t.version.Function, Caller: clientNetwork(r), Fingerprint: hex.EncodeToString(print.Sum(nil)),
	}, body, nil
}

// addRequest adds what tells requests apart, but for the body.
func addRequest(h hash.Hash, r *http.Request) {
	for _, s := range []string{r.Method, hostName(r.Host), r.URL.RequestURI(), r.Header.Get("Content-Type")} {
		addTo(h, []byte(s))
	}
}

// addAttributes adds the attributes of an event in binary mode, which are headers.
func addAttributes(h hash.Hash, header http.Header) {
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if strings.HasPrefix(name, "Ce-") {
			addTo(h, []byte(name))
			addTo(h, []byte(header.Get(name))) // more than one value is no event
		}
	}
}

// addCaller adds what callers usually identify themselves with.
func addCaller(h hash.Hash, header http.Header) {
	for _, name := range identifying {
		values := header[name]
		if name == "Cookie" {
			values = foreignCookies(values)
		}
		addTo(h, []byte(strconv.Itoa(len(values))))
		for _, value := range values {
			addTo(h, []byte(value))
		}
	}
}

// foreignCookies returns Cookie headers without the cookies of Hearth, which come and go
// as a caller calls other functions.
func foreignCookies(headers []string) (out []string) {
	for _, value := range headers {
		var kept []string
		for part := range strings.SplitSeq(value, ";") {
			if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, stickyPrefix) {
				kept = append(kept, part)
			}
		}
		if len(kept) > 0 {
			out = append(out, strings.Join(kept, "; "))
		}
	}
	return out
}

// identifying are the headers by which callers are told apart.
var identifying = []string{
	"Authorization", "Cookie", "X-Api-Key", "Api-Key", "X-Auth-Token", "X-Access-Token",
	"X-Forwarded-User", "X-Forwarded-Email", "X-Auth-Request-User", "X-Remote-User", "X-Client-Cert", "X-Forwarded-Client-Cert",
}

// addTo adds p with its length, so that what follows cannot be taken for a part of
// it.
func addTo(h hash.Hash, p []byte) {
	h.Write(strconv.AppendInt(nil, int64(len(p)), 10)) //nolint:errcheck // never fails
	h.Write([]byte{0})                                 //nolint:errcheck // as above
	h.Write(p)                                         //nolint:errcheck // as above
}

// begin begins a call, or returns the one with the same key once it has ended.
// Errors: CodeConflict if that takes too long, CodeExhausted if too many wait for it.
func (g *Gateway) begin(ctx context.Context, k hearth.KeptResponse) (hearth.KeptResponse, bool, error) {
	waits, cancel := context.WithTimeout(ctx, keyWait)
	defer cancel()
	for {
		other, busy := g.keyed.LoadOrStore(k.Key, &keyedCall{done: make(chan struct{})})
		if !busy {
			before, began, err := g.cfg.Keeper.BeginKept(ctx, k)
			if !began {
				g.ended(k.Key)
			}
			return before, began, err
		}
		if err := g.wait(waits, other.(*keyedCall)); err != nil {
			return hearth.KeptResponse{}, false, err
		}
	}
}

// wait waits for the end of a call with the same key.
func (g *Gateway) wait(ctx context.Context, c *keyedCall) error {
	ofKey, all := c.waiters.Add(1), g.waiters.Add(1)
	defer c.waiters.Add(-1)
	defer g.waiters.Add(-1)
	if ofKey > maxKeyWaiters || all > maxWaiters {
		return hearth.Errorf(hearth.CodeExhausted, "too many requests wait for calls with the same Idempotency-Key").
			WithHint("send a request again only when the one before was not answered, and wait longer each time")
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return keyBusy()
	}
}

// keyBusy says that a call has not ended.
func keyBusy() error {
	e := hearth.Errorf(hearth.CodeConflict, "a call with the same Idempotency-Key runs").WithHint("try again in a moment with the same key")
	e.RetryAfter = time.Second
	return e
}

// drop forgets a call that the function did not get.
func (g *Gateway) drop(k hearth.KeptResponse) {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	if err := g.cfg.Keeper.DropKept(ctx, k.Key); err != nil {
		g.cfg.Logger.Error("a call with an Idempotency-Key cannot be tried again before the next start", "function", k.Function, "err", err)
	}
}

// ended lets others with the same key look.
func (g *Gateway) ended(key string) {
	if c, ok := g.keyed.LoadAndDelete(key); ok {
		close(c.(*keyedCall).done)
	}
}

// runOnce has the function answer and keeps its response. The caller may leave: the
// call goes on, so that its response is there when the caller comes again.
func (g *Gateway) runOnce(w http.ResponseWriter, r *http.Request, t *target, m manner, k hearth.KeptResponse, body *spooled, now time.Time) {
	defer g.ended(k.Key)
	kept := &keptWriter{ResponseWriter: w}
	again := r.WithContext(context.WithoutCancel(r.Context()))
	again.Body, again.ContentLength = http.NoBody, body.size
	switch {
	case body.rest != nil:
		again.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body.head), body.rest))
	case body.size > 0:
		again.Body = io.NopCloser(bytes.NewReader(body.head))
	}
	rec, broken := g.respond(kept, again, t, m, now)
	if rec.Instance == "" {
		g.drop(k) // it can be tried again
	} else {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), keepTimeout)
		defer cancel()
		k.State, k.Status, k.Header, k.Body = hearth.KeptDone, kept.status, kept.header, kept.body
		if broken || kept.over {
			k.State, k.Header, k.Body = hearth.KeptUnknown, nil, nil
		}
		if err := g.cfg.Keeper.EndKept(ctx, k); err != nil {
			g.cfg.Logger.Error("the response of a call with an Idempotency-Key is not kept", "function", k.Function, "invocation", rec.ID, "err", err)
		}
	}
	if broken {
		panic(http.ErrAbortHandler)
	}
}

// replayKept answers with what is known of an earlier call.
func replayKept(w http.ResponseWriter, r *http.Request, t *target, k, before hearth.KeptResponse) {
	switch {
	case before.Fingerprint != k.Fingerprint:
		writeError(w, r, nil, hearth.KeyReused("Idempotency-Key").
			WithHint("to send a request again, its method, host, path, query, Content-Type and body must all be the same, and the attributes of a CloudEvent; any other needs a new key"))
	case before.State == hearth.KeptDone:
		h := w.Header()
		for name, values := range before.Header {
			if t.cors == nil || !corsHeader(name) { // the origin may be another
				h[name] = values
			}
		}
		h["Hearth-Idempotent-Replay"] = []string{"true"}
		w.WriteHeader(before.Status)
		w.Write(before.Body) //nolint:errcheck // the client is gone
	case before.State == hearth.KeptRunning:
		writeError(w, r, nil, keyBusy())
	default:
		writeError(w, r, nil, hearth.Errorf(hearth.CodeConflict, "the call with this Idempotency-Key has run, but its response is not known: the server ended meanwhile, the response broke off, or it is larger than %s", hearth.Bytes(maxKept)).
			WithHint("find out whether it had its effect, and send it with a new key if not"))
	}
}

// keptWriter passes a response on and keeps it.
type keptWriter struct {
	http.ResponseWriter
	status int
	header http.Header
	body   []byte
	over   bool // it is too large to be kept
	gone   bool // the caller left
}

// Unwrap gives http.ResponseController what it needs.
func (k *keptWriter) Unwrap() http.ResponseWriter { return k.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (k *keptWriter) WriteHeader(status int) {
	k.status, k.header = status, maps.Clone(k.Header())
	k.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter. It never fails.
func (k *keptWriter) Write(p []byte) (int, error) {
	if k.over = k.over || len(k.body)+len(p) > maxKept; !k.over {
		k.body = append(k.body, p...)
	}
	if !k.gone {
		_, err := k.ResponseWriter.Write(p)
		k.gone = err != nil && !errors.Is(err, http.ErrBodyNotAllowed)
	}
	return len(p), nil
}

// FlushError implements what http.ResponseController asks for. It never fails.
func (k *keptWriter) FlushError() error {
	if !k.gone {
		k.gone = http.NewResponseController(k.ResponseWriter).Flush() != nil
	}
	return nil
}
