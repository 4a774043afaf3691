package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// processKind is the kind of the executor that runs plain processes; words
// after "--" are its command.
const processKind = "process"

func (c *CLI) serviceCreate() *cobra.Command {
	var (
		w    wait
		o    createOptions
		file string
	)
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND] [ARG...] | --kind KIND [-- COMMAND [ARG...]] | --file FILE",
		Short: "Create a service, and wait until its tasks run",
		Long: `Create a service, and wait until its tasks run (--detach: do not wait).

A service runs containers of an image, or, with --kind, whatever an executor plugin of that kind runs. What flags
cannot say, a file can: --file takes the whole spec as JSON or YAML, in the form that the REST API has.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service create --name web --publish published=8080,target=80,mode=host nginx:1
  muster service create --name tick --kind process -- /bin/sh -c 'while :; do date; sleep 1; done'
  muster service create --name agent --mode global --kind null --payload '{}'
  muster service create --file service.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, origin, err := c.createSpec(cmd, &o, file, args)
			if err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			resp, err := call(cmd, client.CreateService, &musterv1.CreateServiceRequest{Spec: spec})
			if err != nil {
				return origin.refused(cmd, spec, err)
			}
			c.printf("%s\n", resp.Service.Id)
			return c.converge(cmd.Context(), client, &w, resp.Service)
		},
	}
	fs := cmd.Flags()
	o.addFlags(cmd)
	addScalars(fs)
	fs.StringVarP(&file, "file", "f", "", "file with the whole spec, JSON or YAML; \"-\" is standard input")
	w.addFlags(cmd)
	return cmd
}

// createOptions are the flags that only create has.
type createOptions struct {
	name, mode, kind, payload string
	replicas                  uint64
	env, labels, clabels      []string
	constraints, publish      []string
	mounts, networks          []string
	capAdd, capDrop, ulimits  []string
	hosts, dns, groups        []string
	logOpts                   []string
	noHealth                  bool
}

func (o *createOptions) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	// What follows the image is the container's.
	fs.SetInterspersed(false)
	fs.StringVar(&o.name, "name", "", "the service's name (default: a generated one)")
	fs.StringVar(&o.mode, "mode", "replicated", "replicated, global, replicated-job or global-job")
	fs.Uint64Var(&o.replicas, "replicas", 1, "number of tasks")
	fs.StringVar(&o.kind, "kind", "", "run tasks of this executor's kind in place of a container: process, null, ...")
	fs.StringVar(&o.payload, "payload", "", "what the executor is told: a JSON object, or @file")
	fs.StringArrayVarP(&o.env, "env", "e", nil, "environment variable NAME=value (again for more)")
	fs.StringArrayVarP(&o.labels, "label", "l", nil, "label of the service, key=value")
	fs.StringArrayVar(&o.clabels, "container-label", nil, "label of the containers, key=value")
	fs.StringArrayVar(&o.constraints, "constraint", nil, "which nodes: node.labels.disk==ssd")
	fs.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port: published=8080,target=80,mode=host")
	fs.StringArrayVar(&o.mounts, "mount", nil, "mount: type=bind,source=/from,target=/to,readonly")
	fs.StringArrayVar(&o.networks, "network", nil, "attach to a network")
	fs.StringArrayVar(&o.capAdd, "cap-add", nil, "add a capability")
	fs.StringArrayVar(&o.capDrop, "cap-drop", nil, "drop a capability")
	fs.StringArrayVar(&o.ulimits, "ulimit", nil, "ulimit: nofile=1024:2048")
	fs.StringArrayVar(&o.hosts, "host", nil, "line for /etc/hosts: \"10.0.0.1 name\"")
	fs.StringArrayVar(&o.dns, "dns", nil, "name server")
	fs.StringArrayVar(&o.groups, "group", nil, "additional group of the user")
	fs.StringArrayVar(&o.logOpts, "log-opt", nil, "option of the log driver, key=value")
	fs.BoolVar(&o.noHealth, "no-healthcheck", false, "turn the image's health check off")
}

// createSpec makes a spec of a command line.
func (c *CLI) createSpec(cmd *cobra.Command, o *createOptions, file string, args []string) (*musterv1.ServiceSpec, *specOrigin, error) {
	spec, origin := &musterv1.ServiceSpec{}, &specOrigin{}
	if file != "" {
		if len(args) > 0 || o.kind != "" {
			return nil, nil, usage("--file holds the whole spec: neither IMAGE nor --kind goes with it")
		}
		var err error
		if spec, origin, err = c.readSpec(file); err != nil {
			return nil, nil, err
		}
	}
	if spec.Task == nil {
		spec.Task = &musterv1.TaskSpec{}
	}
	if o.name != "" {
		spec.Name = o.name
	}
	if err := c.runtime(cmd, o, file, args, spec); err != nil {
		return nil, nil, err
	}
	if err := o.setMode(cmd, spec); err != nil {
		return nil, nil, err
	}
	if err := o.setLists(spec); err != nil {
		return nil, nil, err
	}
	return spec, origin, applyScalars(cmd, spec)
}

// noCommand says why a kind takes no command: there is no such kind, or its tasks
// take a payload.
func (c *CLI) noCommand(ctx context.Context, kind string) error {
	ctx, cancel := context.WithTimeout(ctx, kindsTimeout)
	defer cancel()
	if client, err := c.client(); err == nil {
		kinds := executorKinds(ctx, client)
		slices.Sort(kinds)
		kinds = slices.Compact(kinds)
		if len(kinds) > 0 && !slices.Contains(kinds, kind) {
			return usage("--kind: there is no kind %q; kinds that nodes run: %s", kind, strings.Join(kinds, ", "))
		}
	}
	return usage("--kind: %q takes no command: give --payload, or --kind process with the command; `muster plugin ls` lists the kinds that nodes run", kind)
}

// kindsTimeout bounds the question which kinds there are, whose answer only makes
// an error clearer.
const kindsTimeout = 2 * time.Second

// runtime sets what the tasks run.
func (c *CLI) runtime(cmd *cobra.Command, o *createOptions, file string, args []string, spec *musterv1.ServiceSpec) error {
	switch {
	case file != "":
		return nil
	case o.kind == "":
		if len(args) == 0 {
			return usage("what to run? Give an IMAGE, or --kind with --payload, or --file")
		}
		if o.payload != "" {
			return usage("--payload goes with --kind")
		}
		spec.Task.Runtime = &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: args[0], Args: args[1:]}}
		return nil
	}
	payload := &structpb.Struct{}
	if o.payload != "" {
		var err error
		if payload, err = c.readPayload(o.payload); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		if o.kind != processKind {
			return c.noCommand(cmd.Context(), o.kind)
		}
		words := make([]any, len(args))
		for i, a := range args {
			words[i] = a
		}
		list, err := structpb.NewValue(words)
		if err != nil {
			return usage("command: %w", err)
		}
		if payload.Fields == nil {
			payload.Fields = map[string]*structpb.Value{}
		}
		payload.Fields["command"] = list
	}
	if o.kind == processKind && len(payload.Fields) == 0 {
		return usage("what to run? Give a command behind \"--\", or --payload")
	}
	if o.kind == processKind && len(o.env) > 0 {
		env, err := parseEnv("env", o.env)
		if err != nil {
			return err
		}
		words := make([]any, len(env))
		for i, e := range env {
			words[i] = e
		}
		if payload.Fields == nil {
			payload.Fields = map[string]*structpb.Value{}
		}
		if payload.Fields["env"], err = structpb.NewValue(words); err != nil {
			return usage("--env: %w", err)
		}
		o.env = nil
	}
	spec.Task.Runtime = &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: o.kind, Payload: payload}}
	return nil
}

func (o *createOptions) setMode(cmd *cobra.Command, spec *musterv1.ServiceSpec) error {
	if spec.Mode != nil && !cmd.Flags().Changed("mode") && !cmd.Flags().Changed("replicas") {
		return nil
	}
	if o.mode != "replicated" && o.mode != "replicated-job" && cmd.Flags().Changed("replicas") {
		return usage("--replicas: a %s service has no number of replicas", o.mode)
	}
	switch o.mode {
	case "replicated":
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &o.replicas}}
	case "global":
		spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
	case "replicated-job":
		spec.Mode = &musterv1.ServiceSpec_ReplicatedJob{ReplicatedJob: &musterv1.ReplicatedJob{MaxConcurrent: &o.replicas, TotalCompletions: &o.replicas}}
	case "global-job":
		spec.Mode = &musterv1.ServiceSpec_GlobalJob{GlobalJob: &musterv1.GlobalJob{}}
	default:
		return usage("--mode: %q: want replicated, global, replicated-job or global-job", o.mode)
	}
	return nil
}

// setLists sets what flags give that may be repeated.
func (o *createOptions) setLists(spec *musterv1.ServiceSpec) error {
	labels, err := parseLabels("label", o.labels)
	if err != nil {
		return err
	}
	if len(labels) > 0 {
		spec.Labels = labels
	}
	ports, err := parseAll(o.publish, parsePort)
	if err != nil {
		return err
	}
	if len(ports) > 0 {
		endpoint(spec).Ports = append(endpoint(spec).Ports, ports...)
	}
	if len(o.constraints) > 0 {
		placement(spec).Constraints = append(placement(spec).Constraints, o.constraints...)
	}
	for _, n := range o.networks {
		spec.Task.Networks = append(spec.Task.Networks, &musterv1.NetworkAttachmentConfig{Target: n})
	}
	options, err := parseLabels("log-opt", o.logOpts)
	if err != nil {
		return err
	}
	if len(options) > 0 {
		spec.Task.LogDriver = &musterv1.LogDriver{Options: options}
	}
	return o.setContainerLists(spec)
}

func (o *createOptions) setContainerLists(spec *musterv1.ServiceSpec) error {
	given := map[string]bool{
		"env": len(o.env) > 0, "container-label": len(o.clabels) > 0, "mount": len(o.mounts) > 0, "cap-add": len(o.capAdd) > 0,
		"cap-drop": len(o.capDrop) > 0, "ulimit": len(o.ulimits) > 0, "host": len(o.hosts) > 0, "dns": len(o.dns) > 0,
		"group": len(o.groups) > 0, "no-healthcheck": o.noHealth,
	}
	container := spec.Task.GetContainer()
	if container == nil {
		var wrong []string
		for flag, is := range given {
			if is {
				wrong = append(wrong, "--"+flag)
			}
		}
		if len(wrong) > 0 {
			return usage("%s: for containers only; configure tasks of kind %q with --payload", strings.Join(wrong, ", "), spec.Task.GetGeneric().GetKind())
		}
		return nil
	}
	env, err := parseEnv("env", o.env)
	if err != nil {
		return err
	}
	container.Env = append(container.Env, env...)
	labels, err := parseLabels("container-label", o.clabels)
	if err != nil {
		return err
	}
	if len(labels) > 0 {
		container.Labels = labels
	}
	mounts, err := parseAll(o.mounts, parseMount)
	if err != nil {
		return err
	}
	container.Mounts = append(container.Mounts, mounts...)
	ulimits, err := parseAll(o.ulimits, parseUlimit)
	if err != nil {
		return err
	}
	container.Ulimits = append(container.Ulimits, ulimits...)
	container.CapabilityAdd = append(container.CapabilityAdd, o.capAdd...)
	container.CapabilityDrop = append(container.CapabilityDrop, o.capDrop...)
	container.Hosts = append(container.Hosts, o.hosts...)
	container.Groups = append(container.Groups, o.groups...)
	if len(o.dns) > 0 {
		container.DnsConfig = &musterv1.DNSConfig{Nameservers: o.dns}
	}
	if o.noHealth {
		container.Healthcheck = &musterv1.HealthConfig{Test: []string{"NONE"}}
	}
	return nil
}
