package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (a *app) versionCmd() *cobra.Command {
	return a.prints(&cobra.Command{
		Use:     "version",
		Short:   "Show the version",
		Long:    `Version shows the version of this binary, its platform and the Go it was built with.`,
		Example: `  hearth version -o json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if a.json() {
				return a.printJSON(map[string]string{"version": version, "platform": platform, "go": runtime.Version()})
			}
			_, err := fmt.Fprintf(a.stdout, "hearth %s (%s, %s)\n", version, platform, runtime.Version())
			return err
		},
	})
}
