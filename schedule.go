package hearth

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"
)

// Schedule is when a function is called by itself, and with what. Such a call is
// asynchronous: it is stored and retried as Async says.
type Schedule struct {
	// Cron is a cron expression of five fields, or "@every 15m" and the like; At is
	// one time, in RFC 3339, instead.
	Cron string `json:"cron,omitempty" yaml:"cron,omitempty" doc:"Cron expression: minute, hour, day of month, month, day of week" example:"0 3 * * *"`
	At   string `json:"at,omitempty" yaml:"at,omitempty" doc:"One time instead, as RFC 3339 has it" example:"2030-01-31T08:00:00Z"`
	// TimeZone is the IANA name of the zone in which Cron counts; default UTC.
	TimeZone string `json:"time_zone,omitempty" yaml:"time_zone,omitempty" doc:"Name of the time zone of cron; default UTC" example:"Europe/Berlin"`
	// Event is what the function gets; nil means a ScheduleEvent.
	Event any `json:"event,omitempty" yaml:"event,omitempty" doc:"What the function gets instead of an event that tells schedule and time"`
	// Missed is what becomes of times that passed while Hearth did not run; default
	// MissedOnce. Overlap is what becomes of a time at which the call before has not
	// ended; default OverlapSkip.
	Missed  string `json:"missed,omitempty" yaml:"missed,omitempty" enum:"skip,once,all" doc:"What becomes of times that passed while Hearth did not run: skip, once (the default) or all"`
	Overlap string `json:"overlap,omitempty" yaml:"overlap,omitempty" enum:"skip,queue,allow" doc:"What becomes of a time at which the call before has not ended: skip (the default), queue or allow"`
	// Alias is what is called; empty means Live.
	Alias string `json:"alias,omitempty" yaml:"alias,omitempty" doc:"Alias that is called; default live" example:"live"`
}

// What becomes of times that were missed.
const (
	// MissedSkip: nothing.
	MissedSkip = "skip"
	// MissedOnce: one call for the latest of them.
	MissedOnce = "once"
	// MissedAll: a call for each, for the latest MaxMissed at most.
	MissedAll = "all"
)

// What becomes of a time at which the call before has not ended.
const (
	// OverlapSkip: nothing.
	OverlapSkip = "skip"
	// OverlapQueue: one waits until it has ended; further ones are skipped.
	OverlapQueue = "queue"
	// OverlapAllow: another call, beside it.
	OverlapAllow = "allow"
)

const (
	// MaxMissed bounds the calls that MissedAll makes up for.
	MaxMissed = 100
	// MaxSchedules bounds the schedules of a function.
	MaxSchedules = 100
	maxCron      = 256
)

// WithDefaults returns s with TimeZone, Missed, Overlap and Alias set.
func (s Schedule) WithDefaults() Schedule {
	for _, d := range []struct {
		field *string
		value string
	}{{&s.Missed, MissedOnce}, {&s.Overlap, OverlapSkip}, {&s.Alias, Live}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if s.TimeZone == "" && s.Cron != "" && !namesZone(s.Cron) {
		s.TimeZone = "UTC"
	}
	return s
}

// Time returns At to the second, the zero time if it is empty. Errors: CodeInvalid.
func (s Schedule) Time() (time.Time, error) {
	if s.At == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s.At)
	if err != nil || t.Year() > 9999 || t.Year() < 1970 {
		return time.Time{}, Errorf(CodeInvalid, "%q is not a time", clip(s.At)).WithHint("write it as RFC 3339, for example 2030-01-31T08:00:00Z")
	}
	return t.UTC().Truncate(time.Second), nil
}

// Expression returns what Cron means, which is not empty. Errors: CodeInvalid.
func (s Schedule) Expression() (Cron, error) {
	zone := time.UTC
	if s.TimeZone != "" {
		if namesZone(s.Cron) {
			return Cron{}, Errorf(CodeInvalid, "cron and time_zone both name a time zone").WithHint("remove one of them")
		}
		var err error
		if zone, err = loadZone(s.TimeZone); err != nil {
			return Cron{}, err
		}
	}
	return ParseCron(s.Cron, zone)
}

var scheduleRE = regexp.MustCompile(`^[a-z]([a-z0-9_-]{0,61}[a-z0-9])?$`)

func (s Schedule) validate(name string) error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, "schedules."+clip(name)+": "+format, args...).WithHint("%s", hint)
	}
	if !scheduleRE.MatchString(name) {
		return Errorf(CodeInvalid, "schedule name %q is not valid", clip(name)).
			WithHint("use at most 63 lower-case letters, digits, hyphens and underscores, starting with a letter")
	}
	event, err := json.Marshal(s.Event)
	_, timeErr := s.Time()
	all := s.WithDefaults()
	switch {
	case s.Cron != "" && s.At != "":
		return bad("remove one of them", "it has both cron and at")
	case s.Cron == "" && s.At == "":
		return bad("write for example cron: '0 3 * * *', or at: 2030-01-31T08:00:00Z", "it needs one of cron and at")
	case timeErr != nil:
		return bad(AsError(timeErr).Hint, "at: %s", AsError(timeErr).Message)
	case len(s.Cron) > maxCron || len(s.TimeZone) > maxCron:
		return bad("examples: '0 3 * * *', '*/15 8-18 * * MON-FRI', '@every 90m'", "cron or time_zone is longer than 256 bytes")
	case s.TimeZone != "" && s.At != "":
		return bad("write the offset into it, for example 2030-01-31T08:00:00+01:00", "at has its time zone in itself")
	case err != nil || len(event) > maxCall:
		return bad("give a JSON value of at most "+Bytes(maxCall).String(), "event is not valid")
	case all.Missed != MissedSkip && all.Missed != MissedOnce && all.Missed != MissedAll:
		return bad("choose skip, once or all", "missed %q is not known", clip(s.Missed))
	case all.Overlap != OverlapSkip && all.Overlap != OverlapQueue && all.Overlap != OverlapAllow:
		return bad("choose skip, queue or allow", "overlap %q is not known", clip(s.Overlap))
	case all.Missed == MissedAll && all.Overlap != OverlapAllow:
		return bad("add overlap: allow, or use missed: once", "missed: all would be cut short by overlap: %s, as the calls come at once", all.Overlap)
	case !aliasRE.MatchString(all.Alias):
		return bad("hearth alias list NAME shows them", "alias %q is not valid", clip(s.Alias))
	case s.At != "":
		return nil
	}
	if _, err := s.Expression(); err != nil {
		return bad(AsError(err).Hint, "%s", AsError(err).Message)
	}
	return nil
}

func (c Config) validateSchedules() error {
	if len(c.Schedules) > MaxSchedules {
		return Errorf(CodeInvalid, "%d schedules are too many", len(c.Schedules)).WithHint("use at most %d", MaxSchedules)
	}
	for name, s := range c.Schedules {
		if err := s.validate(name); err != nil {
			return err
		}
	}
	return nil
}

// ScheduleKey is that by which the call of a firing is stored once only.
func ScheduleKey(function, schedule, of string) string {
	return SchedulePrefix + function + "/" + schedule + "/" + of
}

// Scheduled tells whether a schedule made the call.
func (c AsyncCall) Scheduled() bool { return strings.HasPrefix(c.DeduplicationKey, SchedulePrefix) }

// SchedulePrefix begins the deduplication keys of schedules, and of nothing else.
const SchedulePrefix = "schedule/"

// ScheduleState is what is stored of a schedule. Zero times mean never.
type ScheduleState struct {
	Function, Name string
	// Spec is by what its times are known. When it changes, those before count no more.
	Spec string
	// Done is until when its times have been dealt with.
	Done time.Time
	// Mark is until when they had been dealt with before the clock was set back far: a time
	// until then that is missed was not missed.
	Mark time.Time
	// Waiting is the time whose call waits until the one before has ended.
	Waiting time.Time
	Paused  bool
	// Last is the latest call that was made or asked for again, Skipped the latest time
	// for which none was made.
	Last    ScheduleLast
	Skipped ScheduleSkip
}

// ScheduleLast is a call that a schedule made.
type ScheduleLast struct {
	// Due is the time of the schedule, At when the call was stored.
	Due        time.Time `json:"due" doc:"Time of the schedule"`
	At         time.Time `json:"at" doc:"When the call was stored"`
	Invocation string    `json:"invocation" doc:"Id of the call"`
	// State is empty if the call is no longer kept.
	State AsyncState `json:"state,omitempty" doc:"State of the call; missing if it is no longer kept" enum:"queued,running,succeeded,failed,canceled"`
}

// ScheduleSkip is a time for which there was no call.
type ScheduleSkip struct {
	Due    time.Time `json:"due" doc:"Time of the schedule"`
	Reason string    `json:"reason" doc:"Why there was no call" example:"the call before had not ended (overlap: skip)"`
}

// ScheduleFiring is a time of a schedule that has come.
type ScheduleFiring struct {
	Function, Name, Spec string
	Due                  time.Time
	Overlap              string
	// Waiting tells that it is ScheduleState.Waiting that is to be called now.
	Waiting bool
	// Manual tells that it was asked for: the schedule's own times stay. Under a Key that
	// is not empty it is stored once only.
	Manual bool
	Key    string
	// Skip is why there is to be no call; empty if there is to be one.
	Skip string
	// Entry is the call.
	Entry AsyncEntry
}

// ScheduleStatus is a schedule as it is now.
type ScheduleStatus struct {
	Function string `json:"function" doc:"Name of the function" example:"hello"`
	Name     string `json:"name" doc:"Name of the schedule" example:"nightly"`
	Schedule
	Paused bool `json:"paused" doc:"Whether it is paused"`
	// Next are its next times, none if it is paused or has no more.
	Next    []time.Time   `json:"next" doc:"Its next times; none if it is paused or has no more"`
	Waiting time.Time     `json:"waiting,omitzero" doc:"Time whose call waits until the one before has ended"`
	Last    *ScheduleLast `json:"last,omitempty" doc:"Latest call; missing if there was none"`
	Skipped *ScheduleSkip `json:"skipped,omitempty" doc:"Latest time for which there was no call"`
}

// FunctionSchedules are the schedules of a function.
type FunctionSchedules struct {
	Function  string
	Schedules map[string]Schedule
	// Unknown tells that the function cannot be served, so that its schedules are not
	// known: nothing is called, and nothing forgotten.
	Unknown bool
}
