package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/images"
)

// functionDir is where plain commands find the function's code.
const functionDir = "/function"

// plainTimeout bounds one plain command.
const plainTimeout = 30 * time.Second

// The programs that load a function, call it once and print its answer. %s is
// the directory of the code, then the event's body.
const (
	plainPython = `import sys
d, b = %s, %s
sys.path[:0] = [d, d + "/.hearth/python"]
import main
r = main.handler({"body": b}, None)
sys.stdout.write(r if isinstance(r, str) else r["body"])
`
	plainNode = `const d = %s, b = %s;
import(d + "/main.mjs").then(async (m) => {
  const r = await m.handler({ body: b });
  process.stdout.write(typeof r === "string" ? r : r.body);
});
`
)

// plainArgs is the interpreter's command line: the shim's own options, with a
// program instead of the shim.
func plainArgs(runtime, interpreter, dir string) []string {
	args := guest.Command(language(runtime), interpreter, driver.GuestDir)
	args = args[:len(args)-1]
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	if language(runtime) == "nodejs" {
		return append(args, "-e", fmt.Sprintf(plainNode, quote(dir), quote(echoBody)))
	}
	return append(args, "-c", fmt.Sprintf(plainPython, quote(dir), quote(echoBody)))
}

// plainStart is a command that cold calls of a cell are compared with.
type plainStart struct {
	name    string
	cell    *cell
	problem string
	// command returns the command line of the next start, ready to run until ctx
	// ends.
	command func(ctx context.Context) *exec.Cmd
	shown   string
	walls   []float64
	release func() // may be nil
}

func (p *plainStart) close() {
	if p.release != nil {
		p.release()
		p.release = nil
	}
}

func (p *plainStart) report() PlainCommand {
	r := PlainCommand{
		Name: p.name, Driver: p.cell.driver, Runtime: p.cell.runtime, Workload: p.cell.workload,
		Command: p.shown, Wall: spread(p.walls), Problem: p.problem,
	}
	if r.Problem == "" && len(p.walls) == 0 {
		r.Problem = "it was not started"
	}
	return r
}

// start runs the command once and returns the time to its first byte. A command
// that fails is not started again.
func (p *plainStart) start(ctx context.Context) (time.Duration, error) {
	if p.problem != "" {
		return 0, nil
	}
	d, out, err := firstByte(ctx, plainTimeout, p.command)
	if err == nil && !bytes.Equal(out, p.cell.target.answer) {
		err = fmt.Errorf("it printed %q", clip(out))
	}
	if err != nil {
		if ctx.Err() == nil {
			p.problem = oneLine(err)
		}
		return 0, err
	}
	p.walls = append(p.walls, millis(d))
	return d, nil
}

// firstByte runs a command to its end, though not longer than limit, and returns
// how long its first byte of output took, and the output.
func firstByte(ctx context.Context, limit time.Duration, command func(context.Context) *exec.Cmd) (time.Duration, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := command(ctx)
	// Runtimes forward a termination to what they run, and clean up. What does not
	// end then is killed, and whoever else has the output is not waited for.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Second
	var words tail
	var out timedOutput
	cmd.Stdout, cmd.Stderr = &out, &words
	begin := time.Now()
	err := cmd.Run()
	name := filepath.Base(cmd.Path)
	switch words := words.String(); {
	case err == nil && !out.first.IsZero():
		return out.first.Sub(begin), out.b, nil
	case words != "":
		lines := strings.Split(words, "\n")
		return 0, nil, fmt.Errorf("%s failed: %s", name, lines[len(lines)-1])
	case err != nil:
		return 0, nil, fmt.Errorf("%s failed: %w", name, err)
	}
	return 0, nil, fmt.Errorf("%s printed nothing", name)
}

// timedOutput keeps what is written to it, up to a size, and when that began.
type timedOutput struct {
	first time.Time
	b     []byte
}

// Write implements io.Writer.
func (o *timedOutput) Write(b []byte) (int, error) {
	if o.first.IsZero() && len(b) > 0 {
		o.first = time.Now()
	}
	o.b = append(o.b, b[:min(len(b), max(2*maxBody-len(o.b), 0))]...)
	return len(b), nil
}

// findPlain prepares the plain commands: of the empty function, which shows what
// a start costs, and of the one that loads much.
func (c *comparing) findPlain(ctx context.Context) {
	names := map[string]string{"native": "bare interpreter", "runc": "runc run", "docker": "docker run", "gvisor": "runsc run"}
	for _, cl := range c.cells {
		name, ok := names[cl.driver]
		if !ok || !cl.runs() || cl.workload != "empty" && cl.workload != "imports" {
			continue
		}
		p := &plainStart{name: name, cell: cl}
		if err := c.preparePlain(ctx, p); err != nil {
			p.problem = "not available: " + oneLine(err)
			c.logf("%s of %s in %s is %s", name, cl.workload, cl.runtime, p.problem)
		}
		c.plain = append(c.plain, p)
	}
}

func (c *comparing) preparePlain(ctx context.Context, p *plainStart) error {
	cl := p.cell
	// The store's layout: an artifact's directory is named by its digest.
	code := filepath.Join(c.o.Server.DataDir, "artifacts", strings.TrimPrefix(cl.artifact, "sha256:"))
	if _, err := os.Stat(filepath.Join(code)); err != nil {
		return err
	}
	if cl.driver == "native" {
		return c.bare(ctx, p, code)
	}
	if c.o.ImagesDir == "" {
		return hearth.Errorf(hearth.CodeNotFound, "the directory of the base images is not known")
	}
	store, err := images.Open(c.o.ImagesDir)
	if err != nil {
		return err
	}
	img, err := store.Find(ctx, cl.runtime)
	if err != nil {
		return err
	}
	if cl.driver == "docker" {
		return c.docker(p, img, code)
	}
	return c.bundle(ctx, p, store, img, code)
}

// interpreter finds the program that a cell's runtime comes from.
func (c *comparing) interpreter(ctx context.Context, cl *cell) (interpreter, error) {
	source := ""
	for _, d := range c.drivers {
		for _, r := range d.Runtimes {
			if d.Name == cl.driver && r.Name == cl.runtime {
				source = r.Source
			}
		}
	}
	return findInterpreter(ctx, cl.runtime, source)
}

// bare starts the host's interpreter.
func (c *comparing) bare(ctx context.Context, p *plainStart, code string) error {
	i, err := c.interpreter(ctx, p.cell)
	if err != nil {
		return err
	}
	args := plainArgs(p.cell.runtime, i.Path, code)
	p.shown = i.Path + " …"
	p.command = func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = bareEnv()
		return cmd
	}
	return nil
}

// docker runs the image that the driver has loaded into the engine. Without a
// network, as the functions are: that is quicker than with one.
func (c *comparing) docker(p *plainStart, img images.Image, code string) error {
	path, err := exec.LookPath("docker")
	if err != nil {
		return hearth.Errorf(hearth.CodeNotFound, "there is no docker command on the PATH")
	}
	inside := plainArgs(p.cell.runtime, img.Interpreter, functionDir)
	args := append([]string{
		"run", "--rm", "--network", "none", "--volume", code + ":" + functionDir + ":ro", "--entrypoint", inside[0], img.Ref,
	}, inside[1:]...)
	p.shown = "docker run --rm --network none --volume CODE:" + functionDir + ":ro " + img.Ref + " " + inside[0] + " …"
	p.command = func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+c.o.DockerHost)
		return cmd
	}
	return nil
}

// bundle runs the unpacked image with what "runc spec" says of a container.
func (c *comparing) bundle(ctx context.Context, p *plainStart, store *images.Store, img images.Image, code string) (err error) {
	program := map[string]string{"runc": "runc", "gvisor": "runsc"}[p.cell.driver]
	path, err := findProgram(program)
	if err != nil {
		return err
	}
	root, err := store.RootFS(ctx, img)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hearth-plain-")
	if err != nil {
		root.Release()
		return err
	}
	p.release = func() {
		_ = os.RemoveAll(dir)
		root.Release()
	}
	cmd := exec.CommandContext(ctx, path, "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s spec failed: %s", program, clip(out))
	}
	inside := plainArgs(p.cell.runtime, img.Interpreter, functionDir)
	if err := plainConfig(filepath.Join(dir, "config.json"), inside, root.Dir, code); err != nil {
		return err
	}
	args := []string{"--root", filepath.Join(dir, "state")}
	if program == "runsc" {
		args = append(args, "--platform=systrap", "--network=none", "--ignore-cgroups")
	}
	p.shown = strings.Join(append([]string{program}, args[2:]...), " ") + " run … " + inside[0] + " …"
	args = append(args, "run", "--bundle", dir)
	var random [4]byte
	_, _ = rand.Read(random[:])
	n := 0
	p.command = func(ctx context.Context) *exec.Cmd {
		n++
		id := "hearth-plain-" + hex.EncodeToString(random[:]) + "-" + strconv.Itoa(n)
		return exec.CommandContext(ctx, path, append(args, id)...)
	}
	return nil
}

// findProgram looks where the drivers do: beside this program and on the PATH.
func findProgram(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", hearth.Errorf(hearth.CodeNotFound, "there is no %s on the PATH", name)
	}
	return p, nil
}

// plainConfig makes what "runc spec" wrote run the function.
func plainConfig(file string, args []string, root, code string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec struct {
		Process map[string]any   `json:"process"`
		Mounts  []map[string]any `json:"mounts"`
	}
	var all map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	spec.Process["terminal"] = false
	spec.Process["args"] = args
	all["process"] = spec.Process
	all["root"] = map[string]any{"path": root, "readonly": true}
	all["mounts"] = append(spec.Mounts,
		map[string]any{"destination": functionDir, "type": "bind", "source": code, "options": []string{"rbind", "ro"}},
		map[string]any{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
	)
	if b, err = json.Marshal(all); err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}
