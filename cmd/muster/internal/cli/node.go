package cli

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) node() *cobra.Command {
	k := nodeKind()
	return group("node", "Manage nodes", listCommand(c, k), inspectCommand(c, k), c.nodePs(), c.nodeUpdate(), removeCommand(c, k))
}

func nodeKind() *kind[*musterv1.Node, *musterv1.ListNodesRequest] {
	var force bool
	k := &kind[*musterv1.Node, *musterv1.ListNodesRequest]{
		noun:  "node",
		table: nodeTable,
		about: `List nodes.

CPU and MEMORY are reserved/total. "(shared)" marks what several of the listed nodes have together, because their
workers run on one machine: "muster node inspect --format table" shows which.`,
		id:   (*musterv1.Node).GetId,
		name: func(n *musterv1.Node) string { return n.Description.GetHostname() },
		hint: func(n *musterv1.Node) string {
			return title(n.Status.GetState().String()) + ", " + title(n.Spec.GetAvailability().String())
		},
		examples: [3]string{"  muster node ls --filter label=disk=ssd", "  muster node inspect worker1", "  muster node rm worker1"},
		removes:  "Remove nodes, whose workers are refused from then on",
		removeFlags: func(fs *pflag.FlagSet) {
			fs.BoolVarP(&force, "force", "f", false, "remove a node even if it is ready")
		},
		list: pages(api.ListNodes, (*musterv1.ListNodesResponse).GetNodes),
		get:  byName(api.GetNode, func(ref string) *musterv1.GetNodeRequest { return &musterv1.GetNodeRequest{Node: ref} }, (*musterv1.GetNodeResponse).GetNode),
		remove: byName(api.RemoveNode, func(ref string) *musterv1.RemoveNodeRequest {
			return &musterv1.RemoveNodeRequest{Node: ref, Force: force}
		}, nothing[*musterv1.RemoveNodeResponse]),
	}
	k.filters = commonFilters(k.names, filter{"state", "states", "state=STATE", nil},
		filter{"availability", "availabilities", "availability=AVAILABILITY", nil}, filter{"role", "roles", "role=ROLE", nil})
	return k
}

func nodeTable(nodes []*musterv1.Node, inspect bool) *table {
	t := &table{header: []string{"ID", "HOSTNAME", "STATUS", "AVAILABILITY", "TASKS", "CPU", "MEMORY", "EXECUTORS"}}
	if inspect {
		t.header = append(t.header, "MACHINE")
	}
	on := map[string]int{}
	for _, n := range nodes {
		on[machineOf(n)]++
	}
	for _, n := range nodes {
		has, shares := n.Description.GetResources(), n.Description.GetMachine().GetShared()
		cpus := fmt.Sprintf("%.1f/%.1f", float64(n.Reserved.GetNanoCpus())/1e9, float64(has.GetNanoCpus())/1e9)
		memory := units.BytesSize(float64(n.Reserved.GetMemoryBytes())) + "/" + units.BytesSize(float64(has.GetMemoryBytes()))
		if machineOf(n) != "" && on[machineOf(n)] > 1 {
			// Each of the nodes has the whole machine.
			if shares.GetNanoCpus() > 0 {
				cpus += sharedMark
			}
			if shares.GetMemoryBytes() > 0 {
				memory += sharedMark
			}
		}
		row := []string{
			short(n.Id, false), n.Description.GetHostname(), title(n.Status.GetState().String()), title(n.Spec.GetAvailability().String()),
			fmt.Sprint(n.TaskCount), cpus, memory, executors(n),
		}
		if inspect {
			row = append(row, n.Description.GetMachine().GetId())
		}
		t.add(row...)
	}
	return t
}

// sharedMark follows the resources that several nodes of a table share.
const sharedMark = " (shared)"

// machineOf names the machine that a node may share with others: workers share one only
// at the same address. It is empty if there is none.
func machineOf(n *musterv1.Node) string {
	id := n.Description.GetMachine().GetId()
	if id == "" || n.Status.GetState() == musterv1.NodeStatus_DOWN {
		return ""
	}
	return n.Status.GetAddress() + "/" + id
}

// executors names a node's executors; "!" marks one that is not healthy.
func executors(n *musterv1.Node) string {
	var names []string
	for _, e := range n.Description.GetExecutors() {
		name := e.Name
		if e.Health != musterv1.ExecutorDescription_HEALTHY {
			name += "!"
		}
		names = append(names, name)
	}
	return strings.Join(sorted(names), ",")
}

func (c *CLI) nodeUpdate() *cobra.Command {
	var (
		availability string
		add, remove  []string
	)
	cmd := &cobra.Command{
		Use: "update [flags] NODE...", Short: "Change the availability and labels of nodes", Args: cobra.MinimumNArgs(1),
		Long: `Change the availability and labels of nodes.

Each node is read, changed as the flags say, and written back. If one fails, the others are still changed, and the exit
code is that of the failure.`,
		Example: `  muster node update --availability drain worker1 worker2
  muster node update --label-add disk=ssd worker1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			n := enumValue(musterv1.NodeSpec_ACTIVE.Descriptor(), availability)
			if availability != "" && n == nil {
				return usage("--availability: %q: want active, pause or drain", availability)
			}
			return c.each(args, func(name string) error {
				return c.updateNode(cmd, name, func(spec *musterv1.NodeSpec) error {
					if n != nil {
						spec.Availability = musterv1.NodeSpec_Availability(n.Number())
					}
					return changeLabels(spec, add, remove)
				})
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&availability, "availability", "", "active, pause (no new tasks) or drain (tasks move elsewhere)")
	fs.StringArrayVar(&add, "label-add", nil, "add or change a label, key=value (repeatable)")
	fs.StringArrayVar(&remove, "label-rm", nil, "remove a label (repeatable)")
	return cmd
}

// updateNode changes what is said of one node.
func (c *CLI) updateNode(cmd *cobra.Command, name string, change func(*musterv1.NodeSpec) error) error {
	got, err := call(c, cmd, api.GetNode, &musterv1.GetNodeRequest{Node: name})
	if err != nil {
		return err
	}
	if err := change(got.Node.Spec); err != nil {
		return err
	}
	_, err = call(c, cmd, api.UpdateNode, &musterv1.UpdateNodeRequest{Node: got.Node.Id, Version: got.Node.Meta.GetVersion(), Spec: got.Node.Spec})
	return err
}
