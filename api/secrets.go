package api

import (
	"context"
	"encoding/base64"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hearthrun/hearth"
)

// Secrets keeps the secrets of the installation.
type Secrets interface {
	// Secrets returns all of them by name.
	Secrets(ctx context.Context) ([]hearth.Secret, error)
	// SetSecret gives a secret a new value, unless it has it already. Errors:
	// CodeInvalid, CodeExhausted, CodeUnavailable.
	SetSecret(ctx context.Context, name string, value []byte) (hearth.Secret, error)
	// RollbackSecret gives a secret the value of an older version, 0 for the one
	// before. Errors: CodeNotFound, CodeConflict, CodeInvalid, CodeUnavailable.
	RollbackSecret(ctx context.Context, name string, version int) (hearth.Secret, error)
	// DeleteSecret removes a secret. Errors: CodeNotFound, CodeConflict while a
	// function uses it.
	DeleteSecret(ctx context.Context, name string) error
	// Rekey encrypts all secrets with a new key and destroys the old one. Errors:
	// CodeConflict without a key, CodeUnavailable.
	Rekey(ctx context.Context) (hearth.Rekeyed, error)
	// CheckKeyFile tells whether the key file still holds the key that the server
	// works with.
	CheckKeyFile() error
	// CheckSecrets tells whether a function can get its secrets. Errors:
	// CodeInvalid.
	CheckSecrets(ctx context.Context, c hearth.Config) error
	// WithSecrets returns a version that is not in the catalog yet as it would be
	// read from there: with the versions of its secrets.
	WithSecrets(ctx context.Context, v hearth.Version) (hearth.Version, error)
}

// maxSecretBody is the greatest size of the body that brings a value: one whose
// every byte is escaped in JSON fits.
const maxSecretBody = 8 * hearth.MaxSecret

type secretList struct {
	Secrets []hearth.Secret `json:"secrets" doc:"By name"`
}

type secretListOutput struct{ Body secretList }

type secretInput struct {
	Secret string `path:"secret" doc:"Name of the secret" example:"db-password"`
}

type putSecretInput struct {
	Secret string `path:"secret" doc:"Name of the secret: at most 63 lower-case letters, digits and hyphens" example:"db-password"`
	Body   struct {
		Value  string `json:"value,omitempty" doc:"The value as text, at most 64 KiB; or give base64"`
		Base64 string `json:"base64,omitempty" doc:"The value as base64, for what is no text"`
	}
}

type rollbackSecretInput struct {
	Secret string `path:"secret" doc:"Name of the secret" example:"db-password"`
	Body   struct {
		Version int `json:"version,omitempty" minimum:"0" doc:"Version whose value it gets; the one before the newest if it is left out"`
	}
}

type oneSecretOutput struct{ Body hearth.Secret }

type rekeyedOutput struct{ Body hearth.Rekeyed }

func (s *API) registerSecrets() {
	register(s, huma.Operation{
		OperationID: "list-secrets", Method: http.MethodGet, Path: "/v1/secrets", Tags: []string{"Secrets"},
		Summary:     "List the secrets, without their values",
		Description: "No operation returns the value of a secret.",
	}, s.listSecrets)
	register(s, huma.Operation{
		OperationID: "put-secret", Method: http.MethodPut, Path: "/v1/secrets/{secret}", Tags: []string{"Secrets"},
		Summary: "Make a secret or give it a new value",
		Description: "Functions that use it get the new value without a deploy: new instances start with it, and those that have the old one end after their calls. " +
			"With the value that it has already nothing changes. The last ten values are kept.",
		MaxBodyBytes: maxSecretBody, DefaultStatus: http.StatusOK,
	}, s.putSecret)
	register(s, huma.Operation{
		OperationID: "rollback-secret", Method: http.MethodPost, Path: "/v1/secrets/{secret}/rollback", Tags: []string{"Secrets"},
		Summary:       "Give a secret the value of an older version",
		Description:   "This makes a new version with the old value, and functions get it as any new one.",
		DefaultStatus: http.StatusOK,
	}, s.rollbackSecret)
	register(s, huma.Operation{
		OperationID: "rekey-secrets", Method: http.MethodPost, Path: "/v1/secrets/rekey", Tags: []string{"Secrets"},
		Summary: "Encrypt all secrets with a new key and destroy the old one",
		Description: "Values, versions and instances stay, and calls go on. After an error or a crash the key file has both keys and everything can be read; " +
			"the next start of the server, or the same again, comes to the end. Backups of the database that were made before need the old key.",
		DefaultStatus: http.StatusOK,
	}, s.rekeySecrets)
	register(s, huma.Operation{
		OperationID: "delete-secret", Method: http.MethodDelete, Path: "/v1/secrets/{secret}", Tags: []string{"Secrets"},
		Summary:       "Delete a secret that no function uses, with all its versions",
		DefaultStatus: http.StatusNoContent,
	}, s.deleteSecret)
}

func (s *API) listSecrets(ctx context.Context, _ *struct{}) (*secretListOutput, error) {
	list, err := s.Secrets.Secrets(ctx)
	if err != nil {
		return nil, err
	}
	if s.Secrets.CheckKeyFile() != nil {
		for i := range list {
			list[i].KeyLost = !list[i].Locked
		}
	}
	return &secretListOutput{Body: secretList{Secrets: list}}, nil
}

func (s *API) putSecret(ctx context.Context, in *putSecretInput) (*oneSecretOutput, error) {
	value := []byte(in.Body.Value)
	if in.Body.Base64 != "" {
		var err error
		// The error would tell of the value.
		if value, err = base64.StdEncoding.DecodeString(in.Body.Base64); err != nil || in.Body.Value != "" {
			return nil, hearth.Errorf(hearth.CodeInvalid, "base64 is not valid, or there is a value too").
				WithHint(`send either {"value": "text"} or {"base64": "dGV4dA=="}`)
		}
	}
	return s.changeSecret(ctx, func(ctx context.Context) (hearth.Secret, error) {
		return s.Secrets.SetSecret(ctx, in.Secret, value)
	})
}

func (s *API) rollbackSecret(ctx context.Context, in *rollbackSecretInput) (*oneSecretOutput, error) {
	return s.changeSecret(ctx, func(ctx context.Context) (hearth.Secret, error) {
		return s.Secrets.RollbackSecret(ctx, in.Secret, in.Body.Version)
	})
}

// changeSecret makes a change and lets calls follow it.
func (s *API) changeSecret(ctx context.Context, change func(context.Context) (hearth.Secret, error)) (*oneSecretOutput, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.commit.Lock()
	defer s.commit.Unlock()
	secret, err := change(ctx)
	if err != nil {
		return nil, err
	}
	s.Logger.InfoContext(ctx, "a secret was set", "secret", secret.Name, "version", secret.Version, "functions", secret.Functions)
	return &oneSecretOutput{Body: secret}, s.reload(ctx)
}

func (s *API) rekeySecrets(ctx context.Context, _ *struct{}) (*rekeyedOutput, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s.commit.Lock()
	defer s.commit.Unlock()
	r, err := s.Secrets.Rekey(ctx)
	if err != nil {
		return nil, err
	}
	s.Logger.InfoContext(ctx, "the secrets have a new key", "secrets", r.Secrets, "values", r.Values, "unreadable", r.Unreadable)
	return &rekeyedOutput{Body: r}, nil
}

func (s *API) deleteSecret(ctx context.Context, in *secretInput) (*struct{}, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	return nil, s.Secrets.DeleteSecret(ctx, in.Secret)
}
