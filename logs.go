package hearth

import (
	"strings"
	"time"
)

// LogLevel says how severe a log line is. The empty one is that of lines that do not
// say so.
type LogLevel string

// The levels, by severity.
const (
	LevelTrace LogLevel = "trace"
	LevelDebug LogLevel = "debug"
	LevelInfo  LogLevel = "info"
	LevelWarn  LogLevel = "warn"
	LevelError LogLevel = "error"
	LevelFatal LogLevel = "fatal"
)

// LogLevels returns all levels, the least severe first.
func LogLevels() []LogLevel {
	return []LogLevel{LevelTrace, LevelDebug, LevelInfo, LevelWarn, LevelError, LevelFatal}
}

// ParseLogLevel reads the name of a level, in any case and also as the common libraries
// and syslog spell it: WARNING, err, critical, notice. Errors: CodeInvalid.
func ParseLogLevel(s string) (LogLevel, error) {
	switch strings.ToLower(s) {
	case "trace", "verbose", "silly":
		return LevelTrace, nil
	case "debug":
		return LevelDebug, nil
	case "info", "information", "informational", "notice", "default":
		return LevelInfo, nil
	case "warn", "warning":
		return LevelWarn, nil
	case "error", "err":
		return LevelError, nil
	case "fatal", "critical", "crit", "alert", "emerg", "emergency", "panic", "dpanic":
		return LevelFatal, nil
	}
	return "", Errorf(CodeInvalid, "there is no level %q of log lines", clip(s)).
		WithHint("choose trace, debug, info, warn, error or fatal")
}

// Size is about how much memory the line takes, in bytes: its text and the other fields.
func (l *LogLine) Size() int64 { return int64(len(l.Text)) + 200 }

// rank orders levels; 0 is none.
func (l LogLevel) rank() int {
	switch l {
	case LevelTrace:
		return 1
	case LevelDebug:
		return 2
	case LevelInfo:
		return 3
	case LevelWarn:
		return 4
	case LevelError:
		return 5
	case LevelFatal:
		return 6
	}
	return 0
}

// AtLeast tells whether l is as severe as least, or more. A line without a level is not
// as severe as any.
func (l LogLevel) AtLeast(least LogLevel) bool {
	return l.rank() >= least.rank()
}

// LogFilter says which log lines are meant: those that meet every condition. An empty
// condition is met by all.
type LogFilter struct {
	// Text is a part of the line, whatever the case of its letters.
	Text string
	// Level is the least severe one that is meant; lines without a level are not meant
	// then, whatever their stream.
	Level LogLevel
	// Invocation is the id of a call. The lines of an asynchronous call do not say which
	// attempt they are of: the id of the record of one means the lines of all.
	Invocation string
	// Stream is "stdout", "stderr" or "hearth".
	Stream string
	// Since is the first moment that is meant, Until the first that is not any more.
	Since, Until time.Time
}

// LogQuery asks for lines of one function.
type LogQuery struct {
	Function string
	// Versions are those whose lines are meant; none means all.
	Versions []int
	// Tail is how many of the newest lines are meant.
	Tail int
	LogFilter
}
