package build

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const (
	// buildMount is where the sandbox sees the source and the certificates; it
	// is where the function will see its code.
	buildMount  = "/function"
	sourceDir   = "source"
	certsFile   = "ca.crt"
	buildPIDs   = 2048
	maxHead     = 64 << 10         // bytes of what a builder says of its result
	exitGrace   = 10 * time.Second // for a builder to end after it has failed
	destroyTime = 30 * time.Second
)

// errTimeLimit is the cause of the end of a build that takes too long.
var errTimeLimit = errors.New("time limit of a build")

// head is what a builder says before the archive, or instead of it. Code of
// packages runs beside the builder, so it may be a lie.
type head struct {
	OK        bool     `json:"ok"`
	Kind      string   `json:"kind"`      // why not: installer, no-installer, system
	Installer string   `json:"installer"` // pip, npm
	Status    int      `json:"status"`    // its exit status, negative for a signal
	Message   string   `json:"message"`   // of the system
	Bytes     int64    `json:"bytes"`
	Files     int      `json:"files"`
	Largest   [][2]any `json:"largest"` // names of packages and their bytes
}

// install runs the installer in a sandbox and adds the result to the cache. On
// an error nothing remains.
func (b *Builder) install(ctx context.Context, key string, r Request, in inputs, log *logBuffer) (digest string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.cfg.Timeout, errTimeLimit)
	defer cancel()
	work, err := b.cache.temp()
	if err != nil {
		return "", err
	}
	defer b.cache.remove(work)
	for _, note := range in.notes {
		log.line([]byte(note))
	}
	stage := filepath.Join(work, "stage")
	if err := b.stage(ctx, r, in, stage); err != nil {
		return "", b.ended(ctx, err)
	}
	out := filepath.Join(work, treeDir, filesDir)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", hostError(err)
	}
	nodes, err := b.run(ctx, r, in, stage, out, log)
	if err != nil {
		return "", b.ended(ctx, err)
	}
	if digest, err = b.cache.publish(key, work, nodes); err != nil {
		return "", err
	}
	if _, err := b.cache.prune(ctx, b.cfg.CacheSize); err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("build: old dependencies cannot be removed", "err", err)
	}
	return digest, nil
}

// ended replaces the error of a build whose ctx has ended.
func (b *Builder) ended(ctx context.Context, err error) error {
	switch {
	case ctx.Err() == nil:
		return err
	case errors.Is(context.Cause(ctx), errTimeLimit):
		return hearth.Errorf(hearth.CodeTimeout, "installing the dependencies took longer than the limit of %v", b.cfg.Timeout).
			WithHint("look at the log above for what it waited for; an install script may never end, or the registry be slow")
	}
	return stopped(ctx.Err())
}

// stage makes the directory that the sandbox sees: what the key of the build
// is made from, and the host's certificates.
func (b *Builder) stage(ctx context.Context, r Request, in inputs, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return hostError(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return hostError(err)
	}
	defer root.Close()
	files := map[string][]byte{}
	if b.certs != nil {
		files[certsFile] = b.certs
	}
	if !in.local {
		for name, content := range in.files {
			files[sourceDir+"/"+name] = content
		}
	}
	// Modes are set again because of the umask: another user reads it.
	err = errors.Join(root.Chmod(".", 0o755), root.Mkdir(sourceDir, 0o755), root.Chmod(sourceDir, 0o755))
	for name, content := range files {
		for i, c := range name {
			if c == '/' && err == nil {
				err = errors.Join(root.MkdirAll(name[:i], 0o755), root.Chmod(name[:i], 0o755))
			}
		}
		if err == nil {
			err = errors.Join(root.WriteFile(name, content, 0o644), root.Chmod(name, 0o644))
		}
	}
	if err != nil {
		return hostError(err)
	}
	if in.local {
		_, err = assemble(ctx, r.Source, nil, filepath.Join(dir, sourceDir))
	}
	return err
}

// run runs the builder in a sandbox and unpacks what it sends to out.
func (b *Builder) run(ctx context.Context, r Request, in inputs, stage, out string, log *logBuffer) (nodes map[string]*node, err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	stdout, stderr := &lineWriter{log: log}, &lineWriter{log: log}
	sandbox, err := r.Driver.Create(ctx, driver.Spec{
		ID: "build-" + hex.EncodeToString(id[:]), Runtime: r.Runtime.Name, Build: true,
		Env:    maps.Clone(b.cfg.Env),
		Mounts: []driver.Mount{{Source: stage, Target: buildMount}},
		Limits: driver.Limits{Memory: b.cfg.Memory, CPU: b.cfg.CPU, PIDs: buildPIDs, Disk: b.cfg.Disk},
		Egress: hearth.EgressInternet, Allow: slices.Clone(b.cfg.Allow),
		Labels: map[string]string{"build": in.manifest},
		Stdout: stdout, Stderr: stderr,
	})
	if err != nil {
		return nil, fmt.Errorf("make the sandbox that installs the dependencies: %w", err)
	}
	var destroyed bool
	destroy := func() { // ends the log, too
		if destroyed {
			return
		}
		destroyed = true
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTime)
		defer cancel()
		if err := sandbox.Destroy(ctx); err != nil {
			b.cfg.Logger.Error("build: a sandbox remains", "sandbox", sandbox.ID(), "err", err)
		}
		stdout.close()
		stderr.close()
	}
	defer destroy()
	conn, err := sandbox.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the sandbox that installs the dependencies: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()

	stream := bufio.NewReaderSize(conn, maxHead)
	h, err := readHead(stream)
	if err == nil && h.OK {
		nodes, err = b.receive(ctx, r, h, stream, out)
		return nodes, err
	}
	var exit driver.Exit
	if ctx.Err() == nil { // how it ended tells why
		ctx, cancel := context.WithTimeout(ctx, exitGrace)
		exit, _ = sandbox.Wait(ctx)
		cancel()
	}
	destroy()
	return nil, b.explain(in, h, err, exit, log.lastLines())
}

func readHead(r *bufio.Reader) (head, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return head{}, err
	}
	var h head
	err = json.Unmarshal(line, &h)
	return h, err
}

// receive unpacks the archive that follows the head.
func (b *Builder) receive(ctx context.Context, r Request, h head, stream io.Reader, out string) (map[string]*node, error) {
	limits := b.cfg.Limits
	if h.Files == 0 { // nothing was needed here: all requirements are for other systems
		return map[string]*node{}, nil
	}
	if h.Bytes > limits.Unpacked || h.Files > limits.Files {
		return nil, b.tooLarge(h)
	}
	nodes, _, err := extract(ctx, stream, Tar, out, limits)
	var e *hearth.Error
	if errors.As(err, &e) && e.Code == hearth.CodeInvalid {
		return nil, &hearth.Error{Code: e.Code, Message: "the installed dependencies cannot be part of a function: " + e.Message, Hint: e.Hint, Err: e}
	}
	if err != nil {
		return nil, err
	}
	own := ownDir
	if r.Runtime.Language == "nodejs" {
		own = modulesDir
	}
	for p := range nodes {
		if p != own && !strings.HasPrefix(p, own+"/") {
			return nil, badEntry(p, "was installed outside of "+own, "install it as a dependency")
		}
	}
	return nodes, nil
}

func (b *Builder) tooLarge(h head) error {
	hint := "use fewer or smaller packages"
	var names []string
	for _, l := range h.Largest {
		name, ok := l[0].(string)
		size, ok2 := l[1].(float64)
		if ok && ok2 && len(names) < 5 {
			names = append(names, fmt.Sprintf("%s (%s)", printable(name[:min(len(name), 60)]), megabytes(int64(size))))
		}
	}
	if len(names) > 0 {
		hint += "; the largest are " + strings.Join(names, ", ")
	}
	if h.Files > b.cfg.Limits.Files {
		return hearth.Errorf(hearth.CodeInvalid, "the dependencies are %d files, more than the limit of %d", h.Files, b.cfg.Limits.Files).WithHint("%s", hint)
	}
	return hearth.Errorf(hearth.CodeInvalid, "the dependencies are %s, more than the limit of %s", megabytes(h.Bytes), hearth.Bytes(b.cfg.Limits.Unpacked)).
		WithHint("%s", hint)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// explain says why a build has failed.
func (b *Builder) explain(in inputs, h head, err error, exit driver.Exit, tail []string) error {
	said := lastWords(tail)
	switch {
	case exit.OOM:
		return hearth.Errorf(hearth.CodeInvalid, "installing the dependencies took more memory than the limit of %s", hearth.Bytes(b.cfg.Memory)).
			WithHint("what is written while installing counts; use fewer or smaller packages, or ones that need not be compiled")
	case mentions(tail, "No space left on device", "ENOSPC"):
		return hearth.Errorf(hearth.CodeInvalid, "installing the dependencies wrote more than the limit of %s", hearth.Bytes(b.cfg.Disk)).
			WithHint("use fewer or smaller packages, or ones that need not be compiled")
	case err != nil && h.Kind == "":
		msg := "the builder ended without a result"
		if said != "" {
			msg += ": " + said
		}
		return &hearth.Error{
			Code: hearth.CodeInvalid, Message: fmt.Sprintf("%s (exit status %d, signal %d)", msg, exit.Code, exit.Signal),
			Hint: "look at the log above; an install script may have ended it", Err: err,
		}
	case h.Kind == "no-installer":
		name, how := "npm", "install npm beside Node.js"
		if in.manifest == requirementsFile {
			name, how = "pip", "install pip for the runtime's Python (Debian, Ubuntu: apt-get install python3-pip)"
		}
		return hearth.Errorf(hearth.CodeUnsupported, "%s names dependencies, but the runtime has no %s", in.manifest, name).
			WithHint("%s, use another isolation whose image has it, or upload the dependencies with the code", how)
	case h.Kind == "system":
		return hearth.Errorf(hearth.CodeInvalid, "the dependencies could not be put together: %s", printable(h.Message[:min(len(h.Message), 300)])).
			WithHint("look at the log above")
	}
	name := "npm"
	if in.manifest == requirementsFile {
		name = "pip"
	}
	if said == "" {
		said = fmt.Sprintf("exit status %d", h.Status)
	}
	if unreachable(tail) {
		return hearth.Errorf(hearth.CodeUnavailable, "%s could not reach a registry: %s", name, said).
			WithHint("check that the host reaches it; hearth serve has --build-allow for registries in a private network and --build-env for others than the public ones")
	}
	hint := "mend " + in.manifest + " and deploy again; the log above has all that " + name + " said"
	if mentions(tail, "can only install packages when your package.json and", "npm error code EUSAGE") {
		hint = "run npm install to bring " + lockFile + " up to date, and deploy again"
	}
	return hearth.Errorf(hearth.CodeInvalid, "%s failed: %s", name, said).WithHint("%s", hint)
}

// lastWords returns the lines in which an installer says what went wrong: npm
// does so before it explains its usage, pip at the end.
func lastWords(tail []string) string {
	const most = 6
	var said []string
	for _, line := range tail {
		text, ok, npm := "", false, false
		for _, prefix := range []string{"ERROR: ", "error: ", "npm error ", "npm ERR! "} {
			if text, ok = strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				npm = strings.HasPrefix(prefix, "npm")
				break
			}
		}
		if npm && len(said) == most {
			break
		}
		text = strings.TrimSpace(text)
		if !ok || text == "" || pointsAtLog(line) ||
			strings.HasPrefix(text, "subprocess-exited-with-error") || slices.Contains(said, text) {
			continue
		}
		if npm && text == "Usage:" {
			break
		}
		said = append(said, text[:min(len(text), 300)])
	}
	if len(said) > most {
		said = said[len(said)-most:]
	}
	if len(said) == 0 { // the last line that says something
		for _, line := range slices.Backward(tail) {
			if text := strings.TrimSpace(line); text != "" && !strings.HasPrefix(text, "note: ") && text != "[end of output]" {
				said = append(said, text[:min(len(text), 300)])
				break
			}
		}
	}
	return strings.ToValidUTF8(strings.Join(said, "; "), "")
}

func mentions(tail []string, texts ...string) bool {
	return slices.ContainsFunc(tail, func(line string) bool {
		return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(line, t) })
	})
}

// unreachable tells that an installer could not talk to a registry.
func unreachable(tail []string) bool {
	return slices.ContainsFunc(tail, func(line string) bool {
		if code, ok := strings.CutPrefix(strings.Replace(line, "npm ERR!", "npm error", 1), "npm error code "); ok {
			return slices.Contains([]string{
				"ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "EHOSTUNREACH", "ERR_SOCKET_TIMEOUT",
				"SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "E500", "E502", "E503", "E504",
			}, strings.TrimSpace(code))
		}
		return strings.HasPrefix(line, "WARNING: Retrying (") ||
			strings.HasPrefix(line, "Could not fetch URL ") || strings.HasPrefix(line, "ERROR: HTTP error 5")
	})
}
