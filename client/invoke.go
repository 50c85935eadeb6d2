package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
)

// Call is what the server says about one invocation besides its value.
type Call struct {
	// InvocationID is empty if the call did not get as far as having one.
	InvocationID string `json:"invocation_id"`
	// Cold is true when the call waited for an instance made for it.
	Cold bool `json:"cold"`
	// ColdReason tells why there was none; empty when warm.
	ColdReason hearth.ColdReason `json:"cold_reason,omitempty"`
	Timings    hearth.Timings    `json:"timings"`
}

// Invoke calls a function with a JSON event (nil: null) and copies the
// handler's value to w as it comes. The Call is filled as far as it is known,
// also besides an error. Errors: CodeFunction with details if the user's code
// failed, CodeNotFound, CodeInvalid if the event is not JSON, CodeTimeout,
// CodeExhausted, CodeUnavailable. After the first write to w an error means
// that the value is not complete.
func (c *Client) Invoke(ctx context.Context, name string, event io.Reader, w io.Writer) (Call, error) {
	r := request{method: http.MethodPost, path: []string{"v1", "functions", name, "invocations"}}
	if event != nil {
		r.body, r.size, r.contentType = event, size(event), "application/json"
	}
	resp, err := c.do(ctx, r)
	if resp == nil {
		return Call{}, err
	}
	call := Call{
		InvocationID: resp.Header.Get("Hearth-Invocation-Id"),
		Cold:         resp.Header.Get("Hearth-Start") == "cold",
		ColdReason:   hearth.ColdReason(resp.Header.Get("Hearth-Cold-Reason")),
		Timings:      parseTimings(resp.Header.Values("Server-Timing")),
	}
	if err != nil {
		return call, err
	}
	defer resp.Body.Close()
	out := &writer{w: w}
	if _, err := io.Copy(out, resp.Body); err != nil {
		if out.err != nil {
			return call, out.err
		}
		return call, c.broken(ctx, call, err)
	}
	// Servers that know the running time only at the end send it as a trailer.
	if t := resp.Trailer.Values("Server-Timing"); len(t) > 0 {
		call.Timings = parseTimings(t)
	}
	return call, nil
}

// broken explains an answer that broke off with the record of its invocation.
func (c *Client) broken(ctx context.Context, call Call, err error) error {
	err = c.transportError(err)
	if code := hearth.ErrorCode(err); call.InvocationID == "" || code == hearth.CodeCanceled || code == hearth.CodeTimeout {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		i, ierr := c.Invocation(ctx, call.InvocationID)
		if ierr == nil && i.ErrorCode != "" {
			return &hearth.Error{
				Code:    i.ErrorCode,
				Message: "the function's answer broke off: " + i.ErrorMessage,
				Hint:    "hearth logs " + i.Function + " shows what it wrote",
				Err:     errors.Unwrap(err),
			}
		}
		if ierr != nil && hearth.ErrorCode(ierr) != hearth.CodeNotFound {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// writer remembers the error of the caller's writer, to tell it from one of
// the connection.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

// size returns how much is left to read of r, -1 if that is unknown.
func size(r io.Reader) int64 {
	if l, ok := r.(interface{ Len() int }); ok {
		return int64(l.Len())
	}
	return -1
}

// parseTimings reads Server-Timing headers: "queue;dur=0.1, run;dur=12". What
// it does not understand it leaves out.
func parseTimings(headers []string) hearth.Timings {
	var t hearth.Timings
	fields := map[string]*time.Duration{"queue": &t.Queue, "start": &t.Start, "init": &t.Init, "run": &t.Run}
	for _, h := range headers {
		for metric := range strings.SplitSeq(h, ",") {
			params := strings.Split(metric, ";")
			field, ok := fields[strings.TrimSpace(params[0])]
			if !ok {
				continue
			}
			for _, p := range params[1:] {
				k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
				ms, err := strconv.ParseFloat(strings.Trim(v, `"`), 64)
				if k == "dur" && err == nil && ms >= 0 && ms < 1e9 {
					*field = time.Duration(ms * float64(time.Millisecond))
				}
			}
		}
	}
	return t
}
