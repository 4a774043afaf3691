package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/workerd"
)

// workerPrefix is how the names of a cluster's workers begin, and of their directories.
const workerPrefix = "worker"

// dev is a whole cluster in one process, on the embedded store.
type dev struct {
	settings daemon.Settings
	managers []*manager
	worker   workerFlags
	rest     string
	dispatch string
	dataDir  string
	docker   dockerFlags
	workers  int
	version  string
	out      io.Writer
	// ready is called once the cluster can be used; nil: it is announced to the user.
	ready func()
}

// leaveTimeout bounds the removal of everything when a cluster that is kept in
// memory ends. It covers the default stop grace period of containers.
const leaveTimeout = 25 * time.Second

// Local runs a cluster in memory, with one worker, until ctx ends. The control API listens
// at an address of this machine. Ready is called once it can be used.
func Local(ctx context.Context, version, listen string, out io.Writer, ready func()) error {
	d := &dev{version: version, managers: managers(), ready: ready}
	cmd := d.command()
	const free = "127.0.0.1:0"
	cmd.SetArgs([]string{"--listen", listen, "--rest-listen", free, "--dispatcher-listen", free, "--ops-listen=", "--data-dir=", "--workers=1", "--log-level=error"})
	cmd.SetOut(out)
	cmd.SetErr(out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.ExecuteContext(ctx)
}

func devCommand(version string) *cobra.Command {
	d := &dev{version: version, managers: managers()}
	return d.command()
}

// command makes the command that runs the cluster.
func (d *dev) command() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine, in one process", Args: cobra.NoArgs,
		Long: `Run a whole cluster on this machine, in one process: all manager daemons on the embedded store, and some workers.

Without --data-dir everything is in memory, and tasks and networks end with the cluster, whether it ends by Ctrl-C, by a
closed terminal or by being killed. With --data-dir tasks keep running when the cluster ends, and the next start with the same directory
finds them.

It serves everyone who can connect, without encryption, so it listens on loopback addresses only. Its workers share this
machine: a port or a file taken by a task of one worker is not available to tasks of the others.`,
		Example: `  muster dev
  muster dev --workers 3 --data-dir ~/.muster`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.ErrOrStderr()
			if err := load(cmd, &d.settings); err != nil {
				return err
			}
			return d.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	d.settings.AddProcessFlags(fs, apidPort+1000)
	fs.StringVar(&d.settings.Listen, "listen", fmt.Sprintf("127.0.0.1:%d", apidPort), "address of the control API, gRPC")
	fs.StringVar(&d.rest, "rest-listen", fmt.Sprintf("127.0.0.1:%d", restPort), "address of the control API, REST")
	fs.StringVar(&d.dispatch, "dispatcher-listen", fmt.Sprintf("127.0.0.1:%d", dispatcherdPort), "address of the dispatcher, for further workers (muster workerd)")
	fs.StringVar(&d.dataDir, "data-dir", "", "directory to keep the cluster in (default: memory)")
	fs.IntVar(&d.workers, "workers", 1, "number of workers")
	fs.StringVar(&d.docker.socket, "docker-socket", dockerSocket, "path of the unix socket at which docker commands reach the cluster, relative to the cluster's directory; empty turns it off")
	d.docker.addEngine(fs)
	d.worker.cfg = workerd.DefaultConfig()
	d.worker.addCommon(fs)
	for _, m := range d.managers {
		if m.flags != nil {
			m.flags(fs)
		}
	}
	d.settings.Prefix = daemon.Prefix
	cmd.AddCommand(backupCommand(), restoreCommand(), sweepCommand())
	return cmd
}

func (d *dev) check() error {
	var faults []error
	if d.workers < 0 || d.workers > 1000 {
		faults = append(faults, fmt.Errorf("--workers: %d is not a number from 0 to 1000", d.workers))
	}
	listen := []address{{"listen", d.settings.Listen}, {"rest-listen", d.rest}, {"dispatcher-listen", d.dispatch}}
	if d.settings.OpsListen != "" {
		listen = append(listen, address{"ops-listen", d.settings.OpsListen})
	}
	for _, a := range listen {
		host, _, err := net.SplitHostPort(a.value)
		if err != nil {
			faults = append(faults, fmt.Errorf("--%s: %q is not host:port", a.flag, a.value))
			continue
		}
		if !loopback(host) {
			faults = append(faults, fmt.Errorf("--%s: %q is not a loopback address, and muster dev serves everyone who can connect; "+
				"run the daemons on their own, with TLS, to be reached from elsewhere", a.flag, host))
		}
	}
	if d.workers > 0 && !pluginsFound(d.worker.pluginDirs) {
		faults = append(faults, fmt.Errorf("--plugin-dir: none of %v holds an executor plugin (muster-executor-...); `make build` puts them beside muster", d.worker.pluginDirs))
	}
	return errors.Join(faults...)
}

// run runs the cluster until ctx ends.
func (d *dev) run(ctx context.Context) (err error) {
	defer holdHeadroom()()
	// The reader of the output may end before the cluster: a closed terminal, or the
	// other end of a pipe that was interrupted too. Tasks have to be ended then.
	outlive(syscall.SIGPIPE)
	if err := d.check(); err != nil {
		return &cli.UsageError{Err: err}
	}
	log, err := d.settings.Log()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	dir, temporary := d.dataDir, false
	if dir == "" {
		temporary = true
		if dir, err = os.MkdirTemp("", "muster-dev-"); err != nil {
			return fmt.Errorf("make a directory for the workers: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	cfg := embedded.Config{}
	if !temporary {
		cfg.Path = filepath.Join(dir, storeFile)
	}
	store, err := embedded.Open(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	registry := daemon.NewRegistry()
	host := &daemon.Host{
		KV: store, Prefix: d.settings.Prefix, Credentials: daemon.Plain(), Logger: log, Metrics: registry,
		Version: d.version, StopTimeout: d.settings.StopTimeout, Tracing: d.settings.Tracing,
	}
	keys, err := devKeys(dir)
	if err != nil {
		return err
	}
	c := &devCluster{dev: d, host: host, store: store, keys: keys, dir: dir, registry: registry, log: log, failed: make(chan error, 1)}
	if err := c.listen(); err != nil {
		return err
	}
	if !temporary || d.workers == 0 {
		return c.run(ctx, temporary)
	}
	return c.runSwept(ctx)
}

// keyFile holds the key that seals the secrets of a cluster, in its directory.
const keyFile = "cluster.key"

// devKeys returns the key in the cluster's directory, which is made at the first start.
func devKeys(dir string) (*seal.Keyring, error) {
	path := filepath.Join(dir, keyFile)
	keys, err := seal.LoadKeys(path)
	if errors.Is(err, os.ErrNotExist) {
		keys, err = seal.MakeKeys(path)
	}
	return keys, err
}

// runSwept runs a cluster in memory beside a sweeper.
func (c *devCluster) runSwept(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	s, err := startSweeper(program, sweepOrder{Dir: c.dir, Plugins: c.worker.plugins(), RuntimeDir: c.worker.cfg.RuntimeDir}, c.out)
	if err != nil {
		return err
	}
	err = c.run(ctx, true)
	return errors.Join(err, s.end(c.clean))
}

// Parts of a cluster that listen beside its managers.
const (
	restPart = "REST"
	opsPart  = "operations"
)

// address is where a part listens, and the flag that says so.
type address struct{ flag, value string }

// devCluster is a cluster that runs.
type devCluster struct {
	*dev
	host      *daemon.Host
	store     *embedded.KV
	keys      *seal.Keyring
	dir       string
	registry  *prometheus.Registry
	log       *zap.Logger
	listeners map[string]net.Listener
	// docker is the path of the Docker API's socket; empty: there is none.
	docker string
	failed chan error
	// clean is set once nothing of tasks and networks is known to be left.
	clean bool
}

// listen opens all listeners, so that a port that is taken is told before
// anything starts.
func (c *devCluster) listen() (err error) {
	defer func() {
		if err != nil {
			for _, l := range c.listeners {
				_ = l.Close()
			}
		}
	}()
	c.listeners = map[string]net.Listener{}
	addresses := map[string]address{
		"apid": {"listen", c.settings.Listen}, "dispatcherd": {"dispatcher-listen", c.dispatch}, restPart: {"rest-listen", c.rest},
	}
	for _, m := range c.managers {
		if _, ok := addresses[m.name]; !ok {
			addresses[m.name] = address{m.name, "127.0.0.1:0"}
		}
	}
	if c.settings.OpsListen != "" {
		addresses[opsPart] = address{"ops-listen", c.settings.OpsListen}
	}
	bounds, err := daemon.NewConnections(c.settings.Connections, false, c.log.Named("connections"), c.registry)
	if err != nil {
		return err
	}
	servers := map[string]string{restPart: restServer, opsPart: opsServer}
	for part, a := range addresses {
		l, err := net.Listen("tcp", a.value)
		if err != nil {
			return fmt.Errorf("--%s: %w (is another cluster running?)", a.flag, err)
		}
		c.listeners[part] = bounds.Listen(l, cmp.Or(servers[part], grpcServer))
	}
	l, err := c.listenDocker()
	if l != nil {
		c.listeners[dockerPart] = bounds.Listen(l, dockerServer)
	}
	return err
}

// run starts the managers, then the workers, and ends them the other way
// round.
func (c *devCluster) run(ctx context.Context, temporary bool) error {
	// Each stage ends when it is told to, and not when ctx does.
	background := context.WithoutCancel(ctx)
	managing, stopManagers := context.WithCancel(background)
	working, stopWorkers := context.WithCancel(background)
	defer stopManagers()
	defer stopWorkers()

	var managersDone, workersDone sync.WaitGroup
	for _, m := range c.managers {
		c.start(&managersDone, m.name, managing, func(ctx context.Context) error { return c.manager(ctx, m) })
	}
	if l := c.listeners[opsPart]; l != nil {
		ops := serveOps("dev", l, &c.settings, c.registry, c.host.Healthy, nil, func(next http.Handler) http.Handler {
			return thisMachine(&c.settings).Check(withBackup(c.store, c.log, next))
		})
		c.start(&managersDone, ops.Name, managing, ops.Run)
	}
	docker, err := c.serveDocker(ctx)
	if err == nil && docker != nil {
		c.start(&managersDone, "Docker API", managing, docker)
	}
	var workers []*workerd.Worker
	for n := range c.workers {
		if err != nil {
			break
		}
		var w *workerd.Worker
		var flush func(context.Context) error
		if w, flush, err = c.newWorker(ctx, n+1); err == nil {
			workers = append(workers, w)
			c.start(&workersDone, fmt.Sprintf("worker%d", n+1), working, func(ctx context.Context) error {
				defer daemon.Flush(flush)
				return w.Run(ctx)
			})
		}
	}
	if err == nil {
		err = c.awaitWorkers(ctx)
	}
	if err == nil {
		c.started(temporary)
		select {
		case <-ctx.Done():
			if c.ready == nil {
				_, _ = fmt.Fprintln(c.out, "stopping; interrupt again to stop at once")
			}
			if temporary {
				c.clean = c.leave(background, workers)
			}
		case err = <-c.failed:
		}
	}
	stopWorkers()
	workersDone.Wait()
	// Networks can only be removed as a whole once no worker needs them.
	c.clean = c.clean && !slices.ContainsFunc(workers, (*workerd.Worker).Networked)
	stopManagers()
	managersDone.Wait()
	return err
}

// start runs a part of the cluster; its failure ends the cluster.
func (c *devCluster) start(wg *sync.WaitGroup, name string, ctx context.Context, run func(context.Context) error) {
	wg.Go(func() {
		err := run(ctx)
		if ctx.Err() == nil && err == nil {
			err = errors.New("ended by itself")
		}
		if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		select {
		case c.failed <- fmt.Errorf("%s: %w", name, err):
		default:
			c.log.Error("part of the cluster failed", zap.String("part", name), zap.Error(err))
		}
	})
}

func (c *devCluster) manager(ctx context.Context, m *manager) error {
	spec := daemon.Spec{
		Name: m.name, Listener: c.listeners[m.name],
		Build: func(env daemon.Env) (daemon.Service, error) { return m.build(env, parts{keys: c.keys}) },
	}
	if m.rest {
		spec.Beside = serveREST(c.listeners[restPart], &c.settings, thisMachine(&c.settings).Check)
	}
	return c.host.Run(ctx, spec)
}

// newWorker makes a worker, and what flushes its traces.
func (c *devCluster) newWorker(ctx context.Context, n int) (*workerd.Worker, func(context.Context) error, error) {
	cfg, err := c.worker.config()
	if err != nil {
		return nil, nil, err
	}
	name := fmt.Sprintf("%s%d", workerPrefix, n)
	cfg.Hostname = name
	cfg.DataDir = filepath.Join(c.dir, name)
	cfg.Dispatchers = []string{c.listeners["dispatcherd"].Addr().String()}
	// The workers share the machine.
	cfg.DataPathPort = defaults.DataPathPort + n - 1
	tracer, flush, err := tracing.Export(ctx, c.settings.Tracing, tracing.Process{Daemon: "workerd", Instance: name, Version: c.version}, c.log)
	if err != nil {
		return nil, nil, err
	}
	w, err := workerd.New(workerd.Env{
		Logger: c.log.Named(name), Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"worker": name}, c.registry),
		Tracer: tracer, Dial: daemon.Dialer(c.host.Credentials.Client), Version: c.version,
	}, cfg)
	return w, flush, err
}

// started says that the cluster can be used.
func (c *devCluster) started(temporary bool) {
	if c.ready != nil {
		c.ready()
		return
	}
	c.announce(temporary)
}

// announce tells how to reach the cluster.
func (c *devCluster) announce(temporary bool) {
	kept := "in memory: its tasks end with it"
	if !temporary {
		kept = "kept in " + c.dir
	}
	api, rest, metrics := c.listeners["apid"].Addr(), c.listeners[restPart].Addr(), ""
	if l := c.listeners[opsPart]; l != nil {
		metrics = fmt.Sprintf(", metrics http://%s/metrics", l.Addr())
	}
	_, _ = fmt.Fprintf(c.out, `
Muster is up: %d worker(s), %s.

  export MUSTER_ADDRESS=%s
  muster service create --name hello --replicas 3 --kind process -- /bin/sh -c 'while :; do date; sleep 1; done'
  muster service ps hello
  curl http://%s/v1/services
%s
gRPC %s, REST http://%s (OpenAPI: /openapi.json)%s. Ctrl-C stops it.

`, c.workers, kept, api, rest, c.dockerHint(), api, rest, metrics)
}
