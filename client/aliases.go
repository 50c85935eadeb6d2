package client

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/hearthrun/hearth"
)

// ManifestAlias is an alias in hearth.yaml. It leads to the version that a deploy of
// the file makes live.
type ManifestAlias struct {
	Sticky hearth.Sticky     `yaml:"sticky,omitempty"`
	Env    map[string]string `yaml:"env,omitempty"`
	Routes []hearth.Route    `yaml:"routes,omitempty"`
}

// alias returns the alias with its name, leading to a version.
func (m ManifestAlias) alias(name string, version int) hearth.Alias {
	return hearth.Alias{Name: name, Versions: hearth.Weights{version: 100}, Sticky: m.Sticky, Env: m.Env, Routes: m.Routes}
}

// validateAliases checks the aliases of a manifest. Errors: CodeInvalid.
func (m Manifest) validateAliases() error {
	for _, name := range slices.Sorted(maps.Keys(m.Aliases)) {
		if err := m.Aliases[name].alias(name, 1).Validate(); err != nil {
			return err
		}
	}
	return nil
}

// announceAliases tells the server which aliases are set after the deploy.
func (m Manifest) announceAliases(query url.Values) {
	if len(m.Aliases) > 0 {
		query.Set("aliases", strings.Join(slices.Sorted(maps.Keys(m.Aliases)), ","))
	}
}

// setAliases lets the aliases of a manifest lead to a version, if they do not
// already.
func (c *Client) setAliases(ctx context.Context, m Manifest, version int) error {
	if len(m.Aliases) == 0 {
		return nil
	}
	have, err := c.Aliases(ctx, m.Name)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(m.Aliases)) {
		want := m.Aliases[name].alias(name, version)
		if len(aliasChanges(find(have, name), want)) == 0 {
			continue
		}
		if _, err := c.SetAlias(ctx, m.Name, want); err != nil {
			return fmt.Errorf("version %d is live, but not the alias %s: %w", version, name, err)
		}
	}
	return nil
}

// find returns the alias with the name, without versions if there is none.
func find(list []Alias, name string) hearth.Alias {
	for _, a := range list {
		if a.Name == name {
			return a.Alias
		}
	}
	return hearth.Alias{Name: name}
}

// aliasChanges lists what differs between two aliases.
func aliasChanges(from, to hearth.Alias) (changes []hearth.SettingChange) {
	add := func(what, old, now string) {
		if old != now {
			changes = append(changes, hearth.SettingChange{Setting: "aliases." + to.Name + "." + what, From: old, To: now})
		}
	}
	add("versions", from.Versions.String(), to.Versions.String())
	add("sticky", string(from.Sticky), string(to.Sticky))
	names := maps.Clone(from.Env)
	if names == nil {
		names = map[string]string{}
	}
	maps.Copy(names, to.Env)
	for _, k := range slices.Sorted(maps.Keys(names)) {
		add("env."+k, from.Env[k], to.Env[k])
	}
	add("routes", routeList(from.Routes), routeList(to.Routes))
	return changes
}

func routeList(routes []hearth.Route) string {
	texts := make([]string, len(routes))
	for i, r := range routes {
		texts[i] = string(r)
	}
	slices.SortFunc(texts, cmp.Compare[string])
	return strings.Join(texts, ", ")
}

// planAliases lists what applying a manifest changes of the aliases of a function
// that exists; with moves, they will lead to a version that is not made yet.
func (c *Client) planAliases(ctx context.Context, m Manifest, live int, moves bool) ([]hearth.SettingChange, error) {
	if len(m.Aliases) == 0 {
		return nil, nil
	}
	have, err := c.Aliases(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	var changes []hearth.SettingChange
	for _, name := range slices.Sorted(maps.Keys(m.Aliases)) {
		old, now := find(have, name), m.Aliases[name].alias(name, live)
		if moves {
			now.Versions = old.Versions
			if name != hearth.Live {
				changes = append(changes, hearth.SettingChange{Setting: "aliases." + name + ".versions", From: old.Versions.String(), To: "the new version"})
			}
		}
		changes = append(changes, aliasChanges(old, now)...)
	}
	return changes, nil
}

// extraAliases lists the aliases of a function that its manifest does not have, live
// apart, which every function has.
func (c *Client) extraAliases(ctx context.Context, m Manifest) ([]Alias, error) {
	have, err := c.Aliases(ctx, m.Name)
	return slices.DeleteFunc(have, func(a Alias) bool {
		_, ok := m.Aliases[a.Name]
		return ok || a.Name == hearth.Live
	}), err
}

// exportAliases returns the aliases of a function as a manifest has them, and the
// names of those that cannot be written: they lead to versions other than the live
// one.
func exportAliases(list []Alias, live int) (written map[string]ManifestAlias, others []string) {
	for _, a := range list {
		m := ManifestAlias{Sticky: a.Sticky, Env: a.Env, Routes: a.Routes}
		switch {
		case a.Versions[live] != 100:
			others = append(others, a.Name)
		case a.Name == hearth.Live && m.Sticky == "" && len(m.Env) == 0:
			// as it is without being mentioned
		default:
			if written == nil {
				written = map[string]ManifestAlias{}
			}
			written[a.Name] = m
		}
	}
	return written, others
}
