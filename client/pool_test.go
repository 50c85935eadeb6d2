package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func TestPool(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/pool": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "function=gone" {
				answer(404, `{"code":"not_found","detail":"there is no function"}`)(w, r)
				return
			}
			answer(200, `{"queued":3,"instances":[{"id":"i-1","state":"idle"}],"functions":[{"function":"f","cold_starts":{"first":1},"last_cold":{"reason":"first","start_ns":5}}],"stems":[{"memory":"128MiB"}]}`)(w, r)
		},
	})
	st, err := c.Pool(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := hearth.PoolStatus{
		Queued: 3, Instances: []hearth.Instance{{ID: "i-1", State: hearth.InstanceIdle}},
		Functions: []hearth.PoolFunction{{
			Function: "f", ColdStarts: map[hearth.ColdReason]int64{hearth.ColdFirst: 1},
			LastCold: &hearth.ColdStart{Reason: hearth.ColdFirst, Timings: hearth.Timings{Start: 5}},
		}},
		Stems: []hearth.StemStock{{Memory: 128 << 20}},
	}
	if d := cmp.Diff(want, st); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	_, err = c.Pool(t.Context(), "gone")
	wantError(t, err, hearth.CodeNotFound, "no function")
}

// TestWatchPoolConnectsAgain: a watcher that was too slow gets a new status, and
// one whose server ends does not.
func TestWatchPoolConnectsAgain(t *testing.T) {
	connected := 0
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/pool/events": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			connected++
			io.WriteString(w, "event: status\ndata: {\"queued\":1}\n\n: still here\n\nevent: instance\ndata: {\"from\":\"idle\",\"instance\":{\"id\":\"i-1\",\"state\":\"busy\"}}\n\nevent: future\ndata: x\n\n")
			if connected < 3 {
				io.WriteString(w, "event: reset\ndata: {}\n\n")
			}
		},
	})
	var got []string
	err := c.WatchPool(t.Context(), func(e client.PoolEvent) error {
		switch {
		case e.Status != nil && e.Status.Queued == 1:
			got = append(got, "status")
		case e.Instance != nil && e.Instance.From == hearth.InstanceIdle:
			got = append(got, string(e.Instance.Instance.State))
		default:
			t.Errorf("got %+v", e)
		}
		return nil
	})
	if d := cmp.Diff(slices.Repeat([]string{"status", "busy"}, 3), got); err != nil || d != "" {
		t.Errorf("%v, events (-want +got):\n%s", err, d)
	}
}

func TestWatchPoolEnds(t *testing.T) {
	c := serve(t, map[string]http.HandlerFunc{
		"GET /v1/pool/events": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "event: status\ndata: {}\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	err := c.WatchPool(ctx, func(client.PoolEvent) error { cancel(); return nil })
	wantError(t, err, hearth.CodeCanceled)
	enough := errors.New("enough")
	if err := c.WatchPool(t.Context(), func(client.PoolEvent) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v, want %v", err, enough)
	}
	c = serve(t, map[string]http.HandlerFunc{
		"GET /v1/pool/events": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "event: status\ndata: 5\n\n")
		},
	})
	wantError(t, c.WatchPool(t.Context(), func(client.PoolEvent) error { return nil }), hearth.CodeInternal, "Hearth server")
	c = serve(t, map[string]http.HandlerFunc{"GET /v1/pool/events": answer(200, "{}")})
	wantError(t, c.WatchPool(t.Context(), func(client.PoolEvent) error { return nil }), hearth.CodeInternal, "Hearth server")
}
