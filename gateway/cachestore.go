package gateway

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// entryOverhead is about what an entry needs besides its key, header and
	// body, in bytes.
	entryOverhead = 1 << 10
	// passFor is how long a URL whose response could not be kept is remembered:
	// requests for it do not wait for one another.
	passFor = 10 * time.Second
)

// cache keeps responses in memory. Its methods may be called from many
// goroutines.
//
// What is kept of a version is its share: its own list, least recently used at
// the end. A share has at most a quarter of the memory, and what is too much
// altogether goes from the end of the largest share; so no function can take the
// memory that others need.
type cache struct {
	// Constant after construction. Bytes: of everything, of a share, of a body.
	limit, share, body int64

	// collecting is how many bytes of responses are under way, at most a share.
	collecting atomic.Int64

	mu      sync.Mutex
	used    int64             // guarded by mu
	shares  map[string]*share // guarded by mu; by incarnation
	flights map[flightKey]*flight
}

// share is what is kept of one version.
type share struct {
	incarnation string
	used        int64
	resources   map[string]*resource // by URL
	recent      *list.List           // of *entry, the most recently used first
}

// resource is what is kept of one URL.
type resource struct {
	share *share
	url   string
	// vary are the request headers on which any of its responses depended. They
	// only become more: a response that depends on less is then found less often
	// than it could be, but never wrongly.
	vary     []string
	variants map[string]*entry
}

// entry is one response. Its fields do not change.
type entry struct {
	status  int
	header  http.Header
	body    []byte
	born    time.Time // when it was generated
	expires time.Time
	// pass is true for an entry that stands for a response that was not kept.
	pass bool

	resource *resource
	variant  string
	size     int64
	place    *list.Element
}

// flight is a call under way whose response may become an entry.
type flight struct {
	key  flightKey
	done chan struct{} // closed when nobody needs to wait any more
}

type flightKey struct{ incarnation, url, variant string }

func newCache(limit, body int64) *cache {
	return &cache{
		limit: limit, share: limit / 4, body: body,
		shares: map[string]*share{}, flights: map[flightKey]*flight{},
	}
}

// get returns the entry for a request, which may be one that passes. If there is
// none and join is set, it returns a flight: another's to wait for, or one that
// the caller leads and has to end.
func (c *cache) get(k *cacheKey, now time.Time, join bool) (e *entry, f *flight, leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var vary []string
	if r := c.resourceLocked(k); r != nil {
		vary = r.vary
		if e := r.variants[k.variant(vary)]; e != nil && now.Before(e.expires) {
			r.share.recent.MoveToFront(e.place)
			return e, nil, false
		}
	}
	if !join {
		return nil, nil, false
	}
	fk := flightKey{k.incarnation, k.url, k.variant(vary)}
	if f := c.flights[fk]; f != nil {
		return nil, f, false
	}
	f = &flight{fk, make(chan struct{})}
	c.flights[fk] = f
	return nil, f, true
}

func (c *cache) resourceLocked(k *cacheKey) *resource {
	if s := c.shares[k.incarnation]; s != nil {
		return s.resources[k.url]
	}
	return nil
}

// end lets those go on who wait for a flight. It may be called again.
func (c *cache) end(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[f.key] == f {
		delete(c.flights, f.key)
		close(f.done)
	}
}

// put keeps e for requests like k, unless that would need too much. One that
// passes does not replace one that answers.
func (c *cache) put(k *cacheKey, vary []string, e *entry, now time.Time) {
	e.size = int64(len(k.url)+cap(e.body)) + entryOverhead
	for name, values := range e.header {
		for _, v := range values {
			e.size += int64(len(name) + len(v))
		}
	}
	if e.size > c.share {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.resourceLocked(k); r != nil {
		all := slices.Concat(r.vary, vary)
		slices.Sort(all)
		if vary = slices.Compact(all); len(vary) > maxVary {
			return
		}
		if len(vary) > len(r.vary) { // the variants are told apart by too little
			c.removeResourceLocked(r)
		}
	}
	variant := k.variant(vary)
	if r := c.resourceLocked(k); r != nil {
		if old := r.variants[variant]; old != nil {
			if e.pass && !old.pass && now.Before(old.expires) {
				return
			}
			c.removeLocked(old)
		}
	}
	s := c.shares[k.incarnation]
	if s == nil {
		s = &share{incarnation: k.incarnation, resources: map[string]*resource{}, recent: list.New()}
		c.shares[k.incarnation] = s
	}
	r := s.resources[k.url]
	if r == nil {
		r = &resource{share: s, url: k.url, vary: vary, variants: map[string]*entry{}}
		s.resources[k.url] = r
	}
	r.variants[variant] = e
	e.resource, e.variant, e.place = r, variant, s.recent.PushFront(e)
	s.used += e.size
	c.used += e.size
	for s.used > c.share {
		c.removeLocked(s.recent.Back().Value.(*entry))
	}
	for c.used > c.limit {
		c.removeLocked(c.largestLocked().recent.Back().Value.(*entry))
	}
}

func (c *cache) largestLocked() (largest *share) {
	for _, s := range c.shares {
		if largest == nil || s.used > largest.used {
			largest = s
		}
	}
	return largest
}

// removeLocked removes an entry, and what is empty without it.
func (c *cache) removeLocked(e *entry) {
	r, s := e.resource, e.resource.share
	delete(r.variants, e.variant)
	s.recent.Remove(e.place)
	s.used -= e.size
	c.used -= e.size
	if len(r.variants) == 0 {
		delete(s.resources, r.url)
	}
	if len(s.resources) == 0 {
		delete(c.shares, s.incarnation)
	}
}

func (c *cache) removeResourceLocked(r *resource) {
	for _, e := range r.variants {
		c.removeLocked(e)
	}
}

// invalidate forgets the responses of a URL, whatever they depend on.
func (c *cache) invalidate(k *cacheKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.resourceLocked(k); r != nil {
		c.removeResourceLocked(r)
	}
}

// retire forgets the responses of a version.
func (c *cache) retire(incarnation string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.shares[incarnation]; s != nil {
		c.used -= s.used
		delete(c.shares, incarnation)
	}
}

// cacheKey is what of a request chooses among responses.
type cacheKey struct {
	incarnation string
	// url is scheme, host, path and query, byte for byte: whatever normalising
	// could confuse stays apart, at the price of a call.
	url    string
	header http.Header
}

func newCacheKey(incarnation string, r *http.Request) *cacheKey {
	return &cacheKey{incarnation, cacheURL(r), r.Header}
}

// cacheURL returns the URL of a request as cacheKey has it.
func cacheURL(r *http.Request) string {
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	url := scheme + r.Host + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		url += "?" + r.URL.RawQuery
	}
	return url
}

// keyed are request headers that always tell responses apart. Functions get all
// request headers, and only their Vary says which matter to them. But who may
// read a response must not depend on a function's care, nor must it be possible
// to make a function answer as for another URL, method or host and have that
// kept for everybody: frameworks take these headers for those.
var keyed = []string{
	"Authorization", "Cookie",
	"Forwarded", "Front-End-Https", "X-Host", "X-Http-Host-Override", "X-Original-Host",
	"X-Original-Method", "X-Original-Uri", "X-Original-Url", "X-Rewrite-Url", "X-Scheme", "X-Script-Name", "X-Url-Scheme",
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override",
}

// likeOthers returns, sorted, the request headers besides those in keyed that
// always tell responses apart: X-Forwarded-*, except for the caller's address, and
// every name with an underscore, since frameworks that turn names into variables,
// as CGI and WSGI do, see X-Original-Url in X_Original_Url, and Accept-Language in
// Accept_Language.
func (k *cacheKey) likeOthers() []string {
	var names []string
	for name := range k.header {
		if strings.HasPrefix(name, "X-Forwarded-") && name != "X-Forwarded-For" || strings.IndexByte(name, '_') >= 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// variant returns what tells the request from others for the same URL, as a hash:
// it has credentials in it.
func (k *cacheKey) variant(vary []string) string {
	var b []byte
	add := func(name, value string) {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(value)))
		b = append(b, value...)
	}
	for _, name := range keyed {
		for _, value := range k.header[name] {
			add(name, value)
		}
	}
	for _, name := range k.likeOthers() {
		for _, value := range k.header[name] {
			add(name, value)
		}
	}
	connection := k.header["Connection"]
	for _, name := range vary {
		values := k.header[name]
		if values == nil || len(connection) > 0 && listed(connection, name) {
			continue // listed there, the function does not see it either
		}
		add(name, normalised(name, values))
	}
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// normalised returns a header's value such that what means the same is the same
// (RFC 9111, 4.1), where that is known to be so.
func normalised(name string, values []string) string {
	value := strings.Join(values, ",")
	switch name {
	case "Accept-Encoding", "Accept-Language", "Accept-Charset":
		// Lists of tokens without case, in which space means nothing.
		return strings.ToLower(strings.NewReplacer(" ", "", "\t", "").Replace(value))
	}
	return value
}
