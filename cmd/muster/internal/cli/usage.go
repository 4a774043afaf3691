package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// RefuseBadUsage makes whatever is wrong with a command line a [UsageError],
// in all commands that root has: flags, arguments, commands that do not exist.
// A command that only has commands of its own shows its help.
func RefuseBadUsage(root *cobra.Command) {
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &UsageError{Err: err} })
	refuseBadArguments(root)
}

func refuseBadArguments(cmd *cobra.Command) {
	check := cmd.Args
	if !cmd.Runnable() {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		check = unknownCommand
	}
	if check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &UsageError{Err: err}
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		refuseBadArguments(c)
	}
}

// unknownCommand refuses arguments of a command that only has commands.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var meant string
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		meant = "\nDid you mean " + strings.Join(similar, " or ") + "?"
	}
	return usage("there is no command %q of %q%s", args[0], cmd.CommandPath(), meant)
}
