package server

import (
	"context"
	"time"
)

// boundInvocations keeps the records of calls within their size: they can come so fast
// that an hour is too long to wait.
func (s *Server) boundInvocations(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	failing := false
	for {
		_, err := s.store.BoundInvocations(ctx, int64(s.cfg.InvocationsSize))
		if err != nil && ctx.Err() == nil && !failing { // once, not every ten seconds
			s.cfg.Logger.Error("the records of calls cannot be kept within their size", "err", err)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// maintain removes what is too old to keep.
func (s *Server) maintain(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		now := time.Now()
		if _, err := s.store.PruneInvocations(ctx, now.Add(-s.cfg.KeepInvocationsFor), s.cfg.KeepInvocations); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("pruning invocation records", "err", err)
		}
		if err := s.pruneCalls(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("pruning counts of calls", "err", err)
		}
		if _, err := s.store.PruneArtifacts(ctx, now.Add(-24*time.Hour)); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("pruning artifacts", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
