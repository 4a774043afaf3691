package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// updateOptions are the flags that only update has.
type updateOptions struct {
	image, args, payload, file  string
	replicas                    uint64
	force                       bool
	envAdd, envRm               []string
	labelAdd, labelRm           []string
	clabelAdd, clabelRm         []string
	constraintAdd, constraintRm []string
	publishAdd, publishRm       []string
	mountAdd, mountRm           []string
	capAdd, capDrop, ulimitAdd  []string
	hostAdd, hostRm             []string
}

func (c *CLI) serviceUpdate() *cobra.Command {
	var (
		o updateOptions
		w = wait{rollout: true}
	)
	cmd := &cobra.Command{
		Use: "update [flags] SERVICE", Short: "Change a service, and wait until its tasks run as changed", Args: cobra.ExactArgs(1),
		Long: `Change a service, and wait until its tasks run as changed (--detach: do not wait).

The service is read, changed as the flags say, and written back. If it is changed in between, nothing is written
(exit code 4): run the command again.

Tasks are replaced a few at a time, as the --update-... flags say; they are part of the service. If too many of the new tasks
fail, the update pauses or is rolled back, and the command ends with exit code 6. A paused update continues with the next
"service update", if only with no flags at all.

After an automatic rollback the tasks run the former spec. An update that still has what failed is then refused: change that
too, make what runs the spec with "muster service rollback", or insist with --force. Changes of labels, replicas or the
update settings are applied, and the tasks keep the former spec. With no flags at all the failed spec is tried again.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service update --image nginx:2 web
  muster service update --env-add LEVEL=debug --env-rm OLD web
  muster service update --image nginx:2 --update-parallelism 2 --update-delay 10s --update-failure-action rollback web
  muster service update --force web
  muster service update --file service.yaml web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			got, err := call(cmd, client.GetService, &musterv1.GetServiceRequest{Service: args[0]})
			if err != nil {
				return err
			}
			spec, origin := got.Service.Spec, &specOrigin{}
			if o.file != "" {
				if spec, origin, err = c.readSpec(o.file); err != nil {
					return err
				}
			}
			if spec.Task == nil {
				spec.Task = &musterv1.TaskSpec{}
			}
			if err := c.change(cmd, &o, spec); err != nil {
				return err
			}
			if err := applyScalars(cmd, spec); err != nil {
				return err
			}
			resp, err := call(cmd, client.UpdateService, &musterv1.UpdateServiceRequest{
				Service: got.Service.Id, Version: got.Service.Meta.GetVersion(), Spec: spec,
			})
			if err != nil {
				return origin.refused(cmd, spec, err)
			}
			c.printf("%s\n", args[0])
			if resp.Service.EffectiveSpec != nil {
				// The tasks keep what runs: this update is no new attempt.
				w.rollout = false
				c.printf("tasks still follow the former spec: the update to the present one was rolled back; \"muster service update %s\" without changes tries it again\n", args[0])
			}
			return c.converge(cmd.Context(), client, &w, resp.Service)
		},
	}
	o.addFlags(cmd)
	addScalars(cmd.Flags())
	w.addFlags(cmd)
	return cmd
}

func (o *updateOptions) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&o.file, "file", "f", "", "file with the whole new spec, JSON or YAML; \"-\" is standard input")
	fs.StringVar(&o.image, "image", "", "image of the containers")
	fs.StringVar(&o.args, "args", "", "arguments of the containers (split at spaces)")
	fs.StringVar(&o.payload, "payload", "", "what the executor is told: a JSON object, or @file")
	fs.Uint64Var(&o.replicas, "replicas", 0, "number of tasks")
	fs.BoolVar(&o.force, "force", false, "replace all tasks even if nothing has changed")
	for _, f := range []struct {
		name string
		list *[]string
		text string
	}{
		{"env-add", &o.envAdd, "add or change an environment variable, NAME=value"},
		{"env-rm", &o.envRm, "remove an environment variable"},
		{"label-add", &o.labelAdd, "add or change a label of the service, key=value"},
		{"label-rm", &o.labelRm, "remove a label of the service"},
		{"container-label-add", &o.clabelAdd, "add or change a label of the containers, key=value"},
		{"container-label-rm", &o.clabelRm, "remove a label of the containers"},
		{"constraint-add", &o.constraintAdd, "add a constraint"},
		{"constraint-rm", &o.constraintRm, "remove a constraint"},
		{"publish-add", &o.publishAdd, "publish a port: published=8080,target=80,mode=host"},
		{"publish-rm", &o.publishRm, "remove a published port, by its target"},
		{"mount-add", &o.mountAdd, "add a mount: type=bind,source=/from,target=/to,readonly"},
		{"mount-rm", &o.mountRm, "remove a mount, by its target"},
		{"cap-add", &o.capAdd, "add a capability"},
		{"cap-drop", &o.capDrop, "drop a capability"},
		{"ulimit-add", &o.ulimitAdd, "add or change a ulimit: nofile=1024:2048"},
		{"host-add", &o.hostAdd, "add a line to /etc/hosts: \"10.0.0.1 name\""},
		{"host-rm", &o.hostRm, "remove a line from /etc/hosts"},
	} {
		fs.StringArrayVar(f.list, f.name, nil, f.text+" (again for more)")
	}
}

// change applies what only update can to a spec.
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
	var err error
	if spec.Labels, err = changeMap("label", spec.Labels, o.labelAdd, o.labelRm); err != nil {
		return err
	}
	if len(o.constraintAdd)+len(o.constraintRm) > 0 {
		p := placement(spec)
		p.Constraints = append(without(p.Constraints, o.constraintRm), o.constraintAdd...)
	}
	if len(o.publishAdd)+len(o.publishRm) > 0 {
		added, err := parseAll(o.publishAdd, parsePort)
		if err != nil {
			return err
		}
		removed, err := parseAll(o.publishRm, parsePort)
		if err != nil {
			return err
		}
		e := endpoint(spec)
		e.Ports = append(slices.DeleteFunc(e.Ports, func(p *musterv1.PortConfig) bool {
			return slices.ContainsFunc(removed, func(r *musterv1.PortConfig) bool { return r.TargetPort == p.TargetPort })
		}), added...)
	}
	return c.changeContainer(o, spec)
}

func (c *CLI) changeContainer(o *updateOptions, spec *musterv1.ServiceSpec) error {
	container := spec.Task.GetContainer()
	if container == nil {
		lists := [][]string{o.envAdd, o.envRm, o.mountAdd, o.mountRm, o.clabelAdd, o.clabelRm, o.capAdd, o.capDrop, o.ulimitAdd, o.hostAdd, o.hostRm}
		if o.image != "" || o.args != "" || len(slices.Concat(lists...)) > 0 {
			return usage("these flags are for containers only; change tasks of kind %q with --payload", spec.Task.GetGeneric().GetKind())
		}
		return nil
	}
	if o.image != "" {
		container.Image = o.image
	}
	if o.args != "" {
		container.Args = strings.Fields(o.args)
	}
	env, err := parseEnv("env-add", o.envAdd)
	if err != nil {
		return err
	}
	container.Env = slices.DeleteFunc(container.Env, func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains(o.envRm, name) || slices.ContainsFunc(env, func(a string) bool { return strings.HasPrefix(a, name+"=") })
	})
	container.Env = append(container.Env, env...)
	if container.Labels, err = changeMap("container-label", container.Labels, o.clabelAdd, o.clabelRm); err != nil {
		return err
	}
	mounts, err := parseAll(o.mountAdd, parseMount)
	if err != nil {
		return err
	}
	container.Mounts = append(slices.DeleteFunc(container.Mounts, func(m *musterv1.Mount) bool {
		return slices.Contains(o.mountRm, m.Target)
	}), mounts...)
	ulimits, err := parseAll(o.ulimitAdd, parseUlimit)
	if err != nil {
		return err
	}
	container.Ulimits = append(slices.DeleteFunc(container.Ulimits, func(u *musterv1.Ulimit) bool {
		return slices.ContainsFunc(ulimits, func(a *musterv1.Ulimit) bool { return a.Name == u.Name })
	}), ulimits...)
	container.Hosts = append(without(container.Hosts, o.hostRm), o.hostAdd...)
	container.CapabilityAdd = append(container.CapabilityAdd, o.capAdd...)
	container.CapabilityDrop = append(container.CapabilityDrop, o.capDrop...)
	return nil
}

func without(list, remove []string) []string {
	return slices.DeleteFunc(list, func(s string) bool { return slices.Contains(remove, s) })
}

func changeMap(flag string, m map[string]string, add, remove []string) (map[string]string, error) {
	added, err := parseLabels(flag+"-add", add)
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = map[string]string{}
	}
	for _, key := range remove {
		delete(m, key)
	}
	maps.Copy(m, added)
	return m, nil
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}
