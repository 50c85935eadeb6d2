package api

import (
	_ "embed"
	"encoding/json"
	"net/http"
)

//go:embed docs.html
var docsHTML []byte

//go:embed docs.js
var docsJS []byte

//go:embed docs.css
var docsCSS []byte

// registerDocs serves the OpenAPI document, made once from the operations
// registered so far, and the pages that show it.
func (s *API) registerDocs() {
	doc := s.huma.OpenAPI()
	asJSON, err := json.Marshal(doc)
	if err != nil {
		panic(err) // it is made of our own types only
	}
	asYAML, err := doc.YAML()
	if err != nil {
		panic(err)
	}
	static := func(path, contentType string, body []byte) {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", contentType)
			h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
				"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
			_, _ = w.Write(body)
		})
	}
	static("/openapi.json", "application/openapi+json", asJSON)
	static("/openapi.yaml", "application/openapi+yaml", asYAML)
	static("/docs", "text/html; charset=utf-8", docsHTML)
	static("/docs/docs.js", "text/javascript; charset=utf-8", docsJS)
	static("/docs/docs.css", "text/css; charset=utf-8", docsCSS)
}
