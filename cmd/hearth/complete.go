package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth/client"
)

// oneName accepts exactly one argument, the name of a function.
func oneName(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return fmt.Errorf("which function?\n\nwrite %s NAME; hearth list shows the names", cmd.CommandPath())
	case 1:
		return nil
	}
	return fmt.Errorf("%s takes one function at a time, not %d", cmd.CommandPath(), len(args))
}

// oneFunctionAtMost accepts no argument or the name of one function.
func oneFunctionAtMost(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one function at a time, not %d", cmd.CommandPath(), len(args))
	}
	return nil
}

// oneAtMost accepts no argument or one directory or file.
func oneAtMost(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one directory at a time, not %d", cmd.CommandPath(), len(args))
	}
	return nil
}

// completionTime is how long a completion may ask the server: a person waits
// for it at the prompt.
const completionTime = time.Second

// completeName completes the name of a function. Without a server it has
// nothing to offer.
func (a *app) completeName(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeFrom(cmd, args, func(ctx context.Context, c *client.Client) (names []string, err error) {
		functions, err := c.AllFunctions(ctx)
		for _, f := range functions {
			names = append(names, f.Name)
		}
		return names, err
	})
}

// completeFrom completes the first argument with what list returns.
func (a *app) completeFrom(cmd *cobra.Command, args []string, list func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.flagsFromEnv(cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	names, err := list(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeDir completes the one directory a command takes.
func completeDir(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}
