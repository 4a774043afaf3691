package validate

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/seal"
)

const (
	maxHostname = 253
	// maxAuth bounds a registry credential; those of cloud registries have some
	// kilobytes.
	maxAuth = 64 << 10
)

func (v *Validator) container(r *Report, field string, c *musterv1.ContainerSpec) {
	checkImage(r, field+".image", c.Image)
	checkLabels(r, field+".labels", c.Labels)
	checkTexts(r, field+".command", c.Command)
	checkTexts(r, field+".args", c.Args)
	checkTexts(r, field+".groups", c.Groups)
	checkEnv(r, field+".env", c.Env)
	checkText(r, field+".dir", c.Dir)
	checkText(r, field+".user", c.User)
	if h := c.Hostname; h != "" && !strings.Contains(h, "{{") && (len(h) > maxHostname || !v.pattern.hostname.MatchString(h)) {
		r.Invalid(field+".hostname", "is not a host name")
	}
	if c.StopSignal != "" && !v.pattern.signal.MatchString(c.StopSignal) {
		r.Invalid(field+".stopSignal", `is not a signal: use a name like "SIGTERM" or a number`)
	}
	switch c.Isolation {
	case "", "default", "process", "hyperv":
	default:
		r.Invalid(field+".isolation", `must be "default", "process" or "hyperv"`)
	}
	if n := len(c.GetPullOptions().GetRegistryAuth()); n > maxAuth {
		r.Invalid(field+".pullOptions.registryAuth", "has %d bytes; at most %d are allowed", n, maxAuth)
	}
	if c.OomScoreAdj < -1000 || c.OomScoreAdj > 1000 {
		r.Invalid(field+".oomScoreAdj", "must be from -1000 to 1000")
	}
	checkMounts(r, field+".mounts", c.Mounts)
	checkHosts(r, field+".hosts", c.Hosts)
	checkDNS(r, field+".dnsConfig", c.DnsConfig)
	checkHealth(r, field+".healthcheck", c.Healthcheck)
	checkLabels(r, field+".sysctls", c.Sysctls)
	v.capabilities(r, field+".capabilityAdd", c.CapabilityAdd)
	v.capabilities(r, field+".capabilityDrop", c.CapabilityDrop)
	checkUlimits(r, field+".ulimits", c.Ulimits)
	checkPrivileges(r, field+".privileges", c.Privileges)
}

func checkImage(r *Report, field, image string) {
	if image == "" {
		r.Invalid(field, "is required")
		return
	}
	_, err := reference.ParseNormalizedNamed(image)
	switch {
	case err == nil:
	case errors.Is(err, reference.ErrNameContainsUppercase):
		r.Invalid(field, "%q is not an image reference: the repository must be in lower case", short(image))
	case errors.Is(err, reference.ErrNameTooLong):
		r.Invalid(field, "the image's name is longer than %d characters", reference.RepositoryNameTotalLengthMax)
	default:
		r.Invalid(field, "%q is not an image reference", short(image))
	}
}

func checkEnv(r *Report, field string, env []string) {
	if len(env) > maxList {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(env), maxList)
		return
	}
	for i, e := range env {
		at := Indexed(field, i)
		checkText(r, at, e)
		key, value, _ := strings.Cut(e, "=")
		switch {
		case key == "":
			r.Invalid(at, `must be "KEY=value"`)
		case seal.IsStandIn(value):
			r.Invalid(at, "is what stands in the store for a sealed value, and not the value: read the service again, with an apid of this version")
		}
	}
}

func checkHosts(r *Report, field string, hosts []string) {
	for i, h := range hosts {
		words := strings.Fields(h)
		if len(words) < 2 {
			r.Invalid(Indexed(field, i), `must be "IP host..."`)
			continue
		}
		if _, err := netip.ParseAddr(words[0]); err != nil {
			r.Invalid(Indexed(field, i), "%q is not an IP address", short(words[0]))
		}
	}
}

func checkDNS(r *Report, field string, d *musterv1.DNSConfig) {
	for i, n := range d.GetNameservers() {
		if _, err := netip.ParseAddr(n); err != nil {
			r.Invalid(Indexed(field+".nameservers", i), "%q is not an IP address", short(n))
		}
	}
	checkTexts(r, field+".search", d.GetSearch())
	checkTexts(r, field+".options", d.GetOptions())
}

func checkHealth(r *Report, field string, h *musterv1.HealthConfig) {
	if h == nil {
		return
	}
	checkTexts(r, field+".test", h.Test)
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE":
			if len(h.Test) > 1 {
				r.Invalid(field+".test", `"NONE" takes no command`)
			}
		case "CMD":
			if len(h.Test) < 2 {
				r.Invalid(field+".test", `"CMD" needs a command`)
			}
		case "CMD-SHELL":
			if len(h.Test) != 2 {
				r.Invalid(field+".test", `"CMD-SHELL" needs exactly one command line`)
			}
		default:
			r.Invalid(field+".test", `must begin with "NONE", "CMD" or "CMD-SHELL"`)
		}
	}
	least := func(name string, d *durationpb.Duration) {
		if d.IsValid() && d.AsDuration() > 0 && d.AsDuration() < time.Millisecond {
			r.Invalid(field+"."+name, "must be 0 or at least 1 ms")
		}
	}
	least("interval", h.Interval)
	least("timeout", h.Timeout)
	least("startPeriod", h.StartPeriod)
	least("startInterval", h.StartInterval)
}

func (v *Validator) capabilities(r *Report, field string, list []string) {
	for i, c := range list {
		if !v.pattern.capability.MatchString(c) {
			r.Invalid(Indexed(field, i), `is not a capability: use a name like "CAP_NET_ADMIN"`)
		}
	}
}

func checkUlimits(r *Report, field string, list []*musterv1.Ulimit) {
	seen := map[string]bool{}
	for i, u := range list {
		at := Indexed(field, i)
		switch {
		case u.Name == "":
			r.Invalid(at+".name", "is required")
		case seen[u.Name]:
			r.Invalid(at+".name", "%q is given twice", short(u.Name))
		}
		seen[u.Name] = true
		if u.Soft < -1 || u.Hard < -1 {
			r.Invalid(at, "soft and hard must be -1 (no limit), 0 or more")
		} else if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
			r.Invalid(at+".soft", "must not be more than hard")
		}
	}
}

func checkPrivileges(r *Report, field string, p *musterv1.Privileges) {
	s := p.GetSeccomp()
	if s == nil {
		return
	}
	custom := s.Mode == musterv1.SeccompOpts_CUSTOM
	switch {
	case custom && len(s.Profile) == 0:
		r.Invalid(field+".seccomp.profile", "is required in mode CUSTOM")
	case !custom && len(s.Profile) > 0:
		r.Invalid(field+".seccomp.profile", "is for mode CUSTOM only")
	}
}
