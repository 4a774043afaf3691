package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-connections/nat"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// convert makes of a task what the Engine is told of its container. What the
// executor or this Engine cannot do is refused by its name.
func (e *Executor) convert(ctx context.Context, task *sdk.Task) (*container.Config, *container.HostConfig, error) {
	if err := refuse(task.GetSpec()); err != nil {
		return nil, nil, err
	}
	if err := e.refuseTooNew(ctx, task.GetSpec().GetContainer()); err != nil {
		return nil, nil, err
	}
	network, err := ownNetwork(task)
	if err != nil {
		return nil, nil, err
	}
	var exposed nat.PortSet
	var bindings nat.PortMap
	if network == "" {
		if exposed, bindings, err = ports(task.GetPorts()); err != nil {
			return nil, nil, err
		}
	}
	config, err := containerConfig(task, exposed)
	if err != nil {
		return nil, nil, err
	}
	host, err := hostConfig(task.GetSpec(), bindings)
	if err != nil {
		return nil, nil, err
	}
	host.NetworkMode = network
	if host.Mounts, err = mounts(task.GetSpec().GetContainer().GetMounts(), task.GetNodeId()); err != nil {
		return nil, nil, err
	}
	host.Mounts = append(host.Mounts, fileMounts(task.GetFiles())...)
	return config, host, nil
}

// containerConfig is what runs in a task's container.
func containerConfig(task *sdk.Task, exposed nat.PortSet) (*container.Config, error) {
	spec := task.GetSpec().GetContainer()
	labels, err := labels(task)
	if err != nil {
		return nil, err
	}
	// Workers fill the grace period in. For those that do not, the Engine has one.
	var grace *int
	if given := spec.GetStopGracePeriod(); given != nil {
		grace = new(seconds(given.AsDuration()))
	}
	return &container.Config{
		Hostname:     spec.GetHostname(),
		User:         spec.GetUser(),
		Env:          spec.GetEnv(),
		Cmd:          spec.GetArgs(),
		Entrypoint:   spec.GetCommand(),
		Image:        spec.GetImage(),
		WorkingDir:   spec.GetDir(),
		Labels:       labels,
		Tty:          spec.GetTty(),
		OpenStdin:    spec.GetOpenStdin(),
		StopSignal:   spec.GetStopSignal(),
		StopTimeout:  grace,
		Healthcheck:  healthConfig(spec.GetHealthcheck()),
		ExposedPorts: exposed,
	}, nil
}

// hostConfig is what a container gets of its node.
func hostConfig(task *musterv1.TaskSpec, bindings nat.PortMap) (*container.HostConfig, error) {
	spec := task.GetContainer()
	host := &container.HostConfig{
		PortBindings:   bindings,
		GroupAdd:       spec.GetGroups(),
		Init:           spec.Init,
		ReadonlyRootfs: spec.GetReadOnly(),
		DNS:            spec.GetDnsConfig().GetNameservers(),
		DNSSearch:      spec.GetDnsConfig().GetSearch(),
		DNSOptions:     spec.GetDnsConfig().GetOptions(),
		Sysctls:        spec.GetSysctls(),
		CapAdd:         spec.GetCapabilityAdd(),
		CapDrop:        spec.GetCapabilityDrop(),
		OomScoreAdj:    int(spec.GetOomScoreAdj()),
	}
	for _, ulimit := range spec.GetUlimits() {
		host.Ulimits = append(host.Ulimits, &container.Ulimit{Name: ulimit.GetName(), Soft: ulimit.GetSoft(), Hard: ulimit.GetHard()})
	}
	if driver := task.GetLogDriver(); driver != nil {
		host.LogConfig = container.LogConfig{Type: driver.GetName(), Config: driver.GetOptions()}
	}
	var err error
	if host.ExtraHosts, err = extraHosts(spec.GetHosts()); err != nil {
		return nil, err
	}
	if host.SecurityOpt, err = securityOptions(spec.GetPrivileges()); err != nil {
		return nil, err
	}
	return host, limit(host, task.GetResources())
}

// refuse names what the spec asks for that no node's executor of this version
// can do.
func refuse(spec *musterv1.TaskSpec) error {
	if spec.GetContainer() == nil {
		return sdk.SpecFault("container", errors.New("the docker executor runs containers"))
	}
	if _, err := parseImage(spec.GetContainer().GetImage()); err != nil {
		return err
	}
	isolation := spec.GetContainer().GetIsolation()
	for field, set := range map[string]bool{
		"privileges.credential_spec": spec.GetContainer().GetPrivileges().GetCredentialSpec() != nil,
		"isolation":                  isolation != "" && isolation != "default",
	} {
		if set {
			return sdk.SpecFault(field, errors.New("the docker executor does not have this yet"))
		}
	}
	return nil
}

// refuseTooNew names what the spec asks for that this node's Engine is too old
// for. The Engine itself would leave it out in silence.
func (e *Executor) refuseTooNew(ctx context.Context, spec *musterv1.ContainerSpec) error {
	needs := func(version, field string) error {
		if err := e.engine.NewVersionError(ctx, version, field); err != nil {
			return sdk.NodeFault(fmt.Errorf("%s: this node's Docker Engine is too old for it (API %s, and it needs %s)", field, e.engine.ClientVersion(), version))
		}
		return nil
	}
	if spec.GetHealthcheck().GetStartInterval().AsDuration() > 0 {
		if err := needs("1.44", "healthcheck.start_interval"); err != nil {
			return err
		}
	}
	for i, m := range spec.GetMounts() {
		// Older Engines never make read-only what is mounted below a mount, which is what
		// read_only_non_recursive asks for.
		for _, option := range []struct {
			set            bool
			version, field string
		}{
			{m.GetBindOptions().GetCreateMountpoint(), "1.42", "bind_options.create_mountpoint"},
			{m.GetBindOptions().GetReadOnlyForceRecursive(), "1.44", "bind_options.read_only_force_recursive"},
			{m.GetVolumeOptions().GetSubpath() != "", "1.45", "volume_options.subpath"},
			{m.GetTmpfsOptions().GetOptions() != "", "1.46", "tmpfs_options.options"},
		} {
			if option.set {
				if err := needs(option.version, fmt.Sprintf("mounts[%d].%s", i, option.field)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// seconds rounds a time up to the whole seconds that the Engine counts in, so
// that nothing has less time than it was promised.
func seconds(span time.Duration) int {
	return int(math.Ceil(max(span, 0).Seconds()))
}

func healthConfig(check *musterv1.HealthConfig) *container.HealthConfig {
	if check == nil {
		return nil
	}
	return &container.HealthConfig{
		Test:          check.GetTest(),
		Interval:      check.GetInterval().AsDuration(),
		Timeout:       check.GetTimeout().AsDuration(),
		StartPeriod:   check.GetStartPeriod().AsDuration(),
		StartInterval: check.GetStartInterval().AsDuration(),
		Retries:       int(check.GetRetries()),
	}
}

// extraHosts turns the lines of a hosts file ("IP host...") into what the Engine
// takes ("host:IP").
func extraHosts(lines []string) ([]string, error) {
	var hosts []string
	for i, line := range lines {
		words := strings.Fields(line)
		if len(words) < 2 {
			return nil, sdk.SpecFault(fmt.Sprintf("hosts[%d]", i), fmt.Errorf("%q is not of the form \"IP host...\"", line))
		}
		for _, name := range words[1:] {
			hosts = append(hosts, name+":"+words[0])
		}
	}
	return hosts, nil
}

// securityOptions are a container's in the Engine's language.
func securityOptions(privileges *musterv1.Privileges) ([]string, error) {
	var options []string
	if privileges.GetNoNewPrivileges() {
		options = append(options, "no-new-privileges")
	}
	switch seccomp := privileges.GetSeccomp(); seccomp.GetMode() {
	case musterv1.SeccompOpts_UNCONFINED:
		options = append(options, "seccomp=unconfined")
	case musterv1.SeccompOpts_CUSTOM:
		if !json.Valid(seccomp.GetProfile()) {
			return nil, sdk.SpecFault("privileges.seccomp.profile", errors.New("it is not JSON"))
		}
		options = append(options, "seccomp="+string(seccomp.GetProfile()))
	}
	if privileges.GetApparmor().GetMode() == musterv1.AppArmorOpts_DISABLED {
		options = append(options, "apparmor=unconfined")
	}
	if selinux := privileges.GetSelinuxContext(); selinux.GetDisable() {
		options = append(options, "label=disable")
	} else {
		for _, label := range []struct{ key, value string }{
			{"user", selinux.GetUser()}, {"role", selinux.GetRole()}, {"type", selinux.GetType()}, {"level", selinux.GetLevel()},
		} {
			if label.value != "" {
				options = append(options, "label="+label.key+":"+label.value)
			}
		}
	}
	return options, nil
}

// limit sets what a container may use.
func limit(host *container.HostConfig, resources *musterv1.ResourceRequirements) error {
	limits := resources.GetLimits()
	host.NanoCPUs = limits.GetNanoCpus()
	host.Memory = limits.GetMemoryBytes()
	if pids := limits.GetPids(); pids > 0 {
		host.PidsLimit = &pids
	}
	if resources != nil && resources.SwapBytes != nil {
		switch swap := resources.GetSwapBytes(); {
		case host.Memory == 0:
			return sdk.SpecFault("resources.swap_bytes", errors.New("it needs a limit of memory beside it"))
		case swap < 0:
			host.MemorySwap = -1
		default:
			// The Engine counts memory and swap together.
			host.MemorySwap = host.Memory + swap
		}
	}
	if resources != nil && resources.MemorySwappiness != nil {
		host.MemorySwappiness = new(resources.GetMemorySwappiness())
	}
	return nil
}
