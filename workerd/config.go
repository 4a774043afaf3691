package workerd

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/api/nodeid"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// Env is what a worker is given to work with. It needs no store: all that it
// knows of the cluster comes from its dispatcher.
type Env struct {
	Logger *zap.Logger
	// Metrics takes the worker's metrics. Nil: they are not registered, as is
	// right for many workers in one process.
	Metrics prometheus.Registerer
	// Tracer makes spans of what the worker does for tasks that are traced. Nil:
	// none are made.
	Tracer *tracing.Tracer
	// Dial connects to a dispatcher with the worker's credentials. It does not
	// block; the worker closes the connection. It should keep connections
	// alive by pings, so that a dead peer is noticed.
	Dial func(address string) (*grpc.ClientConn, error)
	// Executors run the tasks. Nil: the plugins that Config tells of.
	Executors executor.Set
	// Networks are the network plugins. Nil: the plugins that Config tells of, or none if
	// Executors is set.
	Networks network.Set
	// Version is reported as the worker's.
	Version string
}

// Config is a worker's settings.
type Config struct {
	// NodeID names the node. Empty: the id in the data directory, which is made
	// when there is none. Without a data directory a new one each time.
	NodeID string
	// Hostname is reported as the node's name. Empty: the machine's.
	Hostname string
	// Labels are reported as engine labels.
	Labels map[string]string
	// DataDir keeps the node id, the tasks, and what executors keep. Empty: all
	// is in memory, and a worker that starts again is a new one. Only one
	// worker at a time can use a directory.
	DataDir string
	// RuntimeDir holds the secrets and configs of tasks in files on a tmpfs, which is
	// mounted there if it is on none. Workers of a machine may share it. Empty: tasks with
	// secrets or configs cannot run here. See [DefaultRuntimeDir].
	RuntimeDir string
	// Dispatchers are addresses, "host:port", of which one must answer for the
	// worker to learn of all others.
	Dispatchers []string
	// Resources is what the node has for tasks. Nil, or a field that is 0: what
	// the machine has. Generic resources are added to those of executors.
	Resources *musterv1.Resources
	// Machine names the machine, the same for all workers on it: they share its host
	// ports, and its CPUs and memory as far as Resources does not give the node its
	// own. Empty: the node shares nothing. See [MachineID].
	Machine string
	// DataPathAddress is the address to which other nodes send the traffic of networks.
	// Empty: that from which the worker reaches its dispatcher.
	DataPathAddress string
	// DataPathPort is the UDP port for that traffic. 0: 4789. Each worker on a machine needs
	// a port of its own.
	DataPathPort int
	// Plugins says which executors and network plugins to start, unless Env has some.
	Plugins pluginhost.Config
	// DescribeInterval is how often executors are asked how they are. Shorter
	// notices a sick executor sooner, at the cost of one call each.
	DescribeInterval time.Duration
	// WelcomeTimeout bounds the time from dialling a dispatcher to its answer.
	// Shorter finds another dispatcher sooner when one hangs; too short, and
	// thousands of workers that come at once are never answered in time.
	WelcomeTimeout time.Duration
	// AckTimeout bounds the time that a dispatcher may take to acknowledge a
	// status report. It should be longer than the store behind the
	// dispatcher ever takes for a commit: after it, the worker looks for
	// another dispatcher, and reports everything again.
	AckTimeout time.Duration
}

// DefaultConfig returns the settings that need no change.
func DefaultConfig() Config {
	return Config{
		DescribeInterval: 20 * time.Second,
		WelcomeTimeout:   5 * time.Second,
		AckTimeout:       time.Minute,
		Plugins:          pluginhost.DefaultConfig(),
	}
}

// CheckNodeID refuses what cannot be the id of a node. An empty one is still to be made.
func CheckNodeID(id string) error {
	if id == "" {
		return nil
	}
	return nodeid.Check(id)
}

// Validate names all that is wrong.
func (c *Config) Validate() error {
	var errs []error
	if err := CheckNodeID(c.NodeID); err != nil {
		errs = append(errs, err)
	}
	if len(c.Dispatchers) == 0 {
		errs = append(errs, errors.New("no dispatcher is named"))
	}
	for _, address := range c.Dispatchers {
		if _, _, err := net.SplitHostPort(address); err != nil {
			errs = append(errs, fmt.Errorf("dispatcher %q: %w", address, err))
		}
	}
	if c.Resources.GetNanoCpus() < 0 || c.Resources.GetMemoryBytes() < 0 {
		errs = append(errs, errors.New("resources are negative"))
	}
	if a := c.DataPathAddress; a != "" {
		if ip, err := netip.ParseAddr(a); err != nil || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
			errs = append(errs, fmt.Errorf("data path address %q is not valid: want the IP address at which other nodes reach this one", a))
		}
	}
	if c.Plugins.MachinePID < 0 {
		errs = append(errs, fmt.Errorf("process id of the machine is %d; it must be 0 or more", c.Plugins.MachinePID))
	}
	if c.Plugins.MachinePID > 0 && c.DataPathAddress == "" {
		errs = append(errs, errors.New("no data path address is given: want the machine's IP address for traffic between nodes, because network plugins work in the machine's network and not in the worker's"))
	}
	if p := c.DataPathPort; p != 0 && p < nodereport.MinDataPathPort || p > math.MaxUint16 {
		errs = append(errs, fmt.Errorf("data path port %d is not valid: want a number from %d to 65535", p, nodereport.MinDataPathPort))
	}
	for name, d := range map[string]time.Duration{
		"describe interval": c.DescribeInterval, "welcome timeout": c.WelcomeTimeout, "ack timeout": c.AckTimeout,
	} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s is %s; it must be longer than 0", name, d))
		}
	}
	return errors.Join(errs...)
}
