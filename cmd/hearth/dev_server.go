package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

// devDrain is how long calls may go on when dev's own server stops.
const devDrain = 3 * time.Second

// ownServer is a server in the process of hearth dev. Its methods may be called on
// nil, which stands for none.
type ownServer struct {
	url    string
	cancel context.CancelFunc
	exited chan error // gets what the server ended with, then is closed
	temp   string     // directory to remove, "" if none
}

// startServer starts a server with a data directory, or with a temporary one if
// that is empty. It goes on after ctx has ended, until stop.
func (d *dev) startServer(ctx context.Context, dataDir string) (_ *ownServer, err error) {
	log := slog.New(slog.NewTextHandler(d.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	// Base images are those that hearth images build has made for any server.
	cfg := server.Config{
		DataDir: d.getenv("HEARTH_DATA_DIR"), ImagesDir: d.getenv("HEARTH_IMAGES_DIR"), DockerHost: d.getenv("HEARTH_DOCKER_HOST"),
		DockerRuntime: d.getenv("HEARTH_DOCKER_RUNTIME"), Logger: log, Version: version, DrainTimeout: devDrain,
	}
	if err := d.hostDefaults(&cfg); err != nil {
		return nil, err
	}
	if cfg.ImagesDir == "" {
		cfg.ImagesDir = filepath.Join(cfg.DataDir, "images")
	}
	cfg.DataDir = dataDir
	s := &ownServer{exited: make(chan error, 1)}
	defer func() {
		if err != nil {
			os.RemoveAll(s.temp) //nolint:errcheck // nothing is in it
		}
	}()
	if dataDir == "" {
		if s.temp, err = os.MkdirTemp("", "hearth-dev-"); err != nil {
			return nil, hearth.Errorf(hearth.CodeUnavailable, "cannot make a temporary directory: %w", err).
				WithHint("set TMPDIR to a directory you can write to, or give one with --data-dir")
		}
		cfg.DataDir = s.temp
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	cfg.Listen = strings.TrimPrefix(defaultURL, "http://")
	srv, err := server.New(ctx, cfg)
	if hearth.ErrorCode(err) == hearth.CodeConflict {
		cfg.Listen = "127.0.0.1:0" // something else is at the usual one
		srv, err = server.New(ctx, cfg)
	}
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.url = "http://" + srv.Addr()
	go func() {
		s.exited <- srv.Run(ctx)
		close(s.exited)
	}()
	select {
	case <-srv.Ready():
		return s, nil
	case err = <-s.exited:
		s.cancel()
		return nil, err
	}
}

// ended gets an error if the server ends by itself.
func (s *ownServer) ended() <-chan error {
	if s == nil {
		return nil
	}
	return s.exited
}

// stop ends the server and removes what it kept, unless it was to be kept.
func (s *ownServer) stop() error {
	s.cancel()
	err := <-s.exited
	if s.temp != "" {
		if rerr := os.RemoveAll(s.temp); err == nil {
			err = rerr
		}
	}
	return err
}

// follower shows the log of a function until it is stopped.
type follower struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// again is how long a follower waits before it asks for a log anew.
const again = time.Second

// follow shows the log of a function, if version is not 0 from that version's
// first line on, else from now on. It goes on when the server is started anew.
func (d *dev) follow(ctx context.Context, name string, version int) *follower {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{cancel: cancel}
	f.wg.Go(func() {
		tail, last := 0, time.Time{}
		if version > 0 {
			tail = maxTail
		}
		for ctx.Err() == nil {
			seen := last
			// What fails here fails the next deploy too, which says why.
			_ = d.client.FollowLogs(ctx, name, tail, hearth.LogFilter{}, func(l hearth.LogLine) error {
				if l.Version < version || !l.Time.After(seen) {
					return nil
				}
				last, tail = l.Time, maxTail
				return d.out.line(l)
			})
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
		}
	})
	return f
}

// stop ends f, which may be nil, and waits for it.
func (f *follower) stop() {
	if f != nil {
		f.cancel()
		f.wg.Wait()
	}
}
