package cli

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// specFlag is a flag that sets one field of a spec. Create and update have it.
type specFlag struct {
	name string
	// path is the field's, as the API names it.
	path  string
	usage string
	// number reads a number, and words a list. If both are nil the type of the field
	// says what it takes.
	number func(v string) (int64, error)
	words  func(v string) []string
	// without is a value of the enum that the flag does not take.
	without string
}

func specFlags() []specFlag {
	const (
		container = "task.container."
		health    = container + "healthcheck."
		resources = "task.resources."
		restart   = "task.restart."
	)
	command := func(v string) []string { return []string{"CMD-SHELL", v} }
	flags := []specFlag{
		{name: "hostname", path: container + "hostname", usage: "host name in the container"},
		{name: "user", path: container + "user", usage: "user name or id, user[:group]"},
		{name: "workdir", path: container + "dir", usage: "working directory in the container"},
		{name: "stop-signal", path: container + "stopSignal", usage: "signal to stop the container"},
		{name: "read-only", path: container + "readOnly", usage: "mount the root file system read-only (=false: do not)"},
		{name: "tty", path: container + "tty", usage: "allocate a terminal (=false: do not)"},
		{name: "init", path: container + "init", usage: "run an init process in the container (=false: do not)"},
		{name: "entrypoint", path: container + "command", usage: "replace the entrypoint of the image (split at spaces)", words: strings.Fields},
		{name: "stop-grace-period", path: container + "stopGracePeriod", usage: "time between the stop signal and SIGKILL (default 10s)"},
		{name: "pull-policy", path: container + "pullOptions.policy", usage: "when to pull the image: always, missing or never"},
		{name: "health-cmd", path: health + "test", usage: "command that checks the health of the container", words: command},
		{name: "health-interval", path: health + "interval", usage: "time between health checks"},
		{name: "health-timeout", path: health + "timeout", usage: "maximum duration of one health check"},
		{name: "health-start-period", path: health + "startPeriod", usage: "startup time during which failures do not count"},
		{name: "health-retries", path: health + "retries", usage: "consecutive failures that make the container unhealthy"},
		{name: "limit-cpu", path: resources + "limits.nanoCpus", usage: "CPU limit, such as 0.5", number: nanoCPUs},
		{name: "limit-memory", path: resources + "limits.memoryBytes", usage: "memory limit, such as 512m", number: units.RAMInBytes},
		{name: "limit-pids", path: resources + "limits.pids", usage: "limit of processes"},
		{name: "reserve-cpu", path: resources + "reservations.nanoCpus", usage: "CPUs to reserve on the node, such as 0.5", number: nanoCPUs},
		{name: "reserve-memory", path: resources + "reservations.memoryBytes", usage: "memory to reserve on the node, such as 512m", number: units.RAMInBytes},
		{name: "replicas-max-per-node", path: "task.placement.maxReplicas", usage: "maximum number of the service's tasks on one node"},
		{name: "restart-condition", path: restart + "condition", usage: "when to restart an ended task: none, on-failure or any (default any)"},
		{name: "restart-delay", path: restart + "delay", usage: "delay before a restart (default 5s); without --restart-max-attempts it grows up to 1m while tasks keep failing"},
		{name: "restart-window", path: restart + "window", usage: "time window for --restart-max-attempts (default: unlimited)"},
		{name: "restart-max-attempts", path: restart + "maxAttempts", usage: "maximum number of restarts (default: no limit)"},
		{name: "log-driver", path: "task.logDriver.name", usage: "log driver of the containers"},
		{name: "endpoint-mode", path: "endpoint.mode", usage: "what the name of the service means on its networks: vip, one virtual address, or dnsrr, those of its tasks (default vip)"},
		{name: "drain-delay", path: "endpoint.drainDelay", usage: "time that a task on networks runs on after it gets no new connections, before it is stopped (default 2s)"},
	}
	return slices.Concat(flags, rolloutFlags("update", "pause, continue or rollback", ""), rolloutFlags("rollback", "pause or continue", "rollback"))
}

// rolloutFlags say how tasks are replaced by an update, or by a rollback.
func rolloutFlags(of, actions, without string) []specFlag {
	return []specFlag{
		{name: of + "-parallelism", path: of + ".parallelism", usage: "tasks replaced at once; 0: all (default 1)"},
		{name: of + "-delay", path: of + ".delay", usage: "delay after each replaced task (default 0s)"},
		{name: of + "-monitor", path: of + ".monitor", usage: "time after a task starts in which its failure counts (default 5s)"},
		{name: of + "-failure-action", path: of + ".failureAction", usage: "action when too many tasks fail: " + actions + " (default pause)", without: without},
		{name: of + "-max-failure-ratio", path: of + ".maxFailureRatio", usage: "tolerated share of failed tasks, 0 to 1 (default 0)"},
		{name: of + "-order", path: of + ".order", usage: "stop-first or start-first (default stop-first)"},
	}
}

// updateFlags are those that only update has. Create takes what they set as arguments.
func updateFlags() []specFlag {
	return []specFlag{
		{name: "image", path: "task.container.image", usage: "image of the containers"},
		{name: "args", path: "task.container.args", usage: "arguments of the containers (split at spaces)", words: strings.Fields},
	}
}

func addSpecFlags(cmd *cobra.Command, flags []specFlag) {
	// Docker's shorthands.
	short := map[string]string{"tty": "t", "user": "u", "workdir": "w"}
	for _, f := range flags {
		cmd.Flags().StringP(f.name, short[f.name], "", f.usage)
		if f.field().Kind() == protoreflect.BoolKind {
			cmd.Flags().Lookup(f.name).NoOptDefVal = "true"
		}
	}
}

// applySpecFlags sets what the command line names.
func applySpecFlags(cmd *cobra.Command, flags []specFlag, spec *musterv1.ServiceSpec) error {
	for _, f := range flags {
		if !cmd.Flags().Changed(f.name) {
			continue
		}
		if err := forContainers(f.name, f.path, spec); err != nil {
			return err
		}
		m, field := fieldOf(spec.ProtoReflect(), f.path)
		v, err := f.read(m, field, cmd.Flags().Lookup(f.name).Value.String())
		if err != nil {
			return usage("--%s: %w", f.name, err)
		}
		m.Set(field, v)
	}
	return nil
}

// forContainers refuses a flag of containers for tasks of another kind.
func forContainers(flag, path string, spec *musterv1.ServiceSpec) error {
	if strings.HasPrefix(path, "task.container.") && spec.Task.GetContainer() == nil {
		return usage("--%s: for containers only; configure tasks of kind %q with --payload", flag, spec.Task.GetGeneric().GetKind())
	}
	return nil
}

// fieldOf returns a field of a spec and the message that has it. Messages on the way
// that are absent are made.
func fieldOf(m protoreflect.Message, path string) (protoreflect.Message, protoreflect.FieldDescriptor) {
	name, rest, more := strings.Cut(path, ".")
	field := m.Descriptor().Fields().ByJSONName(name)
	if !more {
		return m, field
	}
	absent := !m.Has(field)
	inner := m.Mutable(field).Message()
	if absent {
		// What holds for a service that does not say.
		switch made := inner.Interface().(type) {
		case *musterv1.RestartPolicy:
			made.Condition = musterv1.RestartPolicy_ANY
		case *musterv1.UpdateConfig:
			made.Parallelism = 1
		}
	}
	return fieldOf(inner, rest)
}

// field describes the field that the flag sets.
func (f *specFlag) field() protoreflect.FieldDescriptor {
	_, field := fieldOf((&musterv1.ServiceSpec{}).ProtoReflect(), f.path)
	return field
}

// values are the values of a flag that takes one of a few, as users write them.
func (f *specFlag) values() []string {
	return slices.DeleteFunc(valuesOf(f.field()), func(v string) bool { return v == f.without })
}

// valuesOf returns the values of a field that takes one of a few.
func valuesOf(field protoreflect.FieldDescriptor) []string {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return []string{"true", "false"}
	case protoreflect.EnumKind:
		return enumNames(field.Enum())
	}
	return nil
}

// read reads the value of a flag for the field of a message.
func (f *specFlag) read(m protoreflect.Message, field protoreflect.FieldDescriptor, text string) (protoreflect.Value, error) {
	switch {
	case f.words != nil:
		v := m.NewField(field)
		for _, word := range f.words(text) {
			v.List().Append(protoreflect.ValueOfString(word))
		}
		return v, nil
	case f.number != nil:
		n, err := f.number(text)
		return protoreflect.ValueOfInt64(n), err
	case f.without != "" && strings.EqualFold(text, f.without):
		return protoreflect.Value{}, wantOneOf(text, f.values())
	}
	return readValue(field, text)
}

func wantOneOf(text string, values []string) error {
	return fmt.Errorf("%q: want one of %s", text, strings.Join(values, ", "))
}

// readValue reads the value of a field as its type says.
func readValue(field protoreflect.FieldDescriptor, text string) (protoreflect.Value, error) {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BoolKind:
		b, err := strconv.ParseBool(text)
		if err != nil {
			err = fmt.Errorf("%q is neither true nor false", text)
		}
		return protoreflect.ValueOfBool(b), err
	case protoreflect.EnumKind:
		n := enumValue(field.Enum(), text)
		if n == nil {
			return protoreflect.Value{}, wantOneOf(text, valuesOf(field))
		}
		return protoreflect.ValueOfEnum(n.Number()), nil
	case protoreflect.Uint32Kind:
		n, err := count(text, 32)
		return protoreflect.ValueOfUint32(uint32(n)), err
	case protoreflect.Uint64Kind:
		n, err := count(text, 64)
		return protoreflect.ValueOfUint64(n), err
	case protoreflect.Int64Kind:
		n, err := count(text, 63)
		return protoreflect.ValueOfInt64(int64(n)), err
	case protoreflect.FloatKind:
		n, err := strconv.ParseFloat(text, 32)
		if err != nil || math.IsNaN(n) || n < 0 || n > 1 {
			err = fmt.Errorf("%q: want a number from 0 to 1", text)
		}
		return protoreflect.ValueOfFloat32(float32(n)), err
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		err = fmt.Errorf("invalid duration %q: want a time such as 10s or 1m30s", text)
	}
	return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), err
}

// count reads a number from 0 on, of at most so many bits.
func count(v string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number from 0 on", v)
	}
	return n, nil
}

// nanoCPUs reads a number of CPUs. The API counts them in billionths.
func nanoCPUs(v string) (int64, error) {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || math.Abs(f) > 1e6 {
		return 0, fmt.Errorf("invalid CPU count %q: want a positive number such as 0.5", v)
	}
	return int64(math.Round(f * 1e9)), nil
}
