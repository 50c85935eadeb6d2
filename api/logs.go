package api

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
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
	// maxSearch is how long a text may be that is looked for.
	maxSearch = 1000
)

var logStreams = []string{"stdout", "stderr", "hearth"}

type logList struct {
	Lines []hearth.LogLine `json:"lines" doc:"Oldest first"`
}

func (s *API) registerLogs() {
	zero, most := 0.0, float64(maxTail)
	var levels, streams []any
	for _, l := range hearth.LogLevels() {
		levels = append(levels, l)
	}
	for _, x := range logStreams {
		streams = append(streams, x)
	}
	s.registerRaw(huma.Operation{
		OperationID: "read-logs", Method: http.MethodGet, Path: "/v1/functions/{name}/logs", Tags: []string{"Logs"},
		Summary:     "Read, search or follow the log of a function",
		Description: "With follow=true the answer is a stream of server-sent events named line, each with a LogLine as JSON in its data; it goes on until the client or the server ends it. An event named error has a problem in its data and is the last one.",
		Parameters: []*huma.Param{
			{Name: "name", In: "path", Required: true, Description: "Name of the function; NAME@VERSION and NAME@ALIAS mean the lines of that version, or of those that the alias leads to now", Schema: &huma.Schema{Type: huma.TypeString}, Example: "hello"},
			{Name: "tail", In: "query", Description: "How many of the newest lines that meet all other conditions; fewer if they would take more than 16 MiB", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &zero, Maximum: &most, Default: defaultTail}},
			{Name: "follow", In: "query", Description: "Go on with new lines as they come", Schema: &huma.Schema{Type: huma.TypeBoolean, Default: false}},
			{Name: "q", In: "query", Description: "Only lines with this text in them, whatever the case of its letters", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: new(maxSearch)}, Example: "connection refused"},
			{Name: "level", In: "query", Description: "Only lines of this level or a more severe one; lines without a level are left out then, also those of stderr", Schema: &huma.Schema{Type: huma.TypeString, Enum: levels}},
			{Name: "invocation", In: "query", Description: "Only lines of the call with this id, of all attempts if it was an asynchronous one", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: new(maxSearch)}},
			{Name: "stream", In: "query", Description: "Only lines of this stream", Schema: &huma.Schema{Type: huma.TypeString, Enum: streams}},
			{Name: "since", In: "query", Description: "Only lines from this time on, or from so long ago", Schema: &huma.Schema{Type: huma.TypeString}, Example: "15m"},
			{Name: "until", In: "query", Description: "Only lines before this time, or before so long ago; a stream ends then", Schema: &huma.Schema{Type: huma.TypeString}, Example: "2026-01-31T08:00:00Z"},
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
	q, follow, err := logQuery(r.URL.Query())
	if err != nil {
		return err
	}
	if q.Function, q.Versions, err = s.logTarget(r.Context(), hearth.Target(r.PathValue("name"))); err != nil {
		return err
	}
	if follow {
		return s.followLogs(w, r, q)
	}
	lines, err := s.Logs.Tail(r.Context(), q)
	if err != nil {
		return err
	}
	writeLines(w, lines)
	return nil
}

// writeLines writes a logList line by line: as a whole it would be in memory twice more. A
// line that is written is given up.
func writeLines(w http.ResponseWriter, lines []hearth.LogLine) {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 32<<10) // keeps its first error
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	_, _ = out.WriteString(`{"lines":[`)
	for i := range lines {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		if enc.Encode(&lines[i]) != nil {
			return // the client has gone
		}
		lines[i] = hearth.LogLine{}
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush()
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

func logQuery(in url.Values) (q hearth.LogQuery, follow bool, err error) {
	q.Tail = defaultTail
	q.Text, q.Invocation, q.Stream = in.Get("q"), in.Get("invocation"), in.Get("stream")
	set := func(key string, parse func(v string) error) {
		if v := in.Get(key); v != "" && err == nil {
			if err = parse(v); err != nil {
				e := hearth.AsError(err)
				err = hearth.Errorf(hearth.CodeInvalid, "query.%s: %w", key, err).WithHint("%s", e.Hint)
			}
		}
	}
	moment := func(t *time.Time) func(string) error {
		now := time.Now()
		return func(v string) (err error) {
			*t, err = hearth.ParseMoment(v, now)
			return err
		}
	}
	short := func(v string) error {
		if len(v) > maxSearch {
			return hearth.Errorf(hearth.CodeInvalid, "it is longer than %d bytes", maxSearch).WithHint("look for a part of it")
		}
		return nil
	}
	if err := onlyQuery(in, "tail", "follow", "q", "level", "invocation", "stream", "since", "until"); err != nil {
		return q, false, err
	}
	set("tail", func(v string) (err error) {
		if q.Tail, err = strconv.Atoi(v); err != nil || q.Tail < 0 || q.Tail > maxTail {
			return hearth.Errorf(hearth.CodeInvalid, "%q is not a number from 0 to %d", clip(v), maxTail).WithHint("write for example tail=100")
		}
		return nil
	})
	set("follow", func(v string) (err error) {
		if follow, err = strconv.ParseBool(v); err != nil {
			return hearth.Errorf(hearth.CodeInvalid, "%q is neither true nor false", clip(v)).WithHint("write follow=true")
		}
		return nil
	})
	set("q", short)
	set("invocation", short)
	set("level", func(v string) (err error) {
		q.Level, err = hearth.ParseLogLevel(v)
		return err
	})
	set("stream", func(v string) error {
		if !slices.Contains(logStreams, v) {
			return hearth.Errorf(hearth.CodeInvalid, "there is no stream %q", clip(v)).WithHint("choose %s", strings.Join(logStreams, ", "))
		}
		return nil
	})
	set("since", moment(&q.Since))
	set("until", moment(&q.Until))
	return q, follow, err
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
func (s *API) followLogs(w http.ResponseWriter, r *http.Request, q hearth.LogQuery) error {
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
	err := s.Logs.Follow(ctx, q, func(l hearth.LogLine) error {
		return out.send("line", l)
	})
	if err != nil && ctx.Err() == nil {
		// The status is gone; an event can still tell.
		_ = out.send("error", s.problemOf(ctx, err))
	}
	return nil
}
