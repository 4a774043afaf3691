package cluster

import (
	"context"
	"net"
	"strconv"

	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/network"
)

// firstPort is the port of the first manager on a host of its own. Consul's servers start
// at firstConsulPort.
const (
	firstPort       = 7700
	firstConsulPort = 8500
)

// host returns the host with a number, counted from 0. Nil means this machine.
func (cfg *Config) host(number int) *network.Host {
	if cfg.Net == nil {
		return nil
	}
	return cfg.Net.Hosts()[number]
}

// place returns the place of one of Consul's servers.
func (cfg *Config) place(number int) consultest.Place {
	h := cfg.host(number)
	if h == nil {
		return consultest.Here()
	}
	p := consultest.Place{Address: h.Address, Command: h.Command(), Dial: cfg.Net.DialContext}
	for port := range 4 {
		p.Ports = append(p.Ports, firstConsulPort+port)
	}
	return p
}

// dial connects to one of the cluster's processes.
func (cfg *Config) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if cfg.Net != nil {
		return cfg.Net.DialContext(ctx, network, address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// addresses chooses where everything listens.
func (cfg *Config) addresses() (map[string]string, error) {
	chosen := map[string]string{}
	var free []string
	for number := range cfg.Replicas {
		var names []string
		for _, daemon := range managers {
			name := Replica(daemon, number+1)
			names = append(names, name, "ops/"+name)
			if daemon == "apid" {
				names = append(names, "rest/"+name)
			}
		}
		if cfg.Net == nil {
			free = append(free, names...)
			continue
		}
		for i, name := range names {
			chosen[name] = net.JoinHostPort(cfg.host(number).Address, strconv.Itoa(firstPort+i))
		}
	}
	// All at once, so that no address is chosen twice.
	free = append(free, "ops/dev")
	found, err := network.FreeAddresses(network.Loopback(), len(free))
	if err != nil {
		return nil, err
	}
	for i, name := range free {
		chosen[name] = found[i]
	}
	return chosen, nil
}
