package server

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

func TestListenDebug(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:6060", "localhost", "[::]:0"} {
		if _, err := listenDebug(t.Context(), addr); hearth.ErrorCode(err) != hearth.CodeInvalid || hearth.AsError(err).Hint == "" {
			t.Errorf("%s: %v, want invalid with a hint", addr, err)
		}
	}
	l, err := listenDebug(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestDebugServer(t *testing.T) {
	h := debugServer().Handler
	for host, want := range map[string]int{"127.0.0.1:6060": 200, "localhost:6060": 200, "[::1]:6060": 200, "evil.example:6060": 403} {
		r := httptest.NewRequest("GET", "http://"+host+"/debug/pprof/heap?gc=1&debug=1", nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want || want == 200 && !strings.Contains(w.Body.String(), "# HeapAlloc = ") {
			t.Errorf("%s: status %d, want %d", host, w.Code, want)
		}
	}
}
