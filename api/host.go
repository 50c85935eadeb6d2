package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

type driverList struct {
	Drivers []driver.Info `json:"drivers"`
}

type driversInput struct {
	Refresh bool `query:"refresh" doc:"Probe all of them again, as after installing something"`
}

type driverListOutput struct{ Body driverList }

type healthBody struct {
	Status string `json:"status" example:"ok"`
}

type healthOutput struct{ Body healthBody }

func (s *API) registerHost() {
	register(s, huma.Operation{
		OperationID: "list-drivers", Method: http.MethodGet, Path: "/v1/drivers", Tags: []string{"Host"},
		Summary:     "What each isolation technology can do on this host, or what it lacks",
		Description: "They are probed when the server starts, and again when a deploy needs what was not there.",
	}, func(ctx context.Context, in *driversInput) (*driverListOutput, error) {
		out := &driverListOutput{Body: driverList{Drivers: []driver.Info{}}}
		if in.Refresh {
			out.Body.Drivers = append(out.Body.Drivers, s.Drivers.Refresh(ctx, "")...)
		} else {
			out.Body.Drivers = append(out.Body.Drivers, s.Drivers.Drivers(ctx)...)
		}
		return out, nil
	})
	register(s, huma.Operation{
		OperationID: "get-health", Method: http.MethodGet, Path: "/healthz", Tags: []string{"Host"},
		Summary: "Whether the process lives", SkipValidateParams: true,
	}, func(context.Context, *struct{}) (*healthOutput, error) {
		return &healthOutput{Body: healthBody{Status: "ok"}}, nil
	})
	register(s, huma.Operation{
		OperationID: "get-readiness", Method: http.MethodGet, Path: "/readyz", Tags: []string{"Host"},
		Summary: "Whether the server takes calls", SkipValidateParams: true,
		Description: "Answers 503 with the reason until the server is ready and again while it shuts down.",
	}, func(context.Context, *struct{}) (*healthOutput, error) {
		if err := s.Health.Ready(); err != nil {
			return nil, (&hearth.Error{Code: hearth.CodeUnavailable, Message: "not ready: " + err.Error(), Err: err}).
				WithHint("wait; the server's log tells what it is doing")
		}
		return &healthOutput{Body: healthBody{Status: "ok"}}, nil
	})
}
