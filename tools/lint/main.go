// Command lint is the linter of `make check`: a vet tool with staticcheck and
// four analyzers for mistakes that cost servers most. It is a module of its own
// so that the product's go.mod lists what the product needs.
//
// A line with the comment //nolint:NAME is excused from the analyzer NAME; say
// why behind it.
package main

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"

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
		filtered(analyzer.New(), nil),
		// Pid 1 of a sandbox compares the bare numbers of system calls.
		filtered(errorlint.NewAnalyzer(), func(pass *analysis.Pass, _ string, d analysis.Diagnostic) bool {
			return !strings.HasSuffix(pass.Pkg.Path(), "/driver/native/init")
		}),
		// A request without a context cannot be cancelled. What a test or a
		// program that runs inside a sandbox starts ends with it.
		filtered(noctx.Analyzer, func(_ *analysis.Pass, file string, d analysis.Diagnostic) bool {
			return !strings.HasSuffix(file, "_test.go") && !strings.Contains(file, "/testguest/") &&
				!strings.HasPrefix(d.Message, "net.Listen")
		}),
		filtered(bodyclose.Analyzer, func(_ *analysis.Pass, file string, _ analysis.Diagnostic) bool {
			return !strings.HasSuffix(file, "_test.go")
		}),
		filtered(unused.Analyzer.Analyzer, nil),
	}
	for _, a := range staticcheck.Analyzers {
		if !a.Doc.NonDefault {
			analyzers = append(analyzers, filtered(a.Analyzer, nil))
		}
	}
	unitchecker.Main(analyzers...)
}

// filtered returns a with only those findings that keep (nil: all) wants and no
// comment excuses.
func filtered(a *analysis.Analyzer, keep func(pass *analysis.Pass, file string, d analysis.Diagnostic) bool) *analysis.Analyzer {
	b := *a
	b.Run = func(pass *analysis.Pass) (any, error) {
		p := *pass
		p.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.Position(d.Pos)
			if excused(pass, at, a.Name) || keep != nil && !keep(pass, at.Filename, d) {
				return
			}
			pass.Report(d)
		}
		return a.Run(&p)
	}
	return &b
}

// excused tells whether a comment at the line names the analyzer.
func excused(pass *analysis.Pass, at token.Position, name string) bool {
	i := slices.IndexFunc(pass.Files, func(f *ast.File) bool {
		return pass.Fset.Position(f.FileStart).Filename == at.Filename
	})
	if i < 0 {
		return false
	}
	for _, group := range pass.Files[i].Comments {
		for _, c := range group.List {
			list, ok := strings.CutPrefix(c.Text, "//nolint:")
			if !ok || pass.Fset.Position(c.Pos()).Line != at.Line {
				continue
			}
			list, _, _ = strings.Cut(list, " ")
			if slices.Contains(strings.Split(list, ","), name) {
				return true
			}
		}
	}
	return false
}
