package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) secretCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Values that functions get and nobody can read back",
		Long: `A secret is a value, such as a password or a key, that functions get as an
environment variable or a file. hearth.yaml names it:

  secrets:
    DB_PASSWORD: db-password     # variable: secret
  secret_files:
    tls.pem: tls-key             # file below $HEARTH_SECRETS: secret

The server keeps it encrypted and shows it to nobody. A new value reaches running
functions without a deploy.`,
		Example: `  hearth secret set db-password
  hearth secret set tls-key --from-file key.pem
  hearth secret list`,
	}
	return group(cmd, a.secretSetCmd(), a.secretListCmd(), a.secretRollbackCmd(), a.secretRekeyCmd(), a.secretDeleteCmd())
}

// oneSecret takes the name of a secret. A value beside it is refused without being
// repeated.
func oneSecret(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s takes the name of a secret and nothing else\n\na value is never an argument, as others can see those: it is read from standard input or --from-file", cmd.CommandPath())
	}
	return nil
}

func (a *app) secretSetCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Make a secret or give it a new value",
		Long: `Set reads the value of the secret NAME from standard input, without showing it if
that is a terminal, or from a file. Of standard input one line end after the value
is left out; a file is taken as it is.

Functions that use the secret get the new value at once: new instances start with
it, and those with the old one end after their calls.`,
		Example: `  hearth secret set db-password
  pass show db | hearth secret set db-password
  hearth secret set tls-key --from-file key.pem`,
		Args:              oneSecret,
		ValidArgsFunction: a.completeSecret,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hearth.ValidateSecretName(args[0]); err != nil {
				return err
			}
			value, err := a.readSecret(cmd.Context(), args[0], file)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.SetSecret(cmd.Context(), args[0], value)
			if err != nil {
				return err
			}
			return a.secretChanged(s)
		},
	}
	cmd.Flags().StringVar(&file, "from-file", "", "`FILE` with the value, taken as it is")
	return a.talks(a.prints(cmd))
}

// readSecret reads a value.
func (a *app) readSecret(ctx context.Context, name, file string) ([]byte, error) {
	in, what := a.input(ctx), "standard input"
	if file == "-" {
		file = ""
	}
	if file != "" {
		f, err := a.openInput(ctx, file, "give --from-file a file that you can read")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, what = f, file
	} else if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		value, err := a.password(ctx, f, "Value of "+name+": ")
		if err == nil && len(value) == 0 {
			return nil, &usageError{errors.New("no value was given")}
		}
		return value, err
	}
	value, err := io.ReadAll(io.LimitReader(in, hearth.MaxSecret+3)) // and a line end
	if err != nil {
		return nil, err
	}
	if file == "" {
		value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	}
	if len(value) == 0 {
		return nil, &usageError{fmt.Errorf("%s is empty\n\na secret has at least one byte", what)}
	}
	if len(value) > hearth.MaxSecret {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%s has more than %s", what, hearth.Bytes(hearth.MaxSecret)).WithHint("a secret is at most that long")
	}
	return value, nil
}

// secretChanged tells of a new version.
func (a *app) secretChanged(s hearth.Secret) error {
	if a.json() {
		return a.printJSON(s)
	}
	users := ""
	if len(s.Functions) > 0 {
		users = ", used by " + printable(strings.Join(s.Functions, ", "))
	}
	_, err := fmt.Fprintf(a.stdout, "version %d of %s counts%s\n", s.Version, printable(s.Name), users)
	return err
}

func (a *app) secretListCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the secrets, without their values",
		Long: `List shows the secrets, which version of each counts, which are kept for a
rollback, and which functions use it.`,
		Example: `  hearth secret list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.Secrets(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"NAME", "VERSION", "KEPT", "SET", "FUNCTIONS"}}
			var locked, lost []string
			for _, s := range list {
				var kept []string
				for _, n := range s.Versions {
					kept = append(kept, strconv.Itoa(n))
				}
				rows = append(rows, []string{s.Name, strconv.Itoa(s.Version), strings.Join(kept, ","), ago(s.CreatedAt, time.Now()), dash(strings.Join(s.Functions, ", "))})
				if s.Locked {
					locked = append(locked, s.Name)
				}
				if s.KeyLost {
					lost = append(lost, s.Name)
				}
			}
			if err := a.printTable(rows); err != nil {
				return err
			}
			if len(locked) > 0 {
				a.printWarning("the server does not have the key of " + strings.Join(locked, ", ") + ": restore its key file, or set them again")
			}
			if len(lost) > 0 {
				a.printWarning("the key file does not hold the key of " + strings.Join(lost, ", ") + " any more, and the server only until it ends: restore the file before, or let hearth secret rekey write it with a new key")
			}
			return nil
		},
	}))
}

func (a *app) secretRollbackCmd() *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Give a secret the value it had before",
		Long: `Rollback gives a secret a new version with the value of an older one: of the one
before the newest, or of --to. The last ten are kept. Functions get it as any new
value, at once.`,
		Example: `  hearth secret rollback db-password
  hearth secret rollback db-password --to 3`,
		Args:              oneSecret,
		ValidArgsFunction: a.completeSecret,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("to") && version < 1 {
				return &usageError{fmt.Errorf("--to %d is no version\n\nhearth secret list shows them", version)}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.RollbackSecret(cmd.Context(), args[0], version)
			if err != nil {
				return err
			}
			return a.secretChanged(s)
		},
	}
	cmd.Flags().IntVar(&version, "to", 0, "`VERSION` whose value it gets (default the one before the newest)")
	return a.talks(a.prints(cmd))
}

func (a *app) secretRekeyCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "rekey",
		Short: "Encrypt all secrets with a new key",
		Long: `Rekey makes a new key, encrypts the values of all secrets with it, and destroys
the old one. Functions keep what they have, and calls go on.

Copy the new key file to where you keep the old one. Backups of the database that
were made before need the old key. If the old key leaked, give the secrets new
values, too: who has it and an old copy of the database knows the values.`,
		Example: `  hearth secret rekey`,
		Args:    cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.Rekey(ctx)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(r)
			}
			if len(r.Unreadable) > 0 {
				a.printWarning("a value of " + strings.Join(r.Unreadable, ", ") + " could not be read before either and stays as it was")
			}
			_, err = fmt.Fprintf(a.stdout, "%s of %s are encrypted with a new key; back up the key file\n", count(r.Values, "value"), count(r.Secrets, "secret"))
			return err
		}),
	}))
}

func (a *app) secretDeleteCmd() *cobra.Command {
	return a.talks(&cobra.Command{
		Use:               "delete NAME",
		Aliases:           []string{"rm"},
		Short:             "Delete a secret that no function uses",
		Long:              `Delete removes a secret with all its versions. While a function uses it, it is refused.`,
		Example:           `  hearth secret delete db-password`,
		Args:              oneSecret,
		ValidArgsFunction: a.completeSecret,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.DeleteSecret(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Deleted the secret %s\n", printable(args[0]))
			return nil
		},
	})
}

// completeSecret completes the name of a secret, as completeName does.
func (a *app) completeSecret(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completeFrom(cmd, args, func(ctx context.Context, c *client.Client) (names []string, err error) {
		list, err := c.Secrets(ctx)
		for _, s := range list {
			names = append(names, s.Name)
		}
		return names, err
	})
}
