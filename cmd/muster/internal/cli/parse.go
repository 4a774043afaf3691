package cli

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// parseLabels reads "key=value" or "key".
func parseLabels(flag string, values []string) (map[string]string, error) {
	labels := make(map[string]string, len(values))
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		if key == "" {
			return nil, usage("--%s: %q has no key; want key=value", flag, v)
		}
		labels[key] = value
	}
	return labels, nil
}

// parseEnv reads "KEY=value"; "KEY" alone takes the value from this
// process's own environment, as Docker does.
func parseEnv(flag string, values []string) ([]string, error) {
	env := make([]string, 0, len(values))
	for _, v := range values {
		key, _, given := strings.Cut(v, "=")
		if key == "" {
			return nil, usage("--%s: %q has no name; want NAME=value", flag, v)
		}
		if !given {
			value, ok := os.LookupEnv(key)
			if !ok {
				continue
			}
			v = key + "=" + value
		}
		env = append(env, v)
	}
	return env, nil
}

// parsePort reads Docker's two forms: "published:target/protocol", and
// "published=8080,target=80,protocol=tcp,mode=host".
func parsePort(v string) (*musterv1.PortConfig, error) {
	p := &musterv1.PortConfig{}
	fields := map[string]string{}
	if strings.Contains(v, "=") {
		for _, part := range strings.Split(v, ",") {
			key, value, ok := strings.Cut(part, "=")
			if !ok || !slices.Contains([]string{"name", "published", "target", "protocol", "mode"}, key) {
				return nil, usage("--publish: %q: there is no %q; want published=8080,target=80,protocol=tcp,mode=host", v, part)
			}
			fields[key] = value
		}
	} else {
		ports, protocol, _ := strings.Cut(v, "/")
		fields["protocol"] = protocol
		if published, target, ok := strings.Cut(ports, ":"); ok {
			fields["published"], fields["target"] = published, target
		} else {
			fields["target"] = ports
		}
	}
	var err error
	if p.TargetPort, err = portNumber(fields["target"]); err != nil {
		return nil, usage("--publish: %q: target: %w", v, err)
	}
	// Docker's "0" asks for any port, as leaving it out does.
	if fields["published"] != "" && fields["published"] != "0" {
		if p.PublishedPort, err = portNumber(fields["published"]); err != nil {
			return nil, usage("--publish: %q: published: %w", v, err)
		}
	}
	p.Name = fields["name"]
	if s := fields["protocol"]; s != "" {
		n := enumValue(p.Protocol.Descriptor(), s)
		if n == nil {
			return nil, usage("--publish: %q: protocol %q: want tcp, udp or sctp", v, s)
		}
		p.Protocol = musterv1.PortConfig_Protocol(n.Number())
	}
	if s := fields["mode"]; s != "" {
		n := enumValue(p.PublishMode.Descriptor(), s)
		if n == nil {
			return nil, usage("--publish: %q: mode %q is neither host nor ingress", v, s)
		}
		p.PublishMode = musterv1.PortConfig_PublishMode(n.Number())
	}
	return p, nil
}

// portTarget returns the target of a port that is written as --publish takes it.
func portTarget(v string) (string, error) {
	p, err := parsePort(v)
	return strconv.FormatUint(uint64(p.GetTargetPort()), 10), err
}

func portNumber(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("invalid port %q: want a number from 1 to 65535", s)
	}
	return uint32(n), nil
}

// parseMount reads Docker's "type=bind,source=/a,target=/b,readonly".
func parseMount(v string) (*musterv1.Mount, error) {
	m := &musterv1.Mount{Type: musterv1.Mount_VOLUME}
	for _, part := range strings.Split(v, ",") {
		key, value, given := strings.Cut(part, "=")
		switch key {
		case "type":
			n := enumValue(m.Type.Descriptor(), value)
			if n == nil {
				return nil, usage("--mount: %q: type %q: want bind, volume or tmpfs", v, value)
			}
			m.Type = musterv1.Mount_Type(n.Number())
		case "source", "src":
			m.Source = value
		case "target", "dst", "destination":
			m.Target = value
		case "readonly", "ro":
			on := true
			if given {
				var err error
				if on, err = strconv.ParseBool(value); err != nil {
					return nil, usage("--mount: %q: readonly is true or false", v)
				}
			}
			m.ReadOnly = on
		case "tmpfs-size":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return nil, usage("--mount: %q: tmpfs-size is a number of bytes", v)
			}
			m.TmpfsOptions = &musterv1.TmpfsOptions{SizeBytes: n}
		case "bind-propagation":
			m.BindOptions = &musterv1.BindOptions{Propagation: value}
		default:
			return nil, usage("--mount: %q: there is no %q; want type=bind,source=/from,target=/to,readonly", v, key)
		}
	}
	return m, nil
}

// parseUlimit reads Docker's "nofile=1024:2048".
func parseUlimit(v string) (*musterv1.Ulimit, error) {
	name, numbers, ok := strings.Cut(v, "=")
	soft, hard, both := strings.Cut(numbers, ":")
	if !both {
		hard = soft
	}
	s, serr := strconv.ParseInt(soft, 10, 64)
	h, herr := strconv.ParseInt(hard, 10, 64)
	if !ok || name == "" || serr != nil || herr != nil {
		return nil, usage("--ulimit: %q: want name=soft:hard", v)
	}
	return &musterv1.Ulimit{Name: name, Soft: s, Hard: h}, nil
}

// parseAll applies a parser to each value of a flag.
func parseAll[T any](values []string, parse func(string) (T, error)) ([]T, error) {
	parsed := make([]T, 0, len(values))
	for _, v := range values {
		p, err := parse(v)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, p)
	}
	return parsed, nil
}
