package pool

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/guest"
)

// vault is Secrets with values by name and number.
type vault struct {
	mu     sync.Mutex
	values map[string]map[int]string // guarded by mu
	opened int                       // guarded by mu
}

func (v *vault) OpenSecrets(_ context.Context, versions map[string]int) (map[string][]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened++
	out := map[string][]byte{}
	for name, n := range versions {
		value, ok := v.values[name][n]
		if !ok {
			return nil, hearth.Errorf(hearth.CodeInvalid, "there is no secret %s", name)
		}
		out[name] = []byte(value)
	}
	return out, nil
}

// lines is Logs that keeps the text.
type lines struct {
	mu   sync.Mutex
	text []string // guarded by mu
}

func (l *lines) Append(line hearth.LogLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, line.Text)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.text)
}

// secretly returns a version that uses version n of the secret token.
func secretly(n int) *hearth.Version {
	v := version("f", 1)
	v.Config.Secrets = map[string]string{"TOKEN": "token", "OVER": "token"}
	v.Config.SecretFiles = map[string]string{"key": "token"}
	v.Config.Env = map[string]string{"PLAIN": "p", "OVER": "of the alias"}
	with := v.WithSecrets(map[string]int{"token": n})
	return &with
}

func TestSecretsReachTheGuest(t *testing.T) {
	store := &vault{values: map[string]map[int]string{"token": {1: "first-value", 2: "second-value"}}}
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.Secrets = store }, func(t *testing.T, p *Pool) {
		for n, value := range map[int]string{1: "first-value", 2: "second-value"} {
			v := secretly(n)
			for range 2 {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Fatal(err)
				}
			}
			var in guest.Init
			if err := json.Unmarshal(d.sandboxes()[0].init(), &in); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"TOKEN": value, "PLAIN": "p", "OVER": "of the alias", "HEARTH_SECRETS": "/tmp/hearth-secrets"}
			if !maps.Equal(in.Env, want) || in.FilesDir != "/tmp/hearth-secrets" || string(in.Files["key"]) != value || len(in.Files) != 1 {
				t.Errorf("INIT has %+v", in)
			}
			if inst := only(t, p); inst.secrets != nil {
				t.Error("the pool keeps the values")
			}
			p.Retire(v.Incarnation)
		}
		if store.opened != 2 {
			t.Errorf("secrets were opened %d times for 2 instances", store.opened)
		}
		// One that does not exist keeps the function from starting, before a sandbox
		// is made for it.
		made := d.made()
		if _, _, err := do(t.Context(), p, secretly(3), "a"); hearth.ErrorCode(err) != hearth.CodeInvalid || d.made() != made {
			t.Errorf("%v, and %d sandboxes were made", err, d.made()-made)
		}
		p.cfg.Secrets = nil
		if _, _, err := do(t.Context(), p, secretly(4), "a"); hearth.ErrorCode(err) != hearth.CodeUnsupported {
			t.Errorf("without secrets: %v", err)
		}
	})
}

// only returns the instance with a function that there is.
func only(t *testing.T, p *Pool) *instance {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.instances {
		if i.group != nil && !i.gone() {
			return i
		}
	}
	t.Fatal("there is no instance")
	return nil
}

func TestSecretsAreMasked(t *testing.T) {
	const pem = "-----BEGIN-----\nZmlyc3QgbGluZQ==\nshort\n-----END-----\n"
	store := &vault{values: map[string]map[int]string{"token": {1: "first-value", 2: "tiny", 3: pem, 4: "long-value"}, "other": {4: "long-value-longer"}}}
	logs := &lines{}
	d := &fakeDriver{}
	var print string
	d.script = func(*fakeGuest, []byte) []frame {
		fail, err := json.Marshal(map[string]any{"kind": "handler", "type": "E " + print, "message": print, "stack": []string{"in " + print}})
		if err != nil {
			panic(err)
		}
		return []frame{{0x15, "\x01" + print + "\n"}, {fErrorFr, string(fail)}}
	}
	run(t, d, func(c *Config) { c.Secrets, c.Logs = store, logs }, func(t *testing.T, p *Pool) {
		for _, c := range []struct {
			version     int
			print, want string
		}{
			{1, "it is first-value, twice first-value.", "it is ***, twice ***."},
			{4, "one long-value and long-value-longer", "one *** and ***"},
			{2, "it is tiny", "it is tiny"}, // in too much that is no secret
			{3, "line Zmlyc3QgbGluZQ== of short", "line *** of short"},
			{3, "all\n" + pem, "all\n***"},
		} {
			print = c.print
			v := secretly(c.version)
			if c.version == 4 {
				v.Secrets["other"] = 4
			}
			before := len(logs.all())
			_, _, err := do(t.Context(), p, v, "a")
			e := hearth.AsError(err)
			if e == nil || e.Function == nil || e.Function.Message != c.want || e.Function.Type != "E "+c.want || e.Function.Stack[0] != "in "+c.want {
				t.Errorf("%q: the error is %+v", c.print, e)
			}
			if got := strings.Join(logs.all()[before:], "\n"); got != c.want {
				t.Errorf("%q was logged as %q", c.print, got)
			}
			w := only(t, p).output[0]
			w.Write([]byte("raw " + c.print + "\n")) //nolint:errcheck // it never fails
			if got := logs.all(); c.version == 1 && got[len(got)-1] != "raw "+c.want {
				t.Errorf("raw output was logged as %q", got[len(got)-1])
			}
			p.Retire(v.Incarnation)
			p.Admit(v.Incarnation)
		}
	})
}

// TestSecretsAreNotSaved: no snapshot is taken of an instance with secrets, and a
// stem cell may become one.
func TestSecretsAreNotSaved(t *testing.T) {
	store := &vault{values: map[string]map[int]string{"token": {1: "first-value"}}}
	d := savingDriver()
	d.whileSaving = func(string) error { panic("it is saved all the same") }
	run(t, d, func(c *Config) { c.Secrets, c.SnapshotDir, c.MaxStems = store, t.TempDir(), 1 }, func(t *testing.T, p *Pool) {
		v := secretly(1)
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if _, lease, err := do(t.Context(), p, v, "a"); err != nil || lease.Cold {
			t.Errorf("the verified instance did not stay: %+v, %v", lease, err)
		}
		time.Sleep(time.Second) // of the bubble: a stem cell is started meanwhile
		p.Evict(v.Incarnation)
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if inst := only(t, p); inst.stock == nil {
			t.Error("no stem cell was used")
		}
	})
}
