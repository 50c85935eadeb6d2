package api

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Schedules calls functions at their times; package queue implements it.
type Schedules interface {
	// Schedules returns those of a function or, if it is empty, of all.
	Schedules(ctx context.Context, function string) ([]hearth.ScheduleStatus, error)
	// RunSchedule makes the call of a schedule now, under a key that is not empty once.
	RunSchedule(ctx context.Context, function, name, key string) (hearth.ScheduleStatus, error)
	// PauseSchedule pauses or resumes a schedule.
	PauseSchedule(ctx context.Context, function, name string, paused bool) (hearth.ScheduleStatus, error)
}

type schedulesOutput struct {
	Body struct {
		Schedules []hearth.ScheduleStatus `json:"schedules" doc:"Sorted by function and name"`
	}
}

type runInput struct {
	Name     string `path:"name" doc:"Name of the function" example:"hello"`
	Schedule string `path:"schedule" doc:"Name of the schedule" example:"nightly"`
	Key      string `header:"Hearth-Deduplication-Key" maxLength:"256" doc:"A second request with the same key makes no other call within 24 hours"`
}

type pausedInput struct {
	Name     string `path:"name" doc:"Name of the function" example:"hello"`
	Schedule string `path:"schedule" doc:"Name of the schedule" example:"nightly"`
	Body     struct {
		Paused bool `json:"paused" doc:"Whether it is to be paused"`
	}
}

type scheduleOutput struct{ Body hearth.ScheduleStatus }

func (s *API) registerSchedules() {
	register(s, huma.Operation{
		OperationID: "list-all-schedules", Method: http.MethodGet, Path: "/v1/schedules", Tags: []string{"Schedules"},
		Summary: "List the schedules of all functions",
	}, func(ctx context.Context, _ *struct{}) (*schedulesOutput, error) { return s.listSchedules(ctx, "") })
	register(s, huma.Operation{
		OperationID: "list-schedules", Method: http.MethodGet, Path: "/v1/functions/{name}/schedules", Tags: []string{"Schedules"},
		Summary: "List the schedules of a function", Description: "Those of the live version, with their next times and their latest call.",
	}, func(ctx context.Context, in *nameInput) (*schedulesOutput, error) {
		if _, err := s.function(ctx, in.Name); err != nil {
			return nil, err
		}
		return s.listSchedules(ctx, in.Name)
	})
	register(s, huma.Operation{
		OperationID: "run-schedule", Method: http.MethodPost, Path: "/v1/functions/{name}/schedules/{schedule}/run", Tags: []string{"Schedules"},
		Summary: "Make the call of a schedule now", Description: "Whatever else runs, and even if it is paused; its times stay as they are.",
	}, func(ctx context.Context, in *runInput) (*scheduleOutput, error) {
		if _, err := s.function(ctx, in.Name); err != nil {
			return nil, err
		}
		st, err := s.Schedules.RunSchedule(ctx, in.Name, in.Schedule, in.Key)
		return &scheduleOutput{st}, err
	})
	register(s, huma.Operation{
		OperationID: "pause-schedule", Method: http.MethodPut, Path: "/v1/functions/{name}/schedules/{schedule}/paused", Tags: []string{"Schedules"},
		Summary: "Pause or resume a schedule", Description: "It stays so whatever is deployed. Times that pass meanwhile are not made up for.",
	}, func(ctx context.Context, in *pausedInput) (*scheduleOutput, error) {
		if _, err := s.function(ctx, in.Name); err != nil {
			return nil, err
		}
		st, err := s.Schedules.PauseSchedule(ctx, in.Name, in.Schedule, in.Body.Paused)
		return &scheduleOutput{st}, err
	})
}

func (s *API) listSchedules(ctx context.Context, function string) (*schedulesOutput, error) {
	out, err := &schedulesOutput{}, error(nil)
	out.Body.Schedules, err = s.Schedules.Schedules(ctx, function)
	return out, err
}

// pastSchedules tells of schedules whose time had passed before now: they are never
// called.
func pastSchedules(c hearth.Config, now time.Time) (warnings []string) {
	for _, name := range slices.Sorted(maps.Keys(c.Schedules)) {
		if at, err := c.Schedules[name].Time(); err == nil && !at.IsZero() && at.Before(now) {
			warnings = append(warnings, fmt.Sprintf("schedules.%s: its time, %s, has passed: it makes no call", name, c.Schedules[name].At))
		}
	}
	return warnings
}
