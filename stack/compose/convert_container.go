package compose

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// files reads the files of variables and labels of a service.
func (s *service) files() {
	env := variables{}
	for key, value := range s.Environment {
		if value == nil {
			if known, ok := s.vars[key]; ok {
				env[key] = known
			}
			continue
		}
		env[key] = *value
	}
	lookup := func(key string) (string, bool) {
		if value, ok := s.vars[key]; ok {
			return value, true
		}
		return env.lookup(key)
	}
	all := variables{}
	for _, file := range s.EnvFiles {
		maps.Copy(all, s.envFile(file, lookup))
	}
	maps.Copy(all, env)
	s.Environment = types.Mapping(all).ToMappingWithEquals()
	s.EnvFiles = nil
	labels := variables{}
	for _, path := range s.LabelFiles {
		maps.Copy(labels, s.envFile(types.EnvFile{Path: path, Required: true}, s.vars.lookup))
	}
	if len(labels) > 0 {
		maps.Copy(labels, s.Labels)
		s.Labels = types.Labels(labels)
	}
	s.LabelFiles = nil
}

func (s *service) envFile(file types.EnvFile, lookup func(string) (string, bool)) variables {
	at := s.at("env_file")
	content, err := s.index.open(file.Path, maxFile)
	if err != nil {
		if !missing(err) || bool(file.Required) {
			s.invalid(at, filepath.Base(file.Path), "%v", err)
		}
		return nil
	}
	var vars variables
	switch file.Format {
	case "", ".env":
		vars, err = s.budget.parseEnv(content, lookup)
	case "raw":
		vars, err = parseRaw(content, lookup)
	default:
		err = fmt.Errorf("unknown format %q: want raw, or none", file.Format)
	}
	if err != nil {
		s.invalid(at, filepath.Base(file.Path), "%s: %v", s.index.relative(file.Path), err)
	}
	return vars
}

func (s *service) container(image string) *musterv1.ContainerSpec {
	c := &musterv1.ContainerSpec{
		Image:           image,
		Labels:          s.labels(s.Labels),
		Command:         s.Entrypoint,
		Args:            s.Command,
		Hostname:        s.Hostname,
		Dir:             s.WorkingDir,
		User:            s.User,
		Groups:          s.GroupAdd,
		Privileges:      s.privileges(),
		Init:            s.Init,
		Tty:             s.Tty,
		OpenStdin:       s.StdinOpen,
		ReadOnly:        s.ReadOnly,
		StopSignal:      s.StopSignal,
		Mounts:          s.mounts(),
		StopGracePeriod: span(s.StopGracePeriod),
		PullOptions:     s.pull(),
		Secrets:         s.secretReferences(),
		Configs:         s.configReferences(),
		Hosts:           s.hosts(),
		Healthcheck:     s.health(),
		Sysctls:         s.Sysctls,
		CapabilityAdd:   s.CapAdd,
		CapabilityDrop:  s.CapDrop,
		OomScoreAdj:     s.OomScoreAdj,
	}
	if s.Entrypoint != nil && len(s.Entrypoint) == 0 {
		s.unsupported(s.at("entrypoint"), "", "the image's entrypoint cannot be taken away; name a program")
	}
	if len(s.DNS)+len(s.DNSSearch)+len(s.DNSOpts) > 0 {
		c.DnsConfig = &musterv1.DNSConfig{Nameservers: s.DNS, Search: s.DNSSearch, Options: s.DNSOpts}
	}
	for _, key := range sorted(s.Environment) {
		c.Env = append(c.Env, key+"="+*s.Environment[key])
	}
	for _, name := range sorted(s.Ulimits) {
		u := s.Ulimits[name]
		limit := &musterv1.Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if u.Single != 0 {
			limit.Soft, limit.Hard = int64(u.Single), int64(u.Single)
		}
		c.Ulimits = append(c.Ulimits, limit)
	}
	return c
}

func (s *service) pull() *musterv1.PullOptions {
	var policy musterv1.PullOptions_Policy
	switch s.PullPolicy {
	case "":
		if s.Build == nil || !s.builds {
			return nil
		}
		policy = musterv1.PullOptions_MISSING
	case types.PullPolicyAlways:
		policy = musterv1.PullOptions_ALWAYS
	case types.PullPolicyNever:
		policy = musterv1.PullOptions_NEVER
	case types.PullPolicyMissing, types.PullPolicyIfNotPresent:
		policy = musterv1.PullOptions_MISSING
	case types.PullPolicyBuild:
		if !s.builds {
			s.unsupported(s.at("pull_policy"), "", "a cluster does not build; use always, missing or never")
			return nil
		}
		policy = musterv1.PullOptions_MISSING
	default:
		s.unsupported(s.at("pull_policy"), "", "images are not pulled by time; use always, missing or never")
		return nil
	}
	return &musterv1.PullOptions{Policy: policy}
}

func (s *service) hosts() []string {
	var hosts []string
	for _, name := range sorted(s.ExtraHosts) {
		for _, address := range s.ExtraHosts[name] {
			address = strings.Trim(address, "[]")
			if _, err := netip.ParseAddr(address); err != nil {
				s.unsupported(s.at("extra_hosts", name), name, fmt.Sprintf("%q is not an IP address; give the address itself", address))
				continue
			}
			hosts = append(hosts, address+" "+name)
		}
	}
	return hosts
}

func (s *service) health() *musterv1.HealthConfig {
	h := s.HealthCheck
	if h == nil {
		return nil
	}
	if h.Disable {
		return &musterv1.HealthConfig{Test: []string{"NONE"}}
	}
	config := &musterv1.HealthConfig{
		Test: h.Test, Interval: span(h.Interval), Timeout: span(h.Timeout), StartPeriod: span(h.StartPeriod), StartInterval: span(h.StartInterval),
	}
	if h.Retries != nil {
		config.Retries = uint32(min(*h.Retries, math.MaxUint32))
	}
	return config
}

// privileges reads security_opt.
func (s *service) privileges() *musterv1.Privileges {
	p := &musterv1.Privileges{}
	for i, option := range s.SecurityOpt {
		at := s.at("security_opt", number(i))
		name, value, _ := strings.Cut(option, "=")
		if !strings.Contains(option, "=") {
			name, value, _ = strings.Cut(option, ":")
		}
		known := true
		switch name {
		case "no-new-privileges":
			on, err := strconv.ParseBool(cmp.Or(value, "true"))
			p.NoNewPrivileges, known = on, err == nil
		case "apparmor":
			if known = value == "unconfined"; known {
				p.Apparmor = &musterv1.AppArmorOpts{Mode: musterv1.AppArmorOpts_DISABLED}
			}
		case "seccomp":
			p.Seccomp = s.seccomp(at, option, value)
		case "label":
			known = label(p, value)
		default:
			known = false
		}
		if !known {
			s.unsupported(at, option, fmt.Sprintf("the option %q is not supported", option))
		}
	}
	if p.Seccomp == nil && p.Apparmor == nil && p.SelinuxContext == nil && !p.NoNewPrivileges {
		return nil
	}
	return p
}

func (s *service) seccomp(at []string, option, value string) *musterv1.SeccompOpts {
	switch value {
	case "unconfined":
		return &musterv1.SeccompOpts{Mode: musterv1.SeccompOpts_UNCONFINED}
	case "builtin":
		return &musterv1.SeccompOpts{Mode: musterv1.SeccompOpts_DEFAULT}
	}
	profile, err := s.index.open(join(s.index.dir, value), maxFile)
	if err != nil {
		s.invalid(at, option, "%v", err)
	}
	return &musterv1.SeccompOpts{Mode: musterv1.SeccompOpts_CUSTOM, Profile: profile}
}

// label reads an option of SELinux.
func label(p *musterv1.Privileges, value string) bool {
	if p.SelinuxContext == nil {
		p.SelinuxContext = &musterv1.SELinuxContext{}
	}
	kind, what, _ := strings.Cut(value, ":")
	switch kind {
	case "disable":
		p.SelinuxContext.Disable = true
	case "user":
		p.SelinuxContext.User = what
	case "role":
		p.SelinuxContext.Role = what
	case "type":
		p.SelinuxContext.Type = what
	case "level":
		p.SelinuxContext.Level = what
	default:
		return false
	}
	return true
}

func (s *service) resources() *musterv1.ResourceRequirements {
	limits, reservations := s.Deploy.Resources.Limits, s.Deploy.Resources.Reservations
	if limits == nil {
		limits = &types.Resource{NanoCPUs: types.NanoCPUs(s.CPUS), MemoryBytes: s.MemLimit, Pids: s.PidsLimit}
	}
	if reservations == nil {
		reservations = &types.Resource{MemoryBytes: s.MemReservation}
	}
	r := &musterv1.ResourceRequirements{}
	if l := (musterv1.Limits{NanoCpus: nano(limits.NanoCPUs), MemoryBytes: int64(limits.MemoryBytes), Pids: max(limits.Pids, 0)}); l.NanoCpus != 0 || l.MemoryBytes != 0 || l.Pids != 0 {
		r.Limits = &musterv1.Limits{NanoCpus: l.NanoCpus, MemoryBytes: l.MemoryBytes, Pids: l.Pids}
	}
	if cpus, memory := nano(reservations.NanoCPUs), int64(reservations.MemoryBytes); cpus != 0 || memory != 0 {
		r.Reservations = &musterv1.Resources{NanoCpus: cpus, MemoryBytes: memory}
	}
	if s.MemSwappiness != 0 {
		r.MemorySwappiness = new(int64(s.MemSwappiness))
	}
	switch total := int64(s.MemSwapLimit); {
	case total == 0:
	case r.Limits.GetMemoryBytes() == 0:
		s.invalid(s.at("memswap_limit"), "", "it needs mem_limit beside it")
	case total < 0:
		r.SwapBytes = new(int64(-1))
	case total < r.Limits.GetMemoryBytes():
		s.invalid(s.at("memswap_limit"), "", "memory and swap together must not be less than mem_limit")
	default:
		r.SwapBytes = new(total - r.Limits.GetMemoryBytes())
	}
	if r.Limits == nil && r.Reservations == nil && r.SwapBytes == nil && r.MemorySwappiness == nil {
		return nil
	}
	return r
}

// nano returns billionths of a core. The number is taken as it is written, not as a float
// has it.
func nano(cpus types.NanoCPUs) int64 {
	exact, err := strconv.ParseFloat(strconv.FormatFloat(float64(cpus), 'f', -1, 32), 64)
	if err != nil || exact > math.MaxInt64/1e9 {
		return math.MaxInt64
	}
	return int64(math.Round(exact * 1e9))
}

func (s *service) secretReferences() []*musterv1.SecretReference {
	var list []*musterv1.SecretReference
	for i, ref := range s.Secrets {
		target := strings.TrimPrefix(cmp.Or(ref.Target, ref.Source), "/run/secrets/")
		list = append(list, &musterv1.SecretReference{
			SecretName: s.project.Secrets[ref.Source].Name,
			File:       s.target(s.at("secrets", number(i)), types.FileReferenceConfig(ref), target),
		})
	}
	return list
}

func (s *service) configReferences() []*musterv1.ConfigReference {
	var list []*musterv1.ConfigReference
	for i, ref := range s.Configs {
		list = append(list, &musterv1.ConfigReference{
			ConfigName: s.project.Configs[ref.Source].Name,
			Target:     &musterv1.ConfigReference_File{File: s.target(s.at("configs", number(i)), types.FileReferenceConfig(ref), cmp.Or(ref.Target, ref.Source))},
		})
	}
	return list
}

func (s *service) target(at []string, ref types.FileReferenceConfig, name string) *musterv1.FileTarget {
	file := &musterv1.FileTarget{Name: name, Uid: ref.UID, Gid: ref.GID}
	for key, id := range map[string]string{"uid": ref.UID, "gid": ref.GID} {
		if _, err := strconv.ParseUint(id, 10, 32); id != "" && err != nil {
			s.invalid(append(slices.Clip(at), key), id, "invalid id %q: want a number", id)
		}
	}
	if ref.Mode != nil {
		if *ref.Mode < 0 || *ref.Mode > 0o7777 {
			s.invalid(append(slices.Clip(at), "mode"), "", "invalid mode: want permission bits such as 0440")
		}
		file.Mode = uint32(*ref.Mode & 0o7777)
	}
	return file
}
