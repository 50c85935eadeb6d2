package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hearthrun/hearth"
)

// The markers between which UpdateMarkdown writes.
const (
	markdownBegin = "<!-- hearth bench compare: begin -->"
	markdownEnd   = "<!-- hearth bench compare: end -->"
)

// Markdown returns the comparison as tables for a page.
func (c Comparison) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s with Hearth %s on %s", c.Date.Format("2 January 2006"), c.Version, c.Machine.line())
	if c.Command != "" {
		fmt.Fprintf(&b, " by\n\n    %s\n", c.Command)
	} else {
		b.WriteString(".\n")
	}
	if w := c.warning(); w != "" {
		fmt.Fprintf(&b, "\n**%s**\n", w)
	}
	b.WriteString("\n")
	for _, d := range c.Drivers {
		text := d.Summary
		if d.Problem != "" {
			text = "not measured: " + d.Problem
		}
		fmt.Fprintf(&b, "- `%s`: %s\n", d.Name, markdownText(text))
	}
	for _, runtime := range c.runtimes() {
		for _, s := range c.sections(runtime) {
			s.markdown(&b)
		}
	}
	if len(c.Ratios) > 0 {
		b.WriteString("\n**Ratios** (of medians of this run)\n\n| | ratio | target | | of |\n|---|---:|---:|---|---|\n")
		for _, r := range c.Ratios {
			value, target, of := fmt.Sprintf("%.2f", r.Value), "", r.Raw
			if r.Op != "" {
				target = fmt.Sprintf("%s %g", r.Op, r.Target)
			}
			if r.Verdict == NotMeasured {
				value, of = "–", r.Why
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", markdownText(r.Name), value, target, r.Verdict, markdownText(of))
		}
	}
	return b.String()
}

// markdown writes the table.
func (s section) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n**%s** (%s)\n\n| |", s.title, s.unit)
	for _, col := range s.columns {
		b.WriteString(" " + col + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(s.columns)) + "\n")
	for _, l := range s.lines {
		b.WriteString("| " + l.name + " |")
		for _, v := range l.values {
			b.WriteString(" " + v.text + " |")
		}
		b.WriteString("\n")
	}
	for _, n := range s.notes {
		b.WriteString("\n" + markdownText(n) + "\n")
	}
}

// markdownText makes text from elsewhere harmless in a table.
func markdownText(s string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", "\n", " ").Replace(s)
}

// UpdateMarkdown replaces what is between the markers in a file by the
// comparison. Errors: CodeInvalid if the file has no markers, CodeUnavailable if
// it cannot be read or written.
func (c Comparison) UpdateMarkdown(file string) error {
	return updateMarkdown(file, markdownBegin, markdownEnd, c.Markdown())
}

// updateMarkdown puts text between two markers of a file.
func updateMarkdown(file, begin, end, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "cannot read %s: %w", file, err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return hearth.Errorf(hearth.CodeInvalid, "%s has no place for the comparison", file).
			WithHint("put the lines %s and %s where it shall be", begin, end)
	}
	return WriteReport(file, []byte(before+begin+"\n\n"+text+"\n"+end+after))
}

// WriteReport writes a report to a file, which appears only when it is complete.
// Errors: CodeUnavailable.
func WriteReport(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".hearth-report-")
	if err == nil {
		_, err = f.Write(b)
		if cerr := f.Chmod(0o644); err == nil {
			err = cerr
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Rename(f.Name(), file)
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "cannot write %s: %w", file, err).
			WithHint("name a file in a directory that you can write to")
	}
	return nil
}
