package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// completionTimeout bounds what a press of the Tab key waits for the cluster.
const completionTimeout = time.Second

// complete returns candidates for what a user types. Errors are not shown: they
// would end up in the middle of a command line.
type complete func(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion

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

func taskIDs(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion {
	resp, err := client.ListTasks(ctx, &musterv1.ListTasksRequest{PageSize: pageSize})
	if err != nil {
		return nil
	}
	nodes, err := client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: pageSize})
	if err != nil {
		return nil
	}
	hosts := map[string]string{}
	for _, n := range nodes.Nodes {
		hosts[n.Id] = n.Description.GetHostname()
	}
	var ids []cobra.Completion
	for _, t := range resp.Tasks {
		ids = append(ids, cobra.CompletionWithDesc(t.Id, taskName(t, hosts)+" "+title(t.Status.GetState().String())))
	}
	return ids
}

// executorKinds are the kinds that executors of any node run, containers aside.
func executorKinds(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion {
	resp, err := client.ListPlugins(ctx, &musterv1.ListPluginsRequest{})
	if err != nil {
		return nil
	}
	var kinds []cobra.Completion
	for _, p := range resp.Plugins {
		for _, kind := range p.Executor.GetKinds() {
			if kind != "container" {
				kinds = append(kinds, kind)
			}
		}
	}
	return kinds
}

func tokenIDs(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion {
	resp, err := client.ListTokens(ctx, &musterv1.ListTokensRequest{})
	if err != nil {
		return nil
	}
	var ids []cobra.Completion
	for _, t := range resp.Tokens {
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

// completions adds to a command and those below it what they complete. Commands
// are found by path, flags by name.
func (c *CLI) completions(cmd *cobra.Command) {
	ofServices, ofNodes, ofConfigs := serviceKind(), nodeKind(), configKind()
	services, nodes, tasks, configs := c.fromCluster(ofServices.names), c.fromCluster(ofNodes.names), c.fromCluster(taskIDs), c.fromCluster(ofConfigs.names)
	both := func(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion {
		return append(ofServices.names(ctx, client), ofNodes.names(ctx, client)...)
	}
	sized := func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, _ := services(cmd, nil, typed)
		for i, name := range names {
			word, _, _ := strings.Cut(name, "\t")
			names[i] = word + "="
		}
		return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	arguments := map[string]cobra.CompletionFunc{
		"service inspect": services, "service ps": services, "service rm": services, "service scale": sized,
		"service logs": once(services), "service update": once(services), "service rollback": once(services),
		"task inspect": tasks, "task logs": once(tasks), "task rm": tasks,
		"node inspect": nodes, "node ps": nodes, "node update": nodes, "node rm": nodes,
		"config inspect": configs, "config rm": configs, "config update": configs, "config create": configFile,
		"ps": c.fromCluster(both), "logs": services,
		"token rm":    once(c.fromCluster(tokenIDs)),
		"context use": once(contextNames), "context rm": once(contextNames),
		"cluster join-token": once(cobra.FixedCompletions([]cobra.Completion{"worker", "manager"}, cobra.ShellCompDirectiveNoFileComp)),
		"plugin test":        nil,
	}
	fixed := func(values ...cobra.Completion) cobra.CompletionFunc {
		return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
	}
	flags := map[string]cobra.CompletionFunc{
		"mode": fixed("replicated", "global"), "availability": fixed("active", "pause", "drain"), "role": fixed("viewer", "operator", "admin"),
		"constraint": c.constraints, "constraint-add": c.constraints, "constraint-rm": c.ownConstraints,
		"format": fixed("table", "json"), "context": contextNames, "service": services, "kind": c.fromCluster(executorKinds),
	}
	for _, f := range specFlags() {
		if values := f.values(); values != nil {
			flags[f.name] = fixed(values...)
		}
	}
	own := map[string]cobra.CompletionFunc{
		"events --kind": fixed(objectKinds()...), "events --format": fixed("text", "json"),
		"events --filter":     c.completeFilters(watchFilters(), (*musterv1.WatchRequest)(nil)),
		"service ls --filter": c.completeFilters(ofServices.filters, (*musterv1.ListServicesRequest)(nil)),
		"node ls --filter":    c.completeFilters(ofNodes.filters, (*musterv1.ListNodesRequest)(nil)),
		"config ls --filter":  c.completeFilters(ofConfigs.filters, (*musterv1.ListConfigsRequest)(nil)),
	}
	for _, path := range []string{"ps", "task ls", "service ps", "node ps"} {
		own[path+" --filter"] = c.completeFilters(taskFilters(), (*musterv1.ListTasksRequest)(nil))
	}
	eachCommand(cmd, func(cmd *cobra.Command) {
		_, path, _ := strings.Cut(cmd.CommandPath(), " ")
		of, known := arguments[path]
		if !known {
			of = cobra.NoFileCompletions
		}
		if cmd.Runnable() {
			cmd.ValidArgsFunction = of
		}
		for name, of := range flags {
			if special, ok := own[path+" --"+name]; ok {
				of = special
			}
			addCompletion(cmd, name, of)
		}
		if of, ok := own[path+" --filter"]; ok {
			addCompletion(cmd, "filter", of)
		}
	})
}

func addCompletion(cmd *cobra.Command, flag string, of cobra.CompletionFunc) {
	f := cmd.Flags().Lookup(flag)
	if f == nil {
		f = cmd.PersistentFlags().Lookup(flag)
	}
	if f == nil {
		return
	}
	// It fails only if the flag has one already: a flag of a command above.
	_ = cmd.RegisterFlagCompletionFunc(flag, of)
}

func eachCommand(cmd *cobra.Command, do func(*cobra.Command)) {
	do(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, do)
	}
}
