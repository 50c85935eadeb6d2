package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/hearthrun/hearth"
)

// Version is a version as the server shows it.
type Version struct {
	hearth.Version
	// URL is where this version answers HTTP requests, live or not.
	URL string `json:"url"`
	// Aliases are those that lead to it, with its shares of their calls in percent.
	Aliases map[string]int `json:"aliases,omitempty"`
}

// Alias is an alias as the server shows it.
type Alias struct {
	hearth.Alias
	// URL is where it answers HTTP requests.
	URL string `json:"url"`
}

// Release is a release as the server shows it.
type Release struct {
	hearth.Release
	// Fresh and Old are the calls of the new and the old version since the step
	// began; nil once the release has ended.
	Fresh *hearth.Traffic `json:"fresh,omitempty"`
	Old   *hearth.Traffic `json:"old,omitempty"`
}

// Versions returns up to limit versions (0: the server's choice) of a function,
// newest first, with numbers below before (0: all). Errors: CodeNotFound.
func (c *Client) Versions(ctx context.Context, name string, limit, before int) ([]Version, error) {
	var out struct {
		Versions []Version `json:"versions"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "versions"},
		query: page(limit, "before", strconv.Itoa(before)),
	}, &out)
	for i := range out.Versions {
		out.Versions[i].URL = c.absolute(out.Versions[i].URL)
	}
	return out.Versions, err
}

// DeleteVersion removes a version that no alias leads to. Errors: CodeNotFound,
// CodeConflict if an alias or a release needs it.
func (c *Client) DeleteVersion(ctx context.Context, name string, number int) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: []string{"v1", "functions", name, "versions", strconv.Itoa(number)}}, nil)
	return err
}

// Aliases returns the aliases of a function by name. Errors: CodeNotFound.
func (c *Client) Aliases(ctx context.Context, name string) ([]Alias, error) {
	var out struct {
		Aliases []Alias `json:"aliases"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "functions", name, "aliases"}}, &out)
	for i := range out.Aliases {
		out.Aliases[i].URL = c.absolute(out.Aliases[i].URL)
	}
	return out.Aliases, err
}

// SetAlias makes or replaces an alias of a function and returns once it leads
// where a says. Errors: CodeInvalid, CodeNotFound, CodeConflict if a route is
// taken, CodeFunction if a version cannot be loaded.
func (c *Client) SetAlias(ctx context.Context, name string, a hearth.Alias) (Alias, error) {
	var out Alias
	in := struct {
		Versions hearth.Weights    `json:"versions"`
		Sticky   hearth.Sticky     `json:"sticky,omitempty"`
		Env      map[string]string `json:"env,omitempty"`
		Routes   []hearth.Route    `json:"routes,omitempty"`
	}{a.Versions, a.Sticky, a.Env, a.Routes}
	_, err := c.call(ctx, request{method: http.MethodPut, path: []string{"v1", "functions", name, "aliases", a.Name}, in: in}, &out)
	out.URL = c.absolute(out.URL)
	return out, err
}

// DeleteAlias removes an alias. Errors: CodeNotFound, CodeInvalid for live.
func (c *Client) DeleteAlias(ctx context.Context, name, alias string) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: []string{"v1", "functions", name, "aliases", alias}}, nil)
	return err
}

// Releases returns up to limit releases (0: the server's choice) of a function,
// newest first, with ids below before (0: all). Errors: CodeNotFound.
func (c *Client) Releases(ctx context.Context, name string, limit int, before int64) ([]Release, error) {
	var out struct {
		Releases []Release `json:"releases"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "releases"},
		query: page(limit, "before", strconv.FormatInt(before, 10)),
	}, &out)
	return out.Releases, err
}

// StartRelease makes a version live (0: the newest), at once or, with a canary, by
// steps. Errors: CodeInvalid, CodeNotFound, CodeConflict if it is live or a
// route is taken, CodeFunction if it cannot be loaded.
func (c *Client) StartRelease(ctx context.Context, name string, version int, canary *hearth.Canary) (Release, error) {
	var r Release
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "functions", name, "releases"},
		in: struct {
			Version int            `json:"version,omitempty"`
			Canary  *hearth.Canary `json:"canary,omitempty"`
		}{version, canary},
	}, &r)
	return r, err
}

// AbortRelease ends a release that runs: the old version gets all calls again.
// Errors: CodeConflict if it does not run.
func (c *Client) AbortRelease(ctx context.Context, name string, id int64) (Release, error) {
	return c.endRelease(ctx, name, id, "abort")
}

// FinishRelease ends a release that runs: the new version gets all calls now.
// Errors: CodeConflict if it does not run.
func (c *Client) FinishRelease(ctx context.Context, name string, id int64) (Release, error) {
	return c.endRelease(ctx, name, id, "finish")
}

func (c *Client) endRelease(ctx context.Context, name string, id int64, how string) (r Release, err error) {
	_, err = c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "functions", name, "releases", strconv.FormatInt(id, 10), how},
	}, &r)
	return r, err
}

// Rollback goes back to a version (0: the one that was live before). Errors:
// CodeNotFound, CodeConflict if there is none or it is live.
func (c *Client) Rollback(ctx context.Context, name string, version int) (r Release, err error) {
	_, err = c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "functions", name, "rollback"},
		in: struct {
			Version int `json:"version,omitempty"`
		}{version},
	}, &r)
	return r, err
}

// absolute makes a URL that the server tells as a path absolute.
func (c *Client) absolute(path string) string {
	u, err := url.Parse(path)
	if err != nil || path == "" || u.IsAbs() {
		return path
	}
	return strings.TrimRight(c.URL(), "/") + u.EscapedPath()
}
