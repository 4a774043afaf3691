package consultest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/test/kit/network"
)

// Place is where a server runs.
type Place struct {
	// Address is the IP address that it listens at.
	Address string
	// Command is put before the server's own, to enter the place.
	Command []string
	// Dial reaches the place from the test.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Ports are the ports that the server may use. No other program may use them. Without
	// them it uses free ports of this machine.
	Ports []int
}

// Here returns this machine, at an address of its own.
func Here() Place {
	return Place{Address: network.Loopback(), Dial: (&net.Dialer{}).DialContext}
}

// freePorts finds ports without a listener.
func (p Place) freePorts(n int) ([]int, error) {
	if len(p.Ports) >= n {
		return p.Ports[:n], nil
	}
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(p.Address, "0"))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// Cluster is several servers that form one Consul.
type Cluster struct{ servers []*Server }

// RunCluster starts a server at each place, and waits until they form one cluster and have
// a leader. The caller stops it.
func RunCluster(dir string, places []Place, settings ...string) (*Cluster, error) {
	binary, err := exec.LookPath("consul")
	if err != nil {
		return nil, fmt.Errorf("find consul: %w", err)
	}
	// Another program may take a free port before the server does.
	for range 3 {
		var c *Cluster
		if c, err = newCluster(binary, dir, places, settings); err != nil {
			return nil, err
		}
		if err = c.Restart(); err == nil {
			return c, nil
		}
		err = errors.Join(err, c.Kill())
	}
	return nil, err
}

func newCluster(binary, dir string, places []Place, settings []string) (*Cluster, error) {
	c := &Cluster{}
	for i, at := range places {
		node, home := "test", dir
		if len(places) > 1 {
			node = "consul-" + strconv.Itoa(i+1)
			home = filepath.Join(dir, node)
		}
		s, err := newServer(binary, home, node, at, settings)
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		// A server that was dead for a moment keeps its vote: see docs/operations.md.
		s.args = append(s.args, "-bootstrap-expect="+strconv.Itoa(len(places)), fmt.Sprintf("-hcl=autopilot { min_quorum = %d }", len(places)))
		for _, other := range c.servers {
			if other != s {
				s.args = append(s.args, "-retry-join="+other.serf, "-retry-interval=1s")
			}
		}
	}
	return c, nil
}

// Servers returns all servers.
func (c *Cluster) Servers() []*Server { return c.servers }

// Addresses returns the addresses of all servers' HTTP APIs, separated by commas, beginning
// with one server's.
func (c *Cluster) Addresses(first int) string {
	all := make([]string, len(c.servers))
	for i := range c.servers {
		all[i] = c.servers[(first+i)%len(c.servers)].Address
	}
	return strings.Join(all, ",")
}

// Leader waits until one of the servers says that it is the leader, and returns it.
func (c *Cluster) Leader(ctx context.Context) (*Server, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, s := range c.servers {
			if leads, err := s.leads(ctx); err == nil && leads {
				return s, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("find consul's leader: %w", ctx.Err())
		}
	}
}

// Restart starts all servers, after Kill for example, and waits until they have a leader
// and know each other.
func (c *Cluster) Restart() error {
	for _, s := range c.servers {
		if err := s.Start(); err != nil {
			return err
		}
	}
	for _, s := range c.servers {
		if err := s.waitForLeader(); err != nil {
			return err
		}
	}
	return nil
}

// Replace kills all servers, deletes their data, and starts new ones in their places, as
// after the loss of all machines.
func (c *Cluster) Replace() error {
	if err := c.Kill(); err != nil {
		return err
	}
	for _, s := range c.servers {
		if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
			return fmt.Errorf("throw a server's data away: %w", err)
		}
	}
	return c.Restart()
}

// Kill kills all servers. Their data stays, for Restart.
func (c *Cluster) Kill() error { return c.each((*Server).Kill) }

// Stop ends all servers. A single one ends in order. Several are killed, because each would
// wait for a majority that ends as well.
func (c *Cluster) Stop() error {
	if len(c.servers) > 1 {
		return c.Kill()
	}
	return c.each((*Server).Stop)
}

// Pause stops all servers' processes with SIGSTOP.
func (c *Cluster) Pause() error { return c.each((*Server).Pause) }

// Resume lets paused servers continue.
func (c *Cluster) Resume() error { return c.each((*Server).Resume) }

func (c *Cluster) each(do func(*Server) error) error {
	var errs []error
	for _, s := range c.servers {
		if s.process != nil {
			errs = append(errs, do(s))
		}
	}
	return errors.Join(errs...)
}
