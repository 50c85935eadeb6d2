package export_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is a receiver of OTLP.
type collector struct {
	*httptest.Server
	// answer, if it is not nil, answers instead of taking the lines.
	answer func(w http.ResponseWriter, r *http.Request) (answered bool)

	mu    sync.Mutex
	lines []string
}

func newCollector(t *testing.T, answer func(w http.ResponseWriter, r *http.Request) bool) *collector {
	c := &collector{answer: answer}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.answer != nil && c.answer(w, r) {
		return
	}
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(z)
	var data logs.LogsData
	if err != nil || proto.Unmarshal(body, &data) != nil {
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, group := range data.ResourceLogs {
		for _, scope := range group.ScopeLogs {
			for _, l := range scope.LogRecords {
				c.lines = append(c.lines, fmt.Sprintf("%s %s/%s %d %s %d %s %s: %s", r.URL.Path, scope.Scope.Name, scope.Scope.Version,
					l.SeverityNumber, l.SeverityText, l.TimeUnixNano, attributes(group.Resource.Attributes), attributes(l.Attributes), l.Body.GetStringValue()))
			}
		}
	}
}

func attributes(list []*common.KeyValue) string {
	var out []string
	for _, a := range list {
		if n := a.Value.GetIntValue(); n != 0 {
			out = append(out, fmt.Sprint(a.Key, "=", n))
		} else {
			out = append(out, a.Key+"="+a.Value.GetStringValue())
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func (c *collector) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.lines)
}

// start makes an exporter; what it logs is returned as well.
func start(t *testing.T, o export.Options) (*export.Exporter, *buffer) {
	t.Helper()
	said := &buffer{}
	o.Logger, o.Version = slog.New(slog.NewTextHandler(said, nil)), "1.2"
	e, err := export.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e, said
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

func line(function, text string) hearth.LogLine {
	return hearth.LogLine{Time: time.Unix(0, 1700000000123456789), Function: function, Version: 3, Instance: "i-1", Stream: "stdout", Text: text}
}

func TestOTLP(t *testing.T) {
	var key string
	c := newCollector(t, func(_ http.ResponseWriter, r *http.Request) bool {
		key = r.Header.Get("Api-Key")
		return false
	})
	e, _ := start(t, export.Options{URL: c.URL, Headers: map[string]string{"api-key": "sesame"}})
	bad := line("shop", `{"level":"error"}`)
	bad.Level, bad.Stream, bad.Invocation = hearth.LevelError, "stderr", "id-7"
	for _, l := range []hearth.LogLine{line("shop", "one"), line("mail", "é \x00"), bad} {
		e.Append(l)
	}
	e.Close()
	const from = "/v1/logs hearth/1.2"
	want := []string{
		from + ` 0  1700000000123456789 faas.instance=i-1,hearth.version=3,service.name=shop log.iostream=stdout: one`,
		from + ` 17 error 1700000000123456789 faas.instance=i-1,hearth.version=3,service.name=shop faas.invocation_id=id-7,log.iostream=stderr: {"level":"error"}`,
		from + " 0  1700000000123456789 faas.instance=i-1,hearth.version=3,service.name=mail log.iostream=stdout: é \x00",
	}
	if d := cmp.Diff(want, c.got()); d != "" || key != "sesame" || e.Dropped() != 0 {
		t.Errorf("key %q, %d dropped, %s", key, e.Dropped(), d)
	}
	e.Append(line("shop", "late"))
	if e.Dropped() != 1 {
		t.Errorf("%d dropped after Close", e.Dropped())
	}
}

// TestRetry: a receiver that is busy, broken or away gets the lines later, once.
func TestRetry(t *testing.T) {
	n := 0
	c := newCollector(t, func(w http.ResponseWriter, _ *http.Request) bool {
		n++
		switch n {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		}
		return n < 3
	})
	e, said := start(t, export.Options{URL: c.URL + "/otlp/v1/logs/"})
	e.Append(line("f", "one"))
	eventually(t, "the line", func() bool { return len(c.got()) == 1 })
	if !strings.HasPrefix(c.got()[0], "/otlp/v1/logs") || e.Dropped() != 0 {
		t.Errorf("got %q, %d dropped", c.got(), e.Dropped())
	}
	eventually(t, "the end of the trouble", func() bool { return strings.Contains(said.String(), "exported again") })
	if strings.Count(said.String(), "cannot be exported") != 1 {
		t.Errorf("said %s", said)
	}
}

// TestRefusal: what a receiver does not want is counted, and does not hold up what follows.
func TestRefusal(t *testing.T) {
	n := 0
	c := newCollector(t, func(w http.ResponseWriter, _ *http.Request) bool {
		switch n++; n {
		case 1:
			http.Error(w, "no", http.StatusUnauthorized)
			return true
		case 2: // field 1, with field 1, 2 lines rejected, and field 2, why
			w.Write([]byte{0x0a, 0x06, 0x08, 0x02, 0x12, 0x02, 'n', 'o'}) //nolint:errcheck // the client will tell
			return true
		}
		return false
	})
	e, _ := start(t, export.Options{URL: c.URL})
	for i, dropped := range []int64{3, 5, 5} {
		for range 3 {
			e.Append(line("f", fmt.Sprint(i)))
		}
		eventually(t, fmt.Sprint("round ", i), func() bool { return e.Dropped() == dropped && (i < 2 || len(c.got()) == 3) })
	}
}

// TestPoison: of a batch that the receiver cannot stand all other lines arrive.
func TestPoison(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError} {
		requests := 0
		c := newCollector(t, func(w http.ResponseWriter, r *http.Request) bool {
			requests++
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return false
			}
			body, err := io.ReadAll(z)
			if err != nil {
				t.Error(err)
			}
			if bytes.Contains(body, []byte("POISON")) {
				w.WriteHeader(status)
				return true
			}
			var packed bytes.Buffer
			again := gzip.NewWriter(&packed)
			if _, err := again.Write(body); err != nil || again.Close() != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(&packed)
			return false
		})
		e, _ := start(t, export.Options{URL: c.URL})
		for i := range 300 {
			text := fmt.Sprint("fine ", i)
			if i == 77 || i == 200 {
				text = "POISON"
			}
			e.Append(line([]string{"good", "bad", "other"}[i%3], text))
		}
		e.Append(line("good", "last"))
		eventually(t, "all others", func() bool { return len(c.got()) == 299 && e.Dropped() == 2 })
		if requests > 60 {
			t.Errorf("%d: %d requests", status, requests)
		}
		e.Close()
	}
}

// TestTurns: a function with little to say does not wait behind one with much.
func TestTurns(t *testing.T) {
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	c := newCollector(t, func(http.ResponseWriter, *http.Request) bool {
		select {
		case arrived <- struct{}{}:
			<-release
		default:
		}
		return false
	})
	e, _ := start(t, export.Options{URL: c.URL})
	e.Append(line("first", "x"))
	<-arrived
	for range 5000 {
		e.Append(line("loud", "x"))
	}
	e.Append(line("quiet", "x"))
	close(release)
	eventually(t, "all lines", func() bool { return len(c.got()) == 5002 })
	if i := slices.IndexFunc(c.got(), func(s string) bool { return strings.Contains(s, "service.name=quiet") }); i < 0 || i > 1001 {
		t.Errorf("it was number %d", i)
	}
}

// TestReceiverThatHangs: it holds up nobody, one function leaves room for others, and the
// end does not take long.
func TestReceiverThatHangs(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	c := newCollector(t, func(_ http.ResponseWriter, r *http.Request) bool {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // then it learns of the end of the client
		select {
		case arrived <- struct{}{}:
		default:
		}
		<-release
		return true
	})
	defer close(release)
	e, said := start(t, export.Options{URL: c.URL, CloseTimeout: 50 * time.Millisecond})
	e.Append(line("first", "x"))
	<-arrived
	long := strings.Repeat("x", 64<<10)
	for range 1000 { // 64 MB
		e.Append(line("flood", long))
	}
	flooded := e.Dropped()
	if kept := 1000 - flooded; kept < 60 || kept > 64 {
		t.Errorf("%d lines of the flood wait", kept)
	}
	for i := range 1000 { // whom there are many of
		e.Append(line(fmt.Sprint("flood", i%10), long))
	}
	flooded = e.Dropped()
	for range 100 {
		e.Append(line("quiet", "x"))
	}
	if e.Dropped() != flooded {
		t.Errorf("%d of another function were dropped", e.Dropped()-flooded)
	}
	began := time.Now()
	e.Close()
	if took := time.Since(began); took > 5*time.Second || e.Dropped() != 2101 {
		t.Errorf("the end took %s, %d lines were dropped", took, e.Dropped())
	}
	if !strings.Contains(said.String(), "lines=2101") {
		t.Errorf("said %s", said)
	}
}

func TestURLs(t *testing.T) {
	for _, u := range []string{
		"", "collector", "ftp://x", "http://", "https://user:sesame@x", "https://x?key=1", "syslog://x", "syslog+tcp://", "syslog+udp://:514",
		"syslog+tcp://x/path", "syslog+tcp://user:sesame@x", "http://[::1", "http://a:sesame@b:c",
	} {
		_, err := export.New(export.Options{URL: u})
		if e := hearth.AsError(err); e == nil || e.Code != hearth.CodeInvalid || e.Hint == "" || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", u, err)
		}
	}
}
