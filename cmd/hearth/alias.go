package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) versionsCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "versions NAME",
		Short: "List the versions of a function",
		Long: `Versions lists the versions of a function, newest first, the aliases that lead to
each with its share of their calls, and the URL under which each answers, live or
not. Old versions that nothing leads to are removed (hearth serve
--keep-versions).`,
		Example: `  hearth versions hello
  hearth versions hello -o json | jq '.[0].config'`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.Versions(ctx, args[0], 0, 0)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"VERSION", "CREATED", "RUNTIME", "ISOLATION", "ALIASES", "URL"}}
			for _, v := range list {
				var aliases []string
				for _, name := range slices.Sorted(maps.Keys(v.Aliases)) {
					if share := v.Aliases[name]; share < 100 {
						name += " " + strconv.Itoa(share) + "%"
					}
					aliases = append(aliases, name)
				}
				rows = append(rows, []string{strconv.Itoa(v.Number), ago(v.CreatedAt, time.Now()), v.Config.Runtime, v.Config.Isolation, dash(strings.Join(aliases, ", ")), v.URL})
			}
			return a.printTable(rows)
		}),
	}))
}

// dash stands for an empty cell.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) aliasCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alias",
		Short: "Names that lead to versions of a function",
		Long: `An alias is a movable name for a version of a function, or for a split of calls
between several. It answers at /fn/NAME@ALIAS/ and at its routes. The alias live
is what /fn/NAME/ and the function's own routes lead to.`,
		Example: `  hearth alias list hello
  hearth alias set hello beta 8
  hearth alias set hello live 7=90,8=10 --sticky cookie`,
	}
	return group(cmd, a.aliasListCmd(), a.aliasSetCmd(), a.aliasDeleteCmd())
}

func (a *app) aliasListCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:               "list NAME",
		Aliases:           []string{"ls"},
		Short:             "List the aliases of a function",
		Long:              `List shows where each alias of a function leads, and where it answers.`,
		Example:           `  hearth alias list hello`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.Aliases(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return a.printAliases(list)
		}),
	}))
}

func (a *app) printAliases(list []client.Alias) error {
	rows := [][]string{{"ALIAS", "VERSIONS", "STICKY", "ENV", "UPDATED", "URL", "ROUTES"}}
	for _, x := range list {
		var routes []string
		for _, r := range x.Routes {
			routes = append(routes, string(r))
		}
		rows = append(rows, []string{
			x.Name, x.Versions.String(), dash(string(x.Sticky)), dash(strings.Join(slices.Sorted(maps.Keys(x.Env)), ",")),
			ago(x.UpdatedAt, time.Now()), x.URL, dash(strings.Join(routes, ", ")),
		})
	}
	return a.printTable(rows)
}

func (a *app) aliasSetCmd() *cobra.Command {
	var sticky string
	var env, routes []string
	cmd := &cobra.Command{
		Use:   "set NAME ALIAS [VERSIONS]",
		Short: "Make an alias or let it lead elsewhere",
		Long: `Set lets ALIAS of the function NAME lead to VERSIONS: a number, or numbers with
their shares of calls in percent, such as 7=90,8=10. Versions that it did not lead
to are started once first. What is not given stays as it is; an empty flag, such
as --env '', removes what was there.

--sticky says by what callers stay with one version of a split: cookie, which
Hearth sets, or header:NAME, whose value decides. While the share of a newer
version grows, callers only move to it and never back.

Environment variables of the alias are added to those of the version, or replace
them; they need no new version.`,
		Example: `  hearth alias set hello beta 8
  hearth alias set hello live 7=90,8=10 --sticky header:X-User-Id
  hearth alias set hello staging 8 --env STAGE=staging --route staging.example.com/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return fmt.Errorf("%s takes a function, an alias and its versions\n\nwrite for example hearth alias set hello beta 8", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.Aliases(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			alias := hearth.Alias{Name: args[1]}
			for _, x := range list {
				if x.Name == alias.Name {
					alias = x.Alias
				}
			}
			if len(args) == 3 {
				if alias.Versions, err = hearth.ParseWeights(args[2]); err != nil {
					return err
				}
			}
			if len(alias.Versions) == 0 {
				return &usageError{fmt.Errorf("function %s has no alias %s yet\n\nsay where it is to lead: hearth alias set %s %s 7", args[0], alias.Name, args[0], alias.Name)}
			}
			if cmd.Flags().Changed("sticky") {
				alias.Sticky = hearth.Sticky(sticky)
			}
			if cmd.Flags().Changed("env") {
				if alias.Env, err = parseEnv("--env", slices.DeleteFunc(env, empty)); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("route") {
				alias.Routes = nil
				for _, r := range slices.DeleteFunc(routes, empty) {
					alias.Routes = append(alias.Routes, hearth.Route(r))
				}
			}
			set, err := c.SetAlias(cmd.Context(), args[0], alias)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(set)
			}
			_, err = fmt.Fprintln(a.stdout, printable(set.URL))
			return err
		},
	}
	cmd.Flags().StringVar(&sticky, "sticky", "", "by what callers stay with one version: cookie or header:NAME")
	cmd.Flags().StringArrayVar(&env, "env", nil, "environment variable `NAME=VALUE` of the alias (repeatable)")
	cmd.Flags().StringArrayVar(&routes, "route", nil, "`ROUTE` that leads to the alias, such as 'GET beta.example.com/' (repeatable)")
	return a.talks(a.prints(cmd))
}

func empty(s string) bool { return s == "" }

func (a *app) aliasDeleteCmd() *cobra.Command {
	return a.talks(&cobra.Command{
		Use:     "delete NAME ALIAS",
		Aliases: []string{"rm"},
		Short:   "Remove an alias; its versions stay",
		Long:    `Delete removes an alias other than live. Calls that are running end normally.`,
		Example: `  hearth alias delete hello beta`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s takes a function and an alias\n\nwrite for example hearth alias delete hello beta", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteAlias(ctx, args[0], args[1]); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Deleted the alias %s of %s\n", args[1], args[0])
			return nil
		}),
	})
}
