package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) plugin() *cobra.Command {
	return group("plugin", "List and test executor plugins", c.pluginList(), c.pluginTest())
}

func (c *CLI) pluginList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the executor plugins of all nodes", Args: cobra.NoArgs,
		Example: `  muster plugin ls
  muster plugin ls --format '{{.hostname}} {{.executor.name}} {{.executor.checksum}}'`,
		RunE: ask(c, api.ListPlugins, &musterv1.ListPluginsRequest{}, func(resp *musterv1.ListPluginsResponse) error {
			return show(c, &o, resp.Plugins, (*musterv1.NodePlugin).GetNodeId, func() *table {
				t := &table{header: []string{"NODE", "NAME", "VERSION", "HEALTH", "KINDS", "CAPABILITIES", "SCHEMA", "MESSAGE"}}
				for _, p := range resp.Plugins {
					e := p.Executor
					schema := "no"
					if e.GetPayloadSchema() != "" {
						schema = "yes"
					}
					t.add(p.Hostname, e.GetName(), e.GetVersion(), title(e.GetHealth().String()), strings.Join(e.GetKinds(), ","),
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
