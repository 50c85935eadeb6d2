package bench

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

//go:embed scripts/stream.py
var streamFunction string

// stampSize is the length of an event of scripts/stream.py.
const stampSize = 20

// StreamOptions say how streams are measured. Zero fields but Server get the
// defaults that their comments name.
type StreamOptions struct {
	// Server was started for this, by StartServer.
	Server *Server
	// Debug is the URL where it serves its profiles (--debug-listen); empty means
	// that what Go has in use is not told.
	Debug string
	// Driver is the isolation technology, hearth.DefaultIsolation by default.
	Driver string
	// Streams is how many responses of ten events each are read, 100 by default.
	Streams int
	// Megabytes is how much is sent each way, in 1,000,000 bytes; 1000 by default.
	Megabytes int
	// Sockets is how many WebSockets are open at once, 1000 by default.
	Sockets int
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string

	// rest is how long the machine is watched doing nothing.
	rest time.Duration
}

func (o StreamOptions) withDefaults() StreamOptions {
	o.Driver = cmp.Or(o.Driver, hearth.DefaultIsolation)
	o.Streams = cmp.Or(o.Streams, 100)
	o.Megabytes = cmp.Or(o.Megabytes, 1000)
	o.Sockets = cmp.Or(o.Sockets, 1000)
	o.Version = cmp.Or(o.Version, "unknown")
	o.rest = cmp.Or(o.rest, time.Second)
	return o
}

// Validate checks o. Errors: CodeInvalid.
func (o StreamOptions) Validate() error {
	o = o.withDefaults()
	for _, n := range []struct {
		what        string
		value, most int
	}{{"streams", o.Streams, 100_000}, {"megabytes", o.Megabytes, 1000}, {"sockets", o.Sockets, hearth.MaxConcurrency - 1}} {
		if n.value < 1 || n.value > n.most {
			return hearth.Errorf(hearth.CodeInvalid, "%d %s are out of range", n.value, n.what).WithHint("choose between 1 and %d", n.most)
		}
	}
	return nil
}

// Stream measures how streams pass a server: how long an event takes from the
// function to its client, how fast and in how much memory a gigabyte passes, what
// idle WebSockets cost, and whether a deploy drops any. Functions that were
// deployed are deleted again. Errors: as Pool.
func Stream(ctx context.Context, o StreamOptions, progress io.Writer) (StreamReport, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return StreamReport{}, err
	}
	base, err := url.Parse(o.Server.URL)
	if err != nil {
		return StreamReport{}, hearth.Errorf(hearth.CodeInvalid, "%q is not a URL", o.Server.URL).WithHint("take what StartServer returned")
	}
	s := &streaming{
		o: o, progress: progress, base: base, http: &http.Client{Transport: &http.Transport{DisableCompression: true}},
		report: StreamReport{
			Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command,
			Machine: describeMachine(), Driver: o.Driver,
		},
	}
	defer s.http.CloseIdleConnections()
	if s.client, err = client.New(o.Server.URL, client.WithHTTPClient(s.http), client.WithUserAgent("hearth-bench")); err != nil {
		return s.report, err
	}
	if s.report.BusyAtRest, err = busyShare(ctx, o.rest); err != nil {
		return s.report, err
	}
	err = errors.Join(s.events(ctx), s.gigabyte(ctx), s.sockets(ctx))
	s.close(ctx)
	return s.report, wrapContext(ctx, err)
}

// streaming is one measurement of streams in progress.
type streaming struct {
	o        StreamOptions
	progress io.Writer
	client   *client.Client
	http     *http.Client
	base     *url.URL
	report   StreamReport
	deployed []string
}

func (s *streaming) logf(format string, args ...any) { fmt.Fprintf(s.progress, format+"\n", args...) }

// deploy makes the function whose handler is of scripts/stream.py, or gives it
// another version, and returns its URL.
func (s *streaming) deploy(ctx context.Context, handler string, version, concurrency int) (string, error) {
	name := "bench-stream-" + handler
	if version == 1 {
		s.deployed = append(s.deployed, name)
	}
	code := streamFunction + fmt.Sprintf("\nversion = %d\n", version)
	_, _, err := s.client.PutFunction(ctx, name, hearth.Config{
		Runtime: "python", Handler: "main." + handler, Isolation: s.o.Driver, Concurrency: concurrency, InstanceConcurrency: concurrency,
		Timeout: hearth.Duration(10 * time.Minute), Memory: 512 << 20,
	}, client.Code{Files: map[string]string{"main.py": code}}, 0)
	return s.base.JoinPath("fn", name).String() + "/", err
}

// close deletes what was deployed, also after ctx has ended.
func (s *streaming) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, name := range s.deployed {
		if err := s.client.DeleteFunction(ctx, name, 0); err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
			s.logf("cannot delete %s: %v", name, err)
		}
	}
}

// get begins a request.
func (s *streaming) get(ctx context.Context, method, to string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close() //nolint:errcheck // it is of no use
		return nil, hearth.Errorf(hearth.CodeUnavailable, "%s %s was answered with %s", method, to, resp.Status)
	}
	return resp.Body, nil
}

// events measures how long what a function writes takes to its client.
func (s *streaming) events(ctx context.Context) error {
	to, err := s.deploy(ctx, "events", 1, 1)
	if err != nil {
		return err
	}
	const perStream = 10
	var first, later []float64
	for i := range s.o.Streams + 5 {
		body, err := s.get(ctx, http.MethodGet, to+"?n="+strconv.Itoa(perStream), http.NoBody)
		if err != nil {
			return err
		}
		r := bufio.NewReader(body)
		for n := range perStream {
			_, err := r.Peek(1)
			arrived := time.Now()
			stamp := make([]byte, stampSize)
			if err == nil {
				_, err = io.ReadFull(r, stamp)
			}
			written, parseErr := strconv.ParseInt(strings.TrimSpace(string(stamp)), 10, 64)
			if err := errors.Join(err, parseErr); err != nil {
				body.Close() //nolint:errcheck // it failed
				return fmt.Errorf("an event: %w", err)
			}
			ms := float64(arrived.UnixNano()-written) / 1e6
			switch {
			case i < 5: // the first ones warm up
			case n == 0:
				first = append(first, ms)
			default:
				later = append(later, ms)
			}
		}
		body.Close() //nolint:errcheck // it was read
	}
	s.report.First, s.report.Later = summarize(first), summarize(later)
	s.report.Events = len(first) + len(later)
	s.logf("events %d, from the function to the client: first p50 %.3f ms, p99 %.3f ms; later p50 %.3f ms, p99 %.3f ms",
		s.report.Events, s.report.First.P50MS, s.report.First.P99MS, s.report.Later.P50MS, s.report.Later.P99MS)
	return nil
}

// nulls is an endless body.
type nulls struct{}

func (nulls) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// gigabyte measures long bodies.
func (s *streaming) gigabyte(ctx context.Context) error {
	to, err := s.deploy(ctx, "gigabyte", 1, 1)
	if err != nil {
		return err
	}
	size := int64(s.o.Megabytes) * 1_000_000
	pass := func(method, to string, body io.Reader, want int64) (time.Duration, error) {
		begin := time.Now()
		resp, err := s.get(ctx, method, to, body)
		if err != nil {
			return 0, err
		}
		defer resp.Close() //nolint:errcheck // it was read
		n, err := io.Copy(io.Discard, resp)
		if err == nil && want > 0 && n != want {
			err = hearth.Errorf(hearth.CodeUnavailable, "%d of %d bytes came", n, want)
		}
		return time.Since(begin), err
	}
	if _, err := pass(http.MethodGet, to+"?mb=1", http.NoBody, 1_000_000); err != nil {
		return err
	}
	before, err := peakMemory(s.o.Server.PID)
	if err != nil {
		return err
	}
	response, err := pass(http.MethodGet, fmt.Sprintf("%s?mb=%d", to, s.o.Megabytes), http.NoBody, size)
	if err != nil {
		return err
	}
	request, err := pass(http.MethodPost, to, io.LimitReader(nulls{}, size), 0)
	if err != nil {
		return err
	}
	after, err := peakMemory(s.o.Server.PID)
	s.report.Bytes = size
	s.report.ResponseGBs, s.report.RequestGBs = float64(size)/1e9/response.Seconds(), float64(size)/1e9/request.Seconds()
	s.report.PeakBefore, s.report.PeakGrowth = before, after-before
	s.logf("bodies %d MB: response %.2f GB/s, request %.2f GB/s, the server's peak grew by %.1f MB from %.1f MB",
		s.o.Megabytes, s.report.ResponseGBs, s.report.RequestGBs, float64(after-before)/1e6, float64(before)/1e6)
	return err
}
