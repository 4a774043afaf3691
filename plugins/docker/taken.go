package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

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
