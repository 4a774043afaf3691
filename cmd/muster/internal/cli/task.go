package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) task() *cobra.Command {
	return group("task", "List, inspect and remove tasks", c.taskList(), c.taskInspect(), c.taskLogs(), removeCommand(c, taskKind()))
}

// taskTable has the options of commands that list tasks.
type taskTable struct {
	output
	whole   bool
	filters []string
	// networks are names by id.
	networks map[string]string
}

func (o *taskTable) addFlags(cmd *cobra.Command) {
	o.output.addFlags(cmd, true)
	cmd.Flags().BoolVar(&o.whole, "no-trunc", false, "show ids and errors in full")
	cmd.Flags().StringArrayVarP(&o.filters, "filter", "f", nil, filterHelp(taskFilters(), "repeatable"))
}

// listTasks prints the tasks that the filters ask for, of the services and nodes that
// are named; none: of all.
func (c *CLI) listTasks(cmd *cobra.Command, o *taskTable, services, nodes []string) error {
	filters := &musterv1.ListTasksRequest{PageSize: pageSize}
	if err := setFilters(o.filters, taskFilters(), filters); err != nil {
		return err
	}
	if len(filters.Services) > 0 && len(services) > 0 || len(filters.Nodes) > 0 && len(nodes) > 0 {
		return usage("--filter: services or nodes that are named as arguments cannot be filtered for others")
	}
	hosts, err := c.hostnames(cmd)
	if err != nil {
		return err
	}
	var tasks []*musterv1.Task
	var errs []error
	list := func(narrow func(*musterv1.ListTasksRequest)) error {
		req := proto.CloneOf(filters)
		narrow(req)
		listed, err := taskKind().listAll(c, cmd, req)
		tasks = append(tasks, listed...)
		return err
	}
	for _, ref := range services {
		resp, missing := call(c, cmd, api.GetService, &musterv1.GetServiceRequest{Service: ref})
		if missing != nil && status.Code(missing) != codes.NotFound {
			return missing
		}
		before := len(tasks)
		if err := list(func(req *musterv1.ListTasksRequest) { req.Services = []string{cmp.Or(resp.GetService().GetId(), ref)} }); err != nil {
			return err
		}
		// A service that is removed is found by its tasks, while it has some.
		if missing != nil && len(tasks) == before {
			errs = append(errs, missing)
		}
	}
	for _, ref := range nodes {
		resp, err := call(c, cmd, api.GetNode, &musterv1.GetNodeRequest{Node: ref})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := list(func(req *musterv1.ListTasksRequest) { req.Nodes = []string{resp.Node.Id} }); err != nil {
			return err
		}
	}
	if len(services)+len(nodes) == 0 {
		if err := list(func(*musterv1.ListTasksRequest) {}); err != nil {
			return err
		}
	}
	if o.format == "table" && !o.quiet {
		if o.networks, err = c.networksOf(cmd, tasks); err != nil {
			return err
		}
	}
	if len(errs) < len(services)+len(nodes) || len(errs) == 0 {
		errs = append(errs, c.showTasks(o, tasks, hosts))
	}
	return errors.Join(errs...)
}

// showTasks prints tasks by slot, the newest run of each first.
func (c *CLI) showTasks(o *taskTable, tasks []*musterv1.Task, hosts map[string]string) error {
	slices.SortStableFunc(tasks, func(a, b *musterv1.Task) int {
		return cmp.Or(cmp.Compare(a.ServiceName, b.ServiceName), cmp.Compare(a.Slot, b.Slot), cmp.Compare(taskName(a, hosts), taskName(b, hosts)),
			b.GetMeta().GetCreatedAt().AsTime().Compare(a.GetMeta().GetCreatedAt().AsTime()), cmp.Compare(a.Id, b.Id))
	})
	tasks = slices.CompactFunc(tasks, func(a, b *musterv1.Task) bool { return a.Id == b.Id })
	return show(c, &o.output, tasks, (*musterv1.Task).GetId, func() *table {
		t := &table{header: []string{"ID", "NAME", "RUNS", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR"}}
		networked := slices.ContainsFunc(tasks, func(t *musterv1.Task) bool { return len(t.Networks) > 0 })
		if networked {
			t.header = append(t.header, "ADDRESSES")
		}
		grouped := slices.ContainsFunc(tasks, func(t *musterv1.Task) bool { return len(t.Status.GetContainers()) > 0 })
		if grouped {
			t.header = append(t.header, "CONTAINERS")
		}
		for _, task := range tasks {
			row := []string{short(task.Id, o.whole), taskName(task, hosts), runs(task.Spec), cmp.Or(hosts[task.NodeId], short(task.NodeId, o.whole)),
				title(task.DesiredState.String()), join(title(task.Status.GetState().String()), ago(task.Status.GetTimestamp()), healthNote(task)),
				cut(task.Status.GetError(), 60, o.whole)}
			if networked {
				row = append(row, addresses(task, o.networks))
			}
			if grouped {
				row = append(row, containers(task))
			}
			t.add(row...)
		}
		return t
	})
}

// addresses are a task's addresses, each with its network.
func addresses(t *musterv1.Task, networks map[string]string) string {
	var all []string
	for _, n := range t.Networks {
		for _, a := range n.Addresses {
			all = append(all, a+" on "+cmp.Or(networks[n.NetworkId], short(n.NetworkId, false)))
		}
	}
	return strings.Join(all, ", ")
}

// containers are the containers of a task with a group, and their states.
func containers(t *musterv1.Task) string {
	var all []string
	for _, s := range t.Status.GetContainers() {
		all = append(all, s.Name+" "+strings.ToLower(s.State.String()))
	}
	return strings.Join(all, ", ")
}

// containerTable lists the containers of a task with a group.
func containerTable(t *musterv1.Task) *table {
	table := &table{header: []string{"CONTAINER", "ROLE", "STATE", "RESTARTS", "ERROR"}}
	for _, s := range t.Status.GetContainers() {
		restarts := strconv.FormatUint(uint64(s.Restarts), 10)
		if s.Previous != nil {
			restarts += fmt.Sprintf(" (last exit code %d", s.Previous.ExitCode)
			if s.Previous.OomKilled {
				restarts += ", out of memory"
			}
			restarts += ")"
		}
		table.add(s.Name, roleName(s.Role), join(title(s.State.String()), ago(s.Timestamp)), restarts, s.Error)
	}
	return table
}

// roleName is what people call the role of a container in a group.
func roleName(role musterv1.GroupContainer_Role) string {
	if role == musterv1.GroupContainer_ROLE_UNSPECIFIED {
		return "main"
	}
	return strings.ReplaceAll(strings.ToLower(role.String()), "_", "-")
}

// healthNote returns what a task's health check says, in the words of docker ps;
// nothing if the task has none.
func healthNote(t *musterv1.Task) string {
	switch state := t.Status.GetRuntime().GetHealth().GetState(); state {
	case musterv1.Health_STATE_UNSPECIFIED:
		return ""
	case musterv1.Health_STARTING:
		return "(health: starting)"
	default:
		return "(" + strings.ToLower(state.String()) + ")"
	}
}

// join puts a space between words that are not empty.
func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func taskName(t *musterv1.Task, nodes map[string]string) string {
	if t.Slot == 0 {
		return t.ServiceName + "." + cmp.Or(nodes[t.NodeId], t.NodeId)
	}
	return t.ServiceName + "." + strconv.FormatUint(t.Slot, 10)
}

// hostnames returns the names of all nodes by id.
func (c *CLI) hostnames(cmd *cobra.Command) (map[string]string, error) {
	nodes, err := nodeKind().listAll(c, cmd, nodeKind().request())
	return hostsOf(nodes), err
}

// hostsOf returns the host names of nodes by id.
func hostsOf(nodes []*musterv1.Node) map[string]string {
	hosts := make(map[string]string, len(nodes))
	for _, n := range nodes {
		hosts[n.Id] = n.Description.GetHostname()
	}
	return hosts
}

// tasksCommand makes a command that lists the tasks of services and nodes, which it finds
// in its arguments.
func (c *CLI) tasksCommand(cmd *cobra.Command, find func(cmd *cobra.Command, args []string) (services, nodes []string, err error)) *cobra.Command {
	var o taskTable
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		services, nodes, err := find(cmd, args)
		if err != nil {
			return err
		}
		return c.listTasks(cmd, &o, services, nodes)
	}
	o.addFlags(cmd)
	return cmd
}

func (c *CLI) servicePs() *cobra.Command {
	return c.tasksCommand(&cobra.Command{
		Use: "ps SERVICE...", Short: "List the tasks of services, including past ones", Args: cobra.MinimumNArgs(1),
		Example: `  muster service ps web
  muster service ps web --filter desired-state=running`,
	}, func(_ *cobra.Command, args []string) (services, nodes []string, err error) { return args, nil, nil })
}

func (c *CLI) nodePs() *cobra.Command {
	return c.tasksCommand(&cobra.Command{
		Use: "ps NODE...", Short: "List the tasks of nodes", Args: cobra.MinimumNArgs(1),
		Example: "  muster node ps worker1",
	}, func(_ *cobra.Command, args []string) (services, nodes []string, err error) { return nil, args, nil })
}

func (c *CLI) taskList() *cobra.Command {
	return c.tasksCommand(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tasks", Args: cobra.NoArgs,
		Example: `  muster task ls
  muster task ls --filter node=worker1 --filter state=running -q`,
	}, c.servicesAndNodes)
}

// ps lists tasks of services and nodes alike.
func (c *CLI) ps() *cobra.Command {
	return c.tasksCommand(&cobra.Command{
		Use: "ps [SERVICE|NODE...]", Short: "List tasks: all, or those of services and nodes",
		Long: `List tasks, including past ones: all of them, or those of the given services and nodes. If a service and a node have the
same name, the service is meant; "muster node ps" lists the node's tasks.`,
		Example: `  muster ps
  muster ps web worker1
  muster ps --filter state=failed`,
	}, c.servicesAndNodes)
}

// servicesAndNodes tells names of services from those of nodes. A name that neither has
// counts as one of a service.
func (c *CLI) servicesAndNodes(cmd *cobra.Command, args []string) (services, nodes []string, err error) {
	for _, ref := range args {
		_, missing := call(c, cmd, api.GetService, &musterv1.GetServiceRequest{Service: ref})
		if status.Code(missing) == codes.NotFound {
			_, missing = call(c, cmd, api.GetNode, &musterv1.GetNodeRequest{Node: ref})
			if missing == nil {
				nodes = append(nodes, ref)
				continue
			}
			if status.Code(missing) != codes.NotFound {
				return nil, nil, missing
			}
		}
		services = append(services, ref)
	}
	return services, nodes, nil
}

// taskKind has what rm needs. Lists of tasks are those of ps, and inspect shows the way
// of a task.
func taskKind() *kind[*musterv1.Task, *musterv1.ListTasksRequest] {
	return &kind[*musterv1.Task, *musterv1.ListTasksRequest]{
		noun: "task", removes: "Stop and remove tasks; the service replaces those that it needs", examples: [3]string{2: "  muster task rm 0k2f"},
		list:   pages(api.ListTasks, (*musterv1.ListTasksResponse).GetTasks),
		get:    byTaskName(byName(api.GetTask, func(ref string) *musterv1.GetTaskRequest { return &musterv1.GetTaskRequest{Task: ref} }, (*musterv1.GetTaskResponse).GetTask)),
		remove: byTaskName(byName(api.RemoveTask, func(ref string) *musterv1.RemoveTaskRequest { return &musterv1.RemoveTaskRequest{Task: ref} }, nothing[*musterv1.RemoveTaskResponse])),
	}
}

// byTaskName makes a function that takes the id of a task take the names that ps shows, too.
func byTaskName[M any](m method[string, M]) method[string, M] {
	return func(client api, ctx context.Context, ref string, options ...grpc.CallOption) (M, error) {
		result, err := m(client, ctx, ref, options...)
		if status.Code(err) != codes.NotFound {
			return result, err
		}
		task, nameErr := taskNamed(ctx, client, ref)
		switch {
		case nameErr != nil:
			return result, nameErr
		case task == nil:
			return result, err
		}
		return m(client, ctx, task.Id, options...)
	}
}
