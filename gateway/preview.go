package gateway

import (
	"context"
	"strconv"
	"sync"

	"github.com/hearthrun/hearth"
)

// maxPreviews bounds the versions that are remembered because they were called
// by their number.
const maxPreviews = 1000

// previews are versions that were called by their numbers and are in no alias.
type previews struct {
	mu   sync.Mutex
	kept map[string]preview // guarded by mu; by "function@number"
	// ends counts the calls of endPreviews.
	ends int // guarded by mu
}

type preview struct {
	version *hearth.Version
	// generation is that of the function when the version was looked up.
	generation int64
}

// of returns the incarnations of a function's previews.
func (p *previews) of(function string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for _, k := range p.kept {
		if k.version.Function == function {
			list = append(list, k.version.Incarnation)
		}
	}
	return list
}

// preview returns a version of f by its number. Errors: CodeNotFound.
func (g *Gateway) preview(ctx context.Context, f *function, name string, number int) (*hearth.Version, error) {
	key := name + "@" + strconv.Itoa(number)
	p := &g.previews
	p.mu.Lock()
	k, ok := p.kept[key]
	ends := p.ends
	p.mu.Unlock()
	if ok && k.generation == f.generation {
		return k.version, nil
	}
	v, err := g.cfg.Catalog.Version(ctx, name, number)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return nil, hearth.AsError(err).WithHint("hearth versions %s shows them; old ones that no alias names are removed", name)
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(v.Secrets) > 0 && p.ends != ends {
		return &v, nil // its secrets may have changed since it was read: for this call only
	}
	if p.kept == nil || len(p.kept) >= maxPreviews {
		p.kept = map[string]preview{} // the instances of those forgotten end as any that has no calls
	}
	p.kept[key] = preview{&v, f.generation}
	g.cfg.Pool.Admit(v.Incarnation)
	return &v, nil
}

// endPreviews forgets the previews of functions that have changed or are gone,
// and of versions whose secrets have changed.
func (g *Gateway) endPreviews(ctx context.Context, next *table) {
	p := &g.previews
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends++
	for key, k := range p.kept {
		if f := next.functions[k.version.Function]; f != nil && f.generation == k.generation && g.sameSecrets(ctx, k.version) {
			continue
		}
		delete(p.kept, key)
		if _, live := next.incarnations[k.version.Incarnation]; !live {
			g.cfg.Pool.Retire(k.version.Incarnation)
		}
	}
}

// sameSecrets tells whether the secrets of a version are those that count.
func (g *Gateway) sameSecrets(ctx context.Context, v *hearth.Version) bool {
	if len(v.Secrets) == 0 {
		return true
	}
	now, err := g.cfg.Catalog.Version(ctx, v.Function, v.Number)
	return err == nil && now.Incarnation == v.Incarnation
}
