package docker_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/docker"
)

// TestContainer looks at what the engine was asked for.
func TestContainer(t *testing.T) {
	host := engine(t)
	api, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.Close() })
	d := closing(t, host, &bare{})
	sp := spec(t, "labelled")
	sp.Labels = map[string]string{"run.hearth.function": "hello", "run.hearth.owner": "somebody-else"}
	sp.Limits = driver.Limits{Memory: 96 << 20, CPU: 0.5, PIDs: 50}
	s, err := d.Create(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	found, err := api.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", "run.hearth.function=hello", "run.hearth.sandbox=labelled")})
	if err != nil || len(found.Items) != 1 {
		t.Fatalf("%d containers have the labels, %v", len(found.Items), err)
	}
	r, err := api.ContainerInspect(t.Context(), found.Items[0].ID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, h := r.Container, r.Container.HostConfig
	if owner := c.Config.Labels["run.hearth.owner"]; owner == "somebody-else" || !strings.HasPrefix(c.Name, "/hearth."+owner+".") {
		t.Errorf("a label of the caller's made the container another's: %s, %s", owner, c.Name)
	}
	for what, ok := range map[string]bool{
		"read-only root":  h.ReadonlyRootfs,
		"no privileges":   !h.Privileged && slices.Equal(h.CapDrop, []string{"ALL"}) && len(h.CapAdd) == 0,
		"no restart":      h.RestartPolicy.IsNone() && !h.AutoRemove,
		"no log":          h.LogConfig.Type == "none",
		"memory":          h.Memory == 96<<20 && h.MemorySwap == h.Memory,
		"cpu":             h.CPUQuota*2 == h.CPUPeriod,
		"no network":      h.NetworkMode.IsNone(),
		"own user":        c.Config.User != "" && !strings.HasPrefix(c.Config.User, "0:"),
		"own ipc":         h.IpcMode.IsPrivate() || h.IpcMode.IsNone(),
		"no set-user-ID":  slices.Contains(h.SecurityOpt, "no-new-privileges:true"),
		"dies before us":  h.OomScoreAdj > 0,
		"processes":       h.PidsLimit != nil && *h.PidsLimit >= 50 && *h.PidsLimit < 70,
		"nothing exposed": len(h.PortBindings) == 0 && len(h.Binds) == 0 && len(h.Devices) == 0,
	} {
		if !ok {
			t.Errorf("%s: %+v", what, h)
		}
	}
	for _, m := range h.Mounts {
		if !m.ReadOnly {
			t.Errorf("%s is mounted writable on %s", m.Source, m.Target)
		}
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := api.ContainerInspect(t.Context(), c.ID, client.ContainerInspectOptions{}); err == nil {
		t.Error("the container is still there after Destroy")
	}
	empty(t, d)
}

// TestOCIRuntime runs sandboxes in gVisor, by the engine's runtime runsc.
func TestOCIRuntime(t *testing.T) {
	if os.Getenv("HEARTH_TEST_RUNSC") == "" {
		t.Skip("HEARTH_TEST_RUNSC, the path of runsc, is not set")
	}
	e := startEngine(t)
	for name, works := range map[string]bool{"runsc": true, "no-such-runtime": false} {
		t.Run(name, func(t *testing.T) {
			d, err := docker.New(docker.Config{Dir: filepath.Join(t.TempDir(), "docker"), Owner: "runtime", Images: &bare{}, Host: e.host, OCIRuntime: name})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			info, err := d.Probe(t.Context())
			if err != nil || info.Works != works || info.Internet {
				t.Fatalf("Probe: %+v, %v", info, err)
			}
			if !works {
				if !strings.Contains(info.Missing[0].What, name) {
					t.Errorf("Probe does not name the runtime: %+v", info.Missing)
				}
				return
			}
			s, c := running(t, d, "one")
			if err := s.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
			if x := ended(t, s, c); !x.Destroyed {
				t.Errorf("Exit is %+v, want Destroyed", x)
			}
		})
	}
}

// unprivilegedEnv is set in the process that TestUnprivileged starts as nobody.
const unprivilegedEnv = "HEARTH_TEST_UNPRIVILEGED"

// TestUnprivileged uses the engine as a user who may, but is not root.
func TestUnprivileged(t *testing.T) {
	if host := os.Getenv(unprivilegedEnv); host != "" {
		asUser(t, host)
		return
	}
	e := startEngine(t)
	dir, err := guestDir()
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp("", "hearth-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if err := errors.Join(os.Chmod(tmp, 0o777), os.Chmod(e.dir, 0o755), os.Chmod(filepath.Join(e.dir, "docker.sock"), 0o666)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUnprivileged$")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), unprivilegedEnv+"="+e.host, testguestEnv+"="+dir, "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}

func asUser(t *testing.T, host string) {
	d := closing(t, host, &bare{})
	info, err := d.Probe(t.Context())
	if err != nil || !info.Works || info.Internet || len(info.Limitations) == 0 || !info.MemoryLimit {
		t.Fatalf("Probe: %+v, %v", info, err)
	}
	sp := spec(t, "internet")
	sp.Egress = hearth.EgressInternet
	if _, err := d.Create(t.Context(), sp); hearth.ErrorCode(err) != hearth.CodeUnsupported {
		t.Errorf("Create with egress internet: %v", err)
	}
	sp = spec(t, "disk")
	sp.Limits.Disk = 16 << 20
	s, err := d.Create(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run", "/"} {
		a, err := fill(c, dir+"/file")
		if err != nil {
			t.Fatal(err)
		}
		if sum += a.N; a.N == 0 && strings.Contains(dir, "tmp") {
			t.Errorf("nothing can be written to %s: %s", dir, a.Err)
		}
	}
	for _, file := range []string{"/dev/ptmx", "/dev/pts/ptmx", "/dev/mqueue/x"} {
		if a, err := converse(c, map[string]any{"Op": "write", "Path": file, "Text": "1"}); err != nil || a.Err == "" {
			t.Errorf("%s can be opened, of which the kernel has few: %v", file, err)
		}
	}
	if sum > 16<<20 {
		t.Errorf("%d bytes could be written with a limit of 16 MiB", sum)
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	empty(t, d)
}

func converse(c net.Conn, request map[string]any) (guestAnswer, error) {
	if err := ask(c, request); err != nil {
		return guestAnswer{}, err
	}
	return answerOf(c)
}

// fill writes to a file of the guest's until that fails.
func fill(c net.Conn, file string) (guestAnswer, error) {
	a, err := converse(c, map[string]any{"Op": "write", "Path": file, "N": 64 << 20})
	if err == nil && a.Err == "" {
		err = fmt.Errorf("64 MiB could be written to %s", file)
	}
	return a, err
}
