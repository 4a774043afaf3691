package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/go-connections/nat"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

var protocols = map[musterv1.PortConfig_Protocol]string{
	musterv1.PortConfig_PROTOCOL_UNSPECIFIED: "tcp",
	musterv1.PortConfig_TCP:                  "tcp",
	musterv1.PortConfig_UDP:                  "udp",
	musterv1.PortConfig_SCTP:                 "sctp",
}

// ports are those that a task publishes on its node. A port for which none
// outside was chosen gets one from the Engine.
func ports(configs []*sdk.Port) (nat.PortSet, nat.PortMap, error) {
	exposed, bindings := nat.PortSet{}, nat.PortMap{}
	for _, config := range configs {
		if config.GetPublishMode() != musterv1.PortConfig_HOST {
			continue
		}
		port, err := enginePort(config)
		if err != nil {
			return nil, nil, err
		}
		binding := nat.PortBinding{}
		if published := config.GetPublishedPort(); published != 0 {
			binding.HostPort = strconv.FormatUint(uint64(published), 10)
		}
		exposed[port] = struct{}{}
		bindings[port] = append(bindings[port], binding)
	}
	return exposed, bindings, nil
}

func enginePort(config *sdk.Port) (nat.Port, error) {
	protocol, ok := protocols[config.GetProtocol()]
	if !ok {
		return "", sdk.SpecFault("ports", fmt.Errorf("the protocol %s is not known", config.GetProtocol()))
	}
	return nat.Port(fmt.Sprintf("%d/%s", config.GetTargetPort(), protocol)), nil
}

// heldPorts are the ports that a running container holds on its node.
func heldPorts(configs []*sdk.Port, found *container.InspectResponse) []*sdk.Port {
	if found.NetworkSettings == nil {
		return nil
	}
	var all []*sdk.Port
	taken := map[nat.PortBinding]bool{}
	for _, config := range configs {
		port, err := enginePort(config)
		if err != nil || config.GetPublishMode() != musterv1.PortConfig_HOST {
			continue
		}
		bindings := slices.Clone(found.NetworkSettings.Ports[port])
		// An Engine with IPv6 lists a port twice, and with two numbers if it chose
		// them and could not have the same: that of IPv4 counts. And a target may be
		// published more than once: each goes to the port that asked for it.
		slices.SortStableFunc(bindings, func(a, b nat.PortBinding) int { return strings.Count(a.HostIP, ":") - strings.Count(b.HostIP, ":") })
		for _, binding := range bindings {
			number, err := strconv.ParseUint(binding.HostPort, 10, 16)
			key := nat.PortBinding{HostIP: string(port), HostPort: binding.HostPort}
			if err != nil || taken[key] || (config.GetPublishedPort() != 0 && uint64(config.GetPublishedPort()) != number) {
				continue
			}
			taken[key] = true
			all = append(all, &sdk.Port{
				Name: config.GetName(), Protocol: config.GetProtocol(), PublishMode: config.GetPublishMode(),
				TargetPort: config.GetTargetPort(), PublishedPort: uint32(number),
			})
			break
		}
	}
	return all
}

// taken returns an error that names the first host port of a task that the Engine
// cannot publish, because a container or another process has it; nil if there is
// none. The Engine's own words on it are long, and do not say who has the port.
func (e *Executor) taken(ctx context.Context, own string, ports []*sdk.Port) error {
	for _, p := range ports {
		if p.GetPublishMode() != musterv1.PortConfig_HOST || p.GetPublishedPort() == 0 {
			continue
		}
		protocol := protocols[p.GetProtocol()]
		port := fmt.Sprintf("%d/%s", p.GetPublishedPort(), protocol)
		others, err := e.engine.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("publish", port))})
		if err != nil {
			// What the Engine said first is more to the point.
			return nil
		}
		for _, c := range others {
			if c.ID != own && len(c.Names) > 0 {
				return fmt.Errorf("host port %s is taken by container %s: publish another port, or remove that container",
					port, strings.TrimPrefix(c.Names[0], "/"))
			}
		}
		if bound(ctx, protocol, p.GetPublishedPort()) {
			return fmt.Errorf("host port %s is taken by another process of the machine: publish another port, or stop that process", port)
		}
	}
	return nil
}

// bound reports whether a process has a port of this machine.
func bound(ctx context.Context, protocol string, port uint32) bool {
	address := fmt.Sprintf(":%d", port)
	var closer interface{ Close() error }
	var err error
	switch protocol {
	case "tcp":
		closer, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	case "udp":
		closer, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	default:
		return false
	}
	if err != nil {
		return errors.Is(err, syscall.EADDRINUSE)
	}
	_ = closer.Close()
	return false
}
