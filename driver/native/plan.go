package native

import (
	"encoding/binary"
	"strconv"
)

// plan is what the helper does, step by step; see init/steps.go for the steps.
// The driver composes it, so that the helper has nothing to decide.
type plan struct {
	b     []byte
	trees int
	guest int // where the steps begin that start the guest
}

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

// open detaches a copy of the host's mount at path and returns its number.
func (p *plan) open(path, flags string) string {
	p.step('o', path, flags)
	p.trees++
	return strconv.Itoa(p.trees - 1)
}

// message returns the plan as it is sent.
func (p *plan) message() []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(p.b))), p.b...)
}

// stepName says in words what a step does, for error messages.
func stepName(op byte) string {
	switch op {
	case 'o':
		return "open for mounting"
	case 'O':
		return "open"
	case 'r':
		return "mount a root file system on"
	case 'u':
		return "become user"
	case 'd', 'l', 'f':
		return "create"
	case 'b', 'B':
		return "bind"
	case 't':
		return "mount tmpfs on"
	case 'p':
		return "mount /proc on"
	case 'P':
		return "change the root directory"
	case 'U':
		return "unmount"
	case 'R':
		return "make read-only"
	case 'h':
		return "set the host name"
	case 'n':
		return "bring up the loopback interface"
	case 'T':
		return "create the network device"
	case 'i':
		return "set resource limit"
	case 'N':
		return "create the namespaces"
	case 'k':
		return "create a session keyring"
	case 'S':
		return "set the scheduling policy"
	case 'c':
		return "drop capabilities"
	case 'L':
		return "restrict file access with Landlock"
	case 's':
		return "filter system calls"
	case 'x':
		return "start the guest"
	}
	return "step " + strconv.QuoteRune(rune(op))
}
