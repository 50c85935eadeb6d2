// Package driver is the contract between Hearth and an isolation technology.
//
// A driver creates sandboxes: one Linux sandbox, container, VM or pod with the
// guest of a runtime running inside, and gives a byte stream into it. It knows
// nothing of functions, versions or calls. Words:
//
//   - A sandbox is what Create returns. It belongs to the caller until Destroy.
//   - The guest is the process inside that speaks the protocol of package guest
//     on that stream.
//   - An owner is one installation of Hearth (one data directory). Drivers mark
//     what they create with it, and touch nothing of another owner.
//
// Package drivertest is this contract as an executable specification; where
// the two differ, drivertest is right.
package driver

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/hearthrun/hearth"
)

// Driver makes sandboxes. Its methods may be called from many goroutines.
type Driver interface {
	// Probe tells whether the driver works on this host by really starting
	// something, and exactly what it can and cannot enforce. A driver that does
	// not work is no error: Info.Missing says why. It may take a second; callers
	// keep the result.
	Probe(ctx context.Context) (Info, error)

	// Create starts a sandbox and returns once its guest's process was started;
	// the guest need not have spoken yet. On any error, and when ctx ends before
	// it returns, nothing remains of the sandbox. Errors: CodeInvalid for a bad
	// Spec, CodeNotFound for an unknown runtime, CodeUnsupported for a policy or
	// limit that cannot be enforced, CodeUnavailable for a failure of the host.
	Create(ctx context.Context, spec Spec) (Sandbox, error)

	// List returns every sandbox of this owner that exists on the host, also
	// those of an earlier, perhaps killed, process. The server destroys what it
	// finds before it serves.
	List(ctx context.Context) ([]Sandbox, error)

	// Close frees what the driver itself holds. It does not destroy sandboxes;
	// callers do so first.
	Close() error
}

// Sandbox is one running sandbox. Its methods may be called from many
// goroutines.
type Sandbox interface {
	// ID is Spec.ID.
	ID() string

	// Dial returns the byte stream to the guest. A sandbox has one stream in its
	// life: a second Dial fails with CodeConflict, as does one of a sandbox that
	// came from List. The caller closes it; Destroy breaks it too.
	Dial(ctx context.Context) (net.Conn, error)

	// Wait blocks until the guest has exited or ctx has ended (then with its
	// error). Any number of callers, before or after the exit, get the same Exit.
	Wait(ctx context.Context) (Exit, error)

	// Stats returns what the sandbox uses now. Errors: CodeNotFound after Destroy.
	Stats(ctx context.Context) (Stats, error)

	// Destroy kills everything inside and frees everything on the host. It is
	// idempotent, safe to call concurrently and while paused. It goes on freeing
	// after ctx has ended, and returns an error only if something remains.
	Destroy(ctx context.Context) error
}

// Pauser is implemented by sandboxes that can be frozen: they then use no CPU.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Meter is implemented by sandboxes that know at little cost (Stats may take
// long) what they use.
type Meter interface {
	// CPU returns Usage.CPU alone.
	CPU() time.Duration
	// Usage returns what all that belongs to the sandbox uses; known is false where
	// Stats alone can tell, and after Destroy.
	Usage() (u Usage, known bool)
}

// Mounter is implemented by sandboxes whose slots (Spec.Slots) can be filled
// while they run. A driver without it refuses a Spec with slots: CodeUnsupported.
type Mounter interface {
	// Mount fills the slot m.Target with the files of the host's directory
	// m.Source: once it has returned, the guest sees them there, read-only, as it
	// would see a mount of Spec.Mounts. The caller does not change Source as long
	// as the sandbox exists. Each slot can be filled once. Errors: CodeInvalid for
	// a target that is no slot, or a source that is no directory or has other files
	// than regular ones, directories and symbolic links; CodeConflict for a slot
	// that was filled before; CodeNotFound after Destroy; CodeUnsupported where
	// this host cannot show these files late, and Create with a mount is the way;
	// CodeUnavailable. After an error the slot may hold a part of the files, and
	// is not filled again: the caller destroys the sandbox. It takes longer the
	// more files there are, and so does Destroy then: for thousands of them a new
	// sandbox with a mount may be there sooner.
	Mount(ctx context.Context, m Mount) error
}

// Resizer is implemented by sandboxes whose limits can be changed while they
// run.
type Resizer interface {
	// Resize gives the sandbox other limits of memory and CPU, where the driver
	// enforces them; zero means the default, as in Spec. The limits of processes and of
	// the disk stay: zero, or what they are. Memory in use beyond a lower limit is
	// reclaimed, as far as that is possible without killing anything. On an error
	// all limits are what they were. A program that has adapted to what it found at
	// its start does not notice. Errors: CodeInvalid; CodeUnavailable when
	// more memory is in use than the new limit; CodeNotFound after Destroy.
	Resize(ctx context.Context, l Limits) error
}

// Snapshotter is implemented by sandboxes whose whole state, memory included,
// can be saved.
type Snapshotter interface {
	// Snapshot saves the sandbox to dir, an existing empty directory that only
	// this process's user may enter: the memory of a function may hold secrets.
	// The guest must have agreed before (guest.Conn.PrepareSnapshot), and its
	// stream must stay open meanwhile. The sandbox has ended afterwards; the
	// caller destroys it. On an error dir may hold anything. Errors:
	// CodeUnsupported for a sandbox that was started so that it cannot be saved.
	Snapshot(ctx context.Context, dir string) error
}

// Restorer is implemented by drivers that can start sandboxes from what
// Snapshotter saved.
type Restorer interface {
	// Restore is Create, except that the guest goes on where it was saved, with a
	// new stream (guest.Resume) and the host's clock and randomness. spec must
	// equal the one of the saved sandbox, with the limits it had at last, but for
	// ID, Labels, Stdout and Stderr, and for slots that were filled, which become
	// Mounts of the same files; Env is what the guest got when it was started. Any number may be restored from one
	// snapshot, also at once. Errors: those of Create; CodeUnavailable for a snapshot
	// that cannot be used, after which Create is the way.
	Restore(ctx context.Context, spec Spec, dir string) (Sandbox, error)
}

// Spec describes a sandbox.
type Spec struct {
	// ID names the sandbox: 1 to 40 of a-z, 0-9 and '-', unique for the owner.
	ID string
	// Runtime selects the root file system and interpreter: one of
	// Info.Runtimes by its full name, or "provided" for a root file system with
	// C libraries but without an interpreter of a language.
	Runtime string
	// Command replaces the runtime's own guest; required for "provided". Paths
	// are those inside the sandbox.
	Command []string
	// Build starts the builder of the runtime's language, which installs
	// dependencies (package build), instead of its guest, which serves calls:
	// without a Command, drivers run guest.CommandFor(spec.Build, …). Not for
	// "provided".
	Build bool
	// Env are variables for the guest besides PATH, HOME, LANG and TMPDIR, which
	// the driver sets. Nothing of the host's environment goes in.
	Env map[string]string
	// Mounts are read-only views of host directories.
	Mounts []Mount
	// Slots are directories inside the sandbox, absolute, that are there and empty
	// until Mounter fills them, and that the sandbox cannot write to.
	Slots  []string
	Limits Limits
	// Egress is what the sandbox may connect to; empty means none. With internet
	// it reaches public addresses and a name server: never the host, private,
	// link-local or metadata addresses, nor another sandbox. None leaves it a
	// loopback interface of its own.
	Egress hearth.Egress
	// Allow are endpoints, "host:port", that a sandbox with internet may reach
	// besides, whatever their addresses are: package registries of a private
	// network. Names are resolved by the host.
	Allow []string
	// Labels are kept for people who look at the host (docker ps).
	Labels map[string]string
	// Stdout and Stderr receive what the guest's processes write to descriptors
	// 1 and 2, from goroutines of the driver, which wait for Write: a slow
	// writer slows the sandbox, not the host. No call comes after Destroy has
	// returned. nil discards.
	Stdout, Stderr io.Writer
}

// Mount is a read-only view of a host directory, without set-user-ID programs
// and devices.
type Mount struct {
	Source string // absolute, on the host
	Target string // absolute, inside; must not hide the runtime's own files
}

// Limits bound a sandbox. Zero means the driver's default, never unlimited.
type Limits struct {
	Memory int64   // bytes, including page cache charged to it and tmpfs; no swap
	CPU    float64 // cores
	PIDs   int     // processes and threads together; up to 8 more may be the driver's own
	Disk   int64   // bytes that can be written in total (/tmp and alike)
}

// Defaults for Limits.
const (
	DefaultMemory = 128 << 20
	DefaultCPU    = 1.0
	DefaultPIDs   = 256
	DefaultDisk   = 64 << 20
)

// WithDefaults returns l with zero fields set.
func (l Limits) WithDefaults() Limits {
	if l.Memory == 0 {
		l.Memory = DefaultMemory
	}
	if l.CPU == 0 {
		l.CPU = DefaultCPU
	}
	if l.PIDs == 0 {
		l.PIDs = DefaultPIDs
	}
	if l.Disk == 0 {
		l.Disk = DefaultDisk
	}
	return l
}

// Info is what a driver can do on this host.
type Info struct {
	Name    string `json:"name"`    // "native"
	Summary string `json:"summary"` // one line: the technology and its version
	// Works is false when Create would fail for every Spec; Missing then says
	// what is missing and how to get it.
	Works   bool      `json:"works"`
	Missing []Problem `json:"missing,omitempty"`
	// Limitations are what works less than fully: a limit that cannot be
	// enforced, a layer of protection the kernel lacks.
	Limitations []Problem `json:"limitations,omitempty"`
	// Enforced lists what protects the host, in words for hearth doctor.
	Enforced []string `json:"enforced,omitempty"`
	// Runtimes can be used as Spec.Runtime, sorted by language, newest first.
	Runtimes []Runtime `json:"runtimes"`
	// Internet tells whether hearth.EgressInternet can be enforced.
	Internet bool `json:"internet"`
	// MemoryLimit, CPULimit and PIDLimit tell whether Limits are enforced.
	MemoryLimit bool `json:"memory_limit"`
	CPULimit    bool `json:"cpu_limit"`
	PIDLimit    bool `json:"pid_limit"`
}

// Problem is something missing, with its remedy.
type Problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
}

// Runtime is a language environment a driver can start.
type Runtime struct {
	Name     string `json:"name"`     // "python3.11", "nodejs20"
	Language string `json:"language"` // "python", "nodejs"
	Version  string `json:"version"`  // "3.11.7"
	Source   string `json:"source"`   // where it comes from: a path or an image
}

// Exit is how a guest ended.
type Exit struct {
	// Code is the exit status, or -1 after a signal.
	Code int
	// Signal is the number of the signal that ended it, 0 if none.
	Signal int
	// OOM is true when the kernel killed a process for Limits.Memory.
	OOM bool
	// Destroyed is true when Destroy ended it.
	Destroyed bool
}

// Usage is what a sandbox uses and, but for Memory, has used since it was created. What
// cannot be known on a host is 0.
type Usage struct {
	CPU        time.Duration
	Memory     int64 // bytes charged now
	MemoryPeak int64 // greatest ever
	// NetworkIn and NetworkOut are bytes of packets from and to outside, DiskRead and
	// DiskWritten bytes from and to devices, which the host's cache may make fewer; in
	// groups of version 1 most writes are not known.
	NetworkIn, NetworkOut, DiskRead, DiskWritten int64
}

// Stats is what a sandbox uses, with what takes longer to find out.
type Stats struct {
	Usage
	PSS  int64 // proportional set size of its processes, 0 where unknown
	PIDs int   // processes and threads
}
