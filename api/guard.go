package api

import (
	"errors"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
)

// proxied tells by what a request shows that a proxy passed it on; "" if by
// nothing. A proxy that was told nothing about headers may add none, but
// nginx then also speaks HTTP/1.0, which no client of ours does.
func proxied(r *http.Request) string {
	for name := range r.Header {
		switch {
		case name == "Forwarded", name == "Via", name == "X-Real-Ip", strings.HasPrefix(name, "X-Forwarded-"):
			return "it has the header " + name
		}
	}
	if !r.ProtoAtLeast(1, 1) {
		return "it is HTTP/1.0"
	}
	return ""
}

// guard protects management until there is authentication:
//   - only clients on this machine get in, and no request that a proxy passed
//     on: a proxy on this machine would make the whole world look local;
//   - the Host must name this machine, against DNS rebinding: a web page whose
//     name suddenly resolves to 127.0.0.1 is local in every other respect;
//   - browsers may not send requests from pages of other origins, nor read for them:
//     the answers would stay hidden, but long queries would be work.
//
// Health is open to all.
func (s *API) guard(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &tracked{ResponseWriter: rw}
		defer s.recoverPanic(w, r)
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		if err := s.admit(r); err != nil {
			s.fail(w, r, err)
			return
		}
		err := cross.Check(r)
		if err == nil && r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") != "navigate" {
			err = errors.New("cross-site request")
		}
		if err != nil {
			s.fail(w, r, (&hearth.Error{
				Code: hearth.CodeDenied, Message: "requests from web pages of other origins are refused", Err: err,
			}).WithHint("use the CLI, or a page that Hearth itself serves"))
			return
		}
		if err := checkContentType(r); err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// admit lets in who may manage. Errors: CodeDenied.
func (s *API) admit(r *http.Request) error {
	if addr, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !addr.Addr().Unmap().IsLoopback() {
		return hearth.Errorf(hearth.CodeDenied, "management is only possible from the machine that Hearth runs on").
			WithHint("use the CLI there, or an SSH tunnel: ssh -L 8080:127.0.0.1:8080 HOST")
	}
	if sign := proxied(r); sign != "" {
		return hearth.Errorf(hearth.CodeDenied, "management is not possible through a proxy (this request came through one: %s)", clip(sign)).
			WithHint("use the CLI on the machine that Hearth runs on, and let the proxy pass on /fn and your routes only")
	}
	if !ManagementHost(r.Host, s.AllowedHosts) {
		return hearth.Errorf(hearth.CodeDenied, "management is not served under the host name %q", clip(r.Host)).
			WithHint("use http://127.0.0.1 or http://localhost, or add the name to the server's allowed hosts")
	}
	return nil
}

// ManagementHost tells whether management is served under a Host header:
// localhost, a loopback address, or one of the allowed names.
func ManagementHost(hostport string, allowed []string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ".")
	if addr, err := netip.ParseAddr(host); err == nil && addr.Unmap().IsLoopback() {
		return true
	}
	return strings.EqualFold(host, "localhost") || slices.ContainsFunc(allowed, func(a string) bool {
		return strings.EqualFold(a, host) || strings.EqualFold(a, hostport)
	})
}

// checkContentType refuses bodies that are not JSON, which HTML forms can send
// across origins. POST /v1/artifacts looks for itself; queries, which change nothing,
// are forms where Prometheus' clients send them.
func checkContentType(r *http.Request) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.ContentLength == 0 || r.URL.Path == artifactsPath ||
		strings.HasPrefix(r.URL.Path, queriesPath) || carriesEvents(r) {
		return nil
	}
	return checkJSON(r)
}

// checkJSON refuses a body that is not JSON.
func checkJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if mt, _, err := mime.ParseMediaType(ct); err == nil && mt == "application/json" {
		return nil
	}
	msg := hearth.Errorf(hearth.CodeInvalid, "the body has the content type %q instead of application/json", clip(ct))
	if ct == "" {
		msg = hearth.Errorf(hearth.CodeInvalid, "the body has no content type")
	}
	return withStatus(http.StatusUnsupportedMediaType, msg.WithHint("send JSON with Content-Type: application/json (curl: -H 'Content-Type: application/json')"))
}

// tracked remembers whether an answer has begun.
type tracked struct {
	http.ResponseWriter
	wrote bool
}

// WriteHeader implements http.ResponseWriter.
func (t *tracked) WriteHeader(status int) {
	t.wrote = true
	t.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (t *tracked) Write(p []byte) (int, error) {
	t.wrote = true
	return t.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func stack() string { return string(debug.Stack()) }
