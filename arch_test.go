package hearth_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hearthrun/hearth"

// imports is the import table of docs/architecture.md: which packages of ours
// each package may import outside of its tests. A package that is not listed
// fails, and so does an entry nobody uses.
var imports = map[string][]string{
	"":                            {},
	"cmd/hearth":                  {"", "server", "client", "bench", "pool/policy", "telemetry/metrics"},
	"server":                      {"", "api", "gateway", "pool", "queue", "build", "store", "telemetry", "telemetry/export", "telemetry/metrics", "telemetry/traces", "driver", "driver/docker", "driver/egress", "driver/native", "driver/oci", "guest", "images"},
	"api":                         {"", "build", "driver", "jsonwalk"},
	"gateway":                     {"", "guest", "jsonwalk"},
	"jsonwalk":                    {},
	"pool":                        {"", "driver", "guest", "pool/policy", "telemetry"},
	"pool/policy":                 {},
	"queue":                       {""},
	"build":                       {"", "driver", "guest"},
	"store":                       {""},
	"telemetry":                   {"", "jsonwalk"},
	"telemetry/export":            {""},
	"telemetry/metrics":           {""},
	"telemetry/traces":            {""},
	"client":                      {""},
	"guest":                       {""},
	"guest/guesttest":             {"", "guest"},
	"driver":                      {""},
	"driver/docker":               {"", "driver", "driver/cgroup", "driver/egress", "driver/seccomp", "driver/slots", "guest", "images"},
	"driver/docker/init":          {},
	"driver/drivertest":           {"", "driver", "guest"},
	"driver/drivertest/testguest": {},
	"driver/cgroup":               {"", "driver"},
	"driver/egress":               {""},
	"driver/native":               {"", "driver", "driver/cgroup", "driver/egress", "driver/seccomp", "driver/slots", "guest"},
	"driver/native/init":          {},
	"driver/oci":                  {"", "driver", "driver/cgroup", "driver/egress", "driver/seccomp", "driver/slots", "guest", "images"},
	"driver/oci/init":             {},
	"driver/seccomp":              {},
	"driver/slots":                {"", "driver"},
	"images":                      {"", "guest"},
	"bench":                       {"", "client", "driver", "guest", "images", "store", "telemetry", "telemetry/metrics"},
	"test/e2e":                    {},
	"test/script":                 {},
}

// TestImports checks the floors: imports point one way only.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %s", exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		allowed, ok := imports[name]
		if !ok {
			t.Errorf("package %q is not in the import table", name)
			continue
		}
		used[name] = true
		for _, i := range p.Imports {
			if i != module && !strings.HasPrefix(i, module+"/") {
				continue
			}
			i = strings.TrimPrefix(strings.TrimPrefix(i, module), "/")
			if !slices.Contains(allowed, i) {
				t.Errorf("%q must not import %q", name, i)
			}
		}
	}
	for name := range imports {
		if !used[name] {
			t.Errorf("the import table lists %q, which does not exist", name)
		}
	}
}
