package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/driver/seccomp"
)

// newNamespaces are the flags of clone and unshare that make namespaces.
var newNamespaces = []uint64{
	unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
	unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET,
}

// seccompProfile is the filter of package native in the words of the runtime's
// configuration. Rules for one call never overlap: a call without a matching
// rule answers ENOSYS.
func seccompProfile() *specs.LinuxSeccomp {
	enosys := uint(unix.ENOSYS)
	p := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &enosys,
		Syscalls: []specs.LinuxSyscall{
			{Names: seccomp.Allowed(), Action: specs.ActAllow},
			refuse(unix.EPERM, seccomp.Denied()...),
			// Its flags lie in memory, where a filter cannot look: C libraries fall
			// back to clone.
			refuse(unix.ENOSYS, "clone3"),
		},
	}
	add := func(rules ...specs.LinuxSyscall) { p.Syscalls = append(p.Syscalls, rules...) }

	var all uint64
	for _, flag := range newNamespaces {
		all |= flag
		add(when(refuse(unix.EPERM, "clone", "unshare"), masked(0, flag, flag)))
	}
	const newTime = 0x80 // in clone, these bits are the signal at exit
	add(when(refuse(unix.EPERM, "unshare"), masked(0, newTime, newTime)),
		when(allow("clone"), masked(0, all, 0)), when(allow("unshare"), masked(0, all|newTime, 0)))

	add(when(allow("socket", "socketpair"), equal(0, unix.AF_UNIX)),
		when(allow("socket"), equal(0, unix.AF_NETLINK), equal(2, unix.NETLINK_ROUTE)))
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []uint64{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			for _, protocol := range []uint64{0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
				add(when(allow("socket"), equal(0, family), masked(1, 0xf, kind), equal(2, protocol)))
			}
		}
		add(when(refuse(unix.EPERM, "socket"), equal(0, family), masked(1, 0xf, unix.SOCK_RAW)))
	}
	add(when(refuse(unix.EAFNOSUPPORT, "socket", "socketpair"), specs.LinuxSeccompArg{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpGreaterThan}))

	// Typing into a terminal, and changing what drives it.
	for _, rule := range except("ioctl", 1, unix.TIOCSTI, unix.TIOCSETD, 0x541c) {
		add(rule)
	}
	// Being told of what others do with shared files, or making them wait.
	for _, rule := range except("fcntl", 1, unix.F_NOTIFY, unix.F_SETLEASE) {
		add(rule)
	}
	for _, name := range []string{"setuid", "setgid"} {
		add(when(refuse(unix.EPERM, name), equal(0, 0)), when(allow(name), specs.LinuxSeccompArg{Index: 0, Value: 0, Op: specs.OpNotEqual}))
	}
	// Throwing shared files out of the page cache slows everybody down. It is
	// only advice: say that it was taken.
	add(when(refuse(0, "fadvise64"), equal(3, unix.FADV_DONTNEED)),
		when(allow("fadvise64"), specs.LinuxSeccompArg{Index: 3, Value: unix.FADV_DONTNEED, Op: specs.OpNotEqual}))
	add(when(allow("personality"), equal(0, 0)), when(allow("personality"), equal(0, 0xffffffff)))
	return p
}

func allow(names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow}
}

func refuse(errno unix.Errno, names ...string) specs.LinuxSyscall {
	code := uint(errno)
	return specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: &code}
}

// when restricts a rule to arguments that match all conditions.
func when(rule specs.LinuxSyscall, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	rule.Args = append(rule.Args[:len(rule.Args):len(rule.Args)], args...)
	return rule
}

func equal(index uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
}

// masked compares those bits of an argument that are in mask.
func masked(index uint, mask, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: mask, ValueTwo: value, Op: specs.OpMaskedEqual}
}

// except allows a call unless the low half of an argument, all that the kernel
// looks at, has one of the values; then it answers EPERM. The values that are
// allowed are written as ranges, for filters cannot combine "not this" with
// "not that".
func except(name string, index uint, values ...uint64) []specs.LinuxSyscall {
	const bits = 32
	var rules []specs.LinuxSyscall
	for _, v := range values {
		rules = append(rules, when(refuse(unix.EPERM, name), masked(index, 1<<bits-1, v)))
	}
	var walk func(prefix uint64, length int)
	walk = func(prefix uint64, length int) {
		mask := uint64(1<<bits-1) &^ (1<<(bits-length) - 1)
		for _, v := range values {
			if v&mask == prefix {
				if length < bits {
					walk(prefix, length+1)
					walk(prefix|1<<(bits-length-1), length+1)
				}
				return
			}
		}
		rules = append(rules, when(allow(name), masked(index, mask, prefix)))
	}
	walk(0, 0)
	return rules
}
