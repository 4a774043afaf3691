package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
)

func (c *CLI) stackList() *cobra.Command {
	var (
		o       output
		filters []string
	)
	known := []filter{{"name", "name_prefixes", "name=PREFIX", stackNames}, {"label", "labels", labelFilter, nil}}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List stacks", Args: cobra.NoArgs,
		Long: `List stacks: those that were deployed with Muster, and services with the label ` + stack.Label + `, such as
those that "docker stack deploy" created. The latter have no revision.`,
		Example: "  muster stack ls\n  muster stack ls --filter name=shop --format '{{.spec.name}} {{.revision.number}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &musterv1.ListStacksRequest{}
			if err := setFilters(filters, known, req); err != nil {
				return err
			}
			client, err := c.stackClient()
			if err != nil {
				return err
			}
			summaries, err := stack.List(cmd.Context(), client)
			if err != nil {
				return err
			}
			return c.printStacks(cmd, &o, req, summaries)
		},
	}
	o.addFlags(cmd, true)
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, filterHelp(known, "repeatable"))
	_ = cmd.RegisterFlagCompletionFunc("filter", c.completeFilters(known, (*musterv1.ListStacksRequest)(nil))) // the flag exists
	return cmd
}

// printStacks prints the stacks that pass filters. The server knows of labels of stacks that
// are stored; only the names of others are filtered.
func (c *CLI) printStacks(cmd *cobra.Command, o *output, filters *musterv1.ListStacksRequest, summaries []stack.Summary) error {
	stored := map[string]bool{}
	if len(filters.Labels) > 0 {
		req := proto.CloneOf(filters)
		req.PageSize = pageSize
		stacks, err := readAll(req, func(req *musterv1.ListStacksRequest) (page[*musterv1.Stack], error) {
			return call(c, cmd, pages(api.ListStacks, (*musterv1.ListStacksResponse).GetStacks), req)
		})
		if err != nil {
			return err
		}
		for _, s := range stacks {
			stored[s.Id] = true
		}
	}
	var stacks []*musterv1.Stack
	t := &table{header: []string{"NAME", "SERVICES", "CONVERGED", "REVISION", "DEPLOYED", "MESSAGE"}}
	for _, s := range summaries {
		is := s.Stack
		if is == nil {
			is = &musterv1.Stack{Spec: &musterv1.StackSpec{Name: s.Name}}
		}
		if !hasPrefix(s.Name, filters.NamePrefixes) || len(filters.Labels) > 0 && !stored[is.Id] {
			continue
		}
		stacks = append(stacks, is)
		t.add(s.Name, strconv.Itoa(len(s.Services)), strconv.Itoa(converged(s.Services)), revisionNumber(is.Revision), deployed(is), is.Revision.GetMessage())
	}
	return show(c, o, stacks, func(s *musterv1.Stack) string { return s.Spec.GetName() }, func() *table { return t })
}

// hasPrefix reports whether a name begins with one of these, if there are any.
func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(strings.ToLower(name), strings.ToLower(p)) {
			return true
		}
	}
	return len(prefixes) == 0
}

// converged returns how many services run as their specs say.
func converged(services []*musterv1.Service) int {
	n := 0
	for _, s := range services {
		if s.Status.GetConverged() {
			n++
		}
	}
	return n
}

// revisionNumber returns the number of a revision, "" if there is none.
func revisionNumber(r *musterv1.StackRevision) string {
	if r == nil {
		return ""
	}
	return strconv.FormatUint(r.Number, 10)
}

// deployed says when a stack was deployed last, or that it is being removed.
func deployed(s *musterv1.Stack) string {
	if s.RemovingSince != nil {
		return "being removed since " + ago(s.RemovingSince)
	}
	return ago(s.Revision.GetCreatedAt())
}

func (c *CLI) stackHistory() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "history STACK", Short: "List the revisions of a stack", Args: cobra.ExactArgs(1),
		Long: `List the revisions of a stack that the cluster keeps, newest first, at most 25.

"muster stack config --revision 3 shop" prints the content of one, and "muster stack rollback shop 3" returns to it.`,
		Example: "  muster stack history shop\n  muster stack history shop --format json",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.stackClient()
			if err != nil {
				return err
			}
			revisions, err := stack.History(cmd.Context(), client, args[0])
			if err != nil {
				return err
			}
			return show(c, &o, revisions, revisionNumber, func() *table {
				t := &table{header: []string{"REVISION", "DEPLOYED", "BY", "DIGEST", "MESSAGE"}}
				for _, r := range revisions {
					t.add(revisionNumber(r), ago(r.CreatedAt), r.By, short(r.Digest, false), r.Message)
				}
				return t
			})
		},
	}
	o.addFlags(cmd, false)
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print numbers only")
	return cmd
}

// parseRevision reads the number of a revision.
func parseRevision(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, usage("REVISION: %q is not a number from 1 on; `muster stack history` lists revisions", text)
	}
	return n, nil
}

// stackNames completes with the names of stacks.
func stackNames(ctx context.Context, client api) []cobra.Completion {
	summaries, _ := stack.List(ctx, client)
	var names []cobra.Completion
	for _, s := range summaries {
		names = append(names, cobra.CompletionWithDesc(s.Name, strconv.Itoa(len(s.Services))+" services"))
	}
	return names
}

// stackThenRevision completes a stack, and then one of its revisions.
func (c *CLI) stackThenRevision(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return c.fromCluster(stackNames)(cmd, args, typed)
	case 1:
		return c.fromCluster(func(ctx context.Context, client api) []cobra.Completion {
			revisions, _ := stack.History(ctx, client, args[0])
			var numbers []cobra.Completion
			for _, r := range revisions {
				numbers = append(numbers, cobra.CompletionWithDesc(revisionNumber(r), join(ago(r.CreatedAt), r.Message)))
			}
			return numbers
		})(cmd, nil, typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
