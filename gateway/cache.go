package gateway

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// This file lets the cache answer in a function's place, and fills it with what
// the function answers. It is a shared cache as of RFC 9111, next to its origin.
//
// Of what a request says about caches only no-store is heeded: it is a wish for
// privacy, and nobody else notices. The others (no-cache, max-age, min-fresh,
// only-if-cached, Pragma) are advisory (RFC 9111, 5.2.1) and ignored: how old an
// answer may be is for the function to say, whose owner pays for the calls, and
// not for whoever presses "reload" or means harm.
//
// A stale response is never used, so must-revalidate means nothing more; there
// is no stale-while-revalidate or stale-if-error.

// cached returns the kept response that answers x's call. If there is none it
// prepares x to keep the function's.
func (g *Gateway) cached(ctx context.Context, x *exchange, t *target, now time.Time) *entry {
	r, c := x.r, t.version.Config.Cache
	k := newCacheKey(t.version.Incarnation, r)
	if !safe(r.Method) {
		x.fill = &fill{cache: g.cache, key: k, unsafe: true}
		return nil
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !cacheable(r, c) {
		return nil
	}
	// A HEAD's own response has no body, so it is of no use to a GET.
	fills := r.Method == http.MethodGet && !parseCacheControl(r.Header["Cache-Control"]).noStore
	e, f, leads := g.cache.get(k, now, fills)
	if f != nil && !leads {
		// The same call is under way. It is worth waiting for once: if there is
		// nothing to answer with then, the function is called. Time for that must be
		// left: one call that hangs must not take the others with it.
		wait, cancel := context.WithTimeout(ctx, time.Duration(t.version.Config.Timeout)/2)
		select {
		case <-f.done:
		case <-wait.Done():
		}
		cancel()
		f = nil
		x.rec.Timings.Queue = time.Since(now)
		now = now.Add(x.rec.Timings.Queue)
		e, _, _ = g.cache.get(k, now, false)
	}
	if e != nil && !e.pass {
		return e
	}
	if !fills {
		return nil
	}
	x.fill = &fill{cache: g.cache, key: k, ttl: time.Duration(c.TTL[t.route]), flight: f}
	if e == nil {
		x.takeConditions()
	}
	return nil
}

// safe tells whether requests with the method change nothing (RFC 9110, 9.2.1).
func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// cacheable tells whether a GET or HEAD request may be answered from the cache.
func cacheable(r *http.Request, c *hearth.Cache) bool {
	if r.ContentLength != 0 { // what a body asks for is not in the key
		return false
	}
	if !c.Authorized && (r.Header["Authorization"] != nil || r.Header["Cookie"] != nil) {
		return false
	}
	// Parts of responses are not kept, and the other two are for the origin only.
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-Unmodified-Since"} {
		if r.Header[name] != nil {
			return false
		}
	}
	return true
}

// takeConditions takes a request's conditions away from the function: a 304 could
// not be kept, and clients that have an old response would ask with one for ever.
// They are evaluated against what it answers.
func (x *exchange) takeConditions() {
	if x.r.Header["If-None-Match"] == nil && x.r.Header["If-Modified-Since"] == nil {
		return
	}
	x.conditions = conditionsOf(x.r.Header)
	x.r = x.r.WithContext(x.r.Context()) // handlers must not change the request
	x.r.Header = maps.Clone(x.r.Header)
	delete(x.r.Header, "If-None-Match")
	delete(x.r.Header, "If-Modified-Since")
}

// replay answers with a kept response.
func (x *exchange) replay(e *entry, now time.Time) error {
	h := x.w.Header()
	for name, values := range e.header {
		h[name] = append(h[name], values...)
	}
	h["Age"] = []string{strconv.FormatInt(max(0, int64(now.Sub(e.born)/time.Second)), 10)}
	x.rec.Cached, x.rec.Status, x.rec.Timings.Route = true, e.status, now.Sub(x.rec.StartedAt)-x.rec.Timings.Queue
	body := e.body
	switch {
	case conditionsOf(x.r.Header).notModified(e.status, e.header):
		x.rec.Status, body = http.StatusNotModified, nil
		removeContent(h)
	case e.status == http.StatusNoContent:
		body = nil
	default:
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	setHeaders(h, &x.rec)
	x.wrote = true
	x.w.WriteHeader(x.rec.Status)
	if len(body) == 0 || x.r.Method == http.MethodHead {
		return nil
	}
	x.rec.BytesOut = int64(len(body))
	if len(body) > smallWrite {
		x.boundWrites()
	}
	_, err := x.w.Write(body)
	return clientError(err)
}

// fill collects a function's response while it is sent, and keeps it if all of it
// came and it may be kept.
type fill struct {
	cache *cache
	key   *cacheKey
	ttl   time.Duration
	// unsafe is true for a call that may change what the URL's responses say; its
	// own is not kept.
	unsafe bool
	// flight is what others wait for; nil when the call is not the first.
	flight *flight

	entry     *entry // nil while, or because, nothing is collected
	vary      []string
	collected int64
}

// head decides by a response's head whether it is collected.
func (f *fill) head(h *guest.Head) {
	if f.unsafe {
		// Before the answer is sent: who gets it does not read old responses.
		if h.Status < 400 {
			f.cache.invalidate(f.key)
		}
		return
	}
	now := time.Now()
	header := http.Header{}
	for _, kv := range h.Headers {
		// How long the function's parts took is of this call only.
		if !dropResponseHeader(kv) && kv[0] != "server-timing" {
			header.Add(kv[0], kv[1])
		}
	}
	vary, ok := varyNames(header["Vary"])
	born := generated(header, now)
	expires := born.Add(lifetime(h.Status, header, f.ttl, now))
	if !ok || !now.Before(expires) {
		f.pass(now)
		return
	}
	delete(header, "Age")
	if header["Date"] == nil {
		header.Set("Date", now.UTC().Format(http.TimeFormat))
	}
	f.vary = vary
	f.entry = &entry{status: h.Status, header: header, born: born, expires: expires}
}

// data collects a piece of the body. It keeps the response with the last one.
func (f *fill) data(p []byte, last bool) {
	e := f.entry
	if e == nil {
		return
	}
	f.collected += int64(len(p))
	all := f.cache.collecting.Add(int64(len(p)))
	if f.collected > f.cache.body || all > f.cache.share {
		f.pass(time.Now())
		return
	}
	if last && e.body == nil {
		e.body = bytes.Clone(p) // at its exact size
	} else {
		e.body = append(e.body, p...)
	}
	if last {
		f.cache.put(f.key, f.vary, e, time.Now())
		f.end()
	} else if f.flight != nil {
		// Others wait for the function, never for this call's client to read.
		f.cache.end(f.flight)
	}
}

// pass gives up a response that is not to be kept, and has the next ones for its
// URL not wait for one another. A call that fails does not do so: it tells
// nothing of them, and too many calls are a reason to wait.
func (f *fill) pass(now time.Time) {
	if f.flight != nil {
		f.cache.put(f.key, nil, &entry{pass: true, expires: now.Add(passFor)}, now)
	}
	f.end()
}

// end lets those go on who wait. It may be called again.
func (f *fill) end() {
	f.cache.collecting.Add(-f.collected)
	f.collected, f.entry = 0, nil
	if f.flight != nil {
		f.cache.end(f.flight)
		f.flight = nil
	}
}
