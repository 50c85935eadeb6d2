// Package docker is the driver for Docker Engine: each sandbox is a container of
// a base image of package images.
//
// The engine makes the container (create.go); its first process, the helper
// (directory init), connects to a socket that is mounted beside it and waits.
// Over that connection it gets its plan, the guest's end of the stream and the
// pipes of its output (conn.go): no byte of a call passes through the engine.
// Before, the driver enters the container's namespaces, where it may, and makes
// the file systems and the network device there (enter.go).
// docs/isolation-docker.md explains what protects against what.
package docker

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/seccomp"
	"github.com/hearthrun/hearth/images"
)

// Images is where the driver finds base images; an images.Store is one.
type Images interface {
	List(ctx context.Context) ([]images.Image, error)
	Find(ctx context.Context, runtime string) (images.Image, error)
	Archive(ctx context.Context, img images.Image, w io.Writer) error
}

// Config configures the driver.
type Config struct {
	// Dir is the driver's own directory below the data directory. The engine
	// must see it under the same path.
	Dir string
	// Owner is the random id of the data directory: letters, digits and '-'.
	// Containers are named after it.
	Owner string
	// Images are those that sandboxes are made of.
	Images Images
	// Host is the engine's address, "unix:///path". Default DOCKER_HOST, or
	// unix:///var/run/docker.sock.
	Host string
	// OCIRuntime is the engine's runtime to use, "runsc" for example. Default
	// the engine's own default.
	OCIRuntime string
	Logger     *slog.Logger
}

// Driver makes sandboxes with Docker Engine. It implements driver.Driver.
type Driver struct {
	// Constant after New.
	dir     string
	owner   string
	images  Images
	host    string
	runtime string
	log     *slog.Logger
	client  *client.Client // nil if unusable is set
	// unusable is why there can be no engine at host.
	unusable error
	helper   string // path of the helper
	filter   []byte // the seccomp program
	root     bool   // may enter the containers' namespaces
	users    uint32 // first of the users of this owner's sandboxes
	stop     context.CancelFunc
	stopped  context.Context // ends with Close
	// Shorter in tests.
	unclearTime, helperTimeout time.Duration

	network egress.Host // what the sandboxes' network stacks share
	loads   loads
	sweeps  sync.WaitGroup

	mu        sync.Mutex
	sandboxes map[string]*sandbox // guarded by mu
	next      uint32              // guarded by mu: where to look for a free user
	taken     map[uint32]bool     // guarded by mu: offsets of users in use
	tries     int                 // guarded by mu: sandboxes made by Probe
	sweeping  bool                // guarded by mu
	facts     *facts              // guarded by mu: what the engine has said of itself
}

var _ driver.Driver = (*Driver)(nil)

// Names in the driver's directory and in the engine.
const (
	runDir       = "run" // one directory for each sandbox
	etcDir       = "etc" // the sandboxes' files in /etc
	socketName   = "socket"
	labelOwner   = "run.hearth.owner"
	labelSandbox = "run.hearth.sandbox"
)

// Each live sandbox has a user of the host of its own, from a range of the
// owner's, so that none can signal or trace another or use up its limits. The
// ranges lie above those of the native driver and of /etc/subuid.
const (
	firstUser  = 0x60000000
	usersEach  = 0x8000
	userRanges = 0x1fff
)

// New prepares the driver: its directory and its client. It does not talk to the
// engine; Probe does, and Probe and Create tell of an address that is none. The
// caller calls Close. Errors: CodeInvalid, CodeUnavailable.
func New(cfg Config) (*Driver, error) {
	if !driver.ValidID(cfg.Owner) || !filepath.IsAbs(cfg.Dir) || cfg.Images == nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "docker driver: owner %q, directory %q or the images are not valid", cfg.Owner, cfg.Dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Host == "" {
		cfg.Host = os.Getenv(client.EnvOverrideHost)
	}
	if cfg.Host == "" {
		cfg.Host = client.DefaultDockerHost
	}
	api, err := client.New(client.WithHost(cfg.Host))
	var unusable error
	if err != nil {
		unusable = hearth.Errorf(hearth.CodeUnsupported, "docker: the engine's address %q cannot be used: %w", cfg.Host, err).
			WithHint("start the server with --docker-host or DOCKER_HOST as unix:///path/to/docker.sock")
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(cfg.Owner))
	d := &Driver{
		dir: cfg.Dir, owner: cfg.Owner, images: cfg.Images, host: cfg.Host, runtime: cfg.OCIRuntime,
		log: cfg.Logger, client: api, unusable: unusable, root: os.Geteuid() == 0,
		unclearTime: unclearTime, helperTimeout: helperTimeout,
		users:     firstUser + h.Sum32()%userRanges*usersEach,
		sandboxes: map[string]*sandbox{}, taken: map[uint32]bool{},
	}
	d.stopped, d.stop = context.WithCancel(context.Background())
	if d.filter, err = seccomp.Filter(); err != nil {
		_ = d.Close()
		return nil, hearth.Errorf(hearth.CodeInternal, "docker driver: %w", err)
	}
	if err := d.prepare(); err != nil {
		_ = d.Close()
		return nil, hearth.Errorf(hearth.CodeUnavailable, "docker driver: %w", err).
			WithHint("make %s writable for the user that runs hearth", cfg.Dir)
	}
	return d, nil
}

// prepare makes the driver's directory.
func (d *Driver) prepare() error {
	if err := os.MkdirAll(d.dir, 0o711); err != nil {
		return err
	}
	// Only this process's user passes here: what lies below is reached through
	// the mount of the one sandbox that it belongs to.
	run := filepath.Join(d.dir, runDir)
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(run, 0o700); err != nil { //nolint:gosec // a directory
		return err
	}
	etc := filepath.Join(d.dir, etcDir)
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"hosts":           "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
		"hostname":        "sandbox\n",
		"resolv.none":     "",
		"resolv.internet": "nameserver " + egress.Gateway + "\n",
	} {
		if err := writeFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	var err error
	d.helper, err = writeHelper(d.dir)
	return err
}

// Close ends what goes on in the background and the connections to the engine.
func (d *Driver) Close() error {
	d.stop()
	d.sweeps.Wait()
	if d.client == nil {
		return nil
	}
	return d.client.Close()
}

// name is the container's name: an id is unique for its owner only.
func (d *Driver) name(id string) string { return "hearth." + d.owner + "." + id }

func (d *Driver) runPath(id string) string { return filepath.Join(d.dir, runDir, id) }

func (d *Driver) slotPath(id string) string { return filepath.Join(d.runPath(id), "slots") }

// reserve registers a new sandbox under its id and gives it a user.
func (d *Driver) reserve(s *sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.sandboxes[s.id]; ok {
		return hearth.Errorf(hearth.CodeConflict, "a sandbox %q exists already", s.id)
	}
	if len(d.taken) >= usersEach/2 {
		return hearth.Errorf(hearth.CodeExhausted, "%d sandboxes are the most this driver can run", usersEach/2)
	}
	if err := os.Mkdir(s.dir, 0o700); errors.Is(err, os.ErrExist) {
		return errLeft(s.id)
	} else if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the directory of sandbox %s: %w", s.id, err)
	}
	for d.taken[d.next%usersEach] {
		d.next++
	}
	s.user = d.next % usersEach
	d.next++
	d.taken[s.user] = true
	s.creating = true
	d.sandboxes[s.id] = s
	return nil
}

// errLeft says that an earlier process left a sandbox of this id.
func errLeft(id string) error {
	return hearth.Errorf(hearth.CodeConflict, "a sandbox %q of an earlier run exists", id).
		WithHint("destroy what List returns first")
}

// release undoes reserve.
func (d *Driver) release(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandboxes[s.id] == s {
		delete(d.sandboxes, s.id)
		delete(d.taken, s.user)
	}
}

// List returns the sandboxes of this process, without those that Create still
// works on, and those that an earlier one left behind: known by the label of
// their container or by their directory.
func (d *Driver) List(ctx context.Context) ([]driver.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	entries, err := os.ReadDir(filepath.Join(d.dir, runDir))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "docker driver: list sandboxes: %w", err)
	}
	left := map[string]bool{}
	for _, e := range entries {
		if driver.ValidID(e.Name()) {
			left[e.Name()] = true
		}
	}
	if d.unusable != nil { // then this process has made none
		if len(left) > 0 {
			return nil, d.unusable
		}
		return nil, nil
	}
	found, err := d.client.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", labelOwner+"="+d.owner),
	})
	if err != nil && (len(left) > 0 || !isAbsent(err)) {
		return nil, d.explain("list containers", err)
	}
	for _, c := range found.Items {
		id := c.Labels[labelSandbox]
		if driver.ValidID(id) && len(c.Names) > 0 && strings.TrimPrefix(c.Names[0], "/") == d.name(id) {
			left[id] = true
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []driver.Sandbox
	for id, s := range d.sandboxes {
		delete(left, id)
		if !s.creating {
			list = append(list, s)
		}
	}
	for id := range left {
		list = append(list, d.orphan(id))
	}
	return list, nil
}

// sweep goes on freeing, in the background, what Destroy could not free because
// the engine was away.
func (d *Driver) sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sweeping || d.stopped.Err() != nil {
		return
	}
	d.sweeping = true
	d.sweeps.Go(func() {
		for {
			select {
			case <-d.stopped.Done():
				return
			case <-time.After(sweepInterval):
			}
			if d.swept() {
				return
			}
		}
	})
}

// swept destroys what was given up and tells whether nothing is left of it.
func (d *Driver) swept() bool {
	d.mu.Lock()
	var again []*sandbox
	for _, s := range d.sandboxes {
		if s.givenUp.Load() {
			again = append(again, s)
		}
	}
	if len(again) == 0 {
		d.sweeping = false
	}
	d.mu.Unlock()
	if len(again) == 0 {
		return true
	}
	if _, err := d.client.Ping(d.stopped, client.PingOptions{}); err != nil {
		return false
	}
	for _, s := range again {
		if d.stopped.Err() != nil {
			break
		}
		_ = s.Destroy(d.stopped) // the next round tries again
	}
	return false
}

const sweepInterval = time.Second

// listen makes the socket of a sandbox in its directory, whose path may be longer
// than the 107 bytes that an address can have.
func listen(dir string) (*net.UnixListener, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fdPath(f) + "/" + socketName})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, os.Chmod(filepath.Join(dir, socketName), 0o666) //nolint:gosec // only the sandbox sees it
}
