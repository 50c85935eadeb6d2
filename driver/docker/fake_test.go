package docker

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/images"
)

// fakeEngine is an engine whose failures a test chooses. It makes no containers.
type fakeEngine struct {
	// create and load answer the requests to make a container and to load an image.
	create, load http.HandlerFunc

	mu         sync.Mutex
	containers map[string]bool // guarded by mu; by name
	removes    []string        // guarded by mu: requests for names
	onRemove   func()          // guarded by mu; called after a request was answered with mu held
}

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.44")
	switch p := r.URL.Path; {
	case strings.HasSuffix(p, "/_ping"):
	case strings.HasSuffix(p, "/info"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"ServerVersion":"20.10.0","DefaultRuntime":"other","Runtimes":{"other":{}}}`)
	case strings.HasSuffix(p, "/containers/json"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `[]`)
	case strings.HasSuffix(p, "/containers/create"):
		e.create(w, r)
	case strings.HasSuffix(p, "/images/load"):
		_, _ = io.Copy(io.Discard, r.Body)
		e.load(w, r)
	case r.Method == http.MethodDelete:
		e.mu.Lock()
		defer e.mu.Unlock()
		name := filepath.Base(p)
		e.removes = append(e.removes, name)
		if e.containers[name] {
			delete(e.containers, name)
			w.WriteHeader(http.StatusNoContent)
		} else {
			notFound(w, r)
		}
		if e.onRemove != nil {
			e.onRemove()
		}
	default:
		http.Error(w, p, http.StatusTeapot)
	}
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"message":"No such thing"}`)
}

// dies ends the connection once the request was read.
func dies(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close()
	}
}

type noImages struct{}

func (noImages) List(context.Context) ([]images.Image, error) { return nil, nil }

func (noImages) Find(context.Context, string) (images.Image, error) {
	return images.Image{Runtime: images.Provided, Language: images.Provided, Ref: "hearth-test/none:1"}, nil
}

func (noImages) Archive(_ context.Context, _ images.Image, w io.Writer) error {
	_, err := io.WriteString(w, "an archive")
	return err
}

// fake starts an engine and makes a driver for it.
func fake(t *testing.T, e *fakeEngine) *Driver {
	t.Helper()
	dir, err := os.MkdirTemp("", "hearth-docker-") // short: a socket lies inside
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	d, err := New(Config{Dir: filepath.Join(dir, "docker"), Owner: "fake", Images: noImages{}, Host: "unix://" + dir + "/docker.sock"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func fakeSpec(id string) driver.Spec {
	return driver.Spec{ID: id, Runtime: images.Provided, Command: []string{"/none"}}
}

func (d *Driver) known() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sandboxes)
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("in 30 s it does not come true that %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestCreateUnanswered: an engine that dies with a request may have done, or may
// yet do, what it was asked for.
func TestCreateUnanswered(t *testing.T) {
	const name = "hearth.fake.late"
	e := &fakeEngine{create: dies, containers: map[string]bool{}}
	e.onRemove = func() {
		if len(e.removes) == 1 { // it comes after it was said not to be there
			e.containers[name] = true
		}
	}
	d := fake(t, e)
	if _, err := d.Create(t.Context(), fakeSpec("late")); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("Create: %v", err)
	}
	await(t, "the container that came late is removed", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.removes) > 1 && !e.containers[name]
	})
	await(t, "the driver knows no sandbox", func() bool { return d.known() == 0 })
}

// TestCreateNeverMade: the engine's word is taken after a while.
func TestCreateNeverMade(t *testing.T) {
	e := &fakeEngine{create: dies}
	d := fake(t, e)
	d.unclearTime = time.Nanosecond
	if _, err := d.Create(t.Context(), fakeSpec("never")); hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("Create: %v", err)
	}
	if n := d.known(); n != 0 {
		t.Errorf("the driver knows %d sandboxes", n)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.removes) != 1 {
		t.Errorf("the engine was asked for %q", e.removes)
	}
}

// TestCreateRefused: what the engine says that it has not made is not asked for.
func TestCreateRefused(t *testing.T) {
	e := &fakeEngine{create: func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message":"taken"}`, http.StatusConflict)
	}}
	d := fake(t, e)
	if _, err := d.Create(t.Context(), fakeSpec("taken")); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("Create: %v", err)
	}
	if n := d.known(); n != 0 || len(e.removes) != 0 {
		t.Errorf("the driver knows %d sandboxes; removed %q", n, e.removes)
	}
}

// TestLoadFails: engines tell of failures to load in the body of an answer
// whose status is 200. However long the load takes, the helper is not waited for
// meanwhile.
func TestLoadFails(t *testing.T) {
	for name, tt := range map[string]struct{ report, says string }{
		"detail":    {`{"stream":"Loading"}` + "\r\n" + `{"errorDetail":{"message":"no space left on device"},"error":"short"}` + "\r\n", "no space left on device"},
		"error":     {`{"error":"wrong diff id"}`, "wrong diff id"},
		"last":      {`{"error":"first"}{"error":"second"}{"status":"x"}`, "second"},
		"truncated": {`{"stream":"Load`, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &fakeEngine{create: notFound, load: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, tt.report)
			}}
			d := fake(t, e)
			d.helperTimeout = time.Nanosecond
			_, err := d.Create(t.Context(), fakeSpec("load"))
			if hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Create: %v", err)
			}
		})
	}
	for _, report := range []string{"", "Loaded image: x\n", `{"stream":"Loaded image"}`} {
		if err := loaded(strings.NewReader(report)); err != nil {
			t.Errorf("%q: %v", report, err)
		}
	}
}

// TestSweepStops: Close does not wait for all that is left to be freed.
func TestSweepStops(t *testing.T) {
	e := &fakeEngine{create: dies}
	d := fake(t, e)
	for i := range 3 {
		if _, err := d.Create(t.Context(), fakeSpec("left-"+strconv.Itoa(i))); err == nil {
			t.Fatal("Create succeeds")
		}
	}
	e.mu.Lock()
	e.removes, e.onRemove = nil, d.stop
	e.mu.Unlock()
	await(t, "the sweeper ends", func() bool { return d.stopped.Err() != nil })
	d.sweeps.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.removes) != 1 {
		t.Errorf("the driver, which was closed with the first, went on with %q", e.removes)
	}
}

// TestNoAddress: what is no address of an engine is a reason not to work, not to
// end the program.
func TestNoAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "docker")
	d, err := New(Config{Dir: dir, Owner: "fake", Images: noImages{}, Host: "localhost:2375"})
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.Probe(t.Context())
	if err != nil || info.Works || len(info.Missing) != 1 || !strings.Contains(info.Missing[0].What, "localhost:2375") ||
		!strings.Contains(info.Missing[0].Remedy, "unix:///") {
		t.Errorf("Probe: %+v, %v", info, err)
	}
	if _, err := d.Create(t.Context(), fakeSpec("x")); hearth.ErrorCode(err) != hearth.CodeUnsupported || hearth.AsError(err).Hint == "" {
		t.Errorf("Create: %v", err)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	if err := os.Mkdir(d.runPath("left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(t.Context()); hearth.ErrorCode(err) != hearth.CodeUnsupported {
		t.Errorf("List with something left: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
