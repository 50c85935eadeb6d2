package hearth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Live is the alias that /fn/{name} and the function's own routes lead to. Every
// function has it.
const Live = "live"

// Alias is a movable name for a version of a function, or for a split of its
// calls between several.
type Alias struct {
	Name string `json:"name" doc:"Name of the alias; live is the one that /fn/NAME leads to" example:"live"`
	// Versions are the shares of calls, in percent, by version; together 100.
	Versions Weights `json:"versions" doc:"Versions with their shares of calls in percent, together 100"`
	// Sticky says by what callers stay with one version; empty means that each call
	// is decided anew.
	Sticky Sticky `json:"sticky,omitempty" doc:"By what callers stay with one version of a split: cookie, or header:NAME" example:"cookie"`
	// Env are environment variables that are added to those of the versions, or
	// replace them.
	Env map[string]string `json:"env,omitempty" doc:"Environment variables added to those of the version, or in their place"`
	// Routes lead to this alias. The routes of Live are those of the configuration
	// of its Main version; it has none here.
	Routes    []Route   `json:"routes,omitempty" doc:"Routes that lead to this alias; those of live are in the function's configuration"`
	UpdatedAt time.Time `json:"updated_at" doc:"When it was changed"`
}

// Main is the version with the greatest share, the older one of two with the
// same.
func (a Alias) Main() int {
	main, most := 0, 0
	for _, n := range a.Versions.Numbers() {
		if w := a.Versions[n]; w >= most {
			main, most = n, w
		}
	}
	return main
}

// Clone returns a copy that shares nothing with a.
func (a Alias) Clone() Alias {
	a.Versions, a.Env, a.Routes = maps.Clone(a.Versions), maps.Clone(a.Env), slices.Clone(a.Routes)
	return a
}

// maxSplit is how many versions an alias may split its calls between.
const maxSplit = 10

var aliasRE = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Validate checks the form of the alias, not whether its versions exist and its
// routes are free. Errors: CodeInvalid.
func (a Alias) Validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch {
	case !aliasRE.MatchString(a.Name):
		return bad("use at most 32 lower-case letters, digits and hyphens, starting with a letter", "alias name %q is not valid", clip(a.Name))
	case len(a.Versions) > maxSplit:
		return bad(fmt.Sprintf("use at most %d", maxSplit), "%d versions are too many for an alias", len(a.Versions))
	case a.Name == Live && len(a.Routes) > 0:
		return bad("write them into routes of hearth.yaml and deploy", "the alias live has the routes of its version")
	case len(a.Routes) > maxRoutes:
		return bad(fmt.Sprintf("use at most %d", maxRoutes), "%d routes are too many", len(a.Routes))
	}
	sum := 0
	for n, w := range a.Versions {
		if n < 1 || w < 1 || w > 100 {
			return bad("write for example 7=90,8=10", "a share of %d percent for version %d is not possible", w, n)
		}
		sum += w
	}
	if sum != 100 {
		return bad("give one version 100, or several so that they sum to 100", "the shares of alias %s sum to %d percent", a.Name, sum)
	}
	if err := a.Sticky.validate(); err != nil {
		return err
	}
	if err := validateEnv(a.Env); err != nil {
		return err
	}
	for i, r := range a.Routes {
		if err := r.Validate(); err != nil {
			return err
		}
		if slices.Contains(a.Routes[:i], r) {
			return bad("remove one of them", "route %q is given twice", r)
		}
	}
	return nil
}

// Weights are shares of calls in percent by version number. In text they are
// "7=90,8=10", or "7" for all calls.
type Weights map[int]int

// Numbers returns the version numbers, the greatest first.
func (w Weights) Numbers() []int {
	return slices.SortedFunc(maps.Keys(w), func(a, b int) int { return b - a })
}

// String returns the weights as ParseWeights reads them, the newest version first.
func (w Weights) String() string {
	numbers := w.Numbers()
	if len(numbers) == 1 && w[numbers[0]] == 100 {
		return strconv.Itoa(numbers[0])
	}
	parts := make([]string, len(numbers))
	for i, n := range numbers {
		parts[i] = strconv.Itoa(n) + "=" + strconv.Itoa(w[n])
	}
	return strings.Join(parts, ",")
}

// ParseWeights reads what String writes; shares may have a percent sign. It does
// not check their sum. Errors: CodeInvalid.
func ParseWeights(s string) (Weights, error) {
	w := Weights{}
	for part := range strings.SplitSeq(s, ",") {
		number, share, split := strings.Cut(strings.TrimSpace(part), "=")
		if !split {
			share = "100"
		}
		n, err := strconv.Atoi(strings.TrimSpace(number))
		p, err2 := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(share), "%"))
		if _, twice := w[n]; twice {
			return nil, Errorf(CodeInvalid, "version %d is given twice in %q", n, clip(s)).WithHint("remove one of them")
		}
		if err != nil || err2 != nil {
			return nil, Errorf(CodeInvalid, "%q is no share of versions", clip(s)).WithHint("write a version, such as 7, or shares in percent, such as 7=90,8=10")
		}
		w[n] = p
	}
	return w, nil
}

// Sticky says by what a caller stays with one version of a split: "" not at all,
// "cookie" by a cookie that Hearth sets, "header:NAME" by the value of a request
// header. While the share of a newer version grows, callers only ever move to it.
type Sticky string

// StickyCookie is Sticky by a cookie.
const StickyCookie Sticky = "cookie"

// Header returns the name of the header by which callers stay, "" if it is none.
func (s Sticky) Header() string {
	name, _ := strings.CutPrefix(string(s), "header:")
	if name == string(s) {
		return ""
	}
	return name
}

func (s Sticky) validate() error {
	if s == "" || s == StickyCookie || headerRE.MatchString(s.Header()) {
		return nil
	}
	return Errorf(CodeInvalid, "sticky %q is not valid", clip(string(s))).WithHint("write cookie, or header:NAME, for example header:X-User-Id")
}

// Target names what to call: a function, which means its live alias, or
// "function@alias" or "function@7" for an alias or a version of it.
type Target string

// Parts returns the function, and the alias or the version; both are empty for
// the live alias.
func (t Target) Parts() (function, alias string, version int, err error) {
	function, qualifier, qualified := strings.Cut(string(t), "@")
	switch n, numErr := strconv.Atoi(qualifier); {
	case !qualified || qualifier == Live:
		return function, "", 0, nil
	case numErr == nil && n > 0 && strconv.Itoa(n) == qualifier:
		return function, "", n, nil
	case aliasRE.MatchString(qualifier):
		return function, qualifier, 0, nil
	}
	return function, "", 0, Errorf(CodeNotFound, "%q is neither an alias nor a version", clip(qualifier)).
		WithHint("write for example %s@live or %s@7", clip(function), clip(function))
}

// WithEnv returns v with the environment of an alias. If it has any, the
// Incarnation is another one, as instances have their environment from their
// start.
func (v Version) WithEnv(env map[string]string) Version {
	if len(env) == 0 {
		return v
	}
	text, _ := json.Marshal(env) //nolint:errcheck // strings
	sum := sha256.Sum256(text)
	v.Config.Env = maps.Clone(v.Config.Env)
	if v.Config.Env == nil {
		v.Config.Env = map[string]string{}
	}
	maps.Copy(v.Config.Env, env)
	v.Incarnation += "-" + hex.EncodeToString(sum[:8])
	return v
}

// Deployment is a function as the data plane needs it.
type Deployment struct {
	Function   string
	Generation int64
	// Aliases include Live, by name.
	Aliases []Alias
	// Versions are those that the aliases name, by number.
	Versions map[int]*Version
	// Err is why what is stored of the function cannot be read; nil if it can.
	Err error
}
