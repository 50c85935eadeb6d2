package docker

import (
	"encoding/binary"
	"strconv"
)

// plan is what the helper does, step by step; see init/main.go for the steps.
// The driver composes it, so that the helper has nothing to decide.
type plan struct{ b []byte }

// step appends one step.
func (p *plan) step(op byte, args ...string) {
	p.b = append(p.b, op, byte(len(args)))
	for _, a := range args {
		p.b = binary.LittleEndian.AppendUint32(p.b, uint32(len(a)))
		p.b = append(p.b, a...)
	}
}

// list appends one step for many arguments, in as many pieces as are needed.
func (p *plan) list(op byte, args []string) {
	for len(args) > 0 {
		n := min(len(args), 255)
		p.step(op, args[:n]...)
		args = args[n:]
	}
}

// message returns the plan as it is sent.
func (p *plan) message() []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(p.b))), p.b...)
}

// stepName says in words what a step does, for error messages.
func stepName(op byte) string {
	switch op {
	case 'f':
		return "take over descriptor"
	case 'i':
		return "set resource limit"
	case 'S':
		return "set the scheduling policy"
	case 's':
		return "filter system calls"
	case 'x':
		return "start the guest"
	}
	return "do step " + strconv.QuoteRune(rune(op))
}
