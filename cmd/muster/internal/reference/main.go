// Command reference writes what is said of Muster's commands and settings, out of
// their definitions: docs/configuration.md, manual pages, and completions for
// shells. `make generate` calls it for the first, and scripts/release for the
// others.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/cmd/muster/internal/command"
	"github.com/musterhq/muster/internal/daemon"
)

func main() {
	// What a variable says is a default of the command line here only.
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, daemon.EnvPrefix) {
			_ = os.Unsetenv(name)
		}
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("reference", flag.ContinueOnError)
	settings := flags.String("settings", "", "file to write the settings of all daemons to")
	man := flags.String("man", "", "folder to write manual pages to")
	completions := flags.String("completions", "", "folder to write completions for shells to")
	version := flags.String("version", "", "version that manual pages name")
	epoch := flags.String("time", "0", "date that manual pages name, in seconds since 1970 (SOURCE_DATE_EPOCH)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(*epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("-time: %w", err)
	}
	root := tree(*version)
	var faults []error
	if *settings != "" {
		faults = append(faults, os.WriteFile(*settings, []byte(settingsPage(root)), 0o644))
	}
	if *man != "" {
		faults = append(faults, manual(root, *man, *version, time.Unix(seconds, 0).UTC()))
	}
	if *completions != "" {
		faults = append(faults, complete(root, *completions))
	}
	return errors.Join(faults...)
}

// tree is all commands, which write nothing.
func tree(version string) *cobra.Command {
	return command.New(&cli.CLI{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Version: version})
}

// manual writes a page a command.
func manual(root *cobra.Command, dir, version string, at time.Time) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// A page that names the day on which it was written is another each day.
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: strings.TrimSpace("Muster " + version), Manual: "Muster", Date: &at}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write manual pages: %w", err)
	}
	return nil
}

// complete writes a file a shell, called as the shell looks for it.
func complete(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		root.GenBashCompletionFileV2(filepath.Join(dir, "muster.bash"), true),
		root.GenZshCompletionFile(filepath.Join(dir, "_muster")),
		root.GenFishCompletionFile(filepath.Join(dir, "muster.fish"), true),
	)
}
