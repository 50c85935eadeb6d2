package images

import (
	"archive/tar"
	"bytes"
	"io"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/hearthrun/hearth"
)

// recipe is a parsed Dockerfile of one stage that runs nothing.
type recipe struct {
	base     string
	commands []instructions.Command
	lex      *shell.Lex
	args     map[string]string // of the stage, by their names
}

// parseDockerfile reads a Dockerfile. args are build arguments. Errors:
// CodeInvalid for what is no Dockerfile, and CodeUnsupported for one that only
// docker build can build.
func parseDockerfile(b []byte, args map[string]string) (*recipe, error) {
	ast, err := parser.Parse(bytes.NewReader(b))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the Dockerfile cannot be read: %w", err)
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the Dockerfile cannot be read: %w", err)
	}
	if len(stages) != 1 {
		return nil, notHere("more than one FROM")
	}
	r := &recipe{commands: stages[0].Commands, lex: shell.NewLex(ast.EscapeToken), args: map[string]string{}}
	global := map[string]string{} // what FROM can use
	known := map[string]bool{}
	for _, a := range meta {
		if err := r.arg(a.Args, args, global, known); err != nil {
			return nil, err
		}
	}
	if r.base, err = r.expand(stages[0].BaseName, global); err != nil {
		return nil, err
	}
	if stages[0].Platform != "" {
		return nil, notHere("FROM --platform")
	}
	for _, c := range r.commands {
		switch c := c.(type) {
		case *instructions.ArgCommand:
			for _, a := range c.Args {
				if v, ok := global[a.Key]; ok && a.Value == nil {
					r.args[a.Key] = v
				}
			}
			if err := r.arg(c.Args, args, r.args, known); err != nil {
				return nil, err
			}
		case *instructions.CopyCommand:
			if c.From != "" || c.Chown != "" || c.Chmod != "" || c.Link || c.Parents || len(c.ExcludePatterns) > 0 || len(c.SourceContents) > 0 {
				return nil, notHere("COPY with options")
			}
		case *instructions.EnvCommand, *instructions.LabelCommand, *instructions.UserCommand, *instructions.WorkdirCommand:
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				return nil, notHere("ENTRYPOINT without [ ]")
			}
		case *instructions.CmdCommand:
			if c.PrependShell {
				return nil, notHere("CMD without [ ]")
			}
		default:
			return nil, notHere(strings.ToUpper(c.Name()))
		}
	}
	for name := range args {
		if !known[name] {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the Dockerfile has no build argument %s", name)
		}
	}
	return r, nil
}

func notHere(what string) error {
	return hearth.Errorf(hearth.CodeUnsupported, "the Dockerfile has what cannot be built without a daemon: %s", what).
		WithHint("build it with docker build, then hearth images build --base docker-daemon:THAT-IMAGE")
}

func (r *recipe) arg(declared []instructions.KeyValuePairOptional, given, into map[string]string, known map[string]bool) error {
	for _, a := range declared {
		known[a.Key] = true
		if v, ok := given[a.Key]; ok {
			into[a.Key] = v
		} else if a.Value != nil {
			v, err := r.expand(*a.Value, into)
			if err != nil {
				return err
			}
			into[a.Key] = v
		}
	}
	return nil
}

func (r *recipe) expand(word string, vars map[string]string) (string, error) {
	env := make([]string, 0, len(vars))
	for _, k := range sortedKeys(vars) {
		env = append(env, k+"="+vars[k])
	}
	s, _, err := r.lex.ProcessWord(word, shell.EnvsFromSlice(env))
	if err != nil {
		return "", hearth.Errorf(hearth.CodeInvalid, "the Dockerfile cannot be read: %w", err)
	}
	return s, nil
}

// addition is one layer on top of the base, with the line that makes it.
type addition struct {
	line  string
	layer []byte // a tar
}

// apply changes the base's configuration as the Dockerfile says and returns
// the layers it adds.
func (r *recipe) apply(cfg *v1.Config, files buildContext) ([]addition, error) {
	var layers []addition
	expander := func(word string) (string, error) {
		vars := envMap(cfg.Env)
		for k, v := range r.args {
			if _, ok := vars[k]; !ok { // ENV wins
				vars[k] = v
			}
		}
		return r.expand(word, vars)
	}
	for _, c := range r.commands {
		if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
			if err := e.Expand(expander); err != nil {
				return nil, err
			}
		}
		switch c := c.(type) {
		case *instructions.CopyCommand:
			layer, err := copyLayer(files, c.SourcePaths, c.DestPath)
			if err != nil {
				return nil, err
			}
			layers = append(layers, addition{"COPY " + strings.Join(append(c.SourcePaths, c.DestPath), " "), layer})
		case *instructions.EnvCommand:
			for _, kv := range c.Env {
				cfg.Env = setEnv(cfg.Env, kv.Key, kv.Value)
			}
		case *instructions.LabelCommand:
			for _, kv := range c.Labels {
				cfg.Labels[kv.Key] = kv.Value
			}
		case *instructions.UserCommand:
			cfg.User = c.User
		case *instructions.WorkdirCommand:
			cfg.WorkingDir = path.Join("/", cfg.WorkingDir, c.Path)
			if path.IsAbs(c.Path) {
				cfg.WorkingDir = path.Clean(c.Path)
			}
		case *instructions.EntrypointCommand:
			cfg.Entrypoint, cfg.Cmd = c.CmdLine, nil
		case *instructions.CmdCommand:
			cfg.Cmd = c.CmdLine
		}
	}
	return layers, nil
}

// copyLayer makes the layer of a COPY: sorted, without times, everything
// belongs to root, directories 0755 and files 0644.
func copyLayer(files buildContext, sources []string, dest string) ([]byte, error) {
	into := strings.HasSuffix(dest, "/") || len(sources) > 1
	dest = strings.Trim(path.Clean("/"+dest), "/")
	out := map[string][]byte{} // nil for a directory
	for _, src := range sources {
		src = strings.Trim(path.Clean("/"+src), "/")
		matched := false
		for name, b := range files {
			isDir := strings.HasSuffix(name, "/")
			target := path.Join(dest, path.Base(src))
			if rest, ok := strings.CutPrefix(name, src+"/"); ok {
				target = path.Join(dest, rest) // of a directory the content is copied
			} else if name != src {
				continue
			} else if !into {
				target = dest
			}
			matched = true
			if isDir {
				b = nil
			} else if b == nil {
				b = []byte{}
			}
			out[target] = b
			for dir := path.Dir(target); dir != "."; dir = path.Dir(dir) {
				out[dir] = nil
			}
		}
		if !matched {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the Dockerfile copies %q, which the build context does not have", src)
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range sortedKeys(out) {
		if name == "." || name == "" {
			continue
		}
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(out[name])), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if out[name] == nil {
			h.Name, h.Typeflag, h.Mode = name+"/", tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, bytes.NewReader(out[name])); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func envMap(env []string) map[string]string {
	m := map[string]string{}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return m
}

// setEnv replaces a variable where it is or adds it.
func setEnv(env []string, name, value string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, name+"=") {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}
