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
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Service is a daemon that its package makes from an Env.
type Service interface {
	// Run works until ctx ends. When it returns, everything that it started has ended.
	Run(ctx context.Context) error
	// View returns the daemon's view of the store, or nil if it needs none.
	View() View
}

// View is a daemon's view of the store, for reports on the daemon. It gives no access to
// records.
type View interface {
	// Ready waits until the tables are loaded.
	Ready(ctx context.Context) error
	Status() store.Status
	// AppliedSequences returns the sequence number of each shard, by table.
	AppliedSequences() map[string][]uint64
}

// KeyHolder is a Service that has the cluster's keys.
type KeyHolder interface {
	// ClusterKeys returns their names, that of the first key first.
	ClusterKeys() []string
}

// Host provides what daemons run with: a store, credentials, a logger and a registry.
// Daemons in one process may share it.
type Host struct {
	KV          kv.KV
	Prefix      string
	Credentials Credentials
	Logger      *zap.Logger
	Metrics     prometheus.Registerer
	Version     string
	StopTimeout time.Duration
	// Tracing says where traces are sent. By default there are none.
	Tracing tracing.Settings
	// Guard decides who may call. It must be nil exactly if the credentials are plain. A
	// nil guard admits everyone.
	Guard *auth.Guard
	// Ready, if not nil, is called when a daemon has loaded its tables and serves.
	Ready func()
	// DialOptions are added to connections to other daemons, for example for a network in
	// memory.
	DialOptions []grpc.DialOption

	mu sync.Mutex
	// running holds the running daemons by instance.
	running map[string]*running
}

// Healthy returns why the daemons that run here cannot work, or nil.
func (h *Host) Healthy() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, instance := range slices.Sorted(maps.Keys(h.running)) {
		r := h.running[instance]
		if err := Healthy(r.view); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.member.Daemon, err))
		}
	}
	return errors.Join(errs...)
}

// enter records that a daemon runs, until the returned function is called.
func (h *Host) enter(r *running) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running == nil {
		h.running = map[string]*running{}
	}
	h.running[r.member.Instance] = r
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.running, r.member.Instance)
	}
}

// Spec says which daemon to run, and where.
type Spec struct {
	// Name is the daemon's name, such as "schedulerd".
	Name string
	// Listener is for the gRPC server, which closes it.
	Listener net.Listener
	// Advertise is the address at which others reach the listener. By default it is the
	// listener's own address, with the machine's host name in place of an unspecified one.
	Advertise string
	// Unauthenticated means that the daemon's server accepts connections without a
	// certificate, as people have them. The guard decides what they may call.
	Unauthenticated bool
	// ServerOptions are added to those of the gRPC server. Interceptors among them run
	// after the guard's.
	ServerOptions []grpc.ServerOption
	// Build makes the daemon.
	Build func(Env) (Service, error)
	// Beside returns tasks to run beside the daemon, such as a REST server.
	Beside func(Service) []Task
}

var errUnguarded = errors.New("a daemon with TLS needs a guard, and one without cannot have any")

// NewInstance returns the name of one run of a daemon.
func NewInstance() string { return rand.Text()[:10] }

// Run builds a daemon and runs it until ctx ends. Then it ends the daemon in order: it
// reports itself as not serving and gives its shards to others, the session is closed,
// which removes it from the catalog, and open calls may finish.
func (h *Host) Run(ctx context.Context, spec Spec) error {
	fail := func(err error) error { return errors.Join(err, spec.Listener.Close()) }
	if h.Credentials.Secure() != (h.Guard != nil) {
		return fail(errUnguarded)
	}
	advertise, err := advertised(spec.Advertise, spec.Listener.Addr())
	if err != nil {
		return fail(err)
	}
	member := shards.Member{Instance: NewInstance(), Daemon: spec.Name, Address: advertise, Version: h.Version, Started: time.Now()}
	log := h.Logger.Named(spec.Name)
	tracer, flush, err := tracing.Export(ctx, h.Tracing, tracing.Process{Daemon: spec.Name, Instance: member.Instance, Version: h.Version}, log)
	if err != nil {
		return fail(err)
	}
	defer Flush(flush)
	r, err := h.build(spec, member, tracer, log)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", spec.Name, err))
	}
	defer h.enter(r)()
	log.Info("daemon is up", zap.String("instance", member.Instance), zap.String("address", advertise), zap.String("version", h.Version))
	// The gRPC server ends after the daemon, so that open calls get their answers. The
	// session ends after the daemon's last use of it.
	err = Runner{
		{{Run: func(ctx context.Context) error { return ServeGRPC(ctx, r.server, spec.Listener, h.StopTimeout/2) }}},
		{{Run: r.keepSession}},
		r.tasks(spec),
	}.Run(ctx)
	log.Info("daemon is down", zap.Error(err))
	return err
}

// build makes a daemon, its server and its session. It starts nothing.
func (h *Host) build(spec Spec, member shards.Member, tracer *tracing.Tracer, log *zap.Logger) (*running, error) {
	options := slices.Concat(tracer.ServerOptions(), h.Guard.ServerOptions(), spec.ServerOptions)
	if spec.Unauthenticated {
		options = append(options, h.Guard.UnauthenticatedOptions()...)
	}
	server, health := NewServer(h.Guard.Handshakes(h.Credentials.Server(spec.Unauthenticated)), options...)
	sessions := NewSessions(h.KV, h.sessionConfig(member))
	service, err := spec.Build(Env{
		KV:      h.KV,
		Prefix:  h.Prefix,
		Member:  member,
		Session: sessions.Open,
		Logger:  log,
		Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"daemon": spec.Name}, h.Metrics),
		Tracer:  tracer,
		Guard:   h.Guard,
		Server:  server,
		Dial:    Dialer(h.Credentials.Client, append(tracer.DialOptions(), h.DialOptions...)...),
	})
	if err != nil {
		return nil, err
	}
	r := &running{host: h, member: member, service: service, view: service.View(), server: server, health: health, sessions: sessions, log: log}
	report := &reporter{member: member, view: r.view, creds: h.Credentials}
	if holder, ok := service.(KeyHolder); ok {
		report.keys = holder.ClusterKeys
	}
	daemonv1.RegisterDaemonServiceServer(server, report)
	if r.view != nil {
		health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
	return r, h.Guard.RegisterRules(server.GetServiceInfo())
}

// running is a running daemon.
type running struct {
	host     *Host
	member   shards.Member
	service  Service
	view     View
	server   *grpc.Server
	health   *health.Server
	sessions *Sessions
	log      *zap.Logger
}

// tasks returns what the daemon does while its server and its session are there.
func (r *running) tasks(spec Spec) []Task {
	tasks := []Task{{Name: spec.Name, Run: r.work}, {Name: "health", Run: r.reportReady}}
	if spec.Beside != nil {
		tasks = append(tasks, spec.Beside(r.service)...)
	}
	return tasks
}

// work runs the daemon. It reports itself as not serving as soon as ctx ends.
func (r *running) work(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.health.Shutdown)()
	defer r.health.Shutdown()
	return r.service.Run(ctx)
}

// reportReady reports the daemon as serving once its tables are loaded. It stays so while
// the store is away, because reads still work.
func (r *running) reportReady(ctx context.Context) error {
	if r.view != nil && r.view.Ready(ctx) == nil {
		r.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		r.log.Info("tables are loaded")
	}
	if r.host.Ready != nil && ctx.Err() == nil {
		r.host.Ready()
	}
	<-ctx.Done()
	return nil
}

// keepSession closes the session when ctx ends.
func (r *running) keepSession(ctx context.Context) error {
	<-ctx.Done()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.host.StopTimeout/2)
	defer cancel()
	if err := r.sessions.Close(closing); err != nil {
		r.log.Warn("session expires on its own", zap.Error(err))
	}
	return nil
}

// flushTimeout bounds how long the last traces delay the end of the process. A collector
// that is away is not worth a longer wait.
const flushTimeout = time.Second

// Flush sends the last traces.
func Flush(flush func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	// Traces that cannot be sent are lost.
	_ = flush(ctx)
}

// sessionConfig describes the process to the store's catalog.
func (h *Host) sessionConfig(m shards.Member) kv.SessionConfig {
	cfg := kv.SessionConfig{Name: m.Daemon + "/" + m.Instance}
	host, port, err := net.SplitHostPort(m.Address)
	if err != nil {
		return cfg
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return cfg
	}
	name := "muster-" + m.Daemon
	cfg.Service = &kv.Service{
		ID: name + "-" + m.Instance, Name: name, Address: host, Port: number,
		Meta:         map[string]string{"version": m.Version, "instance": m.Instance, "prefix": h.Prefix},
		CheckAddress: m.Address,
	}
	return cfg
}
