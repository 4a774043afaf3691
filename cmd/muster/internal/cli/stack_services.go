package cli

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
	"github.com/musterhq/muster/stack"
)

const (
	// logsAtOnce is how many services' logs are read at the same time.
	logsAtOnce = 100
	// logPatience is how long lines wait for those of services that have none.
	logPatience = time.Second
)

// stackServicesOf returns the services of a stack by name. Filters narrow them down.
func (c *CLI) stackServicesOf(cmd *cobra.Command, name string, filters []string) ([]*musterv1.Service, error) {
	k := serviceKind()
	req := &musterv1.ListServicesRequest{PageSize: pageSize, Labels: []string{stack.Label + "=" + name}}
	if err := setFilters(filters, k.filters, req); err != nil {
		return nil, err
	}
	services, err := k.listAll(c, cmd, req)
	if err == nil && len(services) == 0 && len(filters) == 0 {
		err = status.Errorf(codes.NotFound, "there are no services of a stack %q; `muster stack ls` lists stacks", name)
	}
	slices.SortFunc(services, func(a, b *musterv1.Service) int { return strings.Compare(a.Spec.GetName(), b.Spec.GetName()) })
	return services, err
}

func (c *CLI) stackServices() *cobra.Command {
	var (
		o       output
		filters []string
	)
	k := serviceKind()
	cmd := &cobra.Command{
		Use: "services STACK", Short: "List the services of a stack", Args: cobra.ExactArgs(1),
		Example: "  muster stack services shop\n  muster stack services shop --filter name=shop_web --format json",
		RunE: func(cmd *cobra.Command, args []string) error {
			services, err := c.stackServicesOf(cmd, args[0], filters)
			if err != nil {
				return err
			}
			return show(c, &o, services, k.id, func() *table { return k.table(services, false) })
		},
	}
	o.addFlags(cmd, true)
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, filterHelp(k.filters, "repeatable"))
	_ = cmd.RegisterFlagCompletionFunc("filter", c.completeFilters(k.filters, k.request())) // the flag exists
	return cmd
}

func (c *CLI) stackTasks() *cobra.Command {
	return c.tasksCommand(&cobra.Command{
		Use: "ps STACK...", Short: "List the tasks of stacks, including past ones", Args: cobra.MinimumNArgs(1),
		Example: "  muster stack ps shop\n  muster stack ps shop --filter desired-state=running",
	}, func(cmd *cobra.Command, args []string) (ids, _ []string, err error) {
		for _, name := range args {
			services, err := c.stackServicesOf(cmd, name, nil)
			if err != nil {
				return nil, nil, err
			}
			for _, s := range services {
				ids = append(ids, s.Id)
			}
		}
		return ids, nil, nil
	})
}

func (c *CLI) stackLogs() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use: "logs STACK", Short: "Show the output of the tasks of all services of a stack", Args: cobra.ExactArgs(1),
		Long: `Show the output of the tasks of all services of a stack, by the time at which lines were written.

-f also shows the lines of tasks that start later, but not those of services that are added to the stack.`,
		Example: "  muster stack logs shop\n  muster stack logs -f --tail 20 shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := o.request()
			if err != nil {
				return err
			}
			services, err := c.stackServicesOf(cmd, args[0], nil)
			if err != nil {
				return err
			}
			return c.mergeLogs(cmd.Context(), &o, options, services)
		},
	}
	o.addFlags(cmd)
	return cmd
}

// mergeLogs prints the lines of services until their logs end.
func (c *CLI) mergeLogs(ctx context.Context, o *logOptions, options *musterv1.LogOptions, services []*musterv1.Service) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	var sources []tasklog.Source
	for _, s := range services {
		sources = append(sources, func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
			_, next, err := openServiceLogs(ctx, client, s.Id, options)
			if err != nil {
				return err
			}
			for {
				m, err := next()
				switch {
				case errors.Is(err, io.EOF), status.Code(err) == codes.NotFound:
					// A service that was removed writes no further lines.
					return nil
				case err != nil:
					return err
				}
				if err := emit(m); err != nil {
					return err
				}
			}
		})
	}
	parallel := logsAtOnce
	if options.Follow {
		parallel = max(1, len(sources)) // none of them ends
	}
	return tasklog.Merge(ctx, sources, parallel, logPatience, func(m *musterv1.LogMessage) error { return c.printLog(o, m) })
}
