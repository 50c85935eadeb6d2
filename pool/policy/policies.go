package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy is one way to keep functions warm.
type Policy struct {
	// Name is as PolicyNamed takes it.
	Name string
	// New returns what learns one function.
	New func() Learner
}

// Baseline is the policy that others are measured by: 10 minutes for all, as the
// big providers had when the paper was written.
const Baseline = "fixed"

// PolicyNames are the policies worth comparing.
func PolicyNames() []string {
	return []string{Baseline, "none", "fixed:1h", "hybrid", "hybrid-4h", "history"}
}

// PolicyNamed returns a policy: one of PolicyNames, or one with a duration of
// one's own, fixed:DURATION or history:PRICE.
func PolicyNamed(name string) (Policy, error) {
	kind, arg, hasArg := strings.Cut(name, ":")
	var d time.Duration
	if hasArg {
		var err error
		if d, err = time.ParseDuration(arg); err != nil || d <= 0 {
			return Policy{}, fmt.Errorf("policy %q: %q is not a positive duration such as 20m", name, arg)
		}
		if kind != "fixed" && kind != "history" {
			return Policy{}, fmt.Errorf("policy %q: only fixed and history take a duration", name)
		}
	}
	p := Policy{Name: name}
	switch kind {
	case "none":
		p.New = func() Learner { return NoKeepAlive }
	case "fixed":
		if !hasArg {
			d = fallback
		}
		p.New = func() Learner { return Fixed(d) }
	case "hybrid":
		p.New = func() Learner { return new(Hybrid) }
	case "hybrid-4h":
		p.New = func() Learner { return &Hybrid{Wide: true} }
	case "history":
		p.New = func() Learner { return &History{Price: d} }
	default:
		names := slices.Sorted(slices.Values(PolicyNames()))
		return Policy{}, fmt.Errorf("there is no policy %q; choose from %s", name, strings.Join(names, ", "))
	}
	return p, nil
}
