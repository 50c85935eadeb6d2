package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

// TestWebhookSignature verifies what arrives the way Standard Webhooks say.
func TestWebhookSignature(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	var got *http.Request
	var body []byte
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
	}))
	defer receiver.Close()
	address := strings.TrimPrefix(receiver.URL, "http://")
	w, err := newWebhooks("whsec_"+base64.StdEncoding.EncodeToString(key), []string{address}, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	status, pause, err := w.Deliver(t.Context(), receiver.URL+"/hook", "msg-1", hearth.NewTrace(true), []byte(`{"a":1}`))
	if err != nil || status != 503 || pause.Seconds() != 7 {
		t.Fatal(status, pause, err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("msg-1." + got.Header.Get("webhook-timestamp") + "." + string(body)))
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); got.Header.Get("webhook-signature") != want || got.Header.Get("webhook-id") != "msg-1" || string(body) != `{"a":1}` {
		t.Errorf("%v %s", got.Header, body)
	}
}

// TestWebhookAddresses: webhooks reach no address of the host's surroundings, neither
// by number nor by a name, nor by a redirect.
func TestWebhookAddresses(t *testing.T) {
	reached := 0
	private := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
	defer private.Close()
	redirects := httptest.NewServer(http.RedirectHandler(private.URL, http.StatusTemporaryRedirect))
	defer redirects.Close()
	w, err := newWebhooks("whsec_", []string{strings.TrimPrefix(redirects.URL, "http://")}, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(private.URL, "http://"), ":")
	for _, url := range []string{
		private.URL, "http://localhost:" + port, "http://[::1]:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port, "http://2130706433:" + port,
		"http://169.254.169.254/latest", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/", "http://[fe80::1]/",
	} {
		_, _, err := w.Deliver(t.Context(), url, "x", hearth.Trace{}, nil)
		if known := w.CheckURL(url); strings.Contains(url, "2130706433") != (known == nil) {
			t.Errorf("%s: at a deploy it is %v", url, known)
		}
		if code := hearth.ErrorCode(err); code != hearth.CodeDenied && !(code == hearth.CodeUnavailable && strings.Contains(url, "2130706433")) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if status, _, err := w.Deliver(t.Context(), redirects.URL, "x", hearth.Trace{}, nil); err != nil || status != 307 {
		t.Errorf("a redirect: %d %v", status, err)
	}
	for _, url := range []string{redirects.URL, "https://example.com/hook", "http://8.8.8.8/", "http://localhost.example.com/"} {
		if err := w.CheckURL(url); err != nil {
			t.Errorf("%s: at a deploy it is %v", url, err)
		}
	}
	if err := w.CheckURL("https://LOCALHOST/x"); err == nil || !strings.Contains(hearth.AsError(err).Hint, "--webhook-allow localhost:443") {
		t.Errorf("the hint is not the flag: %v", hearth.AsError(err))
	}
	if reached != 0 {
		t.Errorf("a private address was reached %d times", reached)
	}
	if _, err := newWebhooks("whsec_", []string{"example.com"}, "test"); hearth.ErrorCode(err) != hearth.CodeInvalid {
		t.Errorf("an endpoint without a port: %v", err)
	}
}
