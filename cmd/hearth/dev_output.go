package main

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// devOutput writes what happens during hearth dev: lines for people, or one JSON
// object a line. Its methods may be called from many goroutines.
type devOutput struct {
	*app
	// unread is called when nobody reads standard output any more.
	unread func()
	mu     sync.Mutex
}

// devEvent is one line of hearth dev -o json.
type devEvent struct {
	Type     string    `json:"type"`
	Time     time.Time `json:"time"`
	Function string    `json:"function,omitempty"`
	Version  int       `json:"version,omitempty"`
	URL      string    `json:"url,omitempty"`
	// Milliseconds is the time from the save, or the start of dev, until the
	// version answered.
	Milliseconds int64                 `json:"ms,omitempty"`
	Text         string                `json:"text,omitempty"`
	Code         hearth.Code           `json:"code,omitempty"`
	Hint         string                `json:"hint,omitempty"`
	Error        *hearth.FunctionError `json:"function_error,omitempty"`
}

// write writes an event as JSON, or calls text to write it for people.
func (o *devOutput) write(e devEvent, text func(now string)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e.Time = time.Now()
	if o.json() {
		if json.NewEncoder(o.stdout).Encode(e) != nil {
			o.unread()
		}
		return
	}
	text(o.colour(o.stderr, dim, e.Time.Format(time.TimeOnly)))
}

// say tells something besides what the function does.
func (o *devOutput) say(text string) {
	o.write(devEvent{Type: "info", Text: text}, func(now string) { fmt.Fprintln(o.stderr, now, printable(text)) })
}

// build tells how dependencies are installed.
func (o *devOutput) build(e client.Event) {
	o.write(devEvent{Type: "build", Function: e.Manifest.Name, Text: e.Text}, func(now string) {
		if e.Stage == client.StageLog {
			fmt.Fprintln(o.stderr, o.colour(o.stderr, dim, "    "+printable(e.Text)))
			return
		}
		fmt.Fprintln(o.stderr, now, printable(e.Text))
	})
}

// reloaded tells that a version answers calls. It took that long from the save;
// unchanged means that the version did so before.
func (o *devOutput) reloaded(f client.Function, took time.Duration, first, unchanged bool) {
	e := devEvent{Type: "reload", Function: f.Name, Version: f.Live, URL: f.URL, Milliseconds: took.Milliseconds()}
	o.write(e, func(now string) {
		what := fmt.Sprintf("reloaded %s in %d ms", f.Name, took.Milliseconds())
		switch {
		case unchanged:
			what = fmt.Sprintf("%s is version %d again", f.Name, f.Live)
			if first {
				what = f.Name + " is up to date"
			}
		case first:
			what = fmt.Sprintf("deployed %s in %d ms", f.Name, took.Milliseconds())
		}
		fmt.Fprintln(o.stderr, now, o.colour(o.stderr, green, printable(what)), "→", printable(f.URL))
	})
}

// failed tells why a deploy failed; what answers meanwhile is the last version of
// the function live, if that is not empty.
func (o *devOutput) failed(err error, live string) {
	h := hearth.AsError(err)
	e := devEvent{Type: "error", Function: live, Text: err.Error(), Code: h.Code, Hint: h.Hint, Error: h.Function}
	o.write(e, func(now string) {
		fmt.Fprint(o.stderr, now, " ")
		if h.Function != nil {
			o.printFunctionError(h.Function)
		} else {
			o.printError(err.Error(), h.Hint)
		}
		if live != "" {
			fmt.Fprintln(o.stderr, o.colour(o.stderr, dim, "the last good version of "+live+" goes on answering"))
		}
	})
}

// end tells what became of a function that dev had made.
func (o *devOutput) end(name, text string) {
	o.write(devEvent{Type: "end", Function: name, Text: text}, func(now string) { fmt.Fprintln(o.stderr, now, printable(text)) })
}

// line shows a line of the function's log.
func (o *devOutput) line(l hearth.LogLine) (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.json() {
		err = json.NewEncoder(o.stdout).Encode(struct {
			Type string `json:"type"`
			hearth.LogLine
		}{"log", l})
	} else {
		err = o.printLine(l)
	}
	if err != nil {
		o.unread()
	}
	return err
}
