// Package cluster runs a Muster cluster as a user does, for tests and measurements. Every
// daemon is a process of its own with a real Consul, or all managers are one muster dev.
// All are started from the one binary.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/process"
)

// managers are the manager daemons, in the order in which they start.
var managers = [...]string{"orchestratord", "allocatord", "schedulerd", "dispatcherd", "apid"}

// Managers returns the names of the manager daemons.
func Managers() []string { return managers[:] }

// Replica returns the name of a replica of a daemon. They count from 1: the first has the
// daemon's own name, and the others have their number appended.
func Replica(name string, number int) string {
	if number == 1 {
		return name
	}
	return name + "-" + strconv.Itoa(number)
}

// Cluster is a running cluster. Its methods may be called concurrently.
type Cluster struct {
	// API and REST are addresses of apid, and Dispatcher is one of dispatcherd. If there
	// are several replicas, they are those of the first.
	API, REST, Dispatcher string
	// Consul is nil for a cluster on the embedded store, and the first of Servers
	// otherwise.
	Consul  *consultest.Server
	Servers *consultest.Cluster

	cfg Config
	// addresses holds the address of each manager, so that it stays the same after a
	// restart. The address for operations is under "ops/" and the manager's name, and that
	// for REST under "rest/".
	addresses map[string]string

	mu        sync.Mutex
	processes map[string]*process.Process
}

// Config says what to start.
type Config struct {
	// Binary is the muster program.
	Binary string
	// Dir holds logs and data.
	Dir string
	// Embedded runs all managers in one muster dev, kept in memory.
	Embedded bool
	// OnDisk stores the embedded store in the file StorePath.
	OnDisk bool
	// Workers is the number of workers within muster dev.
	Workers int
	// Replicas is the number of replicas of each manager. Default: 1.
	Replicas int
	// ConsulServers is the number of Consul servers. Default: 1.
	ConsulServers int
	// ConsulSettings are more of its servers' configuration, in HCL.
	ConsulSettings []string
	// Prepare, if given, is called when Consul answers, before any manager starts.
	Prepare func(context.Context, *consultest.Cluster) error
	// Net, if given, runs the managers' replicas and Consul's servers on its hosts, each on
	// another one.
	Net *network.Net
	// WorkerHosts are the hosts of workers, by their names.
	WorkerHosts map[string]*network.Host
	// Env is added to the environment of processes, by name.
	Env map[string][]string
	// CertificateLifetime, if given, turns access control on: the cluster has its own
	// authority with certificates of this lifetime, and every daemon joins with a token. It
	// needs a Consul, on this machine's own network.
	CertificateLifetime time.Duration
	// Args are more flags, by the daemons' names. "dev" and "init" are allowed too.
	Args map[string][]string
}

// StorePath returns the file of the embedded store of a cluster in a directory.
func StorePath(dir string) string { return filepath.Join(dir, "dev", "store.db") }

// Start starts the managers of a cluster and waits until they answer. The
// caller must call Stop.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg.Replicas, cfg.ConsulServers = max(cfg.Replicas, 1), max(cfg.ConsulServers, 1)
	c := &Cluster{cfg: cfg, processes: map[string]*process.Process{}}
	var err error
	if c.addresses, err = cfg.addresses(); err != nil {
		return nil, err
	}
	c.API, c.REST, c.Dispatcher = c.addresses["apid"], c.addresses["rest/apid"], c.addresses["dispatcherd"]
	if err := c.startManagers(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) startManagers(ctx context.Context) error {
	if c.cfg.Embedded {
		return c.runDev(ctx)
	}
	places := make([]consultest.Place, c.cfg.ConsulServers)
	for i := range places {
		places[i] = c.cfg.place(i)
	}
	var err error
	if c.Servers, err = consultest.RunCluster(c.cfg.Dir, places, c.cfg.ConsulSettings...); err != nil {
		return err
	}
	if c.cfg.Prepare != nil {
		if err := c.cfg.Prepare(ctx, c.Servers); err != nil {
			return err
		}
	}
	c.Consul = c.Servers.Servers()[0]
	if c.cfg.closed() {
		if err := c.initialize(ctx); err != nil {
			return err
		}
	}
	return c.runManagers(ctx)
}

// StartAgain starts the managers and Consul after all processes of the cluster were killed.
func (c *Cluster) StartAgain(ctx context.Context) error {
	c.mu.Lock()
	clear(c.processes)
	c.mu.Unlock()
	if c.cfg.Embedded {
		return c.runDev(ctx)
	}
	if err := c.Servers.Restart(); err != nil {
		return err
	}
	return c.runManagers(ctx)
}

func (c *Cluster) runDev(ctx context.Context) error {
	args := []string{"dev", "--workers", strconv.Itoa(c.cfg.Workers), "--listen", c.API, "--rest-listen", c.REST, "--dispatcher-listen", c.Dispatcher, "--ops-listen", c.Ops("dev")}
	if c.cfg.OnDisk {
		args = append(args, "--data-dir", filepath.Dir(StorePath(c.cfg.Dir)))
	}
	if _, err := c.Run("dev", append(args, c.cfg.Args["dev"]...)...); err != nil {
		return err
	}
	return c.waitFor(ctx, c.API, c.REST, c.Dispatcher)
}

func (c *Cluster) runManagers(ctx context.Context) error {
	var listeners []string
	for _, name := range c.Names() {
		if err := c.StartManager(name); err != nil {
			return err
		}
		listeners = append(listeners, c.addresses[name])
	}
	return c.waitFor(ctx, append(listeners, c.REST)...)
}

// Names returns the names of all replicas of all managers.
func (c *Cluster) Names() []string {
	var names []string
	for _, name := range managers {
		names = append(names, c.Replicas(name)...)
	}
	return names
}

// Replicas returns the names of a daemon's replicas.
func (c *Cluster) Replicas(name string) []string {
	names := make([]string, c.cfg.Replicas)
	for i := range names {
		names[i] = Replica(name, i+1)
	}
	return names
}

// StartManager starts a replica of a manager daemon. It may have been killed before.
func (c *Cluster) StartManager(name string) error {
	return c.StartManagerFrom(c.cfg.Binary, name)
}

// StartManagerFrom is StartManager with another muster program.
func (c *Cluster) StartManagerFrom(binary, name string) error {
	daemon, number := c.replica(name)
	args := []string{daemon, "--listen", c.addresses[name], "--ops-listen", c.Ops(name), "--consul-address", c.Servers.Addresses(number - 1)}
	if daemon == "apid" {
		args = append(args, "--rest-listen", c.addresses["rest/"+name])
	}
	args = append(args, c.identityArgs(auth.Managers()[daemon], name)...)
	_, err := c.start(name, c.cfg.host(number-1), binary, append(args, c.cfg.Args[daemon]...))
	return err
}

// replica returns the daemon and the number of a replica's name.
func (c *Cluster) replica(name string) (daemon string, number int) {
	for _, daemon := range managers {
		for number := 1; number <= c.cfg.Replicas; number++ {
			if Replica(daemon, number) == name {
				return daemon, number
			}
		}
	}
	return name, 1
}

// Ops returns the address at which a manager, or "dev", serves its operations:
// metrics, health, profiles.
func (c *Cluster) Ops(name string) string { return c.addresses["ops/"+name] }

// Address returns the address of a manager's gRPC server.
func (c *Cluster) Address(name string) string { return c.addresses[name] }

// RESTAddress returns the address of a replica of apid's REST server.
func (c *Cluster) RESTAddress(name string) string { return c.addresses["rest/"+name] }

// StartWorker starts a worker. It may have been stopped before. Its name is also that of
// its data directory. Extra are more flags.
func (c *Cluster) StartWorker(name string, extra ...string) (*process.Process, error) {
	return c.StartWorkerFrom(c.cfg.Binary, name, extra...)
}

// StartWorkerFrom is StartWorker with another muster program.
func (c *Cluster) StartWorkerFrom(binary, name string, extra ...string) (*process.Process, error) {
	dispatchers := []string{c.Dispatcher}
	for _, replica := range c.Replicas("dispatcherd")[1:] {
		dispatchers = append(dispatchers, c.addresses[replica])
	}
	args := append([]string{"workerd", "--hostname", name, "--dispatcher", strings.Join(dispatchers, ","), "--ops-listen=", "--data-dir", c.IdentityDir(name)}, extra...)
	args = append(args, c.identityArgs(authv1.Role_WORKER, name)...)
	return c.start(name, c.cfg.WorkerHosts[name], binary, args)
}

// Run starts muster with some arguments, as a process of the cluster.
func (c *Cluster) Run(name string, args ...string) (*process.Process, error) {
	return c.start(name, nil, c.cfg.Binary, args)
}

func (c *Cluster) start(name string, host *network.Host, binary string, args []string) (*process.Process, error) {
	command := append([]string{binary}, args...)
	if host != nil {
		command = append(host.Command(), command...)
	}
	p, err := process.Start(process.Config{Name: name, Log: filepath.Join(c.cfg.Dir, name+".log"), Command: command, Env: c.cfg.Env[name]})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[name] = p
	return p, nil
}

// Process returns a process of the cluster by its name.
func (c *Cluster) Process(name string) *process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.processes[name]
}

// Processes returns all processes, by their names.
func (c *Cluster) Processes() map[string]*process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.processes)
}

// startTimeout bounds the time until all managers listen, on a machine that is busy.
const startTimeout = 2 * time.Minute

// waitFor waits until something listens at all addresses.
func (c *Cluster) waitFor(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, a := range addresses {
		for {
			conn, err := c.cfg.dial(ctx, "tcp", a)
			if err == nil {
				_ = conn.Close()
				break
			}
			for _, p := range c.Processes() {
				if p.Ended() {
					return fmt.Errorf("%s has ended:\n%s", p.Name, p.Tail())
				}
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("nothing listens at %s: %w", a, ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}

// Stop ends all processes in order: workers, then managers, then Consul.
func (c *Cluster) Stop() error {
	manager := map[string]bool{"dev": true}
	for _, m := range c.Names() {
		manager[m] = true
	}
	var errs []error
	for _, managers := range []bool{false, true} {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for name, p := range c.Processes() {
			if manager[name] == managers {
				wg.Go(func() {
					err := p.Stop()
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				})
			}
		}
		wg.Wait()
	}
	if c.Servers != nil {
		errs = append(errs, c.Servers.Stop())
	}
	return errors.Join(errs...)
}
