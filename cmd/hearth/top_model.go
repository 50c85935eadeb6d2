package main

import (
	"context"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/hearthrun/hearth"
)

// topServer is what is asked for what is shown.
type topServer interface {
	look(ctx context.Context) (topStatus, error)
	failures(ctx context.Context, function string) ([]hearth.Invocation, error)
}

// topModel is what hearth top shows. It implements tea.Model: the program calls its
// methods one after the other.
type topModel struct {
	ctx      context.Context // of the program; ends what it asks of the server
	server   topServer
	url      string
	interval time.Duration

	width, height int
	status        topStatus
	at            time.Time // of the last look that succeeded
	now           time.Time // of the last look
	err           error     // of the last look

	paused, help, typing bool
	filter               string
	order                int    // index of topOrders
	chosen               string // function that is marked
	detail               string // function that is shown, or ""
	// Calls of it that failed, or why they could not be had.
	failed      []hearth.Invocation
	failedErr   error
	failedKnown bool
}

// looked is what a look found.
type looked struct {
	status topStatus
	now    time.Time
	err    error
}

// failedCalls are those of a function.
type failedCalls struct {
	function string
	list     []hearth.Invocation
	err      error
}

// lookAgain is that it is time for the next look.
type lookAgain struct{}

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.look() }

func (m *topModel) look() tea.Cmd {
	return func() tea.Msg {
		st, err := m.server.look(m.ctx)
		return looked{st, time.Now(), err}
	}
}

func (m *topModel) askFailures() tea.Cmd {
	function := m.detail
	if function == "" {
		return nil
	}
	return func() tea.Msg {
		list, err := m.server.failures(m.ctx, function)
		return failedCalls{function, list, err}
	}
}

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case looked:
		// What is paused is looked at nevertheless: numbers would else be of a longer
		// time afterwards.
		next := tea.Tick(m.interval, func(time.Time) tea.Msg { return lookAgain{} })
		if m.paused {
			return m, next
		}
		m.now, m.err = msg.now, msg.err
		if msg.err != nil {
			return m, next
		}
		m.status, m.at = msg.status, msg.now
		return m, tea.Batch(next, m.askFailures())
	case lookAgain:
		return m, m.look()
	case failedCalls:
		if msg.function == m.detail {
			m.failed, m.failedErr, m.failedKnown = msg.list, msg.err, true
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// key does what a key asks for.
func (m *topModel) key(msg tea.KeyPressMsg) tea.Cmd {
	name := msg.String()
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case name == "ctrl+z":
		return tea.Suspend
	case m.typing:
		m.typed(name, msg.Text)
		return nil
	}
	switch name {
	case "q":
		return tea.Quit
	case "p", "space":
		m.paused = !m.paused
	case "?", "h":
		m.help = !m.help
	case "esc":
		switch {
		case m.help:
			m.help = false
		case m.detail != "":
			m.detail = ""
		default:
			m.filter = ""
		}
	case "enter":
		list := m.functions()
		switch {
		case m.help:
			m.help = false
		case m.detail != "":
			m.detail = ""
		case len(list) > 0:
			m.detail = list[m.index(list)].Function
			m.failed, m.failedErr, m.failedKnown = nil, nil, false
			return m.askFailures()
		}
	}
	if !m.help && m.detail == "" {
		m.choose(name)
	}
	return nil
}

// choose does what a key asks for in the table.
func (m *topModel) choose(name string) {
	step := 0
	switch name {
	case "s":
		m.order = (m.order + 1) % len(topOrders)
	case "/":
		m.typing = true
	case "up", "k":
		step = -1
	case "down", "j":
		step = 1
	case "pgup":
		step = -max(1, m.height/2)
	case "pgdown":
		step = max(1, m.height/2)
	case "home", "g":
		step = -len(m.status.Functions)
	case "end", "G":
		step = len(m.status.Functions)
	}
	if list := m.functions(); step != 0 && len(list) > 0 {
		m.chosen = list[min(max(m.index(list)+step, 0), len(list)-1)].Function
	}
}

// maxFilter bounds the text of a filter; names are no longer.
const maxFilter = 63

// typed takes a key of the text of the filter.
func (m *topModel) typed(name, text string) {
	switch name {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		_, n := utf8.DecodeLastRuneInString(m.filter)
		m.filter = m.filter[:len(m.filter)-n]
	default:
		if len(m.filter)+len(text) <= maxFilter {
			m.filter += oneLine(text)
		}
	}
}

// functions are those that are shown, in their order.
func (m *topModel) functions() []topFunction { return m.status.sorted(topOrders[m.order], m.filter) }

// index is where the chosen function is in a list, the first if it is not there.
func (m *topModel) index(list []topFunction) int {
	return max(0, slices.IndexFunc(list, func(f topFunction) bool { return f.Function == m.chosen }))
}

// failureText says what went wrong and what one can do.
func failureText(err error) (text, hint string) {
	var e *hearth.Error
	if errors.As(err, &e) {
		hint = oneLine(e.Hint)
	}
	return oneLine(err.Error()), hint
}
