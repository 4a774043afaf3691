package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) taskInspect() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect TASK...", Short: "Show a task's state and the timeline that led to it", Args: cobra.MinimumNArgs(1),
		Long: `Show a task's state and the timeline that led to it: what each daemon did, and how long it took.

Name a task by its id, a prefix of it, or its name as "muster ps" shows it: web.1 is the current task of slot 1.

TOOK is the time since the line above. A "~" marks times between the clocks of two daemons, which are only as exact as the
clocks agree; a clock that is seen to be behind is named. The time for a write into the store and for its way to the next
daemon counts towards the next daemon. --format json shows the whole task.`,
		Example: `  muster task inspect 0k2f
  muster task inspect web.1
  muster task inspect web.1.0k2f --format json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			tasks, err := getAll(args, func(id string) (*musterv1.Task, error) { return call(c, cmd, taskKind().get, id) })
			if err != nil {
				return err
			}
			if o.format != "table" {
				return show(c, &o, tasks, nil, nil)
			}
			names, err := c.hostnames(cmd)
			if err != nil {
				return err
			}
			networks, err := c.networksOf(cmd, tasks)
			if err != nil {
				return err
			}
			for i, task := range tasks {
				if i > 0 {
					c.printf("\n")
				}
				if err := c.printTask(task, names, networks); err != nil {
					return err
				}
			}
			return nil
		},
	}
	o.addFlags(cmd, false)
	return cmd
}

// line prints a property of an object, if it has it.
func (c *CLI) line(name, value string) {
	if value != "" {
		c.printf("%-10s%s\n", name+":", printable(value))
	}
}

// printTask prints a task for people.
func (c *CLI) printTask(t *musterv1.Task, nodes, networks map[string]string) error {
	c.line("Task", t.Id)
	c.line("Name", taskName(t, nodes))
	c.line("Runs", runs(t.Spec))
	c.line("Node", cmp.Or(nodes[t.NodeId], t.NodeId))
	c.line("State", fmt.Sprintf("%s %s, desired %s", title(t.Status.GetState().String()), ago(t.Status.GetTimestamp()), title(t.DesiredState.String())))
	for _, n := range t.Networks {
		c.line("Network", place(n, networks))
	}
	c.line("Ports", ports(t.Status.GetPorts()))
	c.line("Message", t.Status.GetMessage())
	c.line("Error", t.Status.GetError())
	if health := t.Status.GetRuntime().GetHealth(); health != nil {
		state, check := describeHealth(health)
		c.line("Health", state)
		c.line("Check", check)
	}
	c.printf("\n")
	if len(t.Status.GetContainers()) > 0 {
		if err := c.printTable(containerTable(t)); err != nil {
			return err
		}
		c.printf("\n")
	}
	if err := c.printTable(stageTable(t.Stages)); err != nil {
		return err
	}
	for _, note := range clockNotes(t.Stages) {
		c.printf("\n%s\n", note)
	}
	return nil
}

// networksOf returns the names of networks by id, if a task is on any.
func (c *CLI) networksOf(cmd *cobra.Command, tasks []*musterv1.Task) (map[string]string, error) {
	if !slices.ContainsFunc(tasks, func(t *musterv1.Task) bool { return len(t.Networks) > 0 }) {
		return nil, nil
	}
	return c.networkNames(cmd)
}

// place describes a task's place on a network.
func place(n *musterv1.NetworkAttachment, names map[string]string) string {
	text := join(cmp.Or(names[n.NetworkId], n.NetworkId), strings.Join(n.Addresses, ", "))
	if len(n.Aliases) > 0 {
		text += " (also " + strings.Join(n.Aliases, ", ") + ")"
	}
	return text
}

// describeHealth says how a health check fares, and how its latest run ended if it
// failed.
func describeHealth(h *musterv1.Health) (state, check string) {
	state = strings.ToLower(h.State.String())
	if h.FailedChecks > 0 {
		state += fmt.Sprintf(", %d of %d checks failed", h.FailedChecks, h.Retries)
	}
	if h.ExitCode != 0 {
		check = join(fmt.Sprintf("exit code %d:", h.ExitCode), cmp.Or(h.Output, "no output"))
	}
	return state, check
}

// stageTable is a task's way as a table.
func stageTable(stages []*musterv1.TaskStage) *table {
	table := &table{header: []string{"STAGE", "DAEMON", "AT", "TOOK", ""}}
	for i, s := range stages {
		took := ""
		if i > 0 {
			took = s.Took.AsDuration().String()
			if s.Daemon != stages[i-1].Daemon {
				took = "~" + took
			}
			if s.ClockBehind != nil {
				took = "?"
			}
		}
		table.add(s.Name, s.Daemon, s.At.AsTime().Local().Format("2006-01-02 15:04:05.000"), took, s.Detail)
	}
	return table
}

// clockNotes say which daemons' clocks are seen to differ.
func clockNotes(stages []*musterv1.TaskStage) []string {
	var notes []string
	for i, s := range stages {
		if s.ClockBehind == nil || i == 0 {
			continue
		}
		note := fmt.Sprintf("The clock of %s is at least %v behind that of %s: what lies between the two is not exact.",
			s.Daemon, s.ClockBehind.AsDuration().Round(time.Millisecond), stages[i-1].Daemon)
		if s.Daemon == stages[i-1].Daemon {
			note = fmt.Sprintf("The clock of %s was set back by at least %v.", s.Daemon, s.ClockBehind.AsDuration().Round(time.Millisecond))
		}
		if note = printable(strings.TrimSpace(note)); !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	return notes
}
