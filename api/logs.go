package api

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

const (
	defaultTail = 100
	maxTail     = 10_000
)

type logList struct {
	Lines []hearth.LogLine `json:"lines" doc:"Oldest first"`
}

func (s *API) registerLogs() {
	zero, most := 0.0, float64(maxTail)
	s.registerRaw(huma.Operation{
		OperationID: "read-logs", Method: http.MethodGet, Path: "/v1/functions/{name}/logs", Tags: []string{"Logs"},
		Summary:     "Read or follow the log of a function",
		Description: "With follow=true the answer is a stream of server-sent events named line, each with a LogLine as JSON in its data; it goes on until the client or the server ends it. An event named error has a problem in its data and is the last one.",
		Parameters: []*huma.Param{
			{Name: "name", In: "path", Required: true, Description: "Name of the function; NAME@VERSION and NAME@ALIAS mean the lines of that version, or of those that the alias leads to now", Schema: &huma.Schema{Type: huma.TypeString}, Example: "hello"},
			{Name: "tail", In: "query", Description: "How many of the newest lines", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &zero, Maximum: &most, Default: defaultTail}},
			{Name: "follow", In: "query", Description: "Go on with new lines as they come", Schema: &huma.Schema{Type: huma.TypeBoolean, Default: false}},
		},
		Responses: map[string]*huma.Response{"200": {
			Description: "The lines",
			Content: map[string]*huma.MediaType{
				"application/json": {Schema: schemaOf[logList](s)},
				eventStream:        streamOf(named{"line", schemaOf[hearth.LogLine](s)}, named{"error", schemaOf[problem](s)}),
			},
		}},
	}, s.readLogs)
}

func (s *API) readLogs(w http.ResponseWriter, r *http.Request) error {
	tail, follow, err := logQuery(r.URL.Query())
	if err != nil {
		return err
	}
	function, versions, err := s.logTarget(r.Context(), hearth.Target(r.PathValue("name")))
	if err != nil {
		return err
	}
	if follow {
		return s.followLogs(w, r, function, versions, tail)
	}
	lines, err := s.Logs.Tail(r.Context(), function, tail, versions...)
	if err != nil {
		return err
	}
	if lines == nil {
		lines = []hearth.LogLine{}
	}
	return writeJSON(w, http.StatusOK, logList{Lines: lines})
}

// logTarget returns whose lines a target means; no versions are all. Errors:
// CodeNotFound.
func (s *API) logTarget(ctx context.Context, t hearth.Target) (function string, versions []int, err error) {
	name, alias, version, err := t.Parts()
	f, ferr := s.function(ctx, name)
	switch {
	case ferr != nil:
		return "", nil, ferr
	case err != nil:
		return "", nil, err
	case version > 0:
		v, err := s.version(ctx, f.Name, version)
		return f.Name, []int{v.Number}, err
	case alias == "" && !strings.Contains(string(t), "@"):
		return f.Name, nil, nil
	}
	list, err := s.aliases(ctx, f.Name)
	for _, a := range list {
		if a.Name == cmp.Or(alias, hearth.Live) {
			return f.Name, a.Versions.Numbers(), nil
		}
	}
	if err == nil {
		err = hearth.Errorf(hearth.CodeNotFound, "function %s has no alias %q", f.Name, clip(alias)).
			WithHint("hearth alias list %s shows them", f.Name)
	}
	return "", nil, err
}

func logQuery(q url.Values) (tail int, follow bool, err error) {
	tail = defaultTail
	if err := onlyQuery(q, "tail", "follow"); err != nil {
		return 0, false, err
	}
	if v := q.Get("tail"); v != "" {
		tail, err = strconv.Atoi(v)
		if err != nil || tail < 0 || tail > maxTail {
			return 0, false, hearth.Errorf(hearth.CodeInvalid, "query.tail: %q is not a number from 0 to %d", clip(v), maxTail).
				WithHint("write for example tail=100")
		}
	}
	if v := q.Get("follow"); v != "" {
		follow, err = strconv.ParseBool(v)
		if err != nil {
			return 0, false, hearth.Errorf(hearth.CodeInvalid, "query.follow: %q is neither true nor false", clip(v)).
				WithHint("write follow=true")
		}
	}
	return tail, follow, nil
}

// onlyQuery refuses parameters that are not known, where huma does not do so.
func onlyQuery(q url.Values, known ...string) error {
	for key := range q {
		if slices.Contains(known, key) {
			continue
		}
		err := hearth.Errorf(hearth.CodeInvalid, "query.%s: unknown query parameter", clip(key))
		if len(known) == 0 {
			return err.WithHint("there are no parameters here")
		}
		return err.WithHint("possible: %s", strings.Join(known, ", "))
	}
	return nil
}

// followLogs streams lines until the client goes away or the server drains.
func (s *API) followLogs(w http.ResponseWriter, r *http.Request, function string, versions []int, tail int) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newEvents(w)
	if out.comment("following") != nil {
		return nil
	}
	var side sync.WaitGroup
	defer side.Wait()
	defer cancel()
	side.Go(func() {
		tick := time.NewTicker(keepAlive)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.Draining:
				cancel()
				return
			case <-tick.C:
				if out.comment("still here") != nil {
					cancel()
					return
				}
			}
		}
	})
	err := s.Logs.Follow(ctx, function, tail, func(l hearth.LogLine) error {
		return out.send("line", l)
	}, versions...)
	if err != nil && ctx.Err() == nil {
		// The status is gone; an event can still tell.
		_ = out.send("error", s.problemOf(ctx, err))
	}
	return nil
}
