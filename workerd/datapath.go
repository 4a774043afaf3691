package workerd

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/taskdb"
)

// lookUpTimeout bounds the search for the address of a dispatcher.
const lookUpTimeout = time.Second

// networks returns the networks of the node.
func (w *Worker) networks(ctx context.Context, cfg networks.Config, store *taskdb.DB) (*networks.Networks, error) {
	if cfg.Plugins == nil {
		var err error
		if cfg.Plugins, err = network.NewFixed(ctx); err != nil {
			return nil, err
		}
	}
	if store != nil {
		cfg.Store, cfg.KeyFile = store, filepath.Join(w.cfg.DataDir, "network-key")
	}
	return networks.New(cfg), nil
}

func (c *Config) dataPathPort() uint32 {
	if c.DataPathPort != 0 {
		return uint32(c.DataPathPort)
	}
	return defaults.DataPathPort
}

// dataPathAddress returns the address at which other nodes reach this one: that of its
// connection to a dispatcher. If that is a loopback address, it is the address from which
// the machine reaches another dispatcher, because other nodes do not reach a loopback
// address; if all dispatchers are on loopback addresses, so are all nodes. Local is nil
// before there is a connection.
func dataPathAddress(local net.Addr, dispatchers []string) netip.Addr {
	address := addressOf(local)
	if local != nil && !address.IsLoopback() {
		return address
	}
	for _, dispatcher := range dispatchers {
		// This sends nothing: it only asks the kernel for the way.
		conn, err := (&net.Dialer{Timeout: lookUpTimeout}).Dial("udp", dispatcher)
		if err != nil {
			continue
		}
		other := addressOf(conn.LocalAddr())
		_ = conn.Close()
		if other.IsValid() && !other.IsLoopback() {
			return other
		}
		if !address.IsValid() {
			address = other
		}
	}
	return address
}

// numeric returns those addresses whose host is an IP address.
func numeric(addresses []string) []string {
	return slices.DeleteFunc(slices.Clone(addresses), func(a string) bool {
		_, err := netip.ParseAddrPort(a)
		return err != nil
	})
}

// addressOf returns the IP address of an address with a port, if it has one.
func addressOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	parsed, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return parsed.Addr().Unmap().WithZone("")
}
