// Command lint is the linter of `make check`: a vet tool with staticcheck and
// four analyzers for mistakes that cost servers most. It is a module of its own
// so that the product's go.mod lists what the product needs.
package main

import (
	"github.com/Antonboom/errname/pkg/analyzer"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"github.com/sonatard/noctx"
	"github.com/timakin/bodyclose/passes/bodyclose"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/unitchecker"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/unused"
)

func main() {
	analyzers := []*analysis.Analyzer{
		analyzer.New(),
		errorlint.NewAnalyzer(),
		noctx.Analyzer,
		bodyclose.Analyzer,
		unused.Analyzer.Analyzer,
	}
	for _, a := range staticcheck.Analyzers {
		if !a.Doc.NonDefault {
			analyzers = append(analyzers, a.Analyzer)
		}
	}
	unitchecker.Main(analyzers...)
}
