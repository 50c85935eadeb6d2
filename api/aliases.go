package api

import (
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Aliases keeps what leads to the versions of functions.
type Aliases interface {
	// Aliases returns the aliases of a function by name. Errors: CodeNotFound.
	Aliases(ctx context.Context, function string) ([]hearth.Alias, error)
	// SetAlias makes or replaces an alias of a function at ifGeneration (0: any) and
	// stores the release r with it, a new one if its ID is 0; nil stores none. It
	// returns r as stored. Errors: CodeNotFound, CodeConflict.
	SetAlias(ctx context.Context, function string, a hearth.Alias, ifGeneration int64, r *hearth.Release) (hearth.Function, *hearth.Release, error)
	// DeleteAlias removes an alias. Errors: CodeNotFound, CodeInvalid for
	// hearth.Live, CodeConflict.
	DeleteAlias(ctx context.Context, function, name string, ifGeneration int64) (hearth.Function, error)
	// Releases returns at most limit releases of a function with ids below before,
	// newest first; 0 means from the newest. Errors: CodeNotFound.
	Releases(ctx context.Context, function string, before int64, limit int) ([]hearth.Release, error)
	// RunningReleases returns those that run, of all functions.
	RunningReleases(ctx context.Context) ([]hearth.Release, error)
}

// aliasBody is an alias as the API shows it.
type aliasBody struct {
	hearth.Alias
	URL string `json:"url" doc:"Path under which it answers" example:"/fn/hello@beta/"`
}

type aliasList struct {
	Aliases []aliasBody `json:"aliases" doc:"By name"`
}

type aliasListOutput struct{ Body aliasList }

type aliasInput struct {
	Name    string `path:"name" doc:"Name of the function" example:"hello"`
	Alias   string `path:"alias" doc:"Name of the alias: at most 32 lower-case letters, digits and hyphens" example:"beta"`
	IfMatch string `header:"If-Match" doc:"Only if the function has this ETag"`
}

type putAliasInput struct {
	Name    string `path:"name" doc:"Name of the function" example:"hello"`
	Alias   string `path:"alias" doc:"Name of the alias: at most 32 lower-case letters, digits and hyphens" example:"beta"`
	IfMatch string `header:"If-Match" doc:"Only if the function has this ETag"`
	Body    struct {
		Versions hearth.Weights    `json:"versions" doc:"Versions with their shares of calls in percent, together 100"`
		Sticky   hearth.Sticky     `json:"sticky,omitempty" doc:"By what callers stay with one version of a split: cookie, or header:NAME" example:"cookie"`
		Env      map[string]string `json:"env,omitempty" doc:"Environment variables added to those of the version, or in their place"`
		Routes   []hearth.Route    `json:"routes,omitempty" doc:"Routes that lead to this alias; those of live are in the function's configuration"`
	}
}

type aliasOutput struct {
	ETag string `header:"ETag" doc:"Generation of the function, for If-Match" example:"\"3\""`
	Body aliasBody
}

func (s *API) registerAliases() {
	register(s, huma.Operation{
		OperationID: "list-aliases", Method: http.MethodGet, Path: "/v1/functions/{name}/aliases", Tags: []string{"Versions"},
		Summary: "List the aliases of a function",
	}, s.listAliases)
	register(s, huma.Operation{
		OperationID: "put-alias", Method: http.MethodPut, Path: "/v1/functions/{name}/aliases/{alias}", Tags: []string{"Versions"},
		Summary: "Make an alias or let it lead elsewhere",
		Description: "An alias leads to one version or splits its calls between several. It answers at /fn/NAME@ALIAS/ and at its routes; the alias live at /fn/NAME/ and the function's own routes. " +
			"Versions that the alias did not lead to are started once first; if one cannot be loaded, nothing changes. Setting live ends a release that runs.",
		DefaultStatus: http.StatusOK,
	}, s.putAlias)
	register(s, huma.Operation{
		OperationID: "delete-alias", Method: http.MethodDelete, Path: "/v1/functions/{name}/aliases/{alias}", Tags: []string{"Versions"},
		Summary:       "Remove an alias; its versions stay",
		DefaultStatus: http.StatusNoContent,
	}, s.deleteAlias)
}

func aliasURL(function, alias string) string {
	if alias == hearth.Live {
		return "/fn/" + function + "/"
	}
	return "/fn/" + function + "@" + alias + "/"
}

func (s *API) listAliases(ctx context.Context, in *nameInput) (*aliasListOutput, error) {
	list, err := s.aliases(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	out := &aliasListOutput{Body: aliasList{Aliases: []aliasBody{}}}
	for _, a := range list {
		out.Body.Aliases = append(out.Body.Aliases, aliasBody{a, aliasURL(in.Name, a.Name)})
	}
	return out, nil
}

func (s *API) putAlias(ctx context.Context, in *putAliasInput) (*aliasOutput, error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	a := hearth.Alias{Name: in.Alias, Versions: in.Body.Versions, Sticky: in.Body.Sticky, Env: in.Body.Env, Routes: in.Body.Routes}
	if err := a.Validate(); err != nil {
		return nil, err
	}
	var f hearth.Function
	err = s.change(ctx, in.Name, match, func(ctx context.Context, old hearth.Function) error {
		var release *hearth.Release
		was := old.Split
		if was == nil {
			was = hearth.Weights{old.Live: 100}
		}
		if a.Name == hearth.Live && !maps.Equal(a.Versions, was) {
			base, err := s.base(ctx, old)
			if err != nil {
				return err
			}
			release = releaseNow(hearth.ReleaseVersion, base, a.Main())
			if len(a.Versions) > 1 {
				release.Reason = "split " + a.Versions.String()
			}
		}
		f, _, err = s.lead(ctx, old, a, release)
		return err
	})
	if err != nil {
		return nil, err
	}
	a.UpdatedAt = f.UpdatedAt
	return &aliasOutput{ETag: etag(f.Generation), Body: aliasBody{a, aliasURL(in.Name, a.Name)}}, nil
}

func (s *API) deleteAlias(ctx context.Context, in *aliasInput) (*struct{}, error) {
	match, err := parseETag(in.IfMatch)
	if err != nil {
		return nil, err
	}
	return nil, s.change(ctx, in.Name, match, func(ctx context.Context, old hearth.Function) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
		defer cancel()
		s.commit.Lock()
		defer s.commit.Unlock()
		if _, err := s.Aliases.DeleteAlias(ctx, old.Name, in.Alias, old.Generation); err != nil {
			return err
		}
		return s.reload(ctx)
	})
}

// change runs fn with the function as it is while nothing else changes its aliases.
// A deploy may be under way: going back must not wait for a build.
func (s *API) change(ctx context.Context, name string, match condition, fn func(context.Context, hearth.Function) error) error {
	unlock, err := s.changes.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	for try := 0; ; try++ {
		f, err := s.function(ctx, name)
		if err != nil {
			return err
		}
		if err := match.check(name, &f); err != nil {
			return err
		}
		err = fn(ctx, f)
		if hearth.ErrorCode(err) != hearth.CodeConflict || try == maxTries {
			return err
		}
		if now, nowErr := s.function(ctx, name); nowErr != nil || now.Generation == f.Generation {
			return err // it conflicts with something else
		}
	}
}

// maxTries is how often a change is tried again because a deploy came between.
const maxTries = 3

// lead lets an alias of old lead where a says, after starting the versions that
// are new to it once.
func (s *API) lead(ctx context.Context, old hearth.Function, a hearth.Alias, r *hearth.Release) (f hearth.Function, stored *hearth.Release, err error) {
	aliases, err := s.Aliases.Aliases(ctx, old.Name)
	if err != nil {
		return f, nil, err
	}
	var was hearth.Alias
	for _, other := range aliases {
		if other.Name == a.Name {
			was = other
		}
	}
	var main hearth.Config
	var others []hearth.Config
	var started []hearth.Version
	for n := range a.Versions {
		v, err := s.version(ctx, old.Name, n)
		if err != nil {
			return f, nil, err
		}
		if n == a.Main() {
			main = v.Config
		} else {
			others = append(others, v.Config)
		}
		with, before := v.WithEnv(a.Env), v.WithEnv(was.Env)
		if was.Versions[n] > 0 && with.Incarnation == before.Incarnation {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, time.Duration(v.Config.Timeout)+verifyGrace)
		s.Verifier.Admit(with.Incarnation)
		err = s.Verifier.Verify(ctx, &with)
		cancel()
		if err != nil {
			return f, nil, err
		}
		started = append(started, with)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.commit.Lock()
	defer s.commit.Unlock()
	s.retireOutdated(ctx, started, a.Env)
	if a.Name == hearth.Live {
		err = s.checkTriggers(old.Name, main, others...)
	} else {
		err = s.checkRoutes(old.Name, a.Name, a.Routes)
	}
	if err != nil {
		return f, nil, err
	}
	f, stored, err = s.Aliases.SetAlias(ctx, old.Name, a, old.Generation, r)
	if err != nil {
		return f, nil, err
	}
	return f, stored, s.reload(ctx)
}

// retireOutdated ends the instances of versions that were started with the
// environment while one of their secrets got another value: no call would reach
// them.
func (s *API) retireOutdated(ctx context.Context, started []hearth.Version, env map[string]string) {
	for _, v := range started {
		if len(v.Secrets) == 0 {
			continue
		}
		now, err := s.Versions.Version(ctx, v.Function, v.Number)
		if err != nil || now.WithEnv(env).Incarnation != v.Incarnation {
			s.Verifier.Retire(v.Incarnation)
		}
	}
}

// version returns one version of a function. Errors: CodeNotFound with a hint.
func (s *API) version(ctx context.Context, name string, number int) (hearth.Version, error) {
	v, err := s.Versions.Version(ctx, name, number)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return v, (&hearth.Error{
			Code: hearth.CodeNotFound, Err: err,
			Message: "function " + strconv.Quote(clip(name)) + " has no version " + strconv.Itoa(number),
		}).WithHint("hearth versions %s lists them; old ones that no alias names are removed", clip(name))
	}
	return v, err
}

// checkRoutes tells whether an alias may have these routes besides those of all
// others. Errors: CodeConflict.
func (s *API) checkRoutes(function, alias string, routes []hearth.Route) error {
	for _, r := range routes {
		if _, host, _ := r.Parts(); host != "" && (ManagementHost(host, s.AllowedHosts) || s.managedOnAPort(host)) {
			return hearth.Errorf(hearth.CodeConflict, "the host of route %q is one under which Hearth is managed", r).
				WithHint("choose another host, or take %s out of --allowed-hosts", host)
		}
	}
	return s.Router.CheckRoutes(function, alias, routes)
}

// managedOnAPort tells whether Hearth is managed under the host with some port:
// browsers send cookies to all of them.
func (s *API) managedOnAPort(host string) bool {
	return slices.ContainsFunc(s.AllowedHosts, func(allowed string) bool {
		name, _, err := net.SplitHostPort(allowed)
		return err == nil && strings.EqualFold(name, host)
	})
}
