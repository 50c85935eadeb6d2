package pool

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// secretsDir is where the files of secrets are inside a sandbox: in the memory
// file system that every driver has at /tmp.
const secretsDir = "/tmp/hearth-secrets"

// Secrets finds the values of secrets.
type Secrets interface {
	// OpenSecrets returns the values of these versions of secrets, by name.
	OpenSecrets(ctx context.Context, versions map[string]int) (map[string][]byte, error)
}

// openSecrets returns the secrets of a version and what masks them; nil if it
// has none.
func (p *Pool) openSecrets(ctx context.Context, v *hearth.Version) (map[string][]byte, *strings.Replacer, error) {
	if len(v.Secrets) == 0 {
		return nil, nil, nil
	}
	if p.cfg.Secrets == nil {
		return nil, nil, hearth.Errorf(hearth.CodeUnsupported, "this server has no secrets")
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartTimeout)
	defer cancel()
	values, err := p.cfg.Secrets.OpenSecrets(ctx, v.Secrets)
	if err != nil {
		return nil, nil, err
	}
	return values, newMask(values), nil
}

// addSecrets puts secrets where the function finds them. A variable of the alias
// takes the place of a secret.
func addSecrets(in *guest.Init, c hearth.Config, values map[string][]byte) {
	env := make(map[string]string, len(c.Env)+len(c.Secrets)+1)
	for k, name := range c.Secrets {
		env[k] = string(values[name])
	}
	maps.Copy(env, c.Env)
	if len(c.SecretFiles) > 0 {
		in.FilesDir, in.Files = secretsDir, make(map[string][]byte, len(c.SecretFiles))
		for k, name := range c.SecretFiles {
			in.Files[k] = values[name]
		}
		env["HEARTH_SECRETS"] = secretsDir
	}
	in.Env = env
}

const (
	// leastMasked is the length in bytes from which a value is masked: shorter ones
	// are in too much that is no secret.
	leastMasked = 8
	// mostMasked bounds the lines of values that are masked one by one.
	mostMasked = 1000
)

// newMask returns what replaces the values in text, nil if none is long enough.
// Of values with several lines, such as keys in PEM, each line is replaced too, as
// the function's output comes line by line.
func newMask(values map[string][]byte) *strings.Replacer {
	var hidden []string
	add := func(s string) {
		if len(s) >= leastMasked {
			hidden = append(hidden, s)
		}
	}
	for _, b := range values {
		value := string(b)
		add(value)
		trimmed := strings.TrimSpace(value)
		if trimmed != value {
			add(trimmed)
		}
		if !strings.Contains(trimmed, "\n") {
			continue
		}
		for line := range strings.SplitSeq(trimmed, "\n") {
			if len(hidden) < mostMasked {
				add(strings.TrimSpace(line))
			}
		}
	}
	if len(hidden) == 0 {
		return nil
	}
	// The longest first, as one may begin with another.
	slices.SortFunc(hidden, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(hidden))
	for _, s := range hidden {
		pairs = append(pairs, s, "***")
	}
	return strings.NewReplacer(pairs...)
}

// masked returns text without the secrets of the function.
func (i *instance) masked(text string) string {
	if m := i.mask.Load(); m != nil {
		return m.Replace(text)
	}
	return text
}
