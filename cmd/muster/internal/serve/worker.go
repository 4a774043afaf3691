package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// workerFlags are a worker's own settings.
type workerFlags struct {
	cfg        workerd.Config
	cpus       float64
	memory     string
	labels     map[string]string
	checksums  map[string]string
	pluginDirs []string
	sumsFile   string
}

func (f *workerFlags) add(fs *pflag.FlagSet) {
	f.cfg = workerd.DefaultConfig()
	fs.StringSliceVar(&f.cfg.Dispatchers, "dispatcher", []string{fmt.Sprintf("127.0.0.1:%d", dispatcherdPort)}, "host:port of a dispatcher, or several separated by commas, of which any will do")
	f.addDataDir(fs)
	fs.StringVar(&f.cfg.NodeID, "node-id", "", "id of the node (default: generated once and stored in --data-dir)")
	fs.StringVar(&f.cfg.Hostname, "hostname", "", "name of the node (default: the machine's)")
	fs.StringVar(&f.cfg.DataPathAddress, "data-path-addr", "", "IP address at which other nodes reach this one with the traffic of networks (default: that from which the worker reaches its dispatcher)")
	fs.IntVar(&f.cfg.DataPathPort, "data-path-port", defaults.DataPathPort, "UDP port for the traffic of networks; each worker on a machine needs one of its own")
	f.addMachine(fs)
	f.addCommon(fs)
}

func (f *workerFlags) addDataDir(fs *pflag.FlagSet) {
	fs.StringVar(&f.cfg.DataDir, "data-dir", "/var/lib/muster/worker", "directory for the node's id, its tasks and the executors' data")
}

func (f *workerFlags) addMachine(fs *pflag.FlagSet) {
	fs.IntVar(&f.cfg.Plugins.MachinePID, "machine-pid", 0, "for a worker in a container that has the machine's processes (pid: host): 1, or another process of the machine; network plugins then work in the machine's network and not in the worker's, and need the capabilities NET_ADMIN, SYS_ADMIN, SYS_CHROOT and SYS_PTRACE, and the machine's /run/netns; set --data-path-addr, too")
}

// labels reads labels as the other commands do: a key alone is a label with an empty
// value.
type labels struct{ pflag.Value }

// Set takes a label, or several with commas between them.
func (l labels) Set(v string) error {
	if !strings.ContainsAny(v, "=,") {
		v += "="
	}
	return l.Value.Set(v)
}

// addCommon adds the settings that muster dev has for its workers, too.
func (f *workerFlags) addCommon(fs *pflag.FlagSet) {
	f.addRuntimeDir(fs)
	fs.StringToStringVar(&f.labels, "label", nil, "engine labels of the node, key=value")
	fs.Lookup("label").Value = labels{fs.Lookup("label").Value}
	fs.Float64Var(&f.cpus, "cpus", 0, "CPUs that tasks of this worker may reserve (default: the machine's, shared with its other workers)")
	fs.StringVar(&f.memory, "memory", "", "memory that tasks of this worker may reserve, like 8g (default: the machine's, shared with its other workers)")
	fs.StringVar(&f.cfg.Machine, "machine", "", "name of the machine; workers with the same one, at the same address, share its host ports, and the CPUs and memory that --cpus and --memory do not give them for themselves (default: found out, so that all workers of a machine share it)")
	f.addPlugins(fs)
}

func (f *workerFlags) addRuntimeDir(fs *pflag.FlagSet) {
	fs.StringVar(&f.cfg.RuntimeDir, "runtime-dir", workerd.DefaultRuntimeDir(), "directory for the secrets and configs of tasks, in memory: a tmpfs is mounted there if it is on none; for a worker in a container it must be the same directory of the machine (default for users other than root: muster in $XDG_RUNTIME_DIR)")
	// The same for all users.
	fs.Lookup("runtime-dir").DefValue = "/run/muster"
}

// addPlugins adds the flags that say which plugins there are.
func (f *workerFlags) addPlugins(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.pluginDirs, "plugin-dir", DefaultPluginDirs(), "directories with plugins: executors, which are programs called muster-executor-NAME, and network plugins, called muster-network-NAME; only root and the worker's user may be able to change these directories, and those above them")
	// The same wherever this program lies.
	fs.Lookup("plugin-dir").DefValue = "[plugins beside this program,../lib/muster/plugins from there," + strings.Join(packaged(), ",") + "]"
	fs.StringToStringVar(&f.checksums, "plugin-checksum", nil, "pin plugins: NAME=SHA256 for an executor, muster-network-NAME=SHA256 for a network plugin; one with another checksum is refused")
	fs.StringVar(&f.sumsFile, "plugin-checksum-file", "", "pin all plugins with a file in the format of sha256sum, read again when it changes; other plugins are refused")
}

// config makes a worker's configuration of the flags.
func (f *workerFlags) config() (workerd.Config, error) {
	cfg := f.cfg
	cfg.Labels, cfg.Plugins = f.labels, f.plugins()
	machine, err := workerd.MachineID(cfg.Plugins.MachinePID)
	if err != nil {
		return cfg, fmt.Errorf("--machine-pid: %w", err)
	}
	if cfg.Machine == "" {
		cfg.Machine = machine
	}
	if f.cpus < 0 || f.cpus > 1e6 || math.IsNaN(f.cpus) {
		return cfg, fmt.Errorf("--cpus: invalid number of CPUs %v", f.cpus)
	}
	cfg.Resources = &musterv1.Resources{NanoCpus: int64(f.cpus * 1e9)}
	if f.memory != "" {
		bytes, err := units.RAMInBytes(f.memory)
		if err != nil {
			return cfg, fmt.Errorf("--memory: %w", err)
		}
		cfg.Resources.MemoryBytes = bytes
	}
	return cfg, nil
}

// plugins says which executor plugins the flags name.
func (f *workerFlags) plugins() pluginhost.Config {
	cfg := f.cfg.Plugins
	cfg.Dirs, cfg.Checksums, cfg.ChecksumFile = f.pluginDirs, f.checksums, f.sumsFile
	return cfg
}

// DefaultPluginDirs are where plugins are looked for: beside this program, as it is
// built and as an archive has it, and where packages put them.
func DefaultPluginDirs() []string {
	dirs := packaged()
	self, err := os.Executable()
	if err != nil {
		return dirs
	}
	self = filepath.Dir(self)
	if unpacked := filepath.Join(self, "../lib/muster/plugins"); !slices.Contains(dirs, unpacked) {
		dirs = append([]string{unpacked}, dirs...)
	}
	return append([]string{filepath.Join(self, "plugins")}, dirs...)
}

// packaged are the directories where packages put plugins.
func packaged() []string {
	return []string{"/usr/local/lib/muster/plugins", "/usr/lib/muster/plugins"}
}

func workerCommand(version string) *cobra.Command {
	var (
		s daemon.Settings
		f workerFlags
	)
	cmd := &cobra.Command{
		Use: "workerd", Short: "Run a worker, which runs tasks on this machine through executor plugins", Args: cobra.NoArgs,
		Long: `Run a worker, which runs tasks on this machine through executor plugins.

A worker needs no Consul: it connects to a dispatcher. When it is stopped or killed, its tasks keep running, and after a
restart with the same --data-dir it adopts them. Several workers on one machine each need their own --data-dir; they share
the machine's ports, CPUs and memory.
` + settingsHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd, &s); err != nil {
				return err
			}
			if err := refuseOpen(&s, false, address{"ops-listen", s.OpsListen}); err != nil {
				return err
			}
			cfg, err := f.config()
			if err == nil {
				err = cfg.Validate()
			}
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			return runWorker(cmd.Context(), &s, cfg, version)
		},
	}
	s.AddProcessFlags(cmd.Flags(), workerdPort+1000)
	s.AddTLSFlags(cmd.Flags())
	f.add(cmd.Flags())
	cmd.AddCommand(resetCommand())
	return cmd
}

// runWorker runs a worker as this process.
func runWorker(ctx context.Context, s *daemon.Settings, cfg workerd.Config, version string) error {
	log, err := s.Log()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	defer notifier{log}.stops(ctx)()
	warnOfChangeable(log, append(trustedFiles(s), trusted{"--plugin-checksum-file", cfg.Plugins.ChecksumFile}, trusted{"--data-dir", cfg.DataDir})...)
	id := auth.Identity{Role: authv1.Role_WORKER}
	if s.Join.Wanted() {
		// The certificate is for the node, so its id comes first.
		if cfg.NodeID, err = cfg.EnsureNodeID(); err != nil {
			return err
		}
		id.Name, s.Join.Dir = cfg.NodeID, cfg.DataDir
	}
	return withCredentials(ctx, s, id, nil, log, func(ctx context.Context, creds daemon.Credentials) error {
		return serveWorker(ctx, s, cfg, creds, version, log)
	})
}

// serveWorker runs it with its credentials.
func serveWorker(ctx context.Context, s *daemon.Settings, cfg workerd.Config, creds daemon.Credentials, version string, log *zap.Logger) error {
	registry := daemon.NewRegistry()
	tracer, flush, err := tracing.Export(ctx, s.Tracing, tracing.Process{Daemon: "workerd", Instance: daemon.NewInstance(), Version: version}, log)
	if err != nil {
		return err
	}
	defer daemon.Flush(flush)
	w, err := workerd.New(workerd.Env{
		Logger: log.Named("workerd"), Metrics: registry, Tracer: tracer, Dial: daemon.Dialer(creds.ClientOf(authv1.Role_DISPATCHERD)), Version: version,
	}, cfg)
	if err != nil {
		return err
	}
	tasks := []daemon.Task{{Name: "workerd", Run: w.Run}}
	guard, err := newGuard(creds, log, registry)
	if err != nil {
		return err
	}
	connections, err := daemon.NewConnections(s.Connections, creds.Secure(), log.Named("connections"), registry)
	if err != nil {
		return err
	}
	listeners := newListening("workerd", clusterID(creds, cfg.Dispatchers...), workerdPort+1000, s, log)
	ops, err := listeners.openOps(ctx, connections, creds, guard)
	if err != nil {
		return err
	}
	if ops != nil {
		tasks = append(tasks, serveOps(listeners.replica, ops, s, registry, func() error { return sessionStatus(w) }, guard, hostsOf(s, creds).Check))
	}
	// It looks after its tasks from now on, whether a dispatcher answers or not.
	notifier{log}.ready()
	return daemon.RunTasks(ctx, tasks...)
}

// sessionStatus returns what keeps a worker from getting tasks: that it has no session
// with a dispatcher. It is ready once it had one.
func sessionStatus(w *workerd.Worker) error {
	err := w.Session()
	if errors.Is(err, workerd.ErrNotJoined) {
		return &daemon.Starting{Err: err}
	}
	return err
}

// pluginsFound reports whether a directory holds an executor plugin.
func pluginsFound(dirs []string) bool {
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "muster-executor-") {
				return true
			}
		}
	}
	return false
}
