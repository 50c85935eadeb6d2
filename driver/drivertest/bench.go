package drivertest

import (
	"encoding/json"
	"testing"

	"github.com/hearthrun/hearth/driver"
)

// BenchmarkColdStart measures how long it takes from Create to the first answer
// of the smallest possible guest, one sandbox after another. Destroy is not
// part of the time.
func BenchmarkColdStart(b *testing.B, cfg Config) {
	cfg = cfg.withDefaults()
	binary := buildGuest(b)
	info := probe(b, cfg)
	if !info.Works {
		b.Skipf("the driver %s does not work here: %v", info.Name, info.Missing)
	}
	e := &env{cfg: cfg, info: info, binary: binary, dir: b.TempDir(), owner: "bench"}
	d := cfg.New(b, e.dir, e.owner)
	defer d.Close()
	for b.Loop() {
		s, err := d.Create(b.Context(), e.spec())
		if err != nil {
			b.Fatal(err)
		}
		if err := firstAnswer(b, s); err != nil {
			b.Error(err)
		}
		b.StopTimer()
		if err := s.Destroy(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func firstAnswer(b *testing.B, s driver.Sandbox) error {
	c, err := s.Dial(b.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(request{Op: "echo", Text: "hello"}); err != nil {
		return err
	}
	var a answer
	return json.NewDecoder(c).Decode(&a)
}
