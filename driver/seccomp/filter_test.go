package seccomp

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestFilter runs the filters of both architectures on made-up calls.
func TestFilter(t *testing.T) {
	const allowed = unix.SECCOMP_RET_ALLOW
	no := func(e unix.Errno) int { return unix.SECCOMP_RET_ERRNO | int(e) }
	for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		raw, err := compileFilter(info)
		if err != nil {
			t.Fatal(err)
		}
		var program []bpf.RawInstruction
		for i := 0; i < len(raw); i += 8 {
			program = append(program, bpf.RawInstruction{
				Op: binary.LittleEndian.Uint16(raw[i:]), Jt: raw[i+2], Jf: raw[i+3], K: binary.LittleEndian.Uint32(raw[i+4:]),
			})
		}
		instructions, ok := bpf.Disassemble(program)
		if !ok {
			t.Fatal("the filter does not disassemble")
		}
		vm, err := bpf.NewVM(instructions)
		if err != nil {
			t.Fatal(err)
		}
		call := func(id, number int, args ...uint64) int {
			// The machine reads big-endian words at the kernel's offsets of the low halves.
			data := make([]byte, 64)
			binary.BigEndian.PutUint32(data[0:], uint32(number))
			binary.BigEndian.PutUint32(data[4:], uint32(id))
			for i, a := range args {
				binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
				binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
			}
			verdict, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return int(uint32(verdict))
		}
		id := int(info.ID)
		for _, c := range []struct {
			name string
			args []uint64
			want int
		}{
			{"read", nil, allowed},
			{"openat", nil, allowed},
			{"execve", nil, allowed},
			{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allowed},
			{"clone", []uint64{unix.CLONE_NEWUSER}, no(unix.EPERM)},
			{"unshare", []uint64{0x80}, no(unix.EPERM)},
			{"unshare", []uint64{unix.CLONE_FILES}, allowed},
			{"clone3", nil, no(unix.ENOSYS)},
			{"mount", nil, no(unix.EPERM)},
			{"setns", nil, no(unix.EPERM)},
			{"ptrace", nil, no(unix.EPERM)},
			{"io_uring_setup", nil, no(unix.EPERM)},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, 0}, allowed},
			{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, 17}, allowed},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, 1}, no(unix.EPERM)},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, 262}, no(unix.EPROTONOSUPPORT)},
			{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, allowed},
			{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, no(unix.EAFNOSUPPORT)},
			{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, no(unix.EPROTONOSUPPORT)},
			{"ioctl", []uint64{0, 1<<32 + unix.TIOCSTI}, no(unix.EPERM)},
			{"ioctl", []uint64{0, unix.TCGETS}, allowed},
			{"inotify_init1", nil, allowed},
			{"inotify_add_watch", nil, no(unix.EPERM)},
			{"fcntl", []uint64{0, unix.F_SETFL}, allowed},
			{"fcntl", []uint64{0, unix.F_NOTIFY}, no(unix.EPERM)},
			{"fcntl", []uint64{0, unix.F_SETLEASE}, no(unix.EPERM)},
			{"fadvise64", []uint64{0, 0, 0, unix.FADV_SEQUENTIAL}, allowed},
			{"fadvise64", []uint64{0, 0, 0, unix.FADV_DONTNEED}, no(0)},
			{"personality", []uint64{0x0040000}, no(unix.EPERM)},
			{"setuid", []uint64{0}, no(unix.EPERM)},
		} {
			n, ok := info.SyscallNames[c.name]
			if !ok {
				t.Errorf("%s: no call %s", info.Name, c.name)
				continue
			}
			if got := call(id, n, c.args...); got != c.want {
				t.Errorf("%s: %s%v: verdict %#x, want %#x", info.Name, c.name, c.args, got, c.want)
			}
		}
		// What no C library can do without, by number: the table's names differ
		// from the kernel's in places.
		for what, number := range map[string]map[*arch.Info]int{
			"newfstatat": {arch.X86_64: 262, arch.AARCH64: 79},
			"fstat":      {arch.X86_64: 5, arch.AARCH64: 80},
			"statx":      {arch.X86_64: 332, arch.AARCH64: 291},
			"lseek":      {arch.X86_64: 8, arch.AARCH64: 62},
			"mmap":       {arch.X86_64: 9, arch.AARCH64: 222},
			"fcntl":      {arch.X86_64: 72, arch.AARCH64: 25},
			"statfs":     {arch.X86_64: 137, arch.AARCH64: 43},
			"ftruncate":  {arch.X86_64: 77, arch.AARCH64: 46},
			"sendfile":   {arch.X86_64: 40, arch.AARCH64: 71},
			"fadvise64":  {arch.X86_64: 221, arch.AARCH64: 223},
			"prlimit64":  {arch.X86_64: 302, arch.AARCH64: 261},
			"futex":      {arch.X86_64: 202, arch.AARCH64: 98},
		} {
			if got := call(id, number[info]); got != allowed {
				t.Errorf("%s: %s: verdict %#x", info.Name, what, got)
			}
		}
		if got := call(id, 100_000); got != no(unix.ENOSYS) {
			t.Errorf("%s: an unknown call: %#x", info.Name, got)
		}
		if got := call(id, 1<<30); got != no(unix.ENOSYS) {
			t.Errorf("%s: an x32 call: %#x", info.Name, got)
		}
		if got := call(0x40000003, 0); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("%s: a call of another architecture: %#x", info.Name, got)
		}
		t.Logf("%s: %d instructions", info.Name, len(program))
	}
	for _, name := range slices.Concat(allowedCalls, deniedCalls) {
		_, a := arch.X86_64.SyscallNames[name]
		_, b := arch.AARCH64.SyscallNames[name]
		if !a && !b {
			t.Errorf("%s is no system call", name)
		}
	}
}
