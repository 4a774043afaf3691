package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

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

// withValues refuses keys without a value, besides those that may stand alone.
func withValues(flag string, values []string, alone ...string) error {
	for _, v := range values {
		if v != "" && !strings.Contains(v, "=") && !slices.Contains(alone, v) {
			return usage("--%s: %q has no value; want key=value", flag, v)
		}
	}
	return nil
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
	text := v
	if !strings.Contains(v, "=") {
		ports, protocol, given := strings.Cut(v, "/")
		published, target, both := cutLast(ports, ":")
		if !both {
			published = "0"
		}
		if address, port, given := cutLast(published, ":"); given {
			return nil, usage("--publish: %q: a port cannot be published on the address %s only, because nodes publish ports on all their addresses: "+
				"give %s:%s, and restrict who may reach the port with a firewall", v, address, port, target)
		}
		text = "published=" + published + ",target=" + target
		if given {
			text += ",protocol=" + protocol
		}
	}
	p := &musterv1.PortConfig{}
	err := parsePairs(text, p, "published=8080,target=80,protocol=tcp,mode=ingress", map[string]string{
		"name": "name", "published": "publishedPort", "target": "targetPort", "protocol": "protocol", "mode": "publishMode",
		"external-traffic": "externalTraffic", "proxy-protocol": "proxyProtocol",
	})
	port := p.TargetPort
	if port > 0 && port <= math.MaxUint16 {
		port = cmp.Or(p.PublishedPort, 1) // 0 asks for any, as leaving it out does
	}
	if err == nil && p.TargetPort == 0 && strings.Contains(v, "=") && !strings.Contains(v, "target=") {
		err = errors.New("target is missing: want published=8080,target=80")
	}
	if err == nil && (port == 0 || port > math.MaxUint16) {
		err = fmt.Errorf("invalid port \"%d\": want a number from 1 to 65535", port)
	}
	if err != nil {
		return nil, usage("--publish: %q: %w", v, err)
	}
	return p, nil
}

// cutLast cuts a text around the last separator. Without one, after is the whole text.
func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return "", text, false
	}
	return text[:i], text[i+len(separator):], true
}

// expandPorts writes each port of a range as one of its own: "8000-8001:80-81/tcp" is
// "8000:80/tcp" and "8001:81/tcp".
func expandPorts(flag string, values []string) ([]string, error) {
	var all []string
	for _, v := range values {
		ports, protocol, _ := strings.Cut(v, "/")
		published, target, both := cutLast(ports, ":")
		if strings.Contains(v, "=") || strings.Contains(published, ":") || !strings.Contains(ports, "-") {
			all = append(all, v)
			continue
		}
		to, err := portRange(target)
		if err != nil {
			return nil, usage("--%s: %q: %w", flag, v, err)
		}
		from, err := portRange(published)
		if both && err == nil && len(from) != len(to) {
			err = fmt.Errorf("%d published ports for %d ports of the tasks; want as many", len(from), len(to))
		}
		if both && err != nil {
			return nil, usage("--%s: %q: %w", flag, v, err)
		}
		for i, port := range to {
			text := strconv.Itoa(port)
			if both {
				text = strconv.Itoa(from[i]) + ":" + text
			}
			if protocol != "" {
				text += "/" + protocol
			}
			all = append(all, text)
		}
	}
	return all, nil
}

// portRange reads "80" or "80-83".
func portRange(text string) ([]int, error) {
	first, last, ranged := strings.Cut(text, "-")
	if !ranged {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	to, errLast := strconv.ParseUint(last, 10, 16)
	const most = 256
	if err != nil || errLast != nil || from == 0 || to < from || to-from >= most {
		return nil, fmt.Errorf("invalid port range %q: want for example 8000-8003, at most %d ports", text, most)
	}
	ports := make([]int, to-from+1)
	for i := range ports {
		ports[i] = int(from) + i
	}
	return ports, nil
}

// parseNetwork reads Docker's two forms: "back", and
// "name=back,alias=db,driver-opt=key=value".
func parseNetwork(v string) (*musterv1.NetworkAttachmentConfig, error) {
	n := &musterv1.NetworkAttachmentConfig{Target: v}
	if v == "" {
		return nil, usage("--network: a name is missing; want back, or name=back,alias=db")
	}
	if !strings.Contains(v, "=") {
		return n, nil
	}
	n.Target = ""
	for part := range strings.SplitSeq(v, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "name":
			n.Target = value
		case "alias":
			n.Aliases = append(n.Aliases, value)
		case "driver-opt":
			option, value, _ := strings.Cut(value, "=")
			if n.DriverOptions == nil {
				n.DriverOptions = map[string]string{}
			}
			n.DriverOptions[option] = value
		default:
			return nil, usage("--network: %q: there is no %q; want name=back,alias=db,driver-opt=key=value", v, key)
		}
	}
	if n.Target == "" {
		return nil, usage("--network: %q has no name; want name=back,alias=db", v)
	}
	return n, nil
}

// networkTarget returns the network of one that is written as --network takes it.
func networkTarget(v string) (string, error) {
	n, err := parseNetwork(v)
	return n.GetTarget(), err
}

// portTarget returns the target of a port that is written as --publish takes it.
func portTarget(v string) (string, error) {
	p, err := parsePort(v)
	return strconv.FormatUint(uint64(p.GetTargetPort()), 10), err
}

// parsePairs reads "key=value,key" into the fields of a message that the keys stand for.
// A key alone turns something on.
func parsePairs(v string, into proto.Message, example string, paths map[string]string) error {
	for part := range strings.SplitSeq(v, ",") {
		key, text, given := strings.Cut(part, "=")
		if paths[key] == "" {
			return fmt.Errorf("there is no %q; want %s", key, example)
		}
		m, field := fieldOf(into.ProtoReflect(), paths[key])
		if !given && field.Kind() == protoreflect.BoolKind {
			text = "true"
		}
		value, err := readValue(field, text)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		m.Set(field, value)
	}
	return nil
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
