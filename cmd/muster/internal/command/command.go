// Package command puts the program together: the daemons and what a user types,
// as one tree of commands.
package command

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/cmd/muster/internal/serve"
)

// New returns the root of all commands.
func New(c *cli.CLI) *cobra.Command {
	root := &cobra.Command{
		Use: "muster", Short: "Muster orchestrates containers and tasks",
		Long:          "Muster orchestrates containers and tasks: it runs as many of them as you ask for, on the nodes where they fit, and keeps them running.",
		Example:       "  muster dev --workers 3\n  muster service create --name web --replicas 3 nginx:1",
		SilenceErrors: true, SilenceUsage: true, SuggestionsMinimumDistance: 2, Version: c.Version,
	}
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	serve.AddCommands(root, c.Version)
	c.Local = func(ctx context.Context, address string, out io.Writer, ready func()) error {
		return serve.Local(ctx, c.Version, address, out, ready)
	}
	c.AddCommands(root)
	cli.RefuseBadUsage(root)
	return root
}
