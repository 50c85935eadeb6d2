package gateway

import "github.com/hearthrun/hearth"

// Schedules calls functions at their times; package queue has one.
type Schedules interface {
	// SetSchedules makes these the schedules; all functions are in the list.
	SetSchedules(list []hearth.FunctionSchedules)
}

// schedules returns those of the main version of each function's live alias.
func (t *table) schedules() []hearth.FunctionSchedules {
	list := make([]hearth.FunctionSchedules, 0, len(t.functions))
	for name, f := range t.functions {
		s := hearth.FunctionSchedules{Function: name, Unknown: f.err != nil}
		if f.err == nil {
			s.Schedules = f.live.main().Config.Schedules
		}
		list = append(list, s)
	}
	return list
}
