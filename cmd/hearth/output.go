package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/hearthrun/hearth"
)

// outputValue is the value of -o: "table" (or empty) or "json".
type outputValue struct{ s *string }

func (v *outputValue) String() string {
	if v.s == nil || *v.s == "" {
		return "table"
	}
	return *v.s
}

func (v *outputValue) Type() string { return "FORMAT" }

func (v *outputValue) Set(s string) error {
	if s != "json" && s != "table" {
		return errors.New("choose json or table")
	}
	*v.s = s
	return nil
}

// durationValue is the value of a flag for a duration. A bare number is refused, as it is
// not clear of what: in --keep-invocations-for 7 hardly of seconds.
type durationValue time.Duration

func (v *durationValue) String() string {
	if *v == 0 {
		return "0" // which help does not mention as a default
	}
	return time.Duration(*v).String()
}

func (v *durationValue) Type() string { return "duration" }

func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("it is no duration\n\ndurations need a unit: 500ms, 30s, 2m or 24h")
	}
	*v = durationValue(d)
	return nil
}

// durationVar defines a flag for a duration.
func durationVar(flags *pflag.FlagSet, d *time.Duration, name string, value time.Duration, usage string) {
	*d = value
	flags.Var((*durationValue)(d), name, usage)
}

// json tells whether the user wants JSON.
func (a *app) json() bool { return a.output == "json" }

// printJSON writes v for programs.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable writes rows in columns; the first row is the heading.
func (a *app) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			r[i] = strings.ReplaceAll(oneLine(cell), "\t", " ")
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// isTerminal tells whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Colours of the terminal.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
	dim    = "2"
)

// colour wraps s for w if that is a terminal and the user has not said NO_COLOR.
func (a *app) colour(w io.Writer, style, s string) string {
	if a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" || !isTerminal(w) {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func (a *app) printError(message, hint string) {
	fmt.Fprintln(a.stderr, a.colour(a.stderr, red, "error:"), printable(message))
	if hint != "" {
		a.printHint(hint)
	}
}

func (a *app) printHint(hint string) {
	fmt.Fprintln(a.stderr, a.colour(a.stderr, yellow, "hint:"), printable(hint))
}

func (a *app) printWarning(text string) {
	fmt.Fprintln(a.stderr, a.colour(a.stderr, yellow, "warning:"), printable(text))
}

func (a *app) printWarnings(list []string) {
	for _, w := range list {
		a.printWarning(w)
	}
}

// printFunctionError prints what the user's code raised, the stack below it.
func (a *app) printFunctionError(f *hearth.FunctionError) {
	text := f.Message
	if f.Type != "" {
		text = f.Type + ": " + f.Message
	}
	a.printError(text, "")
	for _, line := range f.Stack {
		fmt.Fprintln(a.stderr, printable(strings.TrimRight(line, "\n")))
	}
}

// printable replaces control characters, and characters that are invisible or change
// the order of others, so that text from a function or a server can neither steer the
// terminal nor look like what it is not. Line ends and tabs stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || hidden(r)) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// stamp writes a time so that it cannot be mistaken for that of another zone: the local
// one with its offset from UTC, as RFC 3339 has it.
func stamp(t time.Time) string { return t.Local().Format(time.RFC3339) }

// stampMillis is stamp with milliseconds.
func stampMillis(t time.Time) string { return t.Local().Format("2006-01-02T15:04:05.000Z07:00") }

// hidden tells whether a terminal shows r not as itself. The joiners are needed to write
// some languages, and for emoji; signs that span digits are seen.
func hidden(r rune) bool {
	const nonJoiner, joiner = 0x200c, 0x200d
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) && r != nonJoiner && r != joiner &&
		!unicode.Is(unicode.Prepended_Concatenation_Mark, r)
}

// oneLine is printable for text that is to stay on its line.
func oneLine(s string) string { return strings.ReplaceAll(printable(s), "\n", `\n`) }

// ago writes how long t was before now, coarsely.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t)) + " ago"
}

// span writes a duration coarsely.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// size writes a number of bytes coarsely, in the unit that fits.
func size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1000 {
			break
		}
		f, unit = f/1024, u
	}
	if f < 9.95 && unit != "B" {
		return fmt.Sprintf("%.1f %s", f, unit)
	}
	return fmt.Sprintf("%.0f %s", f, unit)
}

// count writes a number of things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// ms writes a duration in milliseconds.
func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
