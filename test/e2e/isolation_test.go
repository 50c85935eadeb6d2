package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hearthrun/hearth/server"
)

// others returns the drivers besides native that work here and have a runtime
// for the language; the test is skipped if there are none.
func (in *installation) others(language string) (names []string) {
	in.t.Helper()
	var v struct {
		Drivers []struct {
			Name     string
			Works    bool
			Missing  []struct{ What string }
			Runtimes []struct{ Language string }
		}
	}
	decode(in.t, in.do("GET", "/v1/drivers?refresh=true", nil), &v)
	var why []string
	for _, d := range v.Drivers {
		has := false
		for _, r := range d.Runtimes {
			has = has || r.Language == language
		}
		switch {
		case d.Name == "native":
		case d.Works && has:
			names = append(names, d.Name)
		case d.Works:
			why = append(why, d.Name+" has no runtime for "+language)
		default:
			for _, p := range d.Missing {
				why = append(why, d.Name+": "+p.What)
			}
		}
	}
	if len(names) == 0 {
		in.t.Skipf("only native works here: %s", strings.Join(why, "; "))
	}
	return names
}

// TestChangeIsolationWithDependencies: only the isolation is changed, and what
// the function needs is installed for the other one, from the same source.
func TestChangeIsolationWithDependencies(t *testing.T) {
	in := start(t, "")
	for _, l := range languages {
		t.Run(l.runtime, func(t *testing.T) {
			in.t = t
			others := in.others(l.runtime)
			needRegistry(t, l.runtime)
			name := "moves-" + l.runtime
			if list := in.follow(name, l.runtime, dependent[l.runtime], nil); list[len(list)-1].Type != "result" {
				t.Fatalf("deploy: %+v", list)
			}
			first := in.do("GET", "/fn/"+name+"/", nil)
			source := in.do("GET", "/v1/functions/"+name+"/versions/1", nil).json(t)["source"]
			for i, driver := range others {
				a := in.do("PUT", "/v1/functions/"+name, fields{"runtime": l.runtime, "isolation": driver})
				if a.status != 200 {
					t.Fatalf("to %s: %v", driver, a)
				}
				v := in.do("GET", fmt.Sprintf("/v1/functions/%s/versions/%d", name, i+2), nil).json(t)
				if v["source"] != source || source == nil {
					t.Errorf("to %s: built from %v instead of %v", driver, v["source"], source)
				}
				if a := in.do("GET", "/fn/"+name+"/", nil); a.status != 200 || string(a.body) != string(first.body) {
					t.Errorf("with %s the function answers %v", driver, a)
				}
			}
		})
	}
	in.t = t
	in.noBuildsLeft()
}

// TestChangeIsolation moves a function from one isolation to another under load:
// each change is a new version, and no call is lost.
func TestChangeIsolation(t *testing.T) {
	in := start(t, "")
	each(t, map[string]string{
		"python": "def handler(event, context):\n    return 'fine'\n",
		"nodejs": "export const handler = async () => 'fine';\n",
	}, func(t *testing.T, runtime, code string) {
		in.t = t
		others := in.others(runtime)
		name := "moves-" + runtime
		in.deploy(name, runtime, code, fields{"concurrency": 4})
		var done atomic.Bool
		var calls atomic.Int64
		var wg sync.WaitGroup
		defer wg.Wait()
		defer done.Store(true)
		for range 4 {
			wg.Go(func() {
				for !done.Load() {
					if a := in.do("GET", "/fn/"+name+"/", nil); a.status != 200 || string(a.body) != "fine" {
						t.Errorf("a call was lost: %v", a)
						return
					}
					calls.Add(1)
				}
			})
		}
		for i, driver := range append(others, "native") {
			before := calls.Load()
			a := in.do("PUT", "/v1/functions/"+name, fields{"runtime": runtime, "isolation": driver, "concurrency": 4})
			if a.status != 200 {
				t.Fatalf("to %s: %v", driver, a)
			}
			f := a.json(t)
			if f["live"] != float64(i+2) || f["config"].(fields)["isolation"] != driver {
				t.Errorf("to %s: %v", driver, f)
			}
			waitFor(t, "calls to go on with "+driver, func() bool { return calls.Load() > before+20 })
		}
		t.Logf("%d calls through native, %s, native", calls.Load(), strings.Join(others, ", "))
	})
}

// TestInstalledMeanwhile: Docker Engine is started beside a running server.
func TestInstalledMeanwhile(t *testing.T) {
	engine, ok := strings.CutPrefix(os.Getenv("HEARTH_TEST_DOCKER"), "unix://")
	if !ok {
		t.Skip("HEARTH_TEST_DOCKER does not name the socket of an engine")
	}
	socket := filepath.Join(t.TempDir(), "docker.sock")
	in := start(t, "", func(c *server.Config) { c.DockerHost = "unix://" + socket })
	code := "def handler(event, context):\n    return 'fine'\n"
	a := in.try("late", "python", code, fields{"isolation": "docker"})
	want(t, a, 501, "unsupported")
	if err := os.Symlink(engine, socket); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the server to look again", func() bool {
		a = in.try("late", "python", code, fields{"isolation": "docker"})
		return a.status != 501
	})
	if a.status == 400 && strings.Contains(string(a.body), "no runtime") {
		t.Skipf("there is no base image for python in %s", testImages(t))
	}
	want(t, a, 201, "")
	if a := in.do("GET", "/fn/late/", nil); a.status != 200 || string(a.body) != "fine" {
		t.Errorf("the function answers %v", a)
	}
}
