package queue

import (
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func timesOf(t *testing.T, cron, zone string) times {
	t.Helper()
	s, err := parseTimes(hearth.Schedule{Cron: cron, TimeZone: zone})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func listed(list []time.Time) string {
	var text []string
	for _, t := range list {
		text = append(text, t.UTC().Format("01-02T15:04:05"))
	}
	return strings.Join(text, " ")
}

// TestDST: a time that the clock leaps over is left out that day, one that it has
// twice comes twice.
func TestDST(t *testing.T) {
	night := timesOf(t, "30 2 * * *", "Europe/Berlin")
	for _, c := range []struct {
		from time.Time
		want string
	}{
		{time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC), "03-28T01:30:00 03-30T00:30:00"},
		{time.Date(2026, 10, 24, 0, 0, 0, 0, time.UTC), "10-24T00:30:00 10-25T00:30:00 10-25T01:30:00 10-26T01:30:00"},
	} {
		if got := listed(night.between(c.from, c.from.Add(72*time.Hour), 10)); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// TestBetween: the latest times are found, however long ago the first was.
func TestBetween(t *testing.T) {
	now := time.Date(2026, 5, 5, 12, 0, 30, 0, time.UTC)
	for _, c := range []struct {
		cron string
		done time.Time
		want string
	}{
		{"* * * * *", now.AddDate(-50, 0, 0), "05-05T11:58:00 05-05T11:59:00 05-05T12:00:00"},
		{"* * * * *", now.Add(-31 * time.Second), "05-05T12:00:00"},
		{"* * * * *", now.Add(-30 * time.Second), ""},
		{"0 0 29 2 *", now.AddDate(-50, 0, 0), "02-29T00:00:00 02-29T00:00:00"},
		{"CRON_TZ=Pacific/Apia 0 0 * * SUN", now.AddDate(-50, 0, 0), "04-18T11:00:00 04-25T11:00:00 05-02T11:00:00"},
		{"0 0 1 1 *", now.AddDate(0, -6, 0), "01-01T00:00:00"},
		{"@every 1s", now.AddDate(-50, 0, 0), "05-05T12:00:28 05-05T12:00:29 05-05T12:00:30"},
		{"@every 1h", now.Add(-90 * time.Minute), "05-05T11:30:30"},
	} {
		began := time.Now()
		if got := listed(timesOf(t, c.cron, "").between(c.done, now, 3)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.cron, got, c.want)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("%s took %s", c.cron, d)
		}
	}
}

// TestNext: the times that are shown are those that come, also of a schedule whose times
// follow from the one before.
func TestNext(t *testing.T) {
	now := time.Date(2026, 5, 5, 12, 0, 30, 0, time.UTC)
	for _, c := range []struct {
		cron string
		done time.Time
		want string
	}{
		{"* * * * *", now.Add(-time.Hour), "05-05T12:01:00 05-05T12:02:00"},
		{"@every 1h", now.Add(-50 * time.Minute), "05-05T12:10:30 05-05T13:10:30"},
		{"@every 1h", now.Add(-50 * time.Hour), "05-05T13:00:30 05-05T14:00:30"},
		{"@every 1h", now.Add(50 * time.Minute), "05-05T13:50:30 05-05T14:50:30"},
		{"@every 1h", time.Time{}, "05-05T13:00:30 05-05T14:00:30"},
	} {
		if got := listed(timesOf(t, c.cron, "").next(c.done, now, 2)); got != c.want {
			t.Errorf("%s after %s: got %s, want %s", c.cron, c.done, got, c.want)
		}
	}
}
