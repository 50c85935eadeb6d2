package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver/egress"
)

// webhooks posts what the queue tells to URLs, signed as Standard Webhooks have it.
// Whoever can deploy a function chooses the URLs, so they lead to public addresses
// only, whatever a name resolves to at the moment of the connection.
type webhooks struct {
	client  *http.Client
	key     []byte
	agent   string
	host    *egress.Host
	allowed map[string]bool // endpoints, "host:port", that may have any address
}

// errNotPublic is the cause of a connection that was refused.
var errNotPublic = errors.New("the address is not public")

// newWebhooks makes a sender; allow are endpoints that may have any address.
// Errors: CodeInvalid for one that is no "host:port".
func newWebhooks(secret string, allow []string, version string) (*webhooks, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInternal, "the webhook secret: %w", err)
	}
	allowed := map[string]bool{}
	for _, a := range allow {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" {
			return nil, hearth.Errorf(hearth.CodeInvalid, "webhooks cannot be allowed to reach %q", a).WithHint("write HOST:PORT, for example hooks.example.lan:443")
		}
		allowed[strings.ToLower(net.JoinHostPort(host, port))] = true
	}
	host := &egress.Host{}
	plain := &net.Dialer{Timeout: 10 * time.Second}
	guarded := &net.Dialer{Timeout: 10 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if err := host.Refuse(to.Addr().Unmap()); err != nil {
			return errors.Join(errNotPublic, err)
		}
		return nil
	}}
	t := &http.Transport{
		// No proxy of the environment: it would be what connects.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if allowed[strings.ToLower(addr)] {
				return plain.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		},
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 16, IdleConnTimeout: 30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
	return &webhooks{key: key, agent: "Hearth/" + version, host: host, allowed: allowed, client: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Deliver implements queue.Deliverer.
func (w *webhooks) Deliver(ctx context.Context, address, id string, of hearth.Trace, body []byte) (status int, pause time.Duration, err error) {
	req, err := w.request(ctx, address, id, "application/cloudevents+json", body)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Traceparent", of.Traceparent())
	if of.Tracestate != "" {
		req.Header.Set("Tracestate", of.Tracestate)
	}
	resp, err := w.client.Do(req)
	switch {
	case err == nil:
	case errors.Is(err, errNotPublic):
		return 0, 0, notPublic(err, "HOST:PORT")
	case errors.Is(err, context.DeadlineExceeded):
		return 0, 0, &hearth.Error{Code: hearth.CodeTimeout, Message: "the receiver did not answer in time", Err: err}
	default:
		return 0, 0, hearth.Errorf(hearth.CodeUnavailable, "the receiver cannot be reached: %w", errors.Unwrap(err))
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, 64<<10) //nolint:errcheck // so that the connection can be used again
	if s, err := strconv.ParseInt(resp.Header.Get("Retry-After"), 10, 32); err == nil && s > 0 {
		pause = time.Duration(s) * time.Second
	}
	return resp.StatusCode, pause, nil
}

// request makes a signed request.
func (w *webhooks) request(ctx context.Context, address, id, kind string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the URL cannot be used: %w", err)
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", kind)
	req.Header.Set("User-Agent", w.agent)
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Webhook-Signature", "v1,"+w.sign(id, at, body))
	return req, nil
}

func notPublic(err error, endpoint string) error {
	return (&hearth.Error{Code: hearth.CodeDenied, Message: "the URL leads to an address that is not public", Err: err}).
		WithHint("the operator can allow it with --webhook-allow %s", endpoint)
}

// CheckURL implements api.Webhooks.
func (w *webhooks) CheckURL(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return nil //nolint:nilerr // its form is checked elsewhere
	}
	host := strings.ToLower(u.Hostname())
	endpoint := net.JoinHostPort(host, cmp.Or(u.Port(), map[string]string{"https": "443"}[u.Scheme], "80"))
	if w.allowed[endpoint] {
		return nil
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return notPublic(errNotPublic, endpoint)
	}
	if ip, err := netip.ParseAddr(host); err == nil && w.host.Refuse(ip.Unmap()) != nil {
		return notPublic(errNotPublic, endpoint)
	}
	return nil
}

// sign is the base64 HMAC-SHA256 of "id.timestamp.body".
func (w *webhooks) sign(id, at string, body []byte) string {
	mac := hmac.New(sha256.New, w.key)
	io.WriteString(mac, id+"."+at+".") //nolint:errcheck // never fails
	mac.Write(body)                    //nolint:errcheck // never fails
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Close closes idle connections.
func (w *webhooks) Close() { w.client.CloseIdleConnections() }
