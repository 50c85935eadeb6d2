package hearth

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Cron is what a cron expression means: the minutes that it matches or, if Every is not
// zero, a pause between two times. Its sets have a bit for each value, and AnyCron too
// where the field is a star: if neither Day nor Weekday is one, either may match.
type Cron struct {
	Minute, Hour, Day, Month, Weekday uint64
	// Every is in whole seconds.
	Every time.Duration
	// Zone is where its fields count, Text the expression without the zone.
	Zone *time.Location
	Text string
}

// AnyCron is the bit of a set of Cron that was written as a star.
const AnyCron = 1 << 63

// cronField is one of the five fields of an expression.
type cronField struct {
	name     string
	min, max int
	names    []string // of the values from min on
}

var cronFields = [5]cronField{
	{"minute", 0, 59, nil},
	{"hour", 0, 23, nil},
	{"day of month", 1, 31, nil},
	{"month", 1, 12, []string{"JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"}},
	{"day of week", 0, 7, []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}}, // 7 is Sunday, too
}

var cronNames = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

const (
	everyHint = "write a pause in whole seconds, for example '@every 90s' or '@every 1h30m'"
	fiveHint  = "write minute, hour, day of month, month and day of week, for example '0 3 * * *'"
)

// ParseCron reads a cron expression: five fields, @daily and the like, or @every with a
// duration. It counts in zone, unless CRON_TZ=ZONE before it says otherwise.
// Errors: CodeInvalid.
func ParseCron(expr string, zone *time.Location) (Cron, error) {
	c := Cron{Zone: zone, Text: strings.TrimSpace(expr)}
	bad := func(hint, format string, args ...any) (Cron, error) {
		return c, Errorf(CodeInvalid, "cron expression "+strconv.Quote(clip(expr))+" "+format, args...).WithHint("%s", hint)
	}
	if namesZone(c.Text) {
		name, rest, _ := strings.Cut(c.Text, " ")
		_, name, _ = strings.Cut(name, "=")
		var err error
		if c.Zone, err = loadZone(name); err != nil {
			return c, err
		}
		c.Text = strings.TrimSpace(rest)
	}
	text := c.Text
	if strings.HasPrefix(text, "@") {
		name, pause, _ := strings.Cut(text, " ")
		switch long := cronNames[text]; {
		case long != "":
			text = long
		case name != "@every":
			return bad("the names are @hourly, @daily, @weekly, @monthly, @yearly, and @every with a pause, such as '@every 90m'", "is not known")
		default:
			var err error
			if c.Every, err = time.ParseDuration(strings.TrimSpace(pause)); err != nil {
				return bad(everyHint, "has no pause after @every")
			}
			if c.Every < time.Second || c.Every%time.Second != 0 {
				return bad(everyHint, "has a pause that is not in whole seconds")
			}
			return c, nil
		}
	}
	fields := strings.Fields(text)
	switch len(fields) {
	case len(cronFields):
	case 0:
		return bad(fiveHint, "is empty")
	case 6, 7:
		return bad("cron expressions have five fields here: leave out that of the seconds, or of the year; '@every 10s' is what comes more often than each minute", "has %d fields", len(fields))
	default:
		return bad(fiveHint, "has not five fields but %d", len(fields))
	}
	for i, set := range []*uint64{&c.Minute, &c.Hour, &c.Day, &c.Month, &c.Weekday} {
		var wrong, hint string
		if *set, wrong, hint = cronFields[i].parse(fields[i]); wrong != "" {
			return bad(hint, "is wrong: %s", wrong)
		}
	}
	if c.Weekday&(1<<7) != 0 {
		c.Weekday = c.Weekday&^(1<<7) | 1
	}
	if c.never() {
		return bad("check day and month: no such day is in the calendar", "never comes")
	}
	return c, nil
}

// parse reads a list of values and ranges, each with a step. What is wrong is empty if
// nothing is.
func (f cronField) parse(text string) (set uint64, wrong, hint string) {
	values := "use numbers from " + strconv.Itoa(f.min) + " to " + strconv.Itoa(f.max)
	if f.names != nil {
		values += ", or names such as " + f.names[1]
	}
	values += "; * is all, 1,3 a list, 1-3 a range, */2 each second one"
	for part := range strings.SplitSeq(text, ",") {
		span, step, stepped := strings.Cut(part, "/")
		by := 1
		if stepped {
			var err error
			if by, err = strconv.Atoi(step); err != nil || by < 1 {
				return 0, strconv.Quote(clip(part)) + " has no step", "the step is a number from 1 on, as in */2"
			}
			by = min(by, f.max+1) // it comes to the same
		}
		low, high, ranged := strings.Cut(span, "-")
		from, to, known := f.min, f.max, true
		if span == "*" || span == "?" {
			if by == 1 {
				set |= AnyCron
			}
		} else {
			from, known = f.value(low)
			switch {
			case ranged:
				var ok bool
				if to, ok = f.value(high); !ok {
					known = false
				}
				if f.max == 7 && to == 0 && from > 0 {
					to = 7 // the Sunday after
				}
			case !stepped:
				to = from
			case to == 7 && from < 7:
				to-- // as of *
			}
		}
		if !known {
			return 0, strconv.Quote(clip(part)) + " is no " + f.name, values
		}
		if from > to {
			return 0, strconv.Quote(part) + " runs backwards as " + f.name, "write it as two: " + f.text(from) + "-" + f.text(f.max) + "," + f.text(f.min) + "-" + f.text(to)
		}
		for v := from; v <= to; v += by {
			set |= 1 << v
		}
	}
	return set, "", ""
}

// value reads a number or a name.
func (f cronField) value(text string) (v int, ok bool) {
	if i := slices.Index(f.names, strings.ToUpper(text)); i >= 0 {
		return f.min + i, true
	}
	v, err := strconv.Atoi(text)
	return v, err == nil && v >= f.min && v <= f.max
}

// text writes a value as it is understood by value.
func (f cronField) text(v int) string {
	if f.names != nil {
		return f.names[(v-f.min)%len(f.names)]
	}
	return strconv.Itoa(v)
}

// never tells whether no year has such a day.
func (c Cron) never() bool {
	if c.Weekday&AnyCron == 0 {
		return false
	}
	for m, days := range [...]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31} {
		if c.Month&(2<<m) != 0 && c.Day&(2<<days-1) != 0 {
			return false
		}
	}
	return true
}

// Matches tells whether the fields match the minute of t. With Every none does.
func (c Cron) Matches(t time.Time) bool {
	has := func(set uint64, v int) bool { return set&(1<<v) != 0 }
	t = t.In(c.Zone)
	day, weekday := has(c.Day, t.Day()), has(c.Weekday, int(t.Weekday()))
	both := day && weekday
	if (c.Day|c.Weekday)&AnyCron == 0 {
		both = day || weekday
	}
	return both && has(c.Minute, t.Minute()) && has(c.Hour, t.Hour()) && has(c.Month, int(t.Month()))
}

// namesZone tells whether a cron expression names a time zone.
func namesZone(expr string) bool {
	return strings.HasPrefix(expr, "TZ=") || strings.HasPrefix(expr, "CRON_TZ=")
}

// loadZone returns the time zone with the name. Errors: CodeInvalid.
func loadZone(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return nil, Errorf(CodeInvalid, "there is no time zone %q", clip(name)).
			WithHint("use a name of the IANA's list, as in Europe/Berlin, America/New_York or UTC")
	}
	return zone, nil
}
