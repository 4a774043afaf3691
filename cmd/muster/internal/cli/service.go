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
	"github.com/musterhq/muster/internal/defaults"
)

func (c *CLI) service() *cobra.Command {
	k := serviceKind()
	return group("service", "Create and manage services",
		c.serviceCreate(), listCommand(c, k), c.serviceInspect(k), c.servicePs(), c.serviceLogs(), c.serviceUpdate(), c.serviceRollback(), c.serviceScale(), removeCommand(c, k))
}

func serviceKind() *kind[*musterv1.Service, *musterv1.ListServicesRequest] {
	k := &kind[*musterv1.Service, *musterv1.ListServicesRequest]{
		noun:  "service",
		table: func(s []*musterv1.Service, inspect bool) *table { return serviceTable(s, inspect, nil) },
		id:    (*musterv1.Service).GetId,
		name:  func(s *musterv1.Service) string { return s.Spec.GetName() },
		hint:  func(s *musterv1.Service) string { return replicas(s) + " " + runs(s.Spec.GetTask()) },
		examples: [3]string{
			"  muster service ls\n  muster service ls --filter label=team=web --format '{{.spec.name}}'",
			"  muster service inspect web\n  muster service inspect web --format '{{.status.runningTasks}}'",
			"  muster service rm web worker",
		},
		removes: "Remove services and their tasks",
		list:    pages(api.ListServices, (*musterv1.ListServicesResponse).GetServices),
		get:     byName(api.GetService, func(ref string) *musterv1.GetServiceRequest { return &musterv1.GetServiceRequest{Service: ref} }, (*musterv1.GetServiceResponse).GetService),
		remove:  byName(api.RemoveService, func(ref string) *musterv1.RemoveServiceRequest { return &musterv1.RemoveServiceRequest{Service: ref} }, nothing[*musterv1.RemoveServiceResponse]),
	}
	k.filters = commonFilters(k.names, filter{"mode", "modes", "mode=MODE", nil})
	return k
}

// serviceTable shows services in rows. For inspect it adds what their names mean on their
// networks, whose names it gets by id.
func serviceTable(services []*musterv1.Service, inspect bool, networks map[string]string) *table {
	t := &table{header: []string{"ID", "NAME", "MODE", "REPLICAS", "RUNS", "PORTS", "UPDATE"}}
	if inspect {
		t.header = append(t.header, "ENDPOINT", "ADDRESSES")
	}
	for _, s := range services {
		row := []string{
			short(s.Id, false), s.Spec.GetName(), modeName(s.Spec), replicas(s), runsNow(s), ports(publishedPorts(s)), updateState(s),
		}
		if inspect {
			row = append(row, strings.ToLower(defaults.EndpointMode(effective(s).GetEndpoint()).String()), virtualIPs(s, networks))
		}
		t.add(row...)
	}
	return t
}

// serviceInspect shows networks by their names in tables.
func (c *CLI) serviceInspect(k *kind[*musterv1.Service, *musterv1.ListServicesRequest]) *cobra.Command {
	cmd := inspectCommand(c, k)
	show := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format, _ := cmd.Flags().GetString("format"); format == "table" {
			networks, err := c.networkNames(cmd)
			if err != nil {
				return err
			}
			k.table = func(s []*musterv1.Service, inspect bool) *table { return serviceTable(s, inspect, networks) }
		}
		return show(cmd, args)
	}
	return cmd
}

// virtualIPs are the addresses of a service, each with its network.
func virtualIPs(s *musterv1.Service, networks map[string]string) string {
	var all []string
	for _, v := range s.Endpoint.GetVirtualIps() {
		all = append(all, v.Address+" on "+cmp.Or(networks[v.NetworkId], short(v.NetworkId, false)))
	}
	return strings.Join(all, ", ")
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

// publishedPorts are the ports of a service, with those that the allocator chose.
func publishedPorts(s *musterv1.Service) []*musterv1.PortConfig {
	published := slices.Clone(effective(s).GetEndpoint().GetPorts())
	for i, p := range published {
		if p.PublishedPort != 0 || p.PublishMode == musterv1.PortConfig_HOST {
			continue
		}
		for _, chosen := range s.Endpoint.GetPorts() {
			if chosen.TargetPort == p.TargetPort && defaults.Protocol(chosen) == defaults.Protocol(p) {
				published[i] = chosen
			}
		}
	}
	return published
}

func ports(ps []*musterv1.PortConfig) string {
	var out []string
	for _, p := range ps {
		out = append(out, fmt.Sprintf("*:%d->%d/%s", p.PublishedPort, p.TargetPort, strings.ToLower(defaults.Protocol(p).String())))
	}
	return strings.Join(out, ", ")
}

func (c *CLI) serviceScale() *cobra.Command {
	var w wait
	cmd := &cobra.Command{
		Use: "scale SERVICE=REPLICAS...", Short: "Set the number of tasks of services", Args: cobra.MinimumNArgs(1),
		Long: `Set the number of tasks of services and wait until they run (--detach: do not wait).

If one fails, the others are still scaled. --timeout applies to the whole command.

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
			var scaled []*musterv1.Service
			var errs []error
			for _, req := range wanted {
				resp, err := call(c, cmd, api.ScaleService, req)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				c.printf("%s scaled to %d\n", req.Service, req.Replicas)
				scaled = append(scaled, resp.Service)
			}
			return errors.Join(append(errs, c.converge(cmd.Context(), &w, scaled...))...)
		},
	}
	w.addFlags(cmd)
	return cmd
}
