package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/hearthrun/hearth"
)

// listenDebug opens the address for profiles. Whoever reaches it can slow the
// server down and read what is in its memory, and nobody logs in there: so it is
// a loopback address. Errors: CodeInvalid, and as listen.
func listenDebug(ctx context.Context, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err == nil && !net.ParseIP(host).IsLoopback() {
		err = errors.New("it is not a loopback address")
	}
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "profiles cannot be served on %s: %w", addr, err).
			WithHint("give a loopback address, for example --debug-listen 127.0.0.1:6060")
	}
	return listen(ctx, addr)
}

// debugServer serves the profiles of Go's runtime under /debug/pprof/.
func debugServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return &http.Server{Handler: loopbackHost(mux), ReadHeaderTimeout: 10 * time.Second}
}

// loopbackHost refuses requests for another host: a page in a browser on this
// machine could make its own name mean this address.
func loopbackHost(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if host != "localhost" && !net.ParseIP(host).IsLoopback() {
			http.Error(w, "profiles are served to loopback addresses only", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
