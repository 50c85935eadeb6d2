package hearth

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Release is a change of the version that Live leads to: at once, or by steps
// that end in a rollback when the new version is worse than the old one.
type Release struct {
	// ID grows with each release of an installation.
	ID       int64        `json:"id" doc:"Id of the release"`
	Function string       `json:"function" doc:"Name of the function" example:"hello"`
	Kind     ReleaseKind  `json:"kind" doc:"What asked for it: a deploy, a release of a version that was there, or a rollback" enum:"deploy,release,rollback"`
	State    ReleaseState `json:"state" doc:"running, done, rolled_back (by itself), aborted (somebody asked for it) or superseded (by another release)" enum:"running,done,rolled_back,aborted,superseded"`
	// From and To are versions; From is 0 for a function's first.
	From int `json:"from" doc:"Version that was live before; 0 if there was none"`
	To   int `json:"to" doc:"Version that is to be live"`
	// Canary has the steps; nil for a release at once.
	Canary *Canary `json:"canary,omitempty" doc:"The steps; missing for a release at once"`
	// Step is the index of the running or last step in Canary.Shares.
	Step int `json:"step" doc:"Index of the running or the last step"`
	// Reason says in words what the release waits for or why it ended.
	Reason    string     `json:"reason,omitempty" doc:"In words: what it waits for, or why it ended"`
	StartedAt time.Time  `json:"started_at" doc:"When it began"`
	StepAt    time.Time  `json:"step_at" doc:"When the step began"`
	EndedAt   *time.Time `json:"ended_at,omitempty" doc:"When it ended; missing while it runs"`
}

// ReleaseKind is what asked for a release.
type ReleaseKind string

// Kinds of releases.
const (
	ReleaseDeploy   ReleaseKind = "deploy"
	ReleaseVersion  ReleaseKind = "release"
	ReleaseRollback ReleaseKind = "rollback"
)

// ReleaseState is how far a release is.
type ReleaseState string

// States of releases.
const (
	ReleaseRunning    ReleaseState = "running"
	ReleaseDone       ReleaseState = "done"
	ReleaseRolledBack ReleaseState = "rolled_back"
	ReleaseAborted    ReleaseState = "aborted"
	ReleaseSuperseded ReleaseState = "superseded"
)

// Canary is how a release proceeds by steps.
type Canary struct {
	// Shares are what the new version has of the calls, in percent, one for each
	// step; after the last it has all.
	Shares []int `json:"shares" doc:"Share of the new version in each step, in percent; after the last it has all" example:"[10,50]"`
	// Step is how long each lasts at least.
	Step Duration `json:"step,omitempty" doc:"How long each step lasts at least; default 5m" example:"5m"`
	// RollbackOn are conditions joined by "|", of which any ends the release; see
	// ParseConditions.
	RollbackOn string `json:"rollback_on,omitempty" doc:"Conditions under which the old version gets all calls again, joined by |: error_rate, p50, p90, p95 or p99, then >, then a value (2%, 300ms) or how often that of the old version (2x)" example:"error_rate>2%|p99>2x"`
	// MinCalls is how many calls of the new version each step needs before it is
	// judged or ends.
	MinCalls int `json:"min_calls,omitempty" doc:"How many calls of the new version a step needs before it is judged or ends; default 20" example:"20"`
}

// Defaults and limits of Canary.
const (
	DefaultCanaryStep     = 5 * time.Minute
	DefaultCanaryMinCalls = 20
	DefaultRollbackOn     = "error_rate>2%|p99>2x"
	maxCanarySteps        = 100
	maxCanaryStep         = 7 * 24 * time.Hour
)

// WithDefaults returns c with every empty field set. One share s becomes the
// steps s, 2·s, … below 100.
func (c Canary) WithDefaults() Canary {
	if len(c.Shares) == 1 && c.Shares[0] > 0 && c.Shares[0] < 100 {
		s := c.Shares[0]
		c.Shares = nil
		for share := s; share < 100; share += s {
			c.Shares = append(c.Shares, share)
		}
	}
	if c.Step == 0 {
		c.Step = Duration(DefaultCanaryStep)
	}
	if c.RollbackOn == "" {
		c.RollbackOn = DefaultRollbackOn
	}
	if c.MinCalls == 0 {
		c.MinCalls = DefaultCanaryMinCalls
	}
	return c
}

// Validate expects the defaults to be filled in. Errors: CodeInvalid.
func (c Canary) Validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	if len(c.Shares) == 0 || len(c.Shares) > maxCanarySteps {
		return bad("write for example 10% or 10%,50%", "a canary needs 1 to %d shares", maxCanarySteps)
	}
	last := 0
	for _, s := range c.Shares {
		if s < 1 || s > 99 {
			return bad("write for example 10% or 10%,50%; without a canary all calls change at once, and a preview gets none", "a share of a canary is between 1%% and 99%%, not %d%%", s)
		}
		if s <= last {
			return bad("write them in the order in which they grow, for example 10%,50%", "the shares of a canary grow: %d%% cannot come after %d%%", s, last)
		}
		last = s
	}
	if c.Step < 0 || time.Duration(c.Step) > maxCanaryStep {
		return bad("choose at most "+Duration(maxCanaryStep).String(), "a step of %s is out of range", c.Step)
	}
	if c.MinCalls < 0 || c.MinCalls > 1_000_000 {
		return bad("choose at most 1000000", "%d calls are out of range", c.MinCalls)
	}
	_, err := ParseConditions(c.RollbackOn)
	return err
}

// Condition is one comparison of a new version: Metric is greater than Value, or
// than Value times that of the old version.
type Condition struct {
	// Metric is "error_rate", "p50", "p90", "p95" or "p99".
	Metric string
	// Value is a share (0.02), a number of seconds or, if Relative, a factor.
	Value    float64
	Relative bool
}

// String returns the condition as ParseConditions reads it.
func (c Condition) String() string {
	switch {
	case c.Relative:
		return c.Metric + ">" + strconv.FormatFloat(c.Value, 'g', -1, 64) + "x"
	case c.Metric == "error_rate":
		return c.Metric + ">" + strconv.FormatFloat(c.Value*100, 'g', 6, 64) + "%"
	}
	return c.Metric + ">" + Duration(c.Value*float64(time.Second)).String()
}

// ParseConditions reads conditions joined by "|", such as
// "error_rate>2%|p99>2x|p50>300ms". Errors: CodeInvalid.
func ParseConditions(s string) ([]Condition, error) {
	var list []Condition
	for part := range strings.SplitSeq(s, "|") {
		c, why := parseCondition(strings.TrimSpace(part))
		if why != "" {
			return nil, Errorf(CodeInvalid, "the condition %q is not valid: %s", clip(part), why).
				WithHint("write for example error_rate>2%%|p99>2x|p50>300ms")
		}
		list = append(list, c)
	}
	return list, nil
}

func parseCondition(s string) (c Condition, why string) {
	metric, value, ok := strings.Cut(s, ">")
	if !ok {
		return c, "it has no >"
	}
	c.Metric, value = strings.TrimSpace(metric), strings.TrimSpace(value)
	rate := c.Metric == "error_rate"
	switch c.Metric {
	case "error_rate", "p50", "p90", "p95", "p99":
	default:
		return c, "there is no metric " + strconv.Quote(clip(c.Metric)) + ", but error_rate, p50, p90, p95 and p99"
	}
	number := func(text string) bool {
		n, err := strconv.ParseFloat(text, 64)
		c.Value = n
		return err == nil && n >= 0 && n < 1e6
	}
	if factor, ok := strings.CutSuffix(value, "x"); ok {
		c.Relative = true
		if !number(factor) || c.Value < 1 {
			return c, "its factor is no number of at least 1"
		}
		return c, ""
	}
	if rate {
		percent, ok := strings.CutSuffix(value, "%")
		if !ok || !number(percent) || c.Value > 100 {
			return c, "its value is neither a percentage nor a factor"
		}
		c.Value /= 100
		return c, ""
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return c, "its value is neither a duration nor a factor"
	}
	c.Value = d.Seconds()
	return c, ""
}

// ParseShares reads the shares of a canary, "10%" or "10%,50%".
// Errors: CodeInvalid.
func ParseShares(s string) ([]int, error) {
	var shares []int
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(part), "%"))
		if err != nil {
			return nil, Errorf(CodeInvalid, "%q is no share of calls", clip(s)).WithHint("write for example 10%% or 10%%,50%%")
		}
		shares = append(shares, n)
	}
	return shares, nil
}

// Traffic is what calls of one version were like over a while.
type Traffic struct {
	Calls int64 `json:"calls"`
	// Errors are calls that ended with an error of the function or the platform,
	// those that were refused left out.
	Errors int64 `json:"errors"`
	// Left are calls whose callers left before the answer began. Those that had run
	// for long are among Calls and Errors, too: see package telemetry.
	Left int64 `json:"left"`
	// Percentiles of the durations, in seconds, by 50, 90, 95 and 99.
	Percentiles map[int]float64 `json:"percentiles"`
}

// noise is a difference of durations that factors do not count, in seconds: of two
// calls that take next to no time one easily takes twice as long.
const noise = 0.01

// Breaks tells whether the traffic of a new version fulfils the condition beside
// that of the old one, and says it in words. An error rate counts only if it is
// above that of the old version, which may suffer from the same cause; a
// percentile only if there were enough calls for one to lie above it (100 for
// p99); a factor only if the old version had such calls, too, and, of durations,
// if the difference is above 10 ms.
func (c Condition) Breaks(fresh, old Traffic) (string, bool) {
	value := func(t Traffic) float64 {
		if c.Metric == "error_rate" {
			return float64(t.Errors) / float64(max(1, t.Calls))
		}
		p, _ := strconv.Atoi(c.Metric[1:]) //nolint:errcheck // checked by ParseConditions
		return t.Percentiles[p]
	}
	enough := func(t Traffic) bool {
		p, _ := strconv.Atoi(c.Metric[1:]) //nolint:errcheck // checked by ParseConditions
		return t.Calls > 0 && (c.Metric == "error_rate" || t.Calls >= int64(100/(100-p)))
	}
	v, was := value(fresh), value(old)
	if !enough(fresh) || c.Relative && !enough(old) {
		return "", false
	}
	limit := c.Value
	if c.Relative {
		if limit = was * c.Value; was == 0 || c.Metric != "error_rate" && v-was <= noise {
			return "", false
		}
	}
	if v <= limit || c.Metric == "error_rate" && v <= was {
		return "", false
	}
	show := func(v float64) string {
		if c.Metric == "error_rate" {
			return strconv.FormatFloat(v*100, 'f', 1, 64) + "%"
		}
		return Duration(time.Duration(v * float64(time.Second)).Round(10 * time.Microsecond)).String()
	}
	return fmt.Sprintf("%s: %s is %s, and %s with the old version", c, c.Metric, show(v), show(was)), true
}
