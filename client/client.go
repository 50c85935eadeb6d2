// Package client talks to a Hearth server: typed calls of the management API,
// reading of hearth.yaml, packing of a directory and deploying it. The command
// line is built on it. The package promises a stable Go API.
//
// Errors are *hearth.Error wherever the server or this package can tell what
// went wrong; their codes are those the server sent, and CodeUnavailable when
// no server answers.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// maxErrorBody bounds what is read of an error response.
const maxErrorBody = 1 << 20

// maxRetryAfter bounds what is believed of how long a server wants to be left
// alone, in seconds.
const maxRetryAfter = 24 * 60 * 60

// Client calls one server. Its methods may be called from many goroutines.
type Client struct {
	base      *url.URL
	http      *http.Client
	userAgent string
}

// Option changes a Client that New makes.
type Option func(*Client)

// WithHTTPClient makes the Client send its requests with h.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithUserAgent sets the User-Agent header.
func WithUserAgent(s string) Option { return func(c *Client) { c.userAgent = s } }

// New returns a Client of the server at rawURL, such as http://127.0.0.1:8080.
// It does not connect. Errors: CodeInvalid.
func New(rawURL string, opts ...Option) (*Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%q is not the URL of a server", rawURL).
			WithHint("write for example http://127.0.0.1:8080")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	c := &Client{base: u, userAgent: "hearth-client"}
	for _, o := range opts {
		o(c)
	}
	if c.http == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
		c.http = &http.Client{Transport: t}
	}
	return c, nil
}

// URL returns where the server is, without a slash at its end.
func (c *Client) URL() string { return c.base.String() }

// Close closes idle connections. The Client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request describes one call of the API.
type request struct {
	method string
	// path has one element a segment; they are escaped.
	path   []string
	query  url.Values
	header http.Header
	// body is sent as it is; in, when not nil, is sent as JSON instead.
	body        io.Reader
	size        int64
	contentType string
	in          any
}

// do sends r and returns a response with a status below 400, whose body the
// caller closes. A response with an error is returned besides the error, its
// body closed, for its headers.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	u := c.base.JoinPath(escaped(r.path)...)
	u.RawQuery = r.query.Encode()
	body, size, contentType := r.body, r.size, r.contentType
	if r.in != nil {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false) // code and messages would be longer than they are
		if err := enc.Encode(r.in); err != nil {
			return nil, hearth.Errorf(hearth.CodeInternal, "encode the request: %w", err)
		}
		body, size, contentType = &b, int64(b.Len()), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInternal, "make the request: %w", err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("User-Agent", c.userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return resp, c.responseError(resp)
	}
	return resp, nil
}

// call sends r, decodes the JSON answer into out, unless that is nil, and
// returns the HTTP status.
func (c *Client) call(ctx context.Context, r request, out any) (status int, err error) {
	resp, err := c.do(ctx, r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		_, err := io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, c.transportError(err)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if isJSONError(err) || errors.Is(err, io.EOF) {
			return resp.StatusCode, c.notHearth(resp, err)
		}
		return resp.StatusCode, c.transportError(err)
	}
	return resp.StatusCode, nil
}

// isJSONError tells whether what came is not the JSON that was expected.
func isJSONError(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind)
}

// escaped escapes path segments. JoinPath would otherwise clean "..".
func escaped(segments []string) []string {
	out := make([]string, len(segments))
	for i, s := range segments {
		out[i] = url.PathEscape(s)
		if s == "." || s == ".." {
			out[i] = strings.ReplaceAll(s, ".", "%2E")
		}
	}
	return out
}

// transportError explains why no or only half an answer came.
func (c *Client) transportError(err error) error {
	var h *hearth.Error
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &h):
		return err // a body that we were sending failed
	case errors.Is(err, context.Canceled):
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "interrupted", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &hearth.Error{Code: hearth.CodeTimeout, Message: "the server at " + c.URL() + " did not answer in time", Err: err}
	case errors.As(err, &dns), errors.As(err, &op) && op.Op == "dial":
		return &hearth.Error{
			Code:    hearth.CodeUnavailable,
			Message: "no hearth server answers at " + c.URL(),
			Hint:    "start one with: hearth serve (or say with --url or HEARTH_URL where it is)",
			Err:     cause(err),
		}
	default:
		return &hearth.Error{
			Code:    hearth.CodeUnavailable,
			Message: "the connection to the server at " + c.URL() + " broke",
			Err:     cause(err),
		}
	}
}

// cause strips the method and URL that net/http puts before an error.
func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// problem is an RFC 9457 error response.
type problem struct {
	Title      string                `json:"title"`
	Status     int                   `json:"status"`
	Detail     string                `json:"detail"`
	Code       hearth.Code           `json:"code"`
	Hint       string                `json:"hint"`
	RetryAfter int64                 `json:"retry_after_s"`
	Function   *hearth.FunctionError `json:"function_error"`
	Errors     []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

// err returns p as an error.
func (p problem) err() *hearth.Error {
	e := &hearth.Error{Code: p.Code, Message: p.Detail, Hint: p.Hint, Function: p.Function}
	e.RetryAfter = time.Duration(min(max(p.RetryAfter, 0), maxRetryAfter)) * time.Second
	if e.Message == "" {
		e.Message = p.Title
	}
	for _, d := range p.Errors {
		text := d.Message
		if d.Location != "" {
			text = d.Location + ": " + text
		}
		if text != "" && !strings.Contains(e.Message, d.Message) {
			e.Message += "; " + text
		}
	}
	return e
}

// responseError decodes an error response.
func (c *Client) responseError(resp *http.Response) error {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return c.transportError(err)
	}
	var p problem
	if media == "application/problem+json" && json.Unmarshal(b, &p) == nil {
		if p.Code == "" {
			p.Code = statusCode(resp)
		}
		if p.Title == "" {
			p.Title = resp.Status
		}
		return p.err()
	}
	var q struct { // as Prometheus has it
		Error string `json:"error"`
	}
	if media == "application/json" && json.Unmarshal(b, &q) == nil && q.Error != "" {
		return hearth.Errorf(statusCode(resp), "%s", q.Error)
	}
	return c.notHearth(resp, nil)
}

// statusCode finds the code of a response whose body does not name one.
func statusCode(resp *http.Response) hearth.Code {
	if h := hearth.Code(resp.Header.Get("Hearth-Error")); h != "" {
		return h
	}
	for _, i := range hearth.Codes() {
		// A 502 that does not say so comes from a proxy, not from a function.
		if i.HTTPStatus == resp.StatusCode && i.Code != hearth.CodeFunction {
			return i.Code
		}
	}
	switch {
	case resp.StatusCode == http.StatusPreconditionFailed:
		return hearth.CodeConflict
	case resp.StatusCode < 500:
		return hearth.CodeInvalid
	case resp.StatusCode == http.StatusBadGateway:
		return hearth.CodeUnavailable
	default:
		return hearth.CodeInternal
	}
}

// notHearth is the error for an answer that no Hearth server gives.
func (c *Client) notHearth(resp *http.Response, err error) error {
	code := statusCode(resp)
	if resp.StatusCode < 400 {
		code = hearth.CodeInternal
	}
	return (&hearth.Error{Code: code, Message: "unexpected answer from " + c.URL() + ": " + resp.Status, Err: err}).
		WithHint("is this the address of a Hearth server, of a version that fits this client?")
}

// page makes the query of a listing.
func page(limit int, key, value string) url.Values {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if value != "" && value != "0" {
		q.Set(key, value)
	}
	return q
}
