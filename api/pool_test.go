package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// busyPool is a status with two functions, one of them with two versions.
func busyPool() hearth.PoolStatus {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	return hearth.PoolStatus{
		Time: now, MemoryBudget: 1 << 30, MemoryUsed: 96 << 20, MaxInstances: 1000, Queued: 3,
		Instances: []hearth.Instance{
			{ID: "i-1", Function: "hello", Version: 1, State: hearth.InstanceDraining},
			{ID: "i-2", Function: "hello", Version: 2, State: hearth.InstanceBusy},
			{ID: "i-3", Function: "other", Version: 1, State: hearth.InstanceIdle},
			{ID: "i-4", State: hearth.InstanceStem},
		},
		Functions: []hearth.PoolFunction{
			{Function: "hello", Version: 1, Retired: true},
			{
				Function: "hello", Version: 2, ColdStarts: map[hearth.ColdReason]int64{hearth.ColdFirst: 1},
				LastCold: &hearth.ColdStart{Time: now, Reason: hearth.ColdFirst, Timings: hearth.Timings{Start: time.Millisecond}},
			},
			{Function: "other", Version: 1},
		},
		Stems: []hearth.StemStock{{Isolation: "native", Runtime: "python3.11", Memory: 128 << 20, Ready: 1, Target: 1}},
	}
}

func TestPool(t *testing.T) {
	h := newHost(t)
	h.status = busyPool()
	var got hearth.PoolStatus
	h.do("GET", "/v1/pool", nil).json(200, &got)
	if d := cmp.Diff(busyPool(), got); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	h.do("GET", "/v1/pool?function=hello", nil).problem(404, hearth.CodeNotFound, "hello", "hearth list")
	h.do("GET", "/v1/functions/hello/instances", nil).problem(404, hearth.CodeNotFound)
	h.do("GET", "/v1/pool?funktion=hello", nil).problem(400, hearth.CodeInvalid, "funktion")

	h.do("POST", "/v1/functions", hello()).json(201, &function{})
	got = hearth.PoolStatus{}
	h.do("GET", "/v1/pool?function=hello", nil).json(200, &got)
	want := busyPool()
	want.Instances, want.Functions, want.Stems = want.Instances[:2], want.Functions[:2], []hearth.StemStock{}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("filtered (-want +got):\n%s", d)
	}
	var part struct {
		Versions  []hearth.PoolFunction
		Instances []hearth.Instance
	}
	h.do("GET", "/v1/functions/hello/instances", nil).json(200, &part)
	if cmp.Diff(want.Functions, part.Versions) != "" || cmp.Diff(want.Instances, part.Instances) != "" {
		t.Errorf("got %+v", part)
	}
	h.status = hearth.PoolStatus{Instances: []hearth.Instance{}, Functions: []hearth.PoolFunction{}}
	if a := h.do("GET", "/v1/functions/hello/instances", nil); !strings.Contains(a.Body.String(), `"versions":[],"instances":[]`) {
		t.Errorf("nothing is %s", a.Body)
	}
}

// poolEvents reads the events of a stream.
type poolEvents struct {
	t    *testing.T
	s    *bufio.Scanner
	body io.Closer
}

func (h *host) watch(srv *httptest.Server) *poolEvents {
	h.t.Helper()
	resp := h.send(srv, "GET", "/v1/pool/events", "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		h.t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	s := bufio.NewScanner(resp.Body)
	s.Buffer(nil, 1<<20)
	return &poolEvents{h.t.(*testing.T), s, resp.Body}
}

// next returns the name of the next event, its data in v; "" at the end.
func (p *poolEvents) next(v any) (name string) {
	p.t.Helper()
	for p.s.Scan() {
		if n, ok := strings.CutPrefix(p.s.Text(), "event: "); ok {
			name = n
		}
		if data, ok := strings.CutPrefix(p.s.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), v); err != nil {
				p.t.Fatal(err)
			}
			return name
		}
	}
	if err := p.s.Err(); err != nil {
		p.t.Errorf("the stream was broken off: %v", err)
	}
	return ""
}

// instance is an event of the instance with that number.
func instance(i int) hearth.InstanceEvent {
	return hearth.InstanceEvent{From: hearth.InstanceIdle, Instance: hearth.Instance{ID: fmt.Sprint("i-", i), State: hearth.InstanceBusy}}
}

func TestWatchPool(t *testing.T) {
	h := newHost(t)
	h.status, h.changes = busyPool(), make(chan hearth.InstanceEvent, 1000)
	h.do("GET", "/v1/pool/events?function=hello", nil).problem(400, hearth.CodeInvalid, "function")
	srv := h.serve()
	events := h.watch(srv)
	var st hearth.PoolStatus
	if name := events.next(&st); name != "status" || cmp.Diff(busyPool(), st) != "" {
		t.Fatalf("%s %+v", name, st)
	}
	for i := range 500 { // some of them go out together
		h.changes <- instance(i)
	}
	for i := range 500 {
		var e hearth.InstanceEvent
		if name := events.next(&e); name != "instance" || e != instance(i) {
			t.Fatalf("%d: %s %+v", i, name, e)
		}
	}
	close(h.draining)
	if name := events.next(&st); name != "" {
		t.Errorf("%s after the drain", name)
	}
	if d := h.watch(srv).next(&st); d != "status" && d != "" {
		t.Errorf("%s while draining", d)
	}
}

func TestSlowWatcherIsReset(t *testing.T) {
	h := newHost(t)
	h.changes = make(chan hearth.InstanceEvent, 2)
	h.changes <- instance(0)
	h.changes <- instance(1)
	close(h.changes)
	events := h.watch(h.serve())
	var names []string
	for {
		var v any
		name := events.next(&v)
		if name == "" {
			break
		}
		names = append(names, name)
	}
	if d := cmp.Diff([]string{"status", "instance", "instance", "reset"}, names); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestWatcherThatLeavesIsDismissed(t *testing.T) {
	h := newHost(t)
	h.changes = make(chan hearth.InstanceEvent)
	events := h.watch(h.serve())
	var st hearth.PoolStatus
	events.next(&st)
	select {
	case <-h.left:
		t.Fatal("it has left already")
	default:
	}
	events.body.Close()
	<-h.left
}
