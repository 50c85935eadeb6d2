package hearth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Limits of secrets.
const (
	// MaxSecret is the greatest size of a secret's value in bytes.
	MaxSecret = 64 << 10
	// MaxSecrets is how many bytes all values that one function gets have together.
	MaxSecrets = 128 << 10
	// maxSecrets is how many variables and files of secrets one function has.
	maxSecrets = 64
)

// Secret describes a secret of the installation. Its value is told to the
// functions that name it, and to nobody else.
type Secret struct {
	Name string `json:"name" doc:"Name of the secret" example:"db-password"`
	// Version is the one that counts, the newest. It grows by one with each new
	// value and is not used again, not even after the secret was deleted.
	Version int `json:"version" doc:"Number of the version that counts, the newest"`
	// Versions are those that are kept for a rollback, newest first.
	Versions  []int     `json:"versions" doc:"Numbers of the versions that are kept, newest first"`
	CreatedAt time.Time `json:"created_at" doc:"When the version that counts was made"`
	// Functions are those with a version that an alias leads to and that uses it.
	Functions []string `json:"functions" doc:"Functions that use it in a version that an alias leads to"`
	// Locked is true if the server does not have the key that encrypted it.
	Locked bool `json:"locked,omitempty" doc:"True if the server does not have the key that it was encrypted with"`
	// KeyLost is true if only the server's memory has that key.
	KeyLost bool `json:"key_lost,omitempty" doc:"True if the key file does not hold that key any more: the secret is lost when the server ends"`
}

// Rekeyed tells of a new key of the secrets.
type Rekeyed struct {
	Secrets int `json:"secrets" doc:"How many secrets there are"`
	// Values are all versions that are kept.
	Values int `json:"values" doc:"How many values were encrypted with the new key, with those kept for a rollback"`
	// Unreadable have a value that no key of the server opens; it stays as it was.
	Unreadable []string `json:"unreadable" doc:"Secrets with a value that the server could not read before either; it stays as it was"`
}

// ValidateSecretName checks a secret's name, which looks like a function's.
// Errors: CodeInvalid.
func ValidateSecretName(name string) error {
	if !nameRE.MatchString(name) {
		return Errorf(CodeInvalid, "secret name %q is not valid", clip(name)).
			WithHint("use at most 63 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen")
	}
	return nil
}

// SecretNames returns the secrets that the function uses, by name.
func (c Config) SecretNames() []string {
	if len(c.Secrets)+len(c.SecretFiles) == 0 {
		return nil
	}
	names := slices.AppendSeq(slices.Collect(maps.Values(c.Secrets)), maps.Values(c.SecretFiles))
	slices.Sort(names)
	return slices.Compact(names)
}

// WithSecrets returns v, which has no versions of secrets yet, with those that
// count. If it uses any, the Incarnation is another one, as instances have their
// secrets from their start. One that is not in latest does not exist and gets 0.
func (v Version) WithSecrets(latest map[string]int) Version {
	names := v.Config.SecretNames()
	if len(names) == 0 {
		return v
	}
	v.Secrets = make(map[string]int, len(names))
	for _, n := range names {
		v.Secrets[n] = latest[n]
	}
	text, _ := json.Marshal(v.Secrets) //nolint:errcheck // strings and numbers, sorted
	sum := sha256.Sum256(text)
	v.Incarnation += "-" + hex.EncodeToString(sum[:8])
	return v
}

var secretFileRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// validateSecrets checks what the function wants of secrets, not whether they
// exist. Errors: CodeInvalid.
func (c Config) validateSecrets() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	if n := len(c.Secrets) + len(c.SecretFiles); n > maxSecrets {
		return Errorf(CodeInvalid, "%d secrets are too many for a function", n).WithHint("use at most %d", maxSecrets)
	}
	for k, name := range c.Secrets {
		_, twice := c.Env[k]
		switch {
		case !envRE.MatchString(k):
			return bad("write NAME: secret, with letters, digits and underscores in NAME", "environment variable name %q in secrets is not valid", clip(k))
		case strings.HasPrefix(k, "HEARTH_"):
			return bad("names that start with HEARTH_ belong to the platform", "environment variable name %s is reserved", clip(k))
		case twice:
			return bad("remove it from one of the two", "the variable %s is in env and in secrets", k)
		}
		if err := ValidateSecretName(name); err != nil {
			return err
		}
	}
	for k, name := range c.SecretFiles {
		if !secretFileRE.MatchString(k) {
			return bad("use a name without a directory, such as tls.pem: letters, digits, dots, hyphens and underscores", "file name %q in secret_files is not valid", clip(k))
		}
		if err := ValidateSecretName(name); err != nil {
			return err
		}
	}
	return nil
}
