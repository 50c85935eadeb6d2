package driver

import (
	"maps"
	"math"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
)

var (
	idRE  = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	envRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// ValidID tells whether id can name a sandbox.
func ValidID(id string) bool { return idRE.MatchString(id) }

// Provided is the runtime without an interpreter of a language.
const Provided = "provided"

// GuestDir is where guest.Shims is readable inside every sandbox.
const GuestDir = "/hearth/guest"

// GuestEnvironment returns the environment of a guest: what its image sets, as
// NAME=value, over the defaults of Environment, what the spec sets over both,
// and above all the descriptor of its stream.
func GuestEnvironment(image []string, spec map[string]string, bin string) []string {
	vars := map[string]string{}
	for _, kv := range image {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			vars[k] = v
		}
	}
	maps.Copy(vars, spec)
	return append(Environment(vars, bin), streamVar+"=3")
}

// streamVar tells a guest the descriptor of its stream.
const streamVar = "HEARTH_FD"

// Environment returns what a guest finds in its environment: PATH, with bin
// first unless it is empty, HOME, TMPDIR, LANG, and extra, which wins, without
// the descriptor of the stream, which the driver alone tells. Nothing of the
// host's environment gets in. It is sorted.
func Environment(extra map[string]string, bin string) []string {
	search := "/usr/local/bin:/usr/bin:/bin"
	if bin != "" && !slices.Contains(strings.Split(search, ":"), bin) {
		search = bin + ":" + search
	}
	env := map[string]string{"PATH": search, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
	maps.Copy(env, extra)
	delete(env, streamVar)
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// reserved are the places inside a sandbox that no mount may hide or replace.
var reserved = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/nix", "/hearth"}

// Validate checks what can be checked without knowing the driver, and that the
// sources of mounts exist. Drivers call it with the default limits filled in.
// Errors: CodeInvalid.
func (spec Spec) Validate() error {
	if err := spec.Limits.validate(); err != nil {
		return err
	}
	switch {
	case !idRE.MatchString(spec.ID):
		return bad("use 1 to 40 of a-z, 0-9 and -", "sandbox id %q is not valid", spec.ID)
	case spec.Egress != "" && spec.Egress != hearth.EgressNone && spec.Egress != hearth.EgressInternet:
		return bad("choose internet or none", "egress %q is not valid", string(spec.Egress))
	}
	if spec.Runtime == Provided && len(spec.Command) == 0 {
		return bad("set the command to the path of a program inside the sandbox", "the runtime provided needs a command")
	}
	if spec.Build && (spec.Runtime == Provided || len(spec.Command) > 0) {
		return bad("choose a runtime with a language, and no command", "a build cannot have a command of its own")
	}
	for _, a := range spec.Allow {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			return bad("write host:port", "endpoint %q is not valid", a)
		}
	}
	total := 0
	for k, v := range spec.Env {
		total += len(k) + len(v)
		if !envRE.MatchString(k) || strings.ContainsRune(v, 0) {
			return bad("names have letters, digits and underscores; values no NUL byte", "environment variable %q is not valid", k)
		}
	}
	for _, a := range spec.Command {
		total += len(a)
		if strings.ContainsRune(a, 0) {
			return bad("remove it", "the command contains a NUL byte")
		}
	}
	if total > 1<<20 {
		return bad("put large data into files", "environment and command have %d bytes, more than 1 MiB", total)
	}
	if len(spec.Command) > 0 && !path.IsAbs(spec.Command[0]) {
		return bad("write the path of the program inside the sandbox", "command %q is not an absolute path", spec.Command[0])
	}
	for _, m := range spec.Mounts {
		if !filepath.IsAbs(m.Source) || strings.ContainsRune(m.Source, 0) {
			return bad("write the directory's path from the root", "mount source %q is not an absolute path", m.Source)
		}
		if info, err := os.Stat(m.Source); err != nil || !info.IsDir() {
			return bad("make the directory first", "mount source %s is not a directory that hearth can see", m.Source)
		}
	}
	targets := spec.Targets()
	for i, target := range targets {
		if !path.IsAbs(target) || path.Clean(target) != target || target == "/" || strings.ContainsRune(target, 0) {
			return bad("write a path from the root, without . and ..", "mount target %q is not a clean absolute path", target)
		}
		for _, r := range reserved {
			if Overlap(target, r) {
				return bad("choose another place, for example below /mnt", "mount target %s overlaps %s", target, r)
			}
		}
		for _, o := range targets[:i] {
			if Overlap(target, o) {
				return bad("give each mount a place of its own", "mount targets %s and %s overlap", o, target)
			}
		}
	}
	return nil
}

// Targets are the places inside that mounts and slots take.
func (spec Spec) Targets() []string {
	targets := make([]string, 0, len(spec.Mounts)+len(spec.Slots))
	for _, m := range spec.Mounts {
		targets = append(targets, m.Target)
	}
	return append(targets, spec.Slots...)
}

// validate checks limits that have their defaults.
func (l Limits) validate() error {
	switch {
	case l.Memory < 4<<20 || l.Memory > 1<<50:
		return bad("choose at least 4 MiB, or 0 for the default", "memory limit of %d bytes is out of range", l.Memory)
	case math.IsNaN(l.CPU) || l.CPU < 0.01 || l.CPU > 4096:
		return bad("choose at least 0.01 cores, or 0 for the default", "cpu limit of %v cores is out of range", l.CPU)
	case l.PIDs < 1 || l.PIDs > 1<<20:
		return bad("choose at least 1, or 0 for the default", "limit of %d processes is out of range", l.PIDs)
	case l.Disk < 4096 || l.Disk > 1<<50:
		return bad("choose at least 4 KiB, or 0 for the default", "disk limit of %d bytes is out of range", l.Disk)
	}
	return nil
}

// Resized returns the limits of a sandbox that has l after Resize(to). Errors:
// CodeInvalid.
func (l Limits) Resized(to Limits) (Limits, error) {
	if to.PIDs != 0 && to.PIDs != l.PIDs || to.Disk != 0 && to.Disk != l.Disk {
		return l, bad("create another sandbox, or leave them 0", "the limits of processes and disk cannot change")
	}
	to.PIDs, to.Disk = l.PIDs, l.Disk
	to = to.WithDefaults()
	return to, to.validate()
}

func bad(hint, format string, args ...any) error {
	return hearth.Errorf(hearth.CodeInvalid, format, args...).WithHint("%s", hint)
}

// Overlap tells whether one path is the other or lies below it.
func Overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}
