package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is a list of what is allowed: calls that a later kernel adds are
// refused until somebody has thought about them. What it does not know answers
// ENOSYS, for which C libraries have a fall-back; what programs are likely to
// ask for and must not have answers EPERM.

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

func allow() bpf.Instruction { return bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW} }

func refuse(e unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)}
}

// argument loads the low half of a call's argument: all these are ints for the
// kernel, which ignores the high half.
func argument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: 16 + 8*n, Size: 4} }

// oneOf continues with then for one of the values.
func oneOf(then bpf.Instruction, values ...uint32) []bpf.Instruction {
	var p []bpf.Instruction
	for _, v := range values {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: 1}, then)
	}
	return p
}

// checkedCalls are the calls that depend on their arguments. Each program ends
// with a verdict.
func checkedCalls() map[string][]bpf.Instruction {
	program := func(parts ...[]bpf.Instruction) []bpf.Instruction { return slices.Concat(parts...) }
	one := func(i ...bpf.Instruction) []bpf.Instruction { return i }
	noNamespaces := func(more uint32) []bpf.Instruction {
		return one(argument(0), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: newNamespaces | more, SkipFalse: 1},
			refuse(unix.EPERM), allow())
	}
	internet := program(
		one(argument(1), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf}),
		one(bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_STREAM, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_DGRAM, SkipTrue: 1}, refuse(unix.EPERM)),
		one(argument(2)),
		oneOf(allow(), 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6),
		one(refuse(unix.EPROTONOSUPPORT)))
	route := program(one(argument(2)), oneOf(allow(), unix.NETLINK_ROUTE), one(refuse(unix.EPROTONOSUPPORT)))
	jumpOver := func(family uint32, body []bpf.Instruction) []bpf.Instruction {
		return append(one(bpf.JumpIf{Cond: bpf.JumpEqual, Val: family, SkipFalse: uint8(len(body))}), body...)
	}
	const cloneNewTime = 0x80 // in clone, these bits are the signal at exit
	return map[string][]bpf.Instruction{
		"clone":   noNamespaces(0),
		"unshare": noNamespaces(cloneNewTime),
		// Its flags lie in memory, where a filter cannot look: C libraries fall
		// back to clone.
		"clone3": one(refuse(unix.ENOSYS)),
		"socket": program(one(argument(0)),
			oneOf(allow(), unix.AF_UNIX),
			jumpOver(unix.AF_INET, internet), jumpOver(unix.AF_INET6, internet), jumpOver(unix.AF_NETLINK, route),
			one(refuse(unix.EAFNOSUPPORT))),
		"socketpair": program(one(argument(0)), oneOf(allow(), unix.AF_UNIX), one(refuse(unix.EAFNOSUPPORT))),
		// Typing into a terminal, and changing what drives it.
		"ioctl": program(one(argument(1)), oneOf(refuse(unix.EPERM), unix.TIOCSTI, unix.TIOCSETD, 0x541c), one(allow())),
		// In a user namespace without root this would say EINVAL, which no program
		// expects.
		"setuid": program(one(argument(0)), oneOf(refuse(unix.EPERM), 0), one(allow())),
		"setgid": program(one(argument(0)), oneOf(refuse(unix.EPERM), 0), one(allow())),
		// Being told of what others do with the files that are the host's, or making
		// them wait for a lease.
		"fcntl": program(one(argument(1)), oneOf(refuse(unix.EPERM), unix.F_NOTIFY, unix.F_SETLEASE), one(allow())),
		// Throwing the host's files out of its page cache slows everybody down. It
		// is only advice: say that it was taken.
		"fadvise64":   program(one(argument(3)), oneOf(refuse(0), unix.FADV_DONTNEED), one(allow())),
		"personality": program(one(argument(0)), oneOf(allow(), 0, 0xffffffff), one(refuse(unix.EPERM))),
	}
}

// Filter compiles the filter for this machine, in the form the kernel takes:
// eight bytes an instruction. It refuses what is not allowed, and checks the
// arguments of calls that depend on them.
func Filter() ([]byte, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("compile the system call filter: %w", err)
	}
	return compileFilter(info)
}

func compileFilter(info *arch.Info) ([]byte, error) {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 4}, // architecture
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: 0, Size: 4}, // number
	}
	// Also refuses the x32 numbers of amd64, which begin at 1<<30.
	checked := checkedCalls()
	for _, name := range []string{"fcntl", "ioctl", "socket", "clone", "socketpair", "clone3", "unshare", "personality", "setuid", "setgid", "fadvise64"} {
		if n, ok := info.SyscallNames[name]; ok {
			body := checked[name]
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(n), SkipFalse: uint8(len(body))})
			program = append(program, body...)
		}
	}
	var numbers []uint32
	for _, name := range allowedCalls {
		if n, ok := info.SyscallNames[name]; ok {
			numbers = append(numbers, uint32(n))
		}
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	if len(numbers) < 150 {
		return nil, errors.New("the table of system calls is incomplete")
	}
	for i := 0; i < len(numbers); { // neighbours share one comparison
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: numbers[i], SkipFalse: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: numbers[j], SkipTrue: 1}, allow())
		i = j + 1
	}
	for _, name := range deniedCalls {
		if n, ok := info.SyscallNames[name]; ok {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(n), SkipFalse: 1}, refuse(unix.EPERM))
		}
	}
	program = append(program, refuse(unix.ENOSYS))
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("compile the system call filter: %w", err)
	}
	var b []byte
	for _, r := range raw {
		b = binary.LittleEndian.AppendUint16(b, r.Op)
		b = append(b, r.Jt, r.Jf)
		b = binary.LittleEndian.AppendUint32(b, r.K)
	}
	return b, nil
}
