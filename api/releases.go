package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Traffic counts the calls of versions while they are compared.
type Traffic interface {
	// Watch counts the calls of both versions of a release from zero, for its step.
	Watch(r hearth.Release)
	// Unwatch ends that.
	Unwatch(function string)
	// Traffic returns what was counted of them; ok is false if its step is not
	// watched.
	Traffic(r hearth.Release) (fresh, old hearth.Traffic, ok bool)
}

// releaseBody is a release as the API shows it.
type releaseBody struct {
	hearth.Release
	// Fresh and Old are the calls since the step began.
	Fresh *hearth.Traffic `json:"fresh,omitempty" doc:"Calls of the new version since the step began; missing once the release has ended"`
	Old   *hearth.Traffic `json:"old,omitempty" doc:"Calls of the old version since the step began"`
}

type releaseList struct {
	Releases []releaseBody `json:"releases" doc:"Newest first"`
	Next     int64         `json:"next,omitempty" doc:"The before of the next page; missing on the last one"`
}

type releaseListOutput struct{ Body releaseList }

type releasesInput struct {
	Name   string `path:"name" doc:"Name of the function" example:"hello"`
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Greatest number of releases"`
	Before int64  `query:"before" minimum:"0" doc:"Only releases with lower ids"`
}

type startReleaseInput struct {
	Name    string `path:"name" doc:"Name of the function" example:"hello"`
	IfMatch string `header:"If-Match" doc:"Only if the function has this ETag"`
	Body    struct {
		Version int            `json:"version,omitempty" minimum:"0" doc:"Version to make live; default is the newest"`
		Canary  *hearth.Canary `json:"canary,omitempty" doc:"Steps in which it gets calls; without them it gets all at once"`
	}
}

type endReleaseInput struct {
	Name string `path:"name" doc:"Name of the function" example:"hello"`
	ID   int64  `path:"id" minimum:"1" doc:"Id of the release"`
}

type rollbackInput struct {
	Name    string `path:"name" doc:"Name of the function" example:"hello"`
	IfMatch string `header:"If-Match" doc:"Only if the function has this ETag"`
	Body    *struct {
		Version int `json:"version,omitempty" minimum:"0" doc:"Version to go back to; default is the one that was live before"`
	}
}

type releaseOutput struct {
	ETag string `header:"ETag" doc:"Generation of the function, for If-Match" example:"\"3\""`
	Body releaseBody
}

func (s *API) registerReleases() {
	const path = "/v1/functions/{name}/releases"
	register(s, huma.Operation{
		OperationID: "list-releases", Method: http.MethodGet, Path: path, Tags: []string{"Versions"},
		Summary: "List the releases of a function, newest first",
	}, s.listReleases)
	register(s, huma.Operation{
		OperationID: "start-release", Method: http.MethodPost, Path: path, Tags: []string{"Versions"},
		Summary: "Make a version live, at once or by steps",
		Description: "The version is started once first. With a canary it gets a growing share of the calls of live, and Hearth compares it with the old version: " +
			"when a condition of rollback_on holds, the old version gets all calls again. After the last step the new one has them all.",
		DefaultStatus: http.StatusCreated,
	}, s.startRelease)
	register(s, huma.Operation{
		OperationID: "abort-release", Method: http.MethodPost, Path: path + "/{id}/abort", Tags: []string{"Versions"},
		Summary: "End a release that runs: the old version gets all calls again",
	}, s.abortRelease)
	register(s, huma.Operation{
		OperationID: "finish-release", Method: http.MethodPost, Path: path + "/{id}/finish", Tags: []string{"Versions"},
		Summary: "End a release that runs: the new version gets all calls now",
	}, s.finishRelease)
	register(s, huma.Operation{
		OperationID: "rollback", Method: http.MethodPost, Path: "/v1/functions/{name}/rollback", Tags: []string{"Versions"},
		Summary:     "Go back to the version that was live before",
		Description: "A release that runs is ended. Going back again goes further back.",
	}, s.rollback)
}

// releaseNow is a release at once.
func releaseNow(kind hearth.ReleaseKind, from, to int) *hearth.Release {
	now := time.Now()
	return &hearth.Release{Kind: kind, State: hearth.ReleaseDone, From: from, To: to, StartedAt: now, StepAt: now, EndedAt: &now}
}

func (s *API) releaseBody(r hearth.Release) releaseBody {
	b := releaseBody{Release: r}
	if r.State == hearth.ReleaseRunning {
		if fresh, old, ok := s.Traffic.Traffic(r); ok {
			b.Fresh, b.Old, b.Reason = &fresh, &old, waits(r, fresh)
		}
	}
	return b
}

func (s *API) listReleases(ctx context.Context, in *releasesInput) (*releaseListOutput, error) {
	if _, err := s.function(ctx, in.Name); err != nil {
		return nil, err
	}
	list, err := s.Aliases.Releases(ctx, in.Name, in.Before, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &releaseListOutput{Body: releaseList{Releases: []releaseBody{}}}
	if len(list) > in.Limit {
		list = list[:in.Limit]
		out.Body.Next = list[in.Limit-1].ID
	}
	for _, r := range list {
		out.Body.Releases = append(out.Body.Releases, s.releaseBody(r))
	}
	return out, nil
}

func (s *API) startRelease(ctx context.Context, in *startReleaseInput) (out *releaseOutput, err error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	var canary *hearth.Canary
	if in.Body.Canary != nil {
		c := in.Body.Canary.WithDefaults()
		if err := c.Validate(); err != nil {
			return nil, err
		}
		canary = &c
	}
	err = s.change(ctx, in.Name, match, func(ctx context.Context, f hearth.Function) error {
		to := in.Body.Version
		if to == 0 {
			newest, err := s.Versions.Versions(ctx, f.Name, 0, 1)
			if err != nil {
				return err
			}
			to = newest[0].Number
		}
		if to == f.Live && f.Split == nil {
			return hearth.Errorf(hearth.CodeConflict, "version %d of function %s is live already", to, f.Name).
				WithHint("make a version without releasing it with hearth deploy --preview, or go back with hearth rollback %s", f.Name)
		}
		base, err := s.base(ctx, f)
		if err != nil {
			return err
		}
		r := releaseNow(hearth.ReleaseVersion, base, to)
		if canary == nil {
			out, err = s.shift(ctx, f, *r, hearth.Weights{to: 100})
			return err
		}
		if to == base {
			return hearth.Errorf(hearth.CodeConflict, "version %d of function %s has the greatest share of calls already", to, f.Name).
				WithHint("release it without a canary")
		}
		v, err := s.version(ctx, f.Name, to)
		if err != nil {
			return err
		}
		if err := s.checkTriggers(f.Name, v.Config); err != nil {
			return err
		}
		r.State, r.EndedAt, r.Canary = hearth.ReleaseRunning, nil, canary
		out, err = s.shift(ctx, f, *r, split(*r))
		return err
	})
	return out, err
}

// split is how a running release divides the calls.
func split(r hearth.Release) hearth.Weights {
	share := r.Canary.Shares[r.Step]
	return hearth.Weights{r.To: share, r.From: 100 - share}
}

// shift gives hearth.Live of f new shares as a part of the release r.
func (s *API) shift(ctx context.Context, f hearth.Function, r hearth.Release, w hearth.Weights) (*releaseOutput, error) {
	aliases, err := s.Aliases.Aliases(ctx, f.Name)
	if err != nil {
		return nil, err
	}
	for _, a := range aliases {
		if a.Name != hearth.Live {
			continue
		}
		a.Versions = w
		f, stored, err := s.lead(ctx, f, a, &r)
		if stored == nil {
			return nil, err
		}
		if r.State == hearth.ReleaseRunning {
			s.Traffic.Watch(*stored)
		} else {
			s.Traffic.Unwatch(f.Name)
		}
		return &releaseOutput{ETag: etag(f.Generation), Body: s.releaseBody(*stored)}, err
	}
	return nil, hearth.Errorf(hearth.CodeInternal, "function %s has no alias live", f.Name)
}

// running returns the release of f that runs, nil if none does.
func (s *API) running(ctx context.Context, f hearth.Function) (*hearth.Release, error) {
	list, err := s.Aliases.Releases(ctx, f.Name, 0, 1) // only the newest can
	if err != nil || len(list) == 0 || list[0].State != hearth.ReleaseRunning {
		return nil, err
	}
	return &list[0], nil
}

// base returns the version that f has proved: what was live before a release that
// runs, whatever its share is, else the main version.
func (s *API) base(ctx context.Context, f hearth.Function) (int, error) {
	r, err := s.running(ctx, f)
	if err != nil || r == nil {
		return f.Live, err
	}
	return r.From, nil
}

func (s *API) abortRelease(ctx context.Context, in *endReleaseInput) (*releaseOutput, error) {
	return s.endRelease(ctx, in, hearth.ReleaseAborted, "somebody asked for it")
}

func (s *API) finishRelease(ctx context.Context, in *endReleaseInput) (*releaseOutput, error) {
	return s.endRelease(ctx, in, hearth.ReleaseDone, "somebody asked for it")
}

func (s *API) endRelease(ctx context.Context, in *endReleaseInput, state hearth.ReleaseState, why string) (out *releaseOutput, err error) {
	err = s.change(ctx, in.Name, condition{}, func(ctx context.Context, f hearth.Function) error {
		r, err := s.running(ctx, f)
		if err != nil {
			return err
		}
		if r == nil || r.ID != in.ID {
			return hearth.Errorf(hearth.CodeConflict, "release %d of function %s does not run", in.ID, f.Name).
				WithHint("hearth release status %s shows the releases", f.Name)
		}
		out, err = s.end(ctx, f, *r, state, why)
		return err
	})
	return out, err
}

// end ends a release that runs: in state ReleaseDone with the new version, else
// with the old one.
func (s *API) end(ctx context.Context, f hearth.Function, r hearth.Release, state hearth.ReleaseState, why string) (*releaseOutput, error) {
	now := time.Now()
	r.State, r.Reason, r.EndedAt = state, why, &now
	to := r.From
	if state == hearth.ReleaseDone {
		to = r.To
	}
	return s.shift(ctx, f, r, hearth.Weights{to: 100})
}

func (s *API) rollback(ctx context.Context, in *rollbackInput) (out *releaseOutput, err error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, in.Name, match, func(ctx context.Context, f hearth.Function) error {
		to := 0
		if in.Body != nil {
			to = in.Body.Version
		}
		if to == 0 {
			r, err := s.running(ctx, f)
			if err != nil {
				return err
			}
			if r != nil {
				out, err = s.end(ctx, f, *r, hearth.ReleaseAborted, "somebody rolled it back")
				return err
			}
			if to, err = s.previous(ctx, f); err != nil {
				return err
			}
		}
		if to == f.Live && f.Split == nil {
			return hearth.Errorf(hearth.CodeConflict, "version %d of function %s is live already", to, f.Name).
				WithHint("hearth versions %s shows the others", f.Name)
		}
		base, err := s.base(ctx, f)
		if err != nil {
			return err
		}
		out, err = s.shift(ctx, f, *releaseNow(hearth.ReleaseRollback, base, to), hearth.Weights{to: 100})
		return err
	})
	return out, err
}

// backs returns the versions that a rollback of f goes to: now, and when the release
// that runs has been ended.
func (s *API) backs(ctx context.Context, f hearth.Function) (list []int, err error) {
	live, err := s.base(ctx, f)
	if err != nil {
		return nil, err
	}
	stable := f
	stable.Live, stable.Split = live, nil
	for _, f := range []hearth.Function{f, stable} {
		switch n, err := s.previous(ctx, f); hearth.ErrorCode(err) {
		case "":
			list = append(list, n)
		case hearth.CodeConflict: // there is none
		default:
			return nil, err
		}
	}
	return list, nil
}

// previous returns the version that was live before the one that is live came to
// be so for the first time. Errors: CodeConflict if there is none.
func (s *API) previous(ctx context.Context, f hearth.Function) (int, error) {
	if f.Split != nil { // back is to what was live before somebody split the calls
		newest, err := s.Aliases.Releases(ctx, f.Name, 0, 1)
		if err != nil || len(newest) == 0 {
			return f.Live, err
		}
		return newest[0].From, nil
	}
	before := int64(0)
	for {
		list, err := s.Aliases.Releases(ctx, f.Name, before, 100)
		if err != nil {
			return 0, err
		}
		for _, r := range list {
			before = r.ID
			if r.State != hearth.ReleaseDone || r.To != f.Live || r.From == r.To || r.From == 0 || r.Kind == hearth.ReleaseRollback {
				continue
			}
			if _, err := s.version(ctx, f.Name, r.From); hearth.ErrorCode(err) == hearth.CodeNotFound {
				return 0, hearth.Errorf(hearth.CodeConflict, "version %d of function %s, which was live before, was removed", r.From, f.Name).
					WithHint("name another: hearth versions %s shows them", f.Name)
			}
			return r.From, nil
		}
		if len(list) == 0 {
			return 0, hearth.Errorf(hearth.CodeConflict, "no other version of function %s was live before version %d", f.Name, f.Live).
				WithHint("name one: hearth versions %s shows them", f.Name)
		}
	}
}
