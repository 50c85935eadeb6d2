package bench

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode"

	"github.com/hearthrun/hearth"
)

// Bounds of a comparison that is read from a file: its cells are compared with each
// other.
const (
	maxComparison = 16 << 20
	maxCells      = 2000
	maxNames      = 50
	maxFigure     = 1e15
)

var comparedName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// ReadComparison reads what `hearth bench compare --json` wrote. Errors: CodeInvalid.
func ReadComparison(file string) (Comparison, error) {
	bad := func(err error) (Comparison, error) {
		return Comparison{}, hearth.Errorf(hearth.CodeInvalid, "%s holds no comparison that can be read: %w", file, err).
			WithHint("hearth bench compare --json FILE writes one")
	}
	f, err := os.Open(file)
	if err != nil {
		return Comparison{}, hearth.Errorf(hearth.CodeInvalid, "cannot read a comparison: %w", err).
			WithHint("hearth bench compare --json FILE writes one")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxComparison+1))
	switch {
	case err != nil:
		return bad(err)
	case len(b) > maxComparison:
		return bad(errors.New("it is larger than " + hearth.Bytes(maxComparison).String()))
	}
	var c Comparison
	if err := json.Unmarshal(b, &c); err != nil {
		return bad(err)
	}
	if err := c.check(); err != nil {
		return bad(err)
	}
	return c, nil
}

// check refuses figures that no machine has, and text that would not be one line.
func (c Comparison) check() error {
	switch {
	case c.Schema != comparisonSchema:
		return errors.New("it is of another version of Hearth")
	case len(c.Cells) == 0:
		return errors.New("nothing was measured")
	case len(c.Cells) > maxCells || len(c.Idle) > maxCells || len(c.Connections) > maxNames:
		return errors.New("it has too many figures")
	case len(c.working()) > maxNames || len(c.runtimes()) > maxNames || len(c.workloads()) > maxNames:
		return errors.New("it has too many drivers, runtimes or workloads")
	}
	m := c.Machine
	texts := []string{c.Version, c.Command, m.CPU, m.Kernel, m.Arch, m.Go}
	figures := []float64{c.BusyAtRest, float64(m.Cores), float64(m.Memory), float64(c.Instances)}
	for _, x := range c.Cells {
		for _, name := range []string{x.Driver, x.Runtime, x.Workload} {
			if !comparedName.MatchString(name) {
				return errors.New("a cell without driver, runtime or workload")
			}
		}
		texts = append(texts, x.Problem)
		for _, k := range []*ColdCalls{x.Cold, x.Restored} {
			if k != nil {
				figures = append(figures, k.Wall.P50MS, k.InitMS, k.RunMS, k.CPUPer1000)
			}
		}
		for _, w := range x.Warm {
			figures = append(figures, w.Throughput, w.P50MS, w.CPUPer1000)
		}
	}
	for _, i := range c.Idle {
		texts, figures = append(texts, i.Problem), append(figures, float64(i.PSS))
	}
	for _, v := range figures {
		// A figure below 0 is one that could not be measured: it is left out.
		if v > maxFigure {
			return errors.New("it has figures that cannot be")
		}
	}
	for _, s := range texts {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return errors.New("it has text with control characters")
		}
	}
	return nil
}
