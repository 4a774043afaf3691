package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
)

// Service is what a daemon's package makes of an Env.
type Service interface {
	// Run works until ctx ends, and has then ended everything it began.
	Run(ctx context.Context) error
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
	// Build makes the daemon.
	Build func(Env) (Service, error)
	// Beside returns further things to do beside the daemon, a REST server, say.
	Beside func(Service) []Task
}

// NewInstance returns the name of one run of a daemon.
func NewInstance() string { return rand.Text()[:10] }

// Run builds a daemon and runs it until ctx ends, and then ends it in order:
// it reports itself not serving, the daemon gives its shards to others, the
// session is closed, which takes it out of the catalog, and calls that are open
// may finish.
func (h *Host) Run(ctx context.Context, spec Spec) error {
	advertise, err := advertised(spec.Advertise, spec.Listener.Addr())
	if err != nil {
		return errors.Join(err, spec.Listener.Close())
	}
	instance := NewInstance()
	log := h.Logger.Named(spec.Name)
	server, health := NewServer(h.Credentials.Server)
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
		Server:  server,
		Dial:    Dialer(h.Credentials.Client),
	}
	service, err := spec.Build(env)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", spec.Name, err), spec.Listener.Close())
	}
	tasks := []Task{{Name: spec.Name, Run: func(ctx context.Context) error {
		defer context.AfterFunc(ctx, health.Shutdown)()
		defer health.Shutdown()
		return service.Run(ctx)
	}}}
	if spec.Beside != nil {
		tasks = append(tasks, spec.Beside(service)...)
	}
	// The gRPC server outlives the daemon's own end, so that calls that are open
	// get their answers; hence a context of its own. From its first moment it says
	// that it serves.
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
