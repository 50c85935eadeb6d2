package native

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

var (
	idRE  = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	envRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	spec.Limits = spec.Limits.WithDefaults()
	if err := validate(spec); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	views, argv, bin, err := d.runtime(ctx, spec)
	if err != nil {
		return nil, err
	}
	return d.create(ctx, spec, views, argv, bin)
}

// create makes a sandbox with the given views of the host and command.
func (d *Driver) create(ctx context.Context, spec driver.Spec, views []view, argv []string, bin string) (driver.Sandbox, error) {
	s := &sandbox{
		driver: d, id: spec.ID, argv0: argv[0], limits: spec.Limits, group: noGroup{},
		stdout: spec.Stdout, stderr: spec.Stderr,
		started: make(chan error, 2), done: make(chan struct{}), output: output{ended: make(chan struct{})},
	}
	if err := d.reserve(s); err != nil {
		return nil, err
	}
	defer func() {
		d.mu.Lock()
		s.creating = false
		d.mu.Unlock()
	}()
	compose := func() *plan { return d.compose(spec, views, argv, environment(spec.Env, bin), "/tmp") }
	if err := d.bring(ctx, s, spec.Limits, compose); err != nil {
		if derr := s.Destroy(ctx); derr != nil {
			d.log.Error("native: a sandbox that failed to start remains", "sandbox", s.id, "err", derr)
		}
		return nil, err
	}
	return s, nil
}

// bring starts the reserved sandbox. After an error the caller destroys it.
func (d *Driver) bring(ctx context.Context, s *sandbox, limits driver.Limits, compose func() *plan) error {
	g, err := d.cgroups.create(s.id, limits)
	if errors.Is(err, fs.ErrExist) {
		return errLeft(s.id)
	}
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the control group of sandbox %s: %w", s.id, err)
	}
	s.group = g
	if err := d.spawn(s); err != nil {
		return hearth.AsError(err)
	}
	return s.start(ctx, compose())
}

// environment is the guest's: nothing of the host's gets in.
func environment(extra map[string]string, bin string) []string {
	search := "/usr/local/bin:/usr/bin:/bin"
	if bin != "" && !slices.Contains(strings.Split(search, ":"), bin) {
		search = bin + ":" + search
	}
	env := map[string]string{"PATH": search, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
	for k, v := range extra {
		env[k] = v
	}
	env["HEARTH_FD"] = "3"
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list
}

// reserved are the places inside a sandbox that no mount may hide or replace.
var reserved = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/nix", shimTarget}

// validate checks a spec with its defaults filled in.
func validate(spec driver.Spec) error {
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, format, args...).WithHint("%s", hint)
	}
	l := spec.Limits
	switch {
	case !idRE.MatchString(spec.ID):
		return bad("use 1 to 40 of a-z, 0-9 and -", "sandbox id %q is not valid", spec.ID)
	case l.Memory < 4<<20 || l.Memory > 1<<50:
		return bad("choose at least 4 MiB, or 0 for the default", "memory limit of %d bytes is out of range", l.Memory)
	case math.IsNaN(l.CPU) || l.CPU < 0.01 || l.CPU > 4096:
		return bad("choose at least 0.01 cores, or 0 for the default", "cpu limit of %v cores is out of range", l.CPU)
	case l.PIDs < 1 || l.PIDs > 1<<20:
		return bad("choose at least 1, or 0 for the default", "limit of %d processes is out of range", l.PIDs)
	case l.Disk < 4096 || l.Disk > 1<<50:
		return bad("choose at least 4 KiB, or 0 for the default", "disk limit of %d bytes is out of range", l.Disk)
	case spec.Egress != "" && spec.Egress != hearth.EgressNone && spec.Egress != hearth.EgressInternet:
		return bad("choose internet or none", "egress %q is not valid", string(spec.Egress))
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
	for i, m := range spec.Mounts {
		switch {
		case !filepath.IsAbs(m.Source) || strings.ContainsRune(m.Source, 0):
			return bad("write the directory's path from the root", "mount source %q is not an absolute path", m.Source)
		case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" || strings.ContainsRune(m.Target, 0):
			return bad("write a path from the root, without . and ..", "mount target %q is not a clean absolute path", m.Target)
		}
		if info, err := os.Stat(m.Source); err != nil || !info.IsDir() {
			return bad("make the directory first", "mount source %s is not a directory that hearth can see", m.Source)
		}
		for _, r := range reserved {
			if overlap(m.Target, r) {
				return bad("choose another place, for example below /mnt", "mount target %s overlaps %s", m.Target, r)
			}
		}
		for _, o := range spec.Mounts[:i] {
			if overlap(m.Target, o.Target) {
				return bad("give each mount a place of its own", "mount targets %s and %s overlap", o.Target, m.Target)
			}
		}
	}
	return nil
}

// overlap tells whether one path is the other or lies below it.
func overlap(a, b string) bool {
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}

// runtime returns what the spec's runtime needs: views of the host, command,
// and the directory of its programs.
func (d *Driver) runtime(ctx context.Context, spec driver.Spec) (views []view, argv []string, bin string, err error) {
	if spec.Runtime == "provided" {
		if len(spec.Command) == 0 {
			return nil, nil, "", hearth.Errorf(hearth.CodeInvalid, "the runtime provided needs a command").
				WithHint("set the command to the path of a program inside the sandbox")
		}
		return d.system, spec.Command, "", nil
	}
	it, ok := d.interpreterFor(ctx, spec.Runtime)
	if !ok {
		return nil, nil, "", hearth.Errorf(hearth.CodeNotFound, "this host has no runtime %q", spec.Runtime).
			WithHint("hearth doctor lists those it has; install another with your package manager and restart hearth")
	}
	argv = spec.Command
	if len(argv) == 0 {
		argv = guest.Command(it.Language, it.Exe, shimTarget)
	}
	views = append(it.views(d.system), view{source: d.shims, target: shimTarget})
	for _, v := range it.Views {
		for _, m := range spec.Mounts {
			if overlap(m.Target, v) {
				return nil, nil, "", hearth.Errorf(hearth.CodeInvalid, "mount target %s overlaps the runtime's %s", m.Target, v).
					WithHint("choose another place, for example below /mnt")
			}
		}
	}
	return views, argv, filepath.Dir(it.Exe), nil
}

// shimTarget is where the guests' files are inside a sandbox.
const shimTarget = "/hearth/guest"
