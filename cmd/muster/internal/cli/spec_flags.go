package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/specfile"
)

// scalar is one such flag.
type scalar struct {
	name, usage string
	set         func(value string, s *musterv1.ServiceSpec) error
}

func scalars() []scalar {
	container := func(set func(*musterv1.ContainerSpec, string) error) func(string, *musterv1.ServiceSpec) error {
		return func(v string, s *musterv1.ServiceSpec) error {
			c := s.Task.GetContainer()
			if c == nil {
				return fmt.Errorf("is for containers, and this is a task of kind %q", s.Task.GetGeneric().GetKind())
			}
			return set(c, v)
		}
	}
	text := func(field func(*musterv1.ContainerSpec) *string) func(string, *musterv1.ServiceSpec) error {
		return container(func(c *musterv1.ContainerSpec, v string) error { *field(c) = v; return nil })
	}
	onOff := func(field func(*musterv1.ContainerSpec) *bool) func(string, *musterv1.ServiceSpec) error {
		return container(func(c *musterv1.ContainerSpec, v string) (err error) {
			*field(c), err = truth(v)
			return err
		})
	}
	span := func(set func(*musterv1.ServiceSpec, *durationpb.Duration)) func(string, *musterv1.ServiceSpec) error {
		return func(v string, s *musterv1.ServiceSpec) error {
			d, err := time.ParseDuration(v)
			if err == nil {
				set(s, durationpb.New(d))
			}
			return err
		}
	}
	health := func(set func(*musterv1.HealthConfig, string) error) func(string, *musterv1.ServiceSpec) error {
		return container(func(c *musterv1.ContainerSpec, v string) error {
			if c.Healthcheck == nil {
				c.Healthcheck = &musterv1.HealthConfig{}
			}
			return set(c.Healthcheck, v)
		})
	}
	healthSpan := func(field func(*musterv1.HealthConfig) **durationpb.Duration) func(string, *musterv1.ServiceSpec) error {
		return health(func(h *musterv1.HealthConfig, v string) error {
			d, err := time.ParseDuration(v)
			*field(h) = durationpb.New(d)
			return err
		})
	}
	return append([]scalar{
		{"hostname", "container host name", text(func(c *musterv1.ContainerSpec) *string { return &c.Hostname })},
		{"user", "user name or id, user[:group]", text(func(c *musterv1.ContainerSpec) *string { return &c.User })},
		{"workdir", "working directory in the container", text(func(c *musterv1.ContainerSpec) *string { return &c.Dir })},
		{"stop-signal", "signal that asks the container to stop", text(func(c *musterv1.ContainerSpec) *string { return &c.StopSignal })},
		{"read-only", "mount the root file system read-only (=false: do not)", onOff(func(c *musterv1.ContainerSpec) *bool { return &c.ReadOnly })},
		{"tty", "allocate a terminal (=false: do not)", onOff(func(c *musterv1.ContainerSpec) *bool { return &c.Tty })},
		{"init", "run an init process in the container (=false: do not)", container(func(c *musterv1.ContainerSpec, v string) error {
			b, err := truth(v)
			c.Init = &b
			return err
		})},
		{"entrypoint", "replace the image's entrypoint (split at spaces)", container(func(c *musterv1.ContainerSpec, v string) error {
			c.Command = strings.Fields(v)
			return nil
		})},
		{"stop-grace-period", "wait between the stop signal and SIGKILL (default 10s)", func(v string, s *musterv1.ServiceSpec) error {
			d, err := time.ParseDuration(v)
			return orElse(err, container(func(c *musterv1.ContainerSpec, _ string) error {
				c.StopGracePeriod = durationpb.New(d)
				return nil
			}), v, s)
		}},
		{"pull-policy", "fetch the image: always, missing or never", container(func(c *musterv1.ContainerSpec, v string) error {
			p, ok := musterv1.PullOptions_Policy_value[strings.ToUpper(v)]
			if !ok || p == 0 {
				return fmt.Errorf("%q: want always, missing or never", v)
			}
			if c.PullOptions == nil {
				c.PullOptions = &musterv1.PullOptions{}
			}
			c.PullOptions.Policy = musterv1.PullOptions_Policy(p)
			return nil
		})},
		{"health-cmd", "command that tells whether the container is healthy", health(func(h *musterv1.HealthConfig, v string) error {
			h.Test = []string{"CMD-SHELL", v}
			return nil
		})},
		{"health-interval", "time between health checks", healthSpan(func(h *musterv1.HealthConfig) **durationpb.Duration { return &h.Interval })},
		{"health-timeout", "time that one health check may take", healthSpan(func(h *musterv1.HealthConfig) **durationpb.Duration { return &h.Timeout })},
		{"health-start-period", "time to start up in, before failures count", healthSpan(func(h *musterv1.HealthConfig) **durationpb.Duration { return &h.StartPeriod })},
		{"health-retries", "failures in a row that make it unhealthy", health(func(h *musterv1.HealthConfig, v string) error {
			n, err := count(v, 32)
			h.Retries = uint32(n)
			return err
		})},
		{"limit-cpu", "most CPUs to use: 0.5", func(v string, s *musterv1.ServiceSpec) (err error) {
			limits(s).NanoCpus, err = nanoCPUs(v)
			return err
		}},
		{"limit-memory", "most memory to use: 512m", func(v string, s *musterv1.ServiceSpec) (err error) {
			limits(s).MemoryBytes, err = units.RAMInBytes(v)
			return err
		}},
		{"limit-pids", "most processes", func(v string, s *musterv1.ServiceSpec) error {
			n, err := count(v, 63)
			limits(s).Pids = int64(n)
			return err
		}},
		{"reserve-cpu", "CPUs that must be free on the node: 0.5", func(v string, s *musterv1.ServiceSpec) (err error) {
			reservations(s).NanoCpus, err = nanoCPUs(v)
			return err
		}},
		{"reserve-memory", "memory that must be free on the node: 512m", func(v string, s *musterv1.ServiceSpec) (err error) {
			reservations(s).MemoryBytes, err = units.RAMInBytes(v)
			return err
		}},
		{"replicas-max-per-node", "most tasks of the service on one node", func(v string, s *musterv1.ServiceSpec) (err error) {
			placement(s).MaxReplicas, err = count(v, 64)
			return err
		}},
		{"restart-condition", "when to run an ended task again: none, on-failure or any (default any)", func(v string, s *musterv1.ServiceSpec) error {
			c, ok := musterv1.RestartPolicy_Condition_value[strings.ToUpper(strings.ReplaceAll(v, "-", "_"))]
			if !ok || c == 0 {
				return fmt.Errorf("%q: want none, on-failure or any", v)
			}
			restart(s).Condition = musterv1.RestartPolicy_Condition(c)
			return nil
		}},
		{"restart-delay", "wait before running it again (default 5s); without --restart-max-attempts it grows up to 1m while tasks fail again and again", span(func(s *musterv1.ServiceSpec, d *durationpb.Duration) { restart(s).Delay = d })},
		{"restart-window", "time in which restart-max-attempts are counted (default: all time)", span(func(s *musterv1.ServiceSpec, d *durationpb.Duration) { restart(s).Window = d })},
		{"restart-max-attempts", "most restarts (default: no limit)", func(v string, s *musterv1.ServiceSpec) (err error) {
			restart(s).MaxAttempts, err = count(v, 64)
			return err
		}},
		{"log-driver", "log driver of the containers", func(v string, s *musterv1.ServiceSpec) error {
			if s.Task.LogDriver == nil {
				s.Task.LogDriver = &musterv1.LogDriver{}
			}
			s.Task.LogDriver.Name = v
			return nil
		}},
		{"endpoint-mode", "vip or dnsrr", func(v string, s *musterv1.ServiceSpec) error {
			m, ok := musterv1.EndpointSpec_Mode_value[strings.ToUpper(v)]
			if !ok || m == 0 {
				return fmt.Errorf("%q is neither vip nor dnsrr", v)
			}
			endpoint(s).Mode = musterv1.EndpointSpec_Mode(m)
			return nil
		}},
	}, rolloutScalars()...)
}

// orElse calls next unless err is set.
func orElse(err error, next func(string, *musterv1.ServiceSpec) error, v string, s *musterv1.ServiceSpec) error {
	if err != nil {
		return err
	}
	return next(v, s)
}

func limits(s *musterv1.ServiceSpec) *musterv1.Limits {
	if resources(s).Limits == nil {
		s.Task.Resources.Limits = &musterv1.Limits{}
	}
	return s.Task.Resources.Limits
}

func reservations(s *musterv1.ServiceSpec) *musterv1.Resources {
	if resources(s).Reservations == nil {
		s.Task.Resources.Reservations = &musterv1.Resources{}
	}
	return s.Task.Resources.Reservations
}

func resources(s *musterv1.ServiceSpec) *musterv1.ResourceRequirements {
	if s.Task.Resources == nil {
		s.Task.Resources = &musterv1.ResourceRequirements{}
	}
	return s.Task.Resources
}

func placement(s *musterv1.ServiceSpec) *musterv1.Placement {
	if s.Task.Placement == nil {
		s.Task.Placement = &musterv1.Placement{}
	}
	return s.Task.Placement
}

func restart(s *musterv1.ServiceSpec) *musterv1.RestartPolicy {
	if s.Task.Restart == nil {
		s.Task.Restart = &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ANY}
	}
	return s.Task.Restart
}

func endpoint(s *musterv1.ServiceSpec) *musterv1.EndpointSpec {
	if s.Endpoint == nil {
		s.Endpoint = &musterv1.EndpointSpec{}
	}
	return s.Endpoint
}

// count reads a number from 0 on, of at most so many bits.
func count(v string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number from 0 on", v)
	}
	return n, nil
}

// truth reads "true" or "false".
func truth(v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", v)
	}
	return b, nil
}

// nanoCPUs reads a number of CPUs. The API counts them in billionths.
func nanoCPUs(v string) (int64, error) {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || math.Abs(f) > 1e6 {
		return 0, fmt.Errorf("invalid CPU count %q: want a positive number such as 0.5", v)
	}
	return int64(math.Round(f * 1e9)), nil
}

func addScalars(fs *pflag.FlagSet) {
	for _, s := range scalars() {
		// Docker's shorthands.
		short := map[string]string{"tty": "t", "user": "u", "workdir": "w"}[s.name]
		fs.StringP(s.name, short, "", s.usage)
		switch s.name {
		case "init", "read-only", "tty":
			fs.Lookup(s.name).NoOptDefVal = "true"
		}
	}
}

// applyScalars sets what the command line names.
func applyScalars(cmd *cobra.Command, spec *musterv1.ServiceSpec) error {
	for _, s := range scalars() {
		f := cmd.Flags().Lookup(s.name)
		if f == nil || !f.Changed {
			continue
		}
		if err := s.set(f.Value.String(), spec); err != nil {
			return usage("--%s: %w", s.name, err)
		}
	}
	return nil
}

// readSpec reads a service spec from a file of JSON or YAML, or from standard
// input for "-". It also returns the lines of the fields, under their paths in a
// request.
func (c *CLI) readSpec(path string) (*musterv1.ServiceSpec, *specOrigin, error) {
	b, err := c.readFile(path)
	if err != nil {
		return nil, nil, err
	}
	name := path
	if path == "-" {
		name = "standard input"
	}
	spec := &musterv1.ServiceSpec{}
	lines, err := specfile.Read(name, b, spec)
	if err != nil {
		return nil, nil, usage("--file: %w", err)
	}
	return spec, &specOrigin{file: name, lines: lines}, nil
}

func (c *CLI) readFile(path string) ([]byte, error) {
	if path == "-" {
		b, err := io.ReadAll(c.In)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("%w", err)
	}
	return b, nil
}

// readPayload reads the payload of a generic runtime: JSON, or @file.
func (c *CLI) readPayload(v string) (*structpb.Struct, error) {
	payload := &structpb.Struct{}
	if path, ok := strings.CutPrefix(v, "@"); ok {
		b, err := c.readFile(path)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, new(any)); err != nil {
			return nil, usage("--payload: %w", specfile.JSONError(path, b, err))
		}
		if err := protojson.Unmarshal(b, payload); err != nil {
			return nil, usage("--payload: %s: want a JSON object like '{\"command\": [\"sleep\", \"60\"]}'", path)
		}
		return payload, nil
	}
	if !json.Valid([]byte(v)) {
		return nil, usage("--payload: %q is not JSON; want an object like '{\"command\": [\"sleep\", \"60\"]}', or @file", v)
	}
	if err := protojson.Unmarshal([]byte(v), payload); err != nil {
		return nil, usage("--payload: %q: want a JSON object like '{\"command\": [\"sleep\", \"60\"]}'", v)
	}
	return payload, nil
}
