package gateway

import (
	"net/http"
	"strings"
	"time"

	"github.com/rs/cors"

	"github.com/hearthrun/hearth"
)

// newCORS returns what answers for a route of a function, nil if its
// configuration says nothing about it.
func newCORS(c hearth.Config, r hearth.Route) *cors.Cors {
	o, ok := c.CORSOf(r)
	if !ok {
		return nil
	}
	methods := o.Methods
	if len(methods) == 0 {
		switch m, _, _ := r.Parts(); m {
		case "":
			methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
		case http.MethodGet:
			methods = []string{"GET", "HEAD"}
		default:
			methods = []string{m}
		}
	}
	headers := o.Headers
	if len(headers) == 0 {
		headers = []string{"*"}
	}
	return cors.New(cors.Options{
		AllowedOrigins: o.Origins, AllowedMethods: methods, AllowedHeaders: headers, ExposedHeaders: o.Expose,
		AllowCredentials: o.Credentials, MaxAge: int(time.Duration(o.MaxAge) / time.Second),
	})
}

// preflightFor returns the method that a CORS preflight request asks about, ""
// if r is none.
func preflightFor(r *http.Request) string {
	if r.Method != http.MethodOptions {
		return ""
	}
	return r.Header.Get("Access-Control-Request-Method")
}

// corsHeader tells whether a response header is that of the CORS protocol, in
// lower case.
func corsHeader(name string) bool { return strings.HasPrefix(name, "access-control-") }
