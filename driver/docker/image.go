package docker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/images"
)

// loads are the images that are being loaded into the engine, each once at a
// time.
type loads struct {
	mu    sync.Mutex
	under map[string]*load // guarded by mu; by reference
}

type load struct {
	done chan struct{}
	err  error // set before done is closed
}

// load brings an image into the engine. It goes on when ctx ends: the next
// sandbox wants it too.
func (d *Driver) load(ctx context.Context, img images.Image) error {
	d.loads.mu.Lock()
	l := d.loads.under[img.Ref]
	if l == nil {
		l = &load{done: make(chan struct{})}
		if d.loads.under == nil {
			d.loads.under = map[string]*load{}
		}
		d.loads.under[img.Ref] = l
		d.sweeps.Go(func() {
			l.err = d.loadNow(d.stopped, img)
			d.loads.mu.Lock()
			delete(d.loads.under, img.Ref)
			d.loads.mu.Unlock()
			close(l.done)
		})
	}
	d.loads.mu.Unlock()
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errTaken ends an archive that the engine reads no further.
var errTaken = errors.New("the engine has ended the load")

func (d *Driver) loadNow(ctx context.Context, img images.Image) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	d.log.Info("docker: loading an image into the engine", "image", img.Ref)
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := d.images.Archive(ctx, img, w)
		_ = w.CloseWithError(err)
		packed <- err
	}()
	result, err := d.client.ImageLoad(ctx, r)
	if err == nil {
		err = loaded(result)
		_ = result.Close()
	}
	_ = r.CloseWithError(errTaken)
	// What ended the archive is why the engine complains, unless it was the
	// engine.
	if perr := <-packed; perr != nil && !errors.Is(perr, errTaken) {
		return hearth.AsError(perr)
	}
	if err != nil {
		return d.explain("load the image "+img.Ref, err)
	}
	return nil
}

// maxLoadReport bounds what is read of an engine's report on a load, in bytes.
const maxLoadReport = 64 << 20

// loaded reads an engine's report on a load to its end and returns the last
// error in it: the status of the answer says nothing of those.
func loaded(report io.Reader) (last error) {
	limited := &io.LimitedReader{R: report, N: maxLoadReport}
	messages := json.NewDecoder(limited)
	for {
		var m struct {
			Error  string            `json:"error"`
			Detail *jsonstream.Error `json:"errorDetail"`
		}
		var other *json.SyntaxError
		err := messages.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return last
		case errors.As(err, &other): // some engines have a report without a form
			_, err = io.Copy(io.Discard, limited)
			return errors.Join(last, err)
		case err != nil:
			return errors.Join(last, err)
		case m.Detail != nil && m.Detail.Message != "":
			last = m.Detail
		case m.Error != "":
			last = errors.New(m.Error)
		}
	}
}
