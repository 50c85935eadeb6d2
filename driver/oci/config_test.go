package oci

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

var update = flag.Bool("update", false, "write the golden files")

// TestConfig compares the configurations of typical sandboxes with golden files.
func TestConfig(t *testing.T) {
	none := driver.Spec{
		ID: "sb-1", Runtime: "python3.11", Env: map[string]string{"GREETING": "hello"},
		Mounts: []driver.Mount{{Source: "/no/such/artifact", Target: "/function"}},
	}
	internet := none
	internet.Egress, internet.Mounts = hearth.EgressInternet, nil
	internet.Limits = driver.Limits{Memory: 256 << 20, CPU: 0.5, PIDs: 8, Disk: 16 << 20}
	for name, spec := range map[string]driver.Spec{"none": none, "internet": internet} {
		for _, dialect := range []Dialect{Runc, GVisor} {
			t.Run(string(dialect)+" "+name, func(t *testing.T) {
				spec.Limits = spec.Limits.WithDefaults()
				p := plan{
					spec: spec, root: rootPath(spec.ID), argv: []string{"/usr/bin/python3.11", "/hearth/guest/python/hearth_guest.py"},
					env:   driver.GuestEnvironment(nil, spec.Env, "/usr/bin"),
					users: 1_700_000_000, group: "hearth-owner.x/" + spec.ID, openFiles: 65536, noCores: 1,
				}
				if policy(spec) == hearth.EgressInternet {
					p.network = "/proc/1/fd/9"
				}
				got, err := json.MarshalIndent(p.config(dialect), "", "\t")
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, '\n')
				file := filepath.Join("testdata", string(dialect)+"-"+name+".json")
				if *update {
					if err := os.WriteFile(file, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s differs from what is generated; if that is right: go test ./driver/oci -run TestConfig -update\n%s", file, got)
				}
			})
		}
	}
}

// TestUsers keeps the users of sandboxes apart from those of package docker, at
// 0x60000000, and of package native above.
func TestUsers(t *testing.T) {
	for i := range 10_000 {
		if first := firstUser(strconv.Itoa(i)); first < 0x50000000 || first+usersEach > 0x60000000 {
			t.Fatalf("the users of owner %d begin at %#x", i, first)
		}
	}
}
