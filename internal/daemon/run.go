package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Service is what a daemon's package makes of an Env.
type Service interface {
	// Run works until ctx ends, and has then ended everything it began.
	Run(ctx context.Context) error
	// View is what the daemon sees of the store; nil if it needs nothing of it.
	View() *store.Store
}

// KeyHolder is a Service that has the cluster's keys.
type KeyHolder interface {
	// ClusterKeys names them, the first one first.
	ClusterKeys() []string
}

// Host is what a daemon runs in: a store, credentials, a logger and a
// registry, which daemons in one process may share.
type Host struct {
	KV          kv.KV
	Prefix      string
	Credentials Credentials
	Logger      *zap.Logger
	Metrics     prometheus.Registerer
	Version     string
	StopTimeout time.Duration
	// Tracing says where traces go; by default nowhere.
	Tracing tracing.Settings
	// Guard decides who may call. Nil, as it must be exactly if the credentials are
	// plain: everyone.
	Guard *auth.Guard
	// Ready, if not nil, is called when a daemon has loaded its tables and serves.
	Ready func()
	// DialOptions are further options of connections to other daemons: the way into
	// a network in memory, say.
	DialOptions []grpc.DialOption

	mu sync.Mutex
	// views are those of the daemons that run, under their instances.
	views map[string]running
}

// running is a daemon that runs.
type running struct {
	name string
	view *store.Store
}

// Healthy returns what keeps the daemons that run here from their work, nil if
// nothing does.
func (h *Host) Healthy() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, instance := range slices.Sorted(maps.Keys(h.views)) {
		r := h.views[instance]
		if err := Healthy(r.view); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// enter notes that a daemon runs, until the function that it returns is called.
func (h *Host) enter(instance string, r running) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.views == nil {
		h.views = map[string]running{}
	}
	h.views[instance] = r
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.views, instance)
	}
}

// Spec says which daemon to run, and where.
type Spec struct {
	// Name is the daemon's: "schedulerd".
	Name string
	// Listener is for the gRPC server, which closes it.
	Listener net.Listener
	// Advertise is the address at which others reach the listener. Default:
	// its own, with the machine's host name for an unspecified one.
	Advertise string
	// Strangers says that the daemon's server takes connections without a
	// certificate, and leaves it to the guard what they may: that of people.
	Strangers bool
	// ServerOptions are further ones of the gRPC server; interceptors among them come
	// after the guard's.
	ServerOptions []grpc.ServerOption
	// Build makes the daemon.
	Build func(Env) (Service, error)
	// Beside returns further things to do beside the daemon, a REST server, say.
	Beside func(Service) []Task
}

var errUnguarded = errors.New("a daemon with TLS needs a guard, and one without cannot have any")

// NewInstance returns the name of one run of a daemon.
func NewInstance() string { return rand.Text()[:10] }

// Run builds a daemon and runs it until ctx ends, and then ends it in order:
// it reports itself not serving, the daemon gives its shards to others, the
// session is closed, which takes it out of the catalog, and calls that are open
// may finish.
func (h *Host) Run(ctx context.Context, spec Spec) error {
	if h.Credentials.Secure() != (h.Guard != nil) {
		return errors.Join(errUnguarded, spec.Listener.Close())
	}
	advertise, err := advertised(spec.Advertise, spec.Listener.Addr())
	if err != nil {
		return errors.Join(err, spec.Listener.Close())
	}
	instance := NewInstance()
	log := h.Logger.Named(spec.Name)
	tracer, flush, err := tracing.Export(ctx, h.Tracing, tracing.Process{Daemon: spec.Name, Instance: instance, Version: h.Version}, log)
	if err != nil {
		return errors.Join(err, spec.Listener.Close())
	}
	defer Flush(flush)
	options := slices.Concat(tracer.ServerOptions(), h.Guard.ServerOptions(), spec.ServerOptions)
	if spec.Strangers {
		options = append(options, h.Guard.StrangerOptions()...)
	}
	server, health := NewServer(h.Guard.Handshakes(h.Credentials.Server(spec.Strangers)), options...)
	sessions := NewSessions(h.KV, h.sessionConfig(spec, instance, advertise))
	env := Env{
		KV:     h.KV,
		Prefix: h.Prefix,
		Member: shards.Member{
			Instance: instance, Daemon: spec.Name, Address: advertise, Version: h.Version, Started: time.Now(),
		},
		Session: sessions.Open,
		Logger:  log,
		Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"daemon": spec.Name}, h.Metrics),
		Tracer:  tracer,
		Guard:   h.Guard,
		Server:  server,
		Dial:    Dialer(h.Credentials.Client, append(tracer.DialOptions(), h.DialOptions...)...),
	}
	service, err := spec.Build(env)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", spec.Name, err), spec.Listener.Close())
	}
	defer h.enter(instance, running{spec.Name, service.View()})()
	report := &reporter{member: env.Member, view: service.View(), creds: h.Credentials}
	if holder, ok := service.(KeyHolder); ok {
		report.keys = holder.ClusterKeys
	}
	daemonv1.RegisterDaemonServiceServer(server, report)
	if err := h.Guard.RegisterRules(server.GetServiceInfo()); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", spec.Name, err), spec.Listener.Close())
	}
	tasks := []Task{{Name: spec.Name, Run: func(ctx context.Context) error {
		defer context.AfterFunc(ctx, health.Shutdown)()
		defer health.Shutdown()
		return service.Run(ctx)
	}}}
	view := service.View()
	if view != nil {
		health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
	tasks = append(tasks, Task{Name: "health", Run: func(ctx context.Context) error {
		if view != nil && view.Ready(ctx) == nil {
			health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			log.Info("tables are loaded")
		}
		if h.Ready != nil && ctx.Err() == nil {
			h.Ready()
		}
		<-ctx.Done()
		return nil
	}})
	if spec.Beside != nil {
		tasks = append(tasks, spec.Beside(service)...)
	}
	// The gRPC server outlives the daemon's own end, so that calls that are open
	// get their answers; hence a context of its own. It says that it serves once
	// the tables are loaded, and keeps saying so while the store is away: reads are
	// answered then too.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan error, 1)
	working, stopWorking := context.WithCancel(ctx)
	defer stopWorking()
	go func() {
		defer stopWorking()
		served <- ServeGRPC(serving, server, spec.Listener, h.StopTimeout/2)
	}()
	log.Info("daemon is up", zap.String("instance", instance), zap.String("address", advertise), zap.String("version", h.Version))
	err = RunTasks(working, tasks...)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.StopTimeout/2)
	defer cancel()
	if cerr := sessions.Close(closing); cerr != nil {
		log.Warn("session ends by itself", zap.Error(cerr))
	}
	stopServing()
	err = errors.Join(err, <-served)
	log.Info("daemon is down", zap.Error(err))
	return err
}

// flushTimeout bounds what the last traces may keep a process from its end: they
// are worth no wait for a collector that is away.
const flushTimeout = time.Second

// Flush has the last traces sent.
func Flush(flush func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	// What cannot be sent has nowhere to go.
	_ = flush(ctx)
}

// sessionConfig describes the process to the store's catalog.
func (h *Host) sessionConfig(spec Spec, instance, advertise string) kv.SessionConfig {
	cfg := kv.SessionConfig{Name: spec.Name + "/" + instance}
	host, port, err := net.SplitHostPort(advertise)
	if err != nil {
		return cfg
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return cfg
	}
	name := "muster-" + spec.Name
	cfg.Service = &kv.Service{
		ID: name + "-" + instance, Name: name, Address: host, Port: number,
		Meta:         map[string]string{"version": h.Version, "instance": instance, "prefix": h.Prefix},
		CheckAddress: advertise,
	}
	return cfg
}
