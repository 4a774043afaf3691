package convert

import (
	"math"
	"net/netip"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var (
	seccompModes = enum[musterv1.SeccompOpts_Mode]{
		string(swarm.SeccompModeDefault):    musterv1.SeccompOpts_DEFAULT,
		string(swarm.SeccompModeUnconfined): musterv1.SeccompOpts_UNCONFINED,
		string(swarm.SeccompModeCustom):     musterv1.SeccompOpts_CUSTOM,
	}
	apparmorModes = enum[musterv1.AppArmorOpts_Mode]{
		string(swarm.AppArmorModeDefault):  musterv1.AppArmorOpts_DEFAULT,
		string(swarm.AppArmorModeDisabled): musterv1.AppArmorOpts_DISABLED,
	}
)

func containerSpec(f *faults, field string, c swarm.ContainerSpec) *musterv1.ContainerSpec {
	out := &musterv1.ContainerSpec{
		Image: c.Image, Labels: c.Labels, Command: c.Command, Args: c.Args, Hostname: c.Hostname, Env: c.Env, Dir: c.Dir,
		User: c.User, Groups: c.Groups, Init: c.Init, StopSignal: c.StopSignal, Tty: c.TTY, OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly,
		StopGracePeriod: optionalDuration(c.StopGracePeriod), Hosts: c.Hosts, Isolation: string(c.Isolation), Sysctls: c.Sysctls,
		CapabilityAdd: c.CapabilityAdd, CapabilityDrop: c.CapabilityDrop, OomScoreAdj: c.OomScoreAdj,
		Privileges:  privileges(f, field+".Privileges", c.Privileges),
		Healthcheck: healthcheck(f, field+".Healthcheck", c.Healthcheck),
	}
	for i, m := range c.Mounts {
		out.Mounts = append(out.Mounts, mountOf(f, index(field+".Mounts", i), m))
	}
	if d := c.DNSConfig; d != nil {
		out.DnsConfig = &musterv1.DNSConfig{Nameservers: each(d.Nameservers, text[netip.Addr]), Search: d.Search, Options: d.Options}
	}
	for i, s := range c.Secrets {
		if s == nil {
			f.add(index(field+".Secrets", i), "must not be null")
			continue
		}
		ref := &musterv1.SecretReference{SecretId: s.SecretID, SecretName: s.SecretName}
		if t := s.File; t != nil {
			ref.File = &musterv1.FileTarget{Name: t.Name, Uid: t.UID, Gid: t.GID, Mode: uint32(t.Mode)}
		}
		out.Secrets = append(out.Secrets, ref)
	}
	for i, s := range c.Configs {
		at := index(field+".Configs", i)
		if s == nil {
			f.add(at, "must not be null")
			continue
		}
		ref := &musterv1.ConfigReference{ConfigId: s.ConfigID, ConfigName: s.ConfigName}
		switch {
		case s.File != nil && s.Runtime != nil:
			f.add(at, "File and Runtime exclude each other")
		case s.File != nil:
			ref.Target = &musterv1.ConfigReference_File{File: &musterv1.FileTarget{Name: s.File.Name, Uid: s.File.UID, Gid: s.File.GID, Mode: uint32(s.File.Mode)}}
		case s.Runtime != nil:
			ref.Target = &musterv1.ConfigReference_Runtime{Runtime: &musterv1.RuntimeTarget{}}
		}
		out.Configs = append(out.Configs, ref)
	}
	for i, u := range c.Ulimits {
		if u == nil {
			f.add(index(field+".Ulimits", i), "must not be null")
			continue
		}
		out.Ulimits = append(out.Ulimits, &musterv1.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return out
}

func privileges(f *faults, field string, p *swarm.Privileges) *musterv1.Privileges {
	if p == nil {
		return nil
	}
	out := &musterv1.Privileges{NoNewPrivileges: p.NoNewPrivileges}
	if c := p.CredentialSpec; c != nil {
		out.CredentialSpec = &musterv1.CredentialSpec{}
		given := 0
		if c.Config != "" {
			given++
			out.CredentialSpec.Source = &musterv1.CredentialSpec_Config{Config: c.Config}
		}
		if c.File != "" {
			given++
			out.CredentialSpec.Source = &musterv1.CredentialSpec_File{File: c.File}
		}
		if c.Registry != "" {
			given++
			out.CredentialSpec.Source = &musterv1.CredentialSpec_Registry{Registry: c.Registry}
		}
		if given != 1 {
			f.add(field+".CredentialSpec", "want one of Config, File and Registry")
		}
	}
	if s := p.SELinuxContext; s != nil {
		out.SelinuxContext = &musterv1.SELinuxContext{Disable: s.Disable, User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
	}
	if s := p.Seccomp; s != nil {
		out.Seccomp = &musterv1.SeccompOpts{Mode: seccompModes.muster(f, field+".Seccomp.Mode", string(s.Mode)), Profile: s.Profile}
	}
	if a := p.AppArmor; a != nil {
		out.Apparmor = &musterv1.AppArmorOpts{Mode: apparmorModes.muster(f, field+".AppArmor.Mode", string(a.Mode))}
	}
	return out
}

func healthcheck(f *faults, field string, h *container.HealthConfig) *musterv1.HealthConfig {
	if h == nil {
		return nil
	}
	if h.Retries < 0 || h.Retries > math.MaxInt32 {
		f.add(field+".Retries", "invalid number %d: want at least 0", h.Retries)
		return nil
	}
	return &musterv1.HealthConfig{
		Test: h.Test, Interval: duration(h.Interval), Timeout: duration(h.Timeout), StartPeriod: duration(h.StartPeriod),
		StartInterval: duration(h.StartInterval), Retries: uint32(h.Retries),
	}
}

func dockerContainerSpec(c *musterv1.ContainerSpec) *swarm.ContainerSpec {
	if c == nil {
		return nil
	}
	out := &swarm.ContainerSpec{
		Image: c.Image, Labels: c.Labels, Command: c.Command, Args: c.Args, Hostname: c.Hostname, Env: c.Env, Dir: c.Dir,
		User: c.User, Groups: c.Groups, Init: c.Init, StopSignal: c.StopSignal, TTY: c.Tty, OpenStdin: c.OpenStdin, ReadOnly: c.ReadOnly,
		StopGracePeriod: dockerDuration(c.StopGracePeriod), Hosts: c.Hosts, Isolation: container.Isolation(c.Isolation), Sysctls: c.Sysctls,
		CapabilityAdd: c.CapabilityAdd, CapabilityDrop: c.CapabilityDrop, OomScoreAdj: c.OomScoreAdj,
		Privileges: dockerPrivileges(c.Privileges),
		Mounts:     each(c.Mounts, dockerMount),
		Secrets:    each(c.Secrets, dockerSecretReference),
		Configs:    each(c.Configs, dockerConfigReference),
		Ulimits:    each(c.Ulimits, func(u *musterv1.Ulimit) *units.Ulimit { return &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard} }),
	}
	if h := c.Healthcheck; h != nil {
		out.Healthcheck = &container.HealthConfig{
			Test: h.Test, Interval: h.Interval.AsDuration(), Timeout: h.Timeout.AsDuration(), StartPeriod: h.StartPeriod.AsDuration(),
			StartInterval: h.StartInterval.AsDuration(), Retries: int(h.Retries),
		}
	}
	if d := c.DnsConfig; d != nil {
		out.DNSConfig = &swarm.DNSConfig{Search: d.Search, Options: d.Options}
		for _, n := range d.Nameservers {
			if a, err := netip.ParseAddr(n); err == nil {
				out.DNSConfig.Nameservers = append(out.DNSConfig.Nameservers, a)
			}
		}
	}
	return out
}

func dockerSecretReference(r *musterv1.SecretReference) *swarm.SecretReference {
	out := &swarm.SecretReference{SecretID: r.SecretId, SecretName: r.SecretName}
	// Clients read its fields without asking whether it is there.
	file := r.GetFile()
	if file == nil {
		file = &musterv1.FileTarget{Name: r.SecretName, Uid: "0", Gid: "0", Mode: defaultFileMode}
	}
	out.File = &swarm.SecretReferenceFileTarget{Name: file.Name, UID: file.Uid, GID: file.Gid, Mode: fileMode(file.Mode)}
	return out
}

func dockerConfigReference(r *musterv1.ConfigReference) *swarm.ConfigReference {
	out := &swarm.ConfigReference{ConfigID: r.ConfigId, ConfigName: r.ConfigName}
	switch t := r.Target.(type) {
	case *musterv1.ConfigReference_File:
		out.File = &swarm.ConfigReferenceFileTarget{Name: t.File.Name, UID: t.File.Uid, GID: t.File.Gid, Mode: fileMode(t.File.Mode)}
	case *musterv1.ConfigReference_Runtime:
		out.Runtime = &swarm.ConfigReferenceRuntimeTarget{}
	default:
		out.File = &swarm.ConfigReferenceFileTarget{Name: r.ConfigName, UID: "0", GID: "0", Mode: defaultFileMode}
	}
	return out
}

func dockerPrivileges(p *musterv1.Privileges) *swarm.Privileges {
	if p == nil {
		return nil
	}
	out := &swarm.Privileges{NoNewPrivileges: p.NoNewPrivileges}
	if c := p.CredentialSpec; c != nil {
		out.CredentialSpec = &swarm.CredentialSpec{Config: c.GetConfig(), File: c.GetFile(), Registry: c.GetRegistry()}
	}
	if s := p.SelinuxContext; s != nil {
		out.SELinuxContext = &swarm.SELinuxContext{Disable: s.Disable, User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
	}
	if s := p.Seccomp; s != nil {
		out.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompMode(seccompModes.docker(s.Mode)), Profile: s.Profile}
	}
	if a := p.Apparmor; a != nil {
		out.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorMode(apparmorModes.docker(a.Mode))}
	}
	return out
}
