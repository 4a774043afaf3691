package main

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/internal/daemon"
)

// intro is what the page says before the settings.
//
//go:embed settings.md
var intro string

// section is a part of the page: the settings that some commands share, or one
// has alone.
type section struct {
	title, text string
	commands    []string
}

// sections are in the order of the page. A setting stands in the first of them
// whose commands all have it.
func sections() []section {
	managers := []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"}
	return []section{
		{"All daemons", "Manager daemons and workers have these.", append(slices.Clone(managers), "workerd")},
		{"All manager daemons", "", managers},
		{"apid", "The control API.", []string{"apid"}},
		{"dispatcherd", "What workers speak to.", []string{"dispatcherd"}},
		{"workerd", "The worker, on each machine that runs tasks.", []string{"workerd"}},
		{"dockerapid", "Docker's API in front of a cluster ([docker-api.md](docker-api.md)). It has those of all daemons that are not about TLS, and", []string{"dockerapid"}},
		{"muster dev", "A whole cluster in one process. It has the settings of `apid`, `dispatcherd`, `workerd` and `dockerapid` that make sense there, and", []string{"dev"}},
		{"muster init", "Makes a cluster's authority and its first token. It has the settings that say where the store is, those of the log, and", []string{"init"}},
	}
}

// settingsPage is the whole of docs/configuration.md.
func settingsPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(intro)
	told := map[string]bool{}
	for _, s := range sections() {
		fmt.Fprintf(&b, "\n## %s\n\n", s.title)
		if s.text != "" {
			b.WriteString(s.text + "\n\n")
		}
		b.WriteString("| setting | value | default | what it is |\n|---|---|---|---|\n")
		flagsOf(root, s.commands[0]).VisitAll(func(f *pflag.Flag) {
			key := f.Name + "\x00" + f.Usage
			if told[key] || f.Name == "help" || f.Hidden {
				return
			}
			defaults := make([]string, len(s.commands))
			for i, c := range s.commands {
				same := flagsOf(root, c).Lookup(f.Name)
				if same == nil || same.Usage != f.Usage {
					return
				}
				defaults[i] = defaultOf(same)
			}
			told[key] = true
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, valueOf(f), together(s.commands, defaults), cell(f.Usage))
		})
	}
	return b.String()
}

func flagsOf(root *cobra.Command, name string) *pflag.FlagSet {
	cmd, _, err := root.Find([]string{name})
	if err != nil {
		panic(err) // a section names a command that is not there
	}
	return cmd.Flags()
}

// valueOf says what a flag takes.
func valueOf(f *pflag.Flag) string {
	switch t := f.Value.Type(); t {
	case "duration":
		return "time"
	case "bool":
		return "`true` or `false`"
	case "int", "uint32", "uint64":
		return "whole number"
	case "float64":
		return "number"
	case "stringSlice":
		return "list"
	case "stringToString":
		return "pairs"
	default:
		return "text"
	}
}

// defaultOf is what holds if nothing is said.
func defaultOf(f *pflag.Flag) string {
	switch value := strings.Trim(f.DefValue, "[]"); {
	case value == "":
		return ""
	case f.Value.Type() == "duration":
		// 2160h0m0s is 2160h.
		for _, zero := range []string{"m0s", "h0m"} {
			if rest, ok := strings.CutSuffix(value, zero); ok {
				value = rest + zero[:1]
			}
		}
		return "`" + value + "`"
	case f.Value.Type() == "stringSlice":
		return "`" + strings.ReplaceAll(value, ",", "`, `") + "`"
	default:
		return "`" + value + "`"
	}
}

// together tells the defaults of several commands in one cell.
func together(commands, defaults []string) string {
	if len(slices.Compact(slices.Clone(defaults))) == 1 {
		return defaults[0]
	}
	parts := make([]string, len(commands))
	for i, c := range commands {
		parts[i] = c + " " + defaults[i]
	}
	return strings.Join(parts, "<br>")
}

// cell makes text fit into a table's cell; names of settings in it look as such.
func cell(text string) string {
	words := strings.Split(strings.ReplaceAll(text, "|", "\\|"), " ")
	for i, w := range words {
		bare := strings.TrimRight(strings.TrimLeft(w, "("), ".,;:)")
		if strings.HasPrefix(bare, "--") || strings.HasPrefix(bare, daemon.EnvPrefix) || strings.HasPrefix(bare, "/") {
			words[i] = strings.Replace(w, bare, "`"+bare+"`", 1)
		}
	}
	return strings.Join(words, " ")
}
