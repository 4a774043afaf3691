package cli

import (
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// updateOptions are the flags of update that are not those of a single field.
type updateOptions struct {
	payload, file string
	replicas      uint64
	force         bool
}

func (c *CLI) serviceUpdate() *cobra.Command {
	var (
		o updateOptions
		w = wait{rollout: true}
	)
	cmd := &cobra.Command{
		Use: "update [flags] SERVICE", Short: "Change a service and wait until its tasks are replaced", Args: cobra.ExactArgs(1),
		Long: `Change a service and wait until its tasks are replaced (--detach: do not wait).

The service is read, changed as the flags say, and written back. If someone else changed it in between, nothing is written
(exit code 4): run the command again.

Tasks are replaced a few at a time, according to the --update-... flags, which are stored with the service. If too many of
the new tasks fail, the update pauses or is rolled back, and the command ends with exit code 6. A paused update continues
with the next "service update", even one without flags.

After an automatic rollback the tasks run the previous spec. An update that repeats what failed is then refused: change that
too, make the running spec current with "muster service rollback", or use --force. Changes of labels, replicas or the update
settings are applied, and the tasks keep the previous spec. Without any flags the failed spec is tried again.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service update --image nginx:2 web
  muster service update --env-add LEVEL=debug --env-rm OLD web
  muster service update --image nginx:2 --update-parallelism 2 --update-delay 10s --update-failure-action rollback web
  muster service update --force web
  muster service update --file service.yaml web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := c.updateService(cmd, &o, args[0])
			if err != nil {
				return err
			}
			c.printf("%s\n", args[0])
			if service.EffectiveSpec != nil {
				// The tasks keep what runs: this update is no new attempt.
				w.rollout = false
				c.printf("tasks still follow the former spec: the update to the present one was rolled back; \"muster service update %s\" without changes tries it again\n", args[0])
			}
			return c.converge(cmd.Context(), &w, service)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.file, "file", "f", "", "file with the whole new spec in JSON or YAML; \"-\" is standard input")
	fs.StringVar(&o.payload, "payload", "", "payload for the executor: a JSON object or @file")
	fs.Uint64Var(&o.replicas, "replicas", 0, "number of tasks")
	fs.BoolVar(&o.force, "force", false, "replace all tasks even if nothing has changed")
	addSpecLists(cmd, true)
	addSpecFlags(cmd, append(specFlags(), updateFlags()...))
	w.addFlags(cmd)
	return cmd
}

// updateService reads a service, changes its spec as the flags say, and writes it back.
func (c *CLI) updateService(cmd *cobra.Command, o *updateOptions, name string) (*musterv1.Service, error) {
	got, err := call(c, cmd, api.GetService, &musterv1.GetServiceRequest{Service: name})
	if err != nil {
		return nil, err
	}
	spec, origin := got.Service.Spec, &specOrigin{}
	if o.file != "" {
		if spec, origin, err = c.readSpec(o.file); err != nil {
			return nil, err
		}
	}
	if spec.Task == nil {
		spec.Task = &musterv1.TaskSpec{}
	}
	if err := c.change(cmd, o, spec); err != nil {
		return nil, err
	}
	resp, err := call(c, cmd, api.UpdateService, &musterv1.UpdateServiceRequest{
		Service: got.Service.Id, Version: got.Service.Meta.GetVersion(), Spec: spec,
	})
	if err != nil {
		return nil, origin.refused(cmd, spec, err)
	}
	return resp.Service, nil
}

// change applies the flags to a spec.
func (c *CLI) change(cmd *cobra.Command, o *updateOptions, spec *musterv1.ServiceSpec) error {
	if cmd.Flags().Changed("replicas") {
		if modeName(spec) != "replicated" {
			return usage("--replicas: a %s service has no number of replicas", modeName(spec))
		}
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &o.replicas}}
	}
	if o.force {
		spec.Task.ForceUpdate++
	}
	if o.payload != "" {
		g := spec.Task.GetGeneric()
		if g == nil {
			return usage("--payload: the service runs containers")
		}
		var err error
		if g.Payload, err = c.readPayload(o.payload); err != nil {
			return err
		}
	}
	if err := c.nameNetworks(cmd, spec.Task); err != nil {
		return err
	}
	if err := c.nameReferences(cmd, spec.Task); err != nil {
		return err
	}
	if err := applySpecLists(cmd, spec, true, ""); err != nil {
		return err
	}
	return applySpecFlags(cmd, append(specFlags(), updateFlags()...), spec)
}

// nameNetworks has a task spec name networks as the flags do, which add and remove them by
// that. The API stores their ids.
func (c *CLI) nameNetworks(cmd *cobra.Command, task *musterv1.TaskSpec) error {
	added, _ := cmd.Flags().GetStringArray("network-add")
	removed, _ := cmd.Flags().GetStringArray("network-rm")
	for _, text := range slices.Concat(added, removed) {
		name, err := networkTarget(text)
		if err != nil {
			return err
		}
		got, err := call(c, cmd, api.GetNetwork, &musterv1.GetNetworkRequest{Network: name})
		if status.Code(err) == codes.NotFound {
			// Host and none are no networks. Others are refused by the API, or not there.
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range task.Networks {
			if n.Target == got.Network.Id {
				n.Target = name
			}
		}
	}
	return nil
}
