package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Pool tells which instances there are and why; package pool implements it.
type Pool interface {
	// Status tells what the pool has now.
	Status() hearth.PoolStatus
	// Watch returns the status and a channel with every change after it. The
	// channel is closed when ctx ends, and when its reader is so slow that changes
	// would be lost.
	Watch(ctx context.Context) (hearth.PoolStatus, <-chan hearth.InstanceEvent)
}

type poolInput struct {
	Function string `query:"function" maxLength:"63" doc:"Only this function and its instances, without stem cells; totals stay those of the whole pool" example:"hello"`
}

type poolOutput struct{ Body hearth.PoolStatus }

// functionInstances is the part of the status that is about one function.
type functionInstances struct {
	Versions  []hearth.PoolFunction `json:"versions" doc:"The versions that have instances or were called lately, the oldest first"`
	Instances []hearth.Instance     `json:"instances" doc:"Their instances, sorted by version and age"`
}

type functionInstancesOutput struct{ Body functionInstances }

func (s *API) registerPool() {
	register(s, huma.Operation{
		OperationID: "get-pool", Method: http.MethodGet, Path: "/v1/pool", Tags: []string{"Pool"},
		Summary:     "What instances there are and why",
		Description: "Each instance says why it is there, each function how long it is kept warm and why its latest cold start happened, each stock of stem cells why it has that many.",
	}, s.getPool)
	s.registerRaw(huma.Operation{
		OperationID: "watch-pool", Method: http.MethodGet, Path: "/v1/pool/events", Tags: []string{"Pool"},
		Summary: "Follow the changes of instances",
		Description: "A stream of server-sent events: first one named status with the whole status, then one named instance for each change of an instance's state. " +
			"An event named reset is the last one: the client was too slow and missed changes, and connects again for a new status. " +
			"Without it the stream ends when the server shuts down. Comments come while there is no news.",
		Responses: map[string]*huma.Response{"200": {
			Description: "The changes as they happen",
			Content: map[string]*huma.MediaType{eventStream: streamOf(
				named{"status", schemaOf[hearth.PoolStatus](s)},
				named{"instance", schemaOf[hearth.InstanceEvent](s)},
				named{"reset", &huma.Schema{Type: huma.TypeObject}},
			)},
		}},
	}, s.watchPool)
	register(s, huma.Operation{
		OperationID: "list-instances", Method: http.MethodGet, Path: "/v1/functions/{name}/instances", Tags: []string{"Instances"},
		Summary: "What instances a function has and why",
	}, s.listInstances)
}

func (s *API) getPool(ctx context.Context, in *poolInput) (*poolOutput, error) {
	if in.Function == "" {
		return &poolOutput{Body: s.Pool.Status()}, nil
	}
	if _, err := s.function(ctx, in.Function); err != nil {
		return nil, err
	}
	return &poolOutput{Body: only(s.Pool.Status(), in.Function)}, nil
}

func (s *API) listInstances(ctx context.Context, in *nameInput) (*functionInstancesOutput, error) {
	f, err := s.function(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	st := only(s.Pool.Status(), f.Name)
	return &functionInstancesOutput{Body: functionInstances{Versions: st.Functions, Instances: st.Instances}}, nil
}

// only leaves in st what is about the function.
func only(st hearth.PoolStatus, function string) hearth.PoolStatus {
	st.Functions = slices.DeleteFunc(st.Functions, func(f hearth.PoolFunction) bool { return f.Function != function })
	st.Instances = slices.DeleteFunc(st.Instances, func(i hearth.Instance) bool { return i.Function != function })
	st.Stems = []hearth.StemStock{}
	return st
}

// watchPool streams changes until the client goes away, the server drains, or
// the client has missed some.
func (s *API) watchPool(w http.ResponseWriter, r *http.Request) error {
	if err := onlyQuery(r.URL.Query()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	status, changes := s.Pool.Watch(ctx)
	out := newEvents(w)
	if out.send("status", status) != nil {
		return nil
	}
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		var err error
		select {
		case change, ok := <-changes:
			if !ok {
				if !s.ending(ctx) {
					_ = out.send("reset", struct{}{})
				}
				return nil
			}
			err = sendAll(out, "instance", change, changes)
		case <-tick.C:
			err = out.comment("still here")
		case <-s.Draining:
			return nil
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return nil // the client is gone
		}
	}
}

// ending tells whether a stream ends because the client left or the server
// drains.
func (s *API) ending(ctx context.Context) bool {
	select {
	case <-s.Draining:
		return true
	default:
		return ctx.Err() != nil
	}
}
