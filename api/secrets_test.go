package api_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
)

// secretNoise is in every value, and must be in no answer.
const secretNoise = "8675309"

// TestSecretAnswers: what comes back never has the value, whatever was sent.
func TestSecretAnswers(t *testing.T) {
	h := newHost(t)
	do := func(method, target string, body any) answer {
		t.Helper()
		a := h.do(method, target, body)
		if s := a.Body.String(); strings.Contains(s, secretNoise) || strings.Contains(s, base64.StdEncoding.EncodeToString([]byte(secretNoise))[:8]) {
			t.Errorf("%s %s was answered with the value: %s", method, target, s)
		}
		return a
	}
	var s hearth.Secret
	do("PUT", "/v1/secrets/token", map[string]any{"value": secretNoise}).json(200, &s)
	if s.Name != "token" || s.Version != 1 || h.reloads != 1 {
		t.Errorf("got %+v after %d reloads", s, h.reloads)
	}
	do("PUT", "/v1/secrets/token", map[string]any{"base64": base64.StdEncoding.EncodeToString([]byte(secretNoise + "\x00"))}).json(200, &s)
	if s.Version != 2 {
		t.Errorf("got %+v", s)
	}
	for _, bad := range []any{
		map[string]any{"value": 8675309},
		map[string]any{"value": secretNoise, "base64": "eA=="},
		map[string]any{"base64": "!" + secretNoise},
		map[string]any{},
		map[string]any{"value": []string{secretNoise}},
		map[string]any{secretNoise[:3]: secretNoise},
		map[string]any{"value": strings.Repeat(secretNoise, 10_000)},
		"{\"value\": " + secretNoise + "x}",
		secretNoise,
	} {
		do("PUT", "/v1/secrets/token", bad).problem(400, hearth.CodeInvalid)
	}
	do("PUT", "/v1/secrets/Token", map[string]any{"value": secretNoise}).problem(400, hearth.CodeInvalid, "not valid")
	do("PUT", "/v1/secrets/token", map[string]any{"value": strings.Repeat(secretNoise, 200_000)}).problem(413, hearth.CodeInvalid)
	do("POST", "/v1/secrets/token/rollback", map[string]any{"version": 7}).problem(404, hearth.CodeNotFound, "version 7")
	do("POST", "/v1/secrets/token/rollback", map[string]any{}).json(200, &s)
	if s.Version != 3 {
		t.Errorf("after the rollback: %+v", s)
	}

	var r hearth.Rekeyed
	do("POST", "/v1/secrets/rekey", nil).json(200, &r)
	if r.Secrets != 1 || r.Values != 3 || r.Unreadable == nil {
		t.Errorf("rekeyed: %+v", r)
	}

	var list struct{ Secrets []hearth.Secret }
	do("GET", "/v1/secrets", nil).json(200, &list)
	if len(list.Secrets) != 1 || len(list.Secrets[0].Versions) != 3 {
		t.Errorf("listed are %+v", list)
	}
	do("DELETE", "/v1/secrets/token", nil)
	do("DELETE", "/v1/secrets/token", nil).problem(404, hearth.CodeNotFound, "hearth secret list")
	if strings.Contains(h.log.String(), secretNoise) {
		t.Errorf("the log has the value: %s", h.log)
	}
}

// TestDeployWithSecrets: what a deploy starts and what it stores, and what stands
// in its way.
func TestDeployWithSecrets(t *testing.T) {
	h := newHost(t)
	secrets := set("secrets", map[string]string{"TOKEN": "token"})
	h.do("POST", "/v1/functions", hello(secrets)).problem(400, hearth.CodeInvalid, "there is no secret token", "hearth secret set token")
	h.do("POST", "/v1/functions", hello(secrets, set("env", map[string]string{"TOKEN": "x"}))).problem(400, hearth.CodeInvalid, "in env and in secrets")
	var plan hearth.Plan
	h.do("POST", "/v1/functions/hello/plan", map[string]any{"runtime": "python", "secrets": map[string]string{"TOKEN": "token"}}).json(200, &plan)
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "hearth secret set token") {
		t.Errorf("the plan warns of %q", plan.Warnings)
	}
	h.do("PUT", "/v1/secrets/token", map[string]any{"value": "one"}).json(200, &hearth.Secret{})
	h.do("POST", "/v1/functions", hello(secrets)).json(201, &function{})
	stored, err := h.store.Version(t.Context(), "hello", 1)
	if err != nil || len(h.verified) != 1 || stored.Incarnation != h.verified[0].Incarnation || h.verified[0].Secrets["token"] != 1 {
		t.Errorf("verified %+v, stored %+v, %v; the verified instance would never be used", h.verified, stored, err)
	}
	h.do("PUT", "/v1/functions/hello", nameless(secrets)).json(200, &function{})
	if len(h.verified) != 1 {
		t.Errorf("the same again was started: %+v", h.verified)
	}
	h.do("DELETE", "/v1/secrets/token", nil).problem(409, hearth.CodeConflict, "used by hello")
}
