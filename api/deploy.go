package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const (
	// verifyGrace is what the start of a sandbox may take besides the
	// function's own timeout.
	verifyGrace = time.Minute
	// commitTimeout bounds the steps that go on when the client goes away.
	commitTimeout = 30 * time.Second
	// forgetTimeout bounds how long the queued calls of a deleted function are being
	// canceled; there may be half a million. Meanwhile nobody can use its name.
	forgetTimeout = 5 * time.Minute
)

// deployment is what a client wants a function to be.
type deployment struct {
	name      string
	config    hearth.Config
	code      *code // nil keeps the code the function has
	match     condition
	ifNew     bool     // If-None-Match: *
	mustBeNew bool     // POST
	fresh     bool     // installs dependencies anew
	preview   bool     // the new version does not become live
	aliases   []string // that are set after it
}

// deploy makes a version, starts it for real and, if that works, makes it live.
// On any error nothing has changed. Dependencies are installed before that; if
// only the configuration changes, what was installed is kept unless the runtime
// or the isolation is another.
//
// Deploys of one function wait for each other, so that the number a version is
// verified with is the one it is committed with. Only the commit itself is
// serialised over all functions: there routes are checked again.
func (s *API) deploy(ctx context.Context, d deployment) (deployed, error) {
	if err := hearth.ValidateName(d.name); err != nil {
		return deployed{}, err
	}
	config := d.config.WithDefaults()
	if err := config.Validate(); err != nil {
		return deployed{}, err
	}
	unlock, err := s.deploys.lock(ctx, d.name)
	if err != nil {
		return deployed{}, err
	}
	defer unlock()

	old, err := s.current(ctx, d)
	if err != nil {
		return deployed{}, err
	}
	var was *hearth.Version
	if old != nil {
		v, err := s.Versions.Version(ctx, old.Name, old.Live)
		if err != nil {
			return deployed{}, err
		}
		was = &v
		config.Labels = keepLabels(was.Config.Labels, config.Labels)
	}
	config, rt, warnings, err := s.resolve(ctx, config)
	if err != nil {
		return deployed{}, err
	}
	if err := cmp.Or(s.checkTriggers(d.name, config), s.Secrets.CheckSecrets(ctx, config)); err != nil {
		return deployed{}, err
	}
	// They are not kept with the version: tomorrow they may be wrong.
	triggers, err := s.triggerWarnings(ctx, d.name, config, d.aliases)
	if err != nil {
		return deployed{}, err
	}
	src, err := s.source(ctx, d, was, rt.Language, config.Handler)
	if err != nil {
		return deployed{}, err
	}
	v := src.version(hearth.Version{Function: d.name, Config: config, Warnings: warnings})
	same := was != nil && sameConfig(was.Config, config)
	if was != nil {
		if text := moves(was.Config, config); text != "" {
			progressOf(ctx).step(stepChange, "%s", text)
		}
	}
	unchanged := func() (deployed, error) {
		progressOf(ctx).step(stepUnchanged, "nothing has changed: version %d stays live", was.Number)
		return deployed{function: *old, warnings: slices.Concat(was.Warnings, triggers)}, nil
	}
	if same && v.Source == was.Source && (v.Artifact == was.Artifact || v.Source != "" && !d.fresh) {
		return unchanged()
	}
	if d.preview && old != nil && !d.fresh {
		before, err := s.sameVersion(ctx, v)
		if err != nil {
			return deployed{}, err
		}
		if before.Number > 0 {
			progressOf(ctx).step(stepUnchanged, "version %d is the same: it stays as it is", before.Number)
			return deployed{function: *old, version: before.Number, warnings: slices.Concat(before.Warnings, triggers)}, nil
		}
	}
	switch {
	case v.Source == "": // nothing to install
	case d.code == nil && !d.fresh && v.Source == was.Source &&
		config.Runtime == was.Config.Runtime && config.Isolation == was.Config.Isolation:
		v.Artifact = was.Artifact
	default:
		if v.Artifact, err = s.build(ctx, v, src, rt, d.fresh); err != nil {
			return deployed{}, err
		}
		if same && v.Artifact == was.Artifact && v.Source == was.Source {
			return unchanged()
		}
	}
	live, queues := old == nil || !d.preview, s.queuesOf(d.name)
	v, as, err := s.verify(ctx, v, live)
	if err != nil {
		return deployed{}, err
	}
	f, err := s.commitVersion(ctx, v, as, live, d.match)
	if err != nil {
		return deployed{}, err
	}
	warnings = slices.Concat(v.Warnings, triggers, s.strandedMessages(context.WithoutCancel(ctx), queues))
	return deployed{function: f, version: v.Number, warnings: warnings, created: old == nil}, nil
}

// sameVersion returns the newest version that has the configuration and the code of
// v, the zero Version if there is none among those that a deploy keeps.
func (s *API) sameVersion(ctx context.Context, v hearth.Version) (hearth.Version, error) {
	list, err := s.Versions.Versions(ctx, v.Function, 0, s.KeepVersions)
	if err != nil {
		return hearth.Version{}, err
	}
	for _, old := range list {
		if old.Source == v.Source && (v.Source != "" || old.Artifact == v.Artifact) && sameConfig(old.Config, v.Config) {
			return old, nil
		}
	}
	return hearth.Version{}, nil
}

// moves says where a version runs otherwise than the one before it, "" if it
// does not: a flag of the last deploy may have been forgotten in this one, and
// what a language without its number means depends on the isolation.
func moves(from, to hearth.Config) string {
	var what []string
	for _, c := range []struct{ name, from, to string }{
		{"isolation", from.Isolation, to.Isolation}, {"runtime", from.Runtime, to.Runtime},
	} {
		if c.from == c.to {
			continue
		}
		verb := ""
		if what == nil {
			verb = " changes"
		}
		what = append(what, fmt.Sprintf("%s%s from %s to %s", c.name, verb, c.from, c.to))
	}
	return strings.Join(what, ", ")
}

// current returns the function as it is, nil if there is none, after checking
// the conditions of d.
func (s *API) current(ctx context.Context, d deployment) (*hearth.Function, error) {
	f, err := s.Catalog.Function(ctx, d.name)
	var old *hearth.Function
	switch {
	case err == nil:
		old = &f
	case hearth.ErrorCode(err) != hearth.CodeNotFound:
		return nil, err
	}
	if err := d.match.check(d.name, old); err != nil {
		return nil, err
	}
	if old != nil && (d.mustBeNew || d.ifNew) {
		err := hearth.Errorf(hearth.CodeConflict, "there is a function %q already", d.name).
			WithHint("choose another name; a deploy that does not insist on a new function (PUT /v1/functions/%s) gives it a new version", d.name)
		if d.ifNew {
			return nil, withStatus(http.StatusPreconditionFailed, err)
		}
		return nil, err
	}
	if old == nil && d.code == nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "a new function needs code").
			WithHint(`add "code": {"files": {"main.py": "…"}}, or upload an archive to POST /v1/artifacts and add "code": {"artifact": "sha256:…"}`)
	}
	return old, nil
}

// resolve decides what depends on the host: the driver, the exact runtime and
// the egress policy. It also returns the runtime and warnings about what the
// host cannot enforce.
func (s *API) resolve(ctx context.Context, c hearth.Config) (hearth.Config, driver.Runtime, []string, error) {
	info, rt, err := s.place(ctx, c)
	if err != nil {
		return c, rt, nil, err
	}
	c.Runtime = rt.Name
	var warnings []string
	switch {
	case c.Egress == "" && info.Internet:
		c.Egress = hearth.EgressInternet
	case c.Egress == "":
		c.Egress = hearth.EgressNone
		warnings = append(warnings, fmt.Sprintf("the function has no network: isolation %s cannot restrict connections to public addresses on this host%s", info.Name, remedy(info, "egress", "internet", "network")))
	case c.Egress == hearth.EgressInternet && !info.Internet:
		e := hearth.Errorf(hearth.CodeUnsupported, "isolation %s cannot enforce egress: internet on this host, that is, keep the function away from the host and private addresses", info.Name)
		hint := "use egress: none"
		if r := remedy(info, "egress", "internet", "network"); r != "" {
			hint += r
		}
		return c, rt, nil, e.WithHint("%s", hint)
	}
	if !info.MemoryLimit {
		warnings = append(warnings, fmt.Sprintf("memory: %s is not enforced by isolation %s on this host%s", c.Memory, info.Name, remedy(info, "memory")))
	}
	if !info.CPULimit {
		warnings = append(warnings, fmt.Sprintf("cpu: %g is not enforced by isolation %s on this host%s", c.CPU, info.Name, remedy(info, "cpu", "CPU")))
	}
	if !info.PIDLimit {
		warnings = append(warnings, fmt.Sprintf("the number of processes is not limited by isolation %s on this host%s", info.Name, remedy(info, "pids", "processes")))
	}
	return c, rt, warnings, nil
}

// remedy returns what a driver advises about one of its limitations, as the end
// of a sentence.
func remedy(info driver.Info, words ...string) string {
	for _, p := range info.Limitations {
		for _, w := range words {
			if p.Remedy != "" && strings.Contains(p.What, w) {
				return "; to change that: " + p.Remedy
			}
		}
	}
	return ""
}

// place finds the driver and the runtime of a configuration. What was missing
// at the last probe may have been installed since, so it is looked for again.
// Errors: those of findDriver and findRuntime.
func (s *API) place(ctx context.Context, c hearth.Config) (info driver.Info, rt driver.Runtime, err error) {
	find := func(all []driver.Info) error {
		if info, err = findDriver(all, c.Isolation, c.Runtime); err == nil {
			rt, err = findRuntime(info, c.Runtime)
		}
		return err
	}
	if find(s.Drivers.Drivers(ctx)) != nil && ctx.Err() == nil {
		err = find(s.Drivers.Refresh(ctx, c.Isolation))
	}
	if err != nil && ctx.Err() != nil {
		err = ctxError(ctx) // nothing was found for lack of time
	}
	return info, rt, err
}

// buildImages is what drivers advise that have no base image.
const buildImages = "hearth images build"

// buildImage is the command that builds the image of a runtime.
func buildImage(runtime string) string {
	if l := languageOf(runtime); l == "python" || l == "nodejs" {
		return buildImages + " " + l
	}
	return buildImages
}

// findDriver returns a driver that works here; its error has a hint for who wants
// to run the runtime. Errors: CodeInvalid for an
// unknown one, CodeUnsupported for one that does not work on this host.
func findDriver(all []driver.Info, name, runtime string) (driver.Info, error) {
	var works []string
	var found *driver.Info
	for _, i := range all {
		if i.Works {
			works = append(works, i.Name)
		}
		if i.Name == name {
			found = &i
		}
	}
	hint := "no isolation works on this host; hearth doctor (GET /v1/drivers) says what is missing"
	if len(works) > 0 {
		hint = "isolation that works here: " + strings.Join(works, ", ")
	}
	if found == nil {
		return driver.Info{}, hearth.Errorf(hearth.CodeInvalid, "isolation %q is unknown", name).WithHint("%s", hint)
	}
	if !found.Works {
		if m := found.Missing; len(m) == 1 && m[0].Remedy == buildImages {
			return driver.Info{}, hearth.Errorf(hearth.CodeUnsupported, "isolation %s has no base image", name).
				WithHint("%s", buildImage(runtime))
		}
		msg := fmt.Sprintf("isolation %s does not work on this host", name)
		for i, p := range found.Missing {
			sep := ": "
			if i > 0 {
				sep = "; "
			}
			msg += sep + p.What
			if p.Remedy != "" {
				msg += " (" + p.Remedy + ")"
			}
		}
		return driver.Info{}, (&hearth.Error{Code: hearth.CodeUnsupported, Message: msg}).WithHint("%s", hint)
	}
	return *found, nil
}

// findRuntime returns the runtime with the name, or the newest one of the
// language with that name. Errors: CodeInvalid.
func findRuntime(info driver.Info, name string) (driver.Runtime, error) {
	var have, languages []string
	for _, r := range info.Runtimes {
		if r.Name == name || r.Language == name { // newest first
			return r, nil
		}
		have = append(have, r.Name)
		if !slices.Contains(languages, r.Language) {
			languages = append(languages, r.Language)
		}
	}
	hint := "it has no runtime at all; hearth doctor (GET /v1/drivers?refresh=true) says how to get one"
	language := languageOf(name)
	if !slices.Contains(languages, language) {
		for _, p := range info.Limitations {
			if p.Remedy == buildImages {
				return driver.Runtime{}, hearth.Errorf(hearth.CodeInvalid, "isolation %s has no base image for %q", info.Name, name).
					WithHint("%s", buildImage(name))
			}
			if p.What == "no runtime for "+language && p.Remedy != "" {
				return driver.Runtime{}, hearth.Errorf(hearth.CodeInvalid, "isolation %s has no runtime %q", info.Name, name).
					WithHint("%s", p.Remedy)
			}
		}
	}
	if len(have) > 0 {
		hint = "available: " + strings.Join(have, ", ") + "; without its number a language takes the newest: " + strings.Join(languages, ", ")
	}
	return driver.Runtime{}, hearth.Errorf(hearth.CodeInvalid, "isolation %s has no runtime %q", info.Name, name).WithHint("%s", hint)
}

// languageOf returns the language of a runtime such as python3.13.
func languageOf(runtime string) string { return strings.TrimRight(runtime, ".0123456789") }

// sameConfig tells whether two configurations mean the same.
func sameConfig(a, b hearth.Config) bool {
	norm := func(c hearth.Config) hearth.Config {
		c = c.WithDefaults() // one that an older Hearth stored lacks what is new
		if len(c.Env) == 0 {
			c.Env = nil
		}
		if len(c.Secrets) == 0 {
			c.Secrets = nil
		}
		if len(c.SecretFiles) == 0 {
			c.SecretFiles = nil
		}
		if len(c.Labels) == 0 {
			c.Labels = nil
		}
		if len(c.Routes) == 0 {
			c.Routes = nil
		}
		if len(c.CORS) == 0 {
			c.CORS = nil
		}
		if len(c.Schedules) == 0 {
			c.Schedules = nil
		}
		if len(c.Queues) == 0 {
			c.Queues = nil
		}
		if c.Cache != nil && len(c.Cache.TTL) == 0 {
			c.Cache = &hearth.Cache{Authorized: c.Cache.Authorized}
		}
		if c = c.Clone(); c.Async != nil {
			if len(c.Async.OnSuccess) == 0 {
				c.Async.OnSuccess = nil
			}
			if len(c.Async.OnFailure) == 0 {
				c.Async.OnFailure = nil
			}
		}
		return c
	}
	return reflect.DeepEqual(norm(a), norm(b))
}

// served returns v, which was not stored yet, as it is called: with the secrets and, if
// live is true, with the environment of the alias live.
func (s *API) served(ctx context.Context, v hearth.Version, live bool) (hearth.Version, error) {
	with, err := s.Secrets.WithSecrets(ctx, v)
	if err != nil || !live {
		return with, err
	}
	aliases, err := s.Aliases.Aliases(ctx, v.Function)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return with, nil // it is the first
	}
	for _, a := range aliases {
		if a.Name == hearth.Live {
			with = with.WithEnv(a.Env)
		}
	}
	return with, err
}

// verify numbers v and starts it as it is called. as is the incarnation of its
// instance, which is not that of v if it has secrets or live an environment.
func (s *API) verify(ctx context.Context, v hearth.Version, live bool) (_ hearth.Version, as string, err error) {
	number, err := s.Versions.NextNumber(ctx, v.Function)
	if err != nil {
		return v, "", err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	v.Number, v.Incarnation = number, hex.EncodeToString(id[:])
	started, err := s.served(ctx, v, live)
	if err != nil {
		return v, "", err
	}
	progressOf(ctx).step(stepStart, "starting version %d with %s on %s", number, v.Config.Runtime, v.Config.Isolation)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(v.Config.Timeout)+verifyGrace)
	defer cancel()
	if err := s.Verifier.Verify(ctx, &started); err != nil {
		// A start that goes on would leave an instance that nobody calls.
		s.Verifier.Retire(started.Incarnation)
		var e *hearth.Error
		if errors.As(err, &e) && e.Code == hearth.CodeFunction && e.Hint == "" {
			return v, "", e.WithHint("nothing was changed; correct the code and deploy it again")
		}
		return v, "", err
	}
	as, started.Incarnation, started.Config = started.Incarnation, v.Incarnation, v.Config
	return started, as, nil
}

// commitVersion stores v, which was started as said, and, if live is true, makes
// it so. Aliases may have changed since the deploy began, unless match forbids it.
// From here on it does not matter whether the client still waits: half a deploy is
// worse than one nobody saw.
func (s *API) commitVersion(ctx context.Context, v hearth.Version, as string, live bool, match condition) (hearth.Function, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.commit.Lock()
	defer s.commit.Unlock()
	f, err := s.storeVersion(ctx, v, live, match)
	if err != nil {
		s.Verifier.Retire(as)
		return f, err
	}
	if now, err := s.served(ctx, v, live); err == nil && now.Incarnation != as {
		s.Verifier.Retire(as) // a secret or the environment of live has changed since
	}
	if live {
		s.Traffic.Unwatch(f.Name) // no release by steps runs any more
	}
	if err := s.reload(ctx); err != nil {
		return f, err
	}
	if err := s.prune(ctx, f); err != nil {
		s.Logger.WarnContext(ctx, "old versions remain until the next deploy", "function", f.Name, "err", err)
	}
	return f, nil
}

// prune removes the versions of f that nothing needs.
func (s *API) prune(ctx context.Context, f hearth.Function) error {
	back, err := s.backs(ctx, f)
	if err != nil {
		return err
	}
	gone, err := s.Versions.PruneVersions(ctx, f.Name, s.KeepVersions, back)
	for _, v := range gone {
		s.Verifier.Retire(v.Incarnation)
	}
	return err
}

// reload makes calls follow the catalog.
func (s *API) reload(ctx context.Context) error {
	if err := s.Router.Reload(ctx); err != nil {
		return &hearth.Error{
			Code: hearth.CodeUnavailable, Message: "the change is stored, but calls do not follow it yet",
			Hint: "they will with the next deploy or restart of Hearth; its log says what is wrong", Err: err,
		}
	}
	return nil
}

// storeVersion writes v to the catalog.
func (s *API) storeVersion(ctx context.Context, v hearth.Version, live bool, match condition) (f hearth.Function, err error) {
	if err := s.checkTriggers(v.Function, v.Config); err != nil {
		return f, err
	}
	now, err := s.Catalog.Function(ctx, v.Function)
	switch {
	case hearth.ErrorCode(err) == hearth.CodeNotFound:
		f, _, err = s.Catalog.CreateFunction(ctx, v)
	case err == nil:
		if err = match.check(v.Function, &now); err == nil {
			f, _, err = s.Catalog.AddVersion(ctx, v, live, now.Generation)
		}
	}
	return f, err
}

// commitRemoval removes a function from the catalog and the routes.
func (s *API) commitRemoval(ctx context.Context, f hearth.Function) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.Catalog.DeleteFunction(ctx, f.Name, f.Generation); err != nil {
		return err
	}
	return s.reload(ctx)
}

// remove deletes a function.
func (s *API) remove(ctx context.Context, name string, match condition) (out hearth.Deleted, err error) {
	for _, l := range []*locks{&s.deploys, &s.changes} {
		unlock, err := l.lock(ctx, name)
		if err != nil {
			return out, err
		}
		defer unlock()
	}
	f, err := s.function(ctx, name)
	if err != nil {
		if match.exists && hearth.ErrorCode(err) == hearth.CodeNotFound {
			return out, match.check(name, nil)
		}
		return out, err
	}
	if err := match.check(name, &f); err != nil {
		return out, err
	}
	queues := s.queuesOf(name)
	if err := s.commitRemoval(ctx, f); err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
	defer cancel()
	canceled, err := s.unended(ctx, name)
	if err != nil {
		s.Logger.WarnContext(ctx, "counting the queued calls of a deleted function", "function", name, "error", err)
	}
	if err := s.Queue.Forget(ctx, name); err == nil {
		out.Canceled = canceled
	} else {
		// At the latest the next start of the server does it.
		s.Logger.WarnContext(ctx, "the queued calls of a deleted function remain", "function", name, "error", err)
	}
	if err := s.Logs.Delete(name); err != nil {
		// The function is gone all the same; nobody can repeat the request.
		s.Logger.WarnContext(ctx, "the logs of a deleted function remain", "function", name, "error", err)
	}
	out.Warnings = append([]string{}, s.strandedMessages(ctx, queues)...)
	return out, nil
}
