package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// RefuseBadUsage makes whatever is wrong with a command line a [UsageError],
// in all commands that root has: flags, arguments, commands that do not exist.
// A command that only has commands of its own shows its help.
func RefuseBadUsage(root *cobra.Command) {
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, flagError(err)) })
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
			var wrong *UsageError
			if err := check(cmd, args); err == nil || errors.As(err, &wrong) {
				return err
			}
			for _, arg := range args {
				if len(cmd.ValidArgs) > 0 && !slices.Contains(cmd.ValidArgs, arg) {
					return usageOf(cmd, fmt.Errorf("%q: want one of %s", arg, strings.Join(cmd.ValidArgs, ", ")))
				}
			}
			return usageOf(cmd, fmt.Errorf("wrong number of arguments: %d", len(args)))
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

// usageOf makes an error one of usage, and tells how the command is used.
func usageOf(cmd *cobra.Command, err error) error {
	return usage("%w\nUsage: %s", err, cmd.UseLine())
}

// flagError says what kind of value a flag takes.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	want := map[string]string{
		"uint64": "a whole number from 0 on", "uint32": "a whole number from 0 on", "int": "a whole number", "float64": "a number",
		"duration": "a time like 10s or 5m", "bool": "true or false", "stringToString": "key=value",
	}[invalid.GetFlag().Value.Type()]
	if want == "" {
		return err
	}
	return fmt.Errorf("--%s: %q is not %s", invalid.GetFlag().Name, invalid.GetValue(), want)
}
