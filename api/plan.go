package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

// maxPlanBody is the greatest size of the body of a plan in bytes: twenty
// thousand files with their paths and hashes fit.
const maxPlanBody = 16 << 20

// manifestName is the file that describes a function. Its text is no part of a
// plan: what it says is in the configuration.
const manifestName = "hearth.yaml"

// planned is a function as a deploy would describe it.
type planned struct {
	hearth.Config
	Files []hearth.SourceFile `json:"files,omitempty" maxItems:"20000" doc:"The files of the source; when they are left out, the function keeps its code"`
}

type planInput struct {
	Name    string   `path:"name" doc:"Name of the function" example:"hello"`
	Aliases []string `query:"aliases" doc:"Aliases that are set after this: no schedule is warned of that calls them"`
	Body    planned
}

type planOutput struct{ Body hearth.Plan }

func (s *API) registerPlan() {
	register(s, huma.Operation{
		OperationID: "plan-function", Method: http.MethodPost, Path: "/v1/functions/{name}/plan", Tags: []string{"Functions"},
		Summary: "Tell what a deploy would change",
		Description: "Compares a configuration and the hashes of files with the live version. Nothing is changed. " +
			"The text of " + manifestName + " is left out of the comparison, as what it says is in the configuration.",
		MaxBodyBytes: maxPlanBody, Middlewares: huma.Middlewares{s.large},
	}, s.planFunction)
}

func (s *API) planFunction(ctx context.Context, in *planInput) (*planOutput, error) {
	if err := hearth.ValidateName(in.Name); err != nil {
		return nil, err
	}
	config := in.Body.WithDefaults()
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config, _, warnings, err := s.resolve(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := s.checkTriggers(in.Name, config); err != nil {
		warnings = append(warnings, hearth.AsError(err).Message)
	}
	if err := s.Secrets.CheckSecrets(ctx, config); hearth.ErrorCode(err) == hearth.CodeInvalid {
		e := hearth.AsError(err)
		warnings = append(warnings, e.Message+": "+e.Hint)
	} else if err != nil {
		return nil, err
	}
	more, err := s.triggerWarnings(ctx, in.Name, config, in.Aliases)
	if err != nil {
		return nil, err
	}
	warnings = append(warnings, more...)
	p := hearth.Plan{Function: in.Name, Action: hearth.PlanCreate, Config: config, Warnings: warnings}
	f, err := s.Catalog.Function(ctx, in.Name)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return &planOutput{Body: p}, nil
	} else if err != nil {
		return nil, err
	}
	was, err := s.Versions.Version(ctx, f.Name, f.Live)
	if err != nil {
		return nil, err
	}
	p.Config.Labels = keepLabels(was.Config.Labels, p.Config.Labels)
	p.Generation, p.Action = f.Generation, hearth.PlanUnchanged
	if !sameConfig(was.Config, p.Config) {
		p.Action, p.Settings = hearth.PlanUpdate, settingChanges(was.Config, p.Config)
	}
	if in.Body.Files != nil {
		if p.Files, err = s.fileChanges(ctx, was, in.Body.Files); err != nil {
			return nil, err
		}
	}
	if len(p.Files) > 0 {
		p.Action = hearth.PlanUpdate
	}
	return &planOutput{Body: p}, nil
}

// fileChanges compares files with the source of a version. It waits for one of
// the slots of uploads, as both are work for the disk.
func (s *API) fileChanges(ctx context.Context, was hearth.Version, files []hearth.SourceFile) ([]hearth.FileChange, error) {
	dir, err := s.sourceDir(was)
	if err != nil {
		return nil, err
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	case <-ctx.Done():
		return nil, ctxError(ctx)
	}
	have, err := build.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	before := map[string]hearth.SourceFile{}
	for _, f := range have {
		before[f.Path] = f
	}
	var changes []hearth.FileChange
	seen := map[string]bool{manifestName: true}
	for _, f := range files {
		if seen[f.Path] {
			continue
		}
		seen[f.Path] = true
		old, ok := before[f.Path]
		switch {
		case !ok:
			changes = append(changes, hearth.FileChange{Path: f.Path, Change: "added"})
		case old != f:
			changes = append(changes, hearth.FileChange{Path: f.Path, Change: "changed"})
		}
	}
	for p := range before {
		if !seen[p] {
			changes = append(changes, hearth.FileChange{Path: p, Change: "removed"})
		}
	}
	slices.SortFunc(changes, func(a, b hearth.FileChange) int { return cmp.Compare(a.Path, b.Path) })
	return changes, nil
}

// settingChanges lists what differs between two configurations, in the order of
// their fields.
func settingChanges(from, to hearth.Config) []hearth.SettingChange {
	old, now := settings(from), settings(to)
	keys := maps.Clone(old)
	maps.Copy(keys, now)
	order := map[string]int{}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[hearth.Config]()) {
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		order[key] = i
	}
	place := func(key string) int {
		top, _, _ := strings.Cut(key, ".")
		return order[top]
	}
	var changes []hearth.SettingChange
	for _, k := range slices.SortedFunc(maps.Keys(keys), func(a, b string) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
	}) {
		if old[k] != now[k] {
			changes = append(changes, hearth.SettingChange{Setting: k, From: old[k], To: now[k]})
		}
	}
	return changes
}

// settings flattens a configuration to keys with dots and their values as text;
// empty texts, lists and what may be any JSON are JSON.
func settings(c hearth.Config) map[string]string {
	out := map[string]string{}
	var add func(key string, v any)
	add = func(key string, v any) {
		if m, ok := v.(map[string]any); ok && len(m) > 0 && key != "warm.call" {
			for k, v := range m {
				if key != "" {
					k = key + "." + k
				}
				add(k, v)
			}
			return
		}
		if s, ok := v.(string); ok && s != "" {
			out[key] = s
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			b = fmt.Append(nil, v) // it came from JSON, so this is not reached
		}
		out[key] = string(b)
	}
	b, err := json.Marshal(c.WithDefaults())
	if err != nil {
		return out // as above
	}
	var v any
	if err := json.Unmarshal(b, &v); err == nil {
		add("", v)
	}
	return out
}

// keepLabels returns the labels of a deploy with those of Hearth that it does not
// mention: the live version's stay.
func keepLabels(was, labels map[string]string) map[string]string {
	for k, v := range was {
		if _, ok := labels[k]; ok || !strings.HasPrefix(k, hearth.LabelPrefix) {
			continue
		}
		labels = maps.Clone(labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v
	}
	return labels
}
