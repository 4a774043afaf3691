// Package serve turns Muster's daemons into commands: each manager daemon and
// the worker as a process of its own, and all of them in one process (muster
// dev).
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/musterhq/muster/allocatord"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/dispatcherd"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/limit"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/orchestratord"
	"github.com/musterhq/muster/schedulerd"
)

// Ports on which the daemons listen by default: gRPC there, operations
// (metrics, health, pprof) 1000 above.
const (
	apidPort          = 7700
	orchestratordPort = 7701
	allocatordPort    = 7702
	schedulerdPort    = 7703
	dispatcherdPort   = 7704
	workerdPort       = 7705
	restPort          = 7780
)

// Servers, as metrics name them.
const (
	grpcServer = "grpc"
	restServer = "rest"
	opsServer  = "ops"
)

// manager is one kind of manager daemon: what its command needs to know.
type manager struct {
	name, short string
	port        int
	// flags adds the daemon's own settings; nil if it has none.
	flags func(*pflag.FlagSet)
	build func(daemon.Env, parts) (daemon.Service, error)
	// authority and limits are apid's.
	authority *authorityFlags
	limits    *limitFlags
	// opens says that the daemon opens secrets, with the keys in keyFile.
	opens   bool
	keyFile string
	// rest says that the daemon serves REST too.
	rest bool
}

// parts are made of an apid's flags before the daemon is.
type parts struct {
	authority *ca.Authority
	keys      *seal.Keyring
	limits    *limit.Limits
}

// managers returns all manager daemons, each with settings of its own.
func managers() []*manager {
	api := apid.DefaultConfig()
	dispatcher := dispatcherd.DefaultConfig()
	return []*manager{
		{
			name: "apid", short: "Run the control API: gRPC and REST", port: apidPort, rest: true, flags: api.AddFlags,
			authority: &authorityFlags{}, limits: &limitFlags{settings: limit.DefaultSettings()},
			build: func(env daemon.Env, p parts) (daemon.Service, error) {
				cfg := api
				cfg.Authority, cfg.Keys, cfg.Limits = p.authority, p.keys, p.limits
				return apid.New(env, cfg)
			},
		},
		{
			name: "orchestratord", short: "Run the orchestrator, which turns services into tasks", port: orchestratordPort,
			build: func(env daemon.Env, _ parts) (daemon.Service, error) {
				return orchestratord.New(env)
			},
		},
		{
			name: "allocatord", short: "Run the allocator, which assigns addresses and ports", port: allocatordPort,
			build: func(env daemon.Env, _ parts) (daemon.Service, error) { return allocatord.New(env) },
		},
		{
			name: "schedulerd", short: "Run the scheduler, which assigns tasks to nodes", port: schedulerdPort,
			build: func(env daemon.Env, _ parts) (daemon.Service, error) { return schedulerd.New(env) },
		},
		{
			name: "dispatcherd", short: "Run the dispatcher, which talks to workers", port: dispatcherdPort, flags: dispatcher.AddFlags, opens: true,
			build: func(env daemon.Env, p parts) (daemon.Service, error) {
				cfg := dispatcher
				cfg.Keys = p.keys
				return dispatcherd.New(env, cfg)
			},
		},
	}
}

// AddCommands adds the commands of all daemons to the root command.
func AddCommands(root *cobra.Command, version string) {
	root.AddGroup(&cobra.Group{ID: "daemons", Title: "Run a cluster:"})
	commands := []*cobra.Command{devCommand(version)}
	for _, m := range managers() {
		commands = append(commands, m.command(version))
	}
	commands = append(commands, workerCommand(version), dockerCommand(version), initCommand(), provisionCommand(), healthCommand())
	for _, c := range commands {
		c.GroupID = "daemons"
		root.AddCommand(c)
	}
}

// command makes the command of one manager daemon.
func (m *manager) command(version string) *cobra.Command {
	var (
		s          daemon.Settings
		restListen string
	)
	cmd := &cobra.Command{
		Use: m.name, Short: m.short, Args: cobra.NoArgs,
		Long: m.short + ".\n\nAny number of them may run side by side: they share the work out among themselves through Consul. If a\nlistener's flag is not given and another replica of the cluster on this machine uses the default port, it takes a free one,\nand logs it.\n" + settingsHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd, &s); err != nil {
				return err
			}
			addresses := []address{{"listen", s.Listen}, {"rest-listen", restListen}, {"ops-listen", s.OpsListen}}
			if err := refuseOpen(&s, m.authority.given(), addresses...); err != nil {
				return err
			}
			if err := m.limits.check(); err != nil {
				return err
			}
			return m.run(cmd.Context(), &s, restListen, version)
		},
	}
	s.AddFlags(cmd.Flags(), m.port)
	if m.flags != nil {
		m.flags(cmd.Flags())
	}
	if m.authority != nil {
		m.authority.add(cmd.Flags())
	}
	if m.opens {
		addOpener(cmd.Flags(), &m.keyFile)
	}
	if m.limits != nil {
		m.limits.settings.AddFlags(cmd.Flags())
	}
	if m.rest {
		cmd.Flags().StringVar(&restListen, "rest-listen", fmt.Sprintf("127.0.0.1:%d", restPort), "address of the REST server; empty turns it off")
	}
	return cmd
}

const settingsHelp = `
Each setting is a flag, a variable of the environment (MUSTER_LOG_LEVEL for --log-level), or a key of the YAML file
that --config names; what comes first in this order wins.`

// load reads settings from everywhere and checks them.
func load(cmd *cobra.Command, s *daemon.Settings) error {
	if err := daemon.Load(cmd.Flags(), os.LookupEnv); err != nil {
		return &cli.UsageError{Err: err}
	}
	s.Given = cmd.Flags().Changed
	s.Tracing = s.Tracing.Resolve(os.LookupEnv)
	if err := s.Validate(); err != nil {
		return &cli.UsageError{Err: err}
	}
	return nil
}

// run runs one manager daemon as this process.
func (m *manager) run(ctx context.Context, s *daemon.Settings, restListen, version string) error {
	defer holdHeadroom()()
	log, err := s.Log()
	if err != nil {
		return err
	}
	// What could not be written at the end has nowhere to go.
	defer func() { _ = log.Sync() }()
	defer notifier{log}.stops(ctx)()
	warnOfChangeable(log, trustedFiles(s)...)
	keyFile := m.keyFile
	if m.authority.given() {
		keyFile = m.authority.keyFile
	}
	if keyFile != "" {
		warnOfChangeable(log, trusted{"--cluster-key-file", keyFile})
	}
	store, err := s.OpenConsul(log)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	var p parts
	if p.keys, err = loadKeys(keyFile); err != nil {
		return err
	}
	if p.authority, err = m.authority.open(s, p.keys, store, log); err != nil {
		return err
	}
	id := auth.Identity{Role: auth.Managers()[m.name], Name: m.name}
	return withCredentials(ctx, s, id, p.authority, log, func(ctx context.Context, creds daemon.Credentials) error {
		return m.serve(ctx, s, store, creds, p, restListen, version, log)
	})
}

// serve runs it with its store and its credentials.
func (m *manager) serve(ctx context.Context, s *daemon.Settings, store kv.KV, creds daemon.Credentials, p parts, restListen, version string, log *zap.Logger) error {
	listeners := newListening(m.name, clusterID(creds, s.Consul.Address, s.Consul.Datacenter, s.Prefix), m.port+1000, s, log)
	listener, err := listeners.open(ctx, "listen", s.Listen)
	if err != nil {
		return err
	}
	for _, address := range []string{s.Listen, restListen} {
		if h, _, err := net.SplitHostPort(address); err == nil && !creds.Secure() && !loopback(h) {
			log.Warn("serving without TLS to everyone who can connect (--insecure-listen)", zap.String("address", address))
		}
	}
	registry := daemon.NewRegistry()
	connections, err := daemon.NewConnections(s.Connections, creds.Secure(), log.Named("connections"), registry)
	if err != nil {
		return err
	}
	guard, err := newGuard(creds, log, registry)
	if err != nil {
		return err
	}
	if p.limits, err = m.limits.make(guard, log, registry); err != nil {
		return err
	}
	host := &daemon.Host{
		KV: store, Prefix: s.Prefix, Credentials: creds, Logger: log, Metrics: registry, Version: version, StopTimeout: s.StopTimeout,
		Tracing: s.Tracing, Guard: guard, Ready: notifier{log}.ready,
	}
	spec := daemon.Spec{
		Name: m.name, Listener: connections.Listen(listener, grpcServer), Advertise: s.Advertise, Unauthenticated: m.rest, ServerOptions: p.limits.ServerOptions(),
		Build: func(env daemon.Env) (daemon.Service, error) { return m.build(env, p) },
	}
	hosts := hostsOf(s, creds, restListen)
	if m.rest && restListen != "" {
		rest, err := listeners.open(ctx, "rest-listen", restListen)
		if err != nil {
			_ = listener.Close()
			return err
		}
		log.Info("REST is served", zap.String("address", rest.Addr().String()), zap.Bool("tls", creds.Secure()))
		rest = secured(connections.Listen(rest, restServer), creds, guard)
		spec.Beside = serveREST(rest, s, hosts.Check)
	}
	ops, err := listeners.openOps(ctx, connections, creds, guard)
	if err != nil {
		_ = listener.Close()
		return err
	}
	tasks := []daemon.Task{{Name: m.name, Run: func(ctx context.Context) error { return host.Run(ctx, spec) }}}
	if ops != nil {
		tasks = append(tasks, serveOps(listeners.replica, ops, s, registry, host.Healthy, guard, hosts.Check))
	}
	return daemon.RunTasks(ctx, tasks...)
}

// serveREST returns what serves apid's REST beside its gRPC, to those requests that hosts
// lets pass.
func serveREST(listener net.Listener, s *daemon.Settings, hosts func(http.Handler) http.Handler) func(daemon.Service) []daemon.Task {
	return func(service daemon.Service) []daemon.Task {
		api, ok := service.(*apid.Daemon)
		if !ok {
			return nil
		}
		return []daemon.Task{{Name: "serve REST", Run: func(ctx context.Context) error {
			return daemon.ServeHTTP(ctx, hosts(api.Handler()), listener, s.StopTimeout/2)
		}}}
	}
}

// openOps opens the listener for operations; nil if they are turned off.
func (o *listening) openOps(ctx context.Context, connections *daemon.Connections, creds daemon.Credentials, guard *auth.Guard) (net.Listener, error) {
	if o.settings.OpsListen == "" {
		return nil, nil
	}
	listener, err := o.open(ctx, "ops-listen", o.settings.OpsListen)
	if err != nil {
		return nil, err
	}
	return secured(connections.Listen(listener, opsServer), creds, guard), nil
}

// secured is a listener of HTTP with TLS, if that is what the credentials are for.
func secured(l net.Listener, creds daemon.Credentials, guard *auth.Guard) net.Listener {
	if c := creds.HTTP(); c != nil {
		return guard.Listen(l, c, creds.Keep)
	}
	return l
}

// newGuard returns the guard of a process; nil if it serves everyone.
func newGuard(creds daemon.Credentials, log *zap.Logger, metrics prometheus.Registerer) (*auth.Guard, error) {
	if !creds.Secure() {
		return nil, nil
	}
	return auth.New(creds.Domain, log.Named("auth"), metrics)
}

// serveOps serves a daemon's operations (metrics, health, pprof) to those requests that
// hosts lets pass. The answers name the replica.
func serveOps(replica string, listener net.Listener, s *daemon.Settings, metrics prometheus.Gatherer, healthy func() error, guard *auth.Guard, hosts func(http.Handler) http.Handler) daemon.Task {
	return daemon.Task{Name: "serve operations", Run: func(ctx context.Context) error {
		handler := daemon.OpsHandler(metrics, func() error { return errors.Join(ctx.Err(), healthy()) }, guard)
		return daemon.ServeHTTP(ctx, hosts(named(replica, handler)), listener, s.StopTimeout/2)
	}}
}
