//go:build linux

package process

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// portAttempts is how many numbers are tried to find a free port.
const portAttempts = 50

// errSCTP is why no port is chosen for SCTP: Go cannot tell which ports are free.
var errSCTP = errors.New("the process executor chooses free ports for TCP and UDP only; set publishedPort")

// choosesPorts reports whether a port has to be chosen for a task. The worker publishes the
// ports of networked tasks.
func choosesPorts(task *sdk.Task) bool {
	return !task.GetNetworked() && slices.ContainsFunc(task.GetPorts(), func(p *sdk.Port) bool {
		return p.GetPublishMode() == musterv1.PortConfig_HOST && p.GetPublishedPort() == 0
	})
}

// choosePorts returns the ports that a task publishes on its node. A process uses the
// node's own network. If the spec leaves the published port open, a free one is chosen. The
// process must listen on the number in MUSTER_PORT_<target port>. If choosesPorts returns
// true, the caller must hold e.choosing until the choice is recorded.
func (e *Executor) choosePorts(ports []*sdk.Port) ([]taskdir.Port, error) {
	host := []taskdir.Port{}
	for _, port := range ports {
		if port.GetPublishMode() == musterv1.PortConfig_HOST {
			host = append(host, taskdir.Port{
				Name: port.GetName(), Protocol: int32(port.GetProtocol()), Target: port.GetTargetPort(), Published: port.GetPublishedPort(),
			})
		}
	}
	var taken map[uint32]bool
	for i := range host {
		if host[i].Published != 0 {
			continue
		}
		if taken == nil {
			var err error
			if taken, err = e.takenPorts(host); err != nil {
				return nil, err
			}
		}
		// All protocols of a target port get one number, because the process gets one.
		target := host[i].Target
		var networks []string
		for _, port := range host[i:] {
			if port.Target != target || port.Published != 0 {
				continue
			}
			network, err := network(port)
			if err != nil {
				return nil, err
			}
			networks = append(networks, network)
		}
		number, err := freePort(networks, taken)
		if err != nil {
			return nil, sdk.NodeFault(fmt.Errorf("choose a port of the node for port %d: %w", target, err))
		}
		taken[number] = true
		for j := range host {
			if host[j].Target == target && host[j].Published == 0 {
				host[j].Published = number
			}
		}
	}
	return host, nil
}

// takenPorts returns the ports of other tasks, which may not listen yet, and the ports that
// this task's spec names.
func (e *Executor) takenPorts(own []taskdir.Port) (map[uint32]bool, error) {
	taken := map[uint32]bool{}
	for _, port := range own {
		taken[port.Published] = true
	}
	dirs, err := e.root.List()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		// A task without a readable spec has no port to listen on.
		spec, err := dir.Spec()
		if err != nil {
			continue
		}
		for _, port := range spec.Ports {
			taken[port.Published] = true
		}
	}
	return taken, nil
}

// network returns a protocol's name in package net.
func network(port taskdir.Port) (string, error) {
	switch musterv1.PortConfig_Protocol(port.Protocol) {
	case musterv1.PortConfig_PROTOCOL_UNSPECIFIED, musterv1.PortConfig_TCP:
		return "tcp", nil
	case musterv1.PortConfig_UDP:
		return "udp", nil
	default:
		return "", sdk.SpecFault("ports", errSCTP)
	}
}

// freePort returns a number that is free in all networks and not taken.
func freePort(networks []string, taken map[uint32]bool) (uint32, error) {
	for range portAttempts {
		number, err := probe(networks[0], 0)
		if err != nil {
			return 0, err
		}
		if taken[number] {
			continue
		}
		inUse := slices.ContainsFunc(networks[1:], func(network string) bool {
			_, err := probe(network, number)
			return network != networks[0] && err != nil
		})
		if !inUse {
			return number, nil
		}
	}
	return 0, fmt.Errorf("no free port was found in %d attempts", portAttempts)
}

// probe listens on a port for a moment and returns its number. If the number is 0 it
// chooses any free port.
func probe(network string, number uint32) (uint32, error) {
	address := net.JoinHostPort("", strconv.FormatUint(uint64(number), 10))
	var at net.Addr
	var listener io.Closer
	if network == "udp" {
		conn, err := net.ListenPacket(network, address)
		if err != nil {
			return 0, err
		}
		at, listener = conn.LocalAddr(), conn
	} else {
		l, err := net.Listen(network, address)
		if err != nil {
			return 0, err
		}
		at, listener = l.Addr(), l
	}
	chosen, err := netip.ParseAddrPort(at.String())
	if err := errors.Join(err, listener.Close()); err != nil {
		return 0, fmt.Errorf("close %s: %w", at, err)
	}
	return uint32(chosen.Port()), nil
}

// heldPorts returns the ports of a prepared task.
func heldPorts(dir taskdir.Dir, task *sdk.Task) ([]*sdk.Port, error) {
	spec, err := dir.Spec()
	if errors.Is(err, taskdir.ErrDamaged) {
		// The machine was restarted. No process of the task listens.
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var held []*sdk.Port
	if spec.Ports == nil {
		// An earlier version prepared the task. It passed the target port to the process if
		// the spec left the published port open.
		for _, port := range task.GetPorts() {
			if port.GetPublishMode() == musterv1.PortConfig_HOST {
				published := port.GetPublishedPort()
				if published == 0 {
					published = port.GetTargetPort()
				}
				held = append(held, &sdk.Port{
					Name: port.GetName(), Protocol: port.GetProtocol(), PublishMode: port.GetPublishMode(),
					TargetPort: port.GetTargetPort(), PublishedPort: published,
				})
			}
		}
		return held, nil
	}
	for _, port := range spec.Ports {
		held = append(held, &sdk.Port{
			Name: port.Name, Protocol: musterv1.PortConfig_Protocol(port.Protocol), PublishMode: musterv1.PortConfig_HOST,
			TargetPort: port.Target, PublishedPort: port.Published,
		})
	}
	return held, nil
}
