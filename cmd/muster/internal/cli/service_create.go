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
		w wait
		o createOptions
	)
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND] [ARG...] | --kind KIND [-- COMMAND [ARG...]] | --file FILE",
		Short: "Create a service and wait until its tasks run",
		Long: `Create a service and wait until its tasks run (--detach: do not wait).

A service runs containers of an image or, with --kind, whatever an executor plugin of that kind runs. --file takes the
whole spec as JSON or YAML, in the form of the REST API, including what has no flag.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service create --name web --publish published=8080,target=80,mode=host nginx:1
  muster service create --name tick --kind process -- /bin/sh -c 'while :; do date; sleep 1; done'
  muster service create --name agent --mode global --kind null --payload '{}'
  muster service create --file service.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, origin, err := c.createSpec(cmd, &o, args)
			if err != nil {
				return err
			}
			resp, err := call(c, cmd, api.CreateService, &musterv1.CreateServiceRequest{Spec: spec})
			if err != nil {
				return origin.refused(cmd, spec, err)
			}
			c.printf("%s\n", resp.Service.Id)
			return c.converge(cmd.Context(), &w, resp.Service)
		},
	}
	o.addFlags(cmd)
	addSpecLists(cmd, false)
	addSpecFlags(cmd, specFlags())
	w.addFlags(cmd)
	return cmd
}

// createOptions are the flags of create that are not those of a single field.
type createOptions struct {
	name, mode, kind, payload, file string
	replicas                        uint64
	noHealth                        bool
}

func (o *createOptions) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	// What follows the image is the container's.
	fs.SetInterspersed(false)
	fs.StringVar(&o.name, "name", "", "the service's name (default: a generated one)")
	fs.StringVar(&o.mode, "mode", "replicated", "replicated, global, replicated-job or global-job")
	fs.Uint64Var(&o.replicas, "replicas", 1, "number of tasks")
	fs.StringVar(&o.kind, "kind", "", "run tasks of this kind of executor instead of containers: process, null, ...")
	fs.StringVar(&o.payload, "payload", "", "payload for the executor: a JSON object or @file")
	fs.StringVarP(&o.file, "file", "f", "", "file with the whole spec in JSON or YAML; \"-\" is standard input")
	fs.BoolVar(&o.noHealth, "no-healthcheck", false, "turn the image's health check off")
}

// createSpec makes a spec of a command line.
func (c *CLI) createSpec(cmd *cobra.Command, o *createOptions, args []string) (*musterv1.ServiceSpec, *specOrigin, error) {
	spec, origin := &musterv1.ServiceSpec{}, &specOrigin{}
	if o.file != "" {
		if len(args) > 0 || o.kind != "" {
			return nil, nil, usage("--file holds the whole spec: neither IMAGE nor --kind goes with it")
		}
		var err error
		if spec, origin, err = c.readSpec(o.file); err != nil {
			return nil, nil, err
		}
	}
	if spec.Task == nil {
		spec.Task = &musterv1.TaskSpec{}
	}
	if o.name != "" {
		spec.Name = o.name
	}
	if o.file == "" {
		if err := c.setRuntime(cmd, o, args, spec.Task); err != nil {
			return nil, nil, err
		}
	}
	if err := o.setMode(cmd, spec); err != nil {
		return nil, nil, err
	}
	except := ""
	if o.kind == processKind {
		except = "env" // it is in the payload
	}
	if err := applySpecLists(cmd, spec, false, except); err != nil {
		return nil, nil, err
	}
	if o.noHealth {
		if err := forContainers("no-healthcheck", "task.container.healthcheck", spec); err != nil {
			return nil, nil, err
		}
		spec.Task.GetContainer().Healthcheck = &musterv1.HealthConfig{Test: []string{"NONE"}}
	}
	return spec, origin, applySpecFlags(cmd, specFlags(), spec)
}

// setRuntime sets what the tasks run.
func (c *CLI) setRuntime(cmd *cobra.Command, o *createOptions, args []string, task *musterv1.TaskSpec) error {
	if o.kind == "" {
		switch {
		case len(args) == 0:
			return usage("what to run? Give an IMAGE, or --kind with --payload, or --file")
		case o.payload != "":
			return usage("--payload goes with --kind")
		}
		task.Runtime = &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: args[0], Args: args[1:]}}
		return nil
	}
	payload := &structpb.Struct{}
	if o.payload != "" {
		var err error
		if payload, err = c.readPayload(o.payload); err != nil {
			return err
		}
	}
	if payload.Fields == nil {
		payload.Fields = map[string]*structpb.Value{}
	}
	if o.kind == processKind {
		env, _ := cmd.Flags().GetStringArray("env")
		if err := setProcess(payload.Fields, args, env); err != nil {
			return err
		}
	} else if len(args) > 0 {
		return c.noCommand(cmd.Context(), o.kind)
	}
	task.Runtime = &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: o.kind, Payload: payload}}
	return nil
}

// setProcess puts the command and the environment of a process into its payload.
func setProcess(payload map[string]*structpb.Value, command, env []string) error {
	if len(command) > 0 {
		payload["command"] = words(command)
	}
	if len(payload) == 0 {
		return usage("what to run? Give a command behind \"--\", or --payload")
	}
	env, err := parseEnv("env", env)
	if len(env) > 0 {
		payload["env"] = words(env)
	}
	return err
}

func words(list []string) *structpb.Value {
	values := make([]*structpb.Value, len(list))
	for i, word := range list {
		values[i] = structpb.NewStringValue(word)
	}
	return structpb.NewListValue(&structpb.ListValue{Values: values})
}

// kindsTimeout bounds the question which kinds there are, whose answer only makes
// an error clearer.
const kindsTimeout = 2 * time.Second

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
