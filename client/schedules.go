package client

import (
	"context"
	"net/http"

	"github.com/hearthrun/hearth"
)

// Schedules returns the schedules of a function or, if name is empty, of all, sorted
// by function and name. Errors: CodeNotFound.
func (c *Client) Schedules(ctx context.Context, name string) ([]hearth.ScheduleStatus, error) {
	path := []string{"v1", "schedules"}
	if name != "" {
		path = []string{"v1", "functions", name, "schedules"}
	}
	var out struct {
		Schedules []hearth.ScheduleStatus `json:"schedules"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: path}, &out)
	return out.Schedules, err
}

// RunSchedule makes the call of a schedule now; ScheduleStatus.Last is it.
// Errors: CodeNotFound, CodeExhausted if there is no room for the call.
func (c *Client) RunSchedule(ctx context.Context, name, schedule string) (hearth.ScheduleStatus, error) {
	return c.RunScheduleOnce(ctx, name, schedule, "")
}

// RunScheduleOnce is RunSchedule, but makes no other call if the same was asked for under
// the key within the last 24 hours; an empty key is none.
func (c *Client) RunScheduleOnce(ctx context.Context, name, schedule, key string) (st hearth.ScheduleStatus, err error) {
	r := request{method: http.MethodPost, path: []string{"v1", "functions", name, "schedules", schedule, "run"}}
	if key != "" {
		r.header = http.Header{"Hearth-Deduplication-Key": {key}}
	}
	_, err = c.call(ctx, r, &st)
	return st, err
}

// PauseSchedule pauses or resumes a schedule. Errors: CodeNotFound.
func (c *Client) PauseSchedule(ctx context.Context, name, schedule string, paused bool) (st hearth.ScheduleStatus, err error) {
	in := struct {
		Paused bool `json:"paused"`
	}{paused}
	_, err = c.call(ctx, request{method: http.MethodPut, path: []string{"v1", "functions", name, "schedules", schedule, "paused"}, in: in}, &st)
	return st, err
}
