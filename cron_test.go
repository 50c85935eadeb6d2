package hearth_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/hearthrun/hearth"
)

// TestCronForms: what can be no schedule is refused, and says what is wrong and what to
// write instead.
func TestCronForms(t *testing.T) {
	for _, c := range []struct {
		s          hearth.Schedule
		want, hint string
	}{
		{hearth.Schedule{Cron: "0 3 * *"}, "has not five fields but 4", "minute, hour"},
		{hearth.Schedule{Cron: "0 0 3 * * *"}, "has 6 fields", "'@every 10s'"},
		{hearth.Schedule{Cron: "TZ=UTC"}, "is empty", "'0 3 * * *'"},
		{hearth.Schedule{Cron: "CRON_TZ="}, "no time zone", "Europe/Berlin"},
		{hearth.Schedule{Cron: "0 0 31 2 *"}, "never comes", "check day and month"},
		{hearth.Schedule{Cron: "0 0 30-31 FEB *"}, "never comes", "check day and month"},
		{hearth.Schedule{Cron: "0 0 29 2 *"}, "", ""},
		{hearth.Schedule{Cron: "0 0 31 2 MON"}, "", ""},
		{hearth.Schedule{Cron: "@reboot"}, `"@reboot" is not known`, "@hourly"},
		{hearth.Schedule{Cron: "@nightly"}, `"@nightly" is not known`, "@daily"},
		{hearth.Schedule{Cron: "0 3 * * *", TimeZone: "Europe/Atlantis"}, "no time zone", "as in Europe/Berlin"},
		{hearth.Schedule{Cron: "0 3 * * *", TimeZone: "UTC 0"}, "no time zone", ""},
		{hearth.Schedule{Cron: "0 3 * * *", TimeZone: "Local"}, "no time zone", ""},
		{hearth.Schedule{Cron: "TZ=UTC 0 3 * * *", TimeZone: "UTC"}, "both name a time zone", "remove one"},
		{hearth.Schedule{Cron: "@every 15m"}, "", ""},
		{hearth.Schedule{Cron: "@every"}, "no pause after @every", "'@every 90s'"},
		{hearth.Schedule{Cron: "@every 5"}, "no pause after @every", "'@every 90s'"},
		{hearth.Schedule{Cron: "@every -90m"}, "not in whole seconds", ""},
		{hearth.Schedule{Cron: "@every 0s"}, "not in whole seconds", ""},
		{hearth.Schedule{Cron: "@every 10ms"}, "not in whole seconds", ""},
		{hearth.Schedule{Cron: "@every 1500ms", TimeZone: "Europe/Berlin"}, "not in whole seconds", ""},
		{hearth.Schedule{Cron: "*/5 8-18 * * MON-FRI", TimeZone: "America/New_York"}, "", ""},
		{hearth.Schedule{Cron: "60 * * * *"}, `"60" is no minute`, "numbers from 0 to 59"},
		{hearth.Schedule{Cron: "0 24 * * *"}, `"24" is no hour`, "numbers from 0 to 23"},
		{hearth.Schedule{Cron: "0 3 0 * *"}, `"0" is no day of month`, "numbers from 1 to 31"},
		{hearth.Schedule{Cron: "0 3 L * *"}, `"L" is no day of month`, "numbers from 1 to 31"},
		{hearth.Schedule{Cron: "0 3 * JANUARY *"}, `"JANUARY" is no month`, "names such as FEB"},
		{hearth.Schedule{Cron: "0 3 * * 8"}, `"8" is no day of week`, "numbers from 0 to 7, or names such as MON"},
		{hearth.Schedule{Cron: "0 3 * * MON,"}, `"" is no day of week`, ""},
		{hearth.Schedule{Cron: "0 3 * * MON-"}, `"MON-" is no day of week`, ""},
		{hearth.Schedule{Cron: "*/0 * * * *"}, `"*/0" has no step`, "as in */2"},
		{hearth.Schedule{Cron: "*/ * * * *"}, `"*/" has no step`, ""},
		{hearth.Schedule{Cron: "0 22-2 * * *"}, `"22-2" runs backwards`, "22-23,0-2"},
		{hearth.Schedule{Cron: "0 3 * * FRI-MON"}, `"FRI-MON" runs backwards`, "FRI-SUN,SUN-MON"},
		{hearth.Schedule{Cron: "0 3 * * FRI-SUN,SUN-MON"}, "", ""},
		{hearth.Schedule{At: "2030-01-31T08:00:00+01:00"}, "", ""},
	} {
		cfg := hearth.Config{Runtime: "python", Schedules: map[string]hearth.Schedule{"x": c.s}}
		err := cfg.WithDefaults().Validate()
		if c.want == "" && err != nil {
			t.Errorf("%+v: %v", c.s, err)
		}
		if c.want != "" && (hearth.ErrorCode(err) != hearth.CodeInvalid || !strings.Contains(err.Error(), "schedules.x: ") ||
			!strings.Contains(err.Error(), c.want) || !strings.Contains(hearth.AsError(err).Hint, c.hint)) {
			t.Errorf("%+v: %v (%s)", c.s, err, hearth.AsError(err).Hint)
		}
	}
}

// TestWarmSchedules: those of warm are the same expressions, without pauses.
func TestWarmSchedules(t *testing.T) {
	for text, ok := range map[string]bool{
		"* 8-18 * * MON-FRI": true, "CRON_TZ=Europe/Berlin 50-59 6 * * *": true, "@hourly": true,
		"@every 1h": false, "TZ=UTC": false, "CRON_TZ=UTC * *": false, "whenever": false, "TZ=Nowhere/None * * * * *": false,
	} {
		err := hearth.Config{Runtime: "python", Warm: hearth.Warm{Min: 1, Schedule: text}}.WithDefaults().Validate()
		if (err == nil) != ok || err != nil && (hearth.ErrorCode(err) != hearth.CodeInvalid || hearth.AsError(err).Hint == "") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func parseCron(t *testing.T, text string) hearth.Cron {
	t.Helper()
	c, err := hearth.ParseCron(text, time.UTC)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

// TestSunday: it is 0 and 7, as the end of a range too.
func TestSunday(t *testing.T) {
	for text, want := range map[string]string{
		"7": "0", "SUN": "0", "sun": "0", "1-7": "*", "0-7": "0-6", "5-7": "5,6,0", "FRI-SUN": "5,6,0", "MON,7": "0,1", "3-7/2": "3,5,0", "1/2": "1,3,5",
	} {
		got, as := parseCron(t, "0 3 * * "+text).Weekday, parseCron(t, "0 3 * * "+want).Weekday
		if want == "*" {
			as &^= hearth.AnyCron
		}
		if got != as {
			t.Errorf("%s is %b, and %s is %b", text, got, want, as)
		}
	}
}

// TestCronAsLibrary: expressions mean what they mean to the library that finds their
// times, and Matches is of the same minutes.
func TestCronAsLibrary(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	part := func(low, high int, names ...string) string {
		value := func(v int) string {
			if names != nil && r.IntN(2) == 0 {
				return names[v-low]
			}
			return fmt.Sprint(v)
		}
		var list []string
		for range 1 + r.IntN(3) {
			a := low + r.IntN(high-low+1)
			b := a + r.IntN(high-a+1)
			step := 1 + r.IntN(4)
			list = append(list, []string{"*", value(a), value(a) + "-" + value(b), fmt.Sprintf("*/%d", step), fmt.Sprintf("%s-%s/%d", value(a), value(b), step), fmt.Sprintf("%s/%d", value(a), step)}[r.IntN(6)])
		}
		return strings.Join(list, ",")
	}
	now := time.Date(2026, 5, 5, 12, 0, 0, 0, time.UTC)
	texts := []string{"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly", "? ? ? ? ?"}
	for range 2000 {
		texts = append(texts, strings.Join([]string{
			part(0, 59), part(0, 23), part(1, 31),
			part(1, 12, "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
			part(0, 6, "SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
		}, " "))
	}
	for _, text := range texts {
		parsed, err := cron.ParseStandard("TZ=UTC " + text)
		if err != nil {
			t.Fatal(err)
		}
		want := parsed.(*cron.SpecSchedule)
		c, err := hearth.ParseCron(text, time.UTC)
		if never := want.Next(now).IsZero(); never || err != nil {
			if !never || err == nil {
				t.Errorf("%s: %v, and it comes: %t", text, err, !never)
			}
			continue
		}
		if c.Minute != want.Minute || c.Hour != want.Hour || c.Day != want.Dom || c.Month != want.Month || c.Weekday != want.Dow {
			t.Errorf("%s: got %+v, want %+v", text, c, *want)
		}
		for range 50 {
			at := now.Add(time.Duration(r.IntN(365*24*60)) * time.Minute)
			if got := want.Next(at.Add(-time.Second)).Equal(at); c.Matches(at.Add(30*time.Second)) != got {
				t.Errorf("%s matches %s: want %t", text, at, got)
			}
		}
	}
}

func TestCronSteps(t *testing.T) {
	for _, expression := range []string{"1/9223372036854775807 * * * *", "0 */24 * * *", "*/60 * * * *"} {
		if _, err := hearth.ParseCron(expression, time.UTC); err != nil {
			t.Errorf("%s: %v", expression, err)
		}
	}
}
