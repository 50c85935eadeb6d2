package api

import (
	"context"
	"sync"
)

// locks is a set of named locks whose waiters can give up.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock // guarded by mu; a lock is there while it has users
}

type lock struct {
	users int
	token chan struct{}
}

// lock waits for the named lock and returns the function that frees it, or the
// error of ctx.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	k := l.held[name]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		l.held[name] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctxError(ctx)
	}
}
