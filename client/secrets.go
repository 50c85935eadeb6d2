package client

import (
	"context"
	"encoding/base64"
	"net/http"

	"github.com/hearthrun/hearth"
)

// Secrets returns the secrets by name, without their values.
func (c *Client) Secrets(ctx context.Context) ([]hearth.Secret, error) {
	var out struct {
		Secrets []hearth.Secret `json:"secrets"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "secrets"}}, &out)
	return out.Secrets, err
}

// SetSecret makes a secret or gives it a new value, which functions that use it
// get without a deploy. Errors: CodeInvalid for a bad name or value,
// CodeExhausted if there are too many.
func (c *Client) SetSecret(ctx context.Context, name string, value []byte) (s hearth.Secret, err error) {
	_, err = c.call(ctx, request{
		method: http.MethodPut, path: []string{"v1", "secrets", name},
		in: struct {
			Base64 string `json:"base64"`
		}{base64.StdEncoding.EncodeToString(value)},
	}, &s)
	return s, err
}

// RollbackSecret gives a secret the value of an older version, 0 for the one
// before the newest. Errors: CodeNotFound, CodeConflict if there is none.
func (c *Client) RollbackSecret(ctx context.Context, name string, version int) (s hearth.Secret, err error) {
	_, err = c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "secrets", name, "rollback"},
		in: struct {
			Version int `json:"version,omitempty"`
		}{version},
	}, &s)
	return s, err
}

// DeleteSecret removes a secret with all its versions. Errors: CodeNotFound,
// CodeConflict while a function uses it.
func (c *Client) DeleteSecret(ctx context.Context, name string) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: []string{"v1", "secrets", name}}, nil)
	return err
}

// Rekey encrypts all secrets with a new key and destroys the old one. Errors:
// CodeConflict if there is no key yet, CodeUnavailable if the key file cannot be
// replaced.
func (c *Client) Rekey(ctx context.Context) (r hearth.Rekeyed, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: []string{"v1", "secrets", "rekey"}}, &r)
	return r, err
}
