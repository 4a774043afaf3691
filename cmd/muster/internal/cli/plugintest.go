package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/plugins/conformance"
)

// errBroken says that a plugin does not keep the contract.
var errBroken = errors.New("the contract is broken")

func (c *CLI) pluginTest() *cobra.Command {
	var (
		o        conformance.Options
		network  conformance.NetworkOptions
		task     string
		asJSON   bool
		patience time.Duration
	)
	cmd := &cobra.Command{
		Use: "test [flags] PROGRAM [-- ARGUMENT...]", Short: "Test whether an executor or a network plugin follows the contract", Args: cobra.MinimumNArgs(1),
		Long: `Start a plugin as a worker does, make every call, kill it at every step, and report what violates the contract.
No cluster is needed. Each rule has its own process and state directory. Which contract is tested follows from the one that
the plugin answers.

--task is a Go template of a task's spec, in YAML or JSON, which makes a task do what a rule needs (end with an exit code,
ignore a polite stop). Most executors need only {{json .Script}}, a shell script;
there are also .Forever, .RunFor, .ExitCode, .Stubborn, .Grace, .Says, .Complains, .RunSeconds and .GraceSeconds.
Executors that run "container", "process" or "null" need no template.

A network plugin is tested with networks of the first driver that it names; --driver and --driver-opt choose another and
its options. --own-addresses is for drivers that choose addresses themselves. As root, tasks get real network namespaces,
and the test looks at what is in them.`,
		Example: `  muster plugin test ./muster-executor-mine --task task.yaml
  muster plugin test ./muster-executor-mine --task task.yaml --rule Shutdown --rule KilledAtAnyMoment
  muster plugin test bin/plugins/muster-executor-process --json
  muster plugin test bin/plugins/muster-network-cni --own-addresses --driver-opt config=mynet`,
		RunE: func(cmd *cobra.Command, args []string) error {
			program, err := executable(args[0])
			if err != nil {
				return err
			}
			o.Command = append([]string{program}, args[1:]...)
			for _, variable := range o.Env {
				if !strings.Contains(variable, "=") {
					return usage("--env: %q is not KEY=VALUE", variable)
				}
			}
			if conformance.IsNetwork(cmd.Context(), o.Command, o.Env) {
				network.Namespaces = conformance.CanMakeNamespaces() == nil
				o.Network = &network
			} else if o.Task, err = readTask(task, program); err != nil {
				return usage("--task: %w", err)
			}
			o.Patience = patience
			results, err := conformance.Try(cmd.Context(), o)
			if err != nil {
				return usage("%w", err)
			}
			show := c.printResults
			if asJSON {
				show = func(results []conformance.Result) error { return c.printJSON(results) }
			}
			if err := show(results); err != nil {
				return err
			}
			return brokenRules(results)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&task, "task", "", "file with a task template")
	fs.StringVar(&network.Driver, "driver", "", "driver of the networks that a network plugin is tested with")
	fs.StringToStringVar(&network.DriverOptions, "driver-opt", nil, "option of these networks, KEY=VALUE (repeatable)")
	fs.BoolVar(&network.OwnAddresses, "own-addresses", false, "the driver chooses addresses itself")
	fs.StringArrayVar(&o.Rules, "rule", nil, "test only this rule (repeatable)")
	fs.StringArrayVarP(&o.Env, "env", "e", nil, "environment variable for the plugin, KEY=VALUE (repeatable); PATH, HOME and TMPDIR are always passed")
	fs.IntVar(&o.Parallel, "parallel", 4, "number of rules tested at once")
	fs.DurationVar(&patience, "patience", time.Minute, "maximum duration of a call that is not meant to wait")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// executable returns the absolute path of a program.
func executable(name string) (string, error) {
	program, err := filepath.Abs(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	if info, err := os.Stat(program); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", usage("%s is not a program", name)
	}
	return program, nil
}

// readTask reads the template of a task, or takes the one that ships for what
// the program's name says that it runs.
func readTask(file, program string) (*conformance.Template, error) {
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		return conformance.ParseTemplate(string(text))
	}
	kind := strings.TrimPrefix(filepath.Base(program), "muster-executor-")
	if kind == "docker" {
		kind = "container"
	}
	if t, ok := conformance.TemplateFor(kind); ok {
		return t, nil
	}
	return nil, fmt.Errorf("needed, to know how a task of %s is written, such as:\n\n%s", filepath.Base(program), `generic:
  kind: mine
  payload: {script: {{json .Script}}}
`)
}

// printResults prints a row for each rule, and then what broke.
func (c *CLI) printResults(results []conformance.Result) error {
	t := &table{header: []string{"RULE", "OUTCOME", "TOOK", "WHAT IT ASKS"}}
	for _, r := range results {
		asks := r.Asks
		if r.Note != "" {
			asks += " (" + r.Note + ")"
		}
		t.add(r.Rule, string(r.Outcome), fmt.Sprintf("%.1fs", r.Seconds), asks)
	}
	if err := c.printTable(t); err != nil {
		return err
	}
	c.printUntried(results)
	for _, r := range results {
		if r.Outcome != conformance.Broken {
			continue
		}
		c.printf("\n%s: %s\n", r.Rule, r.Asks)
		for _, fault := range r.Faults {
			c.printf("  - %s\n", printable(fault))
		}
		for _, line := range r.Output {
			c.printf("  | %s\n", printable(line))
		}
	}
	return nil
}

// printUntried prints what was not tried, and why, each once with the rules that it
// concerns.
func (c *CLI) printUntried(results []conformance.Result) {
	rules := map[string][]string{}
	var order []string
	note := func(what, rule string) {
		if rules[what] == nil {
			order = append(order, what)
		}
		rules[what] = append(rules[what], rule)
	}
	for _, r := range results {
		if r.Outcome == conformance.NotTried {
			note("all of it: "+r.Note, r.Rule)
		}
		for _, what := range r.Untried {
			note(what, r.Rule)
		}
	}
	if len(order) > 0 {
		c.printf("\nNot tried:\n")
	}
	for _, what := range order {
		c.printf("  - %s (%s)\n", printable(what), strings.Join(rules[what], ", "))
	}
}

// brokenRules returns an error if a rule is broken.
func brokenRules(results []conformance.Result) error {
	var broken []string
	for _, r := range results {
		if r.Outcome == conformance.Broken {
			broken = append(broken, r.Rule)
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("%w: %d of %d rules: %s", errBroken, len(broken), len(results), strings.Join(broken, ", "))
	}
	return nil
}
