package pool

import (
	"testing"

	"github.com/hearthrun/hearth"
)

func TestBadSchedules(t *testing.T) {
	for _, s := range []string{"TZ=UTC", "CRON_TZ=", "CRON_TZ=UTC * *", "x", "TZ=Nowhere/None * * * * *"} {
		if _, err := newSchedule(hearth.Warm{Min: 1, Schedule: s}); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Errorf("%q: %v", s, err)
		}
	}
}
