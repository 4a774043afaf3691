package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) service() *cobra.Command {
	return group("service", "Create and manage services",
		c.serviceCreate(), c.serviceList(), c.serviceInspect(), c.servicePs(), c.serviceLogs(), c.serviceUpdate(), c.serviceRollback(), c.serviceScale(), c.serviceRemove())
}

func (c *CLI) serviceList() *cobra.Command {
	var (
		o       output
		filters []string
	)
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List services", Args: cobra.NoArgs,
		Example: `  muster service ls
  muster service ls --filter label=team=web --format '{{.spec.name}}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &musterv1.ListServicesRequest{PageSize: pageSize}
			if err := serviceFilters(filters, req); err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			services, err := all(func(token string) ([]*musterv1.Service, string, error) {
				req.PageToken = token
				resp, err := call(cmd, client.ListServices, req)
				return resp.GetServices(), resp.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			slices.SortStableFunc(services, func(a, b *musterv1.Service) int { return cmp.Compare(a.Spec.GetName(), b.Spec.GetName()) })
			return show(c, &o, services, (*musterv1.Service).GetId, func() *table { return serviceTable(services) })
		},
	}
	o.addFlags(cmd, true)
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, serviceFilterHelp)
	return cmd
}

func serviceTable(services []*musterv1.Service) *table {
	t := &table{header: []string{"ID", "NAME", "MODE", "REPLICAS", "RUNS", "PORTS", "UPDATE"}}
	for _, s := range services {
		t.add(short(s.Id, false), s.Spec.GetName(), modeName(s.Spec), replicas(s), runsNow(s), ports(effective(s).GetEndpoint().GetPorts()), updateState(s))
	}
	return t
}

func modeName(s *musterv1.ServiceSpec) string {
	switch s.GetMode().(type) {
	case *musterv1.ServiceSpec_Global:
		return "global"
	case *musterv1.ServiceSpec_ReplicatedJob:
		return "replicated-job"
	case *musterv1.ServiceSpec_GlobalJob:
		return "global-job"
	}
	return "replicated"
}

// updateState says how far the last update has come, "" if there was none.
func updateState(s *musterv1.Service) string {
	if s.UpdateStatus == nil {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(s.UpdateStatus.State.String()), "_", " ")
}

func replicas(s *musterv1.Service) string {
	return fmt.Sprintf("%d/%d", s.Status.GetRunningTasks(), s.Status.GetDesiredTasks())
}

// runs says in a few words what tasks run.
func runs(t *musterv1.TaskSpec) string {
	if g := t.GetGeneric(); g != nil {
		return g.Kind
	}
	return t.GetContainer().GetImage()
}

// effective returns the spec that a service's tasks follow.
func effective(s *musterv1.Service) *musterv1.ServiceSpec {
	if s.EffectiveSpec != nil {
		return s.EffectiveSpec
	}
	return s.Spec
}

// runsNow says in a few words what a service's tasks run, and what they should run
// if that is something else.
func runsNow(s *musterv1.Service) string {
	now, wanted := runs(effective(s).GetTask()), runs(s.Spec.GetTask())
	if now == wanted {
		return now
	}
	return now + " (wanted: " + wanted + ")"
}

func ports(ps []*musterv1.PortConfig) string {
	var out []string
	for _, p := range ps {
		protocol := "tcp"
		if p.Protocol != musterv1.PortConfig_PROTOCOL_UNSPECIFIED {
			protocol = strings.ToLower(p.Protocol.String())
		}
		out = append(out, fmt.Sprintf("*:%d->%d/%s", p.PublishedPort, p.TargetPort, protocol))
	}
	return strings.Join(out, ", ")
}

func (c *CLI) serviceInspect() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect SERVICE...", Short: "Show services whole", Args: cobra.MinimumNArgs(1),
		Example: `  muster service inspect web
  muster service inspect web --format '{{.status.runningTasks}}'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			services, err := getAll(args, func(name string) (*musterv1.Service, error) {
				resp, err := call(cmd, client.GetService, &musterv1.GetServiceRequest{Service: name})
				return resp.GetService(), err
			})
			if err != nil {
				return err
			}
			return show(c, &o, services, nil, func() *table { return serviceTable(services) })
		},
	}
	o.addInspectFlags(cmd)
	return cmd
}

func (c *CLI) serviceScale() *cobra.Command {
	var w wait
	cmd := &cobra.Command{
		Use: "scale SERVICE=REPLICAS...", Short: "Set the number of tasks of services", Args: cobra.MinimumNArgs(1),
		Long: `Set the number of tasks of services, and wait until they run (--detach: do not wait).

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service scale web=10
  muster service scale web=3 worker=0 --detach`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted := make([]*musterv1.ScaleServiceRequest, len(args))
			for i, arg := range args {
				name, number, ok := strings.Cut(arg, "=")
				n, err := strconv.ParseUint(number, 10, 64)
				if !ok || name == "" || err != nil {
					return usage("%q: want SERVICE=REPLICAS, with a number from 0 on", arg)
				}
				wanted[i] = &musterv1.ScaleServiceRequest{Service: name, Replicas: n}
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			var scaled []*musterv1.Service
			for _, req := range wanted {
				resp, err := call(cmd, client.ScaleService, req)
				if err != nil {
					return err
				}
				c.printf("%s scaled to %d\n", req.Service, req.Replicas)
				scaled = append(scaled, resp.Service)
			}
			var stopped []error
			for _, s := range scaled {
				err := c.converge(cmd.Context(), client, &w, s)
				if err != nil && !errors.Is(err, errNotConverged) {
					return err
				}
				stopped = append(stopped, err)
			}
			return errors.Join(stopped...)
		},
	}
	w.addFlags(cmd)
	return cmd
}

func (c *CLI) serviceRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm SERVICE...", Aliases: []string{"remove"}, Short: "Remove services and their tasks", Args: cobra.MinimumNArgs(1),
		Example: "  muster service rm web worker",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if _, err := call(cmd, client.RemoveService, &musterv1.RemoveServiceRequest{Service: name}); err != nil {
					errs = append(errs, err)
					continue
				}
				c.printf("%s\n", name)
			}
			return errors.Join(errs...)
		},
	}
}
