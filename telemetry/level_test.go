package telemetry

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/hearthrun/hearth"
)

// FuzzLevel: a line with a level is a JSON object, and the level is one of those there are.
func FuzzLevel(f *testing.F) {
	for _, text := range []string{
		`{"level":"INFO"}`, `{"time":1,"severity":"warning"}`, `{"log.level":30}`, `{"level":"é\u0041\""}`, `{"level":{}}`, `{"level":`,
		"{\"\xff\":\"error\"}", `{"level":-1}`, `{"level":99999999999999999999}`, `{} {"level":"info"}`, `{"LEVEL" : "Crit" }`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		level := levelOf(text)
		if level == "" {
			return
		}
		var object map[string]any
		if err := json.Unmarshal([]byte(text), &object); err != nil || !slices.Contains(hearth.LogLevels(), level) {
			t.Fatalf("%q has level %q: %v", text, level, err)
		}
	})
}
