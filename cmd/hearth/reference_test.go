package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/cli.md, and what hearth top is to show")

// TestReference keeps docs/cli.md what the commands' help says.
func TestReference(t *testing.T) {
	const path = "../../docs/cli.md"
	want := reference(newTestApp().root())
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), want); diff != "" {
		t.Errorf("docs/cli.md is out of date; run make docs (-file +commands):\n%s", diff)
	}
}

// TestHelp demands of every command what a newcomer needs.
func TestHelp(t *testing.T) {
	walk(newTestApp().root(), func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s: Short, Long and Example must be set", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short ends with a full stop", c.CommandPath())
		}
	})
}

func newTestApp() *app {
	var out bytes.Buffer
	return &app{stdin: &out, stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
}

// walk visits the commands we wrote, parents first.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		if sub.Name() != "help" && sub.Name() != "completion" {
			walk(sub, visit)
		}
	}
}

// reference writes the help of all commands as Markdown.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("<!-- Written by make docs from the commands' help. Do not edit. -->\n\n# Command line reference\n")
	walk(root, func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n```text\n%s\n```\n", c.CommandPath(), c.Short, c.Long)
		if c.Runnable() {
			fmt.Fprintf(&b, "\n```text\n%s\n\n%s```\n", c.UseLine(), c.LocalFlags().FlagUsages())
		}
		fmt.Fprintf(&b, "\nExamples:\n\n```sh\n%s\n```\n", unindent(c.Example))
	})
	return b.String()
}

// unindent takes the two spaces of cobra's examples away.
func unindent(s string) string {
	return strings.ReplaceAll(strings.TrimPrefix(s, "  "), "\n  ", "\n")
}
