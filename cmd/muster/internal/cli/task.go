package cli

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) task() *cobra.Command {
	return group("task", "Look at tasks", c.taskList(), c.taskInspect(), c.taskLogs())
}

// taskTable has the options of commands that list tasks.
type taskTable struct {
	output
	whole   bool
	filters []string
}

func (o *taskTable) addFlags(cmd *cobra.Command) {
	o.output.addFlags(cmd, true)
	cmd.Flags().BoolVar(&o.whole, "no-trunc", false, "show ids and errors in full")
	cmd.Flags().StringArrayVarP(&o.filters, "filter", "f", nil, "id=PREFIX, service=NAME, node=NAME, desired-state=STATE or state=STATE (again for more)")
}

// list prints the tasks that a request and the filters ask for.
func (c *CLI) listTasks(cmd *cobra.Command, o *taskTable, req *musterv1.ListTasksRequest) error {
	var desired, states []string
	err := parseFilters(o.filters, map[string]*[]string{
		"id": &req.IdPrefixes, "service": &req.Services, "node": &req.Nodes, "desired-state": &desired, "state": &states,
	})
	if err != nil {
		return err
	}
	if req.DesiredStates, err = parseAll(desired, parseState); err != nil {
		return err
	}
	if req.States, err = parseAll(states, parseState); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	req.PageSize = pageSize
	tasks, err := all(func(token string) ([]*musterv1.Task, string, error) {
		req.PageToken = token
		resp, err := call(cmd, client.ListTasks, req)
		return resp.GetTasks(), resp.GetNextPageToken(), err
	})
	if err != nil {
		return err
	}
	// By slot, the newest run of each first.
	slices.SortStableFunc(tasks, func(a, b *musterv1.Task) int {
		return cmp.Or(cmp.Compare(a.ServiceName, b.ServiceName), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.GetMeta().GetCreatedAt().AsTime().UnixNano(), b.GetMeta().GetCreatedAt().AsTime().UnixNano())*-1)
	})
	names, err := c.hostnames(cmd, client)
	if err != nil {
		return err
	}
	return show(c, &o.output, tasks, (*musterv1.Task).GetId, func() *table {
		t := &table{header: []string{"ID", "NAME", "RUNS", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR"}}
		for _, task := range tasks {
			t.add(short(task.Id, o.whole), taskName(task, names), runs(task.Spec), cmp.Or(names[task.NodeId], short(task.NodeId, o.whole)),
				title(task.DesiredState.String()), strings.TrimSpace(title(task.Status.GetState().String())+" "+ago(task.Status.GetTimestamp())),
				cut(task.Status.GetError(), 60, o.whole))
		}
		return t
	})
}

func parseState(v string) (musterv1.TaskState, error) {
	n, ok := musterv1.TaskState_value[strings.ToUpper(v)]
	if !ok || n == 0 {
		return 0, usage("--filter: there is no state %q", v)
	}
	return musterv1.TaskState(n), nil
}

func taskName(t *musterv1.Task, nodes map[string]string) string {
	if t.Slot == 0 {
		return t.ServiceName + "." + cmp.Or(nodes[t.NodeId], t.NodeId)
	}
	return t.ServiceName + "." + strconv.FormatUint(t.Slot, 10)
}

// hostnames returns the names of all nodes by id.
func (c *CLI) hostnames(cmd *cobra.Command, client musterv1.ControlServiceClient) (map[string]string, error) {
	nodes, err := all(func(token string) ([]*musterv1.Node, string, error) {
		resp, err := call(cmd, client.ListNodes, &musterv1.ListNodesRequest{PageSize: pageSize, PageToken: token})
		return resp.GetNodes(), resp.GetNextPageToken(), err
	})
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(nodes))
	for _, n := range nodes {
		names[n.Id] = n.Description.GetHostname()
	}
	return names, nil
}

func (c *CLI) servicePs() *cobra.Command {
	var o taskTable
	cmd := &cobra.Command{
		Use: "ps SERVICE...", Short: "List the tasks of services, past ones too", Args: cobra.MinimumNArgs(1),
		Example: `  muster service ps web
  muster service ps web --filter desired-state=running`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.listTasks(cmd, &o, &musterv1.ListTasksRequest{Services: args})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (c *CLI) taskList() *cobra.Command {
	var o taskTable
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tasks", Args: cobra.NoArgs,
		Example: `  muster task ls
  muster task ls --filter node=worker1 --filter state=running -q`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.listTasks(cmd, &o, &musterv1.ListTasksRequest{})
		},
	}
	o.addFlags(cmd)
	return cmd
}
