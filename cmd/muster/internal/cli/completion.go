package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// completionTimeout bounds what a press of the Tab key waits for the cluster.
const completionTimeout = time.Second

// complete returns candidates for what a user types. Errors are not shown: they
// would end up in the middle of a command line.
type complete func(ctx context.Context, client api) []cobra.Completion

// fromCluster completes with what a cluster has, except for words that are there
// already.
func (c *CLI) fromCluster(candidates complete) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		client, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return matching(candidates(ctx, client), args, typed), cobra.ShellCompDirectiveNoFileComp
	}
}

// matching returns the candidates that begin as typed and are not among the
// arguments, in order.
func matching(candidates []cobra.Completion, args []string, typed string) []cobra.Completion {
	candidates = slices.DeleteFunc(candidates, func(candidate cobra.Completion) bool {
		word, _, _ := strings.Cut(candidate, "\t")
		return !strings.HasPrefix(word, typed) || slices.Contains(args, word)
	})
	slices.Sort(candidates)
	return slices.Compact(candidates)
}

// once completes the first argument only.
func once(of cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return of(cmd, args, typed)
	}
}

func taskIDs(ctx context.Context, client api) []cobra.Completion {
	resp, err := client.ListTasks(ctx, &musterv1.ListTasksRequest{PageSize: pageSize})
	if err != nil {
		return nil
	}
	nodes, err := client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: pageSize})
	if err != nil {
		return nil
	}
	hosts := hostsOf(nodes.Nodes)
	var ids []cobra.Completion
	for _, t := range resp.Tasks {
		ids = append(ids, cobra.CompletionWithDesc(t.Id, taskName(t, hosts)+" "+title(t.Status.GetState().String())))
	}
	return ids
}

// executorKinds are the kinds that executors of any node run, containers aside.
func executorKinds(ctx context.Context, client api) []cobra.Completion {
	resp, _ := client.ListPlugins(ctx, &musterv1.ListPluginsRequest{})
	var kinds []cobra.Completion
	for _, p := range resp.GetPlugins() {
		kinds = append(kinds, p.Executor.GetKinds()...)
	}
	return slices.DeleteFunc(kinds, func(kind string) bool { return kind == "container" })
}

// containersOf completes with the containers of the service or task that is named on the
// command line.
func (c *CLI) containersOf(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.fromCluster(func(ctx context.Context, client api) []cobra.Completion {
		if len(args) == 0 {
			return nil
		}
		service, task, err := logTarget(ctx, client, args[0])
		if err != nil {
			return nil
		}
		spec := cmp.Or(task.GetSpec(), service.GetSpec().GetTask())
		names := []cobra.Completion{cobra.CompletionWithDesc("main", "main container")}
		for _, g := range spec.GetGroup() {
			names = append(names, cobra.CompletionWithDesc(g.Name, roleName(g.Role)))
		}
		return names
	})(cmd, nil, typed)
}

func tokenIDs(ctx context.Context, client api) []cobra.Completion {
	resp, _ := client.ListTokens(ctx, &musterv1.ListTokensRequest{})
	var ids []cobra.Completion
	for _, t := range resp.GetTokens() {
		ids = append(ids, cobra.CompletionWithDesc(t.Id, t.Name+" "+t.Role))
	}
	return ids
}

func contextNames(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for name, t := range all.Contexts {
		names = append(names, cobra.CompletionWithDesc(name, t.Address))
	}
	return matching(names, args, typed), cobra.ShellCompDirectiveNoFileComp
}

// completions adds to a command and those below it what they complete, unless they do it
// themselves.
func (c *CLI) completions(cmd *cobra.Command) {
	arguments, flags := c.argumentCompletions(), c.flagCompletions()
	eachCommand(cmd, func(cmd *cobra.Command) {
		_, path, _ := strings.Cut(cmd.CommandPath(), " ")
		if of, known := arguments[path]; known {
			cmd.ValidArgsFunction = of
		} else if cmd.Runnable() && cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			of := flags[path+" --"+f.Name]
			if of == nil {
				of = flags[f.Name]
			}
			if of != nil {
				// It fails only if the flag has one already.
				_ = cmd.RegisterFlagCompletionFunc(f.Name, of)
			}
		})
	})
}

func fixed(values ...cobra.Completion) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// argumentCompletions are those of commands that are found by path. Commands of kinds
// complete theirs.
func (c *CLI) argumentCompletions() map[string]cobra.CompletionFunc {
	ofServices, ofNodes := serviceKind(), nodeKind()
	services, nodes, tasks := c.fromCluster(ofServices.names), c.fromCluster(ofNodes.names), c.fromCluster(taskIDs)
	stacks := c.fromCluster(stackNames)
	both := func(ctx context.Context, client api) []cobra.Completion {
		return append(ofServices.names(ctx, client), ofNodes.names(ctx, client)...)
	}
	sized := func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, _ := services(cmd, nil, typed)
		for i, name := range names {
			word, _, _ := strings.Cut(name, "\t")
			names[i] = word + "="
		}
		return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	return map[string]cobra.CompletionFunc{
		"service ps": services, "service scale": sized, "service logs": once(services), "service update": once(services), "service rollback": once(services),
		"task inspect": tasks, "task logs": once(tasks), "task rm": tasks, "node ps": nodes, "node update": nodes,
		"config update": c.fromCluster(configKind().names), "config create": configFile,
		"config rotate": existingThenFile(c.fromCluster(configKind().names)), "secret create": configFile,
		"secret update": c.fromCluster(secretKind().names), "secret rotate": existingThenFile(c.fromCluster(secretKind().names)),
		"ps": c.fromCluster(both), "logs": services,
		"stack services": once(stacks), "stack ps": stacks, "stack logs": once(stacks), "stack rm": stacks, "stack history": once(stacks),
		"stack rollback": c.stackThenRevision, "stack deploy": once(stacks), "stack plan": once(stacks), "stack config": once(stacks),
		"token rm": once(c.fromCluster(tokenIDs)), "context use": once(contextNames), "context rm": once(contextNames),
		"cluster join-token": once(fixed("worker", "manager")), "plugin test": nil, "network test": once(services),
	}
}

// flagCompletions are those of flags by name, or by the path of their command and name.
func (c *CLI) flagCompletions() map[string]cobra.CompletionFunc {
	networks := c.fromCluster(networkKind().names)
	flags := map[string]cobra.CompletionFunc{
		"mode": fixed("replicated", "global"), "availability": fixed("active", "pause", "drain"), "role": fixed("viewer", "operator", "admin"),
		"constraint": c.constraints, "constraint-add": c.constraints, "constraint-rm": c.ownConstraints,
		"format": fixed("table", "json"), "context": contextNames, "service": c.fromCluster(serviceKind().names), "kind": c.fromCluster(executorKinds),
		"network": networks, "network-add": networks, "network-rm": networks, "driver": fixed("overlay", "bridge", "cni"),
		"container": c.containersOf, "network test --from": c.fromCluster(nodeKind().names), "events --kind": fixed(objectKinds()...), "events --format": fixed("text", "json"),
		"stack config --format": fixed("yaml", "json"),
		"events --filter":       c.completeFilters(watchFilters(), (*musterv1.WatchRequest)(nil)),
	}
	for _, f := range specFlags() {
		if values := f.values(); values != nil {
			flags[f.name] = fixed(values...)
		}
	}
	for _, path := range []string{"ps", "task ls", "service ps", "node ps", "stack ps"} {
		flags[path+" --filter"] = c.completeFilters(taskFilters(), (*musterv1.ListTasksRequest)(nil))
	}
	return flags
}

func eachCommand(cmd *cobra.Command, do func(*cobra.Command)) {
	do(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, do)
	}
}
