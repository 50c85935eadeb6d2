package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) costCmd() *cobra.Command {
	var span time.Duration
	var function string
	cmd := &cobra.Command{
		Use:   "cost",
		Short: "Show what functions cost, and would cost elsewhere",
		Long: `Cost splits the price of the machine between its cores and its memory, and shows
what each function pays for what it used of both within a time until now: for
computing, for memory while it had calls, and for being kept warm; for a million
calls, by isolation technology, and what clouds would ask for the same calls.

The prices are those of hearth serve --prices. Without that flag the price of the
machine is assumed; hearth cost prices prints them as a file to edit. docs/cost.md
explains the model.`,
		Example: `  hearth cost
  hearth cost --function hello --range 168h
  hearth cost -o json | jq .functions[0].keep_warm_per_month`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := noOther(cmd, args); err != nil {
				return fmt.Errorf("%w; --function names a function", err)
			}
			return nil
		},
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.Cost(ctx, function, span)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(r)
			}
			return a.printCost(r)
		}),
	}
	durationVar(cmd.Flags(), &span, "range", time.Hour, "until now, such as 15m or 24h")
	cmd.Flags().StringVar(&function, "function", "", "`NAME` of the function; all if it is not given")
	cmd.RegisterFlagCompletionFunc("function", a.completeName) //nolint:errcheck // the flag is there
	a.talks(a.prints(cmd))
	cmd.AddCommand(a.costPricesCmd(), a.costCompareCmd())
	return cmd
}

func (a *app) costPricesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prices",
		Short: "Print the prices that costs are computed with, as a file to edit",
		Long: `Prices prints what the machine costs and what clouds ask, as the server has it, in
the form that hearth serve --prices reads. Write into it what you pay, and add or
remove clouds.`,
		Example: `  hearth cost prices > prices.yaml
  hearth serve --prices prices.yaml`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.Cost(ctx, "", time.Minute)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(r.Prices)
			}
			return client.WritePrices(a.stdout, r.Prices)
		}),
	}
	return a.talks(a.prints(cmd))
}

func (a *app) printCost(r hearth.CostReport) error {
	span := r.To.Sub(r.From).Round(time.Second)
	if r.Total == 0 && r.Calls == 0 {
		fmt.Fprintf(a.stdout, "Nothing was used in the last %s.\n", hearth.Duration(span))
		return nil
	}
	perMonth := float64(hearth.Month) / float64(span)
	fmt.Fprintf(a.stdout, "In the last %s, in %s: %s of the machine's %s were used, %s at this rate for a month.\n",
		hearth.Duration(span), r.Prices.Currency, money(r.Total), money(r.Machine), money(r.Total*perMonth))
	if r.Assumed {
		fmt.Fprintf(a.stdout, "That the machine costs %s a month is assumed: hearth serve --prices says what it costs.\n", money(r.Prices.Machine.PerMonth))
	}
	fmt.Fprintln(a.stdout)
	head := []string{"CALLS", "COST", "PER MONTH", "PER MILLION", "KEPT WARM/MONTH", "COMPUTING", "BUSY", "STARTING", "KEPT WARM"}
	row := func(c hearth.Cost) []string {
		million := "-"
		if c.Calls > 0 {
			million = money(c.PerMillion)
		}
		cells := []string{strconv.FormatInt(c.Calls, 10), money(c.Total), money(c.Total * perMonth), million, money(c.KeepWarmPerMonth)}
		for _, part := range []float64{c.CPU, c.Busy, c.Starting, c.KeepWarm} {
			cells = append(cells, percent(part/cmp.Or(c.Total, 1)))
		}
		return cells
	}
	rows := [][]string{append([]string{"FUNCTION", "ISOLATION"}, head...)}
	for _, f := range r.Functions {
		rows = append(rows, append([]string{f.Function, f.Isolation}, row(f.Cost)...))
	}
	for _, i := range r.Isolations {
		if i.StemCells > 0 {
			rows = append(rows, []string{"(stem cells)", i.Isolation, "-", money(i.StemCells), money(i.StemCells * perMonth), "-", "-", "-", "-", "-", "-"})
		}
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	if len(r.Isolations) > 1 {
		fmt.Fprintln(a.stdout)
		rows = [][]string{append([]string{"ISOLATION"}, head...)}
		for _, i := range r.Isolations {
			rows = append(rows, append([]string{i.Isolation}, row(i.Cost)...))
		}
		if err := a.printTable(rows); err != nil {
			return err
		}
	}
	if len(r.Clouds) == 0 || r.Calls == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	rows = [][]string{{"THE SAME CALLS", "COST", "PER MILLION"}}
	rows = append(rows, []string{"here", money(r.Total), money(r.PerMillion)})
	for _, name := range slices.SortedFunc(maps.Keys(r.Clouds), func(x, y string) int {
		return cmp.Or(cmp.Compare(r.Clouds[x], r.Clouds[y]), cmp.Compare(x, y))
	}) {
		rows = append(rows, []string{name, money(r.Clouds[name]), money(r.Clouds[name] / float64(r.Calls) * 1e6)})
	}
	return a.printTable(rows)
}

// money writes a sum with three digits that count, and no exponent.
func money(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n >= 100:
		return strconv.FormatFloat(n, 'f', 0, 64)
	case n >= 1:
		return strconv.FormatFloat(n, 'f', 2, 64)
	}
	return strconv.FormatFloat(n, 'f', 2-int(math.Floor(math.Log10(n))), 64)
}
