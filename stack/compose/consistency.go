package compose

import (
	"cmp"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"
)

// consistent checks that what services refer to is there, and that no two keys contradict
// each other. compose-go would stop at the first fault, and knows no lines.
func (c *converter) consistent() {
	for _, name := range sorted(c.project.Services) {
		s := &service{converter: c, ServiceConfig: c.project.Services[name], path: []string{"services", name}}
		if s.Image == "" && s.Build == nil && s.Provider == nil {
			s.invalid(s.path, "", "an image is required")
		}
		s.references()
		s.contradictions()
		if h := s.HealthCheck; h != nil && len(h.Test) > 0 && !slices.Contains([]string{"CMD", "CMD-SHELL", "NONE"}, h.Test[0]) {
			s.invalid(s.at("healthcheck", "test"), "", "a list must begin with CMD, CMD-SHELL or NONE")
		}
	}
}

func (s *service) references() {
	const undefined = "there is no entry %q under %s at the top of the files"
	p := s.project
	for _, network := range sorted(s.Networks) {
		if _, ok := p.Networks[network]; !ok {
			s.invalid(s.at("networks", network), network, undefined, network, "networks")
		}
	}
	for i, v := range s.Volumes {
		if _, ok := p.Volumes[v.Source]; !ok && v.Type == types.VolumeTypeVolume && v.Source != "" {
			s.invalid(s.at("volumes", number(i)), v.Source, undefined, v.Source, "volumes")
		}
	}
	for i, ref := range s.Secrets {
		if _, ok := p.Secrets[ref.Source]; !ok {
			s.invalid(s.at("secrets", number(i)), ref.Source, undefined, ref.Source, "secrets")
		}
	}
	for i, ref := range s.Configs {
		if _, ok := p.Configs[ref.Source]; !ok {
			s.invalid(s.at("configs", number(i)), ref.Source, undefined, ref.Source, "configs")
		}
	}
	for _, other := range sorted(s.DependsOn) {
		_, active := p.Services[other]
		_, disabled := p.DisabledServices[other]
		switch {
		case active || disabled && !s.DependsOn[other].Required:
		case disabled:
			s.invalid(s.at("depends_on", other), other, "the service %s is in no active profile; activate one of its profiles, or set required: false", other)
		default:
			s.invalid(s.at("depends_on", other), other, "there is no service %s", other)
		}
	}
}

func (s *service) contradictions() {
	if s.NetworkMode != "" && len(s.Networks) > 0 {
		s.invalid(s.at("network_mode"), "", "a service has either network_mode or networks")
	}
	deploy := s.Deploy
	if deploy == nil {
		deploy = &types.DeployConfig{}
	}
	for key, count := range map[string]*int{"scale": s.Scale, "deploy.replicas": deploy.Replicas} {
		if count != nil && *count < 0 {
			s.invalid(s.at(key), "", "must not be negative")
		}
	}
	if s.Scale != nil && deploy.Replicas != nil && *s.Scale != *deploy.Replicas {
		s.invalid(s.at("scale"), "", "it is not the number of deploy.replicas; give one of them")
	}
	limits := cmp.Or(deploy.Resources.Limits, &types.Resource{NanoCPUs: types.NanoCPUs(s.CPUS), MemoryBytes: s.MemLimit, Pids: s.PidsLimit})
	reservations := cmp.Or(deploy.Resources.Reservations, &types.Resource{MemoryBytes: s.MemReservation})
	for key, differs := range map[string]bool{
		"cpus":            s.CPUS != 0 && float32(limits.NanoCPUs) != s.CPUS,
		"mem_limit":       s.MemLimit != 0 && limits.MemoryBytes != s.MemLimit,
		"pids_limit":      s.PidsLimit != 0 && limits.Pids != s.PidsLimit,
		"mem_reservation": s.MemReservation != 0 && reservations.MemoryBytes != s.MemReservation,
	} {
		if differs {
			s.invalid(s.at(key), "", "deploy.resources says otherwise; give one of them")
		}
	}
}
