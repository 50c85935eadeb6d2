package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"
)

// TestHostileText: what functions write steers no terminal, makes no lines of its own
// where lines count, and turns or hides no text.
func TestHostileText(t *testing.T) {
	const hostile = `a\u001b[2Jb\u009bc\u202ed\u2066e\u2069f\u200e\u200f\u061cg\u200b\ufeff\u00ad\u2028h\tx\ny`
	answers := map[string]string{
		"GET /v1/functions/hello/logs":         `{"lines":[{"time":"2026-01-01T00:00:00Z","stream":"stdout","text":"T"}]}`,
		"GET /v1/functions/hello/queue":        `{"calls":[{"id":"i","target":"T","state":"failed","failures":[{"code":"function_error","type":"T","message":"T"}]}]}`,
		"GET /v1/invocations/i":                `{"id":"i","function":"hello","async":{"id":"i","target":"T","state":"succeeded","source":"T","failures":[{"attempt":1,"type":"T","message":"T"}],"result":{"status":200,"text":"T"}}}`,
		"GET /v1/functions/hello/releases":     `{"releases":[{"id":1,"state":"aborted","reason":"T","from":1,"to":2}]}`,
		"GET /v1/functions":                    `{"functions":[{"name":"T","live":1,"url":"T","config":{"runtime":"T","env":{"T":"T"}}}]}`,
		"GET /v1/functions/hello":              `{"name":"T","live":1,"url":"T","config":{"runtime":"T","env":{"T":"T"}}}`,
		"GET /v1/functions/hello/aliases":      `{"aliases":[]}`,
		"POST /v1/functions/hello/invocations": `{"status":500,"code":"function_error","detail":"T","hint":"T","function_error":{"type":"T","message":"T","stack":["T"]}}`,
	}
	mux := http.NewServeMux()
	for pattern, answer := range answers {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if r.Method == http.MethodPost {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusInternalServerError)
			}
			io.WriteString(w, strings.ReplaceAll(answer, `"T"`, `"`+hostile+`"`))
		})
	}
	s := httptest.NewServer(mux)
	defer s.Close()
	for command, lines := range map[string]int{
		"logs hello": 1, "queue list hello": 2, "queue show i": 0, "releases hello": 2, "list": 2, "get hello": 0, "invoke hello": 0,
	} {
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
		code := a.run(t.Context(), append(strings.Fields(command), "--url", s.URL))
		text := out.String() + errs.String()
		if (code == 0) == (command == "invoke hello") || !strings.Contains(text, "a\uFFFD[2Jb\uFFFDc\uFFFDd\uFFFDe\uFFFDf\uFFFD\uFFFD\uFFFDg\uFFFD\uFFFD\uFFFD\uFFFDh") {
			t.Errorf("hearth %s: exit code %d, %q", command, code, text)
		}
		if n := strings.Count(text, "\n"); lines > 0 && n != lines {
			t.Errorf("hearth %s: %d lines, want %d: %q", command, n, lines, text)
		}
		if i := strings.IndexFunc(text, func(r rune) bool {
			return r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl)
		}); i >= 0 {
			t.Errorf("hearth %s writes %q in %q", command, text[i:i+4], text)
		}
	}
	// Words and signs that need format characters.
	for _, s := range []string{"می\u200cخواهم", "👩\u200d💻", "\u0600١٢٣", "naïve\t日本\n"} {
		if printable(s) != s {
			t.Errorf("%q becomes %q", s, printable(s))
		}
	}
}
