package compose

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
)

// service is a service that is being converted, with its path in the file.
type service struct {
	*converter
	types.ServiceConfig
	path []string
}

// at returns the path of a key of the service.
func (s *service) at(keys ...string) []string {
	return append(s.path[:len(s.path):len(s.path)], keys...)
}

func (c *converter) service(config types.ServiceConfig) *musterv1.ServiceSpec {
	s := &service{converter: c, ServiceConfig: config, path: []string{"services", config.Name}}
	s.files()
	c.project.Services[config.Name] = s.ServiceConfig
	if s.Deploy == nil {
		s.Deploy = &types.DeployConfig{}
	}
	name := c.full(s.Name)
	c.checkName(s.path, name, objectName, maxName)
	image := s.image(name)
	spec := &musterv1.ServiceSpec{
		Name:   name,
		Labels: c.labels(s.Deploy.Labels),
		Task: &musterv1.TaskSpec{
			Runtime:   &musterv1.TaskSpec_Container{Container: s.container(image)},
			Resources: s.resources(),
			Restart:   s.restart(),
			Placement: s.placement(),
			LogDriver: s.logging(),
			Networks:  s.attachments(),
		},
		Update:   s.update("update_config", s.Deploy.UpdateConfig),
		Rollback: s.update("rollback_config", s.Deploy.RollbackConfig),
		Endpoint: s.endpoint(),
	}
	spec.Labels[imageLabel] = image
	s.mode(spec)
	for _, other := range sorted(s.DependsOn) {
		spec.DependsOn = append(spec.DependsOn, s.dependency(other, s.DependsOn[other]))
	}
	return spec
}

// image returns the image that tasks run, and notes it if it must be built.
func (s *service) image(name string) string {
	image := s.Image
	switch {
	case s.Build == nil:
	case s.builds:
		if image == "" {
			image = s.project.Name + "-" + s.Name
		}
		s.result.Builds = append(s.result.Builds, Build{Service: name, Image: image, Config: s.Build})
	case image == "":
		s.invalid(s.at("build"), "", "a cluster does not build: build the image, push it, and name it in image; or use muster up")
	default:
		s.note(s.at("build"), "a cluster does not build; the image is used as it is")
	}
	return image
}

func (s *service) mode(spec *musterv1.ServiceSpec) {
	count := s.Scale
	if s.Deploy.Replicas != nil {
		count = s.Deploy.Replicas
	}
	switch s.Deploy.Mode {
	case "", "replicated":
		if count != nil {
			spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: new(uint64(*count))}}
		}
	case "global":
		spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
		if count != nil {
			s.invalid(s.at("deploy", "replicas"), "", "a global service runs one task on every node; leave replicas out")
		}
	case "replicated-job", "global-job":
		s.invalid(s.at("deploy", "mode"), "", "%s; use a service with restart: \"no\" instead", noJobs)
	default:
		s.invalid(s.at("deploy", "mode"), "", "unknown mode %q: want replicated or global", s.Deploy.Mode)
	}
}

func (s *service) dependency(other string, d types.ServiceDependency) *musterv1.ServiceDependency {
	on := &musterv1.ServiceDependency{Service: s.full(other), Restart: d.Restart, Condition: musterv1.ServiceDependency_STARTED}
	switch d.Condition {
	case types.ServiceConditionHealthy:
		on.Condition = musterv1.ServiceDependency_HEALTHY
	case types.ServiceConditionCompletedSuccessfully:
		on.Condition = musterv1.ServiceDependency_COMPLETED
	}
	if !d.Required {
		on.Required = new(false)
	}
	return on
}

// awaited reports whether a service waits until this one has completed.
func (s *service) awaited() bool {
	for _, other := range s.project.Services {
		if other.DependsOn[s.Name].Condition == types.ServiceConditionCompletedSuccessfully {
			return true
		}
	}
	return false
}

func (s *service) restart() *musterv1.RestartPolicy {
	if p := s.Deploy.RestartPolicy; p != nil {
		return s.restartPolicy(p)
	}
	condition, count, limited := strings.Cut(s.Restart, ":")
	switch condition {
	case "":
		if s.awaited() {
			// Compose does not restart by default. A task that fails is tried again.
			return &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ON_FAILURE}
		}
		return nil
	case types.RestartPolicyNo:
		return &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE}
	case types.RestartPolicyAlways, types.RestartPolicyUnlessStopped:
		return &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ANY}
	case types.RestartPolicyOnFailure:
		policy := &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ON_FAILURE}
		if !limited {
			return policy
		}
		attempts, err := strconv.ParseUint(count, 10, 32)
		if err != nil {
			s.invalid(s.at("restart"), "", "invalid restart policy %q: want on-failure:N with a number", s.Restart)
		}
		policy.MaxAttempts = attempts
		return policy
	}
	s.invalid(s.at("restart"), "", "unknown restart policy %q: want no, always, unless-stopped or on-failure[:N]", s.Restart)
	return nil
}

func (s *service) restartPolicy(p *types.RestartPolicy) *musterv1.RestartPolicy {
	policy := &musterv1.RestartPolicy{Delay: span(p.Delay), Window: span(p.Window)}
	if p.MaxAttempts != nil {
		policy.MaxAttempts = *p.MaxAttempts
	}
	switch p.Condition {
	case "", "any", types.RestartPolicyAlways, types.RestartPolicyUnlessStopped:
		policy.Condition = musterv1.RestartPolicy_ANY
	case "none", types.RestartPolicyNo:
		policy.Condition = musterv1.RestartPolicy_NONE
	case types.RestartPolicyOnFailure:
		policy.Condition = musterv1.RestartPolicy_ON_FAILURE
	default:
		s.invalid(s.at("deploy", "restart_policy", "condition"), "", "unknown condition %q: want none, on-failure or any", p.Condition)
	}
	return policy
}

func (s *service) update(key string, u *types.UpdateConfig) *musterv1.UpdateConfig {
	if u == nil {
		return nil
	}
	config := &musterv1.UpdateConfig{Parallelism: 1, Delay: positive(u.Delay), Monitor: positive(u.Monitor), MaxFailureRatio: u.MaxFailureRatio}
	if u.Parallelism != nil {
		config.Parallelism = *u.Parallelism
	}
	switch u.FailureAction {
	case "":
	case "pause":
		config.FailureAction = musterv1.UpdateConfig_PAUSE
	case "continue":
		config.FailureAction = musterv1.UpdateConfig_CONTINUE
	case "rollback":
		config.FailureAction = musterv1.UpdateConfig_ROLLBACK
		if key == "rollback_config" {
			s.invalid(s.at("deploy", key, "failure_action"), "", "a rollback is not rolled back; want pause or continue")
		}
	default:
		s.invalid(s.at("deploy", key, "failure_action"), "", "unknown action %q: want pause, continue or rollback", u.FailureAction)
	}
	switch u.Order {
	case "stop-first":
		config.Order = musterv1.UpdateConfig_STOP_FIRST
	case "start-first":
		config.Order = musterv1.UpdateConfig_START_FIRST
	}
	return config
}

func (s *service) placement() *musterv1.Placement {
	p := &musterv1.Placement{MaxReplicas: s.Deploy.Placement.MaxReplicas}
	for i, c := range s.Deploy.Placement.Constraints {
		at := s.at("deploy", "placement", "constraints", number(i))
		parsed := strings.Join(strings.Fields(c), "")
		switch _, err := placement.ParseConstraints([]string{c}); {
		case err != nil:
			s.invalid(at, c, "%v", err)
		case parsed == "node.role==manager" || parsed == "node.role!=worker":
			s.unsupported(at, c, "managers are daemons, not nodes, so no node matches; use a node label")
			continue
		}
		p.Constraints = append(p.Constraints, c)
	}
	if s.Platform != "" {
		platform, ok := platformOf(s.Platform)
		if !ok {
			s.invalid(s.at("platform"), "", "invalid platform %q: want an operating system and an architecture, such as linux/arm64", s.Platform)
		}
		p.Platforms = append(p.Platforms, platform)
	}
	if len(p.Constraints) == 0 && len(p.Platforms) == 0 && p.MaxReplicas == 0 {
		return nil
	}
	return p
}

// platformOf parses "os/arch". Of variants only that is known which every processor of its
// architecture has.
func platformOf(text string) (*musterv1.Platform, bool) {
	parts := strings.Split(text, "/")
	switch {
	case len(parts) == 1 && parts[0] == "linux":
		return &musterv1.Platform{Os: parts[0]}, true
	case len(parts) == 3 && parts[1] == "arm64" && parts[2] == "v8", len(parts) == 2:
		return &musterv1.Platform{Os: parts[0], Architecture: parts[1]}, true
	}
	return nil, false
}

func (s *service) logging() *musterv1.LogDriver {
	if s.Logging == nil {
		return nil
	}
	if s.Logging.Driver == "" {
		s.invalid(s.at("logging"), "", "the driver is required, because nodes may have different defaults")
	}
	return &musterv1.LogDriver{Name: s.Logging.Driver, Options: s.Logging.Options}
}

func (s *service) endpoint() *musterv1.EndpointSpec {
	e := &musterv1.EndpointSpec{}
	switch s.Deploy.EndpointMode {
	case "":
	case "vip":
		e.Mode = musterv1.EndpointSpec_VIP
	case "dnsrr":
		e.Mode = musterv1.EndpointSpec_DNSRR
	default:
		s.invalid(s.at("deploy", "endpoint_mode"), "", "unknown mode %q: want vip or dnsrr", s.Deploy.EndpointMode)
	}
	if len(s.Ports) > 0 && nodeNetworks[s.NetworkMode] {
		s.unsupported(s.at("ports"), "", fmt.Sprintf("a service with network_mode %s publishes no ports; leave them out", s.NetworkMode))
		s.Ports = nil
	}
	for i, p := range s.Ports {
		if port := s.port(s.at("ports", number(i)), p, e.Mode); port != nil {
			e.Ports = append(e.Ports, port)
		}
	}
	if e.Mode == 0 && len(e.Ports) == 0 {
		return nil
	}
	return e
}

func (s *service) port(at []string, p types.ServicePortConfig, mode musterv1.EndpointSpec_Mode) *musterv1.PortConfig {
	hint := strconv.Itoa(int(p.Target))
	port := &musterv1.PortConfig{Name: p.Name, TargetPort: p.Target}
	switch p.HostIP {
	case "", "0.0.0.0", "::":
	default:
		s.unsupported(append(at, "host_ip"), p.HostIP, fmt.Sprintf("ports are published on all addresses of the nodes, not on %s alone; leave the address out if all may reach it", p.HostIP))
		return nil
	}
	switch protocol := strings.ToLower(p.Protocol); protocol {
	case "", "tcp":
		port.Protocol = musterv1.PortConfig_TCP
	case "udp":
		port.Protocol = musterv1.PortConfig_UDP
	case "sctp":
		port.Protocol = musterv1.PortConfig_SCTP
	default:
		s.invalid(append(at, "protocol"), p.Protocol, "unknown protocol %q: want tcp, udp or sctp", p.Protocol)
	}
	switch p.Mode {
	case "", "ingress":
		port.PublishMode = musterv1.PortConfig_INGRESS
		if mode == musterv1.EndpointSpec_DNSRR {
			s.invalid(at, hint, "with endpoint_mode dnsrr ports can only be published in mode host")
		}
	case "host":
		port.PublishMode = musterv1.PortConfig_HOST
	default:
		s.invalid(append(at, "mode"), p.Mode, "unknown mode %q: want ingress or host", p.Mode)
	}
	if p.Published == "" {
		return port
	}
	published, err := strconv.ParseUint(p.Published, 10, 16)
	switch {
	case err == nil:
		port.PublishedPort = uint32(published)
	case strings.Contains(p.Published, "-"):
		s.unsupported(append(at, "published"), p.Published, fmt.Sprintf("one port cannot be published at any of %s; name one port, or none for a port that is chosen", p.Published))
	default:
		s.invalid(append(at, "published"), p.Published, "invalid port %q: want a number up to 65535", p.Published)
	}
	return port
}

func (s *service) attachments() []*musterv1.NetworkAttachmentConfig {
	switch mode := s.NetworkMode; {
	case nodeNetworks[mode]:
		return []*musterv1.NetworkAttachmentConfig{{Target: mode}}
	case mode == "" || mode == "bridge":
	case strings.HasPrefix(mode, types.ServicePrefix), strings.HasPrefix(mode, types.ContainerPrefix):
		s.unsupported(s.at("network_mode"), "", "services do not share the network of one another; put both on one network, and use the service's name")
	default:
		s.unsupported(s.at("network_mode"), "", fmt.Sprintf("unknown mode %q: want host, none or bridge, or list the network under networks", mode))
	}
	var list []*musterv1.NetworkAttachmentConfig
	for _, key := range s.NetworksByPriority() {
		name := s.project.Networks[key].Name
		if nodeNetworks[name] && bool(s.project.Networks[key].External) {
			list = append(list, &musterv1.NetworkAttachmentConfig{Target: name})
			continue
		}
		n := s.Networks[key]
		a := &musterv1.NetworkAttachmentConfig{Target: name}
		if n.ServiceNameAliasEnabled() {
			a.Aliases = append(a.Aliases, s.Name)
		}
		if s.ContainerName != "" && s.ContainerName != s.Name {
			s.alias(a, s.at("container_name"), s.ContainerName)
		}
		if n != nil {
			for i, alias := range n.Aliases {
				s.alias(a, s.at("networks", key, "aliases", number(i)), alias)
			}
		}
		list = append(list, a)
	}
	if s.ContainerName != "" && len(list) == 0 {
		s.note(s.at("container_name"), "containers have names of their own, and the service is on no network that knows aliases")
	}
	return list
}

// alias adds a name of the service to a network.
func (s *service) alias(a *musterv1.NetworkAttachmentConfig, at []string, alias string) {
	if len(alias) > maxName || !aliasName.MatchString(alias) {
		s.unsupported(at, alias, fmt.Sprintf("invalid alias %q: want at most %d letters, digits, \"-\" and \"_\", with a letter or digit at both ends", alias, maxName))
		return
	}
	for _, known := range a.Aliases {
		if known == alias {
			return
		}
	}
	a.Aliases = append(a.Aliases, alias)
}
