package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/bench"
	"github.com/hearthrun/hearth/client"
)

func (a *app) costCompareCmd() *cobra.Command {
	var prices, page, markdown string
	cmd := &cobra.Command{
		Use:   "compare FILE",
		Short: "Compare what isolation technologies cost",
		Long: `Compare takes the figures that hearth bench compare --json FILE measured and
computes what the functions cost under each isolation technology: for a million
calls, for a month, for an instance that is kept warm, and in clouds. It does so
for several shapes of a workload (rare, occasional, steady, busy, bursty calls)
and says which technology to take for each, and what a stronger one costs more.

The machine is taken to cost 10 USD a month for each core with its memory, unless a
price file says otherwise: hearth cost prices prints one to start with.`,
		Example: `  hearth bench compare --json compare.json
  hearth cost compare compare.json
  hearth cost compare compare.json --prices prices.yaml --html costs.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := bench.ReadComparison(args[0])
			if err != nil {
				return err
			}
			p := hearth.DefaultPrices(float64(max(c.Machine.Cores, 1)), hearth.Bytes(max(c.Machine.Memory, 1)))
			if prices != "" {
				if err := client.ReadPrices(prices, &p); err != nil {
					return err
				}
			}
			costs, err := c.Costs(p)
			if err != nil {
				return err
			}
			if page != "" {
				b, err := costs.HTML()
				if err != nil {
					return err
				}
				if err := bench.WriteReport(page, b); err != nil {
					return err
				}
			}
			if markdown != "" {
				if err := costs.UpdateMarkdown(markdown); err != nil {
					return err
				}
			}
			if a.json() {
				return a.printJSON(costs)
			}
			_, err = fmt.Fprint(a.stdout, costs.Table())
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&prices, "prices", "", "take the prices of this `FILE`")
	f.StringVar(&page, "html", "", "write a page with plots to this `FILE`")
	f.StringVar(&markdown, "markdown", "", "write text and tables between the markers in this `FILE`")
	return a.prints(cmd)
}
