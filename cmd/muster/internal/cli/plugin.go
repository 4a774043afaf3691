package cli

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) plugin() *cobra.Command {
	return group("plugin", "List and test plugins", c.pluginList(), c.pluginTest())
}

func (c *CLI) pluginList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the executors and network plugins of all nodes", Args: cobra.NoArgs,
		Example: `  muster plugin ls
  muster plugin ls --format '{{.hostname}} {{.executor.name}} {{.networkDriver.name}}'`,
		RunE: ask(c, api.ListPlugins, &musterv1.ListPluginsRequest{}, func(resp *musterv1.ListPluginsResponse) error {
			return show(c, &o, resp.Plugins, (*musterv1.NodePlugin).GetNodeId, func() *table {
				t := &table{header: []string{"NODE", "NAME", "TYPE", "VERSION", "HEALTH", "SERVES", "CAPABILITIES", "SCHEMA", "MESSAGE"}}
				for _, p := range resp.Plugins {
					if d := p.NetworkDriver; d != nil {
						message := d.Message
						if len(d.Missing) > 0 {
							message = cmp.Or(message, "lacks "+strings.Join(d.Missing, ", "))
						}
						t.add(p.Hostname, d.Name, "network", d.Version, title(d.Health.String()), strings.Join(d.Drivers, ","),
							strings.Join(d.Capabilities, ","), "", cut(message, 60, false))
						continue
					}
					e := p.Executor
					schema := "no"
					if e.GetPayloadSchema() != "" {
						schema = "yes"
					}
					t.add(p.Hostname, e.GetName(), "executor", e.GetVersion(), title(e.GetHealth().String()), strings.Join(e.GetKinds(), ","),
						capabilities(e), schema, cut(e.GetMessage(), 60, false))
				}
				return t
			})
		}),
	}
	o.addFlags(cmd, false)
	return cmd
}

// capabilities leaves out the fields of containers, of which there are many.
func capabilities(e *musterv1.ExecutorDescription) string {
	out := map[string]bool{}
	for _, c := range e.GetCapabilities() {
		name, _, _ := strings.Cut(c, ".")
		out[name] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(out)), ",")
}
