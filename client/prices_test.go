package client_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func TestReadPrices(t *testing.T) {
	read := func(text string, into *hearth.Prices) error {
		t.Helper()
		file := filepath.Join(t.TempDir(), "prices.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return client.ReadPrices(file, into)
	}
	defaults := hearth.DefaultPrices(2, 8<<30)

	some, want := hearth.DefaultPrices(2, 8<<30), hearth.DefaultPrices(2, 8<<30)
	want.Currency, want.Machine.PerMonth, want.Machine.Memory = "EUR", 42.5, 16<<30
	if err := read("currency: EUR\nmachine: {per_month: 42.5, memory: 16GiB} # ours\n", &some); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, some); diff != "" {
		t.Errorf("keys that are left out (-want +got):\n%s", diff)
	}

	clouds := hearth.DefaultPrices(2, 8<<30)
	if err := read("clouds:\n  - {name: ours, per_million_requests: 1, granularity: 100ms}\n", &clouds); err != nil {
		t.Fatal(err)
	}
	// Nothing of the cloud that was the first before.
	only := []hearth.CloudPrice{{Name: "ours", PerMillionRequests: 1, Granularity: hearth.Duration(100 * time.Millisecond)}}
	if diff := cmp.Diff(only, clouds.Clouds); diff != "" {
		t.Errorf("another list of clouds (-want +got):\n%s", diff)
	}
	if err := read("clouds: []\n", &clouds); err != nil || len(clouds.Clouds) != 0 {
		t.Errorf("no clouds: %v, %v", clouds.Clouds, err)
	}

	for name, c := range map[string]struct{ text, message, hint string }{
		"empty":        {"", "the file is empty", "hearth cost prices"},
		"unknown":      {"machine: {price: 3}", `unknown field "price"`, "hearth cost prices"},
		"no keys":      {"- 1\n", "cannot unmarshal", "hearth cost prices"},
		"twice":        {"currency: EUR\ncurrency: USD\n", "already defined", "hearth cost prices"},
		"syntax":       {"machine: {", "not valid YAML", ""},
		"bomb":         {"a: &a [x]\nb: *a\n", "anchors", "write the value out"},
		"documents":    {"currency: EUR\n---\ncurrency: USD\n", "more than one document", "one list"},
		"size":         {"machine: {memory: big}", `"big" is not a size`, "128MiB"},
		"negative":     {"machine: {per_month: -1}", "machine.per_month: -1 is not possible", "0 or more"},
		"not a number": {"machine: {per_month: .nan}", "NaN", "numbers"},
	} {
		t.Run(name, func(t *testing.T) {
			into := hearth.DefaultPrices(2, 8<<30)
			wantError(t, read(c.text, &into), hearth.CodeInvalid, c.message, c.hint)
			if diff := cmp.Diff(defaults, into); diff != "" {
				t.Errorf("a bad file changed the prices:\n%s", diff)
			}
		})
	}
	wantError(t, client.ReadPrices(filepath.Join(t.TempDir(), "none.yaml"), &some), hearth.CodeInvalid, "no such file", "check that")
}

// What is written can be read.
func TestWritePrices(t *testing.T) {
	want := hearth.DefaultPrices(3, 5<<30)
	want.Currency, want.Machine.PerMonth, want.Clouds[0].Name = "EUR", 12.9, "true: #1"
	path := filepath.Join(t.TempDir(), "prices.yaml")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(client.WritePrices(f, want), f.Close())
	}
	var got hearth.Prices
	if err == nil {
		err = client.ReadPrices(path, &got)
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v; written and read again (-want +got):\n%s", err, diff)
	}
}
