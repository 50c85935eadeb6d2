package gateway

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// directives are what a shared cache heeds of Cache-Control (RFC 9111, 5.2).
type directives struct {
	noStore, noCache, private bool
	// maxAge and sharedMaxAge are in seconds, -1 where missing.
	maxAge, sharedMaxAge int64
}

// parseCacheControl reads the lines of a Cache-Control header. What cannot be
// read must not be kept for longer than its sender meant: a malformed header
// means no-store, a malformed age 0, and of two ages the lesser counts. The
// parser is our own because the one that others use fails as a whole on one bad
// directive and takes the no-store of "private=x,no-store" for a field's name.
func parseCacheControl(lines []string) directives {
	d := directives{maxAge: -1, sharedMaxAge: -1}
	for _, line := range lines {
		for rest := line; rest != ""; {
			var name, value string
			var ok bool
			if name, value, rest, ok = nextDirective(rest); !ok {
				d.noStore = true
				break
			}
			switch strings.ToLower(name) {
			case "no-store":
				d.noStore = true
			case "no-cache": // also of some fields only
				d.noCache = true
			case "private": // likewise
				d.private = true
			case "max-age":
				d.maxAge = lesser(d.maxAge, seconds(value))
			case "s-maxage":
				d.sharedMaxAge = lesser(d.sharedMaxAge, seconds(value))
			}
		}
	}
	return d
}

// nextDirective cuts one "name", "name=token" or "name=\"quoted\"" off a list.
// An empty element has an empty name.
func nextDirective(s string) (name, value, rest string, ok bool) {
	end := strings.IndexAny(s, ",=")
	if end < 0 || s[end] == ',' {
		name, rest, _ = strings.Cut(s, ",")
		name = trimSpace(name)
		return name, "", rest, name == "" || httpguts.ValidHeaderFieldName(name)
	}
	name, s = trimSpace(s[:end]), strings.TrimLeft(s[end+1:], " \t")
	if !strings.HasPrefix(s, `"`) {
		value, rest, _ = strings.Cut(s, ",")
		value = trimSpace(value)
		return name, value, rest, httpguts.ValidHeaderFieldName(name) && !strings.Contains(value, `"`)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			junk, rest, _ := strings.Cut(s[i+1:], ",")
			return name, b.String(), rest, httpguts.ValidHeaderFieldName(name) && trimSpace(junk) == ""
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return name, "", "", false // the quote does not end
}

func trimSpace(s string) string { return strings.Trim(s, " \t") }

// maxSeconds is the greatest age there is (RFC 9111, 1.2.2).
const maxSeconds = 1<<31 - 1

// seconds reads an age; 0 where it is malformed.
func seconds(s string) int64 {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return maxSeconds // too many digits
	}
	return min(n, maxSeconds)
}

// lesser returns the lesser of two ages of which a may be missing.
func lesser(a, b int64) int64 {
	if a < 0 {
		return b
	}
	return min(a, b)
}

// lifetime returns how long a response is fresh, counted from its generation;
// 0 if it must not be kept. ttl is for responses that say nothing themselves.
func lifetime(status int, h http.Header, ttl time.Duration, now time.Time) time.Duration {
	switch status {
	case http.StatusOK, http.StatusNonAuthoritativeInfo, http.StatusNoContent, http.StatusMultipleChoices,
		http.StatusMovedPermanently, http.StatusPermanentRedirect:
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone, http.StatusRequestURITooLong, http.StatusNotImplemented:
		// Only if the function says so: else whoever asks for a page before there
		// is one could keep it away for as long as the ttl.
		ttl = 0
	default:
		return 0
	}
	if h["Set-Cookie"] != nil || h["Content-Range"] != nil {
		return 0
	}
	d := parseCacheControl(h["Cache-Control"])
	switch {
	case d.noStore, d.noCache, d.private:
		// no-cache allows to keep a response that is validated each time, which
		// costs a call each time as well.
		return 0
	case d.sharedMaxAge >= 0:
		return time.Duration(d.sharedMaxAge) * time.Second
	case d.maxAge >= 0:
		return time.Duration(d.maxAge) * time.Second
	case h["Expires"] != nil:
		expires, err := http.ParseTime(h.Get("Expires"))
		if err != nil {
			return 0 // "0" and the like mean the past
		}
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		return max(0, expires.Sub(now))
	case h["Cache-Control"] != nil:
		return 0
	}
	return ttl
}

// generated returns when a response was made, according to its Age and Date: it
// may come from a cache that the function asked.
func generated(h http.Header, now time.Time) time.Time {
	born := now
	if age := h["Age"]; age != nil {
		born = now.Add(-time.Duration(seconds(trimSpace(age[0]))) * time.Second)
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil && date.Before(born) {
		// A Date has no fractions: one of this second is now.
		if now.Sub(date) >= time.Second {
			born = date
		}
	}
	return born
}

// maxVary is how many request headers responses of one URL may depend on.
const maxVary = 16

// varyNames returns the request headers that a response depends on, sorted. ok
// is false if it depends on something that no header of the request tells.
func varyNames(lines []string) (names []string, ok bool) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(trimSpace(name))
			switch {
			case name == "":
				continue
			case !httpguts.ValidHeaderFieldName(name): // among them is *
				return nil, false
			case name == "*", name == "X-Forwarded-For":
				// Hearth writes the latter itself, from the client's address.
				return nil, false
			}
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names, len(names) <= maxVary
}

// conditions are those of a request that a cache evaluates.
type conditions struct{ noneMatch, modifiedSince string }

func conditionsOf(h http.Header) conditions {
	return conditions{strings.Join(h["If-None-Match"], ","), h.Get("If-Modified-Since")}
}

// notModified tells whether who asks has the response already (RFC 9110, 13.2.2).
func (c conditions) notModified(status int, h http.Header) bool {
	switch {
	case status != http.StatusOK:
		return false
	case c.noneMatch != "":
		return matchesTag(c.noneMatch, h.Get("Etag"))
	case c.modifiedSince != "":
		since, err := http.ParseTime(c.modifiedSince)
		if err != nil {
			return false
		}
		modified, err := http.ParseTime(h.Get("Last-Modified"))
		return err == nil && !modified.After(since)
	}
	return false
}

// matchesTag compares a tag weakly with those of If-None-Match.
func matchesTag(list, tag string) bool {
	if trimSpace(list) == "*" {
		return true
	}
	tag = strings.TrimPrefix(tag, "W/")
	for {
		list = strings.TrimPrefix(strings.TrimLeft(list, " \t,"), "W/")
		if !strings.HasPrefix(list, `"`) {
			return false
		}
		end := strings.IndexByte(list[1:], '"')
		if end < 0 {
			return false
		}
		if list[:end+2] == tag {
			return true
		}
		list = list[end+2:]
	}
}

// removeContent removes from the header of a response without its content what
// describes that.
func removeContent(h http.Header) {
	for _, name := range []string{"Content-Type", "Content-Length", "Content-Encoding", "Content-Language"} {
		delete(h, name)
	}
}
