package telemetry

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/jsonwalk"
)

const (
	// levelMembers is how many members of an object may come before its level: logging
	// libraries write it among the first, and a hostile line has thousands.
	levelMembers = 32
	// levelValue is how long a level may be.
	levelValue = 16
)

// levelKeys are the names that logging libraries give to the level: slog, zap, pino,
// logrus and others; Google and OpenTelemetry; log4j and ECS; python-json-logger; Serilog.
var levelKeys = []string{"level", "severity", "severityText", "lvl", "log.level", "levelname", "@l"}

// levelOf returns the level in a line that is a JSON object, as far as there is one that
// is known.
func levelOf(text string) hearth.LogLevel {
	if text == "" || text[0] != '{' {
		return ""
	}
	b := []byte(text)
	if !json.Valid(b) {
		return ""
	}
	n := 0
	for name, value := range jsonwalk.Members(b) {
		if isLevelKey(name) {
			if level := levelIn(string(value)); level != "" {
				return level
			}
		}
		if n++; n == levelMembers {
			break
		}
	}
	return ""
}

func isLevelKey(name string) bool {
	for _, k := range levelKeys {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

// levelIn reads a JSON value: a name, or a number as pino and bunyan have them, 10 for
// trace to 60 for fatal.
func levelIn(value string) hearth.LogLevel {
	value = strings.Trim(strings.TrimSpace(value), `"`)
	if len(value) > levelValue {
		return ""
	}
	if n, err := strconv.Atoi(value); err == nil {
		if levels := hearth.LogLevels(); n >= 10 && n < 10+10*len(levels) {
			return levels[n/10-1]
		}
		return ""
	}
	level, err := hearth.ParseLogLevel(value)
	if err != nil {
		return ""
	}
	return level
}
